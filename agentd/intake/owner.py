"""Whose a TCP connection is, by the kernel's tables in /proc/self/net (proc_pid_net(5)): loopback only, never by guess.

A run that an SDK begins over TCP and a client ends over the Unix socket has one owner, so both ends have to have a uid. The
client's own row names it: local and remote address swapped. A row without an inode is nobody's any more (its process has
closed the socket) and shows uid 0 for that alone: it is passed over.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_TABLES = Path("/proc/self/net")
_NOBODY = -1
_UID, _INODE = 7, 9  # columns: sl local remote st queues timer retransmits uid timeout inode
_MAPPED = b"\0" * 10 + b"\xff\xff"  # an IPv4 address as an IPv6 socket has it, RFC 4291 2.5.5.2


def uid_of(sock: socket.socket, tables: Path = _TABLES) -> int:
    """The uid of who connected to this TCP connection from this machine; -1 where the kernel doesn't say."""
    try:
        ours, theirs = sock.getsockname(), sock.getpeername()
    except OSError:
        return _NOBODY
    wanted = [("tcp6" if sock.family == socket.AF_INET6 else "tcp", _pair(sock.family, theirs, ours))]
    if sock.family == socket.AF_INET:
        wanted.append(("tcp6", _pair(sock.family, theirs, ours, prefix=_MAPPED)))
    for _ in range(2):  # a table is read in pieces, and a row may move between two of them
        for name, pair in wanted:
            uid = _look(tables / name, pair)
            if uid is not None:
                return uid
    return _NOBODY


def _look(table: Path, pair: bytes) -> int | None:
    try:
        rows = table.read_bytes()
    except OSError:  # no IPv6, or a container that hides its network
        return None
    start = rows.find(pair)
    while start >= 0:
        columns = rows[rows.rfind(b"\n", 0, start) + 1 : rows.find(b"\n", start)].split()
        if int(columns[_INODE]):
            return int(columns[_UID])
        start = rows.find(pair, start + 1)
    return None


def _pair(family: int, local: tuple[str, int], remote: tuple[str, int], prefix: bytes = b"") -> bytes:
    """` LOCAL:PORT REMOTE:PORT ` as the table writes it: each 32-bit word of an address in the machine's byte order."""
    return b" %b %b " % (_end(family, local, prefix), _end(family, remote, prefix))


def _end(family: int, address: tuple[str, int], prefix: bytes) -> bytes:
    host, port = address[:2]
    packed = prefix + socket.inet_pton(family, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return b"%b:%04X" % (b"".join(b"%08X" % word for word in words), port)
