"""The command ``zc``: shows passes and checks pass pipelines.

zc passes
zc check zero3.yaml mine.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from zc.errors import ZcError
from zc.pipelines.describe import describe_passes
from zc.pipelines.pipeline import PassPipeline


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
    return parser


def _passes(_: argparse.Namespace) -> int:
    print(describe_passes(), end="")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    return max([_check_one(spec) for spec in arguments.files])


def _check_one(spec: str) -> int:
    try:
        count = len(PassPipeline.resolve(spec).passes)
    except ZcError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{spec}: ok, {count} {'pass' if count == 1 else 'passes'}")
    return 0
