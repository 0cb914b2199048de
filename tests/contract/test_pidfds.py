"""Processes as the kernel tells of them: real children that connect, end and are killed, with and without SO_PEERPIDFD."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.intake import pidfds
from agentd.intake.orphans import Owner, Process
from agentd.intake.pidfds import Pidfds, has_ended, here, identity, open_again, peer_pidfd

CONNECT = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
sys.stdin.read()
"""
SHARED = Path("/proc/self/ns/pid").stat().st_ino


def open_files():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


class Old:
    """A socket of a kernel before 6.5."""

    def getsockopt(self, level, option):
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    def fileno(self):
        return -1


class Child:
    """A process that has connected to us and waits."""

    def __init__(self, folder):
        with socket.socket(socket.AF_UNIX) as listener:
            path = str(folder / "s")
            listener.bind(path)
            listener.listen()
            self.process = subprocess.Popen([sys.executable, "-c", CONNECT, path], stdin=subprocess.PIPE)
            listener.settimeout(20)
            self.link, _ = listener.accept()
            Path(path).unlink()
        self.pid = self.process.pid

    def kill(self, *, reap=True):
        """Dead, and reaped unless it is left a zombie."""
        fd = os.pidfd_open(self.pid)
        self.process.kill()
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        os.close(fd)
        if reap:
            self.process.wait(20)

    def close(self):
        self.link.close()
        self.process.stdin.close()
        self.process.kill()
        self.process.wait(20)


@pytest.fixture
def child(tmp_path):
    with contextlib.closing(Child(tmp_path)) as child:
        yield child


@pytest.fixture
def files():
    """At the end no descriptor is left."""
    before = open_files()
    yield
    assert open_files() == before


def owner_of(pid, fd, **facts):
    found = identity(fd, pid)
    return Owner(
        **(
            {
                "boot": "b",
                "pid_space": SHARED,
                "pid": pid,
                "start": found.start,
                "inode": found.inode,
                "uid": 0,
                "stream": "",
            }
            | facts
        )
    )


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# -- the peer's ------------------------------------------------------------------------------------------------------------


def socket_of(child, kernel):
    return child.link if kernel == "new" else Old()


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_a_peer_is_seen_to_live_and_to_end(child, kernel):
    """With SO_PEERPIDFD, and by its pid where there is none: killed, reaped or not, it has ended."""
    fd = peer_pidfd(socket_of(child, kernel), child.pid)
    try:
        assert not has_ended(fd)
        child.kill(reap=False)
        assert has_ended(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_a_peer_that_was_gone_before_we_looked_is_known_to_be(child, kernel):
    """Reaped: either there is none any more, or its pidfd says that it has ended (Linux 6.16)."""
    child.kill()
    try:
        fd = peer_pidfd(socket_of(child, kernel), child.pid)
    except ProcessLookupError:
        return
    assert has_ended(fd)
    os.close(fd)


def test_a_hidden_pid_needs_the_kernels_own_way(child):
    """Another pid namespace's process reads as pid 0: without SO_PEERPIDFD nothing can be known of it."""
    with pytest.raises(OSError, match="not available"):
        peer_pidfd(Old(), 0)
    fd = peer_pidfd(child.link, 0)
    assert not has_ended(fd)
    os.close(fd)


def test_a_pid_that_changes_hands_meanwhile_is_not_taken(child, monkeypatch, files):
    """Where only the pid is known its start time is read before and after: another one is another process."""
    starts = iter([1000, 2000])
    monkeypatch.setattr(pidfds, "_start_of", lambda _pid: next(starts))
    with pytest.raises(ProcessLookupError):
        peer_pidfd(Old(), child.pid)


# -- identity --------------------------------------------------------------------------------------------------------------


def test_a_process_has_one_identity_however_often_it_is_opened(child):
    """Start time and inode are the process's own, and its parent has others."""
    first, second, ours = peer_pidfd(child.link, child.pid), os.pidfd_open(child.pid), os.pidfd_open(os.getpid())
    try:
        found = identity(first, child.pid)
        assert found == identity(second, child.pid)
        assert found.start == int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert not {found.start, found.inode} & {value for value in identity(ours, os.getpid()) if value}
    finally:
        for fd in (first, second, ours):
            os.close(fd)


def test_before_linux_6_9_a_pidfd_has_no_inode_of_its_own(child, monkeypatch):
    """All pidfds had one inode then, that of anonymous files: it is none that could tell processes apart."""
    fd = os.pidfd_open(child.pid)
    monkeypatch.setattr(pidfds, "_anonymous", lambda: os.fstat(fd).st_dev)
    assert identity(fd, child.pid).inode == 0
    os.close(fd)


def test_of_a_dead_process_no_start_is_read(child, monkeypatch):
    """Its pid may be another's by now."""
    fd = os.pidfd_open(child.pid)
    child.kill()
    monkeypatch.setattr(pidfds, "_pid_in_proc", lambda _fd, _pid: os.getpid())
    assert identity(fd, child.pid).start == 0
    os.close(fd)


def test_a_process_is_found_again(child, files):
    """After a restart: the same pid, start and inode."""
    first = os.pidfd_open(child.pid)
    second = open_again(owner_of(child.pid, first))
    assert not has_ended(second)
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("known", [{"start": 1}, {"inode": 1}, {"start": 1, "inode": 0}, {"start": 0, "inode": 1}])
def test_a_reused_pid_is_not_fooled(child, known, files):
    """A living process under the pid of another one, whose start or inode differs: the other one is gone."""
    fd = os.pidfd_open(child.pid)
    owner = owner_of(child.pid, fd, **known)
    os.close(fd)
    with pytest.raises(ProcessLookupError):
        open_again(owner)


def test_a_pid_that_nobody_has_is_gone(child, files):
    """Whatever else is known of the process."""
    child.kill()
    for start in (0, 5):
        with pytest.raises(ProcessLookupError):
            open_again(Owner("b", SHARED, child.pid, start, 0, 0, ""))


@pytest.mark.parametrize(("pid", "start"), [(0, 5), (None, 0)])
def test_what_can_not_be_read_is_not_guessed(child, pid, start, files):
    """A hidden pid, or a living process of which nothing was known: it may be the one or another."""
    with pytest.raises(OSError, match="can't be told") as caught:
        open_again(Owner("b", SHARED, child.pid if pid is None else pid, start, 0, 0, ""))
    assert not isinstance(caught.value, ProcessLookupError)


def test_here_is_this_boot_and_this_pid_namespace():
    """What is kept of a process means something within these alone."""
    boot, pid_space = here()
    assert (len(boot), pid_space) == (36, SHARED)


# -- holding them ----------------------------------------------------------------------------------------------------------


class Held:
    """Pidfds, and who they said has ended."""

    def __init__(self, max_files=10):
        self.ended = []
        self.pidfds = Pidfds(self.gone, max_files)

    def gone(self, process):
        self.ended.append(process)
        self.pidfds.release(process)


async def test_the_end_of_a_process_is_heard_of(child, files):
    """By the event loop, without looking; afterwards nothing of it is open."""
    held, agent = Held(), Process(Owner("b", SHARED, child.pid, 0, 0, 0, ""))
    held.pidfds.hold(agent, peer_pidfd(child.link, child.pid))
    assert (agent in held.pidfds, held.pidfds.has_ended(agent)) == (True, False)
    child.kill()
    await until(lambda: held.ended)
    assert (held.ended, len(held.pidfds)) == ([agent], 0)


async def test_connections_of_one_process_share_one(child, files):
    """A second pidfd of a process that is watched already is closed."""
    held, agent = Held(), Process(Owner("b", SHARED, child.pid, 0, 0, 0, ""))
    before = len(open_files())
    for _ in range(20):
        held.pidfds.hold(agent, os.pidfd_open(child.pid))
    assert len(open_files()) == before + 1
    held.pidfds.close()


async def test_a_process_that_owns_nothing_costs_no_descriptor(child, files):
    """Its pidfd is given back, and opened again when it starts a run: by its connection, or by what is known of it."""
    held = Held()
    fd = os.pidfd_open(child.pid)
    agent = Process(owner_of(child.pid, fd))
    held.pidfds.hold(agent, fd)
    held.pidfds.trim()
    assert len(held.pidfds) == 0
    held.pidfds.reopen(agent)
    assert len(held.pidfds) == 1
    held.pidfds.trim()
    transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=child.link.dup())
    held.pidfds.connect(agent, transport)
    agent.owner = Owner("b", SHARED, 0, 0, 0, 0, "")  # hidden: the connection alone leads to it
    held.pidfds.reopen(agent)
    assert (len(held.pidfds), held.pidfds.has_ended(agent)) == (1, False)
    transport.close()
    held.pidfds.close()
    await asyncio.sleep(0)


async def test_a_connection_that_outlives_its_process_leads_to_no_other(child, files, monkeypatch):
    """A child holds it, and the pid is another's by now: before Linux 6.5 that one would be watched in its place."""
    held = Held()
    fd = os.pidfd_open(child.pid)
    agent = Process(owner_of(child.pid, fd, start=1))
    os.close(fd)
    transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=child.link.dup())
    held.pidfds.connect(agent, transport)
    monkeypatch.setattr(pidfds, "_socket", lambda _link: Old())
    with pytest.raises(ProcessLookupError):
        held.pidfds.reopen(agent)
    assert len(held.pidfds) == 0
    transport.close()
    await asyncio.sleep(0)


async def test_descriptors_have_a_bound(child, files):
    """Beyond it a process is not watched, and nothing stays open of it."""
    held = Held(max_files=3)
    for _ in range(3):
        held.pidfds.hold(Process(Owner("b", SHARED, 1, 0, 0, 0, "")), os.pidfd_open(child.pid))
    with pytest.raises(OSError, match="3 processes are watched") as caught:
        held.pidfds.hold(Process(Owner("b", SHARED, 2, 0, 0, 0, "")), os.pidfd_open(child.pid))
    assert caught.value.errno == errno.EMFILE
    held.pidfds.close()


async def test_what_is_unread_of_a_dead_process_is_waited_for(files):
    """Its connection holds something, or is not read just now: the run's own end may be in it."""
    held, agent = Held(), Process(Owner("b", SHARED, 1, 0, 0, 0, ""))
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=ours)
    held.pidfds.connect(agent, transport)
    await asyncio.sleep(0)
    assert not held.pidfds.has_more(agent)
    transport.pause_reading()
    assert held.pidfds.has_more(agent)
    theirs.send(b"x")
    transport.resume_reading()
    assert held.pidfds.has_more(agent)
    await until(lambda: not held.pidfds.has_more(agent))
    transport.close()
    assert not held.pidfds.has_more(agent)
    theirs.close()
    await asyncio.sleep(0)
