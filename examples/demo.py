"""Train a GPT of 10.7 million parameters with ZeRO-3 on two processes, on Python's own source.

    make demo                       # or: python examples/demo.py

The training step is compiled whole, with ``loss.backward()``, clipping and ``zc.step(optimizer)``
inside. Results go to ``out/demo``.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from corpus import draw_batch, load_corpus
from display import Point, ProgressBar, clock, draw_curve, indent, megabytes, printable, text_curve
from gpt import GPT, Config, generate
from measure import held_bytes, memory_table, peak_resident_bytes

import zc
from zc.comm.wire import METER
from zc.run.compile import compiled_regions

PROMPT = "def "
PEAK_RATE, WARM_UP_STEPS = 1.5e-3, 20
LARGEST_NORM = 1.0  # of all gradients together; larger ones are scaled down to that
VALIDATION_ROWS, VALIDATION_BATCHES = 16, 4


@dataclass
class Run:
    """What one rank has, the losses so far over thousands of tokens, and where time went."""

    args: argparse.Namespace
    model: GPT
    optimizer: torch.optim.Optimizer
    texts: tuple[torch.Tensor, torch.Tensor]
    draws: torch.Generator
    training: list[Point] = field(default_factory=list)
    validation: list[Point] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        """Over all ranks."""
        return self.args.rows * self.args.length * self.args.ranks


def main() -> None:
    args = parse_arguments()
    shutil.rmtree(args.out / "dump", ignore_errors=True)  # of an earlier start
    args.out.mkdir(parents=True, exist_ok=True)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # local processes need no other network
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (f"{folder}/store", args), nprocs=args.ranks)
    print(f"\nall in {clock(time.monotonic() - started)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train a small GPT with ZeRO-3 on this machine")
    parser.add_argument("--steps", type=int, default=440)
    parser.add_argument("--minutes", type=float, default=3.0, help="train no longer than this")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--passes", default="zero3", help="a pass pipeline: a name or a file")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--sample", type=int, default=200, help="bytes to generate at the end")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    return parser.parse_args()


def run_rank(rank: int, store: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=args.ranks,
        timeout=timedelta(minutes=5),
    )  # fmt: skip
    if rank != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (rank 0 speaks for all)
    run = prepare(rank, args)
    train(run)
    report(run, rank)
    dist.destroy_process_group()


def prepare(rank: int, args: argparse.Namespace) -> Run:
    texts = load_corpus()
    torch.manual_seed(0)
    model = zc.shard(GPT(Config(layers=args.layers)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    count = sum(p.numel() for p in model.parameters())
    print(f"model      GPT on bytes, {count / 1e6:.1f} million parameters")
    print(f"text       the source of Python's standard library, {megabytes(len(texts[0]))}")
    print(f"passes     {args.passes}, on {args.ranks} processes")
    return Run(args, model, optimizer, texts, torch.Generator().manual_seed(1 + rank))


def train(run: Run) -> None:
    options = {"passes": run.args.passes, "executor": run.args.executor}
    options["dump"] = str(run.args.out / "dump")
    compiled = torch.compile(train_step, backend="zero", options=options)
    validate(run)
    print("compiling ...", flush=True)
    started, progress = time.monotonic(), 0.0
    bar = ProgressBar(run.args.steps)
    for step in range(1, run.args.steps + 1):
        run.optimizer.param_groups[0]["lr"] = learning_rate(step, progress)
        sent = METER.total()
        batch = draw_batch(run.texts[0], run.args.rows, run.args.length, run.draws)
        loss = compiled(run.model, run.optimizer, *batch)
        run.held = held_bytes(run.model, run.optimizer)
        if step == 1:
            note_compilation(time.monotonic() - started)
            bar, started = ProgressBar(run.args.steps), time.monotonic()
        mean_loss, run.seconds = average(float(loss), time.monotonic() - started)
        run.training.append((step * run.tokens_per_step / 1000, mean_loss))
        bar.update(step, status(run, step, METER.total() - sent))
        progress = max(step / run.args.steps, run.seconds / (60 * run.args.minutes))
        if step == run.args.steps // 3:
            validate(run)
            show_sample(run, bar, step)
        if progress >= 1:
            if step < run.args.steps:
                bar.say(f"     time is up after {step} steps; --minutes gives it more")
            break
    bar.close()
    validate(run)


def train_step(
    model: GPT, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """What zc compiles: ordinary code for one device."""
    loss = model(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
    zc.step(optimizer)
    return loss.detach()


def learning_rate(step: int, progress: float) -> float:
    """Up to the peak in a few steps, then in a straight line towards a tenth of it."""
    return PEAK_RATE * min(1.0, step / WARM_UP_STEPS) * (1 - 0.9 * progress)


def average(*values: float) -> list[float]:
    """Means over all ranks: the same numbers, so the same decisions, everywhere."""
    means = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(means)
    return (means / dist.get_world_size()).tolist()


@torch.no_grad()
def validate(run: Run) -> None:
    """Loss on text held out, the same passages every time; each rank takes its share."""
    generator = torch.Generator().manual_seed(1000 + dist.get_rank())
    losses = []
    with zc.full(run.model):
        for _ in range(VALIDATION_BATCHES):
            rows = VALIDATION_ROWS // run.args.ranks
            batch = draw_batch(run.texts[1], rows, run.args.length, generator)
            losses.append(float(run.model(*batch)))
    (loss,) = average(sum(losses) / len(losses))
    run.validation.append((run.training[-1][0] if run.training else 0.0, loss))


@torch.no_grad()
def sample(run: Run, count: int) -> str:
    """Text from the sharded model; parameters are gathered once for all of it, then released."""
    torch.manual_seed(0)
    with zc.full(run.model):
        return printable(generate(run.model, PROMPT.encode(), count))


def note_compilation(seconds: float) -> None:
    """Say how many regions there are, how many a rank had to compile, how many were on disk."""
    by_rank: list[dict[str, bool]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, compiled_regions())
    regions = set().union(*by_rank)
    compiled = {key for of_rank in by_rank for key, new in of_rank.items() if new}
    counts = f"{len(compiled)} compiled, {len(regions - compiled)} loaded from disk"
    print(f"first step {seconds:.0f} s: {len(regions)} distinct regions, {counts}\n")


def status(run: Run, step: int, sent: int) -> str:
    """What stands beside the bar: state held by each rank, bytes sent by each in this step."""
    rate = run.tokens_per_step * (step - 1) / run.seconds if step > 1 else 0.0
    loss, state = run.training[-1][1], sum(run.held.values())
    return f"loss {loss:.2f}  {rate:,.0f} tok/s  {megabytes(state)}/rank  sent {megabytes(sent)}"


def show_sample(run: Run, bar: ProgressBar, step: int) -> None:
    """A line of generated text in the middle of training."""
    line = sample(run, count=40).replace("\n", "⏎")
    bar.say(f"     after {step} steps it writes: {line}")


def report(run: Run, rank: int) -> None:
    text = sample(run, run.args.sample)
    if rank == 0:
        print_results(run, text)


def print_results(run: Run, text: str) -> None:
    args, count = run.args, sum(p.numel() for p in run.model.parameters())
    before, after = run.validation[0][1], run.validation[-1][1]
    print(
        f"\nvalidation loss {before:.2f} before, {after:.2f} after {run.training[-1][0]:.0f}k bytes"
    )
    print(f"\n{memory_table(run.held, count, args.ranks)}")
    print(f"  peak of this process: {megabytes(peak_resident_bytes())}, Python and torch included")
    print(f"\nit writes:\n\n{indent(text)}\n")
    title = f"GPT on bytes, {args.passes} on {args.ranks} processes"
    if draw_curve(args.out / "loss.png", title, run.training, run.validation):
        print(f"loss curve  {args.out / 'loss.png'}")
    else:
        print(f"loss curve (install matplotlib for a picture)\n{text_curve(run.training)}")
    for page in sorted((args.out / "dump").glob("*/report.html")):
        print(f"report      {page}")


if __name__ == "__main__":
    main()
