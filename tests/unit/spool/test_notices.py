"""Runs are told what they lost: once for each gap, before their end, by a record like any other; and records that take a later place."""

import asyncio
import json

import pytest
from spool_kit import Immediate, entry, seal_of

from agentd.identity import Uuid7
from agentd.outcomes import Cause, State
from agentd.queued import DEAD, Death, Entry, Ref, Source
from agentd.records import Event, LossClass
from agentd.spool import compact
from agentd.spool.notices import Notices
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.store import key_of
from agentd.spool.tables import Table
from agentd.wire import decode_record

KEEP, INFO, DEBUG = LossClass.KEEP, LossClass.INFO, LossClass.DEBUG
KEEP_US = 7 * 86_400 * 10**6
BODY = b'"' + b"x" * 900 + b'"'


def young(_at_us):
    return 0


class Telling:
    """A spool with a quota of 40 kB for `cloud`, and notices for it; `local` takes no events."""

    def __init__(self, harness):
        self.harness = harness
        self.touched = set()

    async def open(self):
        quotas = {"cloud": 40_000, "local": 40_000}
        self._take(await self.harness.open(quotas=quotas))
        return self

    async def crash(self):
        self._take(await self.harness.crash(quotas={"cloud": 40_000, "local": 40_000}))
        await self.harness.filled()

    def _take(self, spool):
        self.spool = spool
        self.notices = Notices(spool, ["cloud"], Uuid7(), spool.ledger.now_us)
        self.outbox = SpoolOutbox(spool, "cloud", self.notices)
        spool.listen("cloud", self.touched.update)

    @property
    def queue(self):
        return self.spool.queues["cloud"]

    async def put(self, count=1, lane="run:a", loss=KEEP, kind="event", name="cloud"):
        return await self.harness.put(count, name, lane=lane, loss=loss, kind=kind, body=BODY)

    def make_full(self, name="cloud", through=DEBUG):
        """Something asks for room that makes the queue shed all of a class; it is not kept."""
        index = self.spool.queues[name].index
        excess = 1 + (index.class_bytes[DEBUG] if through is INFO else 0)
        assert self.spool.room_for(name, 40_000 - index.stored_bytes + excess, KEEP)

    async def shed(self, name="cloud", through=DEBUG):
        """The same, and it is on disk."""
        await self.put(1, "run:full", name=name)
        self.make_full(name, through)
        await self.spool.barrier()

    async def empty(self, name="cloud", but=()):
        """All that waits is delivered, but for these lanes."""
        for lane in set(self.spool.queues[name].lanes) - set(but):
            for one in list(self.spool.queues[name].peek(lane)):
                await self.spool.settle(seal_of([one], name), [one])

    async def tick(self, age_us=young):
        self.notices.tick(age_us, KEEP_US)
        await self.spool.barrier()

    def lane(self, lane="run:a"):
        return list(self.queue.peek(lane))

    def told(self, lane="run:a"):
        """The payloads of the notices that wait in a lane."""
        records = [decode_record(one.body) for one in self.lane(lane) if one.source.origin == "agentd"]
        return [json.loads(bytes(record.payload)) for record in records if isinstance(record, Event)]

    def shed_records(self):
        return self.spool.books.total("cloud", State.SHED)


@pytest.fixture
async def telling(harness):
    return await Telling(harness).open()


# -- when there is room again ----------------------------------------------------------------------------------------


async def test_a_run_is_told_when_there_is_room_again(telling):
    """Not while the queue is full; then once, by a record of level warn in the name of whose records they were."""
    await telling.put(22, "run:full")
    await telling.put(10, loss=DEBUG)
    await telling.put(5, loss=INFO)
    await telling.shed(through=INFO)
    await telling.tick()
    assert telling.told() == []
    await telling.empty()
    await telling.tick()
    (told,) = telling.told()
    assert told == {
        "records": 15,
        "cause": "queue_full",
        "kinds": {"event": 15},
        "levels": {"debug": 10, "info": 5},
        "first_at": told["first_at"],
        "last_at": told["last_at"],
    }
    assert told["first_at"] < told["last_at"] < "1970-01-02"
    assert telling.shed_records() == 15
    (notice,) = telling.lane()
    assert (notice.kind, notice.loss, notice.source.uid, notice.source.agent) == ("event", KEEP, 1000, "billing")
    record = decode_record(notice.body)
    assert (record.type, record.level, record.run_id, record.agent_id) == ("agentd.lost", "warn", "a", "billing")
    assert telling.harness.balanced()
    await telling.tick()
    assert len(telling.told()) == 1


async def test_a_later_gap_is_told_anew(telling):
    """Once per gap: what was told is not told again."""
    for records in (10, 4):
        await telling.put(records, loss=DEBUG)
        await telling.shed()
        await telling.empty()
        await telling.tick()
    assert [told["records"] for told in telling.told()] == [4]  # the first one was delivered
    assert telling.shed_records() == 14


async def test_runs_without_a_gap_are_told_nothing(telling):
    """And what nobody's run lost is told nobody."""
    await telling.put(5, "run:b")
    await telling.put(5, "heartbeat:a", INFO, "heartbeat")
    await telling.put(5, "run:a", DEBUG)
    await telling.shed()
    await telling.empty(but=["run:b"])
    await telling.tick()
    assert len(telling.told()) == 1
    assert (telling.told("run:b"), telling.told("heartbeat:a")) == ([], [])


async def test_where_no_events_are_taken_nobody_is_told(telling):
    """The platform could not be told; the books say it all the same."""
    await telling.put(10, loss=DEBUG, name="local")
    await telling.shed(name="local")
    await telling.empty("local")
    await telling.tick()
    assert telling.spool.queues["local"].live == 0
    assert telling.spool.books.causes("local")["shed"] == {"queue_full": 10}
    assert Table.LOST not in {Table(key >> 48) for key in telling.harness.store._rows}


async def test_many_runs_are_told_as_far_as_there_is_room(telling):
    """No notice is refused, none sheds anything: what does not fit comes with a later tick."""
    for number in range(30):
        await telling.put(1, f"run:{number}", DEBUG)
    await telling.shed()
    await telling.empty()
    quiet = 0
    told = set()
    while quiet < 3:
        await telling.tick()
        found = {lane for lane in telling.queue.lanes if telling.told(lane)}
        quiet = 0 if found else quiet + 1
        assert telling.queue.stored_bytes <= 40_000
        told |= found
        await telling.empty()
    assert told == {f"run:{number}" for number in range(30)}
    assert telling.shed_records() == 30


@pytest.mark.parametrize("why", ["old", "dead"])
async def test_a_run_that_nobody_knows_any_more_is_forgotten(telling, why):
    """Its loss is as old as `runs.keep`, or the platform never took the run: the row goes, and nothing is sent."""
    start = await telling.put(1, kind="run.start")
    ref = telling.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, start[0].number))
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    if why == "dead":
        ref.state = DEAD
    await telling.empty()
    await telling.tick((lambda _at: KEEP_US + 1) if why == "old" else young)
    assert telling.told() == []
    assert Table.LOST not in {Table(key >> 48) for key in telling.harness.store._rows}


# -- before the end --------------------------------------------------------------------------------------------------


async def test_an_end_that_comes_finds_what_goes_before_it(telling):
    """Intake stores the notice right before the end, in the same commit, and asks for room for both."""
    await telling.put(10, loss=DEBUG)
    assert telling.notices.size_before_end("cloud", "run:a") == 0
    assert telling.notices.before_end("cloud", "run:a") is None
    await telling.shed()
    assert telling.notices.size_before_end("cloud", "run:a") > 300
    notice = telling.notices.before_end("cloud", "run:a")
    assert telling.notices.before_end("cloud", "run:a") is None
    end = entry(telling.spool.number("cloud"), kind="run.complete")
    assert notice.number < end.number
    await telling.spool.append({"cloud": [notice, end]})
    assert [one["records"] for one in telling.told()] == [10]
    await telling.crash()
    await telling.empty()
    await telling.tick()
    assert telling.told() == []


async def test_an_end_that_waits_takes_its_place_behind_the_notice(telling):
    """When it comes to the head of its lane; what was admitted after it stays behind it. The end keeps its id."""
    await telling.put(10, loss=DEBUG)
    (end,) = await telling.put(1, kind="run.complete")
    (late,) = await telling.put(1)
    await telling.shed()
    await telling.empty(but=["run:a"])
    await telling.tick()
    assert [one.number for one in telling.lane()] == [end.number, late.number]  # not before its turn
    telling.touched.clear()
    assert telling.outbox.tell_first("run:a")
    assert telling.lane() == []
    assert telling.harness.balanced() is False  # of two that are to come, the queue knows nothing yet,
    assert telling.spool.books.queued("cloud") == telling.queue.live + telling.spool.committing(
        "cloud"
    )  # and these count
    await telling.spool.barrier()
    assert [one.record_id for one in telling.lane()][1:] == [end.record_id, late.record_id]
    assert [one["records"] for one in telling.told()] == [10]
    assert telling.touched == {"run:a"}
    assert not telling.outbox.tell_first("run:a")
    assert telling.harness.balanced()
    assert telling.spool.books.total("cloud", "admitted") == telling.queue.live + telling.shed_records() + sum(
        telling.spool.books.total("cloud", state) for state in (State.DELIVERED,)
    )


async def test_an_end_waits_for_what_is_being_counted(telling):
    """What was shed a moment ago is counted with its commit: the end waits for that, and its lane is touched then."""
    await telling.put(10, loss=DEBUG)
    await telling.put(1, kind="run.complete")
    telling.make_full()
    telling.touched.clear()
    assert telling.outbox.tell_first("run:a")
    assert not telling.outbox.tell_first("run:b")
    await telling.spool.barrier()
    assert telling.touched == {"run:a"}
    assert telling.outbox.tell_first("run:a")
    await telling.spool.barrier()
    assert [one["records"] for one in telling.told()] == [10]


async def test_an_end_whose_run_lost_nothing_is_sent_at_once(telling):
    """As is one of a destination that is told nothing."""
    await telling.put(1, kind="run.complete")
    assert not telling.outbox.tell_first("run:a")
    assert not SpoolOutbox(telling.spool, "local", telling.notices).tell_first("run:a")
    assert not SpoolOutbox(telling.spool, "cloud").tell_first("run:a")


async def test_what_can_not_be_moved_is_sent_as_it_stands(telling):
    """Where the disk has more of the run, its records would change their order; the run is told after its end."""
    await telling.put(10, loss=DEBUG)
    (end,) = await telling.put(1, kind="run.complete")
    await telling.shed()
    telling.queue.window_limit = 1
    await telling.put(1)
    assert telling.queue.has_more("run:a")
    assert not telling.outbox.tell_first("run:a")
    await telling.spool.settle(seal_of([end]), [end])
    await telling.harness.filled()
    await telling.empty()
    await telling.harness.filled()
    await telling.empty()
    await telling.tick()
    assert [one["records"] for one in telling.told()] == [10]


async def test_an_end_of_a_run_that_the_platform_never_took_is_not_moved(telling):
    """It ends as a dead letter with the rest of its run; there is nobody to be told."""
    (start,) = await telling.put(1, kind="run.start")
    ref = telling.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, start.number))
    await telling.put(10, loss=DEBUG)
    await telling.put(1, kind="run.complete")
    await telling.shed()
    ref.state = DEAD
    assert not telling.outbox.tell_first("run:a")


async def test_an_introducer_is_not_moved(telling):
    """Somebody knows it by its number."""
    await telling.put(10, loss=DEBUG)
    await telling.put(1, kind="run.complete")
    (again,) = await telling.put(1, kind="run.start")
    telling.spool.refs.introduce(Ref("cloud", "run", "a", "billing", 1000, again.number))
    await telling.shed()
    assert not telling.outbox.tell_first("run:a")


async def test_an_end_on_its_way_to_the_disk_is_not_overtaken_by_its_notice(telling):
    """A tick leaves runs alone whose end is in the commit under way: they are told when it comes to the head of its lane."""
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.empty()
    end = entry(telling.spool.number("cloud"), kind="run.fail")
    stored = telling.spool.append({"cloud": [end]})
    telling.notices.tick(young, KEEP_US)
    await stored
    assert telling.told() == []
    await telling.tick()
    assert telling.told() == []
    assert telling.outbox.tell_first("run:a")
    await telling.spool.barrier()
    assert [one.kind for one in telling.lane()] == ["event", "run.fail"]


async def test_a_destination_that_nobody_knows_any_more_is_told_nothing(telling):
    """It is not in the configuration, nothing waits for it, and the meta row that knew its name was lost."""
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.empty()
    await telling.harness.kill()
    telling.harness.store = telling.harness.store.crash()
    telling.harness.store.damage(key_of(Table.META, 0))
    telling.harness.identities = {"local": "agentos"}
    spool = await telling.harness.open(quotas={"local": 40_000})
    Notices(spool, ["local"], Uuid7(), spool.ledger.now_us).tick(young, KEEP_US)
    await spool.barrier()
    assert len(spool.ledger.losses) == 0


async def test_two_notices_on_their_way_are_each_told_once(telling):
    """A second end of the run comes while the first is being written, and another segment of it was shed in between."""
    spool = telling.spool
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.put(4, loss=DEBUG)
    telling.make_full()
    await asyncio.sleep(0)  # the commit is under way that counts what was shed just now
    stored = []
    for _ in range(2):
        while (notice := telling.notices.before_end("cloud", "run:a")) is None:
            await asyncio.sleep(0)
        end = entry(spool.number("cloud"), kind="run.fail")
        stored.append(spool.append({"cloud": [notice, end]}))
    assert not stored[0].done()
    await spool.barrier()
    assert [told["records"] for told in telling.told()] == [10, 4]
    await telling.crash()
    assert len(telling.spool.ledger.losses) == 0


# -- crashes and full disks ------------------------------------------------------------------------------------------


async def test_a_gap_outlives_a_crash(telling):
    """It is in the commit that sheds, and out of it in the commit that tells."""
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.crash()
    await telling.empty()
    await telling.tick()
    assert [one["records"] for one in telling.told()] == [10]
    await telling.crash()
    await telling.tick()
    assert [one["records"] for one in telling.told()] == [10]


async def test_a_crash_before_the_commit_leaves_records_and_no_gap(telling):
    """What was shed in memory alone is there again."""
    await telling.put(10, loss=DEBUG)
    telling.make_full()
    await telling.crash()
    assert telling.shed_records() == 0
    assert telling.queue.live == 10
    assert len(telling.spool.ledger.losses) == 0


async def test_a_full_disk_tells_later(telling):
    """The notice is refused like any record; the gap is as it was, on disk as well."""
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.empty()
    telling.harness.store.full = 1
    await telling.tick()
    assert telling.told() == []
    assert telling.harness.balanced()
    await telling.crash()
    await telling.tick()
    assert [one["records"] for one in telling.told()] == [10]


async def test_on_a_full_disk_only_an_end_brings_it(telling):
    """What is shed for the disk goes on being shed: a run that goes on would be told every second."""
    await telling.put(10, loss=DEBUG)
    await telling.shed()
    await telling.empty()
    telling.spool.ledger.disk_full = True
    telling.spool.ledger.free_inside = 10**9
    await telling.tick()
    assert telling.told() == []
    assert telling.notices.before_end("cloud", "run:a") is not None


async def test_a_full_disk_moves_the_end_and_tells_nothing_before_it(telling):
    """An end whose notice finds no room is in the queue all the same, once, and goes as it is while the disk is full."""
    await telling.put(10, loss=DEBUG)
    (end,) = await telling.put(1, kind="run.complete")
    await telling.shed()
    await telling.empty(but=["run:a"])
    telling.harness.store.full = 1
    assert telling.outbox.tell_first("run:a")
    await telling.spool.barrier()
    assert [one.record_id for one in telling.lane()] == [end.record_id]
    assert telling.harness.balanced()
    assert not telling.outbox.tell_first("run:a")
    await telling.crash()
    assert [one.record_id for one in telling.lane()] == [end.record_id]
    assert telling.outbox.tell_first("run:a")


async def test_what_is_rewritten_while_it_is_shed_is_counted(telling, monkeypatch):
    """The rows that a run was counted from are gone: it is counted from the new ones, without what had ended."""
    monkeypatch.setattr(compact, "MANY_TINY", 2)
    rows = [*await telling.put(3, loss=DEBUG), *await telling.put(3, loss=DEBUG)]
    await telling.spool.settle(seal_of(rows[:1]), rows[:1])
    shed = []

    class Meanwhile(Immediate):
        """Sheds when the rewriting is on disk, before anybody knows."""

        def submit(self, job, /, *arguments, **named):
            done = super().submit(job, *arguments, **named)
            if telling.queue.rewriting and not shed:
                telling.make_full()
                shed.append(True)
            return done

    telling.spool._storage._thread = Meanwhile()
    telling.spool._compactor.tick()
    while telling.spool._committer._errand is not None:
        await asyncio.sleep(0)
    await telling.spool.barrier()
    assert shed == [True]
    assert telling.shed_records() == 5
    assert telling.spool.ledger.losses.find("cloud", "run:a").debug_events == 5
    assert telling.harness.balanced()


async def test_what_can_not_be_read_is_shed_and_told_nobody(telling):
    """A damaged segment costs its runs the notice, and nobody anything else."""
    (row, *_) = [one.segment for one in await telling.put(10, loss=DEBUG)]
    await telling.put(10, "run:b", loss=DEBUG)
    telling.harness.store.change(row, b"AGS\x01damaged")
    await telling.shed()
    assert telling.shed_records() == 20
    assert telling.spool.ledger.losses.find("cloud", "run:a") is None
    assert telling.spool.ledger.losses.find("cloud", "run:b").records == 10


# -- a later place ---------------------------------------------------------------------------------------------------


def placed(harness, name="cloud"):
    return [(one.number, one.record_id) for one in harness.spool.queues[name].peek("run:a")]


async def test_moved_records_stand_at_the_end(harness):
    """They keep their ids and their order, are booked once, and their old rows go with the same commit."""
    spool = await harness.open()
    rows = await harness.put(3)
    (other,) = await harness.put(1)
    commits = len(harness.store.commits)
    await spool.move_back("cloud", rows)
    assert [record_id for _, record_id in placed(harness)] == [one.record_id for one in (other, *rows)]
    assert len(harness.store.commits) == commits + 1
    assert spool.books.total("cloud", "admitted") == spool.queues["cloud"].live == 4
    assert harness.balanced()
    before = placed(harness)
    await harness.crash()
    await harness.filled()
    assert placed(harness) == before
    assert harness.balanced()


async def test_who_waits_for_a_record_waits_for_it_at_its_later_place(harness):
    """A flush of what was queued by now is not over when the record has been put behind what came later."""
    spool = await harness.open()
    (row, *_) = await harness.put(2)
    goal = spool.meta.next_number["cloud"]
    moving = spool.move_back("cloud", [row])
    assert spool.lowest("cloud") == row.number
    await moving
    for one in list(spool.queues["cloud"].peek("run:a"))[:1]:
        await spool.settle(seal_of([one]), [one])
    assert spool.queues["cloud"].lowest() >= goal
    assert spool.lowest("cloud") == row.number
    (moved,) = spool.queues["cloud"].peek("run:a")
    await spool.move_back("cloud", [moved])
    assert spool.lowest("cloud") == row.number
    (moved,) = spool.queues["cloud"].peek("run:a")
    await spool.settle(seal_of([moved]), [moved])
    assert spool.lowest("cloud") is None
    await harness.put(1)
    assert spool.lowest("cloud") >= goal


async def test_a_crash_leaves_the_old_place_or_the_new_one(harness):
    """Before the commit the record is where it was."""
    spool = await harness.open()
    (row, *_) = await harness.put(2)
    before = placed(harness)
    _ = spool.move_back("cloud", [row])
    await harness.crash()
    await harness.filled()
    assert placed(harness) == before
    assert harness.balanced()


async def test_a_move_is_never_refused(harness):
    """The disk is full again and again: the record is in the books and in no queue meanwhile, and moves as soon as there is room."""
    spool = await harness.open()
    (row, other) = await harness.put(2)
    harness.store.full = 3
    moving = spool.move_back("cloud", [row])
    refused = spool.append({"cloud": harness.records(1)})
    assert spool.books.queued("cloud") == spool.queues["cloud"].live + spool.committing("cloud")
    await moving
    assert isinstance(refused.exception(), Exception)
    assert [record_id for _, record_id in placed(harness)] == [other.record_id, row.record_id]
    assert harness.balanced()
    await harness.crash()
    await harness.filled()
    assert [record_id for _, record_id in placed(harness)] == [other.record_id, row.record_id]


async def test_records_of_several_lanes_may_be_on_their_way_to_a_later_place(harness):
    """A full disk refuses the commit that holds them: each is counted until it is in the queue again."""
    spool = await harness.open()
    for lane in ("run:a", "run:b"):
        await harness.put(1, lane=lane)
    harness.store.full = 2
    moving = [spool.move_back("cloud", list(spool.queues["cloud"].peek(lane))) for lane in ("run:a", "run:b")]
    while not all(one.done() for one in moving):
        assert spool.books.queued("cloud") == spool.queues["cloud"].live + spool.committing("cloud") == 2
        await asyncio.sleep(0)
    assert harness.balanced()


async def test_nobody_waits_for_a_moved_record_that_was_shed(harness):
    """A flush is over when what is left came later."""
    spool = await harness.open(quotas={"cloud": 4000, "local": 1})
    moved = await harness.put(1, loss=INFO, body=BODY)
    await spool.move_back("cloud", moved)
    (later,) = await harness.put(1, body=BODY)
    assert spool.lowest("cloud") == moved[0].number
    assert spool.room_for("cloud", 2500, KEEP)
    await spool.barrier()
    assert spool.books.total("cloud", State.SHED) == 1
    assert spool.lowest("cloud") == later.number


async def test_a_move_goes_with_what_was_handed_over_before_it(harness):
    """However large that is: a record that is out of its old place has its new one with the next commit."""
    spool = await harness.open(quotas={"cloud": 2**30, "local": 1})
    (row,) = await harness.put(1)
    commits = len(harness.store.commits)
    large = [spool.append({"cloud": harness.records(1, body=bytes(3 * 2**20))}) for _ in range(3)]
    await spool.move_back("cloud", [row])
    assert all(one.done() for one in large)
    assert len(harness.store.commits) == commits + 1


async def test_what_has_ended_is_not_moved(harness):
    """Nothing comes back from the dead by it."""
    spool = await harness.open()
    (row,) = await harness.put(1)
    await spool.bury(None, "cloud", [row], Death(Cause.REJECTED, "no"))
    await spool.move_back("cloud", [row])
    assert placed(harness) == []
    assert harness.balanced()


def test_a_notice_is_no_larger_than_was_asked_for(telling_entry):
    """Whatever the run is called."""
    size, notice = telling_entry
    assert len(notice.body) + 64 <= size


@pytest.fixture
async def telling_entry(harness):
    telling = await Telling(harness).open()
    lane = "run:" + "\0" * 256
    rows = [entry(telling.spool.number("cloud"), lane, DEBUG, BODY) for _ in range(10)]
    for row in rows:
        row.source = Source("\1" * 256, 2**32 - 2, 2**22, "frames")
    await telling.spool.append({"cloud": rows})
    await telling.shed()
    size = telling.notices.size_before_end("cloud", lane)
    notice = telling.notices.before_end("cloud", lane)
    assert isinstance(notice, Entry)
    await asyncio.sleep(0)
    return size, notice
