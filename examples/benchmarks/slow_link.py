"""Ranks that reach each other only over a network of a given rate, on one machine.

Every rank gets a network namespace and in it one end of a virtual cable; the other ends meet in a
bridge. Linux's traffic control (``tbf``, a token bucket) limits what passes a cable, in each
direction by itself, as a network card would: the kernel holds packets back, which costs no CPU
time, so what a system overlaps with compute shows. Delays are the machine's own; none is added.

It needs Linux and the programs ``unshare``, ``nsenter``, ``ip`` and ``tc``, and no privileges where
user namespaces are allowed.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys

_PROGRAMS = ("unshare", "nsenter", "ip", "tc")
_APART = ["unshare", "--user", "--map-root-user", "--net"]
_INSIDE = "ZC_BENCHMARK_INSIDE"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MTU = 60000  # large packets, so that the kernel's work for a byte stays near that of loopback
_SHAPE = "burst 256kb latency 200ms"
_RATE = re.compile(r"[1-9][0-9]*(kbit|mbit|gbit)")


def rate_of(text: str) -> str:
    """``text`` as a rate that ``tc`` understands.

    Raises:
        ValueError: for anything but a whole number of kbit, mbit or gbit.
    """
    if not _RATE.fullmatch(text):
        raise ValueError(
            f"a rate is a whole number of kbit, mbit or gbit, as '1gbit', not '{text}'"
        )
    return text


def start_inside() -> None:
    """Start this program again, with the same arguments, in a network of its own; once.

    Raises:
        SystemExit: where programs or permissions are missing.
    """
    if os.environ.get(_INSIDE):
        _run("ip link add name hub type bridge")
        _run("ip link set hub up")
        return
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        sys.exit(f"--link needs the programs {', '.join(_PROGRAMS)}; missing: {', '.join(missing)}")
    tried = subprocess.run([*_APART, "true"], capture_output=True, text=True)
    if tried.returncode:
        sys.exit(f"--link needs user and network namespaces: {tried.stderr.strip()}")
    sys.stdout.flush()
    os.execvpe("unshare", [*_APART, sys.executable, *sys.argv], _apart())


def _apart() -> dict[str, str]:
    """The environment inside: ranks of zc must not go around the network, and each is a node."""
    return os.environ | {_INSIDE: "1", "ZC_DIRECT": "0", "LOCAL_WORLD_SIZE": "1"}


def plug_in(rank: int, rate: str) -> str:
    """Move this process into a namespace of its own; the name of its only interface.

    Sockets that exist already, and threads, stay where they are.
    """
    hub = os.open("/proc/self/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    outside = f"nsenter --net=/proc/{os.getpid()}/fd/{hub}"
    port = f"port{os.getpid()}"
    _run(f"{outside} ip link add name {port} type veth peer name cable netns {os.getpid()}")
    _run(f"{outside} ip link set {port} mtu {_MTU} master hub up")
    _run(f"{outside} tc qdisc add dev {port} root tbf rate {rate} {_SHAPE}")
    _run("ip link set lo up")
    _run(f"ip address add 10.0.0.{rank + 1}/24 dev cable")
    _run(f"ip link set cable mtu {_MTU} up")
    _run(f"tc qdisc add dev cable root tbf rate {rate} {_SHAPE}")
    os.close(hub)
    return "cable"


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)
