"""Exchanges among ranks of one host: every rank reads its blocks out of its peers' memory.

The protocol is MPI's rendezvous with a *get* (Sur et al., "RDMA read based rendezvous protocol for
MPI over InfiniBand", PPoPP 2006), over boards (``zc.comm.boards``). Of one exchange, each rank

1. says on its board, when it starts, where the blocks lie that its peers are to read;
2. reads each peer's blocks, when it waits, as soon as that peer has started;
3. notes on that peer's board that it has read them.

The exchange is over for a rank when it has read all blocks and all peers have read its own: nobody
reads memory that its owner has let go. Copies are made by the thread that waits, with all of a
core: where ranks have no cores to spare, there is nothing that they could overlap with.

This cannot deadlock where ranks start and wait for exchanges in one order, that of the program. Of
the waits that are not over, take the first in this order: every rank has been through all earlier
ones, so each gets there, finds that its peers have started, and reads. A peer that is gone, or does
not get there within the group's timeout, is an error.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from zc.comm.boards import SECRET, SLOTS, Neighbours, Peer, finished, neighbours_of, started
from zc.comm.cross_memory import Span, read
from zc.errors import CommunicationError

Rows = list[list[torch.Tensor]]  # of each tensor, one block for every rank
_SPINS = 200  # times to look again at once, which takes about a millisecond
_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds of sleep between later looks
_in_order = threading.Lock()


@dataclass
class Count:
    """Of exchanges that this process has been through: bytes that it has read, and how many."""

    nbytes: int = 0
    exchanges: int = 0


READ = Count()


def possible(group: dist.ProcessGroup) -> bool:
    """Whether ranks of ``group`` can exchange directly; all of them call this together."""
    return neighbours_of(group) is not None


def exchange(outgoing: Rows, incoming: Rows, group: dist.ProcessGroup) -> "list[Exchange]":
    """Start to move the blocks of some tensors, contiguous and on the CPU.

    Args:
        outgoing: of each tensor, the block for each rank.
        incoming: of each tensor, where the block of each rank goes.
        group: one for which ``possible`` holds.

    Returns:
        The one work to wait for; until then, ``outgoing`` must keep its values.
    """
    neighbours = neighbours_of(group)
    assert neighbours is not None
    return [Exchange(neighbours, outgoing, incoming)]


class Exchange:
    """One exchange under way."""

    def __init__(self, neighbours: Neighbours, outgoing: Rows, incoming: Rows) -> None:
        self._all = neighbours
        neighbours.exchanges += 1
        self._number = neighbours.exchanges
        self._slot = self._number % SLOTS
        if self._slot in neighbours.slots:
            neighbours.slots[self._slot].wait()
        neighbours.slots[self._slot] = self
        self._incoming = incoming
        self._outgoing = outgoing
        self._start()

    def _start(self) -> None:
        """Put up the table: for each rank, where its blocks lie."""
        ranks, blocks = self._all.ranks, self._outgoing
        where = [row[rank].data_ptr() for rank in range(ranks) for row in blocks]
        self._table = (ctypes.c_int64 * len(where))(*where)
        at = started(self._slot)
        self._all.board[at + 1] = ctypes.addressof(self._table)
        with _in_order:  # a lock is a barrier: whoever sees the number sees the table
            self._all.board[at] = self._number

    def wait(self) -> None:
        """Read what is for this rank, and wait until its peers have done the same.

        Raises:
            CommunicationError: when a peer is gone, or has not come within the group's timeout.
        """
        if self._outgoing:
            for peer in self._all.peers:
                self._read_from(peer)
            for peer in self._all.peers:
                self._until_finished(peer)
            READ.exchanges += 1
            self._outgoing, self._incoming = [], []

    def _read_from(self, peer: Peer) -> None:
        at = started(self._slot)
        self._until(lambda: peer.look(at) == self._number, peer, "start")
        count = len(self._incoming)
        mine = peer.look(at + 1) + 8 * count * self._all.rank
        into = [blocks[peer.rank] for blocks in self._incoming]
        pairs = zip(peer.numbers(mine, count), into, strict=True)
        spans = [Span(at, t.data_ptr(), t.numel() * t.element_size()) for at, t in pairs]
        read(peer.pid, spans)
        READ.nbytes += sum(span.nbytes for span in spans)
        peer.note(finished(self._slot, self._all.rank, self._all.ranks), self._number)

    def _until_finished(self, peer: Peer) -> None:
        at = finished(self._slot, peer.rank, self._all.ranks)
        self._until(lambda: self._all.board[at] == self._number, peer, "finish")

    def _until(self, ready: Callable[[], bool], peer: Peer, what: str) -> None:
        deadline = time.monotonic() + self._all.seconds
        looks, pause = 0, _SHORTEST
        while not _holds(ready):
            looks += 1
            if looks < _SPINS:
                os.sched_yield()
                continue
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            late = time.monotonic() > deadline
            alive = _holds(lambda: peer.look(SECRET) is not None)
            if (late or not alive) and not _holds(ready):
                raise CommunicationError(self._why(peer, what, late and alive))

    def _why(self, peer: Peer, what: str, late: bool) -> str:
        which = f"rank {self._all.rank}: rank {peer.rank} of {self._all.ranks}, process {peer.pid}"
        if late:
            return f"{which}, did not {what} exchange {self._number} in {self._all.seconds:g} s"
        return f"{which}, ended before it could {what} exchange {self._number}"


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` holds of a peer; nothing holds of one that is gone."""
    try:
        return condition()
    except CommunicationError:
        return False
