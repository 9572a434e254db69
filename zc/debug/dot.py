"""A program as a graphviz drawing: deterministic DOT text.

Nodes stand in clusters by phase and module. Collectives and their waits have the colour of their
lane, parameters are boxes with sharp corners. More than ``MAX_NODES`` nodes are folded, see
``zc.debug.fold``.
"""

from torch import fx

from zc.debug.fold import Box, Folded, Key, box_lines, fold
from zc.debug.report import op_name
from zc.program.collectives import COLLECTIVES, is_collective, is_wait
from zc.program.nodes import input_of, value_of
from zc.program.printer import print_type
from zc.program.program import Program
from zc.program.stamps import stamp_of
from zc.text import show_bytes

MAX_NODES = 400
LANE_COLOURS = {"gather": "#8ecae6", "reduce": "#ffb703"}
PHASE_COLOURS = {"forward": "#4477aa", "backward": "#cc6677", "update": "#228833"}
_PARAM = 'shape=box, style=filled, fillcolor="#d8f3dc"'
_INPUT = "shape=box, style=dashed"
_HEAD = [
    "  rankdir=TB; compound=true; nodesep=0.25; ranksep=0.3;",
    '  node [shape=box, style=rounded, fontname="Helvetica", fontsize=10];',
    '  edge [color="#888888", fontname="Helvetica", fontsize=8, arrowsize=0.6];',
]


def draw(program: Program) -> str:
    """DOT text of ``program``, ending in a newline."""
    if sum(1 for _ in program.nodes()) > MAX_NODES:
        body = _draw_folded(fold(program))
    else:
        body = _draw_nodes(program)
    return "\n".join([f"digraph {_quote(program.name)} {{", *_HEAD, *body, "}"]) + "\n"


def lane_of(node: fx.Node) -> str | None:
    """The lane of a collective, of what is taken out of it, or of a wait for it."""
    if is_collective(node):
        return COLLECTIVES[node.target].lane
    if not is_wait(node) and getattr(node.target, "__name__", "") != "getitem":
        return None
    return lane_of(node.all_input_nodes[0])


def _draw_nodes(program: Program) -> list[str]:
    lines: list[str] = []
    for name, graph in program.graphs.items():
        prefix = "" if len(program.graphs) == 1 else f"{name}/"
        lines += _inputs(graph, prefix)
        lines += _clusters(graph, prefix)
        lines += _edges(graph, prefix)
    return lines


def _inputs(graph: fx.Graph, prefix: str) -> list[str]:
    lines = []
    for node in graph.nodes:
        if node.op in ("call_function", "output"):
            continue
        is_param = node.op == "placeholder" and input_of(node).kind == "param"
        lines.append("  " + _node(node, prefix, _PARAM if is_param else _INPUT))
    return lines


def _clusters(graph: fx.Graph, prefix: str) -> list[str]:
    members: dict[str, dict[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            stamp = stamp_of(node)
            members.setdefault(stamp.phase, {}).setdefault(stamp.module, []).append(node)
    lines = []
    for phase, modules in members.items():
        lines += _open_cluster("  ", f"{prefix}{phase}", phase, PHASE_COLOURS.get(phase, "#888888"))
        for module, nodes in modules.items():
            drawn = [_node(node, prefix, _lane_style(node)) for node in nodes]
            if module:
                cluster = _open_cluster("    ", f"{prefix}{phase}/{module}", module, "#bbbbbb")
                lines += [*cluster, *("      " + line for line in drawn), "    }"]
            else:
                lines += ["    " + line for line in drawn]
        lines.append("  }")
    return lines


def _edges(graph: fx.Graph, prefix: str) -> list[str]:
    return [
        f"  {_quote(prefix + source.name)} -> {_quote(prefix + node.name)};"
        for node in graph.nodes
        if node.op != "output"
        for source in node.all_input_nodes
    ]


def _node(node: fx.Node, prefix: str, style: str) -> str:
    what = input_of(node).subject if node.op == "placeholder" else op_name(node)
    label = "\n".join(line for line in (f"%{node.name}", what, print_type(value_of(node))) if line)
    extra = f", {style}" if style else ""
    return f"{_quote(prefix + node.name)} [label={_quote(label)}{extra}];"


def _lane_style(node: fx.Node) -> str:
    lane = lane_of(node)
    return f'style="rounded,filled", fillcolor="{LANE_COLOURS[lane]}"' if lane else ""


def _draw_folded(folded: Folded) -> list[str]:
    lines = []
    for phase in dict.fromkeys(phase for phase, _ in folded.boxes):
        lines += _open_cluster("  ", phase, phase, PHASE_COLOURS.get(phase, "#888888"))
        for key, box in folded.boxes.items():
            if key[0] == phase:
                name, label = _quote("/".join(key)), _quote("\n".join(box_lines(box)))
                lines.append(f"    {name} [label={label}{_box_style(box)}];")
        lines.append("  }")
    lines += [_folded_edge(*ends, size) for ends, size in folded.edges.items()]
    return lines


def _folded_edge(source: Key, target: Key, size: int) -> str:
    """Backward is drawn upwards, so that a module's backward stands beside its forward."""
    style, ends = "", [source, target]
    if source[0] != target[0]:
        style = ", constraint=false"
    elif source[0] == "backward":
        style, ends = ", dir=back", [target, source]
    first, second = (_quote("/".join(key)) for key in ends)
    return f"  {first} -> {second} [label={_quote(show_bytes(size))}{style}];"


def _box_style(box: Box) -> str:
    if not box.collectives:
        return ""
    lane = "reduce" if set(box.collectives) & {"reduce_scatter", "all_reduce"} else "gather"
    return f', style="rounded,filled", fillcolor="{LANE_COLOURS[lane]}"'


def _open_cluster(indent: str, name: str, label: str, colour: str) -> list[str]:
    return [
        f"{indent}subgraph {_quote('cluster_' + name)} {{",
        f'{indent}  label={_quote(label)}; color="{colour}"; fontcolor="{colour}";',
    ]


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
