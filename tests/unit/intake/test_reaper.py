"""The reaper: what it hands in for a run whose process is gone, when it waits, and what it leaves alone."""

from __future__ import annotations

import asyncio
import itertools
import json

import msgspec
import pytest

from agentd.intake.admit import FULL
from agentd.intake.orphans import Kept, Owner, Process, decode
from agentd.intake.reaper import Reaper
from agentd.intake.routing import Route, Table
from agentd.queued import DEAD, INTRODUCED, KNOWN, Entry, Ref, Source
from agentd.records import LossClass
from agentd.testing import FakeClock
from agentd.wire import Ack, Rejected, encode

RUNS = frozenset({"run.start", "event", "run.complete", "run.fail"})
GRACE_S = 30.0


class Shelf:
    """The spool's side: references, room, rows; `fail` is the disk that has none."""

    def __init__(self):
        self.refs = {}
        self.full = set()
        self.rows = {}
        self.dropped = []
        self.withdrawn = []
        self._rows = itertools.count(1)

    def owners(self, kind, local_id):
        return [ref for ref in self.refs.values() if (ref.kind, ref.local_id) == (kind, local_id)]

    def room_for(self, destination, size, loss, uid=None):
        assert (size, loss) == (1024, LossClass.KEEP)
        return destination not in self.full

    def new_owner_row(self):
        return next(self._rows)

    def owner_row(self, row, value):
        return row, value

    def keep_owners(self, rows):
        self.rows.update(rows)

    def drop_owners(self, rows):
        self.dropped += rows
        for row in rows:
            self.rows.pop(row, None)

    async def stored_owners(self):
        return list(self.rows.items())

    def withdraw(self, destination, lane, record_id):
        self.withdrawn.append((destination, lane, record_id))
        return True


class Sink:
    """Keeps what it is handed; the test answers."""

    def __init__(self):
        self.taken = []

    def submit(self, message, peer, *, stream, origin, hold):
        assert (stream, origin, hold, message.seq) == (None, "agentd", False, None)
        future = asyncio.get_running_loop().create_future()
        self.taken.append((message.items, peer, future))
        return future


class Pids:
    """What the kernel would say."""

    def __init__(self):
        self.unread = set()
        self.ended = set()
        self.held = []

    def __contains__(self, process):
        return True

    def __iter__(self):
        return iter(self.held)

    def __len__(self):
        return len(self.held)

    def hold(self, process, pidfd):
        raise AssertionError("no process of these tests is real")

    def release(self, process):
        pass

    def trim(self):
        pass

    def has_more(self, process):
        return process in self.unread

    def has_ended(self, process):
        return process in self.ended


class House:
    def __init__(self, *routes):
        self.shelf, self.sink, self.clock, self.pids = Shelf(), Sink(), FakeClock(), Pids()
        self.reaper = Reaper(
            self.shelf, Table(routes or [Route(name, RUNS, frozenset({"run.start"})) for name in ("one", "two")]),
            GRACE_S, 10, clock=self.clock, now_us=self.clock.now_us,
        )  # fmt: skip
        self.reaper._pidfds = self.pids
        self.numbers = itertools.count(1)

    async def start(self):
        await self.reaper.start(self.sink)
        return self

    def begin(self, run, by, *to, uid=1000, agent="billing"):
        """A run of this process, on disk at these destinations."""
        copies, introduced = {}, []
        for name in to or ("one",):
            entry = self.entry(run, "run.start", uid, agent)
            copies[name] = [entry]
            ref = Ref(name, "run", run, agent, uid, entry.number, lane=entry.lane)
            self.shelf.refs[name, run] = ref
            introduced.append(ref)
        self.write(copies, introduced, by)

    def entry(self, run, kind, uid=1000, agent="billing", origin="frames"):
        number = next(self.numbers)
        source = Source(agent, uid, 7, origin)
        return Entry(number, number.to_bytes(16, "big"), f"run:{run}", kind, LossClass.KEEP, source, 1, b"{}")

    def write(self, copies, introduced=(), by=None, *, disk=True):
        rows = self.reaper.admitted(copies, introduced, by)
        if rows is None:
            return
        if disk:
            self.shelf.rows.update(rows.puts)
        done = asyncio.get_running_loop().create_future()
        if disk:
            done.set_result(None)
        else:
            done.set_exception(OSError("no room"))
        rows.done(done)

    def dies(self, process):
        self.reaper._gone(process)

    def tick(self, seconds=0.0):
        self.clock.advance(seconds)
        self.reaper.tick()

    async def answer(self, rejected=()):
        """The sink has answered the oldest message: what it took is on its way to disk."""
        items, _, future = self.sink.taken.pop(0)
        refused = {one.index for one in rejected}
        for index, record in enumerate(items):
            if index not in refused:
                entry = self.entry(record.run_id, "run.fail", origin="agentd")
                self.write({name: [entry] for name in record.to})
        future.set_result(Ack(-1, len(items) - len(refused), list(rejected)))
        await asyncio.sleep(0)


def process(pid=7, **facts):
    known = {"boot": "b", "pid_space": 1, "pid": pid, "start": 5, "inode": 0, "uid": 1000, "stream": "s"} | facts
    return Process(Owner(**known))


@pytest.fixture
async def house():
    return await House().start()


# -- the end of a run ------------------------------------------------------------------------------------------------------


async def test_what_ends_a_run_is_said_in_its_own_name(house, caplog):
    """A run.fail with the reason, in the name of the uid and agent that began it, to where it is open; then the log says so."""
    agent = process()
    house.begin("r", agent, "one", "two")
    house.dies(agent)
    died_us = house.clock.now_us()
    house.tick(GRACE_S)
    [([record], peer, _)] = house.sink.taken
    said = json.loads(encode(record))
    assert said.pop("error_detail")["noticed_at"].startswith("2026-01-01T00:00:00")
    assert said == {
        "kind": "run.fail", "run_id": "r", "error_message": "agent process ended", "to": ["one", "two"], "agent_id": "billing",
    }  # fmt: skip
    assert (peer.uid, peer.pid, peer.local, peer.process) == (1000, 7, True, None)
    assert died_us < house.clock.now_us()
    await house.answer()
    [line] = [line for line in caplog.records if line.action == "orphan_ended"]
    assert (line.run, line.pid) == ("r", 7)
    assert house.reaper.status() == {"watched": 0, "orphans_ended": 1}
    assert house.shelf.rows == {}


async def test_all_runs_of_a_process_end_in_one_message(house):
    """One message per process and user; a thousand at a tick, the rest with the next ones."""
    agent = process()
    for number in range(1500):
        house.begin(f"r{number}", agent)
    house.dies(agent)
    house.tick(GRACE_S)
    house.tick(1)
    assert [len(items) for items, _, _ in house.sink.taken] == [1000, 500]
    house.tick(1)
    assert len(house.sink.taken) == 2


async def test_an_agent_without_a_name_stays_without(house):
    """The destination's own agent is not named: as the run began."""
    agent = process()
    house.begin("r", agent, agent="")
    house.dies(agent)
    house.tick(GRACE_S)
    assert house.sink.taken[0][0][0].agent_id is None


async def test_a_full_queue_is_waited_for(house):
    """Without room nothing is handed in, and nothing counts as refused; with room it goes in, where there is some."""
    agent = process()
    house.begin("r", agent, "one", "two")
    house.dies(agent)
    house.shelf.full = {"one", "two"}
    house.tick(GRACE_S)
    assert house.sink.taken == []
    house.shelf.full = {"one"}
    house.tick(1)
    assert [record.to for record in house.sink.taken[0][0]] == [["two"]]
    await house.answer()
    house.shelf.full = set()
    house.tick(1)
    assert [record.to for record in house.sink.taken[0][0]] == [["one"]]


async def test_what_is_refused_for_want_of_room_comes_again(house):
    """The queue filled up at the last moment, or the disk did."""
    agent = process()
    house.begin("r", agent)
    house.dies(agent)
    house.tick(GRACE_S)
    await house.answer([Rejected(0, FULL)])
    assert house.reaper.ended == 0
    house.tick(1)
    assert len(house.sink.taken) == 1
    await house.answer()
    assert house.reaper.ended == 1


async def test_what_is_refused_for_another_reason_is_said(house, caplog):
    """An agent that may not be spoken for any more: one line, no second try, and the row is left to the next start."""
    agent = process()
    house.begin("r", agent)
    house.dies(agent)
    house.tick(GRACE_S)
    await house.answer([Rejected(0, "$.agent_id: not yours")])
    house.tick(1)
    assert (house.sink.taken, len(house.shelf.rows)) == ([], 1)
    [line] = [line for line in caplog.records if line.action == "orphan_refused"]
    assert line.getMessage() == "run r: its agent process ended, and it can't be ended: $.agent_id: not yours"


@pytest.mark.parametrize("state", ["ended", "forgotten"])
async def test_where_nothing_is_to_end_nothing_is_sent(house, state):
    """A run whose end is delivered, an id that is not remembered any more."""
    agent = process()
    house.begin("r", agent)
    if state == "forgotten":
        house.shelf.refs.clear()
    else:
        ref = house.shelf.refs["one", "r"]
        ref.state, ref.ended = KNOWN, True
    house.dies(agent)
    house.tick(GRACE_S)
    assert (house.sink.taken, house.shelf.rows, house.reaper.status()["watched"]) == ([], {}, 0)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
async def test_a_start_that_is_replayed_is_ended_like_any_other(house, restarted):
    """While it is a dead letter there is nothing to end; once it is out of there its owner is as gone as before."""
    agent = process()
    house.begin("r", agent)
    house.begin("other", agent)
    ref = house.shelf.refs["one", "r"]
    ref.state = DEAD
    house.dies(agent)
    if restarted:
        house = await started_again(house)
    house.tick(GRACE_S)
    assert [record.run_id for record in house.sink.taken[0][0]] == ["other"]
    await house.answer()
    for _ in range(60):
        house.tick(1)
    assert (house.sink.taken, len(house.shelf.rows), house.reaper.status()["watched"]) == ([], 1, 1)
    ref.state = INTRODUCED
    for _ in range(60):
        house.tick(1)
    assert [record.run_id for record in house.sink.taken[0][0]] == ["r"]
    await house.answer()
    assert (house.shelf.rows, house.reaper.status()["watched"]) == ({}, 0)


async def test_a_dead_start_at_one_place_holds_up_no_end_at_another(house):
    """The run ends where it began, and is watched on where its start may still be replayed."""
    agent = process()
    house.begin("r", agent, "one", "two")
    house.shelf.refs["one", "r"].state = DEAD
    house.dies(agent)
    house.tick(GRACE_S)
    assert [record.to for record in house.sink.taken[0][0]] == [["two"]]
    await house.answer()
    house.tick(1)
    assert (house.sink.taken, house.reaper.status()["watched"]) == ([], 1)


async def test_dead_starts_take_nobodys_turn(house):
    """However many rest: what can be ended is not kept waiting behind them."""
    agent = process()
    for number in range(1500):
        house.begin(f"dead{number}", agent)
        house.shelf.refs["one", f"dead{number}"].state = DEAD
    house.begin("r", agent)
    house.dies(agent)
    house.tick(GRACE_S)
    house.tick(1)
    assert [record.run_id for record in house.sink.taken[0][0]] == ["r"]


async def test_a_start_that_comes_again_wakes_its_run(house):
    """A second process begins the dead run anew under its name, and dies: nobody waits for the next look at what rests."""
    first, second = process(7), process(8)
    house.begin("r", first)
    house.shelf.refs["one", "r"].state = DEAD
    house.dies(first)
    house.tick(GRACE_S)
    house.begin("r", second)
    house.dies(second)
    house.tick(GRACE_S)
    assert [record.run_id for record in house.sink.taken[0][0]] == ["r"]


async def test_what_a_dead_process_has_sent_is_read_before_it_is_judged(house):
    """While its connection holds something unread nothing of it ends."""
    agent = process()
    house.begin("r", agent)
    house.dies(agent)
    house.pids.unread = {agent}
    house.tick(GRACE_S)
    assert house.sink.taken == []
    house.pids.unread = set()
    house.tick(1)
    assert len(house.sink.taken) == 1


async def test_runs_whose_ids_are_forgotten_are_not_watched_any_more(house):
    """Now and then: a process that lives for ever and ends no run costs no more than its references do."""
    house.begin("old", process())
    house.begin("new", process())
    del house.shelf.refs["one", "old"]
    for _ in range(60):
        house.tick(1)
    assert house.reaper.status()["watched"] == 1
    assert [decode(value).lane for value in house.shelf.rows.values()] == ["run:new"]


# -- a real end ------------------------------------------------------------------------------------------------------------


async def test_a_real_end_that_comes_late_takes_ours_back(house):
    """Once it is on disk, and only then."""
    agent = process()
    house.begin("r", agent)
    house.dies(agent)
    house.tick(GRACE_S)
    await house.answer()
    end = {"one": [house.entry("r", "run.complete")]}
    house.write(end, disk=False)
    assert house.shelf.withdrawn == []
    house.write(end)
    [(destination, lane, _)] = house.shelf.withdrawn
    assert (destination, lane) == ("one", "run:r")


async def test_a_real_end_before_ours_leaves_nothing_to_end(house):
    """It comes within the grace, from a shell: nothing is sent."""
    agent = process()
    house.begin("r", agent)
    house.dies(agent)
    house.tick(GRACE_S - 1)
    house.write({"one": [house.entry("r", "run.complete")]})
    house.tick(1)
    assert house.sink.taken == []


# -- stopping, and starting again ------------------------------------------------------------------------------------------


async def test_while_agentd_stops_nobody_is_an_orphan(house):
    """Whoever dies then is on record, and it is decided after the start."""
    agent = process()
    house.begin("r", agent)
    house.reaper.stop()
    house.dies(agent)
    house.tick(GRACE_S)
    assert house.sink.taken == []
    assert [decode(value).gone_us > 0 for value in house.shelf.rows.values()] == [True]


async def test_beside_a_command_what_is_left_ends_with_it(house):
    """Nobody can take it over: the grace is not waited for; what lives keeps its runs."""
    dead, dying, alive = process(1), process(2), process(3)
    for agent in (dead, dying, alive):
        house.begin(f"r{agent.owner.pid}", agent)
    house.dies(dead)
    house.pids.held, house.pids.ended = [dying, alive], {dying}
    house.reaper.stop()
    house.reaper.end_all()
    assert [record.run_id for items, _, _ in house.sink.taken for record in items] == ["r1", "r2"]


async def started_again(house, **here):
    """Another reaper over the rows of the first."""
    again = House()
    again.shelf.rows, again.shelf.refs = house.shelf.rows, house.shelf.refs
    again.reaper._boot, again.reaper._pid_space = here.get("boot", "b"), here.get("pid_space", 1)
    return await again.start()


async def test_after_a_reboot_every_process_is_gone(house):
    """Hidden or not: the grace begins with the start, and when it was noticed is on record."""
    house.begin("r", process(pid=0, start=0))
    again = await started_again(house, boot="another")
    again.tick(GRACE_S - 1)
    assert again.sink.taken == []
    again.tick(1)
    assert [record.run_id for record in again.sink.taken[0][0]] == ["r"]


@pytest.mark.parametrize(
    ("known", "here"), [({"pid": 0, "start": 0}, {}), ({}, {"pid_space": 2})], ids=["hidden pid", "another namespace"]
)
async def test_a_process_that_can_not_be_read_is_not_watched(house, known, here, caplog):
    """Over a restart: it may live, so that nothing of it is ever ended unless it is heard of again."""
    house.begin("r", process(**known))
    again = await started_again(house, **here)
    again.tick(10 * GRACE_S)
    assert (again.sink.taken, again.reaper.status()["watched"]) == ([], 1)
    assert [line.action for line in caplog.records] == (["unwatched"] if "pid" in known else [])


@pytest.mark.parametrize(("boot", "here"), [("b", ""), ("", "b"), ("", "")])
async def test_a_boot_that_is_hidden_ends_nobody(house, boot, here):
    """The unit hides it since (ProcSubset=pid), or does not any more: whoever lives is found by pid and start all the same."""
    house.begin("r", process(boot=boot, pid=0, start=0))
    again = await started_again(house, boot=here)
    again.tick(10 * GRACE_S)
    assert (again.sink.taken, again.reaper.status()["watched"]) == ([], 1)


async def test_processes_of_which_nothing_is_known_are_not_one(house):
    """Without pid, start, inode and stream they look alike: that one of them is gone says nothing of the others."""
    nothing = {"pid": 0, "start": 0, "stream": ""}
    dead = process(**nothing)
    house.begin("dead", dead)
    house.begin("alive", process(**nothing))
    house.dies(dead)
    again = await started_again(house)
    again.tick(GRACE_S)
    assert [[record.run_id for record in items] for items, _, _ in again.sink.taken] == [["dead"]]


async def test_who_has_what_a_gone_process_had_is_another(house):
    """Where the boot is hidden pidfds begin to count anew with it: a living process is not taken for one that is gone."""
    gone = process(inode=5)
    house.begin("r", gone)
    house.reaper._remember(gone)
    house.dies(gone)
    assert house.reaper._process(process(pid=8, start=6, inode=5).owner).gone_us == 0


async def test_a_hidden_process_that_was_gone_before_is_gone(house):
    """What was seen before the restart is on disk; its time begins anew."""
    agent = process(pid=0, start=0)
    house.begin("r", agent)
    house.dies(agent)
    seen_us = house.clock.now_us()
    again = await started_again(house)
    again.tick(GRACE_S)
    [([record], _, _)] = again.sink.taken
    assert json.loads(bytes(record.error_detail))["noticed_at"].startswith("2026-01-01T00:00:00")
    assert seen_us < again.clock.now_us()


async def test_rows_of_ended_runs_and_damaged_rows_go(house, caplog):
    """An empty row is a run that has ended; one that can't be read costs its run the watch, and the log says so."""
    kept = encode_kept(Kept("run:r", 1000, "a", ["one"], process(pid=0, start=0).owner))
    house.shelf.rows = {
        1: b"",
        2: None,
        3: b"\xc1",
        4: kept,
        5: kept.replace(b"run:r", b"\xff" * 5),
    }  # 5: a text that is none
    house.shelf.refs["one", "r"] = Ref("one", "run", "r", "a", 1000, 1)
    again = await started_again(house)
    assert sorted(again.shelf.dropped) == [1, 2, 3, 5]
    assert again.reaper.status()["watched"] == 1
    assert [line.action for line in caplog.records if line.levelname == "ERROR"] == ["quarantine"] * 3


async def test_a_destination_that_is_not_configured_keeps_its_row(house):
    """It may come back with a later start: until then nothing is sent there, and nothing forgotten."""
    house.begin("r", process(pid=0, start=0), "one", "two")
    again = House(Route("two", RUNS, frozenset({"run.start"})))
    again.shelf.rows, again.shelf.refs = house.shelf.rows, house.shelf.refs
    again.reaper._boot = "another"
    await again.start()
    again.tick(GRACE_S)
    assert [record.to for record in again.sink.taken[0][0]] == [["two"]]
    await again.answer()
    again.tick(1)
    assert again.sink.taken == []
    assert [decode(value).open_at for value in again.shelf.rows.values()] == [["one"]]


def encode_kept(kept):
    return msgspec.msgpack.encode(kept)
