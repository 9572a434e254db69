"""The command ``zc``: shows passes, checks pass pipelines, measures this machine, plans runs.

zc passes
zc check zero3.yaml mine.yaml
zc calibrate --ranks 2 --out mine.yaml
zc plan gpt:7.5B --world 64 --device h100
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zc.errors import PipelineError, ZcError
from zc.pipelines.describe import describe_passes
from zc.pipelines.pipeline import PassPipeline
from zc.planning.command import add_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default this process's) and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ZcError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zc", description="compiler passes for training steps")
    parser.add_argument("--version", action="version", version=f"zc {version('zc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    passes = commands.add_parser("passes", help="show every pass with its options")
    passes.set_defaults(run=_passes)
    check = commands.add_parser("check", help="check pass pipelines")
    check.add_argument("files", nargs="+", metavar="FILE", help="a YAML file or a built-in name")
    check.set_defaults(run=_check)
    _add_calibrate(commands)
    add_plan(commands)
    return parser


def _add_calibrate(commands: Any) -> None:
    command = commands.add_parser("calibrate", help="measure this machine, write a device file")
    command.add_argument("--ranks", type=int, default=1, metavar="N", help="local processes")
    command.add_argument("--threads", type=int, default=0, metavar="N", help="of each process")
    command.add_argument("--out", type=Path, metavar="FILE", help="print it where left out")
    command.add_argument("--quick", action="store_true", help="the smallest sizes only: rough")
    command.set_defaults(run=_calibrate)


def _passes(_: argparse.Namespace) -> int:
    print(describe_passes(), end="")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    return max([_check_one(spec) for spec in arguments.files])


def _calibrate(arguments: argparse.Namespace) -> int:
    from zc.devices.calibrate import Calibration, calibrate
    from zc.devices.writer import device_text

    out, quick = arguments.out, arguments.quick
    name = out.stem if out else "calibrated"
    how = Calibration(arguments.ranks, arguments.threads, not quick, quick, name)
    text = device_text(calibrate(how))
    if out is None:
        print(text, end="")
        return 0
    write_file(out, text)
    print(f"wrote {out}")
    return 0


def write_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path``.

    Raises:
        PipelineError: where that cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be written: {error.strerror}") from error


def _check_one(spec: str) -> int:
    try:
        count = len(PassPipeline.resolve(spec).passes)
    except ZcError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{spec}: ok, {count} {'pass' if count == 1 else 'passes'}")
    return 0
