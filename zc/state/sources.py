"""Full checkpoints read slice by slice: dictionaries, torch files, safetensors files."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch

from zc.errors import ShardError

_KINDS = "a .safetensors, .safetensors.index.json or .pt file"


class Source(Protocol):
    """Full tensors by name, of which parts can be read."""

    def keys(self) -> set[str]:
        """Names of what there is."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor ``key``."""
        ...

    def rows(self, key: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` along ``dim`` of the tensor ``key``."""
        ...

    def whole(self, key: str) -> Any:
        """All of ``key``, which need not be a tensor."""
        ...


class DictSource:
    """A dictionary of full tensors, or a torch file mapped into memory."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def keys(self) -> set[str]:
        """Names of what there is."""
        return set(self._values)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor ``key``."""
        return tuple(self._values[key].shape)

    def rows(self, key: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` along ``dim`` of the tensor ``key``."""
        return self._values[key].detach().narrow(dim, start, stop - start)

    def whole(self, key: str) -> Any:
        """All of ``key``."""
        return self._values[key]


class SafetensorsSource:
    """One or several safetensors files; only the bytes asked for are read."""

    def __init__(self, files: Mapping[Path, list[str] | None], stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        for path, keys in files.items():
            opened = stack.enter_context(_safe_open(path))
            self._files |= dict.fromkeys(opened.keys() if keys is None else keys, opened)

    def keys(self) -> set[str]:
        """Names of what there is."""
        return set(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor ``key``."""
        return tuple(self._files[key].get_slice(key).get_shape())

    def rows(self, key: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` along ``dim`` of the tensor ``key``."""
        index = (slice(None),) * dim + (slice(start, stop),)
        return self._files[key].get_slice(key)[index]

    def whole(self, key: str) -> torch.Tensor:
        """All of ``key``."""
        return self._files[key].get_tensor(key)


def open_source(source: Mapping[str, Any] | str | Path, stack: ExitStack) -> Source:
    """Open what ``zc.load_full_state_dict`` was given; files are closed with ``stack``.

    Raises:
        ShardError: for a file that is missing or of a kind that is not known.
    """
    if isinstance(source, Mapping):
        return DictSource(source)
    path = Path(source)
    if not path.is_file():
        raise ShardError(f"{path}: no such file; pass {_KINDS}")
    if path.suffix == ".safetensors":
        return SafetensorsSource({path: None}, stack)
    if path.name.endswith(".safetensors.index.json"):
        return SafetensorsSource(_indexed_files(path), stack)
    if path.suffix in (".pt", ".pth", ".bin"):
        return DictSource(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    raise ShardError(f"{path}: unknown kind of checkpoint; pass {_KINDS}")


def _indexed_files(index: Path) -> dict[Path, list[str] | None]:
    files: dict[Path, list[str] | None] = {}
    for key, name in json.loads(index.read_text())["weight_map"].items():
        keys = files.setdefault(index.parent / name, [])
        assert keys is not None
        keys.append(key)
    return files


def _safe_open(path: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ShardError(f"{path}: reading it needs the package safetensors; install it") from error
    return safe_open(path, framework="pt", device="cpu")
