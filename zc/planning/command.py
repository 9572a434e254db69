"""The command ``zc plan``.

zc plan gpt:7.5B --world 64 --device h100 --batch 4 --recompute
zc plan mine:build --world 8 --device mine.yaml --batch 2 --sequence 128
zc plan llama --set num_hidden_layers=4 --world 8 --pipelines zero2 zero3
zc plan params:7.5B --world 1 4 16 64 256 1024
"""

import argparse
from typing import Any

import torch

from zc.cost.device import Device
from zc.devices.reader import load_device
from zc.errors import PipelineError
from zc.pipelines.pipeline import PassPipeline
from zc.planning.captured import Setting, captured_rows
from zc.planning.closed import Precision, Workload, gpt_rows, state_rows
from zc.planning.models import subject_of
from zc.planning.rows import Row
from zc.planning.sizes import gpt_size, parameter_count
from zc.planning.table import formula_text, plan_json, plan_text, state_text
from zc.program.units import Bytes
from zc.text import show_bytes

BUILTIN = ("zero0", "zero1", "zero2", "zero3")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_plan(commands: Any) -> None:
    """Add ``zc plan`` to the ``commands`` of a parser."""
    command = commands.add_parser(
        "plan", help="say which pass pipelines fit a model, and what they cost"
    )
    command.add_argument(
        "model", metavar="MODEL",
        help="module:function, a Hugging Face model type or .json file, gpt:7.5B or params:7.5B",
    )  # fmt: skip
    add = command.add_argument
    add("--world", type=int, nargs="+", default=[8], metavar="N", help="ranks")
    add("--device", default="h100", metavar="FILE", help="a device file or a built-in name")
    add("--batch", type=int, default=1, metavar="N", help="sequences, per rank")
    add("--sequence", type=int, default=2048, metavar="N", help="tokens in a sequence")
    add("--pipelines", nargs="+", default=list(BUILTIN), metavar="FILE", help="what to compare")
    add("--memory-cap", metavar="SIZE", help="by default all of the device")
    add("--param-dtype", choices=list(_DTYPES), help="what sharded parameters compute in")
    add("--bytes", type=int, nargs=3, default=[2, 2, 12], metavar=("P", "G", "K"),
        help="bytes of a parameter, a gradient, optimizer state; of gpt: and params:")  # fmt: skip
    add("--recompute", action="store_true", help="recompute every layer; of gpt:")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of a Hugging Face config")
    add("--formulas", action="store_true", help="print the formulas as well")
    add("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan that ``arguments`` ask for."""
    _check(arguments)
    kind, _, name = arguments.model.partition(":")
    device = load_device(arguments.device)
    cap = int(Bytes(arguments.memory_cap)) if arguments.memory_cap else device.memory_bytes
    rows = [row for world in arguments.world for row in _rows(arguments, device, world)]
    if arguments.json:
        about = {"model": arguments.model, "device": device.name}
        print(plan_json(rows, cap, about), end="")
        return 0
    if kind == "params":
        print(f"{name} parameters, model state by zero stage\n\n{state_text(rows)}", end="")
    else:
        per_rank = f"{arguments.batch} x {arguments.sequence} tokens a rank"
        print(f"{arguments.model} on device {device.name}, {per_rank}, cap {show_bytes(cap)}\n")
        print(plan_text(rows, cap), end="")
    if arguments.formulas:
        print("\n" + formula_text(), end="")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for option in ("world", "batch", "sequence"):
        given = getattr(arguments, option)
        for value in given if isinstance(given, list) else [given]:
            if value < 1:
                raise PipelineError(f"--{option} must be 1 or more; got {value}")
    if arguments.model.partition(":")[0] not in ("gpt", "params"):
        return
    for name in arguments.pipelines:
        if name not in BUILTIN:
            raise PipelineError(
                f"--pipelines {name}: formulas know {', '.join(BUILTIN)}; give a Python function "
                f"or a Hugging Face model to compare others"
            )


def _rows(arguments: argparse.Namespace, device: Device, world: int) -> list[Row]:
    kind, _, name = arguments.model.partition(":")
    precision = Precision(*arguments.bytes)
    if kind == "params":
        return state_rows(parameter_count(name), precision, world)
    if kind == "gpt":
        work = Workload(arguments.batch, arguments.sequence, arguments.recompute)
        rows = gpt_rows(gpt_size(name), work, precision, device, world)
        return [row for row in rows if row.pipeline in arguments.pipelines]
    subject = subject_of(arguments.model, arguments.set)
    pipelines = [PassPipeline.resolve(spec) for spec in arguments.pipelines]
    dtype = _DTYPES.get(arguments.param_dtype)
    setting = Setting(world, arguments.batch, arguments.sequence, dtype)
    return captured_rows(subject, setting, pipelines, arguments.device)
