"""Boards: cells in the memory of each rank of a group that its peers read and write.

Exchanges of a group are numbered from 1 as they start, the same on all ranks, and exchange e uses
slot ``e % SLOTS``. The cells of a board are 64 bits wide:

- a secret, drawn at random, which tells this board from anything else;
- for each slot, the number of the last exchange that this rank has started in it, and the address
  of a table of its blocks. Peers read these two;
- for each slot and peer, the number of the last exchange whose blocks that peer has read. The peer
  itself writes this cell.

``neighbours_of`` makes the boards of a group, and tries whether all its ranks can get at each
other's: they are on one host, in one namespace of processes, and may (``zc.comm.cross_memory``).
A board is kept until its process ends, so that a late peer never finds anything else in its place.
"""

import ctypes
import os
import platform
import secrets
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from zc.comm.cross_memory import Span, read, supported, write
from zc.errors import CommunicationError
from zc.torch_private import group_seconds

SLOTS = 64  # exchanges of a group that can be under way
WORD = 8  # bytes of a cell
_SECRET = 0
# An exchange's number is stored behind what it announces. Processors of this kind show stores to
# others in the order in which they were made; others may not.
_ORDERED = ("x86_64", "AMD64")


def started_cell(slot: int) -> int:
    """The index of the cell with the exchange started in ``slot``; the table's address follows."""
    return 1 + 2 * slot


def read_cell(slot: int, rank: int, ranks: int) -> int:
    """The index of the cell with the exchange in ``slot`` of which ``rank`` has read its blocks."""
    return 1 + 2 * SLOTS + slot * ranks + rank


@dataclass(frozen=True)
class Peer:
    """Another rank: its process, where its board is, and what tells that board from others."""

    rank: int
    pid: int
    board: int
    secret: int

    def words(self, address: int, count: int) -> list[int]:
        """``count`` words at ``address`` in the peer's memory."""
        found = (ctypes.c_int64 * count)()
        read(self.pid, [Span(address, ctypes.addressof(found), WORD * count)])
        return list(found)

    def look(self, cell: int) -> int:
        """What is in a cell of the peer's board."""
        return self.words(self.board + WORD * cell, 1)[0]

    def note(self, cell: int, value: int) -> None:
        """Write a cell of the peer's board."""
        word = ctypes.c_int64(value)
        write(self.pid, [Span(self.board + WORD * cell, ctypes.addressof(word), WORD)])

    def is_there(self) -> bool:
        """Whether the peer's process is alive, and no other one has taken its number."""
        try:
            return self.look(_SECRET) == self.secret
        except CommunicationError:
            return False

    def can_be_noted(self) -> bool:
        """Whether this process can read and write the peer's board."""
        try:
            if not self.is_there():
                return False  # a process of another host that has the same number here
            self.note(_SECRET, self.secret)
        except CommunicationError:
            return False
        return True


@dataclass
class Neighbours:
    """What this rank knows of the other ranks of a group, all of them on its host."""

    rank: int
    ranks: int
    peers: list[Peer]
    board: Any  # an array of c_int64
    seconds: float  # the longest wait for a peer: the group's timeout
    exchanges: int = 0  # started so far
    slots: dict[int, Any] = field(default_factory=dict)  # the last exchange of each


_known: WeakKeyDictionary[dist.ProcessGroup, Neighbours | None] = WeakKeyDictionary()
_kept: list[Neighbours] = []


def neighbours_of(group: dist.ProcessGroup) -> Neighbours | None:
    """The neighbours in ``group``, or ``None`` if some rank cannot get at another's memory.

    All ranks of the group call this together and get the same answer; ``ZC_DIRECT=0`` in any one
    of them makes it ``None``. The first call tries, later ones know.
    """
    if group not in _known:
        _known[group] = _met(group)
    return _known[group]


def _met(group: dist.ProcessGroup) -> Neighbours | None:
    n, rank = group.size(), group.rank()
    board = (ctypes.c_int64 * read_cell(SLOTS, 0, n))()
    board[_SECRET] = secrets.randbits(62)
    mine = [_willing(), os.getpid(), ctypes.addressof(board), board[_SECRET]]
    everyone = [torch.empty(len(mine), dtype=torch.int64, device="cpu") for _ in range(n)]
    dist.all_gather(everyone, torch.tensor(mine, device="cpu"), group=group)
    willing, *who = zip(*(each.tolist() for each in everyone), strict=True)
    known = [Peer(r, *found) for r, found in enumerate(zip(*who, strict=True))]
    reached = all(willing) and all(peer.can_be_noted() for peer in known)
    agreed = torch.tensor([int(reached)], device="cpu")
    dist.all_reduce(agreed, dist.ReduceOp.MIN, group=group)
    if not agreed.item():
        return None
    peers = [known[(rank + distance) % n] for distance in range(1, n)]
    _kept.append(Neighbours(rank, n, peers, board, group_seconds(group)))
    return _kept[-1]


def _willing() -> bool:
    able = supported() and platform.machine() in _ORDERED
    return able and os.environ.get("ZC_DIRECT") != "0"
