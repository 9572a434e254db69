"""Recording a step on every way that data may send it: what is done once for all of them."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zc import torch_private
from zc.update.trace import Member, like, trace_step

aten: Any = torch.ops.aten


class Scaling(torch.optim.SGD):
    """Reads data in two branches, behind arithmetic that they do not change."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            update = param.grad.exp().t()
            for bound in (1.0, 2.0):
                if update.sum().item() > bound:
                    update = update * bound
            param.add_(update)


class Noting(TorchDispatchMode):
    """A fake mode that notes the ops whose types it computes."""

    def __init__(self, mode: Any) -> None:
        super().__init__()
        self.mode = mode
        self.ops: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ops.append(func)
        with self.mode:
            return func(*args, **kwargs or {})


def test_what_ways_share_is_typed_once():
    mode = Noting(torch_private.fake_mode_of([]))
    param = torch.nn.Parameter(torch.ones(4, 4))
    member = Member(like(param, mode), like(param, mode), {})
    trace_step(Scaling([param]), {"lr": 0.1}, [member], mode)
    assert mode.ops.count(aten.t.default) == 4  # there are four ways; torch wants views to be new
    assert mode.ops.count(aten.exp.default) == 1
    assert mode.ops.count(aten.sum.default) == 2  # of the update as it is, and scaled
