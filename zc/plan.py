"""The communication plan: what a function's ranks have agreed to send, in order.

Ranks compile alone. The first capture of a function freezes its plan and publishes it in the
process group's store, first writer wins; every other rank, and every recompile (a new sequence
length), must follow it. A recompile with another plan is accepted only if every rank makes the
same one within ``AGREE_SECONDS``: otherwise a rank would wait in a collective that its peers never
start.
"""

import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from zc import torch_private
from zc.errors import PlanError
from zc.program.program import Program
from zc.verify.agreement import communication_plan

AGREE_SECONDS = 60.0
POLL_SECONDS = 0.01


@dataclass
class _Function:
    """One function of one model: the parameters it reads and the plans it has had."""

    key: str
    params: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)

    def reads(self, params: Sequence[torch.Tensor]) -> bool:
        """Whether one of ``params`` is a parameter of this function, still alive."""
        known = {id(p) for ref in self.params if (p := ref()) is not None}
        return any(id(param) in known for param in params)


_functions: dict[str, list[_Function]] = {}


def agree(program: Program, params: Sequence[torch.Tensor]) -> None:
    """Compare the plan of ``program`` with what this and other ranks compiled before.

    Args:
        program: after its passes.
        params: the parameters it reads, which tell two models of one class apart.

    Raises:
        PlanError: when ranks disagree, on every rank; the message names the first difference.
    """
    if not dist.is_initialized() or dist.get_backend() == "fake":
        return
    lines = [str(entry) for entry in communication_plan(program)]
    function = _find(program, params)
    text = "\n".join(lines)
    if not lines or text in function.plans:
        return
    function.params += [weakref.ref(p) for p in params]
    function.plans.append(text)
    number = len(function.plans) - 1
    _compare(f"{function.key}/{number}", lines, program.name, recompile=number > 0)


def _find(program: Program, params: Sequence[torch.Tensor]) -> _Function:
    base = f"zc/plan/{program.name}/{'train' if program.training else 'infer'}"
    known = _functions.setdefault(base, [])
    for function in known:
        if function.reads(params):
            return function
    function = _Function(f"{base}#{len(known)}")
    known.append(function)
    return function


def _compare(key: str, lines: list[str], name: str, *, recompile: bool) -> None:
    """Publish this rank's plan and wait, for a bounded time, until all ranks have published one.

    A rank that is late with the first plan is waited for by the first collective instead; one that
    does not recompile when this rank does would never start that collective.
    """
    store = torch_private.default_store()
    world, rank = dist.get_world_size(), dist.get_rank()
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
