"""Between the agent's threads and the link: one lock, one buffer, one stream per process.

`send` is what an emit costs the agent: a lock, an append, and a byte down a pipe if the thread sleeps. After a fork the
child begins anew with an empty buffer and a stream of its own: what waited belongs to the parent. At exit what waits gets
`exit_timeout` seconds, unless nobody listens. multiprocessing's children skip atexit; where that module is in use, its
own finalizers do the same work. A child that leaves by `os._exit` sends no more than the thread has sent by then.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from threading import Event, RLock, Thread
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from agentd.client.buffer import Buffer, Data, Dropped, Stats, Ticket
from agentd.client.find import NoDaemon
from agentd.client.link import Link
from agentd.client.outbox import Envelope, Outbox

CLIENT_NAME = "python/0.1.0"
_RESTART_S = 1.0  # a thread that failed is not started again before
_CURE = (
    "agentd: no daemon: %s. Start one with `agentd run`; AGENTD_DISABLED=1"
    " turns the client off. Meanwhile up to %d records wait in memory."
)
_log = logging.getLogger("agentd")
_T = TypeVar("_T")


class Options(NamedTuple):
    """What a channel needs to know, checked by the client."""

    find: Callable[[], str]
    max_records: int
    max_bytes: int
    exit_timeout: float
    on_error: Callable[[str, str], object] | None


class _Watcher(NamedTuple):
    """Somebody who waits until all records up to `until` have their answer."""

    until: int
    failures: int | None  # give up once more connections than this have failed
    tell: Callable[[], None]


class Channel:
    """The one way out of an agent's process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._closed = False
        self._retired = False
        self._begin()
        _channels.add(self)

    def _begin(self) -> None:
        """A fresh stream: at the beginning and in every forked child."""
        self._lock = RLock()  # reentrant: a signal handler or a finalizer may emit in the middle of an emit
        self._busy = False
        self._late: deque[tuple[str, int, str, Data, int, Ticket | None]] = deque()
        self._buffer = Buffer(self._options.max_records, self._options.max_bytes)
        self._outbox = Outbox(self._buffer, str(uuid4()), CLIENT_NAME)
        self._link: Link | None = None
        self._thread: Thread | None = None
        self._idle = True  # the thread sleeps, or there is none: whoever brings work has to wake it
        self._hurried = False
        self._open_runs = 0
        self._failures = 0
        self._warned = False
        self._was_ready = False  # a daemon that was there may come back: worth waiting for at the end
        self._crashed_at = float("-inf")
        self._watchers: list[_Watcher] = []
        self._ready = Event()
        self._reason = ""

    # --- the agent's side -------------------------------------------------------------------------------------------

    def send(self, kind: str, rank: int, run_id: str, data: Data, size: int, ticket: Ticket | None = None) -> None:
        """Hand a record of at most `size` bytes over. Never waits for the daemon."""
        with self._lock:
            if self._busy:
                self._late.append((kind, rank, run_id, data, size, ticket))
                return
            self._busy = True
            try:
                if self._closed:
                    self._buffer.never(kind, run_id, "closed", "the client was closed before", ticket)
                else:
                    self._buffer.put(kind, rank, run_id, data, size, ticket)
            finally:
                self._busy = False
            if self._late:
                self._bring_late()
            if not self._idle and not self._buffer.notices:
                return
            self._idle = False
        self._wake()

    def never(self, kind: str, run_id: str, cause: str, reason: str, ticket: Ticket | None = None) -> None:
        """Count a record that could not be made."""
        self._guarded(lambda: self._buffer.never(kind, run_id, cause, reason, ticket))
        self._wake()

    def count_cut(self) -> None:
        """Count a record whose strings were cut to the limit."""
        self._guarded(self._count_cut)

    def _count_cut(self) -> None:
        self._buffer.cut += 1

    def run_opened(self, change: int) -> None:
        """While a run is open the connection is kept up, so that the daemon can tell a silent agent from a dead one."""
        with self._lock:
            self._open_runs = max(0, self._open_runs + change)  # a child may end a run that its parent opened

    def stats(self) -> Stats:
        return self._guarded(self._buffer.stats)

    def dropped(self) -> Dropped:
        return self._guarded(lambda: Dropped(self._buffer.lost))

    def _guarded(self, job: Callable[[], _T]) -> _T:
        """Run a job under the lock; what is emitted from within it (a finalizer, a signal handler) comes after it."""
        with self._lock:
            if self._busy:
                return job()
            self._busy = True
            try:
                return job()
            finally:
                self._busy = False
                if self._late:
                    self._bring_late()

    def _bring_late(self) -> None:
        while self._late:
            self.send(*self._late.popleft())

    def _wake(self) -> None:
        link = self._link
        if self._closed:
            self.report()
            if link is not None:
                link.wake()
        elif link is not None:
            link.wake()
        else:
            self._start()

    def _start(self) -> None:
        """Begin the thread, at the first emit of the process."""
        with self._lock:
            if self._link is not None or self._closed or time.monotonic() < self._crashed_at + _RESTART_S:
                self._idle = self._link is None
                return
            try:
                link = Link(self, self._options.find)
            except OSError as error:
                self.on_crash(error)
                return
            self._link = link
        thread = Thread(target=link.run, name="agentd", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            link.close()
            self.on_crash(error)
        else:
            _register_child_exit()

    # --- waiting ----------------------------------------------------------------------------------------------------

    def watch(self, tell: Callable[[], None], *, give_up: bool = False) -> _Watcher | None:
        """Have `tell` called once everything emitted so far has its answer; None: it has already."""
        with self._lock:
            oldest = self._outbox.oldest()
            if oldest is None:
                return None
            watcher = _Watcher(self._buffer.emitted, self._failures if give_up else None, tell)
            self._watchers.append(watcher)
            self._idle = False
        self.hurry_up()
        return watcher

    def hurry_up(self) -> None:
        """Send and connect now, whatever the gathering and the backoff say."""
        self._hurried = True
        self._wake()

    def unwatch(self, watcher: _Watcher | None) -> tuple[int, str]:
        """End a wait. Returns how many of its records have no answer, and why."""
        if watcher is None:
            return 0, ""
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
            left = self._outbox.left_until(watcher.until)
            return left, (self._reason or "the daemon did not answer in time") if left else ""

    def flush(self, timeout: float, *, give_up: bool = False) -> tuple[int, str]:
        """Wait until everything emitted so far has its answer. Returns what has none, and why."""
        done = Event()
        watcher = self.watch(done.set, give_up=give_up)
        if watcher is not None:
            done.wait(timeout)
        return self.unwatch(watcher)

    def require(self, timeout: float) -> None:
        """Wait for the daemon's hello. Raises NoDaemon."""
        self.run_opened(1)  # somebody wants the connection
        with self._lock:
            self._idle = False
        self._wake()
        ready = self._ready.wait(timeout)
        self.run_opened(-1)
        if not ready:
            raise NoDaemon(f"AGENTD_REQUIRED is set and no daemon answered within {timeout:g} s: {self._reason}")

    def close(self, timeout: float) -> None:
        """Flush, end the thread and the connection; what is left is lost and counted."""
        if self._closed:
            return
        left, reason = self.flush(timeout)
        self._closed = True
        self._wake()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(1.0)
        self._guarded(lambda: self._outbox.give_up("closed"))
        if left:
            _log.warning("agentd: %d records were not stored when the client was closed: %s", left, reason)
        self.report()
        _channels.discard(self)

    def retire(self) -> None:
        """The client is gone: end the thread as soon as all is sent."""
        self._retired = True
        if self._link is not None:
            self._link.wake()

    def exit_flush(self) -> None:
        """What waits at the end of the process gets its last chance."""
        if self._closed:
            return
        left, reason = self.flush(self._options.exit_timeout, give_up=not self._was_ready)
        if left:
            _log.warning("agentd: %d records were not stored before the process ended: %s", left, reason)

    def after_fork(self) -> None:
        """In a child: nothing of the parent's is ours, least of all its connection."""
        link = self._link
        self._begin()
        if link is not None:
            link.close()

    # --- the link's side (see link.Desk) ----------------------------------------------------------------------------

    def over(self) -> bool:
        return self._closed or (self._retired and self._outbox.oldest() is None)

    def rest(self) -> bool:
        """Whether there is nothing to do; from then on whoever brings work wakes the thread."""
        with self._lock:
            outstanding = self._outbox.queued if self._ready.is_set() else self._buffer.buffered or self._open_runs > 0
            self._idle = not outstanding
            return self._idle

    def hurry(self) -> bool:
        hurried, self._hurried = self._hurried, False
        return hurried

    def queued(self) -> int:
        return self._outbox.queued

    def full(self) -> bool:
        return self._outbox.spool_full

    def parked(self) -> int:
        """Failed tries, and one more, to have parked records taken; 0: none is parked, or it is being tried."""
        outbox = self._outbox
        return outbox.failed_sweeps + 1 if self._buffer.parked and not outbox.sweeping else 0

    def sweep(self) -> None:
        self._guarded(self._outbox.sweep)

    def hello(self) -> bytes:
        return self._guarded(self._outbox.hello)

    def next_envelope(self) -> Envelope | None:
        return self._guarded(self._outbox.next_envelope)

    def on_hello(self, answer: dict[str, Any]) -> list[Envelope]:
        self._outbox.on_hello(answer)
        self._buffer.full_cause = "buffer_full"
        self._reason = ""
        self._was_ready = True
        self._ready.set()
        if self._warned:
            self._warned = False
            _log.info("agentd: the daemon answers again")
        return self._guarded(self._outbox.repeats)

    def on_answer(self, answer: dict[str, Any]) -> str | None:
        against = self._guarded(lambda: self._outbox.on_answer(answer))
        self._reason = "spool full" if self._outbox.spool_full or self._buffer.parked else ""
        self._tell_watchers()
        return against

    def on_unreachable(self, reason: str) -> None:
        was_ready = self._ready.is_set()
        self._ready.clear()
        self._buffer.full_cause = "no_daemon"
        self._reason = reason
        if was_ready:
            return  # a restart perhaps: the next try tells
        self._failures += 1
        if not self._warned:
            self._warned = True
            _log.warning(_CURE, reason, self._options.max_records)
        self._tell_watchers()

    def on_crash(self, error: Exception) -> None:
        with self._lock:
            self._link = None
            self._thread = None
            self._idle = True
            self._ready.clear()
            self._crashed_at = time.monotonic()
        _log.warning("agentd: the client's thread ended, a later emit starts it again: %r", error)

    def report(self) -> None:
        """Tell the log and the agent of causes that are new, outside the lock and outside of an emit."""
        while self._buffer.notices:
            cause, example = self._guarded(self._buffer.take_notice)
            if not cause:
                return  # another thread was quicker
            _log.warning("agentd: %s (cause %s; said once per cause)", example, cause)
            try:
                if self._options.on_error is not None:
                    self._options.on_error(cause, example)
            except Exception:  # noqa: BLE001 - the agent's own callback
                _log.exception("agentd: on_error failed")

    def _tell_watchers(self) -> None:
        with self._lock:
            if not self._watchers:
                return
            oldest = self._outbox.oldest()
            done = [
                watcher
                for watcher in self._watchers
                if oldest is None
                or oldest > watcher.until
                or (watcher.failures is not None and self._failures > watcher.failures)
            ]
            self._watchers = [watcher for watcher in self._watchers if watcher not in done]
        for watcher in done:
            watcher.tell()


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()
_child_exit_of: int | None = None  # the process that multiprocessing's finalizer was registered in


def _exit_flush() -> None:
    for channel in list(_channels):
        channel.exit_flush()


def _after_fork() -> None:
    for channel in list(_channels):
        channel.after_fork()


def _register_child_exit() -> None:
    """Children of multiprocessing end without atexit, and what they inherited is cleared: once per process, after the fork."""
    global _child_exit_of  # noqa: PLW0603 - a process has one exit
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _child_exit_of != os.getpid():
        _child_exit_of = os.getpid()
        util.Finalize(None, _exit_flush, exitpriority=-10)


atexit.register(_exit_flush)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
