"""Device files: those that ship, text and back, and every message."""

from dataclasses import replace
from pathlib import Path

import pytest

from zc.cost.device import Link
from zc.devices.reader import device_names, load_device, read_device
from zc.devices.writer import device_text
from zc.errors import PipelineError
from zc.pipelines.yaml_file import parse_yaml

GOOD = """\
name: toy
memory: 16GB
memory_bandwidth: 20GB/s
flops: {float32: 50GFLOP/s}
op: 10us
issue: 60us
node: {ranks: 2, latency: 400us, bandwidth: 2GB/s}
network: {latency: 500us, bandwidth: 1GB/s}
host: {latency: 1us, bandwidth: 10GB/s}
file: {latency: 100us, bandwidth: 1GB/s}
"""
WAYS = {"gloo": {"all_gather": {0: "native", 10**6: "pairwise"}}}
NAMES = "a100, cpu, h100, h200, mi300x, t4"


def read(text: str):
    return read_device(parse_yaml(text, "toy.yaml"))


def test_devices_that_ship():
    assert ", ".join(device_names()) == NAMES
    h100 = load_device("h100")
    assert (h100.memory_bytes, h100.flops["bfloat16"]) == (80 * 10**9, 989e12)
    assert h100.flop_rate("float8_e4m3fn") == h100.flops["float32"]
    for name in device_names():
        assert load_device(name).notes


@pytest.mark.parametrize("name", NAMES.split(", "))
def test_a_device_is_written_as_it_is_read(name: str, tmp_path: Path):
    device = replace(
        load_device(name), collectives={"all_gather": Link(1e-4, 1.5e9)}, measured_ranks=4,
        region_seconds=2e-5, product_seconds=1.5e-5, attention=0.5, cache_bytes=10**6,
        cache_bandwidth=6e10, ways=WAYS, node=Link(1e-5, 2e10, 0.3), network=Link(2e-5, 1e10),
    )  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(device_text(device))
    assert load_device(path) == device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("16GB", "16"),
         "toy.yaml:2: 16 has no unit; write '16B' or another of B, KB, MB, GB, TB, KiB, MiB, GiB, "
         "TiB"),
        (GOOD.replace("20GB/s", "20GB"),
         "toy.yaml:3: '20GB' has an unknown unit 'GB'; the units are B/s, KB/s, MB/s, GB/s, TB/s, "
         "PB/s, FLOP/s, KFLOP/s, MFLOP/s, GFLOP/s, TFLOP/s, PFLOP/s"),
        (GOOD.replace("20GB/s", "0GB/s"),
         "toy.yaml:3: a rate must be finite and above zero; got 0/s"),
        (GOOD.replace("float32", "bfloat16"),
         "toy.yaml:4: 'flops' needs a rate for float32, which other dtypes fall back to"),
        (GOOD.replace("{float32: 50GFLOP/s}", "50GFLOP/s"),
         "toy.yaml:4: 'flops' must be a mapping; got '50GFLOP/s'"),
        (GOOD.replace("op: 10us\n", ""), "toy.yaml:1: a device needs 'op'"),
        (GOOD.replace("issue", "isue"),
         "toy.yaml:6: unknown key 'isue' in a device; did you mean 'issue'?"),
        (GOOD.replace("host: {latency", "host: {delay"),
         "toy.yaml:9: unknown key 'delay' in 'host'; the keys are latency, bandwidth"),
        (GOOD.replace("ranks: 2", "ranks: two"),
         "toy.yaml:7: must be a whole number; got 'two'"),
        (GOOD + "cache: {size: 1MB}\n", "toy.yaml:11: 'cache' needs 'bandwidth'"),
        (GOOD + "attention: 0.0\n", "toy.yaml:11: attention is a share above 0; got 0"),
        (GOOD.replace("2GB/s", "2GB/s, interference: 2.0"),
         "toy.yaml:7: interference is between 0 and 1; got 2.0"),
        (GOOD.replace("10GB/s", "10GB/s, interference: 0.5"),
         "toy.yaml:9: unknown key 'interference' in 'host'; the keys are latency, bandwidth"),
        ("- a\n", "toy.yaml:1: a device must be a mapping; got a list"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(text: str, message: str):
    with pytest.raises(PipelineError) as caught:
        read(text)
    assert str(caught.value) == message


def test_unknown_names_and_files_are_refused(tmp_path: Path):
    with pytest.raises(PipelineError) as caught:
        load_device("h10")
    assert str(caught.value) == (
        f"no built-in device named 'h10'; did you mean 'h100'?; there are {NAMES}; "
        f"the name of a file ends in .yaml or .yml"
    )
    with pytest.raises(PipelineError) as caught:
        load_device(tmp_path / "none.yaml")
    path = tmp_path / "none.yaml"
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"
