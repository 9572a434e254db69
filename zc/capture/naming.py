"""The name of a captured piece: ``train.py:12 step``."""

from pathlib import Path
from typing import Any

from torch import fx

from zc import torch_private

_RESUME = "torch_dynamo_resume_in_"


def _module_class(module: fx.GraphModule) -> str:
    stacks = [n.meta.get("nn_module_stack") for n in module.graph.nodes]
    outermost = next((next(iter(stack.values())) for stack in stacks if stack), None)
    return "module" if outermost is None else str(outermost[1]).rstrip("'>").rpartition(".")[2]


def function_name(module: fx.GraphModule) -> str:
    """File, line and name of the function that Dynamo is compiling, without folders.

    A piece behind a graph break is named after the function and the line where it resumes.
    """
    code: Any = torch_private.code_being_compiled()
    if code is None:
        return type(module).__name__
    if code.co_filename.endswith(
        "external_utils.py"
    ):  # torch's own wrapper around a torch.nn class
        return f"{_module_class(module)}.forward"
    name = code.co_name
    line = code.co_firstlineno
    if name.startswith(_RESUME):
        name, _, at = name.removeprefix(_RESUME).rpartition("_at_")
        return f"{Path(code.co_filename).name}:{at} {name} (resumed)"
    return f"{Path(code.co_filename).name}:{line} {getattr(code, 'co_qualname', name)}"
