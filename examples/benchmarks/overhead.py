"""What a call of a compiled step costs besides kernels and collectives.

    python examples/benchmarks/overhead.py

A model of 148 small parameters is trained on one process with one thread. For the second column
everything that computes is taken out: each compiled region, and each generated kernel, becomes a
function that returns at once what it gave before. What is left is Dynamo's guards, AOTAutograd's
wrappers, the reading of late-bound state, numbers that the host computes, and the loop itself; at
level 1 also autograd and the optimizer's Python. Systems take turns, medians over all rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import zc

LAYERS = 74  # each with a weight and a bias
Step = Callable[[], None]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    whole = measure(args.rounds, args.executor)
    with nothing_computes():
        alone = measure(args.rounds, args.executor)
    rows = [{"system": name, "ms": whole[name], "overhead_ms": alone[name]} for name in SYSTEMS]
    lines = ["| 148 parameters, one process | ms a call | of that no kernel |"]
    lines += ["| --- | ---: | ---: |"]
    lines += [f"| {r['system']} | {r['ms']:.3f} | {r['overhead_ms']:.3f} |" for r in rows]
    text = "\n".join([*lines, "", f"torch {torch.__version__}, 1 thread, rounds {args.rounds}"])
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overhead.json").write_text(json.dumps({"rows": rows}, indent=2))
    if args.save:
        args.save.write_text(f"# What a call costs besides kernels\n\n{text}\n")


def measure(rounds: int, executor: str) -> dict[str, float]:
    """Milliseconds of a call, by system: medians, all systems in turn."""
    torch._dynamo.reset()
    steps = {name: make(executor) for name, make in SYSTEMS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-5, rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


@contextmanager
def nothing_computes() -> Iterator[None]:
    """Programs that are built inside return what their regions gave at the first call."""
    from zc.run import executor
    from zc.run.compile import compile_regions

    def compile_once(regions: Any) -> list[Callable[..., Any]]:
        return [first_call_only(real) for real in compile_regions(regions)]

    def first_call_only(real: Callable[..., Any]) -> Callable[..., Any]:
        kept = []

        def again(inputs: list[Any]) -> Any:
            if not kept:
                kept.append(real(inputs))
            return kept[0]

        return again

    with (
        patch.object(executor, "compile_regions", compile_once),
        patch.object(executor, "bind_kernel", lambda node: lambda *_: None),
    ):
        yield


def network() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(4, 4) for _ in range(LAYERS)]
    return nn.Sequential(*layers), torch.randn(1, 4)


def _level_2(executor: str) -> Step:
    model, x = network()
    optimizer = torch.optim.AdamW(model.parameters())

    @torch.compile(backend="zero", options={"passes": "zero0", "executor": executor})
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    return lambda: step(x)


def _level_1(executor: str) -> Step:
    model, x = network()
    options = {"passes": "zero0", "executor": executor}
    optimizer = torch.optim.AdamW(model.parameters())
    update = zc.compile_step(optimizer, options)

    @torch.compile(backend="zero", options=options)
    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    def step() -> None:
        loss_of(x).backward()
        update()
        optimizer.zero_grad()

    return step


SYSTEMS: dict[str, Callable[[str], Step]] = {
    "level 2, zc.step": _level_2,
    "level 1, zc.compile_step": _level_1,
}


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time what a call costs besides kernels")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--executor", choices=["inductor", "interpret"], default="inductor")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table to this Markdown file")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
