"""The pairwise sample."""

from itertools import combinations

from e2e.pairwise import pairwise

DIMENSIONS = ("abcde", (2, 4), (0, 1, 2, 3), (False, True))


def pairs(row: tuple) -> set:
    return set(combinations(enumerate(row), 2))


def test_every_pair_occurs() -> None:
    rows = pairwise(DIMENSIONS)
    for (i, left), (j, right) in combinations(enumerate(DIMENSIONS), 2):
        for a in left:
            for b in right:
                assert any(((i, a), (j, b)) in pairs(row) for row in rows), (a, b)
    assert len(rows) == 20  # no sample can be smaller than the two longest dimensions


def test_the_same_arguments_give_the_same_rows() -> None:
    assert pairwise(DIMENSIONS) == pairwise(DIMENSIONS)
    assert pairwise(("ab", (1, 2))) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_expensive_values_occur_no_more_often_than_they_must() -> None:
    rows = pairwise(DIMENSIONS, lambda row: 4.0 if row[1] == 4 else 1.0)
    assert sum(row[1] == 4 for row in rows) == 5


def test_given_rows_count() -> None:
    given = [("a", 1), ("b", 2)]
    assert pairwise(("ab", (1, 2)), given=given) == [*given, ("a", 2), ("b", 1)]
