"""The communication plan: what a function's ranks have agreed to send, in order.

Ranks compile alone. The first capture of a function freezes its plan and publishes it in the
process group's store, first writer wins; every other rank, and every recompile (a new sequence
length), must follow it. A recompile with another plan is accepted only if every rank makes the
same one within ``AGREE_SECONDS``: otherwise a rank would wait in a collective that its peers never
start.
"""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from zc import torch_private
from zc.comm.groups import group_of
from zc.devices.ways import ways_text
from zc.errors import PlanError
from zc.program.program import Program
from zc.verify.agreement import communication_plan

AGREE_SECONDS = 60.0
POLL_SECONDS = 0.01


@dataclass
class Function:
    """One function of one model on ``ranks``: tokens of the parameters it reads, its plans so far.

    ``decisions`` are those of its passes (``zc.program.decisions``).
    """

    key: str
    ranks: list[int]
    params: list[object] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)
    decisions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def reads(self, tokens: Sequence[object]) -> bool:
        """Whether one of ``tokens`` stands for a parameter of this function."""
        return any(token is known for token in tokens for known in self.params)


@dataclass
class _Known:
    """What has been agreed through one store: a new process group agrees anew."""

    store: Any = None
    functions: dict[str, list[Function]] = field(default_factory=dict)


_known = _Known()


def agree(program: Program, tokens: Sequence[object]) -> None:
    """Compare the plan of ``program`` with what this and other ranks compiled before.

    Args:
        program: after its passes.
        tokens: those of the parameters it reads, which tell two models of one class apart.

    Raises:
        PlanError: when ranks disagree, on every rank; the message names the first difference.
    """
    plan = communication_plan(program)
    if not plan or not has_peers():
        return
    lines = [str(entry) for entry in plan]
    if program.device is not None and program.device.ways:
        lines.append(f"ways of {program.device.name}: {ways_text(program.device.ways)}")
    ranks = sorted({r for e in plan for r in dist.get_process_group_ranks(group_of(e.axis))})
    tokens = list(tokens)
    function = find(program, tokens, ranks)
    text = "\n".join(lines)
    if text in function.plans:
        return
    function.params += tokens
    function.plans.append(text)
    number = len(function.plans) - 1
    _compare(f"{function.key}/{number}", lines, program.name, len(ranks), recompile=number > 0)


def has_peers() -> bool:
    """Whether there are other ranks, in other processes."""
    return dist.is_initialized() and dist.get_backend() != "fake"


def token(param: torch.Tensor) -> object:
    """An object that stands for ``param``: weak references would keep ``model.to`` from working."""
    return vars(param).setdefault("_zc_plan_token", object())


def find(program: Program, tokens: Sequence[object], ranks: list[int]) -> Function:
    """The function that ``program`` is a compilation of, a new one if there is none."""
    store = torch_private.default_store()
    if store is not _known.store:
        _known.store, _known.functions = store, {}
    kind = "train" if program.training else "infer"
    base = f"zc/plan/{program.name}/{kind}/{ranks}"
    functions = _known.functions.setdefault(base, [])
    for function in functions:
        if function.reads(tokens) or not (tokens or function.params):
            return function
    function = Function(f"{base}#{len(functions)}", ranks)
    functions.append(function)
    return function


def _compare(key: str, lines: list[str], name: str, world: int, *, recompile: bool) -> None:
    """Publish this rank's plan and wait, for a bounded time, until all ranks have published one.

    A rank that is late with the first plan is waited for by the first collective instead; one that
    does not recompile when this rank does would never start that collective.
    """
    store = torch_private.default_store()
    rank = dist.get_rank()
    packed = zlib.compress("\n".join([str(rank), *lines]).encode()).hex()
    first = _unpack(store.compare_set(key, "", packed).decode())
    if first[1:] != lines:
        store.set(f"{key}/conflict", packed)
    store.add(f"{key}/ranks", 1)
    deadline = time.monotonic() + AGREE_SECONDS
    while store.add(f"{key}/ranks", 0) < world and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if store.check([f"{key}/conflict"]):
        other = _unpack(store.get(f"{key}/conflict").decode())
        raise PlanError(_difference(name, first, other))
    published = store.add(f"{key}/ranks", 0)
    if recompile and published < world:
        raise PlanError(
            f"{name}: rank {rank} recompiled with a different communication plan and only "
            f"{published} of {world} ranks did so within {AGREE_SECONDS:.0f} s; a branch on local "
            f"data decides which parameters are used: take it out of the compiled function, or "
            f"make it the same on every rank"
        )


def _unpack(packed: str) -> list[str]:
    """A published plan: the rank that published it, then its collectives."""
    return zlib.decompress(bytes.fromhex(packed)).decode().splitlines()


def _difference(name: str, ours: list[str], theirs: list[str]) -> str:
    (one, *left), (other, *right) = ours, theirs
    at = next(i for i in range(max(len(left), len(right))) if left[i : i + 1] != right[i : i + 1])
    here = left[at] if at < len(left) else "nothing more"
    there = right[at] if at < len(right) else "nothing more"
    return (
        f"{name}: ranks compiled different programs; collective {at} is {here} on rank {one} and "
        f"{there} on rank {other}; make every rank run the same modules in the same order (a "
        f"branch on local data must not decide which parameters are used)"
    )
