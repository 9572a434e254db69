"""What a rank of the demo holds, beside what it would hold with replicated state."""

import resource
import sys
from collections.abc import Iterable

import torch
from display import megabytes, table
from torch import nn
from torch.distributed.tensor import DTensor

REPLICATED = {"parameters": 4, "gradients": 4, "optimizer state": 8}  # fp32 AdamW, bytes each


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of state on this rank at the end of backward, when every gradient is there.

    Gradients live inside the compiled step alone; each is as large as its parameter.
    """
    parameters = list(model.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "parameters": _bytes(parameters),
        "gradients": _bytes(p for p in parameters if p.requires_grad),
        "optimizer state": _bytes(states),
    }


def memory_table(held: dict[str, int], parameters: int, ranks: int) -> str:
    """``held`` beside what each rank of DistributedDataParallel holds of as many parameters."""
    replicated = {kind: count * parameters for kind, count in REPLICATED.items()}
    rows = [["held by each rank", "DDP", f"here, {ranks} ranks"]]
    for kind, count in held.items():
        rows.append([kind, megabytes(replicated[kind]), megabytes(count)])
    total, whole = sum(held.values()), sum(replicated.values())
    rows.append(["together", megabytes(whole), megabytes(total)])
    rows.append(["bytes per parameter", f"{whole / parameters:.1f}", f"{total / parameters:.1f}"])
    return table(rows)


def peak_resident_bytes() -> int:
    """Peak memory of this process, Python and torch included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(_local(t).numel() * t.element_size() for t in tensors)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
