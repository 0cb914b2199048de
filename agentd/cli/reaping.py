"""As process 1 of a container we inherit the children of whoever dies there; they stay as zombies until somebody waits for them.

    with reaping() as reaper:           # does nothing where we are not process 1: then they go to who is
        with reaper.holding():          # nothing is waited for until our own child is known
            process = await create_subprocess_exec(…)
            reaper.keep(process.pid)    # its status is for whoever waits for it
        await process.wait()

A zombie is looked at before it is waited for (waitid(2), WNOWAIT). While our own child is the one to be seen the others stay until
its status has been fetched, which is at once; what ends after it does is seen by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class Reaper:
    """Waits for what is nobody's. `reaped` counts it."""

    def __init__(self) -> None:
        self.reaped = 0
        self._kept: int | None = None
        self._holds = False

    def __repr__(self) -> str:
        return f"<Reaper {self.reaped} reaped, keeps {self._kept}>"

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Wait for nothing within the block, in which a child of our own is started."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False

    def keep(self, pid: int) -> None:
        """Leave this one's status to somebody else."""
        self._kept = pid

    def reap(self) -> None:
        """Wait for all that have ended, without waiting for any to end."""
        while not self._holds:
            try:
                ended = os.waitid(os.P_ALL, 0, _LOOK)
                if ended is None or ended.si_pid == self._kept:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)
            except ChildProcessError:  # there are none, or somebody else was faster
                return
            self.reaped += 1


@contextlib.contextmanager
def reaping(*, always: bool = False) -> Iterator[Reaper]:
    """Reap within the block if we are process 1, or `always`: a subreaper (prctl(2)) gets them as well."""
    reaper = Reaper()
    if os.getpid() != 1 and not always:
        yield reaper
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
    try:
        yield reaper
        reaper.reap()  # what ended while our own child was the one to be seen
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
