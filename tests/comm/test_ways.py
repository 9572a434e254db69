"""Ways to carry out a collective: the same bits and bytes for all, alone and in buckets."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from multiprocess import run_ranks

from zc.comm import choice, wire
from zc.comm.choice import use_measured, way
from zc.comm.pending import PendingBucket
from zc.comm.ways import WAYS
from zc.comm.wire import METER, sum_in_rank_order
from zc.errors import ExecutionError

WORLD = 4
SHAPES = [(8,), (4, 3), (1, 5), (6, 2, 2)]  # rows of a shard


@contextmanager
def taking(**names: str) -> Iterator[None]:
    """Ops are carried out the way that is named for them."""
    use_measured({"gloo": {op: {0: {0: name}} for op, name in names.items()}})
    try:
        yield
    finally:
        use_measured({})


def drawn(rank: int, times: int = 1, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A bucket of tensors of one rank, with ``times`` as many rows."""
    generator = torch.Generator().manual_seed(rank)
    shapes = [(times * first, *rest) for first, *rest in SHAPES]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def waited(bucket: PendingBucket, order: list[int]) -> list[torch.Tensor]:
    """The items of a bucket, which are waited for in ``order``."""
    items = [bucket[i] for i in range(len(order))]
    found = {i: items[i].wait() for i in order}
    return [found[i] for i in range(len(order))]


def assert_all_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def sent_by(run: Callable[[], None]) -> dict[str, int]:
    METER.reset()
    run()
    return dict(METER.sent)


def check_gathers(group: dist.ProcessGroup, name: str, dtype: torch.dtype) -> None:
    n, rank = group.size(), group.rank()
    every = [drawn(r, 1, dtype) for r in range(n)]
    expected = [torch.cat(shards) for shards in zip(*every, strict=True)]
    formula = (n - 1) * sum(t.numel() * t.element_size() for t in every[rank])

    def one_by_one() -> None:
        pending = [wire.all_gather(shard, group) for shard in every[rank]]
        assert_all_equal([p.wait() for p in pending], expected)

    def together() -> None:
        bucket = wire.all_gather_bucket(every[rank], group)
        assert_all_equal(waited(bucket, [2, 0, 3, 1]), expected)

    with taking(all_gather=name):
        assert sent_by(one_by_one) == sent_by(together) == {"all_gather": formula}


def check_scatters(group: dist.ProcessGroup, name: str, dtype: torch.dtype, op: str) -> None:
    n, rank = group.size(), group.rank()
    every = [drawn(r, n, dtype) for r in range(n)]
    sums = [sum_in_rank_order(list(fulls), op) for fulls in zip(*every, strict=True)]
    expected = [total.chunk(n)[rank] for total in sums]
    formula = (n - 1) * sum(t.numel() // n * t.element_size() for t in every[rank])

    def one_by_one() -> None:
        pending = [wire.reduce_scatter(full, group, op) for full in every[rank]]
        assert_all_equal([p.wait() for p in pending], expected)

    def together() -> None:
        bucket = wire.reduce_scatter_bucket(every[rank], group, op)
        assert_all_equal(waited(bucket, [3, 2, 1, 0]), expected)

    with taking(reduce_scatter=name):
        assert sent_by(one_by_one) == sent_by(together) == {"reduce_scatter": formula}
    assert_all_equal(every[rank], drawn(rank, n, dtype))  # operands are left alone


def check_all_reduces(group: dist.ProcessGroup, scatter: str, gather: str) -> None:
    n, rank = group.size(), group.rank()
    every = [[*drawn(r), torch.tensor(float(r)), torch.zeros(0)] for r in range(n)]
    expected = [sum_in_rank_order(list(fulls), "avg") for fulls in zip(*every, strict=True)]
    formula = 2 * (n - 1) * sum(-(-t.numel() // n) * t.element_size() for t in every[rank])

    def one_by_one() -> None:
        pending = [wire.all_reduce(full, group) for full in every[rank]]
        assert_all_equal([p.wait() for p in pending], expected)

    def together() -> None:
        bucket = wire.all_reduce_bucket(every[rank], group)
        assert_all_equal(waited(bucket, [5, 1, 0, 4, 2, 3]), expected)

    with taking(reduce_scatter=scatter, all_gather=gather):
        assert sent_by(one_by_one) == sent_by(together) == {"all_reduce": formula}


def check_under_way(group: dist.ProcessGroup) -> None:
    """Several buckets at once, waited for in an order of their own."""
    shards = [[torch.full((3,), 10.0 * i + group.rank())] * 2 for i in range(4)]
    pending = [wire.all_gather_bucket(bucket, group) for bucket in shards]
    fulls = wire.reduce_scatter_bucket([torch.ones(group.size())] * 2, group, "sum")
    for i in (2, 0, 3, 1):
        expected = torch.cat([torch.full((3,), 10.0 * i + r) for r in range(group.size())])
        assert_all_equal(waited(pending[i], [1, 0]), [expected] * 2)
    assert_all_equal(waited(fulls, [0, 1]), [torch.full((1,), float(group.size()))] * 2)


def check_others(group: dist.ProcessGroup) -> None:
    """Reductions that add nothing up are the backend's own."""
    every = [[t.round() for t in drawn(r, group.size())] for r in range(group.size())]
    largest = [torch.stack(fulls).amax(0) for fulls in zip(*every, strict=True)]
    mine = every[group.rank()]
    blocks = [full.chunk(group.size())[group.rank()] for full in largest]
    order = [1, 0, 2, 3]
    assert_all_equal(waited(wire.all_reduce_bucket(mine, group, "max"), order), largest)
    assert_all_equal(waited(wire.reduce_scatter_bucket(mine, group, "max"), order), blocks)


def check_transposed(group: dist.ProcessGroup) -> None:
    shard = torch.arange(6.0).view(2, 3).t()
    (full,) = waited(wire.all_gather_bucket([shard], group), [0])
    assert torch.equal(full, torch.cat([shard] * group.size()))


def check(rank: int, world: int) -> None:
    for size in (2, 3, 4):
        ranks = list(range(world - size, world))
        group = dist.new_group(ranks)
        if rank not in ranks:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for name in WAYS["all_gather"]:
                check_gathers(group, name, dtype)
            for name in WAYS["reduce_scatter"]:
                check_scatters(group, name, dtype, "avg")
                check_scatters(group, name, dtype, "sum")
        for scatter in WAYS["reduce_scatter"]:
            for gather in WAYS["all_gather"]:
                check_all_reduces(group, scatter, gather)
        check_under_way(group)
        check_others(group)
        check_transposed(group)


def test_all_ways_give_the_same_bits_and_bytes():
    run_ranks(check, WORLD)


TABLE = {
    "gloo": {
        "all_gather": {2: {0: "native", 1000: "pairwise"}, 8: {0: "pairwise", 5000: "native"}},
    }
}
CHOICES = [
    ("all_gather", "gloo", 2, 999, "native"),
    ("all_gather", "gloo", 7, 1000, "pairwise"),
    ("all_gather", "gloo", 8, 1000, "pairwise"),
    ("all_gather", "gloo", 64, 5000, "native"),
    ("reduce_scatter", "gloo", 2, 999_999, "all_to_all"),  # not measured: the default
    ("reduce_scatter", "gloo", 4, 1_000_000, "pairwise"),
    ("all_gather", "nccl", 8, 5000, "native"),
    ("reduce_scatter", "fake", 8, 5000, "all_to_all"),
]


@pytest.mark.parametrize("given", CHOICES, ids=str)
def test_the_way_taken(given: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "_measured", {})
    use_measured(TABLE)
    assert way(*given[:4]) == given[4]


DIRECT_CHOICES = [
    ("all_gather", "gloo", 2, 199_999, "native"),
    ("all_gather", "gloo", 2, 200_000, "direct"),
    ("reduce_scatter", "gloo", 8, 200_000, "direct"),
    ("reduce_scatter", "gloo", 1, 200_000, "all_to_all"),
    ("all_gather", "nccl", 2, 200_000, "native"),
]


@pytest.mark.parametrize("given", DIRECT_CHOICES, ids=str)
def test_the_way_taken_where_direct_ones_are_allowed(given: tuple[Any, ...]):
    assert way(*given[:4], allow_direct=True) == given[4]


def test_what_was_measured_to_be_direct_may_be_impossible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "_measured", {})
    use_measured({"gloo": {"all_gather": {2: {0: "pairwise", 1000: "direct"}}}})
    taken = [way("all_gather", "gloo", 2, 1000, allow_direct=allowed) for allowed in (True, False)]
    assert taken == ["direct", "native"]


def check_offered(rank: int, world: int) -> list[list[str]]:
    found = []
    for answer in ("1", "0"):
        os.environ["ZC_DIRECT"] = answer
        found.append(choice.offered("all_gather", dist.new_group()))
    return found


def test_ways_that_there_are():
    for allowed, refused in run_ranks(check_offered, 2):
        assert refused == ["native", "pairwise"]
        assert allowed in (refused, [*refused, "direct"])


ERRORS = {
    "op": (
        {"gloo": {"gather": {}}},
        "gloo: no op 'gather'; the ops are all_gather, reduce_scatter",
    ),
    "way": (
        {"gloo": {"all_gather": {2: {0: "pairwise", 10: "fast"}}}},
        "gloo: no way 'fast' of all_gather; the ways are native, pairwise, direct",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str):
    table, message = ERRORS[name]
    with pytest.raises(ExecutionError) as error:
        use_measured(table)
    assert str(error.value) == message
