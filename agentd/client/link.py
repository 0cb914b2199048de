"""The socket, and the thread that serves it. It sleeps until something is emitted, gathers for 10 ms, sends, and listens.

All decisions about records are the desk's (`channel.Channel`, whose methods take the lock); here are only bytes, times and
errors. Nothing wakes up by itself while the agent is silent, unless a run is open and the daemon is away.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from agentd.client.outbox import ENVELOPE_RECORDS, Envelope, Frames
from agentd.errors import WireError

GATHER_S = 0.010
FIRST_RETRY_S = 0.050
LAST_RETRY_S = 5.0
HELLO_TIMEOUT_S = 5.0
_OUT_BYTES = 512 * 1024  # enough to keep the socket full; more would only be a second copy
_RECV_BYTES = 64 * 1024


class Desk(Protocol):
    """What the link asks for; every method is safe to call from its thread."""

    def over(self) -> bool: ...
    def rest(self) -> bool: ...
    def hurry(self) -> bool: ...
    def queued(self) -> int: ...
    def full(self) -> bool: ...
    def parked(self) -> int: ...
    def sweep(self) -> None: ...
    def hello(self) -> bytes: ...
    def next_envelope(self) -> Envelope | None: ...
    def on_hello(self, answer: dict[str, Any]) -> list[Envelope]: ...
    def on_answer(self, answer: dict[str, Any]) -> str | None: ...
    def on_unreachable(self, reason: str) -> None: ...
    def on_crash(self, error: Exception) -> None: ...
    def report(self) -> None: ...


def backoff_s(tries: int, share: float) -> float:
    """50 ms doubled up to 5 s; `share` (0 … 1) spreads many clients over the second half of the wait."""
    full = min(LAST_RETRY_S, FIRST_RETRY_S * float(2 ** min(tries - 1, 20)))
    return full * (0.5 + share / 2)


class Link:
    """One connection at a time, made again as often as it takes."""

    def __init__(self, desk: Desk, find: Callable[[], str]) -> None:
        self._desk = desk
        self._find = find
        self._wake_here, self._wake_there = socket.socketpair()
        self._wake_here.setblocking(False)
        self._wake_there.setblocking(False)
        # poll, not epoll: an epoll set would be shared with a forked child
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._wake_here, selectors.EVENT_READ)
        self._socket: socket.socket | None = None
        self._frames = Frames()
        self._ready = False
        self._out = bytearray()
        self._tries = 0
        self._full_tries = 0
        self._not_before = 0.0  # no connection, or no envelope while the spool is full, before this time
        self._sweep_at: float | None = None  # when records that wait for one full destination are tried again
        self._hello_until = 0.0
        self._gather_until: float | None = None

    def wake(self) -> None:
        """Interrupt the thread's sleep, from any thread."""
        with contextlib.suppress(OSError):  # a full pipe is a wake-up that is already on its way
            self._wake_there.send(b"\0")

    def run(self) -> None:
        """The thread's life: until the desk says that it is over."""
        try:
            while not self._desk.over():
                self._wait(self._turn(time.monotonic()))
        except Exception as error:  # noqa: BLE001 - a fault of ours or descriptors closed under us: the next emit begins anew
            self._desk.on_crash(error)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of every descriptor. In a forked child this closes the child's copies alone."""
        for end in (self._socket, self._wake_here, self._wake_there):
            if end is not None:
                end.close()
        self._socket = None
        self._selector.close()

    def _turn(self, now: float) -> float | None:
        """Do what can be done now. Returns how long to sleep, None for until something happens."""
        desk = self._desk
        desk.report()
        if desk.hurry():
            self._gather_until = now
            if self._sweep_at is not None:
                self._sweep_at = now
            if self._socket is None:
                self._not_before = now
        if self._socket is None:
            if desk.rest():
                return None
            if now < self._not_before:
                return self._not_before - now
            self._connect(now)
            return 0.0
        if not self._ready:
            if now < self._hello_until:
                return self._hello_until - now
            self._fail(f"no answer to the hello within {HELLO_TIMEOUT_S:.0f} s")
            return 0.0
        return self._fill(now)

    def _fill(self, now: float) -> float | None:
        """Move records into envelopes, once they are gathered and as far as the window and the socket take them."""
        desk = self._desk
        sleep = self._sweep(now)
        queued = desk.queued()
        if not queued:
            self._gather_until = None
            return sleep if desk.rest() else 0.0
        if desk.full() and now < self._not_before:
            return self._not_before - now
        if queued < ENVELOPE_RECORDS:
            if self._gather_until is None:
                self._gather_until = now + GATHER_S
            if now < self._gather_until:
                return self._gather_until - now
        self._gather_until = None
        sent = False
        while len(self._out) < _OUT_BYTES:
            envelope = desk.next_envelope()
            if envelope is None:
                break
            self._out += envelope.frame()  # put together outside the lock
            sent = True
        self._write()
        if sent or not desk.queued():
            return 0.0
        return sleep  # an answer, room in the socket or a wake-up is what can help now

    def _sweep(self, now: float) -> float | None:
        """Have parked records tried again when it is time. Returns how long that is, None for until something happens."""
        if self._sweep_at is None:
            return None
        if now < self._sweep_at:
            return self._sweep_at - now
        self._sweep_at = None
        self._desk.sweep()
        return None

    def _connect(self, now: float) -> None:
        link = None
        try:
            path = self._find()
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.setblocking(False)
            link.connect(path)
        except (OSError, ValueError) as error:  # a full backlog counts as not there: the wait is the same
            if link is not None:
                link.close()
            self._fail(str(error) or type(error).__name__)
            return
        self._socket = link
        self._selector.register(link, selectors.EVENT_READ)
        self._frames = Frames()
        self._out = bytearray(self._desk.hello())
        self._hello_until = now + HELLO_TIMEOUT_S
        self._write()

    def _fail(self, reason: str) -> None:
        """Let go of the connection and come back later."""
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._ready = False
        self._out = bytearray()
        self._tries += 1
        self._not_before = time.monotonic() + backoff_s(self._tries, random.random())  # noqa: S311 - spreads retries
        self._desk.on_unreachable(reason)

    def _wait(self, timeout: float | None) -> None:
        if self._socket is not None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
            self._selector.modify(self._socket, wanted)
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._wake_here:
                self._drain_wakes()
            else:
                self._serve(events)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_here.recv(4096)

    def _serve(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ and self._socket is not None:
            self._read()

    def _write(self) -> None:
        if self._socket is None:
            return
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(str(error))

    def _read(self) -> None:
        link = self._socket
        if link is None:
            return
        try:
            data = link.recv(_RECV_BYTES)
            if not data:
                self._fail("the daemon closed the connection")
                return
            for message in self._frames.feed(data):
                self._hear(message)
        except BlockingIOError:
            return
        except (OSError, WireError, ValueError) as error:
            self._fail(str(error))

    def _hear(self, message: dict[str, Any]) -> None:
        if not self._ready:
            if "hello" not in message:
                raise WireError(f"the daemon refused the hello: {message.get('error')}")
            self._ready = True
            for envelope in self._desk.on_hello(message):
                self._out += envelope.frame()
            return
        against = self._desk.on_answer(message)
        if against is not None:
            raise WireError(f"the daemon could not read us: {against}")
        self._tries = 0
        self._time_sweep()
        if not self._desk.full():
            self._full_tries = 0
        else:
            self._full_tries += 1
            self._not_before = time.monotonic() + backoff_s(self._full_tries, random.random())  # noqa: S311 - as above

    def _time_sweep(self) -> None:
        tries = self._desk.parked()
        if not tries:
            self._sweep_at = None
        elif self._sweep_at is None:
            self._sweep_at = time.monotonic() + backoff_s(tries, random.random())  # noqa: S311 - as above
