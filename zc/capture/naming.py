"""The name of a captured piece: ``train.py:12 step``."""

from pathlib import Path
from typing import Any

from torch import fx

from zc import torch_private

_RESUME = "torch_dynamo_resume_in_"


def function_name(module: fx.GraphModule) -> str:
    """File, line and name of the function that Dynamo is compiling, without folders.

    A piece behind a graph break is named after the function and the line where it resumes.
    """
    code: Any = torch_private.code_being_compiled()
    if code is None:
        return type(module).__name__
    name = code.co_name
    line = code.co_firstlineno
    if name.startswith(_RESUME):
        name, _, at = name.removeprefix(_RESUME).rpartition("_at_")
        return f"{Path(code.co_filename).name}:{at} {name} (resumed)"
    return f"{Path(code.co_filename).name}:{line} {getattr(code, 'co_qualname', name)}"
