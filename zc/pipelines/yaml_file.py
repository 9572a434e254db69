"""YAML text to a tree of values with line numbers.

Only what a pass pipeline needs: mappings, lists and scalars of one document. Anchors, aliases,
tags, merge keys and duplicate keys are refused. Scalars follow YAML 1.2, not 1.1: ``true`` and
``false`` are the only booleans, numbers are decimal, everything else is text.
"""

import re
from typing import Any

import yaml

from zc.errors import PipelineError
from zc.pipelines.located import Located, show

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_MAX_DEPTH = 20


def parse_yaml(text: str, source: str) -> Located:
    """The one document in ``text``; places read ``source:line``.

    Raises:
        PipelineError: for text that is not YAML, is empty, or uses more of YAML than allowed here.
    """
    try:
        _refuse_extras(text, source)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line, problem = _problem(error, text)
        raise PipelineError(f"{source}:{line}: not valid YAML: {problem}") from error
    if root is None:
        raise PipelineError(f"{source}:1: empty file; write at least a list of passes")
    return _tree(root, source, _line(root))


def scalar_value(text: str) -> Any:
    """What the plain scalar ``text`` stands for: nothing, a boolean, a number or text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def scalar_text(value: Any) -> str:
    """``value`` as the canonical scalar that reads back as it."""
    if not isinstance(value, str):
        return "null" if value is None else show(value)
    if isinstance(scalar_value(value), str) and _is_plain(value):
        return value
    quoted = yaml.dump(value, default_style='"', width=2**31, allow_unicode=True)
    return quoted.removesuffix("\n")


def _is_plain(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", text) is not None


def _refuse_extras(text: str, source: str) -> None:
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        problem = _refusal(event, depth, documents)
        if problem:
            raise PipelineError(f"{source}:{event.start_mark.line + 1}: {problem}")


def _refusal(event: yaml.Event, depth: int, documents: int) -> str:
    """Why a pass pipeline may not contain ``event``; empty when it may."""
    if isinstance(event, yaml.AliasEvent):
        return f"alias '*{event.anchor}'; write the value out, aliases are not supported"
    anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
    if anchor is not None:
        return f"anchor '&{anchor}'; anchors are not supported"
    if tag is not None:
        return f"tag '{tag}'; tags are not supported"
    if documents > 1:
        return "a second document; another pass pipeline is another file"
    return f"nested more than {_MAX_DEPTH} deep" if depth > _MAX_DEPTH else ""


def _problem(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return error.problem_mark.line + 1, str(error.problem)
    position = getattr(error, "position", 0)
    return text[:position].count("\n") + 1, f"character {text[position]!r} is not allowed"


def _tree(node: yaml.Node, source: str, line: int) -> Located:
    where = f"{source}:{line}"
    if isinstance(node, yaml.ScalarNode):
        return Located(scalar_value(node.value) if node.style is None else node.value, where)
    if isinstance(node, yaml.SequenceNode):
        return Located([_tree(item, source, _line(item)) for item in node.value], where)
    entries: dict[str, Located] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, source, entries)
        entries[key] = _tree(value_node, source, _line(key_node))
    return Located(entries, where)


def _key(node: yaml.Node, source: str, entries: dict[str, Located]) -> str:
    place = _tree(node, source, _line(node))
    if not isinstance(place.value, str):
        raise place.fail(f"a key must be text; got {show(place.value)}")
    if place.value == "<<":
        raise place.fail("merge key '<<'; write the options out, merge keys are not supported")
    if place.value in entries:
        raise place.fail(
            f"key '{place.value}' appears twice; it is already at {entries[place.value].where}"
        )
    return place.value


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
