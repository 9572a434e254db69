"""Exchanges among ranks of one host: every rank reads its blocks out of its peers' memory.

The protocol is MPI's rendezvous with a *get* (Sur et al., "RDMA read based rendezvous protocol for
MPI over InfiniBand", PPoPP 2006), over boards (``zc.comm.boards``). Of one exchange, each rank

1. says on its board, when it starts, where the blocks lie that its peers are to read;
2. reads each peer's blocks, when it waits, as soon as that peer has started;
3. notes on that peer's board that it has read them.

The exchange is over for a rank when it has read all blocks and all peers have read its own: nobody
reads memory that its owner has let go. A rank that gives up, at an error, withdraws the exchange
from its board, and a peer looks there once more when it has read.

Copies are made by the thread that waits. Messages, which threads of gloo's move, can overlap with
compute where ranks leave cores idle; these cannot.

A wait needs every peer to come to its own wait of the same exchange. Ranks must therefore start
exchanges, wait for them, and do whatever else they wait for each other in, in one order, across all
groups. Programs do: they are the same on all ranks of a group. Then nothing deadlocks: of the waits
that are not over, take the first in this order; all its ranks have been through all earlier ones,
so each gets there, has started, and reads. A peer that is gone, or does not get there within the
group's timeout, is an error.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from zc.comm.boards import SLOTS, WORD, Neighbours, Peer, neighbours_of, read_cell, started_cell
from zc.comm.cross_memory import Span, read
from zc.errors import CommunicationError

Rows = list[list[torch.Tensor]]  # of each tensor, one block for every rank
_SPINS = 200  # times to look again at once, which takes about a millisecond
_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds of sleep between later looks


@dataclass
class Count:
    """Of exchanges that this process has been through: bytes that it has read, and how many."""

    nbytes: int = 0
    exchanges: int = 0


READ = Count()


def possible(group: dist.ProcessGroup) -> bool:
    """Whether ranks of ``group`` can exchange directly; all of them call this together."""
    return neighbours_of(group) is not None


class Exchange:
    """One exchange under way; it starts when it is made.

    Args:
        neighbours: of the group.
        outgoing: of each tensor, the block for each rank, contiguous and on the CPU. They must keep
            their values until ``wait`` returns.
        incoming: of each tensor, where the block of each rank goes.

    Raises:
        CommunicationError: as ``wait``, which is called of the oldest exchange when as many as
            there are slots are under way.
    """

    def __init__(self, neighbours: Neighbours, outgoing: Rows, incoming: Rows) -> None:
        self._group = neighbours
        number = neighbours.exchanges + 1
        self._number, self._slot = number, number % SLOTS
        if self._slot in neighbours.slots:
            neighbours.slots[self._slot].wait()
        neighbours.slots[self._slot] = self
        neighbours.exchanges = number
        self._outgoing, self._incoming = outgoing, incoming
        self._unread, self._unfinished = list(neighbours.peers), list(neighbours.peers)
        self._announce()

    def _announce(self) -> None:
        """Put up the table: for each rank, where its blocks lie and how long they are."""
        ranks = range(self._group.ranks)
        table = [word for rank in ranks for row in self._outgoing for word in _place(row[rank])]
        self._table = (ctypes.c_int64 * len(table))(*table)
        at, board = started_cell(self._slot), self._group.board
        board[at + 1] = ctypes.addressof(self._table)
        board[at] = self._number

    def wait(self) -> None:
        """Read what is for this rank, and wait until its peers have done the same.

        Raises:
            CommunicationError: when a peer is gone, has not come within the group's timeout, or has
                blocks of other sizes.
        """
        if not self._unfinished:
            return
        try:
            while self._unread:
                self._read_from(self._unread[0])
                del self._unread[0]
            while self._unfinished:
                self._until_read_by(self._unfinished[0])
                del self._unfinished[0]
        except BaseException:
            self._group.board[started_cell(self._slot)] = -self._number
            raise
        READ.exchanges += 1
        self._outgoing, self._incoming = [], []

    def _read_from(self, peer: Peer) -> None:
        cell = started_cell(self._slot)
        self._until(lambda: abs(peer.look(cell)) == self._number, peer, "start")
        into = [blocks[peer.rank] for blocks in self._incoming]
        expected = [_place(block)[1] for block in into]
        try:
            self._check_announced(peer)
            size = 2 * len(into)
            table = peer.words(peer.look(cell + 1) + WORD * size * self._group.rank, size)
            places, sizes = table[::2], table[1::2]
            if sizes != expected:
                raise CommunicationError(f"it has blocks of {sizes} bytes, not {expected}")
            pairs = zip(places, into, strict=True)
            read(peer.pid, [Span(place, *_place(block)) for place, block in pairs])
            self._check_announced(peer)  # still: what has been read is what it was
            peer.note(read_cell(self._slot, self._group.rank, self._group.ranks), self._number)
        except CommunicationError as error:
            raise CommunicationError(f"{self._named(peer)}: {error}") from error
        READ.nbytes += sum(expected)

    def _check_announced(self, peer: Peer) -> None:
        if peer.look(started_cell(self._slot)) != self._number:
            raise CommunicationError("it has withdrawn it, after an error of its own")

    def _until_read_by(self, peer: Peer) -> None:
        cell = read_cell(self._slot, peer.rank, self._group.ranks)
        self._until(lambda: self._group.board[cell] == self._number, peer, "finish")

    def _until(self, ready: Callable[[], bool], peer: Peer, what: str) -> None:
        deadline = time.monotonic() + self._group.seconds
        looks, pause = 0, _SHORTEST
        while not _holds(ready):
            looks += 1
            if looks < _SPINS:
                os.sched_yield()
                continue
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            there, late = peer.is_there(), time.monotonic() > deadline
            if (late or not there) and not _holds(ready):
                seconds = f"in {self._group.seconds:g} s"
                why = f"it did not {what} {seconds}" if there else f"it ended before it did {what}"
                raise CommunicationError(f"{self._named(peer)}: {why}")

    def _named(self, peer: Peer) -> str:
        return (
            f"exchange {self._number} of rank {self._group.rank} with rank {peer.rank} of "
            f"{self._group.ranks}, process {peer.pid}"
        )


def _place(block: torch.Tensor) -> tuple[int, int]:
    """The address of ``block``, and its bytes."""
    return block.data_ptr(), block.numel() * block.element_size()


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` holds of a peer; nothing holds of one that is gone."""
    try:
        return condition()
    except CommunicationError:
        return False


def exchange(outgoing: Rows, incoming: Rows, group: dist.ProcessGroup) -> list[Exchange]:
    """The works of one exchange in ``group``, for which ``possible`` holds: see ``Exchange``."""
    neighbours = neighbours_of(group)
    assert neighbours is not None
    return [Exchange(neighbours, outgoing, incoming)]
