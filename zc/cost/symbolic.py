"""Costs of training under ZeRO as formulas: memory, volume, intensity and time.

    volume = formulas(3).volume_bytes            # (N - 1)/N * (2*p + g) * Psi
    evaluate(volume, Psi=7.5e9, N=64, p=2, g=2)

Bytes and seconds are those of one rank. Sources: *ZeRO* is Rajbhandari et al. 2020 (1910.02054),
*Infinity* is Rajbhandari et al. 2021 (2104.07857), *Megatron* is Narayanan et al. 2021
(2104.04473), *Korthikanti* is Korthikanti et al. 2022 (2205.05198).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy

MEANINGS = {
    "Psi": "parameters",
    "N": "ranks",
    "p": "bytes of a parameter as computed with",
    "g": "bytes of a gradient as reduced",
    "K": "bytes of optimizer state for a parameter, fp32 copies included",
    "L": "layers",
    "d": "width",
    "V": "words",
    "b": "sequences in a batch, per rank",
    "s": "tokens in a sequence",
    "R": "operations per second of matrix products",
    "B": "bytes per second of memory",
    "W": "bytes per second of the slowest link",
    "a": "seconds until a collective moves",
    "u": "bytes that the update moves for a parameter",
}
SYMBOLS: dict[str, Any] = {name: sympy.Symbol(name, positive=True) for name in MEANINGS}
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Formulas:
    """What one zero_stage costs a rank, as expressions in ``SYMBOLS``.

    Attributes:
        zero_stage: 0 to 3.
        parameter_bytes: of parameters while a step runs (ZeRO, section 5; Figure 1).
        gradient_bytes: of gradients at the end of backward.
        optimizer_bytes: of optimizer state.
        rest_bytes: of parameters and optimizer state between steps, where zc keeps every stage
            but 0 sharded.
        volume_bytes: sent in a step, on rings (ZeRO, section 7).
        collectives: started in a step: one for each layer and phase, as buckets of a layer are.
        intensity: operations for each byte sent (Infinity, section 4.1: b*s in stage 3 where
            p = g = 2 and width is large).
        compute_seconds: of matrix products and of the update.
        transfer_seconds: of collectives, undisturbed.
    """

    zero_stage: int
    parameter_bytes: Any
    gradient_bytes: Any
    optimizer_bytes: Any
    rest_bytes: Any
    volume_bytes: Any
    collectives: Any
    intensity: Any
    compute_seconds: Any
    transfer_seconds: Any

    @property
    def state_bytes(self) -> Any:
        """Model state while a step runs: 4 Psi + 12 Psi/N and so on (ZeRO, section 5)."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def serial_seconds(self) -> Any:
        """Step time when no transfer overlaps compute."""
        return self.compute_seconds + self.transfer_seconds

    @property
    def overlapped_seconds(self) -> Any:
        """Step time when all that can overlap does: no schedule is faster."""
        return sympy.Max(self.compute_seconds, self.transfer_seconds)


@cache
def formulas(zero_stage: int) -> Formulas:
    """The formulas of ``zero_stage``, 0 to 3."""
    psi, n, p, g, k = (SYMBOLS[name] for name in ("Psi", "N", "p", "g", "K"))
    sharded = [n if zero_stage >= first else sympy.Integer(1) for first in (3, 2, 1)]
    at_rest = n if zero_stage else sympy.Integer(1)
    volume, collectives = _traffic(zero_stage)
    flops = gpt_flops()
    update = psi / at_rest * SYMBOLS["u"] / SYMBOLS["B"]
    return Formulas(
        zero_stage=zero_stage,
        parameter_bytes=p * psi / sharded[0],
        gradient_bytes=g * psi / sharded[1],
        optimizer_bytes=k * psi / sharded[2],
        rest_bytes=(p + k) * psi / at_rest,
        volume_bytes=volume,
        collectives=collectives,
        intensity=flops / volume,
        compute_seconds=flops / SYMBOLS["R"] + update,
        transfer_seconds=volume / SYMBOLS["W"] + collectives * SYMBOLS["a"],
    )


def _traffic(zero_stage: int) -> tuple[Any, Any]:
    """Bytes that a rank sends in a step, and in how many collectives.

    A ring all-reduce is a reduce-scatter and an all-gather: 2 g Psi. Stages 1 and 2 reduce-scatter
    gradients and gather parameters once, stage 3 gathers them again in backward: 3 Psi in all
    (ZeRO, section 7.2), each times (N - 1)/N.
    """
    psi, n, p, g, layers = (SYMBOLS[name] for name in ("Psi", "N", "p", "g", "L"))
    gathers = {0: g, 1: p, 2: p, 3: 2 * p}[zero_stage]
    count = {0: layers, 1: 2 * layers, 2: 2 * layers, 3: 3 * layers}[zero_stage]
    return (n - 1) / n * (gathers + g) * psi, count


def gpt_parameters() -> Any:
    """Parameters of a GPT without biases, norms with them: 12 L d^2 and what is small beside it.

    The input embedding is tied to the output (Megatron, eq. 2, without positions).
    """
    layers, d, words = (SYMBOLS[name] for name in ("L", "d", "V"))
    return layers * (12 * d**2 + 4 * d) + 2 * d + words * d


def gpt_flops() -> Any:
    """Operations of matrix products in forward and backward of a GPT, without recomputation.

    Backward takes each product twice over (Megatron, appendix), but attention two and a half
    times: its scores are computed again. Causal attention counts in full.
    """
    layers, d, words, b, s = (SYMBOLS[name] for name in ("L", "d", "V", "b", "s"))
    products = 3 * 2 * b * s * (12 * layers * d**2 + words * d)
    return products + (4 + 10) * layers * b * s**2 * d


def gpt_activation_bytes() -> Any:
    """Activations of a GPT that backward reads, 16-bit: 34 s b d a layer, and the logits.

    Korthikanti, eq. 2 without the attention matrix, which attention computes again; logits count
    once in 16 and once in 32 bits.
    """
    layers, d, words, b, s = (SYMBOLS[name] for name in ("L", "d", "V", "b", "s"))
    return 34 * s * b * d * layers + 6 * s * b * words


def gpt_layer_bytes() -> Any:
    """The gathered parameters and the gradient of one layer: what stage 3 has beside its shards."""
    d = SYMBOLS["d"]
    return (SYMBOLS["p"] + SYMBOLS["g"]) * (12 * d**2 + 4 * d)


def evaluate(expression: Any, **values: float) -> float:
    """``expression`` with a number for every symbol in it; a whole result is an ``int``.

    Args:
        expression: in ``SYMBOLS``.
        **values: by name; whole numbers and fractions are computed with exactly.
    """
    exact = {SYMBOLS[name]: sympy.Rational(value) for name, value in values.items()}
    result = sympy.sympify(expression).xreplace(exact)
    return int(result) if result.is_Integer else float(result)
