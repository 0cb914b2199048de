"""A program on a terminal of its own, as a shell with job control would run it: what it draws, keys, sizes, signals, Ctrl-Z."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

_LEADER = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[2], sys.argv[2:])
told = int(sys.argv[1])
os.write(told, b"pid %d\\n" % pid)
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpid())
    os.write(told, b"stopped\\n")
    signal.sigwait([signal.SIGUSR1])
    os.tcsetpgrp(0, pid)
    os.kill(pid, signal.SIGCONT)
os.tcsetpgrp(0, os.getpid())
os.write(told, b"code %d\\n" % os.waitstatus_to_exitcode(status))
"""
ENTER, LEAVE, HOME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H"


class OnTerminal:
    """Use it as a context: whatever is left is killed at the end."""

    def __init__(self, *command, columns=100, lines=30, **options):
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.modes_before = self.modes
        self._told, telling = os.pipe()
        leader = [sys.executable, "-c", _LEADER, str(telling), sys.executable, *command]
        stdio = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave}
        self._leader = subprocess.Popen(leader, **stdio, start_new_session=True, pass_fds=[telling], **options)
        os.close(telling)
        self.shown = ""
        self._news = b""
        self.pid = int(self._hear("pid "))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in (self.pid, self._leader.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._leader.wait()
        for handle in (self._master, self._slave, self._told):
            os.close(handle)

    @property
    def modes(self):
        """The terminal's: echo, line by line, signals."""
        return termios.tcgetattr(self._slave)

    @property
    def frame(self):
        """The lines that were drawn last."""
        text = self.shown.rpartition(HOME)[2].partition(LEAVE)[0]
        return [line.rstrip("\r").replace("\x1b[K", "").replace("\x1b[J", "") for line in text.split("\n")]

    def resize(self, columns, lines):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys):
        os.write(self._master, keys.encode())

    def signal(self, number):
        os.kill(self.pid, number)

    def until(self, condition, within_s=15.0):
        """Read on until what was shown is as wanted: a word of the last frame, or a function's yes."""
        deadline = time.monotonic() + within_s
        while not (condition() if callable(condition) else condition in "\n".join(self.frame)):
            assert time.monotonic() < deadline, (
                f"in vain: {condition}\n" + "\n".join(self.frame) + f"\n{self.shown[-600:]!r}"
            )
            self._read(0.05)

    def _read(self, timeout_s):
        if select.select([self._master], [], [], timeout_s)[0]:
            self.shown += os.read(self._master, 2**16).decode(errors="replace")
            return True
        return False

    def stopped(self):
        """Wait until Ctrl-Z has stopped it."""
        self._hear("stopped")

    def resume(self):
        """As `fg` does."""
        self._leader.send_signal(signal.SIGUSR1)

    def code(self, within_s=15.0):
        """Its exit code, once it has ended; all that it has shown was read then."""
        code = int(self._hear("code ", within_s))
        self._leader.wait()
        while self._read(0.05):
            pass
        return code

    def _hear(self, word, within_s=15.0):
        deadline = time.monotonic() + within_s
        while b"\n" not in self._news:
            assert time.monotonic() < deadline, f"no {word!r}: {self.shown[-600:]!r}"
            self._read(0)
            if select.select([self._told], [], [], 0.05)[0]:
                self._news += os.read(self._told, 100) or b"nothing\n"
        line, _, self._news = self._news.partition(b"\n")
        assert line.decode().startswith(word), line
        return line.decode()[len(word) :]

    def is_as_before(self):
        """Whether nothing was left behind: modes, screen, cursor, wrapping."""
        pairs = [(ENTER, LEAVE), ("\x1b[?25l", "\x1b[?25h"), ("\x1b[?7l", "\x1b[?7h")]
        undone = all(
            self.shown.count(on) == self.shown.count(off) and self.shown.rfind(on) <= self.shown.rfind(off)
            for on, off in pairs
        )
        return undone and self.modes == self.modes_before
