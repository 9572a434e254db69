"""The device that a program is meant for, as plain numbers: rates, latencies, sizes.

Data only, so a program can carry it: passes read ``program.device`` and nothing else about the
machine. Files and measurements that make one stand in ``zc.devices``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Link:
    """A way for bytes to travel; n bytes take ``latency + n / bandwidth`` (Hockney 1994).

    ``latency`` is in seconds, ``bandwidth`` in bytes per second, one direction. ``interference`` is
    the share of its speed that compute loses while a collective is under way, from 0 (copy engines)
    to 1 (nothing overlaps).
    """

    latency: float
    bandwidth: float
    interference: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """Time for ``nbytes`` in one transfer."""
        return self.latency + nbytes / self.bandwidth


@dataclass(frozen=True)
class Device:
    """One accelerator or CPU process and what connects it to others.

    Attributes:
        name: as in its file.
        memory_bytes: that one rank can use.
        memory_bandwidth: bytes per second, reads and writes together.
        flops: multiplications and additions per second of matrix products, by dtype name
            (``float32``); a dtype that is not listed runs at the rate of ``float32``.
        cache_bytes: what one op may read and write and still find in caches.
        cache_bandwidth: bytes per second of such an op.
        op_seconds: fixed time of one op or kernel.
        region_seconds: fixed time of one compiled region, beside that of what it computes.
        product_seconds: fixed time of a matrix product, in which it gets up to its rate; at least
            ``op_seconds`` is reckoned.
        attention: share of the rate of matrix products that attention reaches.
        issue_seconds: time that the compute lane spends on starting a collective, and on its first
            wait.
        ranks_per_node: ranks that reach one another over ``node``; all others over ``network``.
        node: between ranks of one node.
        network: between nodes.
        host: between the device and the memory of its host.
        file: between the host and its files.
        collectives: measured links by collective (``all_gather``, ...), in the place of ``node``
            and ``network`` where the group is as large as the one measured, ``measured_ranks``.
        measured_ranks: ranks of the group that ``collectives`` and ``ways`` were measured on.
        ways: the fastest way to carry out a collective, by backend, op and bytes, as
            ``zc.devices.ways`` describes it.
        one_lane: whether gathers and reductions share one lane, first come first served.
        notes: where the numbers come from.
    """

    name: str
    memory_bytes: int
    memory_bandwidth: float
    flops: dict[str, float]
    op_seconds: float
    issue_seconds: float
    ranks_per_node: int
    node: Link
    network: Link
    host: Link
    file: Link
    collectives: dict[str, Link] = field(default_factory=dict)
    measured_ranks: int = 0
    ways: Mapping[str, Mapping[str, Mapping[int, str]]] = field(default_factory=dict)
    one_lane: bool = False
    region_seconds: float = 0.0
    product_seconds: float = 0.0
    attention: float = 1.0
    cache_bytes: int = 0
    cache_bandwidth: float = 0.0
    notes: str = ""

    def flop_rate(self, dtype: str) -> float:
        """Operations per second of matrix products in ``dtype``."""
        return self.flops.get(dtype, self.flops["float32"])

    def memory_seconds(self, traffic: int) -> float:
        """Time in which one op reads and writes ``traffic`` bytes."""
        cached = traffic <= self.cache_bytes and self.cache_bandwidth > 0
        return traffic / (self.cache_bandwidth if cached else self.memory_bandwidth)

    def slowest_link(self, group_size: int) -> Link:
        """The slowest that a collective of so many ranks passes."""
        return self.network if group_size > self.ranks_per_node else self.node

    def collective_seconds(self, op: str, group_size: int, wire_bytes: int) -> float:
        """Time of one collective to which each rank sends ``wire_bytes``.

        A ring over N ranks takes N - 1 steps of one latency each, an all-reduce twice that, and
        the bytes pass its slowest link: steps * alpha + bytes * beta (Thakur et al. 2005, section
        4). A measured link holds the latency of the whole collective, and how long ranks wait for
        one another until all have got there.
        """
        if group_size == 1:
            return 0.0
        if op in self.collectives and group_size == self.measured_ranks:
            return self.collectives[op].seconds(wire_bytes)
        nodes = -(-group_size // self.ranks_per_node)
        within = min(group_size, self.ranks_per_node) - 1
        latency = within * self.node.latency + (nodes - 1) * self.network.latency
        rounds = 2 if op == "all_reduce" else 1
        return rounds * latency + wire_bytes / self.slowest_link(group_size).bandwidth
