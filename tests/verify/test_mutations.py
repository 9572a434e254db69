"""The verifier finds at least 95% of mutants, over all classes and in each."""

from functools import cache

import pytest
from verify.mutations import ON_ONE_RANK, VERIFIED, mutants
from verify.programs import PROGRAMS

from zc.errors import PlanError, VerifyError
from zc.program.program import Program
from zc.verify import check_agreement, communication_plan, verify

DETECTED = 0.95
PLACES = (
    8  # per program and class: enough to meet every kind of node, and seconds rather than minutes
)


@cache
def program_named(name: str) -> Program:
    return PROGRAMS[name]()


def refused(mutant: Program) -> bool:
    try:
        verify(mutant)
    except VerifyError:
        return True
    return False


def disagrees(original: Program, mutant: Program) -> bool:
    plans = [communication_plan(original), communication_plan(mutant)]
    try:
        check_agreement(plans)
    except PlanError:
        return True
    return False


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_themselves_are_valid(name: str) -> None:
    program = program_named(name)
    verify(program)
    verify(program, full=False)
    check_agreement([communication_plan(program)] * 4)


@pytest.mark.parametrize("name", VERIFIED)
def test_mutants_are_refused(name: str) -> None:
    found = [
        refused(mutant)
        for program in PROGRAMS
        for mutant in mutants(program_named(program), VERIFIED[name], PLACES)
    ]
    assert found, f"no place for {name} in any program"
    assert sum(found) >= DETECTED * len(found)


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_mutants_on_one_rank_are_refused(name: str) -> None:
    found = [
        disagrees(program_named(program), mutant)
        for program in PROGRAMS
        for mutant in mutants(program_named(program), ON_ONE_RANK[name], PLACES)
    ]
    assert found
    assert sum(found) >= DETECTED * len(found)
