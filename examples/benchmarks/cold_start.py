"""Time the first steps of a deep model, without and with caches: zc beside Inductor alone.

    python examples/benchmarks/cold_start.py                  # 32 layers shaped as Llama, 8 ranks
    python examples/benchmarks/cold_start.py --repeat 3       # medians
    python examples/benchmarks/cold_start.py --processes 2    # ranks of one host share their caches
    python examples/benchmarks/cold_start.py --parts          # and where zc's seconds go

The model is Hugging Face's Llama with all its layers, narrow so that it runs anywhere; a step is
forward, backward and AdamW. zc compiles it for a group of 8 ranks that is simulated: collectives
move nothing. Inductor compiles it for one device, forward and backward through ``torch.compile``
and the optimizer's step as well. Each start is a process of its own, first with empty caches, then
with those that this has left; systems take turns. The columns:

- *cold s*, *warm s*: the first two steps, after a trivial compilation; the slowest process.
- *CPU s*: what they take of all cores, compilers included; the sum over processes.
- *compiled*: graphs that Inductor has compiled, rather than loaded; the sum over processes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from systems import backend
from torch import nn

STEPS = 2
Figures = dict[str, Any]
Step = Callable[[torch.Tensor], torch.Tensor]
Builder = Callable[[nn.Module, str], Step]


def main() -> None:
    args = parse_arguments()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    found: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in args.systems}
    for _ in range(args.repeat):
        for name in args.systems:
            with tempfile.TemporaryDirectory() as folder:
                found[name].append((start(name, args, folder), start(name, args, folder)))
            print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    text = table(args, found)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cold_start.json").write_text(json.dumps(found, indent=2) + "\n")
    if args.save:
        args.save.write_text(f"# Cold and warm start\n\n{text}\n")


def start(name: str, args: argparse.Namespace, folder: str) -> Figures:
    """Start ``args.processes`` at once with the caches in ``folder``; their figures together."""
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "ZC_CACHE": f"{folder}/zc"
    }  # fmt: skip
    keys = ("layers", "width", "length", "ranks", "executor")
    given = [f"--{key}={getattr(args, key)}" for key in keys]
    command = [sys.executable, __file__, "--measure", name, *given]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(args.processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{name} failed")
    figures = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        "seconds": max(f["seconds"] for f in figures),
        "cpu_seconds": sum(f["cpu_seconds"] for f in figures),
        "compiled": sum(f["compiled"] for f in figures),
        "parts": figures[0]["parts"],
    }


def measure(args: argparse.Namespace) -> Figures:
    """The first steps of the system ``args.measure`` in this process."""
    from zc import clock
    from zc.torch_private import fake_world, inductor_counts

    torch.set_num_threads(1)
    alone = args.measure == ALONE
    with nullcontext() if alone else fake_world(args.ranks):
        step = SYSTEMS[args.measure](llama(args), args.executor)
        torch.compile(_double, backend=backend(args.executor))(torch.ones(8))
        tokens = torch.randint(VOCABULARY, (1, args.length))
        clock.mark()
        compiled, cpu, started = inductor_counts()["misses"], cpu_seconds(), time.perf_counter()
        for _ in range(STEPS):
            step(tokens)
        return {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": cpu_seconds() - cpu,
            "compiled": inductor_counts()["misses"] - compiled,
            "parts": {part: spent.seconds for part, spent in clock.since_mark().items()},
        }


VOCABULARY = 1024


def llama(args: argparse.Namespace) -> nn.Module:
    """A Llama of ``args.layers`` layers, ``args.width`` wide, with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = args.width // 32
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=args.width, intermediate_size=3 * args.width,
            num_hidden_layers=args.layers, num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4), use_cache=False,
        )
    )  # fmt: skip


def _alone(model: nn.Module, executor: str) -> Step:
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model, backend=backend(executor))
    update = torch.compile(optimizer.step, backend=backend(executor))

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        update()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _zc(passes: str) -> Builder:
    def build(model: nn.Module, executor: str) -> Step:
        import zc

        zc.shard(model)
        optimizer = torch.optim.AdamW(model.parameters())

        @torch.compile(backend="zero", options={"passes": passes, "executor": executor})
        def step(tokens: torch.Tensor) -> torch.Tensor:
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            zc.step(optimizer)
            return loss.detach()

        return step

    return build


ALONE = "Inductor alone, one device"
FAST = Path(__file__).resolve().parents[1] / "pipelines" / "zero3_fast.yaml"
SYSTEMS: dict[str, Builder] = {
    ALONE: _alone, "zc, zero3": _zc("zero3"), "zc, zero3_fast": _zc(str(FAST))
}  # fmt: skip


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def cpu_seconds() -> float:
    """What this process and those that it has waited for have used of the processors."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def table(args: argparse.Namespace, found: dict[str, list[tuple[Figures, Figures]]]) -> str:
    """Medians as Markdown; with ``--parts``, the parts of the last start of each system of zc."""
    keys = ("seconds", "cpu_seconds", "compiled")
    lines = ["| system | cold s | CPU s | compiled | warm s | CPU s | compiled |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, starts in found.items():
        middle = [median(s[i][key] for s in starts) for i in (0, 1) for key in keys]
        cells = (f"{x:.0f}" if i % 3 == 2 else f"{x:.1f}" for i, x in enumerate(middle))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    where = f"torch {torch.__version__}, {os.cpu_count()} cores, processes {args.processes}"
    what = f"layers {args.layers}, width {args.width}, ranks {args.ranks}, starts {args.repeat}"
    lines += ["", f"{where}, {what}"]
    return "\n".join(lines + (_parts(found) if args.parts else []))


def _parts(found: dict[str, list[tuple[Figures, Figures]]]) -> list[str]:
    lines = ["", "| system | part | cold s | warm s |", "|---|---|--:|--:|"]
    for name, starts in found.items():
        cold, warm = (figures["parts"] for figures in starts[-1])
        for part in dict.fromkeys([*cold, *warm]):
            lines.append(f"| {name} | {part} | {cold.get(part, 0):.2f} | {warm.get(part, 0):.2f} |")
    return lines


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="time the first steps, without and with caches")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 32")
    parser.add_argument("--length", type=int, default=64, help="tokens in the batch")
    parser.add_argument("--ranks", type=int, default=8, help="of the simulated group")
    parser.add_argument("--processes", type=int, default=1, help="that start at once")
    parser.add_argument("--repeat", type=int, default=1, help="starts of each system")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS])
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--parts", action="store_true", help="also where zc's seconds go")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
