"""Signals: which of them end the daemon, have it read its configuration again, or make it talk.

SIGHUP and SIGUSR1 kill a process that has not said otherwise. `catch_early` says it first thing, before anything slow is
imported; what comes until somebody listens (`signals_to`) is kept for him. Afterwards nothing that comes late kills either.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

_EARLY = (signal.SIGHUP, signal.SIGUSR1)
_seen: set[int] = set()


def catch_early() -> None:
    """Keep SIGHUP and SIGUSR1 for who will listen to them. Call on the main thread."""
    _seen.clear()
    for number in _EARLY:
        signal.signal(number, _keep)


def _keep(number: int, _frame: FrameType | None) -> None:
    _seen.add(number)


@contextlib.contextmanager
def signals_to(
    stop: Callable[[], None],
    others: Mapping[signal.Signals, Callable[[], None]] | None = None,
    *,
    ends: bool = False,
) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`, `others` their own; afterwards they do what they did before.

    If the process `ends` then, they do nothing: one that comes late, while Python tidies up, is no reason to exit with its number.
    """
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, **(others or {})}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
        if number in _seen:
            _seen.discard(number)
            loop.call_soon(handler)
    try:
        yield
    finally:
        # between the loop's handler and the next one stands the default, which kills
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        for number in handlers:
            loop.remove_signal_handler(number)
            if ends:
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
