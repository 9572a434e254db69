"""Passes as ``zc passes`` shows them, from their files: kind, facts, first sentence, options."""

import ast
import inspect

from zc.pipelines.discovery import pass_class, pass_names, summary_of
from zc.pipelines.options import Option, options_of, type_name
from zc.pipelines.yaml_file import scalar_text
from zc.program.pass_base import Pass


def describe_passes() -> str:
    """All passes, one paragraph each, ending in a newline.

    Raises:
        PipelineError: for a file in ``passes/`` that is no pass.
    """
    return "\n".join(describe_pass(name) for name in pass_names())


def describe_pass(name: str) -> str:
    """One pass: its kind, what it does, what it requires and provides, and its options.

    Raises:
        PipelineError: for a file in ``passes/`` that is no pass.
    """
    cls = pass_class(name)
    lines = [f"{name} ({cls.kind})", f"  {summary_of(cls)}"]
    if cls.requires:
        lines.append(f"  requires {', '.join(sorted(cls.requires))}")
    if cls.provides:
        lines.append(f"  provides {', '.join(sorted(cls.provides))}")
    notes = option_notes(cls)
    lines += [_option_line(option, notes) for option in options_of(cls).values()]
    return "\n".join(lines) + "\n"


def option_notes(cls: type[Pass]) -> dict[str, str]:
    """The comment behind each field of ``cls`` in its source, by name of the field."""
    source = inspect.getsource(cls)
    (class_def,) = ast.parse(source).body
    assert isinstance(class_def, ast.ClassDef)
    notes = {}
    for field in class_def.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            line = source.splitlines()[(field.end_lineno or 1) - 1]
            rest = line.encode()[field.end_col_offset :].decode().strip()
            notes[field.target.id] = rest.removeprefix("#").strip()
    return notes


def _option_line(option: Option, notes: dict[str, str]) -> str:
    note = notes.get(option.name)
    default = ", must be given" if option.must_be_given else f" = {scalar_text(option.default)}"
    return f"  {option.name}: {type_name(option.type)}{default}" + (f"  # {note}" if note else "")
