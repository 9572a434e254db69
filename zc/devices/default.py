"""The device of a program whose pass pipeline names none."""

import os
from dataclasses import replace

import torch

from zc.cost.device import Device
from zc.devices.reader import builtin_device, device_names
from zc.errors import PipelineError
from zc.program.nodes import tensors_of
from zc.program.program import Program

_UNKNOWN_GPU = "h100"
_LOCAL_RANKS = "LOCAL_WORLD_SIZE"


def default_device(program: Program) -> Device:
    """The built-in device that is most like the one that the inputs of ``program`` are on.

    GPUs are told by torch's name for the first one; another GPU than those that ship with zc counts
    as an H100. A node has as many ranks as torchrun has started on this one, which it says in
    ``LOCAL_WORLD_SIZE``, else as many as the built-in device has. Where ranks find different
    devices, they decide what the first one does (``zc.agreed``).

    Raises:
        PipelineError: where ``LOCAL_WORLD_SIZE`` is no number of ranks.
    """
    kinds = {t.device.type for node in program.placeholders() for t in tensors_of(node)}
    name = "cpu"
    if "cuda" in kinds:
        name = gpu_named(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")
    device, ranks = builtin_device(name), os.environ.get(_LOCAL_RANKS)
    if ranks is None:
        return device
    if not ranks.isdecimal() or int(ranks) < 1:
        raise PipelineError(
            f"{_LOCAL_RANKS} is '{ranks}'; torchrun sets it to the number of ranks on this node; "
            f"unset it, or name a device file in the pass pipeline"
        )
    return replace(device, ranks_per_node=int(ranks))


def gpu_named(name: str) -> str:
    """The built-in device for a GPU that torch calls ``name``: ``NVIDIA H200`` is ``h200``."""
    words = name.lower().replace("-", " ").split()
    known = [device for device in device_names() if device in words]
    return known[0] if known else _UNKNOWN_GPU
