"""A screen of its own on a terminal: lines that are drawn over one another, keys as they are pressed, and all as it was afterwards.

    with Terminal() as terminal:            # the other screen, no cursor, keys without Enter and without echo
        terminal.draw(lines)
        event = terminal.wait(1.0)          # a key, RESIZED, or None when the time is over

However the block is left (an exception, Ctrl-C, SIGTERM, SIGHUP, SIGQUIT), the terminal is as it was before; Ctrl-Z gives it back until
`fg`. Only SIGKILL can't be helped: `reset` does.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

RESIZED = "resized"
# xterm's control sequences, as every terminal of today has them: the alternate screen, no cursor, nothing wraps
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KEY_BYTES = 64


class Ended(SystemExit):
    """A signal has ended it; the exit code is the shell's for that."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Terminal:
    """See the module. Of standard input and output; main thread only, since signals are handled."""

    def __init__(self) -> None:
        self._in = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._before: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._wake_read = self._wake_write = -1
        self._wake_before = -1

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._in)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            for number in _ENDS:
                self._handlers[number] = signal.signal(number, _end)
            self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
            self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
            self._take()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now: not those of COLUMNS, which a shell may have exported before."""
        columns, lines = os.get_terminal_size(self._out)
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """These instead of what is there, without a moment of emptiness."""
        drawn = "\r\n".join(f"{line}{_REST_OF_LINE}" for line in lines)
        self._write(f"{_HOME}{drawn}{_REST}")

    def wait(self, timeout_s: float) -> str | None:
        """The next key, RESIZED after a change of size (or what may be one), None when the time is over."""
        ready, _, _ = select.select([self._in, self._wake_read], [], [], max(0.0, timeout_s))
        if self._wake_read in ready:
            os.read(self._wake_read, _KEY_BYTES)
            return RESIZED
        if self._in not in ready:
            return None
        typed = os.read(self._in, _KEY_BYTES)
        if not typed:
            raise Ended(signal.SIGHUP)
        return typed[:1].decode("ascii", "replace")  # of an arrow or a pasted text what it begins with

    def _take(self) -> None:
        tty.setcbreak(self._in)
        self._write(_ENTER)

    def _give_back(self) -> None:
        """First what may fail: a terminal that is gone takes no text, and needs none."""
        termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
        self._write(_LEAVE)

    def _restore(self) -> None:
        try:
            self._give_back()
        except (OSError, termios.error):
            pass  # hung up: there is no terminal any more
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wake_before)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _suspend(self, *_: object) -> None:
        """Ctrl-Z: stop as others do, on the screen that was there before; go on when told to."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)  # here again after SIGCONT
        self._take()

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._out, data) :]


def _end(number: int, _: FrameType | None) -> None:
    raise Ended(number)
