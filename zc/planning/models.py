"""What ``zc plan`` is asked about: a Python callable, or a Hugging Face config.

mine:build                 calls build(), which returns a model
llama                      a model type of transformers, with --set for its config
config.json                a Hugging Face config
"""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zc.errors import PipelineError
from zc.pipelines.located import nearest
from zc.pipelines.yaml_file import scalar_value

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A model to plan for.

    Attributes:
        name: as it was asked for.
        build: makes the model; called under the meta device.
        inputs: example inputs of so many sequences of so many tokens, from the model.
        loss: the loss of a model on its inputs.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int, int], Inputs]
    loss: Callable[[nn.Module, Inputs], torch.Tensor]


def subject_of(spec: str, overrides: list[str]) -> Subject:
    """The model that ``spec`` means; ``overrides`` are settings of a Hugging Face config.

    Raises:
        PipelineError: for a module, function, config or setting that is not there.
    """
    if ":" in spec:
        return Subject(spec, callable_of(spec), example_inputs, loss_of)
    config = huggingface_config(spec, overrides)
    return Subject(spec, lambda: _from_config(config), _tokens_and_labels, _huggingface_loss)


def callable_of(spec: str) -> Callable[[], nn.Module]:
    """The function that ``module:name`` means; modules are looked for in the working directory too.

    Raises:
        PipelineError: when there is no such module, or no such function in it.
    """
    where, _, name = spec.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(where)
    except ImportError as error:
        raise PipelineError(f"{spec}: cannot import '{where}': {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise PipelineError(f"{spec}: no function '{name}' in {where}{nearest(name, names)}")
    return found


def example_inputs(model: nn.Module, batch: int, sequence: int) -> Inputs:
    """What ``model.example_inputs(batch, sequence)`` returns; tokens and targets without it."""
    own = getattr(model, "example_inputs", None)
    if own is not None:
        return tuple(own(batch, sequence))
    tokens = torch.zeros(batch, sequence, dtype=torch.int64)
    return tokens, tokens.clone()


def loss_of(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """``model(*inputs)``, or its ``loss``."""
    result = model(*inputs)
    return result if isinstance(result, torch.Tensor) else result.loss


def huggingface_config(spec: str, overrides: list[str]) -> Any:
    """The config in the JSON file ``spec``, or of the model type ``spec``.

    Raises:
        PipelineError: without transformers, for a file that is no config and for an unknown type.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise PipelineError(
            f"{spec}: a Hugging Face model needs transformers: pip install 'zc[examples]'; or give "
            f"a Python function as module:name"
        ) from error
    settings = _read_json(spec) if spec.endswith(".json") else {"model_type": spec}
    settings |= dict(map(_override, overrides))
    kind = settings.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **settings)
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{spec}: transformers knows no model type '{kind}' with these settings; name one such "
            f"as llama, a .json file, gpt:7.5B, or a Python function as module:name"
        ) from error


def _read_json(path: str) -> dict[str, Any]:
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PipelineError(f"{path}: not JSON: {error}") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise PipelineError(f"{path}: no Hugging Face config: it has no 'model_type'")
    return settings


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise PipelineError(f"--set {text}: write key=value, as in --set num_hidden_layers=2")
    return key, scalar_value(value)


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    config.use_cache = False
    return AutoModelForCausalLM.from_config(config)


def _tokens_and_labels(model: nn.Module, batch: int, sequence: int) -> Inputs:
    return (torch.zeros(batch, sequence, dtype=torch.int64),)


def _huggingface_loss(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    (tokens,) = inputs
    return model(input_ids=tokens, labels=tokens).loss
