"""``cuda_graph: true``: what is refused, what runs without, what dumps say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from multiprocess import fake_world
from recorded_steps import Training
from run.programs import layered
from stand_in import StandIn, standing_in
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from tracing import physical, program_of

import zc
from zc.errors import ExecutionError, ZcError
from zc.program.program import Program
from zc.run import cuda_graph
from zc.run.cuda_graph import refuse_unrecordable

RECORDED = {"passes": "zero0", "executor": "interpret", "cuda_graph": True}


def _level1() -> Program:
    program = layered()
    program.level = 1
    return program


class OnCuda(StandIn):
    """What is recorded is not on the CPU."""

    device_type = "cuda"


class OverNccl(StandIn):
    """Collectives of gloo cannot be recorded."""

    backends = ("nccl",)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "level 1": (
        StandIn,
        _level1,
        "cuda_graph records a whole step, and forward and backward of this one are called "
        "apart (level 1); put loss.backward() and zc.step(optimizer) into the compiled function, "
        "or leave cuda_graph out",
    ),
    "CPU": (
        OnCuda,
        layered,
        "cuda_graph needs a GPU, and this program computes on cpu; move the model and its "
        "inputs to a GPU, or leave cuda_graph out",
    ),
    "backend": (
        OverNccl,
        lambda: layered(world=4),
        "cuda_graph cannot record collectives of fake, which mesh axis 'dp' uses; call "
        "torch.distributed.init_process_group('nccl'), or leave cuda_graph out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_programs(name: str):
    recorder, make, message = REFUSED[name]
    with fake_world(4), standing_in(recorder), pytest.raises(ExecutionError) as caught:
        refuse_unrecordable(make())
    assert str(caught.value) == f"model.py:1 step: {message}"


def test_a_program_that_can_be_recorded():
    with fake_world(4), standing_in():
        refuse_unrecordable(layered(world=4))


def test_a_model_on_the_cpu_is_refused():
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="zero", options=RECORDED)
    with pytest.raises(BackendCompilerFailed) as caught, torch.no_grad():
        compiled(torch.randn(2, 4))
    assert "cuda_graph needs a GPU, and this program computes on cpu" in str(caught.value)


def test_training_at_level_1_is_refused():
    with standing_in():
        compiled = torch.compile(nn.Linear(4, 4), backend="zero", options=RECORDED)
        with pytest.raises(BackendCompilerFailed, match="are called apart") as caught:
            compiled(torch.randn(2, 4))
    assert isinstance(caught.value.inner_exception, ZcError)


def test_an_optimizer_by_itself_is_refused():
    optimizer = torch.optim.AdamW(nn.Linear(4, 4).parameters())
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 4)
    step = zc.compile_step(optimizer, RECORDED)
    with pytest.raises(ExecutionError) as caught:
        step()
    assert str(caught.value) == (
        "cuda_graph records a whole step, and AdamW.step is compiled by itself; call "
        "zc.step(optimizer) in a compiled function with loss.backward(), or leave cuda_graph out"
    )


def test_symbolic_sizes_are_said_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_graph, "_warned", set())
    monkeypatch.setattr(cuda_graph, "_symbolic", lambda program: "x")
    program = layered()
    with pytest.warns(UserWarning, match="without a CUDA graph") as caught:
        [cuda_graph.say_if_symbolic(program) for _ in range(2)]
    assert [str(w.message) for w in caught] == [
        f"{program.name} runs without a CUDA graph, since %x has a symbolic size: pass batches of "
        f"one size, or compile with dynamic=False"
    ]
    assert cuda_graph.recorder_for(layered()) is None
    assert cuda_graph.note_of(layered()) == (
        "cuda_graph: nothing is recorded, since %x has a symbolic size"
    )


def test_a_dump_says_what_is_recorded(tmp_path: Path):
    with standing_in():
        Training("plain", "cpu", RECORDED | {"dump": str(tmp_path)}).run(steps=1)
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*/report.json")]
    notes = [note for report in reports for entry in report["passes"] for note in entry["notes"]]
    (note,) = (note for note in notes if note.startswith("cuda_graph: "))
    assert note.endswith(" nodes in 1 recorded parts")


def test_all_of_a_sharded_loop_over_micro_batches_is_recorded():
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).square().mean()

    program = physical(program_of(loss, {"w": (16, 4)}, {"x": (6, 16)}, 4, count=3), 2)
    total = sum(node.op == "call_function" for node in program.graph.nodes)
    with standing_in():
        note = cuda_graph.note_of(program)
    assert note == f"cuda_graph: {total} of {total} nodes in 1 recorded parts"
