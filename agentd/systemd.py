"""What systemd hands to a service and wants to hear of it: sockets, a watchdog, and a datagram socket for news.

    inherited = inherit(os.environ)     # once, at the start; the variables are gone afterwards
    inherited.sockets                   # listening already, in the unit's order; none: open your own
    inherited.notifier.ready("…")
    inherited.watchdog_s                # feed at least so often; None: nobody counts

The protocols are sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). What was passed and can't be used is a
ConfigError and not ignored: agents would talk to a socket that nobody reads. A socket that was passed stays systemd's: its
file is neither unlinked nor changed.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

from agentd.errors import ConfigError

log = logging.getLogger("agentd")

FIRST_SOCKET = 3  # SD_LISTEN_FDS_START
_SEND_TIMEOUT_S = 1.0  # PID 1 reads its socket at once, or has troubles of its own
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Notifier:
    """News for the service manager; without an address there is none, and nobody is told."""

    def __init__(self, address: str = "", *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """`address` is NOTIFY_SOCKET's value: a path, or `@` and an abstract name. Raises ConfigError for any other."""
        if address and address[0] not in "/@":
            raise ConfigError(f"NOTIFY_SOCKET={address}: expected a path, or @ and the name of an abstract socket")
        self.address = address
        self._place = "\0" + address[1:] if address.startswith("@") else address
        self._monotonic_ns = monotonic_ns
        self._complained = False

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self.address)

    def __repr__(self) -> str:
        return f"<Notifier {self.address or 'of nobody'}>"

    def ready(self, status: str) -> None:
        """It takes records; also after a reload."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends that. The time lets systemd know whose answer a READY=1 is."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self, status: str) -> None:
        """The end has begun. Say it first, not last."""
        self._send("STOPPING=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def feed(self, status: str = "") -> None:
        """The watchdog's turn: it kills whoever lets WatchdogSec= pass without this."""
        self._send("WATCHDOG=1", *([_status(status)] if status else []))

    def extend(self, seconds: float, status: str = "") -> None:
        """Start or stop may take so much longer from now on, whatever TimeoutStartSec= or TimeoutStopSec= say."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", *([_status(status)] if status else []))

    def _send(self, *assignments: str) -> None:
        """One datagram. That it can't be sent is no reason to stop serving: the log says so once."""
        if not self.address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_SEND_TIMEOUT_S)
                sock.sendto("\n".join(assignments).encode(), self._place)
        except OSError as error:
            if not self._complained:
                log.warning(
                    "can't tell the service manager: NOTIFY_SOCKET=%s: %s", self.address, error.strerror or error,
                    extra={"action": "notify_failed"},
                )  # fmt: skip
            self._complained = True
        else:
            self._complained = False


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"  # a line break would begin another assignment


class Inherited(NamedTuple):
    """What a service was started with. Without a service manager: nothing."""

    sockets: list[socket.socket]
    notifier: Notifier
    watchdog_s: float | None

    @property
    def path(self) -> str | None:
        """Where the first socket is that was passed."""
        return self.sockets[0].getsockname() if self.sockets else None


NOTHING = Inherited([], Notifier(), None)


def inherit(env: MutableMapping[str, str]) -> Inherited:
    """Take what systemd passes, and its variables out of `env`: what we start is no service. Raises ConfigError."""
    try:
        return Inherited(listen_fds(env), Notifier(env.get("NOTIFY_SOCKET", "")), watchdog_interval(env))
    finally:
        for name in _VARIABLES:
            env.pop(name, None)


def watchdog_interval(env: MutableMapping[str, str], pid: int | None = None) -> float | None:
    """Half of WATCHDOG_USEC in seconds, as sd_watchdog_enabled(3) advises; None where nobody watches this process."""
    if "WATCHDOG_USEC" not in env:
        return None
    if _number(env, "WATCHDOG_PID", default=_own(pid)) != _own(pid):
        return None  # the watched one is another, which has started us
    usec = _number(env, "WATCHDOG_USEC")
    if not usec:
        raise ConfigError("WATCHDOG_USEC=0: expected microseconds")
    return usec / 2e6


def listen_fds(env: MutableMapping[str, str], pid: int | None = None, first: int = FIRST_SOCKET) -> list[socket.socket]:
    """The sockets that were passed; none without LISTEN_FDS. Raises ConfigError for what agentd can't listen on."""
    if "LISTEN_FDS" not in env:
        return []
    count = _number(env, "LISTEN_FDS")
    meant = _number(env, "LISTEN_PID")
    if meant != _own(pid):
        raise ConfigError(
            f"LISTEN_PID={meant}, and this process is {_own(pid)}: systemd has passed its sockets to another; start agentd "
            "itself in ExecStart=, with no shell before it"
        )
    names = env["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in env else ["unknown"] * count
    if len(names) != count:
        raise ConfigError(f"LISTEN_FDNAMES={env['LISTEN_FDNAMES']}: {len(names)} names for LISTEN_FDS={count}")
    found: list[socket.socket] = []
    try:
        found.extend(_listening(first + place, name) for place, name in enumerate(names))
    except ConfigError:
        for sock in found:
            sock.close()
        raise
    return found


def _listening(fd: int, name: str) -> socket.socket:
    """A socket that can be accepted from, closed in whatever we start. Raises ConfigError and leaves the descriptor as it is."""
    about = f"file descriptor {fd} ({name}), passed by systemd"
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise ConfigError(f"{about}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{about}: is no socket; agentd.socket has a ListenStream= with a path and nothing else")
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    wrong = _unusable(sock)
    if wrong:
        sock.detach()
        raise ConfigError(f"{about}: {wrong}")
    return sock


def _unusable(sock: socket.socket) -> str:
    """Why agentd can't take connections from it; empty if it can."""
    if sock.family != socket.AF_UNIX:
        return "is no Unix socket; HTTP over loopback is [listen] http's, ListenStream= takes a path"
    if sock.type != socket.SOCK_STREAM:
        return f"is of type {sock.type.name}, expected a stream: ListenStream="
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: Accept=no is needed"
    name = sock.getsockname()
    if not isinstance(name, str) or not name:
        return "has an abstract name, which everybody may connect to; ListenStream= takes a path"
    return ""


def _own(pid: int | None) -> int:
    return os.getpid() if pid is None else pid


def _number(env: MutableMapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{name}={text}: expected a number")
    return int(text)
