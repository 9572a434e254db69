"""Which state is never negative: a state that becomes ``rule(state, grad, weight)``."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from update.lockstep_update import SimulatedRanks

from zc.program.nodes import input_of
from zc.program.number_text import number_text
from zc.program.signs import never_negative

Rule = Callable[[Any, Any, Any], Any]
NEVER: dict[str, tuple[Rule, list[str]]] = {  # and the numbers that are expected not to be negative
    "as it was, scaled": (lambda s, g, w: s * w, ["weight"]),
    "square": (lambda s, g, w: g * g, []),
    "square()": (lambda s, g, w: g.square(), []),
    "power": (lambda s, g, w: g.pow(2), []),
    "power of it": (lambda s, g, w: s.pow(1.5), []),
    "root": (lambda s, g, w: (s + g.abs()).sqrt(), []),
    "average": (lambda s, g, w: s * w + (g * g) * (1 - w), ["1 - weight", "weight"]),
    "lerp": (lambda s, g, w: s.lerp(g.abs(), w), ["weight"]),
    "addcmul": (lambda s, g, w: s.addcmul(g, g, value=w), ["weight"]),
    "addcdiv": (lambda s, g, w: s.addcdiv(s, g.abs() + 1, value=0.5), []),
    "maximum": (lambda s, g, w: torch.maximum(s, g), []),
    "minimum": (lambda s, g, w: torch.minimum(s, g.exp()), []),
    "clamp": (lambda s, g, w: g.clamp(0.0, 2.0), []),
    "clamp of it": (lambda s, g, w: s.clamp(-1.0, 2.0), []),
    "clamp_min": (lambda s, g, w: g.clamp_min(0.0), []),
    "where": (lambda s, g, w: torch.where(g > 0, s, g.abs()), []),
    "quotient": (lambda s, g, w: s / (1 + g.abs()), []),
    "weight to a power": (lambda s, g, w: s * w**3, ["weight"]),
}
PERHAPS: dict[str, Rule] = {
    "gradient": lambda s, g, w: g.clone(),
    "product": lambda s, g, w: s * g,
    "odd power": lambda s, g, w: g.pow(3),
    "difference": lambda s, g, w: s - g.abs(),
    "negative weight": lambda s, g, w: s.add(g.abs(), alpha=-w),
    "negative literal": lambda s, g, w: s * -1.0,
    "other difference of numbers": lambda s, g, w: s * (w - 1),
    "clamp to below 0": lambda s, g, w: g.clamp(-1.0, 1.0),
    "clamp down": lambda s, g, w: s.clamp(0.0, -1.0),
    "lerp too far": lambda s, g, w: s.lerp(g.abs(), 1.5),
    "sign": lambda s, g, w: g.sign(),
    "unknown op": lambda s, g, w: s.atan(),
}


class Ruled(torch.optim.Optimizer):
    def __init__(self, params: Any, rule: Rule) -> None:
        super().__init__(params, {"weight": 0.5})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["value"] = torch.zeros_like(param)
                state["value"].copy_(self.rule(state["value"], param.grad, group["weight"]))
                param.sub_(state["value"])


def found_for(rule: Rule) -> list[str] | None:
    """Numbers that must not be negative for the state not to be; ``None`` where it may be."""
    program, _ = SimulatedRanks(1, [torch.zeros(8)], lambda p: Ruled(p, rule)).program()
    (entry,) = (n for n in program.placeholders("state") if "value" in input_of(n).subject)
    (write,) = (n for n in entry.users if n.args[0] is entry and "copy" in n.name)
    found = never_negative(program, {entry: write.args[1]})  # type: ignore[dict-item]
    return sorted(number_text(n) for n in found[entry]) if entry in found else None


@pytest.mark.parametrize("name", NEVER)
def test_never_negative(name: str):
    rule, expected = NEVER[name]
    assert found_for(rule) == expected


@pytest.mark.parametrize("name", PERHAPS)
def test_perhaps_negative(name: str):
    assert found_for(PERHAPS[name]) is None
