"""Decisions about communication that depend on a rank: made by one rank once, followed by all.

Passes weigh memory and time (``zc.program.decisions``) by the sizes of a batch and, where the pass
pipeline names no device file, by the device and the node that a rank finds itself on; ranks may
have others. Where they have the same, each decides for itself, and the same. Where not, the first
rank decides: the others wait for what it publishes in the process group's store. A recompile, for
a batch of another size, follows what was decided at first, so that it starts the same collectives
as ranks that have nothing to recompile.

Whoever follows holds what it needs for that in memory, whatever it would have decided: a memory cap
is checked at the end as always. What is waited for is waited for ``AGREE_SECONDS`` at most; then a
rank decides alone, and ``zc.plan`` compares.
"""

import json
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from zc import torch_private
from zc.comm.groups import group_of
from zc.devices.default import default_device
from zc.plan import AGREE_SECONDS, POLL_SECONDS, Function, find, has_peers
from zc.program.collectives import hint
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.program import Program


def adopt(program: Program, tokens: Sequence[object], *, own_device: bool) -> None:
    """Note in ``program``, before its passes, what they must follow.

    Args:
        program: as captured.
        tokens: those of the parameters it reads, see ``zc.plan``.
        own_device: whether each rank finds its device itself: the pass pipeline names none.

    Raises:
        PipelineError: where ``LOCAL_WORLD_SIZE`` is no number of ranks.
    """
    function = _function(program, tokens)
    if function is None:
        return
    if not function.plans and not function.decisions:
        function.decisions |= _of_first_rank(function, facts_of(program, own_device=own_device))
    function.params += tokens
    program.decisions |= function.decisions


def publish(program: Program, tokens: Sequence[object]) -> None:
    """Keep what the passes of ``program`` have decided, for other ranks and for recompiles."""
    function = _function(program, tokens)
    if function is None:
        return
    if not function.plans and dist.get_rank() == function.ranks[0]:
        store = torch_private.default_store()
        store.set(f"{function.key}/decisions", json.dumps(program.decisions))
    function.decisions |= program.decisions


def facts_of(program: Program, *, own_device: bool) -> str:
    """What decisions depend on and may differ by rank, a line each.

    The sizes of what is neither a parameter nor state; with ``own_device``, also the device.
    """
    given = [n for n in program.placeholders() if input_of(n).kind not in ("param", "state")]
    lines = []
    for node in given:
        value = value_of(node)
        shapes = [[hint(size) for size in tensor.shape] for tensor in tensors_of(node)]
        lines.append(str(hint(value)) if isinstance(value, torch.SymInt) else str(shapes))
    if own_device:
        device = default_device(program)
        lines.append(f"{device.name}, {device.ranks_per_node} ranks per node")
    return "\n".join(lines)


def _function(program: Program, tokens: Sequence[object]) -> Function | None:
    """The function that decisions are for; ``None`` where there is nobody to agree with."""
    params = program.params.values()
    reduces = program.training and any(param.trainable for param in params)
    if not has_peers() or not (reduces or any(not p.layout.replicated for p in params)):
        return None  # it starts no collective
    axes = [axis for axis, _ in program.mesh.axes]
    ranks = sorted({r for axis in axes for r in dist.get_process_group_ranks(group_of(axis))})
    return find(program, tokens, ranks) if len(ranks) > 1 else None


def _of_first_rank(function: Function, facts: str) -> dict[str, tuple[int, ...]]:
    """What the first rank has decided, where it decides by other ``facts`` than this rank."""
    store = torch_private.default_store()
    if dist.get_rank() == function.ranks[0]:
        store.set(f"{function.key}/facts", facts)
        return {}
    if not _waited(f"{function.key}/facts"):
        return {}
    if store.get(f"{function.key}/facts").decode() == facts:
        return {}
    if not _waited(f"{function.key}/decisions"):
        return {}
    decisions = json.loads(store.get(f"{function.key}/decisions"))
    return {key: tuple(numbers) for key, numbers in decisions.items()}


def _waited(key: str) -> bool:
    """Whether ``key`` has come within ``AGREE_SECONDS``."""
    store = torch_private.default_store()
    deadline = time.monotonic() + AGREE_SECONDS
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
