"""Compiled regions on disk, by content: one file each, that is whole or not there.

    zc-region 1 <sha256 of the rest>
    <what torch_private.region_bytes made>

A file is written under another name first, so a writer that is killed leaves nothing that counts.
One that does not hold what its first line promises is not read; the region is compiled again and
the file written anew.
"""

import hashlib
import tempfile
import warnings
from pathlib import Path

from zc import torch_private
from zc.errors import ExecutionError

FORMAT = b"zc-region 1"


def region_folder() -> Path:
    """Where regions lie: beside what they refer to, in Inductor's folder."""
    folder = torch_private.inductor_folder() / "zc-regions"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def inode(path: Path) -> int:
    """A number for the file that is at ``path``, another one when it is replaced; 0 for none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def read_region(path: Path) -> bytes:
    """What was written to ``path``.

    Raises:
        ExecutionError: where that cannot be read, or not all of it is there.
    """
    try:
        first, _, data = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise ExecutionError(f"it cannot be read: {error.strerror}") from error
    if first != FORMAT + b" " + _digest(data):
        raise ExecutionError("it is damaged, or of another version")
    return data


def write_region(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, at once; a disk that takes no more is none of the step's."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(FORMAT + b" " + _digest(data) + b"\n" + data)
        Path(file.name).replace(path)
    except OSError as error:
        warnings.warn(f"{path} cannot be written: {error.strerror}", stacklevel=2)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
