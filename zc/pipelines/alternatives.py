"""Pass pipelines near a given one, which may need less memory.

shard_params {zero_stage: 3}
without bucket_collectives
with recompute_activations
"""

from collections.abc import Iterator
from dataclasses import fields, replace

from zc.errors import PipelineError
from zc.pipelines.contract import check_order
from zc.pipelines.discovery import pass_class, pass_names
from zc.pipelines.yaml_file import scalar_text
from zc.program.pass_base import Pass
from zc.program.units import Bytes

Passes = tuple[Pass, ...]
ADDABLE = (
    "fuse_update", "recompute_pointwise", "recompute_activations", "offload_optimizer",
    "offload_activations",
)  # fmt: skip
_SHARED_BETWEEN_RANKS = (2, 3)


def alternatives(passes: Passes) -> Iterator[tuple[str, Passes]]:
    """What to change in ``passes``, as text, and the passes after the change; none that clash."""
    for text, changed in _candidates(passes):
        try:
            check_order(changed)
        except PipelineError:
            continue
        yield text, changed


def _candidates(passes: Passes) -> Iterator[tuple[str, Passes]]:
    for index, item in enumerate(passes):
        zero_stage = getattr(item, "zero_stage", None)
        for more in _SHARED_BETWEEN_RANKS:
            if zero_stage in (1, 2) and more > zero_stage:
                yield from _changed(passes, index, zero_stage=more)
        for option in fields(item):
            value = getattr(item, option.name)
            if isinstance(value, Bytes) and value:
                yield from _changed(passes, index, **{option.name: Bytes(value // 4)})
    for index, item in enumerate(passes):
        if item.kind == "optional":
            yield f"without {item.name}", (*passes[:index], *passes[index + 1 :])
    names = {item.name for item in passes}
    for name in ADDABLE:
        if name in pass_names() and name not in names:
            yield from _with(passes, name)


def _changed(passes: Passes, index: int, **options: int) -> Iterator[tuple[str, Passes]]:
    item = replace(passes[index], **options)
    values = ", ".join(f"{key}: {scalar_text(getattr(item, key))}" for key in options)
    yield f"{item.name} {{{values}}}", (*passes[:index], item, *passes[index + 1 :])


def _with(passes: Passes, name: str) -> Iterator[tuple[str, Passes]]:
    """``name`` with its default options, behind the last pass that is required."""
    try:
        added = pass_class(name)()
    except TypeError:
        return  # an option of it must be given
    required = [index for index, item in enumerate(passes) if item.kind == "required"]
    place = required[-1] + 1 if required else 0
    yield f"with {name}", (*passes[:place], added, *passes[place:])
