"""``cuda_graph: true``: recorded steps beside plain ones, on CPUs with a stand-in, and on a GPU."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import run_ranks
from recorded_steps import FP16_OVERFLOW, KINDS, STEPS, Training, equal
from stand_in import StandIn, standing_in
from torch import nn

import zc
from zc.comm.wire import METER

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
INTERPRET = {"passes": "zero0", "executor": "interpret"}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_is_the_plain_one(kind: str):
    """Random numbers, buffers, learning rates, skipped steps; losses are not written over."""
    plain = Training(kind, "cpu", INTERPRET)
    expected = plain.run()
    with standing_in() as recorder:
        recorded = Training(kind, "cpu", INTERPRET | {"cuda_graph": True})
        assert equal(recorded.run(), expected)
        assert equal(recorded.state(), plain.state())
        assert 1 <= recorder.recorded <= 2
        assert recorder.replayed >= STEPS // 3
    if kind == "scaled":
        assert recorded.scaler.get_scale() < FP16_OVERFLOW
        assert recorded.optimizer.state


def test_loaded_state_is_recorded_anew():
    """It is at other addresses; so are parameters that are replaced."""
    with standing_in() as recorder:
        both = [Training("plain", "cpu", INTERPRET | {"cuda_graph": on}) for on in (False, True)]
        before = [one.run(steps=5) for one in both]
        count = recorder.recorded
        for one in both:
            one.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
            for param in one.model.parameters():
                param.data = param.data.clone() / 2
        after = [one.run(first=1, steps=6) for one in both]
        assert equal(*before)
        assert equal(*after)
        assert equal(*(one.state() for one in both))
        assert recorder.recorded == count + 1


def test_inference_is_recorded():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    with standing_in() as recorder, torch.no_grad():
        compiled = torch.compile(model, backend="zero", options=INTERPRET | {"cuda_graph": True})
        batches = [torch.randn(3, 4) for _ in range(6)]
        found = [compiled(batch) for batch in batches]
        assert equal(found, [model(batch) for batch in batches])
        assert (recorder.recorded, recorder.replayed) == (1, 4)


@pytest.mark.filterwarnings("ignore:.*symbolic size")
def test_symbolic_sizes_run_plainly():
    with standing_in() as recorder:
        recorded = Training("plain", "cpu", INTERPRET | {"cuda_graph": True})
        for rows in (6, 5, 4, 7):
            x = torch.randn(rows, 4)
            recorded.step(x, x.sum(1, keepdim=True))
        assert recorder.recorded == 0


def _ranks(rank: int, world: int, cases: Any) -> list[Any]:
    """Losses, state and bytes sent, plainly and recorded, and the number of replays; by case."""
    found = []
    for kind, passes in cases:
        runs = []
        with standing_in():
            for on in (False, True):
                options = {"passes": passes, "executor": "interpret", "cuda_graph": on}
                training = Training(kind, "cpu", options, zc.shard)
                METER.reset()
                losses = training.run(first=rank, steps=5)
                runs.append(([*losses, *training.state()], METER.total()))
            found.append((*runs, StandIn.replayed))
    return found


BUCKETED = [
    {"shard_params": {"zero_stage": 3}}, "shard_update", "clean_graph", "bucket_collectives",
    "prefetch_gathers", "delay_reductions", "fuse_update", "lower_update",
]  # fmt: skip


def test_two_ranks():
    for cases in run_ranks(_ranks, 2, [("plain", BUCKETED), ("in_parts", "zero2")], timeout=300):
        for plain, recorded, replayed in cases:
            assert equal(plain[0], recorded[0])
            assert plain[1] == recorded[1]
            assert replayed >= 2


@needs_gpu
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("executor", ["interpret", "inductor"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, executor: str):
    options = {"passes": "zero0", "executor": executor}
    plain = Training(kind, "cuda", options)
    recorded = Training(kind, "cuda", options | {"cuda_graph": True})
    assert equal(recorded.run(), plain.run())
    assert equal(recorded.state(), plain.state())


@needs_gpu
def test_on_a_gpu_with_nccl(tmp_path: Any):
    """One rank: its collectives are NCCL's all the same."""
    where = f"file://{tmp_path}/store"
    dist.init_process_group("nccl", init_method=where, rank=0, world_size=1)
    try:
        options = {"passes": "zero3", "executor": "interpret"}
        plain = Training("plain", "cuda", options, zc.shard)
        recorded = Training("plain", "cuda", options | {"cuda_graph": True}, zc.shard)
        assert equal(recorded.run(), plain.run())
        assert equal(recorded.state(), plain.state())
    finally:
        dist.destroy_process_group()
