"""Direct exchanges: many under way, ranks that will not, peers that are late or gone."""

import os
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import outcomes_of, run_ranks

from zc.comm import boards, wire
from zc.comm.boards import SLOTS
from zc.comm.direct import READ, exchange, possible
from zc.comm.wire import METER
from zc.errors import CommunicationError

WORLD = 3
LARGE = 100_000  # elements of a shard: more bytes than from where exchanges are direct


def asked(rank: int, world: int) -> bool:
    return possible(group_of_all())


def group_of_all() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


@pytest.fixture(scope="module", autouse=True)
def ranks_can_read_each_other() -> None:
    if not all(run_ranks(asked, 2)):
        pytest.skip("processes may not read each other's memory here")


def check_many(rank: int, world: int) -> None:
    """More exchanges than there are slots, most of them never waited for in order."""
    group = group_of_all()
    count = SLOTS + 9
    received = [torch.full((world, 2), -1.0) for _ in range(count)]
    works = []
    for i in range(count):
        mine = [torch.tensor([rank, i + r / 10]) for r in range(world)]
        works += exchange([mine], [list(received[i])], group)
        received[i][rank] = mine[rank]
    for work in [*reversed(works), *works]:
        work.wait()  # a second time is nothing
    for i in range(count):
        expected = [[float(r), i + rank / 10] for r in range(world)]
        assert torch.equal(received[i], torch.tensor(expected))


def test_more_exchanges_than_slots():
    run_ranks(check_many, WORLD)


def check_large(rank: int, world: int) -> None:
    """What is large goes directly without being asked to; bytes are those of the formula."""
    group = group_of_all()
    METER.reset()
    before, exchanges = READ.nbytes, READ.exchanges
    shard = torch.full((LARGE,), float(rank))
    full = wire.all_gather(shard, group).wait()
    assert torch.equal(full, torch.arange(world).float().repeat_interleave(LARGE))
    block = wire.reduce_scatter(full * (rank + 1), group, "sum").wait()
    assert torch.equal(block, torch.full((LARGE,), rank * 6.0))
    formula = 2 * (world - 1) * 4 * LARGE
    assert METER.total() == READ.nbytes - before == formula
    assert READ.exchanges - exchanges == 2


def test_large_transfers_are_direct():
    run_ranks(check_large, WORLD)


def check_unwilling(rank: int, world: int) -> int:
    if rank == 1:
        os.environ["ZC_DIRECT"] = "0"
    assert not possible(group_of_all())
    willing = dist.new_group([0, 2])
    if rank != 1:
        assert possible(willing)
    before = READ.nbytes
    full = wire.all_gather(torch.full((LARGE,), float(rank)), group_of_all()).wait()
    assert torch.equal(full, torch.arange(world).float().repeat_interleave(LARGE))
    return READ.nbytes - before


def test_one_rank_that_will_not_is_enough():
    assert run_ranks(check_unwilling, WORLD) == [0, 0, 0]


def check_strangers(rank: int, world: int) -> None:
    """Processes of another host that have the same numbers here are not taken for peers."""
    if rank == 1:
        boards.os.getpid = os.getppid
    assert not possible(group_of_all())


def test_a_process_with_the_same_number_is_not_a_peer():
    run_ranks(check_strangers, 2)


def check_failures(rank: int, world: int, ends: bool) -> Any:
    group = dist.new_group(timeout=timedelta(seconds=2))
    assert possible(group)
    dist.barrier()
    if rank == 1:
        if not ends:
            dist.barrier()  # until the other has given up
        os._exit(0)
    pids = [peer.pid for peer in boards.neighbours_of(group).peers]
    with pytest.raises(CommunicationError) as error:
        exchange([[torch.ones(1)] * 2], [[torch.ones(1)] * 2], group)[0].wait()
    if not ends:
        dist.barrier()
    return str(error.value).replace(str(pids[0]), "PID")


FAILURES = {
    True: "rank 0: rank 1 of 2, process PID, ended before it could start exchange 1",
    False: "rank 0: rank 1 of 2, process PID, did not start exchange 1 in 2 s",
}


@pytest.mark.parametrize("ends", FAILURES, ids=["gone", "late"])
def test_a_peer_that_does_not_come(ends: bool):
    assert outcomes_of(check_failures, 2, ends)[0].result == FAILURES[ends]


def check_last(rank: int, world: int) -> None:
    """A rank may leave as soon as its last wait is over."""
    group = group_of_all()
    received = torch.zeros(world)
    mine = [torch.tensor([float(rank)]) for _ in range(world)]
    exchange([mine], [list(received.view(world, 1))], group)[0].wait()
    received[rank] = rank
    assert received.tolist() == [0, 1]
    if rank == 0:
        os._exit(0)


def test_a_rank_that_leaves_after_its_last_wait():
    assert outcomes_of(check_last, 2)[1].error is None
