"""Reading and writing the memory of another process of this host: Linux's ``process_vm_readv``.

The kernel copies once, from the other process's pages into this one's, where sockets and shared
memory copy twice. MPI libraries move large messages within a host that way: Cross Memory Attach,
and before it KNEM (Goglin and Moreaud, "KNEM: a generic and scalable kernel-assisted intra-node MPI
communication framework", JPDC 2013). It takes the right to trace the other process: the same user,
and a 0 in ``/proc/sys/kernel/yama/ptrace_scope`` where there is such a file; or CAP_SYS_PTRACE.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from zc.errors import CommunicationError

_AT_ONCE = 1 << 30  # bytes of one call; the kernel takes less than 2 GiB
_PIECES = 1024  # of one call: the kernel's IOV_MAX


@dataclass(frozen=True)
class Span:
    """``nbytes`` at the address ``theirs`` in the other process and at ``ours`` in this one."""

    theirs: int
    ours: int
    nbytes: int


class _Vector(ctypes.Structure):
    """The kernel's ``iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def supported() -> bool:
    """Whether this system has the calls at all; whether they may be used shows in trying."""
    return _call("readv") is not None and _call("writev") is not None


def read(pid: int, spans: Iterable[Span]) -> None:
    """Copy ``spans`` from process ``pid``; other threads of Python run meanwhile.

    Raises:
        CommunicationError: where the process is gone, may not be read, or has no such memory.
    """
    _copy("readv", pid, spans)


def write(pid: int, spans: Iterable[Span]) -> None:
    """Copy ``spans`` to process ``pid``.

    Raises:
        CommunicationError: where the process is gone, may not be written, or has no such memory.
    """
    _copy("writev", pid, spans)


def _copy(name: str, pid: int, spans: Iterable[Span]) -> None:
    call = _call(name)
    if call is None:
        raise CommunicationError(f"this system has no process_vm_{name}")
    for batch in _batches(spans):
        count = len(batch)
        ours = (_Vector * count)(*((span.ours, span.nbytes) for span in batch))
        theirs = (_Vector * count)(*((span.theirs, span.nbytes) for span in batch))
        wanted = sum(span.nbytes for span in batch)
        copied = call(pid, ours, count, theirs, count, 0)
        if copied != wanted:
            why = os.strerror(ctypes.get_errno()) if copied < 0 else f"{copied} were copied"
            raise CommunicationError(
                f"process_vm_{name} of {wanted} bytes with process {pid} failed: {why}"
            )


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """``spans`` in pieces, as many together as one call takes; empty ones left out."""
    batch: list[Span] = []
    nbytes = 0
    for piece in _pieces(spans):
        if len(batch) == _PIECES or (batch and nbytes + piece.nbytes > _AT_ONCE):
            yield batch
            batch, nbytes = [], 0
        batch.append(piece)
        nbytes += piece.nbytes
    if batch:
        yield batch


def _pieces(spans: Iterable[Span]) -> Iterator[Span]:
    for span in spans:
        for start in range(0, span.nbytes, _AT_ONCE):
            length = min(_AT_ONCE, span.nbytes - start)
            yield Span(span.theirs + start, span.ours + start, length)


@cache
def _call(name: str) -> Any:
    call = getattr(ctypes.CDLL(None, use_errno=True), f"process_vm_{name}", None)
    if call is not None:
        vectors = (ctypes.c_void_p, ctypes.c_ulong)
        call.argtypes = (ctypes.c_int, *vectors, *vectors, ctypes.c_ulong)
        call.restype = ctypes.c_ssize_t
    return call
