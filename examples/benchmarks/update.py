"""Time an AdamW update under torch and zc, side by side.

    python examples/benchmarks/update.py                      # 1, 10 and 100 million parameters
    python examples/benchmarks/update.py --millions 500 --systems fused zc
    python examples/benchmarks/update.py --millions 100 --save examples/benchmarks/UPDATE.md

All systems step the same parameters, from the same gradients, with the same moments, in turn: a
round is one step of each, and each round begins with the next system. So memory does not depend on
the number of systems: 16 bytes for each parameter, at most 4 for what ``foreach`` computes on the
way, 2 for the moments of ``zc_8bit``, and 2.4 GB for the copy. That is 14 GB for 500 million
parameters. The columns:

- *ms*: median over rounds; *ratio*: over that of torch's fused AdamW.
- *GB/s*: bytes that an update in one pass over memory moves, 16 read and 12 written for each
  parameter, by this time. *of copy*: over the rate of ``dst.copy_(src)``, measured in the same
  rounds (bytes read and written).
- *bytes*: what the system moves for each parameter, where it can be counted: in zc's generated
  kernel.

``zc`` is a compiled function with ``zc.step`` in it, ``zc_step`` the compiled ``optimizer.step``,
``zc_8bit`` has its moments in 8 bits. On a GPU, times are those between two CUDA events.
``few`` is four large tensors, ``many`` as many of 64 thousand elements as it takes. The last table
is the time of a call on 148 parameters of 16 elements, where there is next to nothing to compute.
``--save`` writes the tables to a Markdown file, ``--readme`` copies the first to the README
(``excerpt.py``).
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from excerpt import refreshed
from torch import nn

import zc
from zc.program.kernels import FUSED_UPDATE, spec_of

SMALL = 65536
COPIED = 100_000_000
BYTES = 28  # of AdamW in fp32: parameter, gradient and moments read, all but the gradient written
IN_8_BITS: list[Any] = [{"shard_params": {"zero_stage": 0}}, "shard_update", "quantize_moments",
                        "clean_graph", "lower_update"]  # fmt: skip
Step = Callable[[], None]
Params = list[nn.Parameter]
Moments = list[dict[str, torch.Tensor]]
MOMENTS = ("exp_avg", "exp_avg_sq")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    rows = []
    for millions in args.millions:
        for kind in ("few", "many"):
            rows += compare(shapes_of(millions, kind), args, f"{millions:g}M {kind}")
            let_go()
    calls = compare([16] * 148, args, "148 x 16", rounds=200)
    text = "\n".join([*table(rows, calls), "", settings(args)])
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "update.json").write_text(json.dumps({"rows": rows, "calls": calls}, indent=2))
    if args.save:
        args.save.write_text(f"# An AdamW update, side by side\n\n{text}\n")
    if args.readme:
        args.readme.write_text(refreshed(args.readme.read_text(), f"\n{text}\n"))


def shapes_of(millions: float, kind: str) -> list[int]:
    """Elements of each tensor."""
    total = int(millions * 1e6)
    return [total // 4] * 4 if kind == "few" else [SMALL] * max(1, total // SMALL)


def compare(
    sizes: Sequence[int], args: argparse.Namespace, name: str, rounds: int | None = None
) -> list[dict[str, Any]]:
    """One row for each system."""
    params = [nn.Parameter(torch.rand(size, device=args.device)) for size in sizes]
    grads = [torch.rand_like(param) for param in params]
    moved = {system: kernel_bytes(PASSES[system], params[0]) for system in PASSES}
    moments = [{key: torch.zeros_like(p) for key in MOMENTS} for p in params]
    steps = {system: SYSTEMS[system](params, moments) for system in args.systems}
    steps["copy"] = copy_of(sum(sizes), args.device)
    clock = cuda_seconds if args.device == "cuda" else seconds
    times: dict[str, list[float]] = {system: [] for system in steps}
    names = list(steps)
    torch._dynamo.config.recompile_limit = 64  # one lambda, another optimizer each time
    for round_ in range(-args.warm_up, rounds or args.rounds):
        for offset in range(len(names)):
            system = names[(round_ + offset) % len(names)]
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            took = clock(steps[system])
            if round_ >= 0:
                times[system].append(took)
    medians = {system: statistics.median(found) for system, found in times.items()}
    copied = 2 * 4 * 3 * min(sum(sizes), COPIED) / medians.pop("copy")
    fused = medians.get("fused")
    return [
        {
            "tensors": name,
            "system": system,
            "ms": median * 1e3,
            "ratio": median / fused if fused else None,
            "rate": moved.get(system, BYTES) * sum(sizes) / median / 1e9,
            "of_copy": moved.get(system, BYTES) * sum(sizes) / median / copied,
            "bytes": moved.get(system),
        }
        for system, median in medians.items()
    ]


def seconds(step: Step) -> float:
    """What one step takes on the CPU."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def cuda_seconds(step: Step) -> float:
    """What one step takes on the GPU, between two events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def kernel_bytes(passes: Any, like: torch.Tensor) -> float:
    """Bytes that the generated kernel of a settled AdamW moves for each parameter."""
    model = nn.ParameterList([nn.Parameter(torch.rand(SMALL, device=like.device))])
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> torch.Tensor:
        loss = model[0].square().sum()
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    program = zc.capture(step, passes=passes)
    (node,) = program.graph.find_nodes(op="call_function", target=FUSED_UPDATE)
    return sum(spec_of(str(node.args[3])).bytes_per_element())


def copy_of(numel: int, device: str) -> Step:
    """A plain copy of three fp32 numbers for each parameter, of at most ``COPIED`` parameters."""
    source, target = (torch.rand(3 * min(numel, COPIED), device=device) for _ in range(2))

    def step() -> None:
        target.copy_(source)

    return step


def let_go() -> None:
    """Free what compiled functions hold: parameters and moments of the last comparison."""
    torch._dynamo.reset()
    gc.collect()


def adamw(params: Params, moments: Moments, **settings: Any) -> torch.optim.AdamW:
    """An optimizer that has made no step yet and shares its moments with others."""
    optimizer = torch.optim.AdamW(params, **settings)
    for param, entries in zip(params, moments, strict=True):
        device = param.device if settings.get("fused") else "cpu"
        optimizer.state[param] = {"step": torch.zeros((), device=device), **entries}
    return optimizer


def _torch(**settings: Any) -> Callable[[Params, Moments], Step]:
    return lambda params, moments: adamw(params, moments, **settings).step


def _compiled(params: Params, moments: Moments) -> Step:
    return torch.compile(adamw(params, moments).step)


def _zc(passes: Any) -> Callable[[Params, Moments], Step]:
    def make(params: Params, moments: Moments) -> Step:
        optimizer = adamw(params, moments)
        options = {"passes": passes}
        return torch.compile(lambda: zc.step(optimizer), backend="zero", options=options)

    return make


def _zc_step(params: Params, moments: Moments) -> Step:
    options = {"passes": "zero0"}
    return torch.compile(adamw(params, moments).step, backend="zero", options=options)


SYSTEMS: dict[str, Callable[[Params, Moments], Step]] = {
    "loop": _torch(foreach=False),
    "foreach": _torch(foreach=True),
    "fused": _torch(fused=True),
    "compiled": _compiled,
    "zc": _zc("zero0"),
    "zc_step": _zc_step,
    "zc_8bit": _zc(IN_8_BITS),
}
PASSES = {"zc": "zero0", "zc_step": "zero0", "zc_8bit": IN_8_BITS}


def table(rows: list[dict[str, Any]], calls: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = ["| tensors | system | ms | ratio | GB/s | of copy | bytes |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        figures = f"{row['ms']:.2f} | {ratio} | {row['rate']:.1f} | {row['of_copy']:.2f}"
        lines.append(
            f"| {row['tensors']} | {row['system']} | {figures} | {bytes_text(row['bytes'])} |"
        )
    lines += ["", "| 148 parameters of 16 elements | ms a call |", "| --- | ---: |"]
    return lines + [f"| {row['system']} | {row['ms']:.3f} |" for row in calls]


def bytes_text(moved: float | None) -> str:
    return "-" if moved is None else f"{moved:g}"


def settings(args: argparse.Namespace) -> str:
    """What the figures depend on."""
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    return f"{where}, torch {torch.__version__}, threads {args.threads}, rounds {args.rounds}"


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time an AdamW update under torch and zc")
    parser.add_argument("--millions", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["foreach", "fused", "zc"])
    available = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=available)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--readme", type=Path, help="also refresh the excerpt in this page")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
