"""Finds passes by file: ``zc.passes.shard_params`` holds the class ``ShardParams``.

There is no registry: a file in ``passes/`` is a pass.
"""

import importlib
import pkgutil
import re
from types import ModuleType

import zc.passes
from zc.errors import PipelineError
from zc.pipelines.options import options_of
from zc.program.pass_base import Pass

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")


def pass_names() -> tuple[str, ...]:
    """The names of all passes, sorted."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(zc.passes.__path__)))


def pass_class(name: str) -> type[Pass]:
    """The class of the pass called ``name``.

    Raises:
        PipelineError: when the module does not hold exactly that one pass.
    """
    if not _NAME.fullmatch(name):
        raise PipelineError(
            f"zc.passes.{name}: the name of a pass is words of lower-case letters and digits, each "
            f"beginning with a letter, joined by '_'"
        )
    module = importlib.import_module(f"zc.passes.{name}")
    wanted = class_name(name)
    found = [cls.__name__ for cls in _passes_in(module)]
    if found != [wanted]:
        raise PipelineError(
            f"zc.passes.{name} must define one pass, class {wanted}; "
            f"it defines {', '.join(found) or 'none'}"
        )
    return _checked(getattr(module, wanted), name)


def class_name(name: str) -> str:
    """``ShardParams`` for ``shard_params``."""
    return "".join(word.capitalize() for word in name.split("_"))


def summary_of(cls: type[Pass]) -> str:
    """The first paragraph of the docstring of the module of ``cls``, on one line."""
    doc = importlib.import_module(cls.__module__).__doc__ or ""
    return " ".join(doc.strip().split("\n\n")[0].split())


def _passes_in(module: ModuleType) -> list[type[Pass]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Pass)
        and value.__module__ == module.__name__
    ]


def _checked(cls: type[Pass], name: str) -> type[Pass]:
    params = vars(cls).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise PipelineError(f"zc.passes.{name}: class {cls.__name__} must be a frozen dataclass")
    options_of(cls)
    return cls
