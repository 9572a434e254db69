"""Ranks that call ``zc.shard`` differently end with one clear error each, at once."""

import time
from typing import Any

import torch
from multiprocess import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from zc.errors import ShardError
from zc.state.shard import shard


def message_of(call: Any) -> str:
    try:
        call()
    except ShardError as error:
        return str(error)
    return ""


def check(rank: int, world: int) -> tuple[list[str], float]:
    began = time.monotonic()
    one = init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    halves = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("a", "b"))
    messages = [
        message_of(lambda: shard(nn.Linear(4, 8 + (rank == 1)))),
        message_of(lambda: shard(nn.Linear(4, 64), one)),
        message_of(lambda: shard(nn.Linear(4, 64), halves["b"])),
    ]
    seconds = time.monotonic() - began
    torch.distributed.barrier()
    return messages, seconds


def test_ranks_that_disagree():
    for messages, seconds in run_ranks(check, 4):
        assert messages == [
            "1 of 4 ranks call zc.shard with parameters unlike those of the first; build the same "
            "model (names, shapes, dtypes, requires_grad) on every rank",
            "",
            "",
        ]
        assert seconds < 20
