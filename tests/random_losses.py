"""Random little models for properties of passes, as losses that ``tracing.program_of`` traces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from tracing import Shapes, program_of, random_inputs

from zc.program.program import Program
from zc.run.lockstep import lockstep

Tensors = dict[str, torch.Tensor]
Step = Callable[[torch.Tensor, Tensors, str], torch.Tensor]

# What one step of a chain does to the hidden value, with a weight of its own called ``name``.
STEPS: dict[str, Step] = {
    "matmul": lambda h, p, name: torch.tanh(h @ p[name]),
    "transposed": lambda h, p, name: torch.tanh(h @ p[name].t()),
    "bias": lambda h, p, name: h + p[name][0],
    "normed": lambda h, p, name: h @ (p[name] / (1 + p[name].norm())),
    "tied": lambda h, p, name: torch.tanh(h @ p["w0"]) @ p[name],
    "half": lambda h, p, name: (h.bfloat16() @ p[name].bfloat16()).float().tanh(),
    "casts": lambda h, p, name: h.bfloat16().float() + h.bfloat16().sum() * p[name][:1],
    "identity": lambda h, p, name: h.t().t().view(h.shape).expand(h.shape).clone() * p[name][-1],
    "permuted": lambda h, p, name: h.permute(1, 0).permute(1, 0)[:] + p[name][0],
    "detached": lambda h, p, name: h.detach() @ p[name],
    "unused": lambda h, p, name: torch.relu(h),
}


@dataclass(frozen=True)
class RandomLoss:
    """A chain of ``STEPS`` over a hidden value of ``width``, on ``world`` ranks."""

    steps: tuple[str, ...]
    width: int
    world: int

    @property
    def params(self) -> Shapes:
        return {f"w{i}": (self.width, self.width) for i in range(len(self.steps))}

    @property
    def inputs(self) -> Shapes:
        return {"x": (2, self.width)}

    def __call__(self, p: Tensors, x: Tensors) -> torch.Tensor:
        hidden = x["x"] @ p["w0"]
        for i, step in enumerate(self.steps):
            hidden = STEPS[step](hidden, p, f"w{i}")
        return hidden.pow(2).mean()

    def program(self, *, sharded: bool = True) -> Program:
        return program_of(self, self.params, self.inputs, self.world, sharded=sharded)

    def run(self, program: Program) -> list[list[torch.Tensor | None]]:
        """What ``program`` returns on each rank for inputs that are always the same."""
        return lockstep(program, random_inputs(program, self.inputs))


random_losses = st.builds(
    RandomLoss,
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=5).map(tuple),
    width=st.integers(min_value=1, max_value=9),
    world=st.integers(min_value=2, max_value=4),
)


def assert_same_bits(
    left: list[list[torch.Tensor | None]], right: list[list[torch.Tensor | None]]
) -> None:
    for one_rank, same_rank in zip(left, right, strict=True):
        for one, other in zip(one_rank, same_rank, strict=True):
            if one is None or other is None:
                assert one is other
            else:
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
