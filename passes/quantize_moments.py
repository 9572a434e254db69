"""Keep optimizer state in 8 bits: codes, and one scale for each block of elements.

before:  input %exp_avg: f32[64, 64]  {state 'adamw.exp_avg[w]'}
         %w_lerp: f32[64, 64] = aten.lerp.Scalar(%exp_avg, %w_grad, %sub)
         %w_copy: f32[64, 64] = aten.copy_(%exp_avg, %w_lerp)
after:   input %exp_avg_codes: u8[64, 64]  {state 'adamw.exp_avg[w].codes'}
         input %exp_avg_scales: f32[16]  {state 'adamw.exp_avg[w].scales'}
         %w_dequantize: f32[64, 64] = zc.dequantize(%exp_avg_codes, %exp_avg_scales, 256, true, f32)
         %w_lerp: f32[64, 64] = aten.lerp.Scalar(%w_dequantize, %w_grad, %sub)
         %w_quantize: none = zc.quantize_(%exp_avg_codes, %w_lerp, %exp_avg_scales, 256, true)

``lower_update`` makes one kernel of all of it. What is stored differs from the unquantised value by
at most 0.00704 of the largest magnitude of its block, 0.00352 where the state is never negative
(Dettmers et al., arXiv:2110.02861; ``zc.codegen.blockwise``). Whether it ever is, follows from what
the step writes, see ``zc.program.signs``.

Blocks are those of a shard at rest, counted from its beginning. Results do not depend on the number
of shards where parameters are cut along their first dimension (``shard=dp:0``) and a shard is a
multiple of ``block`` elements. Elsewhere other elements share a scale on other numbers of ranks:
results differ then, within the same bound. State that averages weights instead of gradients (of
``ASGD``, of look-ahead) wants more than 8 bits: name the ``keys`` to quantise.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from zc.codegen.blockwise import BLOCKS, block_count

from zc.errors import PipelineError
from zc.program.edit import Editor, state_input
from zc.program.kernels import FUSED_UPDATE
from zc.program.nodes import input_of, value_of
from zc.program.number_text import number_text
from zc.program.pass_base import Kind, Pass
from zc.program.program import Program
from zc.program.quantized import (
    DEQUANTIZE,
    QUANTIZE,
    codes_name,
    require_between,
    scales_name,
)
from zc.program.signs import Expected, never_negative
from zc.program.stamps import UPDATE, stamp_of
from zc.program.tables import Quantized

aten: Any = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class QuantizeMoments(Pass):
    """Keep optimizer state of a parameter's shape in 8 bits, with one scale for each block."""

    kind: ClassVar[Kind] = "numeric"
    requires: ClassVar[frozenset[str]] = frozenset({"sharded_update"})
    block: int = 256  # elements that share a scale: a power of two from 32 to 1024
    smallest: int = 4096  # elements of a parameter; state of smaller ones stays as it is
    keys: str | None = None  # entries of optimizer.state, as in 'exp_avg exp_avg_sq'; null: all

    def run(self, program: Program) -> None:
        """Put codes and scales in place of each entry, and check what their sign depends on.

        Raises:
            PipelineError: for a block of another size, a key that no optimizer keeps, and behind
                ``lower_update``.
        """
        if self.block not in BLOCKS:
            raise PipelineError(
                f"block must be a power of two from {BLOCKS[0]} to {BLOCKS[-1]}, not {self.block!r}"
            )
        if program.graph.find_nodes(op="call_function", target=FUSED_UPDATE):
            raise PipelineError(
                "'quantize_moments' stands behind 'lower_update', whose kernels hold the state "
                "already; move it before 'lower_update'"
            )
        moments = [m for m in wanted(program, self.keys) if m.numel >= self.smallest]
        unsigned = never_negative(program, {m.node: m.write.args[1] for m in moments if m.write})
        last = None
        for moment in moments:
            signed = moment.node not in unsigned
            last = quantize(program, moment, self.block, signed=signed, behind=last)
        check_numbers(program, [(m.key, unsigned[m.node]) for m in moments if m.node in unsigned])


@dataclass(frozen=True)
class Moment:
    """One entry of the state of one parameter; ``write`` is the node that stores it, if any."""

    key: str
    param: str
    node: fx.Node
    numel: int
    write: Any


def wanted(program: Program, keys: str | None) -> list[Moment]:
    """The entries of the given keys, of all keys where there are none given."""
    found = list(moments_of(program))
    if keys is None:
        return found
    chosen = keys.replace(",", " ").split()
    if any(update.classes for update in program.updates):
        refuse_unknown(program, chosen)
    return [moment for moment in found if moment.key in chosen]


def refuse_unknown(program: Program, chosen: Sequence[str]) -> None:
    """Refuse keys that no optimizer of ``program`` has state of its parameters' shape for."""
    known = sorted({key for key, _ in _entries(program).values()})
    for key in chosen:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            kept = f"they keep {', '.join(known) or 'nothing of that shape'}"
            hint = f"did you mean '{close[0]}'?" if close else kept
            raise PipelineError(
                f"no optimizer of {program.name} keeps '{key}' in the shape of its parameters; "
                f"{hint}"
            )


def moments_of(program: Program) -> Iterator[Moment]:
    """State of the shape of its parameter, in floating point of 32 bits or fewer."""
    inputs = {input_of(node).subject: node for node in program.placeholders("state")}
    for entry, (key, param) in _entries(program).items():
        node = inputs.get(entry)
        if node is None or value_of(node).dtype not in DTYPES:
            continue
        writes = [user for user in node.users if _stores(user, node)]
        numel = torch.Size(program.params[param].shape).numel()
        yield Moment(key, param, node, numel, writes[0] if writes else None)


def _entries(program: Program) -> dict[str, tuple[str, str]]:
    """Key and parameter of each entry of the state table that has the parameter's shape."""
    found: dict[str, tuple[str, str]] = {}
    for update in program.updates:
        for kind in update.classes:
            body = kind.body
            slots = [*zip(body.inputs, body.placeholders(), strict=True)]
            slots += zip(body.writes, body.results(), strict=True)
            kept = [(slot, value_of(node)) for slot, node in slots if slot.role == "state"]
            for members in kind.members:
                for slot, value in kept:
                    name = members[slot.member]
                    if tuple(value.shape) == program.params[name].shape:
                        found[update.state_name(slot.key, name)] = (slot.key, name)
    return found


def _stores(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.copy_.default and user.args[0] is node


def quantize(
    program: Program, moment: Moment, block: int, *, signed: bool, behind: fx.Node | None
) -> fx.Node:
    """Put codes and scales in place of one entry; its one read comes before everything else.

    They are inputs ``behind`` the last one so far; the last of them is returned.
    """
    how = Quantized(block, signed, value_of(moment.node).dtype)
    codes, scales = _inputs(program, moment, how, behind)
    edit = Editor(program, program.graph, made_by="quantize_moments")
    readers = [user for user in moment.node.users if user is not moment.write]
    if readers:
        first = min(readers)
        with edit.before(first, param=moment.param, bucket=stamp_of(first).bucket):
            dtype = value_of(moment.node).dtype
            value = edit.call(DEQUANTIZE, codes, scales, block, signed, dtype)
        moment.node.replace_all_uses_with(value, delete_user_cb=lambda u: u is not moment.write)
    if moment.write is not None:
        with edit.before(moment.write, param=moment.param, bucket=stamp_of(moment.write).bucket):
            edit.call(QUANTIZE, codes, moment.write.args[1], scales, block, signed)
        program.graph.erase_node(moment.write)
    program.graph.erase_node(moment.node)
    return scales


def _inputs(
    program: Program, moment: Moment, how: Quantized, behind: fx.Node | None
) -> tuple[fx.Node, fx.Node]:
    """The inputs for codes and scales; the state table has them in place of the entry."""
    entry = input_of(moment.node).subject
    kept = program.state.pop(entry)
    count = (block_count(torch.Size(kept.shape).numel(), how.block),)
    codes = replace(kept, name=codes_name(entry), dtype=torch.uint8, quantized=how)
    scales = replace(kept, name=scales_name(entry), dtype=torch.float32, shape=count)
    first = state_input(program, codes, behind)
    return first, state_input(program, scales, first)


def check_numbers(program: Program, expected: Sequence[tuple[str, Expected]]) -> None:
    """Insert the checks of the numbers on which it depends that state is never negative."""
    keys: dict[Any, dict[str, None]] = {}
    for key, numbers in expected:
        for item in numbers.items():
            keys.setdefault(item, {})[key] = None
    edit = Editor(program, program.graph, made_by="quantize_moments")
    updates = (n for n in program.graph.nodes if n.op == "call_function")
    first = next((n for n in updates if stamp_of(n).phase == UPDATE), None)
    for (number, (low, high)), names in keys.items():
        what = (
            f"'{number_text(number)}' must {_range_text(low, high)} where "
            f"{', '.join(names)} is kept in 8 bits without a sign (quantize_moments)"
        )
        assert first is not None  # what is written has a value
        behind = number.op == "call_function"
        with edit.after(number, param="") if behind else edit.before(first, param=""):
            edit.call(require_between, number, low, high, what)


def _range_text(low: float, high: float) -> str:
    unbounded = high == float("inf") and low == 0
    return "not be negative" if unbounded else f"lie between {low:g} and {high:g}"
