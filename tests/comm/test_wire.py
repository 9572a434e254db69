"""Collectives on gloo: values, the order of sums, and the bytes they send."""

import torch
import torch.distributed as dist
from multiprocess import run_ranks

from zc.comm.wire import METER, all_gather, all_reduce, reduce_scatter, sum_in_rank_order

WORLD = 4
PRODUCT = 1e-6  # relative; gloo multiplies in an order of its own


def numbers(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank))


def check_gather(rank: int) -> None:
    METER.reset()
    full = all_gather(numbers(rank, 2, 3), dist.group.WORLD).wait()
    assert torch.equal(full, torch.cat([numbers(r, 2, 3) for r in range(WORLD)]))
    assert METER.sent == {"all_gather": 24 * 4 * 3 // 4}
    transposed = all_gather(numbers(rank, 2, 3).t(), dist.group.WORLD).wait()
    assert torch.equal(transposed, torch.cat([numbers(r, 2, 3).t() for r in range(WORLD)]))
    flags = all_gather(torch.tensor([rank % 2 == 0]), dist.group.WORLD).wait()
    assert flags.tolist() == [True, False, True, False]


def check_reductions(rank: int) -> None:
    every = [numbers(r, 8, 3) for r in range(WORLD)]
    for op in ("sum", "avg"):
        expected = sum_in_rank_order(every, op)
        METER.reset()
        mine = reduce_scatter(every[rank], dist.group.WORLD, op).wait()
        assert torch.equal(mine, expected[2 * rank : 2 * rank + 2])
        assert METER.sent == {"reduce_scatter": 24 * 4 * 3 // 4}
        METER.reset()
        assert torch.equal(all_reduce(every[rank], dist.group.WORLD, op).wait(), expected)
        assert METER.sent == {"all_reduce": 2 * 24 * 4 * 3 // 4}
        assert METER.total() == 2 * 24 * 4 * 3 // 4
    assert torch.equal(every[rank], numbers(rank, 8, 3))  # operands are left alone


def check_odd_sizes(rank: int) -> None:
    every = [numbers(r, 5) for r in range(WORLD)]
    METER.reset()
    found = all_reduce(every[rank], dist.group.WORLD, "sum").wait()
    assert METER.sent == {"all_reduce": 2 * 3 * 2 * 4}  # to 3 ranks, blocks of 2 elements, twice
    assert torch.equal(found, sum_in_rank_order(every, "sum"))
    assert torch.equal(all_reduce(torch.tensor(2.0), dist.group.WORLD).wait(), torch.tensor(2.0))


def check_other_reductions(rank: int) -> None:
    every = [numbers(r, 8, 3) for r in range(WORLD)]
    together = torch.stack(every)
    results = {"max": together.amax(0), "min": together.amin(0), "product": together.prod(0)}
    for op, expected in results.items():
        mine = reduce_scatter(every[rank], dist.group.WORLD, op).wait()
        torch.testing.assert_close(mine, expected[2 * rank : 2 * rank + 2], rtol=PRODUCT, atol=0)
        whole = all_reduce(every[rank], dist.group.WORLD, op).wait()
        torch.testing.assert_close(whole, expected, rtol=PRODUCT, atol=0)
    assert torch.equal(every[rank], numbers(rank, 8, 3))  # operands are left alone


def check_overlap(rank: int) -> None:
    """Several may be under way, and be waited for in any order that all ranks share."""
    pending = [all_gather(torch.full((2,), float(i)), dist.group.WORLD) for i in range(5)]
    for i, gather in reversed(list(enumerate(pending))):
        assert torch.equal(gather.wait(), torch.full((2 * WORLD,), float(i)))


def check(rank: int, world: int) -> None:
    check_gather(rank)
    check_reductions(rank)
    check_odd_sizes(rank)
    check_other_reductions(rank)
    check_overlap(rank)


def test_collectives():
    run_ranks(check, WORLD)
