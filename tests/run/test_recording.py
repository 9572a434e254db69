"""Recorded parts by themselves: how inputs are bound, what a replay leaves behind, what fails."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from stand_in import StandIn

from zc.capture.random_ops import MICRO_SEED, UNIFORM
from zc.comm.wire import METER
from zc.errors import CommunicationError, ExecutionError
from zc.run.recording import (
    MAX_CHANGES,
    STEADY_REPLAYS,
    WARM_CALLS,
    Draw,
    PartSpec,
    RecordedPart,
    Recording,
    Run,
)

CALLS = WARM_CALLS + 3
CPU = torch.device("cpu")


def test_a_copied_input_may_be_another_tensor_at_each_call():
    part = RecordedPart(PartSpec("part", ("copy",)), lambda v: [v[0] * 2], StandIn())
    for number in range(CALLS):
        assert part([torch.full((3,), float(number))])[0].tolist() == [2.0 * number] * 3
    assert part.recorded == 1


@pytest.mark.parametrize(
    "of",
    [
        lambda base: base.t(),
        lambda base: base[:, 1:3],
        lambda base: base[:1].expand(5, 4),
        lambda base: base[:0],
        lambda base: base[2, 1],
    ],
    ids=["transposed", "columns", "expanded", "empty", "a number"],
)
def test_copied_inputs_lie_as_they_did(of: Any):
    seen: list[Any] = []

    def run(values: list[Any]) -> list[Any]:
        seen.append(values[0].stride())
        return [values[0] + 1]

    part = RecordedPart(PartSpec("part", ("copy",)), run, StandIn())
    for number in range(CALLS):
        value = of(torch.arange(20.0).view(5, 4) + number)
        assert torch.equal(part([value])[0], value + 1)
        assert seen[-1] == value.stride()
    assert part.recorded == 1


def test_what_is_at_an_address_is_read_and_written_there():
    weight = torch.ones(3)
    part = RecordedPart(PartSpec("part", ("address",), (0,)), _doubled, StandIn())
    for _ in range(CALLS):
        before = weight._version
        part([weight])
        assert weight._version > before
    assert weight.tolist() == [2.0**CALLS] * 3
    assert part.recorded == 1


def test_another_address_or_type_is_recorded_anew():
    part = RecordedPart(PartSpec("part", ("address",), (0,)), _doubled, StandIn())
    weights = [torch.ones(3), torch.ones(3), torch.ones(4), torch.ones(2, 2)]
    weights += [weights[3].t(), weights[3].view(torch.int32)]
    for weight in [w for w in weights for _ in range(CALLS)]:
        before = weight.clone()
        part([weight])
        assert torch.equal(weight, 2 * before)
    assert part.recorded == len(weights)


def test_what_changes_at_each_call_is_not_recorded_before_it_stays():
    part = RecordedPart(PartSpec("part", ("address",), (0,)), _doubled, StandIn())
    weights = [torch.ones(3) for _ in range(MAX_CHANGES)]
    for weight in [*weights, weights[-1]]:
        assert part.recorded == 0
        part([weight])
    assert part.recorded == 1
    assert [weight.tolist() for weight in weights] == [[2.0] * 3] * (MAX_CHANGES - 1) + [[4.0] * 3]


def test_addresses_that_always_change_end_in_the_plain_loop():
    part = RecordedPart(PartSpec("step: part", ("address",), (0,)), _doubled, StandIn())
    weights = [torch.ones(3) for _ in range(MAX_CHANGES + 3)]
    with pytest.warns(UserWarning, match="runs without") as caught:
        _call_with_each(part, weights + [weights[-1]] * CALLS)
    assert all(weight.tolist() == [2.0] * 3 for weight in weights[:-1])
    assert weights[-1].tolist() == [2.0 ** (1 + CALLS)] * 3
    assert part.recorded == 0
    assert [str(w.message) for w in caught] == [
        "step: part: inputs have been at other addresses or of other types 33 times; it runs "
        "without a CUDA graph from here on"
    ]


def test_changes_are_forgiven_after_a_while():
    part = RecordedPart(PartSpec("part", ("address",), (0,)), _doubled, StandIn())
    for _ in range(3):
        weights = [torch.zeros(1) for _ in range(MAX_CHANGES - 1)]
        _call_with_each(part, weights + [weights[-1]] * (STEADY_REPLAYS + WARM_CALLS))
    assert part.recorded == 3


def test_draws_follow_the_seed_of_each_call():
    """In a loop and outside; one of them is computed twice, as recomputing does."""

    def run(values: list[Any]) -> list[Any]:
        draws = [UNIFORM(values[0], 0, [4], torch.float32, CPU) for _ in range(2)]
        for turn in range(2):
            draws.append(UNIFORM(MICRO_SEED(values[0], turn), 1, [4], torch.float32, CPU))
        return [torch.cat(draws)]

    draws = [Draw(0, None, 0, CPU)] * 2 + [Draw(0, turn, 1, CPU) for turn in range(2)]
    part = RecordedPart(PartSpec("part", ("seed",), (), tuple(draws)), run, StandIn())
    for number in range(CALLS):
        seed = torch.tensor(number)
        found = part([seed])[0]
        assert torch.equal(found, run([seed])[0])
        assert torch.equal(found[:4], found[4:8])
        assert not torch.equal(found[8:12], found[12:])


def test_bytes_are_counted_at_every_call():
    def run(values: list[Any]) -> list[Any]:
        METER.add("all_gather", 12)
        return []

    part = RecordedPart(PartSpec("part", ()), run, StandIn())
    METER.reset()
    for number in range(CALLS):
        part([])
        assert METER.sent == {"all_gather": 12 * (number + 1)}
    METER.reset()


class Failing(StandIn):
    """Refuses to record."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Recording:
        raise self.error


FAILURES: dict[str, tuple[RuntimeError, type[Exception], str]] = {
    "capture": (
        RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"),
        ExecutionError,
        "step: part cannot be recorded: CUDA error: operation not permitted when stream is "
        "capturing; an operation in it waits for the device or works on the host: leave "
        "cuda_graph out",
    ),
    "collective": (CommunicationError("peer is gone"), CommunicationError, "peer is gone"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_recorded(name: str):
    error, kind, message = FAILURES[name]
    part = RecordedPart(PartSpec("step: part", ()), lambda values: [], Failing(error))
    for _ in range(WARM_CALLS):
        part([])
    with pytest.raises(kind) as caught:
        part([])
    assert str(caught.value) == message


def test_a_part_that_is_recorded_says_nothing():
    part = RecordedPart(PartSpec("part", ("copy",)), lambda v: [v[0] * 2], StandIn())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(CALLS):
            part([torch.ones(2)])


def _call_with_each(part: RecordedPart, weights: list[torch.Tensor]) -> None:
    for weight in weights:
        part([weight])


def _doubled(values: list[torch.Tensor]) -> list[torch.Tensor]:
    values[0].mul_(2)
    return []
