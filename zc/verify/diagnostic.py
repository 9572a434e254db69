"""Errors of the verifier: what is wrong, shown in its surroundings, and what to do next."""

from torch import fx

from zc.errors import VerifyError
from zc.program.nodes import value_of
from zc.program.printer import print_arg, print_node, print_type
from zc.program.program import Program
from zc.program.stamps import stamp_of

_CONTEXT = 2


def refusal(
    program: Program,
    node: fx.Node,
    what: str,
    remedy: str,
    kind: type[VerifyError] = VerifyError,
) -> VerifyError:
    """The error for ``node``: ``what`` broke, where, the lines around it, and the ``remedy``.

    An example::

        %w0_full waits a second time for %w0_gather
          in graph step, forward, made by shard_params (train.py:12)
              %w0_gather: f32[8, 4] = c10d.all_gather_into_tensor(%w0, 4, "dp")
            > %w0_full: f32[8, 4] = c10d.wait_tensor(%w0_gather)
          wait for each collective once and let all readers use that value
    """
    return kind(
        "\n".join([what, "  " + _place(program, node), *_context(program, node), "  " + remedy])
    )


def _place(program: Program, node: fx.Node) -> str:
    name = next((name for name, graph in program.graphs.items() if graph is node.graph), "?")
    if node.op != "call_function":
        return f"in graph {name}"
    stamp = stamp_of(node)
    maker = stamp.made_by if "zc" in node.meta else ""
    source = f" ({stamp.source})" if stamp.source else ""
    return f"in graph {name}, {stamp.phase}, made by {maker or 'nobody known'}{source}"


def _context(program: Program, node: fx.Node) -> list[str]:
    before, after = [], []
    left, right = node.prev, node.next
    for _ in range(_CONTEXT):
        if left.op != "root":
            before.append(left)
            left = left.prev
        if right.op != "root":
            after.append(right)
            right = right.next
    lines = [f"      {_show(n, program)}" for n in reversed(before)]
    lines.append(f"    > {_show(node, program)}")
    return lines + [f"      {_show(n, program)}" for n in after]


def _show(node: fx.Node, program: Program) -> str:
    """The node as printed; without its note when the tables do not have what the note is about."""
    try:
        return print_node(node, program)
    except (KeyError, TypeError):
        if node.op == "output":
            return f"return {print_arg(node.args[0])}"
        return f"{node.op} %{node.name}: {print_type(value_of(node))}"
