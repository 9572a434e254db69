"""A large program in few boxes: one for each phase and module, as deep as fits."""

from collections import Counter
from dataclasses import dataclass, field

from torch import fx

from zc.program.collectives import Collective, collectives_of, output_bytes
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.text import show_bytes, show_count

MAX_BOXES = 250
Key = tuple[str, str]


@dataclass
class Box:
    """The nodes of one phase and module.

    ``collectives`` and ``collective_bytes`` count calls and payload by op; ``inputs`` and
    ``input_bytes`` what the box reads from outside the program, by kind.
    """

    phase: str
    module: str
    nodes: int = 0
    collectives: Counter[str] = field(default_factory=Counter)
    collective_bytes: Counter[str] = field(default_factory=Counter)
    inputs: Counter[str] = field(default_factory=Counter)
    input_bytes: Counter[str] = field(default_factory=Counter)


@dataclass
class Folded:
    """Boxes in the order of their first nodes, and the bytes that go from box to box."""

    boxes: dict[Key, Box]
    edges: dict[tuple[Key, Key], int]


def fold(program: Program, max_boxes: int = MAX_BOXES) -> Folded:
    """Fold ``program`` at the deepest level of modules that gives at most ``max_boxes`` boxes."""
    depth = _depth(program, max_boxes)
    folded = Folded({}, {})
    collectives = {found.node: found for found in collectives_of(program)}
    for node in program.nodes():
        if node.op == "call_function":
            _add_node(folded, node, depth, collectives.get(node))
    for node in program.nodes():
        _add_edges(folded, node, depth)
    return folded


def outline(program: Program) -> str:
    """The folded program as text, one box a line under its phase, ending in a newline."""
    lines = []
    phase = ""
    for box in fold(program).boxes.values():
        if box.phase != phase:
            phase = box.phase
            lines.append(phase)
        module, *rest = box_lines(box)
        lines.append(f"  {module}: {'; '.join(rest)}")
    return "\n".join(lines) + "\n"


def box_lines(box: Box) -> list[str]:
    """What a box says: module, nodes, collectives with payload, inputs read."""
    lines = [box.module or "(step)", show_count(box.nodes, "node")]
    for op, count in sorted(box.collectives.items()):
        lines.append(f"{count} {op}, {show_bytes(box.collective_bytes[op])}")
    for kind, count in sorted(box.inputs.items()):
        lines.append(f"reads {count} {kind}, {show_bytes(box.input_bytes[kind])}")
    return lines


def module_at(module: str, depth: int) -> str:
    """The first ``depth`` parts of a qualified module name."""
    return ".".join(module.split(".")[:depth])


def _depth(program: Program, max_boxes: int) -> int:
    found = {(s.phase, s.module) for s in map(stamp_of, program.nodes())}
    depth = max((module.count(".") + 1 for _, module in found), default=1)
    while depth > 1 and len({(p, module_at(m, depth)) for p, m in found}) > max_boxes:
        depth -= 1
    return depth


def _key(node: fx.Node, depth: int) -> Key:
    stamp = stamp_of(node)
    return stamp.phase, module_at(stamp.module, depth)


def _add_node(folded: Folded, node: fx.Node, depth: int, found: Collective | None) -> None:
    key = _key(node, depth)
    box = folded.boxes.setdefault(key, Box(*key))
    box.nodes += 1
    if found is not None:
        box.collectives[found.spec.op] += found.times
        box.collective_bytes[found.spec.op] += found.times * found.payload_bytes


def _add_edges(folded: Folded, node: fx.Node, depth: int) -> None:
    size = output_bytes(node)
    readers = dict.fromkeys(_key(u, depth) for u in node.users if u.op == "call_function")
    for reader in readers:
        if node.op == "placeholder":
            box = folded.boxes[reader]
            kind = input_of(node).kind
            box.inputs[kind] += 1
            box.input_bytes[kind] += size
        elif node.op == "call_function" and reader != _key(node, depth):
            edge = (_key(node, depth), reader)
            folded.edges[edge] = folded.edges.get(edge, 0) + size
