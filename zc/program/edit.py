"""Inserting typed, stamped nodes: what passes write with.

edit = Editor(program, graph, made_by="shard_params")
with edit.before(first_read):
    gather = edit.call(C10D.all_gather_into_tensor.default, shard, 4, "dp", name="w0_gather")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from zc import torch_private
from zc.program.derived import derivations_of
from zc.program.nodes import set_input
from zc.program.program import Program
from zc.program.stamps import Stamp, set_stamp, stamp_of
from zc.program.tables import Input, State
from zc.program.updates import NUMBER


@dataclass
class Editor:
    """Inserts nodes into ``graph``; each gets its real type and the editor's current stamp."""

    program: Program
    graph: fx.Graph
    made_by: str
    stamp: Stamp = field(default_factory=Stamp)

    @contextmanager
    def before(self, node: fx.Node, **stamp: Any) -> Iterator[None]:
        """Insert before ``node``, in its phase, with the given fields of the stamp."""
        with self.graph.inserting_before(node), self._stamped(node, stamp):
            yield

    @contextmanager
    def after(self, node: fx.Node, **stamp: Any) -> Iterator[None]:
        """Insert behind ``node``, in its phase, with the given fields of the stamp."""
        following = node.next
        with self.graph.inserting_before(following), self._stamped(node, stamp):
            yield

    def call(self, target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        """Insert a call of ``target`` and derive its type.

        Raises:
            whatever ``target`` raises for operands of these types.
        """
        name = name or default_name(target, self.stamp.param)
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta["val"] = self.derive(node)
        set_stamp(node, self.stamp)
        return node

    def derive(self, node: fx.Node) -> Any:
        """The type of ``node``, which stands in the graph already."""
        mode = self.program.fake_mode
        return derivations_of(mode).type_of(node, mode)

    @contextmanager
    def _stamped(self, node: fx.Node, stamp: dict[str, Any]) -> Iterator[None]:
        kept = self.stamp
        source = stamp_of(node)
        base = Stamp(phase=source.phase, module=source.module, source=source.source)
        self.stamp = replace(base, made_by=self.made_by, **stamp)
        try:
            yield
        finally:
            self.stamp = kept


def state_input(program: Program, entry: State, behind: fx.Node | None = None) -> fx.Node:
    """Enter ``entry`` into the state table, and make the placeholder that it is read through.

    Who adds many says which input is the last one so far, ``behind``: looking for it takes time.
    """
    program.state[entry.name] = entry
    if behind is None or behind.next.op == "placeholder":
        behind = program.placeholders()[-1]
    with program.graph.inserting_after(behind):
        node = program.graph.placeholder(node_name(entry.name))
    set_input(node, Input("state", entry.name))
    set_stamp(node, Stamp(param=entry.param))
    node.meta["val"] = NUMBER
    if entry.dtype is not None:
        plain = entry.shape, entry.dtype, entry.device
        node.meta["val"] = torch_private.fake_empty(program.fake_mode, *plain)
    return node


def default_name(target: Any, param: str = "") -> str:
    """Name of a node that calls ``target`` on behalf of ``param``: ``w0_view``."""
    schema = getattr(target, "_schema", None)
    op = schema.name.split("::")[1] if schema is not None else getattr(target, "__name__", "value")
    return "_".join(filter(None, (node_name(param), op.strip("_"))))


def node_name(param: str) -> str:
    """The qualified name ``param`` as part of a node's name: ``h_0_weight`` for ``h.0.weight``."""
    name = "".join(c if c.isalnum() else "_" for c in param).strip("_")
    return f"p{name}" if name[:1].isdigit() else name


def replace_uses(old: fx.Node, new: fx.Node, keep: tuple[fx.Node, ...] = ()) -> None:
    """Make every user of ``old`` but those in ``keep`` (and ``new`` itself) read ``new``."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new and user not in keep)


@dataclass
class Replaced:
    """Nodes that others take the place of, and that go when all of them are known.

    ``wide`` are those that read very many of them, and whose operands are changed all at once: each
    change looks at every operand.
    """

    wide: set[fx.Node]
    instead: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all that reads ``old`` read ``new``; what is wide only does when old nodes go."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in self.wide)
        self.instead[old] = new

    def erase(self, graph: fx.Graph) -> None:
        """Let wide nodes of ``graph`` read the new ones too, and erase the old ones."""
        for node in graph.nodes:
            if node in self.wide:
                node.args = map_arg(node.args, lambda n: self.instead.get(n, n))
        for old in self.instead:
            graph.erase_node(old)


def erase_dead(graph: fx.Graph, roots: list[fx.Node]) -> None:
    """Erase those of ``roots`` that nothing reads, and what only they read; inputs stay."""
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node.users or node.op != "call_function" or node._erased:
            continue
        pending.extend(node.all_input_nodes)
        graph.erase_node(node)
