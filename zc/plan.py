"""The communication plan: what a function's ranks have agreed to send, in order.

Ranks compile alone. The first capture of a function freezes its plan and publishes it in the
process group's store, first writer wins; every other rank, and every recompile (a new sequence
length), must follow it. A recompile with another plan is accepted only if every rank makes the
same one within ``AGREE_SECONDS``: otherwise a rank would wait in a collective that its peers never
start.
"""

import time
import zlib
from dataclasses import dataclass, field

import torch.distributed as dist

from zc import torch_private
from zc.errors import PlanError
from zc.program.program import Program
from zc.verify.agreement import communication_plan

AGREE_SECONDS = 60.0


@dataclass
class _Function:
    """One function of one model: the parameters it reads and the plans it has had."""

    params: set[str]
    key: str
    plans: list[str] = field(default_factory=list)


_functions: dict[str, list[_Function]] = {}


def agree(program: Program, param_ids: set[str]) -> None:
    """Compare the plan of ``program`` with what this and other ranks compiled before.

    Args:
        program: after its passes.
        param_ids: identities of the parameters it reads, to tell two models of one class apart.

    Raises:
        PlanError: when ranks disagree; the message names the first collective that differs.
    """
    if not dist.is_initialized() or dist.get_backend() == "fake":
        return
    text = "\n".join(str(entry) for entry in communication_plan(program))
    function = _find(program, param_ids)
    if text in function.plans:
        return
    function.params |= param_ids
    function.plans.append(text)
    number = len(function.plans) - 1
    key = f"{function.key}/{number}"
    _publish(key, text, program.name)
    if number > 0:
        _wait_for_all(key, program.name)


def _find(program: Program, param_ids: set[str]) -> _Function:
    base = f"zc/plan/{program.name}/{'train' if program.training else 'infer'}"
    known = _functions.setdefault(base, [])
    for function in known:
        if function.params & param_ids:
            return function
    function = _Function(set(param_ids), f"{base}#{len(known)}")
    known.append(function)
    return function


def _publish(key: str, text: str, name: str) -> None:
    store = torch_private.default_store()
    packed = zlib.compress(text.encode()).hex()
    published = store.compare_set(key, "", packed).decode()
    store.add(f"{key}/ranks", 1)
    if published == packed:
        return
    theirs = zlib.decompress(bytes.fromhex(published)).decode().splitlines()
    raise PlanError(_difference(name, text.splitlines(), theirs))


def _difference(name: str, ours: list[str], theirs: list[str]) -> str:
    longest = max(len(ours), len(theirs))
    at = next(i for i in range(longest) if ours[i : i + 1] != theirs[i : i + 1])
    here = ours[at] if at < len(ours) else "nothing more"
    there = theirs[at] if at < len(theirs) else "nothing more"
    return (
        f"{name}: ranks compiled different programs; collective {at} is {here} on rank "
        f"{dist.get_rank()} and {there} on another; make every rank run the same modules in the "
        f"same order (a branch on local data must not decide which parameters are used)"
    )


def _wait_for_all(key: str, name: str) -> None:
    """Wait, for a bounded time, until every rank has made this recompile too."""
    store = torch_private.default_store()
    world = dist.get_world_size()
    deadline = time.monotonic() + AGREE_SECONDS
    while store.add(f"{key}/ranks", 0) < world:
        if time.monotonic() > deadline:
            raise PlanError(
                f"{name}: this rank recompiled with a different communication plan and only "
                f"{store.add(f'{key}/ranks', 0)} of {world} ranks did the same within "
                f"{AGREE_SECONDS:.0f} s; a branch on local data decides which parameters are used: "
                f"take it out of the compiled function, or make it the same on every rank"
            )
        time.sleep(0.05)
