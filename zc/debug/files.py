"""Where dumps are written: one folder per program, whole files only."""

import os
import re
import tempfile
from pathlib import Path

from zc.errors import ZcError
from zc.text import slug_of

_OURS = re.compile(r"pipeline\.yaml|report\.(json|html)|\d\d+-\w+\.(ir|diff|dot|svg)")
_taken: set[Path] = set()


def check_writable(directory: Path) -> None:
    """Make ``directory`` and try to write in it.

    Raises:
        ZcError: when that fails.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".probe-", dir=directory)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise ZcError(_cannot_write(directory, error)) from error


def program_folder(directory: Path, name: str) -> Path:
    """A folder of its own for the program ``name``: ``DIR/slug``, then ``DIR/slug-2`` and so on.

    Counting begins anew in each process; the files of an earlier dump that lies there are removed.

    Raises:
        ZcError: when it cannot be made.
    """
    slug, number = slug_of(name), 1
    folder = directory.absolute() / slug
    while folder in _taken:
        number += 1
        folder = directory.absolute() / f"{slug}-{number}"
    _taken.add(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if _OURS.fullmatch(old.name):
                old.unlink()
    except OSError as error:
        raise ZcError(_cannot_write(folder, error)) from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` at once: readers see the old file or the new one.

    Raises:
        ZcError: when it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ZcError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"cannot write the dump '{path}': {error.strerror or error}; name a folder that can be "
        f"written in options={{'dump': DIR}} or ZC_DUMP, or leave both out"
    )
