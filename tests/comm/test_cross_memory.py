"""Reading and writing another process's memory: tried on this very process, and on none."""

import os
import subprocess
import sys

import pytest
import torch

from zc.comm import cross_memory
from zc.comm.cross_memory import Span, read, supported, write
from zc.errors import CommunicationError

pytestmark = pytest.mark.skipif(not supported(), reason="process_vm_readv is Linux's")


def spans_of(theirs: torch.Tensor, ours: torch.Tensor, pieces: int) -> list[Span]:
    """``pieces`` equal spans of two int64 vectors, and an empty one between them."""
    size = 8 * theirs.numel() // pieces
    starts = range(0, 8 * theirs.numel(), size)
    found = [Span(theirs.data_ptr() + at, ours.data_ptr() + at, size) for at in starts]
    return [*found[:1], Span(0, 0, 0), *found[1:]]


@pytest.mark.parametrize("pieces", [1, 4, 1024, 2048, 4096])
@pytest.mark.parametrize("at_once", [1 << 30, 24, 100])
def test_all_pieces_arrive(pieces: int, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_memory, "_AT_ONCE", at_once)
    theirs, ours = torch.arange(4096), torch.zeros(4096, dtype=torch.int64)
    read(os.getpid(), spans_of(theirs, ours, pieces))
    assert torch.equal(ours, theirs)
    write(os.getpid(), spans_of(ours, theirs.neg_(), pieces))
    assert torch.equal(theirs, ours)


def test_errors():
    number = torch.zeros(1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(CommunicationError) as error:
        read(gone.pid, [Span(number.data_ptr(), number.data_ptr(), 4)])
    assert str(error.value) == (
        f"process_vm_readv of 4 bytes with process {gone.pid} failed: No such process"
    )
    with pytest.raises(CommunicationError) as error:
        write(os.getpid(), [Span(8, number.data_ptr(), 4)])
    assert str(error.value) == (
        f"process_vm_writev of 4 bytes with process {os.getpid()} failed: Bad address"
    )


def test_part_of_a_read_is_an_error():
    """The kernel copies up to the first piece that is not there."""
    numbers = torch.zeros(2)
    here, nowhere = Span(numbers.data_ptr(), numbers.data_ptr(), 4), Span(8, numbers.data_ptr(), 4)
    with pytest.raises(CommunicationError) as error:
        read(os.getpid(), [here, nowhere])
    assert str(error.value) == (
        f"process_vm_readv of 8 bytes with process {os.getpid()} failed: 4 were copied"
    )


def test_a_system_without_the_calls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_memory, "_call", lambda name: None)
    assert not supported()
    with pytest.raises(CommunicationError) as error:
        read(1, [])
    assert str(error.value) == "this system has no process_vm_readv"
