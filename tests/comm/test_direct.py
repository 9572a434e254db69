"""Direct exchanges: many under way, ranks that will not, peers that are late or gone."""

import os
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import outcomes_of, run_ranks

from zc.comm import boards, direct, wire
from zc.comm.boards import SLOTS
from zc.comm.cross_memory import read
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
    """More exchanges than there are slots, waited for backwards, the same on all ranks."""
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


def group_board(group: dist.ProcessGroup) -> Any:
    neighbours = boards.neighbours_of(group)
    assert neighbours is not None
    return neighbours.board


def check_failures(rank: int, world: int, what: str) -> Any:
    """What rank 0 hears when rank 1 ends, stays away or has started something else."""
    group = dist.new_group(timeout=timedelta(seconds=2))
    assert possible(group)
    dist.barrier()
    size = 2 if what == "sizes" and rank else 1
    if rank == 0 or "start" not in what:
        works = exchange([[torch.ones(size)] * 2], [[torch.ones(size)] * 2], group)
    if rank == 0:
        pid = boards.neighbours_of(group).peers[0].pid
        with pytest.raises(CommunicationError) as error:
            works[0].wait()
        with pytest.raises(CommunicationError) as again:
            works[0].wait()
        if "ended" in what:
            return str(error.value).replace(str(pid), "PID")
        dist.barrier()
        dist.barrier()
        assert str(again.value) == str(error.value)
        return str(error.value).replace(str(pid), "PID")
    if what == "ended before finish":
        while group_board(group)[boards.read_cell(1, 0, world)] != 1:
            time.sleep(0.01)  # until rank 0 has read
    if "ended" in what:
        os._exit(0)
    dist.barrier()  # until the other has given up
    heard = None
    if what != "late to start":
        with pytest.raises(CommunicationError) as error:
            works[0].wait()
        heard = str(error.value).replace(str(boards.neighbours_of(group).peers[0].pid), "PID")
    dist.barrier()
    return heard


WITH = "exchange 1 of rank 0 with rank 1 of 2, process PID: "
WITHDRAWN = (
    "exchange 1 of rank 1 with rank 0 of 2, process PID: it has withdrawn it, after an error "
    "of its own"
)
FAILURES = {
    "ended before start": "it ended before it did start",
    "ended before finish": "it ended before it did finish",
    "late to start": "it did not start in 2 s",
    "late to finish": "it did not finish in 2 s",
    "sizes": "it has blocks of [8] bytes, not [4]",
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_peer_that_does_not_do_its_part(what: str):
    first, second = (outcome.result for outcome in outcomes_of(check_failures, 2, what))
    assert first == WITH + FAILURES[what]
    if what in ("late to finish", "sizes"):  # rank 0 has withdrawn the exchange
        assert second == WITHDRAWN


def check_withdrawn(rank: int, world: int) -> str | None:
    """Rank 0 gives up while rank 1 reads."""
    group = dist.new_group(timeout=timedelta(seconds=2))
    assert possible(group)
    works = exchange([[torch.ones(1)] * 2], [[torch.ones(1)] * 2], group)
    if rank == 0:

        def give_up(peer: boards.Peer) -> None:
            dist.barrier()
            raise KeyboardInterrupt

        works[0]._until_read_by = give_up
        with pytest.raises(KeyboardInterrupt):
            works[0].wait()
        dist.barrier()
        dist.barrier()  # its memory is there until rank 1 has read it
        return None
    pid = boards.neighbours_of(group).peers[0].pid

    def slow(*args: Any) -> None:
        dist.barrier()
        dist.barrier()  # rank 0 has withdrawn
        read(*args)

    direct.read = slow
    with pytest.raises(CommunicationError) as error:
        works[0].wait()
    dist.barrier()
    return str(error.value).replace(str(pid), "PID")


def test_what_is_read_too_late_does_not_count():
    assert run_ranks(check_withdrawn, 2)[1] == WITHDRAWN


def gone(peer: boards.Peer) -> None:
    while peer.is_there():
        time.sleep(0.01)


def check_last(rank: int, world: int) -> None:
    """A rank may leave as soon as its last wait is over."""
    group = group_of_all()
    received = torch.zeros(world)
    mine = [torch.tensor([float(rank)]) for _ in range(world)]
    (work,) = exchange([mine], [list(received.view(world, 1))], group)
    if rank == 1:  # which has read and noted, and looks for rank 0's note when that is gone
        finish = work._until_read_by
        work._until_read_by = lambda peer: (gone(peer), finish(peer))
    work.wait()
    received[rank] = rank
    assert received.tolist() == [0, 1]
    if rank == 0:
        os._exit(0)


def test_a_rank_that_leaves_after_its_last_wait():
    assert outcomes_of(check_last, 2)[1].error is None
