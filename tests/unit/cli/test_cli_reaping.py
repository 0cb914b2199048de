"""Reaping as process 1, and a command that is told to end before it has begun."""

import asyncio
import ctypes
import os
import signal

import pytest

from agentd.cli.beside import run_beside, run_command
from agentd.cli.reaping import reaping

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@pytest.fixture
def _subreaper():
    """Orphans of our children come to us, as they come to process 1."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def zombie():
    """A child of ours that has ended, and that nobody has waited for."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_childless():
    """Whether there is nobody left to wait for."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


async def test_what_is_nobodys_is_waited_for():
    """All that have ended are gone afterwards."""
    with reaping(always=True) as reaper:
        for _ in range(3):
            zombie()
        reaper.reap()
        assert reaper.reaped == 3
    assert is_childless()


async def test_our_own_child_keeps_its_status():
    """Whoever waits for the command gets its status, and the orphans go when the block ends."""
    with reaping(always=True) as reaper:
        with reaper.holding():
            own = zombie()
            reaper.reap()
            reaper.keep(own)
        zombie()
        reaper.reap()
        assert status_of(own) == 3
    assert reaper.reaped == 1
    assert is_childless()


async def test_nothing_is_reaped_where_we_are_not_process_1():
    """A library's own children are none of our business elsewhere."""
    with reaping() as reaper:
        own = zombie()
        await asyncio.sleep(0)
    assert reaper.reaped == 0
    assert status_of(own) == 3


@pytest.mark.usefixtures("_subreaper")
async def test_a_command_and_its_orphans(monkeypatch):
    """The command's status is its own, whatever it leaves behind."""
    monkeypatch.setattr("agentd.cli.beside.reaping", lambda: reaping(always=True))
    script = "for i in 1 2 3 4 5; do (sleep 0 & ) ; done; exit 9"
    assert await run_command(("sh", "-c", script), dict(os.environ)) == 9
    while not is_childless():  # some may be on their way to their end still
        await asyncio.sleep(0)


class SlowDaemon:
    """Takes no records until it is told to stop: a long recovery."""

    def __init__(self):
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self):
        await self._stop.wait()
        self.ready.set()
        return 0

    def stop(self):
        self._stop.set()


async def test_a_command_is_not_begun_when_a_signal_came_before(tmp_path):
    """SIGTERM while the daemon starts ends it in order; process 1 would never hear of it without a handler."""
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    code = await run_beside(SlowDaemon(), ("touch", str(tmp_path / "begun")), lambda: os.environ)
    assert code == 143
    assert not (tmp_path / "begun").exists()
