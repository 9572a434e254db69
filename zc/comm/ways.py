"""Ways to carry out a collective on a process group; ``zc.comm.choice`` picks one.

    native       the backend's own call; a bucket is one coalesced call, which copies nothing
    pairwise     every rank sends to every other one, straight from operands and into results
    direct       every rank reads its peers' operands (``zc.comm.direct``); on one host alone
    all_to_all   ``all_to_all_single`` for each tensor of a bucket

All ways of one op give the same bits and send the same bytes. Each takes the tensors of one bucket.

Pairwise transfers cannot deadlock. Every rank posts all receives and all sends of an exchange when
it starts and blocks in none of them: gloo's own threads move the bytes. Ranks start exchanges in
one order, that of the program, and between two ranks gloo matches messages of one tag in the order
in which they were posted. So what a rank waits for was posted by its peer already, or will be once
the peer gets there; and the peer is held up by earlier exchanges alone, of which the first that is
not finished has been posted by all. The tag is zc's own: user code's messages are not mixed up
with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from zc.comm import direct
from zc.comm.direct import Rows

TAG = 0x7A63  # "zc"
_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before 2.13
_C10D: Any = torch.ops._c10d_functional


Mover = Callable[[Rows, Rows, dist.ProcessGroup], list[Any]]  # out, in: the works to wait for


@dataclass(frozen=True)
class Transfer:
    """Tensors on their way: the works to wait for, the bytes this rank sends, what it will have.

    ``received`` is, of a gather, every whole tensor; of a transposition, the ``Blocks`` of each.
    """

    works: list[Any]
    sent: int
    received: list[Any]


@dataclass
class Blocks:
    """One block from each rank, in rank order; ``room`` is where their sum may go."""

    of_ranks: list[torch.Tensor]
    room: torch.Tensor | None = None


@dataclass
class Coalesced:
    """The work of one coalesced call of the backend."""

    results: list[torch.Tensor]

    def wait(self) -> None:
        """Wait for all results."""
        for result in self.results:
            _C10D.wait_tensor(result)


def gather_natively(shards: list[torch.Tensor], group: dist.ProcessGroup) -> Transfer:
    """The backend's all-gather."""
    n = group.size()
    sent = (n - 1) * sum(map(nbytes, shards))
    if len(shards) > 1:
        fulls = _C10D.all_gather_into_tensor_coalesced(shards, n, group.group_name)
        return Transfer([Coalesced(fulls)], sent, fulls)
    (shard,) = shards
    full = _whole(shard, n)
    return Transfer([_GATHER(full, shard, group=group, async_op=True)], sent, [full])


def gather_pairwise(
    shards: list[torch.Tensor], group: dist.ProcessGroup, move: Mover | None = None
) -> Transfer:
    """Every rank sends its shards to every other one, by ``move``: messages if left out."""
    n, rank = group.size(), group.rank()
    fulls = [_whole(shard, n) for shard in shards]
    blocks = [full.view(n, full.numel() // n) for full in fulls]
    outgoing = [[shard.view(-1)] * n for shard in shards]
    works = (move or _messages)(outgoing, [list(b) for b in blocks], group)
    for block, shard in zip(blocks, shards, strict=True):
        block[rank].copy_(shard.view(-1))
    return Transfer(works, (n - 1) * sum(map(nbytes, shards)), fulls)


def transpose_all_to_all(fulls: list[torch.Tensor], group: dist.ProcessGroup) -> Transfer:
    """Each of ``fulls`` is ``[N, block]``; row r of it goes to rank r."""
    n = group.size()
    received = [torch.empty_like(full) for full in fulls]
    pairs = zip(received, fulls, strict=True)
    works = [dist.all_to_all_single(r, f, group=group, async_op=True) for r, f in pairs]
    sent = sum(nbytes(full) * (n - 1) // n for full in fulls)
    return Transfer(works, sent, [Blocks(list(r)) for r in received])


def transpose_pairwise(
    fulls: list[torch.Tensor], group: dist.ProcessGroup, move: Mover | None = None
) -> Transfer:
    """As ``transpose_all_to_all``; this rank's own row is read where it is."""
    n, rank = group.size(), group.rank()
    found = []
    for full in fulls:
        others = list(full.new_empty((n - 1, full.shape[1])))
        found.append(
            Blocks([*others[:rank], full[rank], *others[rank:]], torch.empty_like(full[0]))
        )
    outgoing = [list(full) for full in fulls]
    works = (move or _messages)(outgoing, [b.of_ranks for b in found], group)
    return Transfer(works, sum(nbytes(full) * (n - 1) // n for full in fulls), found)


def _messages(outgoing: Rows, incoming: Rows, group: dist.ProcessGroup) -> list[Any]:
    """Post all receives, then all sends; of each tensor there is one block for every rank."""
    n, rank = group.size(), group.rank()
    peers = [(rank + distance) % n for distance in range(1, n)]
    works = [
        dist.irecv(blocks[peer], group=group, group_src=peer, tag=TAG)
        for blocks in incoming
        for peer in reversed(peers)
    ]
    works += [
        dist.isend(blocks[peer], group=group, group_dst=peer, tag=TAG)
        for blocks in outgoing
        for peer in peers
    ]
    return works


def _whole(shard: torch.Tensor, world: int) -> torch.Tensor:
    first, *rest = shard.shape
    return shard.new_empty((world * first, *rest))


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of ``tensor``."""
    return tensor.numel() * tensor.element_size()


Way = Callable[[list[torch.Tensor], dist.ProcessGroup], Transfer]
WAYS: dict[str, dict[str, Way]] = {
    "all_gather": {
        "native": gather_natively,
        "pairwise": gather_pairwise,
        "direct": partial(gather_pairwise, move=direct.exchange),
    },
    "reduce_scatter": {
        "all_to_all": transpose_all_to_all,
        "pairwise": transpose_pairwise,
        "direct": partial(transpose_pairwise, move=direct.exchange),
    },
}
