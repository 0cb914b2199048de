"""Logging to standard error: one line an entry, as text or as JSON, each with a stable `action` beside its sentence.

What an entry is about stands in fields of its own where it is known: `destination`, `lane`, `batch` (a sealed batch's key, which the
platform sees too), `record_id`. What says the same again and again is written `BURST` times in a minute and counted then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from msgspec import Struct

BURST = 10  # lines of one text
KIND_BURST = 200  # lines of one kind, whatever they name
WINDOW_S = 60.0
_TEXTS_KEPT = 1000  # names come from outside: bounded
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """One line, whatever a client or a platform has put into it."""
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")

    def format(self, record: logging.LogRecord) -> str:
        return _hide(super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_hidden(line), default=lambda value: _hide(str(value)))


def _hidden(value: Any) -> Any:
    """Every text in it without secrets."""
    if isinstance(value, str):
        return _hide(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    return [_hidden(item) for item in value] if isinstance(value, list | tuple) else value


def _as_it_is(text: str) -> str:
    return text


_hide: Callable[[str], str] = _as_it_is


def hide_with(hide: Callable[[str], str]) -> None:
    """Take secrets out of every line, tracebacks included, from now on."""
    global _hide  # noqa: PLW0603 - as logging itself, one for the process
    _hide = hide


class _Said(Struct):
    """How often within a window that began at `since` (monotonic seconds), how many of these were left out, and the last of them."""

    since: float
    times: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class Repeats:
    """Which entries are written. `emit` gets the lines that say how many were not."""

    def __init__(self, emit: Callable[[logging.LogRecord], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._lock = threading.RLock()  # the storage thread speaks, too
        self._texts: dict[tuple[str, ...], _Said] = {}
        self._kinds: dict[tuple[str, ...], _Said] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """As logging has it. What is said in order to find a fault (debug) is written whole."""
        if record.levelno <= logging.DEBUG:
            return True
        with self._lock:
            return self._is_written(record, self._clock())

    def _is_written(self, record: logging.LogRecord, now: float) -> bool:
        self._tick(now)
        kind = (record.name, record.levelname, str(record.msg))
        text = (*kind, record.getMessage())
        if len(self._texts) >= _TEXTS_KEPT and text not in self._texts:
            self._close(self._texts.pop(next(iter(self._texts))), now)
        return self._may(self._kinds, kind, record, now, KIND_BURST) and self._may(
            self._texts, text, record, now, BURST
        )

    def _may(
        self,
        known: dict[tuple[str, ...], _Said],
        key: tuple[str, ...],
        record: logging.LogRecord,
        now: float,
        burst: int,
    ) -> bool:
        said = known.setdefault(key, _Said(now))
        said.times += 1
        if said.times <= burst:
            return True
        said.left_out, said.last = said.left_out + 1, record
        return False

    def tick(self) -> None:
        """Say of what is over how often it came; call it now and then."""
        with self._lock:
            self._tick(self._clock())

    def _tick(self, now: float) -> None:
        for known in (self._texts, self._kinds):
            while known and now - (said := known[next(iter(known))]).since >= WINDOW_S:
                del known[next(iter(known))]
                self._close(said, now)

    def close(self) -> None:
        """Say it of all."""
        with self._lock:
            now = self._clock()
            for known in (self._texts, self._kinds):
                for said in known.values():
                    self._close(said, now)
                known.clear()

    def _close(self, said: _Said, now: float) -> None:
        last = said.last
        if last is None:
            return
        again = logging.makeLogRecord({**vars(last), "created": time.time(), "exc_info": None, "exc_text": None})
        again.msecs = again.created % 1 * 1000
        again.repeated = said.left_out
        seconds = round(now - said.since)
        again.msg, again.args = f"… repeated {said.left_out} times in {seconds} s: {last.getMessage()}", None
        self._emit(again)


_configured = "info"
_repeats: Repeats | None = None


def form_for(form: str, env: Mapping[str, str], stderr: int) -> str:
    """`auto` is JSON where standard error is the journal's (systemd.exec(5), JOURNAL_STREAM), and text elsewhere."""
    if form != "auto":
        return form
    try:
        found = os.fstat(stderr)
    except OSError:
        return "text"
    return "json" if env.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}" else "text"


def set_up(level: str, form: str = "auto") -> None:
    """Send agentd's log to standard error, or go on with it by another level and form. Other libraries' warnings go the same way."""
    global _configured, _repeats  # noqa: PLW0603 - the process has one standard error
    flush()
    _configured = level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form_for(form, os.environ, 2) == "json" else _Text())
    _repeats = Repeats(partial(_write, handler))
    handler.addFilter(_repeats)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("agentd").setLevel(level.upper())


def _write(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Past its filters."""
    with handler.lock or contextlib.nullcontext():
        handler.emit(record)


def tick() -> None:
    """About once a second: tell of what was repeated and left out."""
    if _repeats is not None:
        _repeats.tick()


def flush() -> None:
    """Tell of all that was left out so far."""
    if _repeats is not None:
        _repeats.close()


def toggle_debug() -> None:
    """Say all there is to say, or no more than is configured."""
    own = logging.getLogger("agentd")
    quiet = "info" if _configured == "debug" else _configured
    level = quiet if own.level == logging.DEBUG else "debug"
    own.setLevel(level.upper())
    own.log(own.level, "log level is %s", level, extra={"action": "log_level"})
