"""Bytes that this process has moved: sent over TCP, and read out of other ranks' memory.

What is sent is counted by the kernel, the same for every system on gloo: nothing is derived from
what a library says that it sends, and other processes on the machine do not disturb it. Of the
systems, zc alone reads memory (``zc.comm.direct``); the sizes of these reads are added up.
"""

import os
import socket
import struct
import sys

from zc.comm.direct import READ

_ACKNOWLEDGED = 120  # offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h), unsigned 64 bits
_LENGTH = 128


def bytes_moved() -> int | None:
    """``bytes_sent`` and the bytes read out of other processes; ``None`` off Linux."""
    sent = bytes_sent()
    return None if sent is None else sent + READ.nbytes


def bytes_sent() -> int | None:
    """Payload bytes sent and acknowledged on all TCP sockets of this process; ``None`` off Linux.

    Headers of TCP and IP are not in it; gloo's own, some dozens of bytes a message, are.
    """
    if sys.platform != "linux":
        return None
    counts = [_acknowledged(s) for fd in os.listdir("/proc/self/fd") for s in _opened(int(fd))]
    return sum(counts)


def _acknowledged(connection: socket.socket) -> int:
    with connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    return struct.unpack_from("Q", info, _ACKNOWLEDGED)[0] if len(info) >= _LENGTH else 0


def _opened(descriptor: int) -> list[socket.socket]:
    """A second handle on the TCP socket behind ``descriptor``, if it is one."""
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            return []
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:  # another thread has closed it meanwhile
        return []
    if found.type == socket.SOCK_STREAM and found.family in (socket.AF_INET, socket.AF_INET6):
        return [found]
    found.close()
    return []
