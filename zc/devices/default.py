"""The device of a program whose pass pipeline names none."""

import torch

from zc.cost.device import Device
from zc.devices.reader import builtin_device, device_names
from zc.program.nodes import tensors_of
from zc.program.program import Program

_UNKNOWN_GPU = "h100"


def default_device(program: Program) -> Device:
    """The built-in device that is most like the one that the inputs of ``program`` are on.

    GPUs are told by torch's name for the first one, so ranks with equal GPUs agree; another GPU
    than those that ship with zc counts as an H100.
    """
    kinds = {t.device.type for node in program.placeholders() for t in tensors_of(node)}
    if "cuda" not in kinds:
        return builtin_device("cpu")
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return builtin_device(gpu_named(name))


def gpu_named(name: str) -> str:
    """The built-in device for a GPU that torch calls ``name``: ``NVIDIA H200`` is ``h200``."""
    words = name.lower().replace("-", " ").split()
    known = [device for device in device_names() if device in words]
    return known[0] if known else _UNKNOWN_GPU
