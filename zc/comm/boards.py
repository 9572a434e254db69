"""Boards: numbers in the memory of each rank of a group that its peers read and write.

Exchanges of a group are numbered as they start, the same on all ranks, and exchange e uses slot
``e % SLOTS``. A board has, after a secret number that tells it from anything else,

- for each slot, the last exchange that this rank has started in it, and the address of a table,
  which says where the blocks for each peer lie; peers read that;
- for each slot and peer, the last exchange of which the peer has read all that is meant for it;
  that peer writes it.

``neighbours_of`` makes the boards of a group, and tries whether all its ranks can get at each
other's: they are on one host, in one namespace of processes, and may (``zc.comm.cross_memory``).
"""

import ctypes
import os
import secrets
import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from zc.comm.cross_memory import Span, read, supported, write
from zc.errors import CommunicationError
from zc.torch_private import group_seconds

SLOTS = 64  # exchanges of a group that can be under way
WORD = 8  # bytes of a number
SECRET = 0


def started(slot: int) -> int:
    """Which number of a board is the exchange started in ``slot``; the next one is the table's."""
    return 1 + 2 * slot


def finished(slot: int, rank: int, ranks: int) -> int:
    """Which number of a board says what ``rank`` has finished in ``slot``."""
    return 1 + 2 * SLOTS + slot * ranks + rank


@dataclass(frozen=True)
class Peer:
    """Another rank: its process, and where its board is."""

    rank: int
    pid: int
    board: int

    def numbers(self, address: int, count: int) -> list[int]:
        """``count`` numbers at ``address`` in the peer's memory."""
        found = (ctypes.c_int64 * count)()
        read(self.pid, [Span(address, ctypes.addressof(found), WORD * count)])
        return list(found)

    def look(self, index: int) -> int:
        """The number ``index`` of the peer's board."""
        return self.numbers(self.board + WORD * index, 1)[0]

    def note(self, index: int, value: int) -> None:
        """Write the number ``index`` of the peer's board."""
        number = ctypes.c_int64(value)
        write(self.pid, [Span(self.board + WORD * index, ctypes.addressof(number), WORD)])


@dataclass
class Neighbours:
    """What this rank knows of the ranks of one group that are on its host: all of them."""

    rank: int
    ranks: int
    peers: list[Peer]
    board: Any
    seconds: float  # the longest wait for a peer: the group's timeout
    exchanges: int = 0  # started so far
    slots: dict[int, Any] = field(default_factory=dict)  # the last exchange of each


_known: WeakKeyDictionary[dist.ProcessGroup, Neighbours | None] = WeakKeyDictionary()


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
    board = (ctypes.c_int64 * finished(SLOTS, 0, n))()
    board[SECRET] = secrets.randbits(62)
    willing = sys.platform == "linux" and os.environ.get("ZC_DIRECT") != "0" and supported()
    mine = torch.tensor([willing, os.getpid(), ctypes.addressof(board), board[SECRET]])
    everyone = [torch.empty_like(mine) for _ in range(n)]
    dist.all_gather(everyone, mine, group=group)
    known = [each.tolist() for each in everyone]
    reached = all(known[r][0] for r in range(n)) and all(_reaches(*known[r][1:]) for r in range(n))
    agreed = torch.tensor([int(reached)])
    dist.all_reduce(agreed, dist.ReduceOp.MIN, group=group)
    if not agreed.item():
        return None
    others = [(rank + distance) % n for distance in range(1, n)]
    peers = [Peer(r, known[r][1], known[r][2]) for r in others]
    return Neighbours(rank, n, peers, board, group_seconds(group))


def _reaches(pid: int, address: int, secret: int) -> bool:
    """Whether the board at ``address`` of process ``pid`` can be read and written, and is one."""
    peer = Peer(-1, pid, address)
    try:
        if peer.look(SECRET) != secret:
            return False  # a process of another host that has the same number here
        peer.note(SECRET, secret)
    except CommunicationError:
        return False
    return True
