"""Calibration: figures to a device by hand, and one small run of the whole procedure."""

from pathlib import Path

import pytest
import torch

from zc.cli import main
from zc.devices import calibrate as module
from zc.devices.calibrate import Calibration, calibrate, device_from, notes
from zc.devices.measure_links import memory_bytes
from zc.devices.reader import builtin_device, load_device
from zc.errors import ExecutionError

EXACT = 1e-6  # figures made by a formula come back but for rounding
FIGURES = {
    **{f"product float32 {n}": 2e-5 + n / 5e10 for n in (10**6, 10**7, 10**8)},
    **{f"product bfloat16 {n}": 1e-5 + n / 2e10 for n in (10**6, 10**7, 10**8)},
    "attention float32 10000000": 10**7 / 2e10,
    **{f"pointwise {n}": 4e-6 + n / 5e10 for n in (5 * 10**5, 10**6)},
    **{f"pointwise {n}": 4e-6 + n / 8e9 for n in (10**7, 10**8)},
    "op": 4e-6,
    "region": 1.5e-5,
    **{f"host {n}": 1e-6 + n / 6e9 for n in (10**5, 10**6, 10**7)},
    **{f"file {n}": 1e-3 + n / 1e9 for n in (10**5, 10**6, 10**7)},
    **{f"all_gather {n}": 1.8e-4 + n / 2e9 for n in (10**4, 10**6, 10**7)},
    **{f"reduce_scatter {n}": 2.8e-4 + n / 1e9 for n in (10**4, 10**6, 10**7)},
    **{f"all_reduce {n}": 4.8e-4 + n / 1e9 for n in (10**4, 10**6, 10**7)},
    **{f"way all_gather {n} native": n / 1e9 for n in (10**4, 10**6)},
    **{f"way all_gather {n} pairwise": 2e-4 + n / 2e9 for n in (10**4, 10**6)},
    "issue": 8e-5,
    "interference": 0.4,
    "one_lane": 1.0,
}


def test_figures_become_a_device():
    found = device_from(Calibration(ranks=3), FIGURES, 10**9)
    assert found.flops == pytest.approx({"float32": 5e10, "bfloat16": 2e10}, rel=EXACT)
    assert (found.memory_bytes, found.op_seconds) == (10**9, 4e-6)
    assert found.region_seconds == pytest.approx(1.1e-5)
    assert found.product_seconds == pytest.approx(2e-5, rel=EXACT)
    assert found.attention == pytest.approx(0.4, rel=EXACT)
    assert found.memory_bandwidth == pytest.approx(8e9, rel=EXACT)
    assert found.cache_bytes == 10**6
    assert found.cache_bandwidth == pytest.approx(5e10, rel=EXACT)
    assert found.host.bandwidth == pytest.approx(6e9, rel=EXACT)
    assert found.file.latency == pytest.approx(1e-3, rel=EXACT)
    assert found.network == builtin_device("cpu").network
    assert (found.measured_ranks, found.ranks_per_node) == (3, 3)
    assert (found.node.interference, found.one_lane, found.issue_seconds) == (0.4, True, 8e-5)
    assert found.collectives["all_gather"].latency == pytest.approx(1e-4, rel=EXACT)
    assert found.collectives["all_reduce"].bandwidth == pytest.approx(1e9, rel=EXACT)
    assert found.node.latency == pytest.approx(0.5e-4, rel=EXACT)
    assert found.ways == {"gloo": {"all_gather": {0: "native", 10**6: "pairwise"}}}


def test_one_rank_measures_no_group():
    found = device_from(Calibration(), FIGURES, 10**9)
    assert (found.measured_ranks, found.collectives, found.ways) == (0, {}, {})
    assert found.node == builtin_device("cpu").node
    assert found.notes.endswith("one rank measures no collectives: those are guesses")


def test_notes_say_when_and_how():
    text = notes(Calibration(ranks=2, threads=1), "cpu")
    assert text.startswith("zc calibrate, 20")
    assert f"torch {torch.__version__}: 2 ranks of 1 thread at the same time" in text


def test_ranks_share_the_memory_of_a_machine():
    cpu = torch.device("cpu")
    assert memory_bytes(cpu, 1) // 4 == memory_bytes(cpu, 4)


def test_no_ranks_are_refused():
    with pytest.raises(ExecutionError) as caught:
        calibrate(Calibration(ranks=0))
    assert str(caught.value) == "cannot calibrate 0 ranks; take 1 or more"


def test_ranks_that_do_not_end_are_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "DEADLINE", 0.1)
    with pytest.raises(ExecutionError) as caught:
        calibrate(Calibration(ranks=1))
    assert str(caught.value) == (
        "calibration of 1 ranks did not end within 0.1 s; the machine may be too busy: try fewer "
        "--ranks"
    )


def test_a_rank_that_fails_says_why():
    with pytest.raises(ExecutionError) as caught:
        calibrate(Calibration(ranks=1, threads=-1))
    assert str(caught.value) == (
        "calibration failed on a rank: RuntimeError: set_num_threads expects a positive integer"
    )


def test_a_small_calibration_of_two_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "mine.yaml"
    assert main(["calibrate", "--ranks", "2", "--quick", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    found = load_device(path)
    assert found.name == "mine"
    assert set(found.collectives) == {"all_gather", "reduce_scatter", "all_reduce"}
    assert found.measured_ranks == 2
    assert 0 <= found.node.interference <= 1
    assert set(found.ways["gloo"]) == {"all_gather", "reduce_scatter"}
    assert all(rate > 0 for rate in (*found.flops.values(), found.memory_bandwidth))
    assert "2 ranks" in found.notes
