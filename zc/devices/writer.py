"""A device as the text of a file, numbers to six digits."""

from zc.cost.device import Device, Link
from zc.devices.ways import ways_text
from zc.pipelines.yaml_file import scalar_text
from zc.program.units import Bytes, Duration

_PREFIXES = ("", "K", "M", "G", "T", "P")


def device_text(device: Device) -> str:
    """``device`` as ``zc.devices.reader`` reads it back, to six digits of every number."""
    flops = ", ".join(f"{k}: {_rate(v, 'FLOP')}" for k, v in device.flops.items())
    lines = [
        f"name: {scalar_text(device.name)}",
        f"memory: {Bytes(device.memory_bytes)}",
        f"memory_bandwidth: {_rate(device.memory_bandwidth)}",
        f"flops: {{{flops}}}",
        f"op: {_seconds(device.op_seconds)}",
        f"issue: {_seconds(device.issue_seconds)}",
        f"node: {{ranks: {device.ranks_per_node}, {_link(device.node)}}}",
        *(f"{key}: {{{_link(getattr(device, key))}}}" for key in ("network", "host", "file")),
    ]
    if device.collectives:
        links = (f"  {op}: {{{_link(link)}}}" for op, link in device.collectives.items())
        lines += ["collectives:", *links, f"measured_ranks: {device.measured_ranks}"]
    if device.ways:
        lines.append(f"ways: {ways_text(device.ways)}")
    if device.one_lane:
        lines.append("one_lane: true")
    if device.cache_bytes:
        size, rate = Bytes(device.cache_bytes), _rate(device.cache_bandwidth)
        lines.append(f"cache: {{size: {size}, bandwidth: {rate}}}")
    if device.region_seconds:
        lines.append(f"region: {_seconds(device.region_seconds)}")
    if device.product_seconds:
        lines.append(f"product: {_seconds(device.product_seconds)}")
    if device.attention != 1:
        lines.append(f"attention: {device.attention:.6g}")
    if device.notes:
        lines.append(f"notes: {scalar_text(device.notes)}")
    return "\n".join(lines) + "\n"


def _link(link: Link) -> str:
    text = f"latency: {_seconds(link.latency)}, bandwidth: {_rate(link.bandwidth)}"
    return text + (f", interference: {link.interference:.6g}" if link.interference else "")


def _seconds(value: float) -> str:
    return str(Duration(float(f"{value:.6g}")))


def _rate(value: float, unit: str = "B") -> str:
    power = 0
    while value >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:.6g}"
    return f"{float(digits):.10f}".rstrip("0").rstrip(".") + f"{_PREFIXES[power]}{unit}/s"
