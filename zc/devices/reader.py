"""Device files: YAML with units, read into ``zc.cost.device.Device``.

    name: h100
    memory: 80GB
    memory_bandwidth: 3.35TB/s
    flops: {float32: 67TFLOP/s, bfloat16: 989TFLOP/s}
    op: 3us
    issue: 10us
    node: {ranks: 8, latency: 3us, bandwidth: 370GB/s}
    network: {latency: 8us, bandwidth: 48GB/s, interference: 0.1}
    host: {latency: 10us, bandwidth: 55GB/s}
    file: {latency: 100us, bandwidth: 6GB/s}

Optional: ``collectives``, links by collective as measured on ``measured_ranks`` ranks, and
``ways``, see ``zc.devices.ways``;
``cache: {size: 1MB, bandwidth: 60GB/s}``, ``one_lane``, ``region``, ``product`` and ``attention``,
see ``Device``; ``interference`` of a link, see ``Link``; ``notes``.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from zc.cost.device import Device, Link
from zc.devices.fields import mapping, scalar
from zc.devices.ways import read_ways
from zc.errors import PipelineError
from zc.pipelines.located import Located, nearest
from zc.pipelines.yaml_file import parse_yaml
from zc.program.units import Bytes, Duration, Rate

_BUILTIN = Path(__file__).parent / "builtin"
_LINK = {"latency": Duration, "bandwidth": Rate}
_OVERLAP = {"interference": float}
_NEEDED: dict[str, Any] = {
    "name": str, "memory": Bytes, "memory_bandwidth": Rate, "flops": dict, "op": Duration,
    "issue": Duration, "node": dict, "network": dict, "host": dict, "file": dict,
}  # fmt: skip
_OPTIONAL: dict[str, Any] = {
    "collectives": dict, "measured_ranks": int, "ways": dict, "one_lane": bool, "cache": dict,
    "region": Duration, "product": Duration, "attention": float, "notes": str,
}  # fmt: skip


def load_device(spec: str | os.PathLike[str]) -> Device:
    """The device that ``spec`` means: a built-in name or the path of a YAML file.

    Raises:
        PipelineError: for another name, a file that cannot be read, and all that is wrong in it.
    """
    text = str(spec)
    if not text.endswith((".yaml", ".yml")):
        return builtin_device(text)
    try:
        written = Path(text).read_text(encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"{text}: cannot be read: {error.strerror}") from error
    return read_device(parse_yaml(written, text))


@cache
def builtin_device(name: str) -> Device:
    """The device that ships under ``name``.

    Raises:
        PipelineError: for any other name.
    """
    names = device_names()
    if name not in names:
        raise PipelineError(
            f"no built-in device named '{name}'{nearest(name, names)}; there are "
            f"{', '.join(names)}; the name of a file ends in .yaml or .yml"
        )
    path = _BUILTIN / f"{name}.yaml"
    return read_device(parse_yaml(path.read_text(encoding="utf-8"), str(path)))


def device_names() -> tuple[str, ...]:
    """The names of the devices that ship with zc, sorted."""
    return tuple(sorted(path.stem for path in _BUILTIN.glob("*.yaml")))


def read_device(root: Located) -> Device:
    """The device in a tree of YAML.

    Raises:
        PipelineError: for a missing or unknown key, a wrong type or unit, by line.
    """
    found = mapping(root, "a device", _NEEDED, _OPTIONAL)
    node = mapping(found["node"], "'node'", {"ranks": int, **_LINK}, _OVERLAP)
    return Device(
        name=scalar(found["name"], str),
        memory_bytes=scalar(found["memory"], Bytes),
        memory_bandwidth=scalar(found["memory_bandwidth"], Rate),
        flops=_flops(found["flops"]),
        op_seconds=scalar(found["op"], Duration),
        issue_seconds=scalar(found["issue"], Duration),
        ranks_per_node=scalar(node["ranks"], int),
        node=_link(node),
        network=_link(mapping(found["network"], "'network'", _LINK, _OVERLAP)),
        **{key: _link(mapping(found[key], f"'{key}'", _LINK)) for key in ("host", "file")},
        collectives=_links(found.get("collectives")),
        measured_ranks=scalar(found.get("measured_ranks", Located(0, "")), int),
        ways=read_ways(found.get("ways")),
        one_lane=scalar(found.get("one_lane", Located(False, "")), bool),
        **_cache(found.get("cache")),
        region_seconds=scalar(found.get("region", Located("0", "")), Duration),
        product_seconds=scalar(found.get("product", Located("0", "")), Duration),
        attention=_attention(found),
        notes=scalar(found.get("notes", Located("", "")), str),
    )


def _share(found: dict[str, Located], key: str, default: float) -> float:
    place = found.get(key, Located(default, ""))
    share = scalar(place, float)
    if not 0 <= share <= 1:
        raise place.fail(f"{key} is between 0 and 1; got {share}")
    return share


def _attention(found: dict[str, Located]) -> float:
    share = _share(found, "attention", 1.0)
    if not share:
        raise found["attention"].fail("attention is a share above 0; got 0")
    return share


def _flops(place: Located) -> dict[str, float]:
    rates = {k: scalar(v, Rate) for k, v in place.value.items()}
    if "float32" not in rates:
        raise place.fail("'flops' needs a rate for float32, which other dtypes fall back to")
    return rates


def _cache(place: Located | None) -> dict[str, Any]:
    if place is None:
        return {}
    found = mapping(place, "'cache'", {"size": Bytes, "bandwidth": Rate})
    size, rate = scalar(found["size"], Bytes), scalar(found["bandwidth"], Rate)
    return {"cache_bytes": size, "cache_bandwidth": rate}


def _links(place: Located | None) -> dict[str, Link]:
    if place is None:
        return {}
    return {k: _link(mapping(value, f"'{k}'", _LINK)) for k, value in place.value.items()}


def _link(found: dict[str, Located]) -> Link:
    latency, bandwidth = scalar(found["latency"], Duration), scalar(found["bandwidth"], Rate)
    return Link(latency, bandwidth, _share(found, "interference", 0.0))
