"""The fastest ways of collectives in device files: measured, written, read, and gone by."""

from pathlib import Path

import pytest
import torch
from multiprocess import run_ranks

import zc
from zc.comm import choice
from zc.devices.reader import builtin_device, load_device
from zc.devices.ways import fastest
from zc.devices.writer import device_text
from zc.errors import PipelineError


def test_a_way_changes_where_another_is_clearly_faster():
    native = {10: 1.0, 100: 2.0, 1000: 9.0}
    assert fastest({"native": native, "pairwise": {10: 2.0, 100: 1.9, 1000: 4.0}}) == {
        0: "native", 1000: "pairwise"
    }  # fmt: skip
    assert fastest({"native": native}) == {0: "native"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "mine.yaml:{}: 'ways' must be a mapping; got 'fast'"),
        ("{gloo: fast}", "mine.yaml:{}: 'ways' is a mapping of backend, op and bytes to the name "
         "of a way"),
        ("{gloo: {all_reduce: {0B: native}}}", "mine.yaml:{}: no op 'all_reduce'; there are "
         "all_gather, reduce_scatter"),
        ("{gloo: {all_gathr: {0B: native}}}", "mine.yaml:{}: no op 'all_gathr'; did you mean "
         "'all_gather'?"),
        ("{gloo: {all_gather: {0B: ring}}}", "mine.yaml:{}: no way 'ring' of all_gather; the ways "
         "are native, pairwise, direct"),
    ],
)  # fmt: skip
def test_wrong_ways_are_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    lines = [*device_text(builtin_device("cpu")).splitlines(), f"ways: {text}"]
    Path("mine.yaml").write_text("\n".join(lines))
    with pytest.raises(PipelineError) as caught:
        load_device("mine.yaml")
    assert str(caught.value) == message.format(len(lines))


def check(rank: int, world: int, device: str) -> None:
    model = zc.shard(torch.nn.Linear(8, 8))
    passes = {"device": device, "passes": [{"shard_params": {"zero_stage": 3}}]}
    options = {"passes": passes, "executor": "interpret"}
    before = choice.way("all_gather", "gloo", world, 100)
    torch.compile(model, backend="zero", options=options)(torch.ones(2, 8)).sum().backward()
    after = [choice.way("all_gather", "gloo", world, size) for size in (100, 10**7)]
    assert (before, after) == ("native", ["pairwise", "native"])


def test_a_program_goes_by_the_ways_of_its_device(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    ways = "ways: {gloo: {all_gather: {0B: pairwise, 1MB: native}}}\nmeasured_ranks: 2\n"
    path.write_text(device_text(builtin_device("cpu")) + ways)
    run_ranks(check, 2, str(path))


def check_other(rank: int, world: int, folder: str) -> None:
    with pytest.raises(Exception, match=r"different programs; collective .* ways of"):
        check(rank, world, f"{folder}/{rank}.yaml")


def test_ranks_with_other_ways_are_refused(tmp_path: Path):
    for rank, name in enumerate(("native", "pairwise")):
        ways = f"ways: {{gloo: {{all_gather: {{0B: {name}}}}}}}\nmeasured_ranks: 2\n"
        (tmp_path / f"{rank}.yaml").write_text(device_text(builtin_device("cpu")) + ways)
    run_ranks(check_other, 2, str(tmp_path))
