"""Every error of the verifier, with its full message."""

from collections.abc import Callable

import pytest
from verify.broken import BROKEN, tiny
from verify.mutations import copy_program

from zc.errors import PlanError, VerifyError
from zc.program.program import Program
from zc.verify import PlanEntry, check_agreement, communication_plan, verify


@pytest.fixture(scope="module")
def valid() -> Program:
    program = tiny()
    verify(program)
    return program


def test_messages(valid: Program, golden: Callable[[str], None]) -> None:
    texts = []
    for name, break_it in BROKEN.items():
        program = copy_program(valid)
        break_it(program)
        with pytest.raises(VerifyError) as error:
            verify(program)
        texts.append(f"## {name}\n{error.value}\n")
    golden("\n".join(texts))


def test_only_what_changed_is_derived_again(valid: Program) -> None:
    program = copy_program(valid)
    verify(program)
    BROKEN["types: other type"](program)
    with pytest.raises(VerifyError, match="its op returns"):
        verify(program, full=False)


def test_a_plan_says_what_moves(valid: Program) -> None:
    plan = communication_plan(valid)
    assert [str(entry) for entry in plan] == [
        "forward all_gather f32[64] on dp of 'w'",
        "forward all_gather f32[64] on dp of 'v'",
        "backward reduce_scatter f32[64] on dp of 'v'",
        "backward all_gather f32[64] on dp of 'v'",
        "backward reduce_scatter f32[64] on dp of 'w'",
    ]


def test_plans_that_differ_are_refused() -> None:
    gather = PlanEntry("all_gather", "dp", "f32", 64, "forward", "w")
    other = PlanEntry("all_gather", "dp", "f32", 64, "forward", "v")
    with pytest.raises(PlanError) as error:
        check_agreement([(gather, other), (gather, other), (other, gather)])
    assert str(error.value) == (
        "collective 0 is forward all_gather f32[64] on dp of 'v' on rank 2 and forward all_gather "
        "f32[64] on dp of 'w' on rank 0; every rank must compile the same function with the same "
        "options; dump both (options={'dump': DIR}) and compare"
    )
    with pytest.raises(PlanError, match="collective 1 is missing on rank 1 and forward all_gather"):
        check_agreement([(gather, other), (gather,)])
