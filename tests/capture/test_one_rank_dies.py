"""A rank that dies in the middle of a step: the other ends in one error, within the timeout."""

import os
import time
from typing import Any

import torch
from capture.training import PLAIN, batch, compiled, new_net, refusal_of
from multiprocess import GROUP_TIMEOUT, outcomes_of

import zc


def run(rank: int, world: int) -> tuple[str, float]:
    model = zc.shard(new_net())
    step = compiled(model, 2, options=PLAIN)
    step(batch(0, rank))
    if rank == 1:
        model.block.register_forward_pre_hook(die)
        torch.compiler.set_stance("force_eager")  # gathers one by one, and dies after the first
    start = time.monotonic()
    return refusal_of(lambda: step(batch(1, rank))), time.monotonic() - start


def die(*_: Any) -> None:
    os._exit(7)


def test_the_other_rank_says_so():
    survivor, dead = outcomes_of(run, 2, timeout=120)
    assert dead.error == "ended without a result, exit code 7"
    assert survivor.error is None, survivor.error
    message, seconds = survivor.result
    assert seconds < GROUP_TIMEOUT.total_seconds() + 5
    first, _, rest = message.partition(": ")
    assert first == "CommunicationError"
    assert rest.startswith("collective failed in %")
    assert rest.endswith(
        "; another rank has stopped, hangs or runs a different program: look at its output first"
    )
