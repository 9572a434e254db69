"""The device of a program whose pass pipeline names none."""

import pytest
import torch
from tracing import program_of

from zc.devices.default import default_device, gpu_named
from zc.devices.reader import builtin_device
from zc.errors import PipelineError
from zc.program.program import Program


def program() -> Program:
    def loss(p: dict[str, torch.Tensor], x: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x["x"] @ p["w"]).sum()

    return program_of(loss, {"w": (8, 8)}, {"x": (4, 8)}, 2)


def test_gpus_are_known_by_name():
    assert gpu_named("NVIDIA H200") == "h200"
    assert gpu_named("NVIDIA A100-SXM4-80GB") == "a100"
    assert gpu_named("Tesla T4") == "t4"
    assert gpu_named("AMD Instinct MI300X") == "mi300x"
    assert gpu_named("NVIDIA GeForce RTX 4090") == "h100"


def test_a_node_is_as_large_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch):
    cpu = builtin_device("cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_device(program()) == cpu
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    found = default_device(program())
    assert found.slowest_link(2) == cpu.network
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    found = default_device(program())
    assert (found.slowest_link(4), found.slowest_link(8)) == (cpu.node, cpu.network)


@pytest.mark.parametrize("ranks", ["", "0", "two", "-1"])
def test_a_node_without_ranks_is_refused(ranks: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    with pytest.raises(PipelineError) as caught:
        default_device(program())
    assert str(caught.value) == (
        f"LOCAL_WORLD_SIZE is '{ranks}'; torchrun sets it to the number of ranks on this node; "
        f"unset it, or name a device file in the pass pipeline"
    )
