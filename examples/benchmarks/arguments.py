"""The command line of ``train_step.py``."""

import argparse
import sys
from pathlib import Path

import torch
from catalogue import BASELINE, ablated, choose, names
from slow_link import rate_of
from systems import GPT, Config
from systems_zc import DEFAULT_REFERENCE, name_of

from zc.errors import PipelineError

SIZES = {"25M": (8, 512), "110M": (10, 960)}  # layers, width
TINY = {"layers": 1, "width": 64, "rows": 2, "length": 32, "rounds": 3}


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The settings of a run; a wrong name ends the program with a message."""
    parser = _parser()
    if "--tiny" in (sys.argv if given is None else given):
        parser.set_defaults(**TINY)
    args = parser.parse_args(given)
    layers, width = SIZES[args.size]
    layers, width = args.layers or layers, args.width or width
    args.config = Config(layers, width // 64, width, args.length)
    try:
        args.systems = choose(_wanted(args))
        args.reference = _reference(args)
    except (ValueError, PipelineError) as error:
        parser.error(str(error))
    with torch.device("meta"):
        args.parameters = sum(p.numel() for p in GPT(args.config).parameters())
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="compare zc with its peers")
    parser.add_argument("--size", choices=SIZES, default="25M", help="parameters of the model")
    parser.add_argument("--layers", type=int, help="in place of the size's")
    parser.add_argument("--width", type=int, help="in place of the size's; a multiple of 64")
    parser.add_argument("--rows", type=int, default=2, help="passages in a batch, per rank")
    parser.add_argument("--length", type=int, default=128, help="bytes in a passage")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each system")
    parser.add_argument("--starts", type=int, default=1, help="repetitions in new processes")
    parser.add_argument("--executor", default="inductor", choices=["inductor", "interpret"])
    parser.add_argument("--systems", nargs="+", help="names of rows; by default all peers, and zc")
    parser.add_argument(
        "--zc", nargs="+", type=_zc, default=[], metavar="LEVEL:PIPELINE",
        help="further rows: 1 or 2, and a built-in pass pipeline or a file",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", nargs="+", metavar="PIPELINE",
        help="only these; the first without each of its passes, others without those of their own",
    )  # fmt: skip
    parser.add_argument("--reference", help="the row of zc that ratios are taken to")
    parser.add_argument("--link", type=rate_of, metavar="RATE", help="a slow network, as 1gbit")
    parser.add_argument("--skip-alone", action="store_true", help="no memory, no compile times")
    parser.add_argument("--tiny", action="store_true", help="a very small model, few rounds")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--save", type=Path, help="also write the table into this file")
    return parser


def _zc(text: str) -> str:
    level, _, spec = text.partition(":")
    if level not in ("1", "2") or not spec:
        raise argparse.ArgumentTypeError(f"give LEVEL:PIPELINE, as 2:zero3, not '{text}'")
    return name_of(int(level), spec)


def _wanted(args: argparse.Namespace) -> list[str]:
    """All rows asked for; those of all systems where none is named and none ablated."""
    ablation = ablated(args.ablate) if args.ablate else []
    named = args.systems or ([] if ablation else names())
    return [*named, *ablation, *args.zc]


def _reference(args: argparse.Namespace) -> str:
    """The row named, or else the first of the ablated, of the default, of zc, of all."""
    if args.reference:
        if args.reference not in args.systems:
            raise ValueError(f"--reference: no row named '{args.reference}' in this run")
        return args.reference
    likely = [DEFAULT_REFERENCE, *(n for n in args.systems if n.startswith("zc ")), BASELINE]
    if args.ablate:
        likely.insert(0, name_of(2, args.ablate[0]))
    return next(name for name in likely if name in args.systems)
