"""Pass pipelines: an ordered list of passes with their options, read from YAML or from Python.

    name: zero3
    executor: inductor
    cuda_graph: true          # optional, on GPUs: replay recorded launches
    memory_cap: 70GB          # optional
    device: h100              # optional: a built-in name or the path of a device file
    passes:
      - shard_params: {zero_stage: 3, persist_below: 100KB}
      - clean_graph

A canonically written file, like this one, prints again as it was read.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zc.errors import PipelineError
from zc.pipelines.contract import check_order
from zc.pipelines.located import Located, from_python, nearest, show
from zc.pipelines.options import options_of, read_at
from zc.pipelines.reader import read_passes
from zc.pipelines.yaml_file import parse_yaml, scalar_text
from zc.program.pass_base import Pass
from zc.program.units import Bytes

Executor = Literal["inductor", "interpret"]

_BUILTIN = Path(__file__).parent / "builtin"
_SETTINGS = {
    "name": str, "executor": Executor, "cuda_graph": bool | None, "memory_cap": Bytes | None,
    "device": str | None,
}  # fmt: skip
_KEYS = (*_SETTINGS, "passes")
_SUFFIXES = (".yaml", ".yml")
_IN_PYTHON = "pass pipeline"


@dataclass(frozen=True)
class PassPipeline:
    """An ordered list of passes and how their result is run.

    Attributes:
        name: what reports and dumps call it.
        executor: ``inductor`` compiles the regions of a program, ``interpret`` runs its nodes.
        passes: run from first to last.
        memory_cap: peak bytes that the verifier allows a program; ``None`` for no cap.
        device: what passes that weigh costs reckon with: a built-in name or the path of a device
            file; ``None`` for the one that suits where the program's parameters are.
        cuda_graph: whether what the executor launches is recorded, and replayed at later calls.
        spelled: for each pass, the options that its author wrote out, defaults included.

    Raises:
        PipelineError: for a setting of wrong type, and for passes that do not fit together.
    """

    name: str
    executor: Executor
    passes: tuple[Pass, ...]
    memory_cap: Bytes | None = None
    device: str | None = None
    cuda_graph: bool | None = None
    spelled: tuple[tuple[str, ...], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for key in _SETTINGS:
            read_at(Located(getattr(self, key), _IN_PYTHON), _SETTINGS[key], key)
        check_order(self.passes)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "PassPipeline":
        """The pass pipeline in the YAML file at ``path``; its name is by default the file's.

        Raises:
            PipelineError: for a file that cannot be read and for everything wrong in it, by line.
        """
        return _read(parse_yaml(_text_of(path), str(path)), Path(path).stem)

    @staticmethod
    def from_list(items: Sequence[Any], name: str = "custom") -> "PassPipeline":
        """A pass pipeline from passes, names and ``{name: {option: value}}``, as a list in YAML.

        Raises:
            PipelineError: for everything wrong in the list, located as ``passes[1]``.
        """
        return _read(Located({"passes": from_python(list(items), _IN_PYTHON)}, _IN_PYTHON), name)

    @staticmethod
    def builtin(name: str) -> "PassPipeline":
        """The pass pipeline that ships under ``name``: ``zero0`` to ``zero3``.

        Raises:
            PipelineError: for any other name.
        """
        if name not in builtin_names():
            raise PipelineError(
                f"no built-in pass pipeline named '{name}'; "
                f"there are {', '.join(builtin_names())}; the name of a file ends in .yaml or .yml"
            )
        return PassPipeline.load(_BUILTIN / f"{name}.yaml")

    @staticmethod
    def resolve(spec: Any) -> "PassPipeline":
        """The pass pipeline that ``spec`` means.

        Args:
            spec: a built-in name, a path that ends in .yaml or .yml, a list as in YAML, a
                dictionary that reads like a whole file, or a pass pipeline.

        Raises:
            PipelineError: for anything else, and for what is wrong in it.
        """
        if isinstance(spec, PassPipeline):
            return spec
        if isinstance(spec, os.PathLike) or (isinstance(spec, str) and spec.endswith(_SUFFIXES)):
            return PassPipeline.load(spec)
        if isinstance(spec, str):
            return PassPipeline.builtin(spec)
        if isinstance(spec, list | tuple):
            return PassPipeline.from_list(spec)
        if isinstance(spec, Mapping):
            return _read(from_python(spec, _IN_PYTHON), "custom")
        raise PipelineError(
            f"{_IN_PYTHON}: got {show(spec)}; give a built-in name ({', '.join(builtin_names())}), "
            f"a path that ends in .yaml, or a list of passes"
        )

    def to_yaml(self) -> str:
        """Canonical text: options that were spelled out or differ from their defaults."""
        settings = [(key, getattr(self, key)) for key in _SETTINGS]
        lines = [f"{key}: {scalar_text(value)}" for key, value in settings if value is not None]
        known = len(self.spelled) == len(self.passes)
        spelled = self.spelled if known else ((),) * len(self.passes)
        items = [_print_pass(*pair) for pair in zip(self.passes, spelled, strict=True)]
        return "\n".join([*lines, "passes:", *items]) + "\n"


def builtin_names() -> tuple[str, ...]:
    """The names of the pass pipelines that ship with zc, sorted."""
    return tuple(sorted(path.stem for path in _BUILTIN.glob("*.yaml")))


def _text_of(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: no such file; the built-in pass pipelines are {', '.join(builtin_names())}"
        ) from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not UTF-8 text at byte {error.start}") from error


def _read(root: Located, default_name: str) -> PassPipeline:
    if not isinstance(root.value, dict):
        raise root.fail(f"expected a mapping with {', '.join(_KEYS)}; got {show(root.value)}")
    for key, place in root.value.items():
        if key not in _KEYS:
            hint = nearest(key, _KEYS) or f"; the keys are {', '.join(_KEYS)}"
            raise place.fail(f"unknown key '{key}'{hint}")
    if "passes" not in root.value:
        raise root.fail("no passes; add a list under 'passes:', 'zc passes' shows them")
    settings: dict[str, Any] = {"name": default_name, "executor": "inductor"}
    settings |= {k: read_at(v, _SETTINGS[k], k) for k, v in root.value.items() if k in _SETTINGS}
    written = read_passes(root.value["passes"])
    passes = tuple(w.item for w in written)
    return PassPipeline(passes=passes, spelled=tuple(w.spelled for w in written), **settings)


def _print_pass(item: Pass, spelled: tuple[str, ...]) -> str:
    options = options_of(type(item))
    changed = [o.name for o in options.values() if getattr(item, o.name) != o.default]
    kept = [name for name in spelled if name in options]
    names = [*kept, *(name for name in changed if name not in kept)]
    if not names:
        return f"  - {item.name}"
    values = ", ".join(f"{name}: {scalar_text(getattr(item, name))}" for name in names)
    return f"  - {item.name}: {{{values}}}"
