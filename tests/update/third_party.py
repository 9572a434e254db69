"""Optimizers as people write them: Python counters, math, ``.data``, norms, foreach, branches."""

import math
from typing import Any

import torch
from torch.optim import Optimizer


class Counting(Optimizer):
    """An Adam of 2019: a Python step count, ``math.sqrt``, ``.data``, deprecated spellings."""

    def __init__(self, params: Any, lr: float = 1e-2, betas: Any = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad, state = p.grad.data, self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["mean"] = torch.zeros_like(p.data)
                    state["square"] = torch.zeros_like(p.data)
                state["step"] += 1
                state["mean"].mul_(beta1).add_(grad, alpha=1 - beta1)
                state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                denominator = state["square"].sqrt().add_(group["eps"])
                p.data.addcdiv_(state["mean"], denominator, value=-group["lr"] * correction)


class Lamb(Optimizer):
    """You et al. (2020), algorithm 2: the step of each tensor is scaled by two norms."""

    def __init__(self, params: Any, lr: float = 1e-2, betas: Any = (0.9, 0.999)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                step = state["step"].item()
                update = state["mean"] / (1 - beta1**step)
                update /= (state["square"] / (1 - beta2**step)).sqrt() + 1e-6
                update += group["weight_decay"] * p
                weight, size = p.norm(), update.norm()
                ratio = torch.where(weight > 0, torch.where(size > 0, weight / size, 1.0), 1.0)
                p.sub_(update * ratio * group["lr"])


class Lookahead(Optimizer):
    """Zhang et al. (2019): every third step the parameter goes half-way back to a slow copy."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "every": 3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "slow" not in state:
                    state["slow"], state["count"] = p.clone(), 0
                p.add_(p.grad, alpha=-group["lr"])
                state["count"] += 1
                if state["count"] % group["every"] == 0:
                    state["slow"].lerp_(p, 0.5)
                    p.copy_(state["slow"])


class GlobalClip(Optimizer):
    """Scales all gradients by one norm: the parameters of a step depend on one another."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            squares = [p.grad.square().sum() for p in group["params"]]
            scale = 1.0 / (1.0 + torch.stack(squares).sum().sqrt())
            for p in group["params"]:
                p.sub_(p.grad * scale * group["lr"])


class Sign(Optimizer):
    """Chen et al. (2023), Lion, written with foreach ops."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self.state[p].setdefault("mean", torch.zeros_like(p))
            grads = [p.grad for p in params]
            means = [self.state[p]["mean"] for p in params]
            updates = torch._foreach_mul(means, beta1)
            torch._foreach_add_(updates, grads, alpha=1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            torch._foreach_lerp_(means, grads, 1 - beta2)


class ByData(Optimizer):
    """Branches on data: a large gradient is scaled down to norm one."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                size = p.grad.norm().item()
                grad = p.grad / size if size > 1.0 else p.grad
                p.add_(grad, alpha=-group["lr"])
