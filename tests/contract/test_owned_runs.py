"""Runs and their owners over the real spool: one commit with their records, over a crash, on a full disk, and taken back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from agentd.identity import Uuid7
from agentd.intake import Peer, pidfds, reaper
from agentd.intake.admit import Admission
from agentd.intake.admit import Limits as AdmitLimits
from agentd.intake.dedupe import Window
from agentd.intake.orphans import Owner, Process
from agentd.intake.pidfds import Identity
from agentd.intake.reaper import Reaper
from agentd.intake.routing import Route, Table
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams
from agentd.outcomes import Cause
from agentd.queued import Death, Seal
from agentd.spool.dead import DeadLetters
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.letters import Wanted
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.spool.store import TABLE_BITS
from agentd.spool.tables import Table as Rows
from agentd.testing import FakeClock, MemoryStore
from agentd.wire import Hello, decode_message

RUNS = frozenset({"run.start", "event", "span", "task", "run.complete", "run.fail", "run.cancel"})
GRACE_S = 30.0
ME = Peer(1000, 1000, 7)
SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]


class Immediate(Executor):
    """Runs a job when it is given."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class House:
    """Intake over a spool in memory, which may die and be started again."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.children = []

    async def start(self, *, quota=10**6):
        limits = Limits(
            quotas={"cloud": quota}, max_bytes=10**6, dead_bytes=10**6, window_bytes=10**6, directory_bytes=10**6, seen_ids=100,
        )  # fmt: skip
        self.spool = await open_spool(
            self.folder, sync="full", limits=limits, identities={"cloud": "agentos"}, journal=Journal(10**15, 10**9),
            now_us=self.clock.now_us, opener=lambda *_: self.store, thread=Immediate(), retry_s=0,
        )  # fmt: skip
        self.spool.start()
        shelf, window = SpoolShelf(self.spool), Window(100)
        table = Table([Route("cloud", RUNS, frozenset({"run.start"}))])
        admission = Admission(table, shelf, window, AdmitLimits(2**20, 64), Uuid7(), ())
        self.reaper = Reaper(shelf, table, GRACE_S, 100, clock=self.clock, now_us=self.clock.now_us)
        self.sink = SpoolSink(
            admission, shelf, window, Streams(), max_frame_bytes=2**20, now_us=self.clock.now_us, clock=self.clock,
            runs=self.reaper,
        )  # fmt: skip
        await self.reaper.start(self.sink)
        await self.settle()
        return self

    async def crash(self, **changes):
        """kill -9, and another daemon over what is on disk."""
        await self.let_go()
        self.store = self.store.crash()
        return await self.start(**changes)

    async def let_go(self):
        self.reaper.close()
        self.spool._committer._task.cancel()
        await self.spool._loader.close()
        await self.spool._storage.close()
        self.spool.folder.close()

    async def close(self):
        self.reaper.close()
        await self.sink.close()
        await self.spool.close()
        for child in self.children:
            child.stdin.close()
            child.kill()
            child.wait(20)

    def child(self):
        """A process that lives until it is killed."""
        self.children.append(subprocess.Popen(SLEEP, stdin=subprocess.PIPE))
        return self.children[-1]

    def agent(self):
        """One as its hello would make it known."""
        child = self.child()
        boot, pid_space = pidfds.here()
        fd = os.pidfd_open(child.pid)
        found = pidfds.identity(fd, child.pid)
        process = Process(Owner(boot, pid_space, child.pid, found.start, found.inode, 1000, ""))
        self.reaper._pidfds.hold(process, fd)
        return child, Peer(1000, 1000, child.pid, process=process)

    async def kill(self, child):
        child.kill()
        child.wait(20)
        await self.settle()

    async def admit(self, peer, *records):
        data = json.dumps(records).encode()
        future = self.sink.submit(decode_message(data), peer, stream=None, origin="frames", hold=False)
        await self.settle()
        return future.result()

    async def settle(self):
        for _ in range(30):
            await asyncio.sleep(0)

    async def tick(self, seconds=0.0):
        self.clock.advance(seconds)
        self.reaper.tick()
        await self.settle()

    @property
    def owners(self):
        return [key for key in self.store._rows if key >> TABLE_BITS == Rows.OWNER]

    @property
    def queued(self):
        return [entry.kind for entry in self.spool.queues["cloud"].peek("run:r")]

    def books(self):
        return {(line.kind, line.state, line.cause): line.records for line in self.spool.books.lines()}


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def start(run="r"):
    return {"kind": "run.start", "run_id": run, "agent_id": "billing"}


def event(run="r"):
    return {"kind": "event", "run_id": run, "type": "t"}


def end(run="r"):
    return {"kind": "run.complete", "run_id": run}


@pytest.fixture
async def house(tmp_path):
    house = await House(tmp_path / "state").start()
    yield house
    await house.close()


# -- one commit ------------------------------------------------------------------------------------------------------------


async def test_an_owner_goes_to_disk_with_the_record_that_made_it_one(house):
    """Start and owner are one commit, and so are the end and the row that says so; after that the row is gone."""
    _, agent = house.agent()
    await house.admit(agent, start(), event())
    [row] = house.owners
    with_row = [commit.puts for commit in house.store.commits if row in commit.puts]
    assert [{key >> TABLE_BITS for key in puts} >= {Rows.SEGMENT, Rows.REF, Rows.OWNER} for puts in with_row] == [True]
    before = len(house.store.commits)
    await house.admit(ME, end())
    first, *_ = house.store.commits[before:]
    assert {key >> TABLE_BITS for key in first.puts} >= {Rows.SEGMENT, Rows.OWNER}
    await house.settle()
    assert (house.owners, house.reaper.status()["watched"]) == ([], 0)


async def test_an_event_of_the_owner_writes_no_row(house):
    """Only what changes hands costs the disk anything."""
    _, agent = house.agent()
    await house.admit(agent, start())
    before = len(house.store.commits)
    await house.admit(agent, event(), event())
    assert all(key >> TABLE_BITS != Rows.OWNER for commit in house.store.commits[before:] for key in commit.puts)
    _, other = house.agent()
    await house.admit(other, event())
    assert any(key >> TABLE_BITS == Rows.OWNER for commit in house.store.commits[before:] for key in commit.puts)


async def test_a_start_that_the_disk_refuses_is_not_watched(house):
    """Nothing of it is kept: no row, no run to end, no descriptor."""
    child, agent = house.agent()
    house.store.full = 1
    ack = await house.admit(agent, start())
    assert [one.error for one in ack.rejected] == ["spool full"]
    assert (house.owners, house.reaper.status()["watched"]) == ([], 0)
    await house.kill(child)
    await house.tick(GRACE_S)
    assert house.queued == []


# -- the end of a process --------------------------------------------------------------------------------------------------


async def test_a_dead_agents_run_is_failed_and_booked(house, caplog):
    """The kernel says when; after the grace the run's end is queued behind all that it said, and counted like any record."""
    child, agent = house.agent()
    await house.admit(agent, start(), event())
    await house.kill(child)
    await house.tick(GRACE_S - 1)
    assert house.queued == ["run.start", "event"]
    await house.tick(1)
    assert house.queued == ["run.start", "event", "run.fail"]
    entry = list(house.spool.queues["cloud"].peek("run:r"))[-1]
    assert (entry.source.origin, entry.source.uid, entry.source.agent, entry.source.pid) == (
        "agentd",
        1000,
        "billing",
        child.pid,
    )
    assert json.loads(entry.body)["error_message"] == "agent process ended"
    assert entry.record_id[6] >> 4 == 7
    assert house.books()["run.fail", "admitted", ""] == 1
    assert house.reaper.status() == {"watched": 0, "orphans_ended": 1}
    assert house.owners == []
    assert [line.run for line in caplog.records if line.action == "orphan_ended"] == ["r"]


async def test_a_full_queue_gets_it_later(tmp_path):
    """Its quota is used up by what may not be shed: as soon as there is room the run ends, without having been refused once."""
    house = await House(tmp_path / "state").start(quota=3000)
    child, agent = house.agent()
    await house.admit(agent, start())
    await house.admit(agent, {**event(), "level": "error", "payload": "x" * 2000})
    await house.kill(child)
    await house.tick(GRACE_S)
    await house.tick(1)
    assert (house.queued[-1], house.sink.admission.refused.total()) == ("event", 0)
    entries = list(house.spool.queues["cloud"].peek("run:r"))
    _ = house.spool.discard_stale("cloud", entries[1:])
    await house.settle()
    await house.tick(1)
    assert house.queued == ["run.start", "run.fail"]
    await house.close()


async def test_a_disk_without_room_gets_it_later(house):
    """The commit of our own end fails: the run is open again, and ends with a later tick."""
    child, agent = house.agent()
    await house.admit(agent, start())
    await house.kill(child)
    house.store.full = 1
    await house.tick(GRACE_S)
    assert (house.queued, house.reaper.status()["watched"]) == (["run.start"], 1)
    house.spool.ledger.disk_full = False
    await house.tick(1)
    assert house.queued == ["run.start", "run.fail"]


# -- taken back ------------------------------------------------------------------------------------------------------------


async def ended_by_us(house):
    child, agent = house.agent()
    await house.admit(agent, start())
    await house.kill(child)
    await house.tick(GRACE_S)
    assert house.queued == ["run.start", "run.fail"]


async def test_a_real_end_replaces_ours_while_it_waits(house):
    """The platform hears of the real one alone; ours is booked as shed, since a newer one has taken its place."""
    await ended_by_us(house)
    await house.admit(ME, end())
    assert house.queued == ["run.start", "run.complete"]
    assert house.books()["run.fail", "shed", "stale"] == 1
    assert house.spool.books.queued("cloud") == house.spool.queues["cloud"].live


async def test_what_is_sealed_is_not_taken_back(house):
    """A sealed batch goes out as it is: the real end comes behind ours, and is the platform's to judge."""
    await ended_by_us(house)
    entry = list(house.spool.queues["cloud"].peek("run:r"))[-1]
    await house.spool.seal(Seal(0, "cloud", "run:r", entry.number, entry.number, 1, (), "k", 1, b"s" * 32, "run/fail"))
    await house.admit(ME, end())
    assert house.queued == ["run.start", "run.fail", "run.complete"]


# -- over a crash ----------------------------------------------------------------------------------------------------------


async def test_a_living_agent_is_watched_again(house):
    """After kill -9 its run stays open; when it dies the run ends."""
    child, agent = house.agent()
    await house.admit(agent, start())
    await house.crash()
    await house.tick(2 * GRACE_S)
    assert (house.reaper.status()["watched"], house.spool.books.total("cloud", "admitted")) == (1, 1)
    await house.kill(child)
    await house.tick(GRACE_S)
    assert house.reaper.status()["orphans_ended"] == 1


async def test_rows_of_before_are_not_written_over(house):
    """A run that begins after a restart has a row of its own."""
    _, agent = house.agent()
    await house.admit(agent, start())
    await house.crash()
    _, other = house.agent()
    await house.admit(other, start("later"))
    assert len(house.owners) == 2


async def test_an_agent_that_died_meanwhile_has_the_grace_from_the_start(house):
    """Its client may have another process that takes over: not at once, but after `orphan_grace`."""
    child, agent = house.agent()
    await house.admit(agent, start())
    await house.let_go()
    child.kill()
    child.wait(20)
    house.store = house.store.crash()
    await house.start()
    await house.tick(GRACE_S - 1)
    assert house.reaper.status()["orphans_ended"] == 0
    await house.tick(1)
    assert house.reaper.status()["orphans_ended"] == 1


async def test_a_reused_pid_does_not_keep_a_run_open(house):
    """Another process under the dead one's pid: its start is another one."""
    child, agent = house.agent()
    agent.process.owner = Owner(*pidfds.here(), child.pid, 1, 0, 1000, "")
    await house.admit(agent, start())
    await house.crash()
    await house.tick(GRACE_S)
    assert house.reaper.status()["orphans_ended"] == 1


async def test_a_run_that_ended_before_the_crash_stays_ended(house):
    """The end is on disk, the deletion of its row is not: nothing is ended a second time."""
    child, agent = house.agent()
    await house.admit(agent, start())
    [row] = house.owners
    before = house.store.crash()
    await house.admit(ME, end())
    house.store._rows[row] = (SpoolShelf(house.spool).owner_row(row, b"").value, None)  # as of the end's own commit
    assert row in before._rows
    await house.kill(child)
    await house.crash()
    await house.tick(GRACE_S)
    assert (house.reaper.status(), house.owners) == ({"watched": 0, "orphans_ended": 0}, [])


async def test_our_own_end_is_made_once(house):
    """A crash right after its commit: the run is ended, and not again."""
    await ended_by_us(house)
    await house.crash()
    await house.tick(GRACE_S)
    assert (house.reaper.status()["watched"], house.spool.books.total("cloud", "admitted")) == (0, 2)


async def test_a_start_that_is_replayed_has_its_owner(house):
    """The platform refused it, its agent died, a restart, and then somebody replays it: the run does not stay open for ever."""
    child, agent = house.agent()
    await house.admit(agent, start())
    [entry] = house.spool.queues["cloud"].peek("run:r")
    await house.spool.bury(None, "cloud", [entry], Death(Cause.REJECTED, "402 not now"))
    await house.kill(child)
    await house.tick(GRACE_S)
    await house.crash()
    await house.tick(GRACE_S)
    assert (house.queued, len(house.owners)) == ([], 1)
    await DeadLetters(house.spool).replay(Wanted(), by=0)
    for _ in range(60):
        await house.tick(1)
    assert house.queued == ["run.start", "run.fail"]
    assert (house.reaper.status()["watched"], house.owners) == (0, [])


async def test_a_start_that_is_purged_is_watched_no_more(house):
    """As soon as its id is forgotten, and its row goes."""
    _, agent = house.agent()
    await house.admit(agent, start())
    [entry] = house.spool.queues["cloud"].peek("run:r")
    await house.spool.bury(None, "cloud", [entry], Death(Cause.REJECTED, "no"))
    await DeadLetters(house.spool).purge(Wanted(), 0, "never mind")
    house.spool.refs.prune(lambda _touched_us: True)
    for _ in range(60):
        await house.tick(1)
    await house.spool.barrier()
    assert (house.reaper.status()["watched"], house.owners) == (0, [])


# -- claims ----------------------------------------------------------------------------------------------------------------


class Line:
    """A transport of somebody who has connected."""

    def __init__(self, sock):
        self.sock = sock

    def get_extra_info(self, _name):
        return self.sock

    def is_closing(self):
        return False

    def is_reading(self):
        return True


class Sock:
    """A connection's socket as the kernel would answer for it."""

    def __init__(self, pid):
        self.pid = pid

    def getsockopt(self, _level, _option):
        return os.pidfd_open(self.pid)

    def fileno(self):
        return -1


def claim(house, child, *, pid=None, stream="s", uid=1000):
    peer = Peer(uid, uid, child.pid if pid is None else pid)
    return house.reaper.claim(Hello(hello=1, stream=stream, owns_runs=True), peer, Line(Sock(child.pid))).process


async def test_connections_of_one_process_are_one_owner(house):
    """By what the kernel says of it, whatever its streams are; another process is another owner."""
    child = house.child()
    other = house.child()
    first = claim(house, child, stream="a")
    assert claim(house, child, stream="b") is first
    assert claim(house, other, stream="a") is not first


@pytest.mark.parametrize("readable", [(5, 0), (0, 7), (0, 0)], ids=["start", "inode", "stream"])
async def test_a_client_that_comes_back_continues_as_owner(house, readable, monkeypatch):
    """After a restart: by start and pid, by inode, or where nothing can be read by its stream. It lives on, and its end is seen."""
    monkeypatch.setattr(reaper, "identity", lambda _fd, _pid: Identity(*readable))
    monkeypatch.setattr(reaper, "open_again", lambda _owner: (_ for _ in ()).throw(OSError(0, "hidden")))
    pid = 7 if readable[0] else 0
    child = house.child()
    await house.admit(Peer(1000, 1000, pid, process=claim(house, child, pid=pid)), start())
    await house.crash()
    await house.tick(2 * GRACE_S)
    [run] = house.reaper._orphans
    assert claim(house, child, pid=pid) is run.process
    await house.kill(child)
    await house.tick(GRACE_S)
    assert house.reaper.status()["orphans_ended"] == 1


async def test_a_stream_of_another_user_is_another_owner(house, monkeypatch):
    """Where nothing but the stream is known it counts within one uid."""
    monkeypatch.setattr(reaper, "identity", lambda _fd, _pid: Identity(0, 0))
    child = house.child()
    first = claim(house, child, pid=0)
    assert claim(house, child, pid=0, uid=1001) is not first


async def test_a_peer_that_is_gone_already_owns_what_it_has_sent(house, monkeypatch):
    """It connected, sent and died before it was looked at: its run has its grace, and ends."""

    def gone(_sock, _pid):
        raise ProcessLookupError

    child = house.child()
    monkeypatch.setattr(reaper, "peer_pidfd", gone)
    await house.admit(Peer(1000, 1000, 7, process=claim(house, child)), start())
    await house.tick(GRACE_S - 1)
    assert house.reaper.status() == {"watched": 1, "orphans_ended": 0}
    await house.tick(1)
    assert house.reaper.status() == {"watched": 0, "orphans_ended": 1}


async def test_a_peer_that_can_not_be_read_owns_nothing(house, monkeypatch, caplog):
    """Unreadable is not watched; the log says why, once."""

    def unreadable(_sock, _pid):
        raise OSError(92, "Protocol not available")

    child = house.child()
    monkeypatch.setattr(reaper, "peer_pidfd", unreadable)
    assert claim(house, child) is None
    assert claim(house, child) is None
    assert [line.getMessage() for line in caplog.records if line.action == "unwatched"] == [
        "runs of an agent process are not watched: Protocol not available"
    ]


async def test_where_nothing_can_be_opened_to_look_with_it_owns_nothing(house, monkeypatch):
    """Out of descriptors in the middle of a hello: it is answered all the same, and none is left open."""

    def nothing_left(_fd, _pid):
        raise OSError(24, "Too many open files")

    child = house.child()
    monkeypatch.setattr(reaper, "identity", nothing_left)
    before = open_files()
    assert claim(house, child) is None
    assert open_files() == before


async def test_without_a_descriptor_left_it_is_watched_later(house, monkeypatch):
    """The limit is reached: the run is on record, and watched as soon as another process's descriptor is given back."""
    idle = claim(house, house.child(), stream="idle")
    for process in list(house.reaper._pidfds):
        house.reaper._pidfds.release(process)
    house.reaper._pidfds.reopen(idle)
    monkeypatch.setattr(house.reaper._pidfds, "_max_files", 1)
    child = house.child()
    owner = claim(house, child)
    await house.admit(Peer(1000, 1000, child.pid, process=owner), start())
    assert owner not in house.reaper._pidfds
    await house.tick(1)
    assert owner in house.reaper._pidfds
