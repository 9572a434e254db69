"""Models trained by zc end as those trained by ``DistributedDataParallel`` do.

``make test`` runs a pairwise sample over some models and one row of each other model; ``make
test-matrix`` runs everything and writes MATRIX.md.
"""

from collections import defaultdict
from itertools import product
from typing import Any

import pytest
from e2e import matrix_table
from e2e.equality import Config, Deviation, compare
from e2e.models import CASES
from e2e.pairwise import pairwise
from multiprocess import run_ranks

WORLDS, STAGES, LEVELS = (2, 4), (0, 1, 2, 3), (1, 2)
EXECUTORS, CLIPS = ("interpret", "inductor"), (False, True)
SAMPLED = ("conv", "gpt")  # in every pair of choices; other models once
DIMENSIONS = (SAMPLED, WORLDS, STAGES, LEVELS, EXECUTORS, CLIPS)

LOSS = 1e-5  # relative; same operations, gradients summed in another order on 4 ranks
STATE = 1.0  # of 1e-5 ||p|| + 1e-2 lr sqrt(numel)
INDUCTOR_LOSS = 1e-5  # fused regions round differently: sums in vector lanes, contracted products
INDUCTOR_STATE = 1.0  # the same; AdamW divides by small second moments, which magnifies it
NORM = 1e-5  # relative; squares are summed per shard first


def cost(row: Any) -> float:
    """Roughly the seconds that one configuration takes: more regions, more compilation."""
    model, world, stage, level, executor, _ = row
    tracing = (1.0 if model in ("conv", "lstm") else 3.0) + level
    compilation = 2.0 + 4.0 * stage if executor == "inductor" else 0.0
    return (tracing + compilation) * world / 2


def sample() -> list[Config]:
    """A pairwise sample, all stages and levels of one model, whose bits must be the same, and more.

    Of each model that is not sampled: stage 3 of a whole step, which every pass works on.
    """
    same_bits = list(product(("conv",), (2,), STAGES, LEVELS, ("interpret",), (False,)))
    others = [(model, 2, 3, 2, "interpret", True) for model in CASES if model not in SAMPLED]
    rows = [*pairwise(DIMENSIONS, cost, same_bits), *others]
    return sorted((Config(*row) for row in rows), key=_order)


def _order(config: Config) -> Any:
    return config.model, config.stage, config.level, config.executor, config.clip


def ranks(rank: int, world: int, configs: list[Config]) -> list[Deviation]:
    return compare(rank, world, configs)


def check(by_rank: list[list[Deviation]]) -> None:
    found = [deviation for one_rank in by_rank for deviation in one_rank]
    problems = [p for d in found for p in _too_far(d)] + _different_bits(by_rank)
    assert not problems, "\n".join(problems)


def _too_far(found: Deviation) -> list[str]:
    if found.error:
        return [f"{found.config}: {found.error}"]
    compiled = found.config.executor == "inductor"
    bounds = {
        "loss": INDUCTOR_LOSS if compiled else LOSS,
        "state": INDUCTOR_STATE if compiled else STATE,
        "norm": NORM,
    }
    return [
        f"{found.config}: {what} {getattr(found, what):.2e} is over {bound:.0e}"
        for what, bound in bounds.items()
        if not getattr(found, what) <= bound
    ]


def _different_bits(by_rank: list[list[Deviation]]) -> list[str]:
    """Runs without clipping that differ by their ZeRO stage alone, and in their bits."""
    digests = defaultdict(set)
    for rank, one_rank in enumerate(by_rank):
        for d in one_rank:
            c = d.config
            if c.executor == "interpret" and not c.clip:
                digests[rank, c.model, c.world, c.level].add(d.digest)
    return [f"bits depend on the stage: {key}" for key, found in digests.items() if len(found) > 1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", WORLDS)
def test_a_pairwise_sample_trains_as_ddp(world: int) -> None:
    configs = [c for c in sample() if c.world == world]
    # Pythons of their own, with sets of another order, on two ranks alone: each costs seconds
    check(run_ranks(ranks, world, configs, timeout=1700, fresh=world == 2))


@pytest.mark.matrix
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("model", "world"), list(product(CASES, WORLDS)))
def test_the_whole_matrix_trains_as_ddp(model: str, world: int) -> None:
    rows = product((model,), (world,), STAGES, LEVELS, EXECUTORS, CLIPS)
    configs = sorted((Config(*row) for row in rows), key=_order)
    by_rank = run_ranks(ranks, world, configs, timeout=7000, fresh=True)
    found = [deviation for one_rank in by_rank for deviation in one_rank]
    tables = defaultdict(list)
    for deviation in found:
        tables[matrix_table.title(deviation.config), model].append(deviation)
    matrix_table.update({key: matrix_table.row(model, d) for key, d in tables.items()})
    check(by_rank)
