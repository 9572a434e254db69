"""From a tree of located values to passes: what both YAML files and Python lists go through."""

from typing import NamedTuple

from zc.pipelines.contract import check_order
from zc.pipelines.discovery import pass_class, pass_names
from zc.pipelines.located import Located, nearest, show
from zc.pipelines.options import make_pass
from zc.program.pass_base import Pass


class WrittenPass(NamedTuple):
    """One item of a list of passes: the pass, the options its author spelled out, and its place."""

    item: Pass
    spelled: tuple[str, ...]
    where: str


def read_passes(place: Located) -> list[WrittenPass]:
    """The passes of the list at ``place``, checked one by one and against each other.

    Raises:
        PipelineError: for anything that is wrong with the list, located.
    """
    if not isinstance(place.value, list):
        raise place.fail(f"passes must be a list; got {show(place.value)}")
    if not place.value:
        raise place.fail("passes is empty; list at least one, 'zc passes' shows them")
    written = [_read_item(item) for item in place.value]
    check_order(tuple(w.item for w in written), tuple(w.where for w in written))
    return written


def _read_item(place: Located) -> WrittenPass:
    if isinstance(place.value, Pass):
        return WrittenPass(place.value, (), place.where)
    name, options = _name_and_options(place)
    if name not in pass_names():
        hint = nearest(name, pass_names()) or "; 'zc passes' lists them"
        raise place.fail(f"no pass named '{name}'{hint}")
    item = make_pass(pass_class(name), name, options, place.where)
    return WrittenPass(item, tuple(options), place.where)


def _name_and_options(place: Located) -> tuple[str, dict[str, Located]]:
    value = place.value
    if isinstance(value, str):
        return value, {}
    shape = "an item of passes is a name or one 'name: {options}'"
    if not isinstance(value, dict):
        raise place.fail(f"{shape}; got {show(value)}")
    if len(value) != 1:
        keys = " and ".join(show(key) for key in value) or "no key"
        raise place.fail(f"{shape}; got {keys} (indent options deeper than the name)")
    ((name, options),) = value.items()
    if not isinstance(options.value, dict):
        got = show(options.value)
        raise options.fail(f"options of '{name}' must be a mapping, {{option: value}}; got {got}")
    return name, options.value
