"""The kernel's word for a process and for its end: pidfds (pidfd_open(2)), read where they can be had.

SO_PEERPIDFD (Linux 6.5) gives one for whoever connected, also where another pid namespace hides the pid. Before that a pid is
opened, and its start time says whether it is the same process still. ProcessLookupError means that the process is gone, any
other OSError that nothing can be known of it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from agentd.intake.orphans import Owner, Process

SO_PEERPIDFD = 77  # asm-generic/socket.h; Python has no name for it
_START = 22 - 3  # of the fields that follow the name in parentheses
_INT = struct.Struct("i")
_LEAST_FILES = 8  # an eighth of the open files that we may have is for pidfds, however many the connections may take


class Identity(NamedTuple):
    """What tells a process from a later one with its pid; 0 where it can't be read."""

    start: int
    inode: int


class Options(Protocol):
    """The part of a socket that is asked; asyncio's transports give no more of it away."""

    def getsockopt(self, level: int, option: int, /) -> int: ...
    def fileno(self) -> int: ...


def here() -> tuple[str, int]:
    """The boot and the pid namespace in which pids are read; empty and 0 where they can't be."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # hidden, as by systemd's ProcSubset=pid
        boot = ""
    try:
        return boot, Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return boot, 0


def peer_pidfd(sock: Options, pid: int) -> int:
    """A pidfd of who connected; `pid` is what SO_PEERCRED says. Raises ProcessLookupError, OSError."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ESRCH):  # reaped already; from Linux 6.16 on it has a pidfd all the same
            raise _gone() from None
        if error.errno != errno.ENOPROTOOPT or pid <= 0:
            raise
    return _open_same(pid)


def _open_same(pid: int) -> int:
    """A pidfd of a pid that had this process before and after. Raises ProcessLookupError, OSError."""
    before = _start_of(pid)
    pidfd = os.pidfd_open(pid)
    after = _start_of(pid)
    if before and after == before and not has_ended(pidfd):
        return pidfd
    ended = has_ended(pidfd) or before != after
    os.close(pidfd)
    raise _gone() if ended else _unknown()


def open_again(owner: Owner) -> int:
    """A pidfd of a process that was known before, in this boot. Raises ProcessLookupError, OSError."""
    if owner.pid <= 0:
        raise _unknown()
    pidfd = os.pidfd_open(owner.pid)
    try:
        found = identity(pidfd, owner.pid)
    except OSError:
        os.close(pidfd)
        raise
    same = _is_same(owner, found)
    if same and not has_ended(pidfd):
        return pidfd
    ended = has_ended(pidfd)
    os.close(pidfd)
    raise _unknown() if same is None and not ended else _gone()


def _is_same(owner: Owner, found: Identity) -> bool | None:
    """Whether that is the process that was known before; None where nothing can be compared."""
    known = [(old, new) for old, new in ((owner.start, found.start), (owner.inode, found.inode)) if old and new]
    return all(old == new for old, new in known) if known else None


def _gone() -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, "the process is gone")


def _unknown() -> OSError:
    return OSError(errno.ENODATA, "the process can't be told from others")


def identity(pidfd: int, pid: int) -> Identity:
    """What the kernel lets us read of a process. `pid` is taken where the pidfd does not say its own."""
    start = _start_of(_pid_in_proc(pidfd, pid))
    if has_ended(pidfd):  # what was read may be its successor's
        start = 0
    found = os.fstat(pidfd)
    return Identity(start, found.st_ino if found.st_dev != _anonymous() else 0)


@cache
def _anonymous() -> int:
    """The device of files without one: before Linux 6.9 pidfds were such, and all had one inode."""
    other = select.epoll()
    try:
        return os.fstat(other.fileno()).st_dev
    finally:
        other.close()


def _pid_in_proc(pidfd: int, pid: int) -> int:
    """The pid under which /proc has the process; it may be mounted for another pid namespace than ours."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    except OSError:
        return pid
    return next((int(line.partition(":")[2]) for line in lines if line.startswith("Pid:")), pid)


def _start_of(pid: int) -> int:
    """Its start in clock ticks since the boot; 0 where it can't be read (gone, or ProtectProc=invisible)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes() if pid > 0 else b""
    except OSError:
        return 0
    fields = line[line.rfind(b")") + 1 :].split()  # the name may hold blanks and parentheses
    return int(fields[_START]) if len(fields) > _START else 0


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()  # select.select knows no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Pidfds:
    """One pidfd for each process that owns runs, as long as it lives; `ended` is called once it does not.

    Those of processes that own none at the time are given back by `trim`, and opened again when one does.
    """

    def __init__(self, ended: Callable[[Process], None], max_files: int) -> None:
        self._ended = ended
        self._max_files = max_files
        self._fds: dict[Process, int] = {}
        self._links: WeakKeyDictionary[Process, list[asyncio.Transport]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._fds))

    def __contains__(self, process: object) -> bool:
        return process in self._fds

    def connect(self, process: Process, transport: asyncio.Transport) -> None:
        """One more connection of it."""
        links = [link for link in self._links.get(process, ()) if not link.is_closing()]
        self._links[process] = [*links, transport]

    def hold(self, process: Process, pidfd: int) -> None:
        """Take the pidfd over and watch it. Raises OSError where there are too many, and then it is closed."""
        if process in self._fds or process.gone_us:
            os.close(pidfd)
            return
        if len(self._fds) >= self._limit():
            os.close(pidfd)
            raise OSError(errno.EMFILE, f"{len(self._fds)} processes are watched, and no more can be")
        self._fds[process] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, process)

    def reopen(self, process: Process) -> None:
        """Watch it again. Raises ProcessLookupError, OSError."""
        for link in self._links.get(process, ()):
            if not link.is_closing():
                self.hold(process, self._of_link(link, process.owner))
                return
        self.hold(process, open_again(process.owner))

    @staticmethod
    def _of_link(link: asyncio.Transport, owner: Owner) -> int:
        """A pidfd of the connection's process; before Linux 6.5 its pid may be another's by now: a child holds the connection."""
        pidfd = peer_pidfd(_socket(link), owner.pid)
        try:
            same = _is_same(owner, identity(pidfd, owner.pid))
        except OSError:
            os.close(pidfd)
            raise
        if same is False:
            os.close(pidfd)
            raise _gone()
        return pidfd

    def release(self, process: Process) -> None:
        pidfd = self._fds.pop(process, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def trim(self) -> None:
        """Give back those of processes that own nothing."""
        for process in [process for process in self._fds if not process.runs]:
            self.release(process)

    def has_ended(self, process: Process) -> bool:
        return process in self._fds and has_ended(self._fds[process])

    def has_more(self, process: Process) -> bool:
        """Whether something that it has sent is still unread: its own end of a run may be in it."""
        return any(
            not link.is_closing() and (not link.is_reading() or _unread(link)) for link in self._links.get(process, ())
        )

    def close(self) -> None:
        for process in self:
            self.release(process)

    def _limit(self) -> int:
        """As many as there may be connections, as far as the open files reach for both."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(self._max_files, max(files - self._max_files, files // _LEAST_FILES))


def _socket(link: asyncio.Transport) -> Any:
    return link.get_extra_info("socket")


def _unread(link: asyncio.Transport) -> bool:
    sock: Options = _socket(link)
    try:
        (unread,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(_INT.size)))
    except (OSError, ValueError):  # closed meanwhile
        return False
    return bool(unread)
