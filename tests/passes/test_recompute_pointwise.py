"""recompute_pointwise: what backward computes again, what it leaves, bits, and memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from building import Build, built
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from overlap import DEVICE
from random_losses import assert_same_bits
from torch import fx
from tracing import Shapes, physical, program_of, random_inputs
from zc.passes.recompute_pointwise import RecomputePointwise

from zc.capture.randomness import SEED, make_explicit
from zc.errors import PipelineError
from zc.program.edit import Editor
from zc.program.liveness import peak_by_phase
from zc.program.loops import loop_by_node
from zc.program.nodes import input_of
from zc.program.program import Program
from zc.program.saved import saved_for_backward
from zc.program.stamps import BACKWARD, stamp_of
from zc.program.units import Bytes
from zc.run.lockstep import lockstep
from zc.verify import verify

aten: Any = torch.ops.aten
Tensors = dict[str, torch.Tensor]
ALL = Bytes(0)


def again(program: Program) -> list[str]:
    """Names of what is computed again, in order."""
    return [n.name for n in program.graph.nodes if stamp_of(n).recompute]


def saved(program: Program) -> dict[str, int]:
    """Bytes that forward saves for backward, by the value that made them."""
    return {stored.maker.name: stored.size for stored in saved_for_backward(program)}


def recomputed(program: Program, **options: Any) -> Program:
    RecomputePointwise(**{"smallest": ALL, **options}).run(program)
    verify(program)
    return program


MLP: Shapes = {"w0": (32, 8), "w1": (32, 8)}


def mlp(p: Tensors, x: Tensors) -> torch.Tensor:
    hidden = torch.nn.functional.gelu(x["x"] @ p["w0"].t())
    return (hidden.bfloat16() @ p["w1"].bfloat16()).float().square().sum()


def mlp_program(zero_stage: int = 3, **options: Any) -> Program:
    return physical(program_of(mlp, MLP, {"x": (16, 8)}, **options), zero_stage)


def test_a_step(golden: Callable[..., None]):
    """gelu and its cast come from the product, which gelu's backward reads; a wide cast goes."""
    program = mlp_program()
    before = saved(program)
    recomputed(program)
    narrow, widened = 16 * 32 * 2, 16 * 8 * 4 - 16 * 8 * 2
    assert sum(before.values()) - sum(saved(program).values()) == narrow + widened
    figures = [f"saved before: {before}", f"saved after: {saved(program)}"]
    golden("\n".join([str(program).rstrip(), *figures]) + "\n", ".ir")


def test_a_loop(golden: Callable[..., None]):
    """Each micro-batch computes its own values again, in its own turn of the loop."""
    program = recomputed(physical(program_of(mlp, MLP, {"x": (16, 8)}, count=2), 1))
    inside = loop_by_node(program.graph)
    copies = [n for n in program.graph.nodes if stamp_of(n).recompute]
    assert copies
    assert all(n in inside for n in copies)
    golden(str(program), ".ir")


def test_small_values_are_saved():
    text = str(mlp_program())
    assert str(recomputed(mlp_program(), smallest=Bytes(16 * 32 * 2 + 1))) == text
    assert again(recomputed(mlp_program(), smallest=Bytes(16 * 32 * 2)))


def test_a_chain_is_no_longer_than_max_ops():
    widened, chain = "_to_copy_2_again", ["gelu_again", "_to_copy_again"]
    assert again(recomputed(mlp_program(), max_ops=1)) == [widened]
    assert again(recomputed(mlp_program(), max_ops=2)) == [widened, *chain]


def scaled(p: Tensors, x: Tensors) -> torch.Tensor:
    """A product scaled by a parameter: what is read by the next product can be had from both."""
    return ((x["x"] @ p["w0"].t() * p["w1"][:, 0]) @ p["w1"]).square().sum()


def test_parameters_are_not_kept_for_it():
    """Stage 3 gathers them again; stage 1 has them."""
    programs = {s: physical(program_of(scaled, MLP, {"x": (16, 8)}), s) for s in (1, 3)}
    for program in programs.values():
        recomputed(program)
    assert again(programs[1])
    assert not again(programs[3])


def normed(p: Tensors, x: Tensors) -> torch.Tensor:
    hidden = x["x"] @ p["w0"].t()
    return (torch.layer_norm(hidden, (32,), p["g"], p["b"]) @ p["w1"]).square().sum()


NORMED: Shapes = MLP | {"g": (32,), "b": (32,)}


def test_a_norm(golden: Callable[..., None]):
    """Its result goes; mean and deviation are saved."""
    program = program_of(normed, NORMED, {"x": (16, 8)})
    recomputed(physical(program, persist_vectors=True))
    assert again(program) == ["native_layer_norm_again", "getitem_again"]
    golden(str(program), ".ir")


def test_a_norm_is_not_repeated_for_its_mean_and_deviation():
    """Nothing reads the result in backward where what it is multiplied by is not trained."""

    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        hidden = torch.layer_norm(x["x"] @ p["w0"].t(), (32,), p["g"], p["b"])
        return (hidden @ x["frozen"]).sum()

    inputs = {"x": (16, 8), "frozen": (32, 4)}
    shapes = {name: NORMED[name] for name in ("w0", "g", "b")}
    assert not again(recomputed(physical(program_of(loss, shapes, inputs), 1)))


def backward(edit: Editor, op: Any, *args: Any) -> fx.Node:
    kept, edit.stamp = edit.stamp, type(edit.stamp)(phase=BACKWARD, made_by="test")
    node = edit.call(op, *args)
    edit.stamp = kept
    return node


def two_turns(edit: Editor, x: fx.Node) -> list[fx.Node]:
    """Two losses: forward goes on between two backwards."""
    product = edit.call(aten.mm.default, x, x)
    gelu = edit.call(aten.gelu.default, product)
    first = backward(edit, aten.addmm.default, product, gelu, product)
    more = edit.call(aten.sum.default, gelu)
    second = backward(edit, aten.addmm.default, product, gelu, gelu)
    return [first, backward(edit, aten.add.Tensor, second, more)]


def test_each_turn_has_its_own():
    program = recomputed(built(two_turns))
    assert again(program) == ["gelu_again", "gelu_again_1"]
    names = [node.name for node in program.graph.nodes]
    assert names.index("gelu_again") + 1 == names.index("addmm")
    assert names.index("sum_1") < names.index("gelu_again_1") == names.index("addmm_1") - 1


def of_an_input(edit: Editor, x: fx.Node) -> list[fx.Node]:
    loss = edit.call(aten.sum.default, x)
    gelu = edit.call(aten.gelu.default, x)
    return [loss, backward(edit, aten.mm.default, gelu, gelu)]


def of_a_result(edit: Editor, x: fx.Node) -> list[fx.Node]:
    product = edit.call(aten.mm.default, x, x)
    casts = [edit.call(aten.gelu.default, product)]
    casts.append(edit.call(aten.tanh.default, product))
    return [product, backward(edit, aten.mm.default, *casts)]


@pytest.mark.parametrize("build", [of_an_input, of_a_result])
def test_at_level_1_the_caller_may_have_changed_it(build: Build):
    program = built(build)
    program.level, program.forward_outputs = 1, 1
    assert not again(recomputed(program))
    assert again(recomputed(built(build)))  # in one graph nobody gets between


def test_memory_that_is_written_is_not_read_later():
    def build(edit: Editor, x: fx.Node) -> list[fx.Node]:
        total = edit.call(aten.zeros_like.default, x)
        gelu = edit.call(aten.gelu.default, total)
        written = edit.call(aten.add_.Tensor, total, x)
        return [written, backward(edit, aten.mm.default, gelu, gelu)]

    assert not again(recomputed(built(build)))


def rising(edit: Editor, x: fx.Node, *, gelu: bool = False) -> list[fx.Node]:
    """Three casts of one product, of which backward reads the last one beside its largest value.

    Saving the product for them is 64 bytes in place of 96, but lives on where 32 would.
    """
    product, other = (edit.call(aten.mm.default, x, x) for _ in range(2))
    activated = edit.call(aten.gelu.default, other)
    values = [edit.call(aten.mul.Tensor, product, i + 2.0) for i in range(3)]
    casts = [edit.call(aten._to_copy.default, v, dtype=torch.bfloat16) for v in values]
    results = [backward(edit, aten.mm.default, activated, other)] if gelu else []
    results += [backward(edit, aten.sum.default, cast) for cast in casts[:2]]
    results.append(backward(edit, aten.sum.default, backward(edit, aten.repeat.default, x, [8, 8])))
    return [*results, backward(edit, aten.sum.default, casts[2])]


def test_where_the_peak_would_rise_nothing_new_is_saved():
    assert str(recomputed(built(rising))) == str(built(rising))
    beside = built(lambda edit, x: rising(edit, x, gelu=True))
    (copy,) = again(recomputed(beside))
    assert copy.startswith("gelu")


def test_where_no_peak_falls_nothing_is_computed_again():
    """The peak stands in backward, behind the values that could go."""
    program, text = mlp_program(), str(mlp_program())
    program.device = DEVICE
    assert str(recomputed(program)) == text
    assert program.notes == [
        "recompute_pointwise: left alone: computing values again in backward neither shortens the "
        "step nor lowers a peak of live bytes"
    ]


def wide(p: Tensors, x: Tensors) -> torch.Tensor:
    """Values that are much larger than what they are made of live from forward to backward."""
    hidden = torch.nn.functional.gelu(x["x"] @ p["w0"].t())
    return (hidden.sin() @ p["w1"]).cos().sum()


def test_where_a_peak_falls_the_note_says_what_it_costs():
    program = physical(program_of(wide, MLP, {"x": (64, 8)}))
    program.device = DEVICE
    (note,) = recomputed(program).notes
    assert note.startswith("recompute_pointwise: values computed again in backward: ")
    assert "; the step takes " in note


def test_nothing_may_be_there_to_compute_again():
    program = recomputed(built(lambda edit, x: [edit.call(aten.mm.default, x, x)]))
    assert program.notes == [
        "recompute_pointwise: left alone: backward reads nothing that can be computed again"
    ]


def test_max_ops():
    with pytest.raises(PipelineError) as caught:
        RecomputePointwise(max_ops=0)
    assert str(caught.value) == "max_ops must be at least 1, not 0"


STEPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "gelu": lambda h, w: torch.nn.functional.gelu(h @ w) @ w.t(),
    "gated": lambda h, w: (torch.nn.functional.silu(h @ w) * (h @ w.t())) @ w,
    "half": lambda h, w: (h.bfloat16() @ w.bfloat16()).float().tanh(),
    "residual": lambda h, w: h + torch.sin(h @ w).cos(),
    "dropped": lambda h, w: torch.native_dropout(h @ w, 0.25, True)[0] @ w,
    "scaled": lambda h, w: (h * w[0] + w[1]).tanh().exp().clamp(max=2.0) @ w,
    "normed": lambda h, w: (h - h.mean(1, keepdim=True)) * h.var(1, keepdim=True).rsqrt() @ w,
    "layer_norm": lambda h, w: torch.layer_norm(h @ w, (8,), w[0], w[1]) @ w,
    "group_norm": lambda h, w: torch.group_norm(h @ w, 2, w[0], w[1]) @ w,
    "rms_norm": lambda h, w: torch.rms_norm(h @ w, (8,), w[2]) @ w,
    "waves": lambda h, w: (h @ w.sin()).tanh() @ w.cos(),
    "heads": lambda h, w: (h @ w).view(-1, 2, 4).transpose(1, 2).contiguous().view(h.shape) @ w,
    "turned": lambda h, w: torch.cat(((h @ w)[:, 4:] * -1.5, (h @ w)[:, :4] * 0.5), 1) @ w,
}
PARAMS: Shapes = {"w0": (8, 8), "w1": (8, 8)}


def with_seed(program: Program, inputs: Shapes, seed: int) -> list[list[Any]]:
    shapes = inputs | ({SEED: ()} if SEED in program.state else {})
    ranks = random_inputs(program, shapes, seed)
    for position, node in enumerate(program.placeholders()):
        if input_of(node).subject == SEED:
            for rank in ranks:
                rank[position] = torch.tensor(seed)
    return ranks


@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=4),
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    count=st.sampled_from([0, 2]),
    max_ops=st.sampled_from([1, 3, 8]),
    redraw=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_bit_changes_and_no_peak_rises(
    steps: list[str], zero_stage: int, count: int, max_ops: int, redraw: bool, seed: int
):
    def loss(p: Tensors, x: Tensors) -> torch.Tensor:
        hidden = x["x"]
        for i, step in enumerate(steps):
            hidden = STEPS[step](hidden, p[f"w{i % 2}"])
        return hidden.square().mean()

    inputs = {"x": (8, 8)}
    program = program_of(loss, PARAMS, inputs, 2, count=count, sharded=zero_stage > 0)
    make_explicit(program)
    physical(program, zero_stage)
    values = with_seed(program, inputs, seed)
    before, bytes_before = lockstep(program, values), sum(saved(program).values())
    peaks = peak_by_phase(program.graph)
    recomputed(program, max_ops=max_ops, redraw=redraw)
    assert_same_bits(lockstep(program, values), before)
    assert sum(saved(program).values()) <= bytes_before
    assert all(found <= peaks[phase] for phase, found in peak_by_phase(program.graph).items())


def dropped(p: Tensors, x: Tensors) -> torch.Tensor:
    kept, _ = torch.native_dropout(x["x"] @ p["w0"].t(), 0.5, True)
    return (kept @ p["w1"]).square().sum()


def test_masks_are_drawn_again_where_asked():
    found = {}
    for redraw in (False, True):
        program = program_of(dropped, MLP, {"x": (16, 8)})
        make_explicit(program)
        found[redraw] = again(recomputed(physical(program, 3), redraw=redraw))
    assert not any(name.startswith("uniform") for name in found[False])
    assert any(name.startswith("uniform") for name in found[True])
