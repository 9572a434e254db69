"""``cuda_graph: true``: recorded parts as CUDA graphs, and what cannot have any.

Training at level 1 is refused, since user code runs between its halves; so are a program on the CPU
and one that communicates through another backend than NCCL. A program with symbolic sizes, which is
what a smaller last batch leads to, runs without a CUDA graph; that is said once.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.fx.experimental.symbolic_shapes import has_free_symbols

from zc.comm.groups import group_of
from zc.errors import ExecutionError
from zc.program.collectives import COLLECTIVES, is_collective
from zc.program.copying import copy_program
from zc.program.nodes import input_of, tensors_of, value_of
from zc.program.program import Program
from zc.run.arrange import arrange
from zc.run.recording import Recorder, Recording, Run, Tensors

_warned: set[str] = set()


class CudaRecorder:
    """Records on a stream of its own, into memory of its own.

    Runs before the recording are on that stream as well: libraries set up their workspaces there.
    The default generator needs no mention: torch registers it with every graph.
    """

    device_type = "cuda"
    backends = ("nccl",)

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, run: Run) -> Tensors:
        """Run on the side stream, behind what the current one has to do and ahead of the rest."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = run()
        current.wait_stream(self._stream)
        for result in results:
            result.record_stream(current)
        return results

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Recording:
        """Capture ``run``; other threads, such as NCCL's watchdog, may go on meanwhile."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        for generator in generators:
            graph.register_generator_state(generator)
        where = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **where):
                results = run()
        finally:
            torch.cuda.set_stream(current)

        def replay() -> Tensors:
            graph.replay()
            return results

        return Recording(replay)


RECORDER: type[Recorder] = CudaRecorder  # tests on CPUs put another in its place


def recorder_for(program: Program) -> Recorder | None:
    """What records ``program``; nothing where sizes are symbolic."""
    return None if _symbolic(program) else RECORDER()


def refuse_unrecordable(program: Program) -> None:
    """Refuse a program that no CUDA graph can be made of.

    Raises:
        ExecutionError: with what to do.
    """
    if program.level == 1 and program.training:
        raise ExecutionError(
            f"{program.name}: cuda_graph records a whole step, and forward and backward of this "
            f"one are called apart (level 1); put loss.backward() and zc.step(optimizer) into the "
            f"compiled function, or leave cuda_graph out"
        )
    devices = sorted({t.device.type for node in program.nodes() for t in tensors_of(node)})
    if RECORDER.device_type not in devices:
        raise ExecutionError(
            f"{program.name}: cuda_graph needs a GPU, and this program computes on "
            f"{', '.join(devices) or 'no device'}; move the model and its inputs to a GPU, or "
            f"leave cuda_graph out"
        )
    axes = {n.args[COLLECTIVES[n.target].axis_arg] for n in program.nodes() if is_collective(n)}
    for axis in sorted(map(str, axes)):
        backend = _backend(axis, RECORDER.device_type)
        if backend not in RECORDER.backends:
            raise ExecutionError(
                f"{program.name}: cuda_graph cannot record collectives of {backend}, which mesh "
                f"axis '{axis}' uses; call torch.distributed.init_process_group('nccl'), or leave "
                f"cuda_graph out"
            )


def note_of(program: Program) -> str:
    """What dumps say of a program: how much of it is recorded, and why not the rest."""
    if symbol := _symbolic(program):
        return f"cuda_graph: nothing is recorded, since %{symbol} has a symbolic size"
    copy = copy_program(program)
    return arrange(copy, copy.graph, RECORDER.device_type).note()


def say_if_symbolic(program: Program) -> None:
    """Warn, once for each function, that it runs without a CUDA graph."""
    symbol = _symbolic(program)
    if symbol and program.name not in _warned:
        _warned.add(program.name)
        warnings.warn(
            f"{program.name} runs without a CUDA graph, since %{symbol} has a symbolic size: pass "
            f"batches of one size, or compile with dynamic=False",
            stacklevel=2,
        )


def _symbolic(program: Program) -> str:
    """The first input with a symbolic size; empty without one."""
    for node in program.placeholders():
        if input_of(node).kind == "symbol" or has_free_symbols(value_of(node)):
            return node.name
    return ""


def _backend(axis: str, device_type: str) -> str:
    """The backend that carries out collectives of an axis on tensors of a device."""
    entries = dist.get_backend_config(group_of(axis)).split(",")
    found = dict(entry.split(":") for entry in entries if ":" in entry)
    return found.get(device_type, entries[0])
