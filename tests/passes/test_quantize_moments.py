"""``quantize_moments``: what it puts in place, the bound it keeps, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from update.lockstep_update import SimulatedRanks
from update.optimizers import ELEMENTWISE, WHOLE, of
from update.quantized_update import QuantizedRanks
from zc.codegen.blockwise import quantize
from zc.codegen.dynamic_map import max_error
from zc.passes.lower_update import LowerUpdate
from zc.passes.quantize_moments import QuantizeMoments

from zc.errors import PipelineError
from zc.program.kernels import FUSED_UPDATE, spec_of
from zc.program.program import Program
from zc.program.quantized import DEQUANTIZE, QUANTIZE, require_between
from zc.run.lockstep import LockstepError

SHAPES: list[tuple[int, ...]] = [(), (0,), (5,), (7, 3), (40, 16), (16, 4)]
ROUNDING = 2e-6  # relative; the kernel rounds intermediate values less often
# of weights near 1 after one step of size 0.01: a moment is off by 0.7% of the largest of its block
STEP = 0.01


def kernels(program: Program) -> list[Any]:
    nodes = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return [spec_of(str(node.args[3])) for node in nodes]


def quantized(program: Program) -> dict[str, bool]:
    """Whether the map is signed, by the key of each entry in 8 bits."""
    rows = {name: row.quantized for name, row in program.state.items() if row.quantized}
    return {n.partition(".")[2].partition("[")[0]: how.signed for n, how in rows.items() if how}


@pytest.mark.parametrize("lower", [False, True])
def test_program(lower: bool, golden: Callable[..., None]):
    ranks = QuantizedRanks(2, [torch.zeros(64, 64)], of("AdamW"), QuantizeMoments(), lower=lower)
    golden(str(ranks.program()[0]))


SIGNED = {
    "sgd": {},
    "sgd momentum": {"momentum_buffer": True},
    "adamw": {"exp_avg": True, "exp_avg_sq": False},
    "adam amsgrad": {"exp_avg": True, "exp_avg_sq": False, "max_exp_avg_sq": False},
    "adamax": {"exp_avg": True, "exp_inf": False},
    "adagrad": {"sum": False},
    "adadelta": {"square_avg": False, "acc_delta": False},
    "rmsprop": {"square_avg": False, "momentum_buffer": True, "grad_avg": True},
    "lamb": {"mean": True, "square": False},
    "lookahead": {"slow": True},
    "adafactor": {},  # rows and columns are not of the parameter's shape
}


@pytest.mark.parametrize("name", SIGNED)
def test_a_sum_of_squares_needs_no_sign(name: str):
    ranks = SimulatedRanks(2, [torch.randn(32, 4)], (ELEMENTWISE | WHOLE)[name])
    for _ in range(2):
        ranks.step([torch.randn(32, 4)])
    program, _ = ranks.program()
    QuantizeMoments(smallest=1).run(program)
    assert quantized(program) == SIGNED[name]


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(sorted(set(ELEMENTWISE) - {"lookahead", "asgd"})),
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_state_is_within_the_bound(
    name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, world: int, lower: bool
):
    """After the first step, before which all state is exact: then parameters are, too."""
    torch.manual_seed(0)
    params = [torch.randn(shape).to(dtype) for shape in shapes]
    grads = [torch.randn(shape).to(dtype) for shape in shapes]
    make = ELEMENTWISE[name]
    plain, ours = SimulatedRanks(world, params, make), QuantizedRanks(world, params, make,
                                                                      lower=lower)  # fmt: skip
    plain.step(grads)
    program = ours.step(grads)
    kinds = quantized(program)
    tolerance = 2**-5 if dtype is torch.bfloat16 else ROUNDING if lower else 0.0
    for p, q in zip(plain.whole, ours.whole, strict=True):
        torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance)
        for key, signed in kinds.items():
            one, other = plain.optimizer.state[p][key], ours.optimizer.state[q][key]
            largest = one.abs().max().item() if one.numel() else 0.0
            bound = largest * (max_error(signed) + max(tolerance, ROUNDING, 2**-8 * lower))
            bound += largest * 2**-8 * (dtype is torch.bfloat16)
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert bool(((one.double() - other.double()).abs() <= bound).all())


def steps(world: int, make: Any, shape: tuple[int, ...], *, lower: bool) -> list[torch.Tensor]:
    """Parameter and state behind four steps."""
    torch.manual_seed(0)
    ranks = QuantizedRanks(world, [torch.randn(shape)], make, lower=lower)
    for _ in range(4):
        ranks.step([torch.randn(shape)])
    (param,) = ranks.whole
    state = ranks.optimizer.state[param]
    return [param.detach(), *(state[key] for key in sorted(state))]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd momentum", "adagrad"])
def test_shards_of_whole_blocks_have_the_same_bits(name: str, lower: bool):
    """[32, 64] on 1, 2, 4 ranks: 8, 4, 2 blocks of 256."""
    one, two, four = (
        steps(w, ELEMENTWISE[name], (32, 64), lower=lower) for w in (1, 2, 4)
    )  # fmt: skip
    for a, b, c in zip(one, two, four, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_other_shards_have_blocks_of_their_own():
    """[32, 20] on 4 ranks: blocks of 160 elements, not of 256."""
    one, four = (steps(w, of("AdamW", lr=STEP), (32, 20), lower=False) for w in (1, 4))
    assert not torch.equal(one[1], four[1])
    torch.testing.assert_close(one[0], four[0], rtol=0, atol=4 * STEP)


@pytest.mark.parametrize("name", sorted(set(ELEMENTWISE) - {"adamw tensor lr"}))
def test_one_kernel_reads_and_writes_codes(name: str):
    ranks = QuantizedRanks(2, [torch.randn(32, 64)], ELEMENTWISE[name], lower=True)
    ranks.step([torch.randn(32, 64)])
    program, _ = ranks.program()
    assert not program.graph.find_nodes(op="call_function", target=DEQUANTIZE)
    assert not program.graph.find_nodes(op="call_function", target=QUANTIZE)
    assert len(kernels(program)) == 1


def test_adamw_reads_10_and_writes_6_bytes_and_scales():
    ranks = QuantizedRanks(2, [torch.zeros(64, 64)], of("AdamW"), lower=True)
    (kernel,) = kernels(ranks.program()[0])
    scales = 2 * 4 / 256
    assert kernel.bytes_per_element() == (4 + 4 + 1 + 1 + scales, 4 + 1 + 1 + scales)


def test_what_a_kernel_cannot_read_stays_an_op():
    program, _ = QuantizedRanks(2, [torch.randn(32, 4)], WHOLE["lamb"], lower=True).program()
    assert len(program.graph.find_nodes(op="call_function", target=DEQUANTIZE)) == 2


def test_small_parameters_and_other_keys_stay():
    values = [torch.zeros(64, 64), torch.zeros(64, 63)]
    program, _ = QuantizedRanks(1, values, of("AdamW"), QuantizeMoments(keys="exp_avg")).program()
    assert [n for n, row in program.state.items() if row.quantized] == ["opt.exp_avg[p0].codes"]


def test_state_in_fp64_stays():
    program, _ = QuantizedRanks(1, [torch.zeros(4).double()], of("AdamW")).program()
    assert quantized(program) == {}


def test_blocks_of_two_sizes_stay_apart():
    """One kernel has blocks of one size: here the values are quantised by ops around it."""
    ranks = SimulatedRanks(1, [torch.zeros(64, 64)], of("AdamW"))
    program, _ = ranks.program()
    QuantizeMoments(keys="exp_avg").run(program)
    QuantizeMoments(keys="exp_avg_sq", block=64).run(program)
    LowerUpdate().run(program)
    assert kernels(program) == []
    assert len(program.graph.find_nodes(op="call_function", target=QUANTIZE)) == 2


REFUSED: dict[str, tuple[QuantizeMoments, str]] = {
    "block": (
        QuantizeMoments(block=100),
        "block must be a power of two from 32 to 1024, not 100",
    ),
    "near key": (
        QuantizeMoments(keys="exp_avg, exp_agv"),
        "no optimizer of step keeps 'exp_agv' in the shape of its parameters; did you mean "
        "'exp_avg'?",
    ),
    "key": (
        QuantizeMoments(keys="row_var"),
        "no optimizer of step keeps 'row_var' in the shape of its parameters; they keep exp_avg, "
        "exp_avg_sq",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_make_no_sense(name: str):
    options, message = REFUSED[name]
    program, _ = SimulatedRanks(1, [torch.zeros(4)], of("AdamW")).program()
    with pytest.raises(PipelineError) as error:
        options.run(program)
    assert str(error.value) == message


def test_a_key_where_no_state_has_the_shape_of_a_parameter():
    program, _ = SimulatedRanks(1, [torch.zeros(4)], of("SGD", lr=0.1)).program()
    with pytest.raises(PipelineError) as error:
        QuantizeMoments(keys="momentum").run(program)
    assert str(error.value) == (
        "no optimizer of step keeps 'momentum' in the shape of its parameters; they keep nothing "
        "of that shape"
    )


def test_a_program_without_an_optimizer_keeps_no_key():
    program, _ = SimulatedRanks(1, [torch.zeros(4)], of("AdamW")).program()
    program.updates = []
    before = str(program)
    QuantizeMoments(keys="exp_avg").run(program)
    assert str(program) == before


def test_behind_lower_update():
    program, _ = SimulatedRanks(1, [torch.zeros(4)], of("AdamW")).program()
    LowerUpdate().run(program)
    with pytest.raises(PipelineError) as error:
        QuantizeMoments().run(program)
    assert str(error.value) == (
        "'quantize_moments' stands behind 'lower_update', whose kernels hold the state already; "
        "move it before 'lower_update'"
    )


class Outweighed(torch.optim.Optimizer):
    """A sum of squares, its weight a number of the group."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"weight": 0.5, "mix": 0.5})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["squares"] = torch.zeros_like(param)
                    state["mixed"] = torch.zeros_like(param)
                state["squares"].mul_(group["weight"]).addcmul_(
                    param.grad, param.grad, value=1 - group["weight"]
                )
                state["mixed"].lerp_(param.grad.abs(), group["mix"])
                param.sub_(state["squares"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -0.5}, "'weight' must not be negative where squares is kept in 8 bits without "
         "a sign (quantize_moments); it is -0.5"),
        ({"weight": 1.5}, "'1 - weight' must not be negative where squares is kept in 8 bits "
         "without a sign (quantize_moments); it is -0.5"),
        ({"mix": 1.5}, "'mix' must lie between 0 and 1 where mixed is kept in 8 bits without a "
         "sign (quantize_moments); it is 1.5"),
    ],
)  # fmt: skip
def test_numbers_on_which_a_sign_depends(change: dict[str, float], message: str):
    ranks = QuantizedRanks(1, [torch.randn(8)], Outweighed)
    ranks.step([torch.randn(8)])
    ranks.optimizer.param_groups[0].update(change)
    with pytest.raises(LockstepError) as error:
        ranks.step([torch.randn(8)])
    assert message in str(error.value)
    assert message == str(error.value.__cause__)


def test_a_required_number_is_passed_on():
    assert require_between(0.5, 0.0, 1.0, "it") == 0.5


def test_blocks_at_rest_are_those_of_the_storage():
    """[33, 2] on 4 ranks: 9 rows each, 18 elements, padded to 32."""
    ranks = QuantizedRanks(4, [torch.randn(33, 2)], of("AdamW"))
    grad = torch.randn(33, 2)
    ranks.step([grad])
    codes = ranks.kept["opt.exp_avg_sq[p0].codes"][1]
    mine = torch.nn.functional.pad(grad[9:18].square().flatten(), (0, 14))
    assert torch.equal(codes, quantize(mine, 256, signed=False)[0])
