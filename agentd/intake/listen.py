"""The listening sockets: who may have the path, in which mode it exists, and what is left behind; and one on loopback.

A second `bind` on a live path would succeed and steal it, so a lock file beside the socket is taken first, and what lies
at the path is replaced only by the lock's holder. The socket never exists with a wider mode than the configured one.
`server` opens them; nothing here knows what is spoken on it.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import logging
import os
import resource
import socket
import stat
import struct
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from agentd.config_checks import http_address
from agentd.errors import AlreadyRunning, ConfigError, StateError
from agentd.intake import NO_TOKEN, Peer
from agentd.ownership import check_way, check_written, has_all_uids, overflow_uid
from agentd.paths import MAX_SOCKET_PATH, SOCKET_NAME
from agentd.sections import Listen

_log = logging.getLogger("agentd.intake")

ACCEPT_BURST = 64  # connections taken per turn of the event loop, so that a storm of them stops nobody's messages
ACCEPT_PAUSE_S = 1.0  # after accept() failed (EMFILE, ENFILE, ENOMEM)
BACKLOG = 1024  # connections that the kernel keeps until they are accepted (cut to net.core.somaxconn)
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))
NOBODY = Peer(uid=-1, gid=-1, pid=0, token=NO_TOKEN)  # over TCP, before a token was shown: nobody, who may do nothing


def peer_of(sock: socket.socket) -> Peer:
    """Who connected, as the kernel saw it at connect time; uid -1 where it can't say.

    That is over TCP, and within a user namespace for all who have no uid there: those are several, and not one user.
    """
    if sock.family != socket.AF_UNIX:
        return NOBODY
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(uid=-1 if uid == _nameless() else uid, gid=gid, pid=pid)


@cache
def _nameless() -> int | None:
    """The uid under which several users appear, who are not told apart; None where all have one of their own."""
    return None if has_all_uids() else overflow_uid()


def open_loopback(address: str) -> socket.socket:
    """A socket that listens on `listen.http`. Raises AlreadyRunning where somebody does already, ConfigError, StateError."""
    return open_tcp(*http_address(address), f"[listen] http: {address}")


def open_tcp(host: str, port: int, about: str) -> socket.socket:
    """A socket that listens on an address of this host; `about` begins the errors: AlreadyRunning, StateError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise StateError(f"{about}: {error.strerror or error}") from error
    try:
        # A daemon that ended leaves connections in TIME_WAIT; a port that is listened on stays taken all the same
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(f"{about}: another program is listening here") from error
        raise StateError(f"{about}: {error.strerror or error}") from error
    return sock


def url_of(sock: socket.socket) -> str:
    """Where a TCP socket of ours listens, with the port that it got."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_file_limit() -> int:
    """Lift the soft limit of open files to the hard one; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # an unlimited hard limit is above fs.nr_open: the soft one stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


class UnixListener:
    """A bound, listening Unix socket and the lock that makes it ours."""

    def __init__(self, listen: Listen) -> None:
        """Take the lock, then the path. Raises StateError, AlreadyRunning or ConfigError and then leaves nothing."""
        self.path = listen.socket
        _check_length(self.path)
        gid = None if listen.group is None else _group_id(listen.group)
        _prepare_folder(Path(self.path).parent, os.getuid())
        self._lock = _take_lock(self.path)
        try:
            _clear(self.path)
            self.socket, self._identity = _bind(self.path, int(listen.mode, 8), gid)
        except BaseException:
            os.close(self._lock)
            raise

    def missing(self) -> str | None:
        """Why nobody can connect any more, None if they can."""
        try:
            if _identity(self.path) == self._identity:
                return None
        except OSError:
            return f"the socket {self.path} is gone"
        return f"something else is at the socket's place {self.path}"

    def close(self) -> None:
        """End listening and unlink the socket, if what lies at the path is still ours. The lock stays."""
        if self.socket.fileno() < 0:
            return
        with suppress(OSError):  # while our socket is open its inode can't be given to another file
            if _identity(self.path) == self._identity:
                Path(self.path).unlink()
        self.socket.close()

    def release(self) -> None:
        """Let the next daemon have the path. The lock file stays: to unlink it would let two daemons hold two locks."""
        self.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _check_length(path: str) -> None:
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise StateError(
            f"{path}: a Unix socket's path has at most {MAX_SOCKET_PATH} bytes, this one has {length}; set listen.socket"
        )


def _group_id(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"[listen] group: there is no group {name!r} on this machine") from None


def _prepare_folder(folder: Path, uid: int) -> None:
    """Make the folder, for us alone, if there is none. One that exists is the operator's and keeps its mode."""
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror}") from error
    check_way(folder / SOCKET_NAME, uid, "listen.socket in")
    if str(folder) == f"/tmp/agentd-{uid}":  # noqa: S108 - anybody can make this folder first: so it is looked at
        check_private(folder, uid)


def check_private(folder: Path, uid: int) -> None:
    """Raise StateError unless the folder is a real one, the uid's own, and nobody else may write to it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise StateError(f"{folder}: a symbolic link or a file, expected a folder of uid {uid}")
    if found.st_uid != uid:
        raise StateError(f"{folder}: belongs to uid {found.st_uid}, expected {uid}; set listen.socket to another place")
    if found.st_mode & 0o022:
        raise StateError(f"{folder}: others may write to it; chmod 700 it")


def _take_lock(path: str) -> int:
    name = f"{path}.lock"
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise StateError(f"{name}: {error.strerror}") from error
    try:
        check_written(lock, name, os.geteuid())
    except StateError:
        os.close(lock)
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise AlreadyRunning(f"{path}: another agentd (pid {holder or 'unknown'}) is listening here") from None
        raise StateError(f"{name}: {error.strerror}") from error
    return lock


def _clear(path: str) -> None:
    """Take a dead daemon's socket away. What is no socket, or is answered by somebody without our lock, stays."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise StateError(f"{path}: there is something that is no socket; agentd does not delete it, take it away")
    if _is_answered(path):
        raise AlreadyRunning(f"{path}: another program, such as systemd for agentd.socket, is listening here")
    try:
        Path(path).unlink()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    return code in (0, errno.EAGAIN)  # EAGAIN: a listener whose backlog is full


def _bind(path: str, mode: int, gid: int | None) -> tuple[socket.socket, tuple[int, int]]:
    """Bind for us alone, hand over to the group, widen to the mode, and only then listen."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    bound = False
    umask = os.umask(0o777 & ~(mode & 0o600))
    try:
        try:
            sock.bind(path)
            bound = True
        finally:
            os.umask(umask)
        if gid is not None:
            os.chown(path, -1, gid)
        Path(path).chmod(mode)
        sock.listen(BACKLOG)
        return sock, _identity(path)
    except OSError as error:
        sock.close()
        if bound:
            Path(path).unlink()
        raise StateError(f"{path}: {error.strerror or error}") from error


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


class Acceptor:
    """Takes connections from one listening socket and hands each to `welcome`; out of file descriptors it pauses."""

    def __init__(self, sock: socket.socket, welcome: Callable[[socket.socket], None], loop: AbstractEventLoop) -> None:
        """Begin at once. `sock` is listening and non-blocking; it stays the caller's."""
        self._sock = sock
        self._welcome = welcome
        self._loop = loop
        self._pause: TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        else:
            self._loop.remove_reader(self._sock)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                connected, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # The kernel keeps calling the socket readable: without a pause this would be a busy loop.
                _log.warning(
                    "accept: %s; the next try is in %.0f s",
                    error.strerror,
                    ACCEPT_PAUSE_S,
                    extra={"action": "accept_failed"},
                )
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            self._welcome(connected)
