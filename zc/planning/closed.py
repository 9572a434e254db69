"""Plans by formula: no model, no capture, any number of ranks (``zc.cost.symbolic``).

Times reckon with the rates of the device file, which are peaks for devices from data sheets.
"""

from dataclasses import dataclass
from typing import Any

from zc.cost.device import Device
from zc.cost.symbolic import (
    SYMBOLS,
    ZERO_STAGES,
    Formulas,
    evaluate,
    formulas,
    gpt_activation_bytes,
    gpt_layer_bytes,
    gpt_parameters,
)
from zc.planning.rows import Row
from zc.planning.sizes import GptSize
from zc.text import show_bytes

_UPDATE_BYTES = 28  # of an AdamW update of one parameter: read and written once
_RECOMPUTED = 3 / 4  # of the rate is left for what counts when forward runs twice
_LARGE = 1e9  # bytes of a transfer whose latency does not count


@dataclass(frozen=True)
class Precision:
    """Bytes of one parameter, one gradient, and of the optimizer state of one parameter."""

    p: int = 2
    g: int = 2
    K: int = 12

    @property
    def dtype(self) -> str:
        """What matrix products compute in."""
        return "float32" if self.p == 4 else "bfloat16"


@dataclass(frozen=True)
class Workload:
    """What every rank does in a step: sequences, tokens in each, activations recomputed or not."""

    batch: int = 1
    sequence: int = 2048
    recompute: bool = False


def gpt_rows(
    size: GptSize, work: Workload, precision: Precision, device: Device, world: int
) -> list[Row]:
    """One row for each zero stage of a GPT on ``world`` ranks."""
    values: dict[str, Any] = size.symbols() | {"b": work.batch, "s": work.sequence}
    values |= vars(precision) | {"N": world} | link_values(device, world)
    values["R"] = device.flop_rate(precision.dtype) * (_RECOMPUTED if work.recompute else 1)
    values["Psi"] = evaluate(gpt_parameters(), **size.symbols())
    return [_gpt_row(formulas(stage), work, values) for stage in ZERO_STAGES]


def _gpt_row(found: Formulas, work: Workload, values: dict[str, Any]) -> Row:
    parts = {
        "parameters": found.parameter_bytes,
        "gradients": found.gradient_bytes,
        "optimizer state": found.optimizer_bytes,
        "activations": activation_bytes(work),
    }
    if found.zero_stage == 3:
        parts["one gathered layer"] = gpt_layer_bytes()
    numbers = {name: round(evaluate(part, **values)) for name, part in parts.items()}
    compute = evaluate(found.compute_seconds, **values)
    transfer = evaluate(found.transfer_seconds, **values)
    return Row(
        world=values["N"],
        pipeline=f"zero{found.zero_stage}",
        peak_bytes=sum(numbers.values()),
        step_seconds=compute + transfer,
        best_seconds=max(compute, transfer),
        exposed_seconds=transfer,
        sent_bytes=round(evaluate(found.volume_bytes, **values)),
        kinds=_kinds(numbers),
    )


def activation_bytes(work: Workload) -> Any:
    """Activations; with recompute the input of every layer, and all of one layer.

    Chen et al. 2016 (1604.06174); Korthikanti et al. 2022, section 5.
    """
    everything = gpt_activation_bytes()
    if not work.recompute:
        return everything
    one = everything.subs(SYMBOLS["L"], 1)
    return one + 2 * SYMBOLS["s"] * SYMBOLS["b"] * SYMBOLS["d"] * SYMBOLS["L"]


def state_rows(parameters: int, precision: Precision, world: int) -> list[Row]:
    """Model state and volume of a bare number of parameters, by zero stage."""
    values: dict[str, Any] = vars(precision) | {"Psi": parameters, "N": world}
    found = []
    for expected in map(formulas, ZERO_STAGES):
        parts = (expected.parameter_bytes, expected.gradient_bytes, expected.optimizer_bytes)
        names = ("parameters", "gradients", "optimizer state")
        numbers = {n: round(evaluate(x, **values)) for n, x in zip(names, parts, strict=True)}
        found.append(
            Row(
                world=world,
                pipeline=f"zero{expected.zero_stage}",
                peak_bytes=round(evaluate(expected.state_bytes, **values)),
                sent_bytes=round(evaluate(expected.volume_bytes, **values)),
                kinds=_kinds(numbers),
            )
        )
    return found


def link_values(device: Device, world: int) -> dict[str, float]:
    """``W``, ``a``, ``B`` and ``u`` for a group of ``world`` ranks on ``device``."""
    start = device.collective_seconds("all_gather", world, 0)
    large = device.collective_seconds("all_gather", world, round(_LARGE))
    bandwidth = _LARGE / (large - start) if large > start else device.node.bandwidth
    return {"W": bandwidth, "a": start, "B": device.memory_bandwidth, "u": _UPDATE_BYTES}


def _kinds(numbers: dict[str, int]) -> tuple[str, ...]:
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return tuple(f"{name} {show_bytes(size)}" for name, size in ordered)
