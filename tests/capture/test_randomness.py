"""Random ops become functions of a seed: captured, drawn again alike, and spread as they should."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import zc
from zc.capture.random_ops import generator_for
from zc.capture.randomness import _REWRITES as REWRITES
from zc.program.analysis import is_random

Draw = Callable[[torch.Tensor], torch.Tensor]
OPTIONS = {"passes": "zero0", "executor": "interpret"}
COUNT = 40_000
SIGMAS = 5  # of the mean of COUNT numbers: a right generator is refused once in two million draws

# name: how user code draws, and the mean and standard deviation of what comes
DRAWS: dict[str, tuple[Draw, float, float]] = {
    "dropout": (lambda x: F.dropout(x, 0.2), 1.0, 0.5),
    "dropout of everything": (lambda x: F.dropout(x, 1.0), 0.0, 0.0),
    "bernoulli": (lambda x: torch.bernoulli(0.3 * x), 0.3, 0.21**0.5),
    "bernoulli_": (lambda x: x.clone().bernoulli_(0.3), 0.3, 0.21**0.5),
    "rand": (lambda x: torch.rand(x.shape) * x, 0.5, 12**-0.5),
    "rand_like": (lambda x: torch.rand_like(x) * x, 0.5, 12**-0.5),
    "uniform_": (lambda x: x.clone().uniform_(2.0, 4.0), 3.0, 2 * 12**-0.5),
    "randn": (lambda x: torch.randn(x.shape) * x, 0.0, 1.0),
    "randn_like": (lambda x: torch.randn_like(x) * x, 0.0, 1.0),
    "normal_": (lambda x: x.clone().normal_(3.0, 2.0), 3.0, 2.0),
    "randint": (lambda x: torch.randint(10, x.shape) * x, 4.5, 8.25**0.5),
    "randint from": (lambda x: torch.randint(5, 10, x.shape) * x, 7.0, 2**0.5),
    "randint_like": (lambda x: torch.randint_like(x, 10) * x, 4.5, 8.25**0.5),
    "randint_like from": (lambda x: torch.randint_like(x, 5, 10) * x, 7.0, 2**0.5),
}

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name: str):
    draw, mean, deviation = DRAWS[name]
    compiled = torch.compile(lambda x: draw(x), backend="zero", options=OPTIONS)
    x = torch.ones(COUNT)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(compiled(x))
    same, again, other = runs
    assert torch.equal(same, again)
    assert deviation == 0 or not torch.equal(same, other)
    assert torch.equal(x, torch.ones(COUNT))
    assert same.mean().item() == pytest.approx(mean, abs=SIGMAS * deviation / COUNT**0.5 + 1e-6)
    assert same.std().item() == pytest.approx(deviation, rel=0.02, abs=1e-6)


def test_every_op_is_drawn_here():
    """The table of rewrites and the table above tell of the same ops."""
    found = set()
    for draw, *_ in DRAWS.values():
        found |= {op for op in _random_ops(draw) if op in REWRITES}
    assert found == set(REWRITES)


def _random_ops(draw: Draw) -> set[object]:
    """The random ops that AOTAutograd makes of ``draw``, in training and without."""
    found: set[object] = set()

    def note(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        from functorch.compile import make_boxed_func

        found.update(n.target for n in module.graph.nodes if is_random(n))
        return make_boxed_func(module.forward)

    from torch._dynamo.backends.common import aot_autograd

    for trained in (False, True):
        torch.compiler.reset()
        compiler = aot_autograd(fw_compiler=note, inference_compiler=note)
        torch.compile(lambda x: draw(x), backend=compiler)(torch.ones(4, requires_grad=trained))
    return found


def test_two_draws_of_one_call_differ():
    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand_like(x), torch.rand_like(x)

    one, other = torch.compile(twice, backend="zero", options=OPTIONS)(torch.ones(64))
    assert not torch.equal(one, other)


def test_two_calls_differ():
    compiled = torch.compile(torch.rand_like, backend="zero", options=OPTIONS)
    assert not torch.equal(compiled(torch.ones(64)), compiled(torch.ones(64)))


def test_backward_sees_the_mask_of_forward():
    x = torch.ones(256, requires_grad=True)
    compiled = torch.compile(
        lambda x: F.dropout(x.sin(), 0.5).sum(), backend="zero", options=OPTIONS
    )
    torch.manual_seed(0)
    loss = compiled(x)
    loss.backward()
    kept = x.grad != 0
    assert loss.item() == pytest.approx(2 * torch.sin(torch.tensor(1.0)).item() * kept.sum().item())


def test_low_precision_drops_with_the_probability_asked_for():
    """Numbers drawn in bf16 come in steps of 1/256: below 0.003 there would be only 0."""
    p, count = 0.003, 200_000
    x = torch.ones(count, dtype=torch.bfloat16)
    torch.manual_seed(0)
    kept = torch.compile(lambda x: F.dropout(x, p), backend="zero", options=OPTIONS)(x)
    dropped = (kept == 0).sum().item()
    assert abs(dropped - p * count) < SIGMAS * (p * count) ** 0.5


def test_neighbouring_streams_are_unrelated():
    device = torch.device("cpu")
    seeds = [torch.tensor(s) for s in (0, 1)]
    draws = [
        torch.randn(COUNT, generator=generator_for(seed, offset, device))
        for seed in seeds
        for offset in range(3)
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(6)
    assert correlation.abs().max() < SIGMAS / COUNT**0.5


def test_programs_without_randomness_have_no_seed():
    assert zc.capture(lambda x: F.dropout(x, 0.0) + 1, torch.ones(4)).state == {}


def sample(x: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(x, 2)


def test_an_op_without_such_a_form_is_refused():
    with pytest.raises(zc.CaptureError) as error:
        zc.capture(sample, torch.ones(4))
    line = sample.__code__.co_firstlineno + 1
    assert str(error.value) == (
        f"random op in %multinomial: i64[2] = aten.multinomial(%arg0_1, 2) ({__file__}:{line}) "
        f"cannot be reproduced from a seed; draw these numbers outside the compiled function and "
        f"pass them in, or write them with torch.rand, randn, randint or dropout"
    )
