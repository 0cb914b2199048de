"""Dead letters: back into their queue, away for good, or into their room; each step is on disk whole or not at all."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import msgspec
import pytest
from spool_kit import DAY_US, seal_of

from agentd.errors import SpoolFull
from agentd.outcomes import Cause, Learned, State
from agentd.queued import DEAD, INTRODUCED, KNOWN, Allowed, Death, Entry, Ref, Refused, Source, Try
from agentd.records import INTRODUCES, Record, lane_of, loss_class
from agentd.spool import dead, letters
from agentd.spool import journal as journals
from agentd.spool.audit import audit
from agentd.spool.checked import pack
from agentd.spool.dead import DeadLetters
from agentd.spool.findings import Severity
from agentd.spool.letters import Wanted
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table
from agentd.testing import MemoryStore
from agentd.wire import encode

ALL = Wanted()
BY = 77
NO = Death(Cause.REJECTED, "400 no", 2, 400, "the words", "key", (Try(5, 503, "503"), Try(9, 400, "400 no")))
CARRIED = Death(Cause.INTRODUCER_DEAD, "run r was refused for good")
ENDS = ("delivered", "dead", "purged", "shed", "quarantined")
decode_record = msgspec.json.Decoder(Record).decode


class Photographed(MemoryStore):
    """Keeps what a new start would find after each commit."""

    def __init__(self, rows=None):
        super().__init__(rows)
        self.photos = []

    def commit(self, puts, deletes):
        super().commit(puts, deletes)
        self.photos.append(self.crash())


class Room:
    """A spool with records that die in it."""

    def __init__(self, harness):
        self.harness = harness
        self.letters = None

    async def open(self, **changes):
        await self.harness.open(**changes)
        self.letters = DeadLetters(self.spool)
        return self

    async def reopen(self, store=None, **changes):
        """Killed and started again, on what was committed or on another disk."""
        await self.harness.kill()
        self.harness.store = (store or self.harness.store).crash()
        return await self.open(**changes)

    @property
    def spool(self):
        return self.harness.spool

    @property
    def store(self):
        return self.harness.store

    async def put(self, kind, *, name="cloud", source=Source("billing", 1000, 42, "frames"), ordering="run", **fields):  # noqa: B008 - frozen
        record = decode_record(msgspec.json.encode({"kind": kind, **fields}))
        number = self.spool.number(name)
        lane = lane_of(record, source.agent, ordering, str(number))
        entry = Entry(
            number, number.to_bytes(16, "big"), lane, kind, loss_class(record), source, number * 10, encode(record)
        )
        introduced = []
        if kind in INTRODUCES and (local_id := getattr(record, INTRODUCES[kind][1])) is not None:
            ref = Ref(name, INTRODUCES[kind][0], local_id, source.agent, source.uid, number, lane=lane)
            if self.spool.refs.introduce(ref) is ref:
                introduced.append(ref)
        await self.spool.append({name: [entry]}, introduced=introduced)
        return entry

    async def kill(self, *entries, death=NO, name="cloud"):
        await self.spool.bury(None, name, entries, death)
        return entries

    async def dead_run(self, run="r", events=3, **facts):
        """A run whose start was refused, with what it has carried along."""
        start = await self.put("run.start", run_id=run, **facts)
        rest = [await self.put("event", run_id=run, type=str(number), **facts) for number in range(events)]
        name = facts.get("name", "cloud")
        await self.kill(start, name=name)
        await self.kill(*rest, death=CARRIED, name=name)
        return [start, *rest]

    async def page(self, wanted, limit, after=None):
        return await self.spool.run_in_thread(dead.page, wanted, limit, after)

    async def queued(self, lane="run:r", name="cloud"):
        queue = await self.harness.filled(name)
        return list(queue.peek(lane))

    def ref(self, kind, local_id, name="cloud"):
        return self.spool.refs.get(name, kind, local_id)

    def notes(self, *states):
        rows = [value for _, value in self.store.rows(Table.JOURNAL)]
        return [note for value in rows for note in journals.decode(value) if not states or note.state in states]

    def state(self):
        """All that a replay or a purge may change, but for the numbers that were used up and the journal."""
        spool = self.spool
        return (
            spool.books.snapshot(), sorted(self.store.rows(Table.DEAD)), sorted(self.store.rows(Table.SEGMENT)),
            spool.dead_count, spool.dead_bytes, dict(spool.ledger.dead_lanes), spool.ledger.invalid_bytes,
            sorted((ref.local_id, ref.state, ref.number, ref.row) for ref in spool.refs),
        )  # fmt: skip

    def agree(self):
        """Promise 8: books, queue, letters and journal say the same, in memory and on disk."""
        spool, rows = self.spool, list(self.store.tags(Table.DEAD))
        assert (spool.dead_count, spool.dead_bytes) == (len(rows), sum(size for _, _, size in rows))
        briefs = [letters.decode(self.store.read(key)) for key, _, _ in rows if key not in self.store._damaged]
        for name in ("", *spool.queues):
            assert spool.books.queued(name) == (spool.queues[name].live if name else 0)
            if not self.store._damaged:
                assert spool.books.total(name, "dead") == sum(brief.destination == name for brief in briefs)
        numbers = [note.number for note in self.notes()]
        assert numbers == list(range(1, len(numbers) + 1))
        if not self.store._damaged:
            assert [found for found in audit(self.store).findings if found.severity is Severity.ERROR] == []


@pytest.fixture
async def room(harness):
    return await Room(harness).open()


async def every_crash(room, act, check, **changes):
    """Do it once, then start anew from each disk that there was on the way, the one before the first commit included."""
    store = room.harness.store = room.spool._storage._store = Photographed(room.store._rows)
    await room.spool.barrier()
    store.photos = [store.crash()]
    await act()
    assert len(store.photos) > 1
    for photo in store.photos:
        await room.reopen(photo, **changes)
        room.agree()
        await check()


# -- replay ----------------------------------------------------------------------------------------------------------------


async def test_a_replay_is_the_same_record_at_the_end_of_its_lane(room):
    """Its id, bytes, sender and admission time stay, and so does its idempotency key; what is queued already goes first."""
    entry = await room.put("event", run_id="r", type="old", level="error")
    await room.kill(entry)
    later = await room.put("event", run_id="r", type="new")
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (1, {})
    first, second = await room.queued()
    assert (first.record_id, second.record_id) == (later.record_id, entry.record_id)
    kept = ("record_id", "lane", "kind", "loss", "source", "admitted_us", "body")
    assert [getattr(second, name) for name in kept] == [getattr(entry, name) for name in kept]
    assert second.number > later.number
    assert list(room.store.rows(Table.DEAD)) == []
    room.agree()


async def test_the_journal_says_who_replayed(room):
    """Promise 9: dead, then queued again, with the cause and the uid that asked for it."""
    (start, *_) = await room.dead_run(events=1)
    await room.letters.replay(ALL, BY)
    steps = [(note.state, note.cause, note.by) for note in room.notes() if note.record_id == start.record_id]
    assert steps == [(State.QUEUED, "", -1), (State.DEAD, "rejected", -1), (State.QUEUED, "replayed", BY)]
    assert [note.kind for note in room.notes() if note.cause == "replayed"] == ["run.start", "event"]


async def test_a_rejected_start_brings_its_run_along(room):
    """Whoever replays a run.start gets all that died with it, behind it and in the old order; the run is waited for again."""
    run = await room.dead_run()
    other = await room.dead_run("other")
    done = await room.letters.replay(Wanted(ids=frozenset([run[0].record_id])), BY)
    assert (done.replayed, done.left) == (4, {})
    assert [entry.record_id for entry in await room.queued()] == [entry.record_id for entry in run]
    assert await room.queued("run:other") == []
    ref = room.ref("run", "r")
    assert (ref.state, ref.number, ref.lane) == (INTRODUCED, (await room.queued())[0].number, "run:r")
    assert room.ref("run", "other").state == DEAD
    assert room.spool.dead_count == len(other)
    await room.reopen()
    assert (room.ref("run", "r").state, room.ref("run", "other").state) == (INTRODUCED, DEAD)
    room.agree()


@pytest.mark.parametrize("ordering", ["run", "agent", "none"])
async def test_a_rejected_decision_brings_its_snapshots_along(room, ordering):
    """Wherever the decision's own lane lies."""
    await room.put("run.start", run_id="r")
    decision = await room.put("decision", decision_id="d", context="c", run_id="r", ordering=ordering)
    snapshots = [await room.put("snapshot", decision_id="d", snapshot={"n": n}) for n in range(2)]
    await room.kill(decision)
    await room.kill(*snapshots, death=CARRIED)
    assert room.ref("decision", "d").state == DEAD
    assert (await room.letters.replay(Wanted(ids=frozenset([decision.record_id])), BY)).replayed == 3
    assert [entry.record_id for entry in await room.queued("decision:d")] == [one.record_id for one in snapshots]
    (again,) = [e for e in await room.queued(decision.lane) if e.record_id == decision.record_id]
    assert (room.ref("decision", "d").number, room.ref("decision", "d").lane) == (again.number, decision.lane)
    room.agree()


async def test_what_waits_for_a_dead_introducer_stays(room):
    """To send it would be to name a run that the platform does not have."""
    run = await room.dead_run()
    before = room.state()
    done = await room.letters.replay(Wanted(ids=frozenset(entry.record_id for entry in run[1:])), BY)
    assert (done.replayed, done.left) == (0, {"introducer_dead": 3})
    assert room.state() == before


async def test_what_waits_is_replayed_once_its_introducer_is_known(room):
    """The agent began the run anew under the same id, and the platform took it: its dead may follow."""
    run = await room.dead_run()
    anew = await room.put("run.start", run_id="r")
    assert room.ref("run", "r").number == anew.number
    done = await room.letters.replay(Wanted(cause="introducer_dead"), BY)
    assert (done.replayed, done.left) == (3, {})
    assert [e.record_id for e in await room.queued()] == [e.record_id for e in (anew, *run[1:])]


async def test_an_unknown_outcome_is_replayed_by_force_alone(room):
    """Promise 5: it may have acted; only a person may say that it be done again."""
    action = await room.put("action.completed", action_id="a")
    await room.kill(action, death=Death(Cause.OUTCOME_UNKNOWN, "answer lost"))
    before = room.state()
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (0, {"outcome_unknown": 1})
    assert room.state() == before
    assert (await room.letters.replay(ALL, BY, force=True)).replayed == 1
    assert [e.record_id for e in await room.queued("action:a")] == [action.record_id]


async def test_what_waits_for_an_unknown_outcome_waits_on(room):
    """Chosen together without force neither goes: the dependents would die again at once."""
    decision = await room.put("decision", decision_id="d", context="c")
    snapshot = await room.put("snapshot", decision_id="d", snapshot={})
    await room.kill(decision, death=Death(Cause.OUTCOME_UNKNOWN, "answer lost"))
    await room.kill(snapshot, death=CARRIED)
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (0, {"outcome_unknown": 1, "introducer_dead": 1})
    assert (await room.letters.replay(Wanted(cause="outcome_unknown"), BY, force=True)).replayed == 2


async def test_a_gate_that_nobody_knows_stays_in_the_way(room):
    """A record that names a verdict which a client had to make up can never be sent."""
    outcome = await room.put("outcome", decision_id="no-gate:x", outcome_status="succeeded")
    await room.kill(outcome, death=Death(Cause.GATE_UNAVAILABLE, "names a gate that no platform knows"))
    assert (await room.letters.replay(ALL, BY, force=True)).left == {"gate_unavailable": 1}


async def test_a_gate_that_was_resolved_is_in_nobodys_way(room):
    """Somebody found out what the platform calls it: what names it can be sent."""
    room.spool.refs.put(Ref("cloud", "decision", "g", "", 1000, 0, DEAD, lane="gate:1"))
    outcome = await room.put("outcome", decision_id="g", outcome_status="succeeded")
    await room.kill(outcome, death=Death(Cause.GATE_UNAVAILABLE, "names a gate that no platform knows"))
    assert (await room.letters.replay(ALL, BY)).left == {"gate_unavailable": 1}
    room.spool.refs.learn("cloud", "decision", "g", "p-g", 1)
    assert (await room.letters.replay(ALL, BY)).replayed == 1


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(destination="cloud"), 2),
        (Wanted(destination="local"), 1),
        (Wanted(run="r"), 2),
        (Wanted(run="s"), 1),
        (Wanted(run="r", destination="local"), 1),
        (Wanted(cause="rejected"), 2),
        (Wanted(cause="too_large"), 1),
        (Wanted(died_before_us=0), 0),
        (Wanted(died_before_us=10**9), 3),
        (Wanted(uid=1000), 2),
        (Wanted(uid=1001), 1),
        (Wanted(ids=frozenset([(1).to_bytes(16, "big")])), 2),  # a record has its id at both destinations
        (Wanted(ids=frozenset([b"x" * 16])), 0),
    ],
)
async def test_letters_are_chosen_by_what_is_known_of_them(room, wanted, count):
    """Id, destination, run, cause, age and sender, together; for listing, replay and purge alike."""
    await room.kill(await room.put("event", run_id="r", type="t"))
    await room.kill(await room.put("event", run_id="r", type="t", name="local"), name="local")
    other = Source("sales", 1001, 1, "lines")
    await room.kill(
        await room.put("event", run_id="s", type="t", source=other), death=Death(Cause.TOO_LARGE, "413 too large")
    )
    assert len(await room.letters.find(wanted)) == len(await room.page(wanted, 100)) == count
    assert (await room.letters.replay(wanted, BY)).replayed == count
    assert room.spool.dead_count == 3 - count
    room.agree()


async def test_two_replays_at_once_are_one_after_the_other(room):
    """The second finds what the first has left."""
    await room.dead_run()
    one, other = await asyncio.gather(room.letters.replay(ALL, 1), room.letters.replay(ALL, 2))
    assert (one.replayed, other.replayed) == (4, 0)
    room.agree()


async def test_many_are_replayed_in_steps(room, monkeypatch):
    """A room of many megabytes is no single commit; its order stays whole, and delivery hears of all of it."""
    monkeypatch.setattr(dead, "_STEP_BYTES", 1000)
    heard = set()
    room.spool.listen("cloud", heard.update)
    run = await room.dead_run(events=20)
    commits = room.spool.meta.commits
    assert (await room.letters.replay(ALL, BY)).replayed == 21
    assert room.spool.meta.commits - commits > 3
    assert [entry.record_id for entry in await room.queued()] == [entry.record_id for entry in run]
    assert heard == {"run:r"}
    room.agree()


async def test_whoever_waits_for_room_among_the_letters_is_told(room):
    """A destination that paused because they were full goes on at once."""
    told = []
    room.letters.listen(lambda: told.append(room.spool.dead_bytes))
    await room.dead_run(events=0)
    await room.letters.replay(ALL, BY)
    await room.dead_run("s", events=0)
    await room.letters.purge(ALL, BY, "why")
    assert told == [0, 0]


async def test_a_letter_of_the_first_format_is_found_and_replayed(room):
    """Its tag says neither kind, id nor sender: they are read from the row."""
    await room.dead_run()
    rows = [(key, value) for key, value in room.store.rows(Table.DEAD)]
    for key, value in rows:
        letter = letters.decode(value)
        old = msgspec.msgpack.encode((letter.destination, letter.lane, letter.cause, len(value)))
        bare = msgspec.msgpack.encode(list(msgspec.structs.astuple(letter))[:15])
        room.store.commit([Put(key, bare, old)], ())
    await room.reopen()
    assert {one.brief.kind for one in await room.letters.find(Wanted(uid=1000, run="r"))} == {"run.start", "event"}
    assert (await room.letters.replay(ALL, BY)).replayed == 4
    assert [entry.kind for entry in await room.queued()] == ["run.start", "event", "event", "event"]
    room.agree()


async def test_a_letter_with_a_damaged_tag_is_found_by_its_row(room):
    """What is whole of it is enough; what can't be read at all is left, and said so."""
    (start, *_) = await room.dead_run(events=2)
    for key, value in list(room.store.rows(Table.DEAD)):
        room.store.change(key, value, b"\xc1 damaged")
    room.store.damage(key)
    found = await room.letters.find(ALL)
    assert [one.brief.number for one in found] == [start.number, 2]
    room.store.change(key, value, pack(msgspec.msgpack.encode(letters.brief_of(letters.decode(value), len(value)))))
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (2, {"damaged": 1})


# -- whose it has become -----------------------------------------------------------------------------------------------------


async def test_nothing_is_replayed_into_anothers_run(room):
    """Who guessed a run's id before there was one was refused for it: a replay must not make up for that."""
    thief, owner = Source("mallory", 1001, 1, "frames"), Source("billing", 1000, 2, "frames")
    planted = await room.put("event", run_id="r", type="planted", source=thief)
    await room.kill(planted, death=Death(Cause.FOREIGN_REFERENCE, "run r was introduced by another"))
    await room.put("run.start", run_id="r", source=owner)
    assert (await room.letters.replay(ALL, BY)).left == {"foreign_reference": 1}
    assert [entry.kind for entry in await room.queued()] == ["run.start"]


async def test_a_dead_run_that_another_has_begun_since_is_not_replayed_into_it(room):
    """Neither its start, nor what it carried along, nor a run that names it as its parent."""
    thief = Source("mallory", 1001, 1, "frames")
    await room.dead_run(source=thief)
    child = await room.put("run.start", run_id="child", parent_run_id="r", source=thief)
    await room.kill(child)
    await room.put("run.start", run_id="r")
    before = room.state()
    assert (await room.letters.replay(ALL, BY)).left == {"foreign_reference": 5}
    assert room.state() == before


async def test_a_start_that_was_sent_again_meanwhile_is_replayed_beside_it(room):
    """The same user's: the reference is the newer one's, and stays."""
    (start,) = await room.dead_run(events=0)
    anew = await room.put("run.start", run_id="r")
    room.spool.refs.learn("cloud", "run", "r", "p-r", 1)
    assert (await room.letters.replay(ALL, BY)).replayed == 1
    assert [e.record_id for e in await room.queued()] == [anew.record_id, start.record_id]
    assert (room.ref("run", "r").state, room.ref("run", "r").number) == (KNOWN, anew.number)


# -- no room -----------------------------------------------------------------------------------------------------------------


async def test_a_full_queue_leaves_everything_as_it_was(harness):
    """Promise 6: nothing is pushed into a queue that can't hold it, and no event is shed for a letter, which is safe where it is."""
    room = await Room(harness).open(quotas={"cloud": 2000, "local": 10**6})
    run = await room.dead_run(events=2)
    while room.spool.fits("cloud", 100):
        await room.put("event", run_id="s", type="n")
    before = room.state()
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (0, {"spool_full": len(run)})
    assert room.state() == before
    room.agree()


async def test_one_full_queue_holds_up_no_other(harness):
    """Promise 2: the other destination's letters are replayed."""
    room = await Room(harness).open(quotas={"cloud": 10, "local": 10**6})
    await room.dead_run(events=1)
    await room.dead_run(events=1, name="local")
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (2, {"spool_full": 2})
    assert len(await room.queued(name="local")) == 2
    room.agree()


async def test_what_fits_is_replayed_and_the_rest_is_left(harness, monkeypatch):
    """In order: nothing overtakes what found no room."""
    monkeypatch.setattr(dead, "_STEP_BYTES", 1)
    room = await Room(harness).open(quotas={"cloud": 1000, "local": 10})
    run = await room.dead_run(events=8)
    done = await room.letters.replay(ALL, BY)
    assert 0 < done.replayed < 9
    assert done.left == {"spool_full": 9 - done.replayed}
    assert [e.record_id for e in await room.queued()] == [e.record_id for e in run[: done.replayed]]
    room.agree()
    for entry in await room.queued():
        seal = seal_of([entry])
        await room.spool.seal(seal)
        await room.spool.settle(seal, [entry], [Learned("run", "r", "p-r")] if entry.kind == "run.start" else ())
    assert (await room.letters.replay(ALL, BY)).replayed > 0  # its run is known by now
    assert room.spool.books.total("cloud", "shed") == 0
    room.agree()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_disk_without_room_leaves_everything_as_it_was(room, times):
    """The commit fails: letters, queue, books and the dead reference stand as before, also after a crash."""
    await room.dead_run()
    before = room.state()
    room.store.full = times
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (0, {"spool_full": 4})
    await room.spool.barrier()
    assert room.state() == before
    assert {note.state for note in room.notes()} == {State.QUEUED, State.DEAD}
    assert not [note for note in room.notes() if note.cause == "replayed"]
    room.agree()
    await room.reopen()
    assert room.state() == before
    assert (await room.letters.replay(Wanted(cause="introducer_dead"), BY)).left == {"introducer_dead": 3}
    assert (await room.letters.replay(ALL, BY)).replayed == 4
    room.agree()


async def test_a_replay_that_waits_behind_a_failed_commit_is_refused_like_it(room):
    """What was not gathered yet when the disk filled up stays dead, its reference too."""
    await room.dead_run()
    before = room.state()
    room.store.full = 1
    _ = room.spool.append({"local": room.harness.records(1, "local")})
    replay = asyncio.create_task(room.letters.replay(ALL, BY))
    done = await replay
    await room.spool.barrier()
    assert (done.replayed, room.ref("run", "r").state) == (0, DEAD)
    assert room.state()[1:] == before[1:]
    await room.reopen()
    assert room.ref("run", "r").state == DEAD


async def test_an_introducer_of_intakes_that_finds_no_room_leaves_the_dead_one(room):
    """A run that is begun anew over a dead one, on a full disk: what names it is still dead, and not taken as the platform's own."""
    await room.dead_run()
    room.store.full = 1
    with pytest.raises(SpoolFull):
        await room.put("run.start", run_id="r")
    assert room.ref("run", "r").state == DEAD
    await room.spool.barrier()
    await room.reopen()
    assert (await room.letters.replay(Wanted(cause="introducer_dead"), BY)).left == {"introducer_dead": 3}


async def test_a_destination_that_is_gone_keeps_its_letters(room):
    """It is not in the configuration any more: there is nobody to send them."""
    await room.dead_run(name="local", events=1)
    await room.reopen(quotas={"cloud": 10**6})
    before = room.state()
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (0, {"no_destination": 2})
    assert room.state() == before


async def test_a_lost_meta_row_gives_no_letters_number_again(room):
    """A reference knows its introducer by its number: another record under that of a dead one would be taken for it."""
    entry = await room.put("event", run_id="r", type="t")
    await room.kill(entry)
    await room.spool.barrier()
    room.store.change(key_of(Table.META, 0), b"\xc1")
    room.store.commit([], [key for key, _ in room.store.rows(Table.JOURNAL)])
    await room.reopen()
    assert room.spool.number("cloud") == entry.number + 1


async def test_a_lost_meta_row_gives_no_number_of_the_journal_again(harness):
    """What has ended and is evidence, or was shed together, is known there alone: nobody's story gets a second hero."""
    room = await Room(harness).open(quotas={"cloud": 10**6, "local": 1200})
    end = await room.put("run.complete", run_id="r")
    seal = seal_of([end])
    await room.spool.seal(seal)
    await room.spool.settle(seal, [end])
    while room.spool.fits("local", 200):
        shed = await room.put("event", run_id="r", type="t" * 100, level="debug", name="local")
    assert room.spool.room_for("local", 1000, end.loss)
    assert room.spool.queues["local"].live == 0
    await room.spool.barrier()
    room.store.change(key_of(Table.META, 0), b"\xc1")
    await room.reopen(quotas={"cloud": 10**6, "local": 1200})
    assert (room.spool.number("cloud"), room.spool.number("local")) == (end.number + 1, shed.number + 1)


# -- crashes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_bytes", [1, 700, 10**6])
async def test_a_crash_within_a_replay_loses_and_doubles_nothing(room, monkeypatch, step_bytes):
    """Promise 1: after each commit every record is a letter or queued, never both; and another replay brings the rest."""
    monkeypatch.setattr(dead, "_STEP_BYTES", step_bytes)
    run = await room.dead_run(events=4)
    local = await room.dead_run("l", events=1, name="local")
    ids = sorted(entry.record_id for entry in run + local)

    async def whole():
        dead_ids = [letters.decode(value).record_id for _, value in room.store.rows(Table.DEAD)]
        queued = [entry.record_id for entry in await room.queued() + await room.queued("run:l", "local")]
        assert sorted(dead_ids + queued) == ids
        await room.letters.replay(ALL, BY)
        assert [entry.record_id for entry in await room.queued()] == [entry.record_id for entry in run]
        assert room.spool.dead_count == 0
        room.agree()

    await every_crash(room, lambda: room.letters.replay(ALL, BY), whole)


async def test_a_crash_within_a_purge_leaves_what_was_not_purged(room, monkeypatch):
    """Promise 8: each step is whole, and the purge is gone on with."""
    monkeypatch.setattr(dead, "_STEP_BYTES", 1)
    await room.dead_run(events=4)

    async def whole():
        left = room.spool.dead_count
        assert room.spool.books.total("cloud", "purged") == 5 - left == len(room.notes(State.PURGED))
        assert await room.letters.purge(ALL, BY, "again") == left
        room.agree()

    await every_crash(room, lambda: room.letters.purge(ALL, BY, "why"), whole)


# -- purge -------------------------------------------------------------------------------------------------------------------


async def test_a_purge_says_who_when_why_and_what(room):
    """Promise 9: the journal keeps each one's digest, its purger and the reason in his words; the books say purged, cause dropped."""
    entry = await room.put("decision", context="c", decision_id="d")
    await room.kill(entry)
    assert await room.letters.purge(Wanted(cause="rejected"), BY, "a test, ticket 17") == 1
    (note,) = room.notes(State.PURGED)
    assert (note.by, note.reason, note.cause) == (BY, "a test, ticket 17", "dropped")
    assert (note.sha256, note.record_id, note.kind, note.destination) == (
        sha256(entry.body).digest(), entry.record_id, "decision", "cloud",
    )  # fmt: skip
    assert room.spool.books.causes("cloud") == {"purged": {"dropped": 1}}
    assert list(room.store.rows(Table.DEAD)) == []
    room.agree()
    await room.reopen()
    room.agree()


async def test_a_purge_takes_what_was_chosen_and_nothing_else(room):
    """The introducer alone: what it carried along stays, and stays dead."""
    run = await room.dead_run()
    assert await room.letters.purge(Wanted(ids=frozenset([run[0].record_id])), BY, "why") == 1
    assert (await room.letters.replay(ALL, BY)).left == {"introducer_dead": 3}
    assert await room.letters.purge(Wanted(run="none"), BY, "why") == 0
    room.agree()


async def test_what_cannot_be_read_can_be_purged(room):
    """A damaged letter takes room: what its tag says of it is booked and noted."""
    (start,) = await room.dead_run(events=0)
    room.store.damage(key_of(Table.DEAD, 1))
    assert await room.letters.purge(ALL, BY, "damaged") == 1
    (note,) = room.notes(State.PURGED)
    assert (note.record_id, note.kind, note.by) == (start.record_id, "run.start", BY)
    assert room.spool.dead_count == 0
    room.agree()


async def test_a_purge_works_on_a_full_disk(room):
    """That is what one does there: what goes needs no room."""
    await room.dead_run()
    room.store.full = 1
    assert await room.letters.purge(ALL, BY, "room") == 4
    room.agree()


async def test_references_are_kept_for_the_dead_and_forgotten_with_them(room):
    """Section 2: references outlive their run by `runs.keep`, and every dead record that needs them."""
    await room.dead_run()
    late = 10 * DAY_US
    age = lambda at: late - at  # noqa: E731 - a clock
    room.spool.refs.prune(lambda at: age(at) > DAY_US, room.spool.ledger.dead_lanes)
    assert room.ref("run", "r").state == DEAD
    await room.letters.purge(ALL, BY, "why")
    room.spool.refs.prune(lambda at: age(at) > DAY_US, room.spool.ledger.dead_lanes)
    assert room.ref("run", "r") is None


# -- refused at intake -------------------------------------------------------------------------------------------------------


def refused(body=b'{"kind":"decision","contxt":"c"}', uid=1000, **facts):
    source = Source("billing", uid, 42, "lines")
    return msgspec.structs.replace(
        Refused("decision", b"i" * 16, "run:r", body, source, "$.contxt: unknown field"), **facts
    )


async def test_refused_evidence_is_kept_as_it_was_sent(room):
    """Promise 8: a decision that was refused as invalid is a dead letter of no destination, with sender and reason."""
    assert room.letters.keep_invalid(refused(allowed=Allowed(("billing",), None)))
    await room.spool.barrier()
    ((_, letter),) = await room.page(Wanted(cause="invalid", run="r"), 10)
    assert (letter.destination, letter.kind, letter.body) == ("", "decision", refused().body)
    assert (letter.reason, letter.source.uid, letter.source.origin) == ("$.contxt: unknown field", 1000, "lines")
    assert letter.refused() == refused(allowed=Allowed(("billing",), None))
    (note,) = room.notes(State.DEAD)
    assert (note.cause, note.destination, note.reason) == ("invalid", "", "$.contxt: unknown field")
    assert note.sha256 == sha256(refused().body).digest()
    room.agree()
    await room.reopen()
    room.agree()
    assert room.spool.quarantined_rows == 0


async def test_a_repeat_is_kept_once(room):
    """The same bytes of the same user, also after a restart; another user's are his own; what was purged may come again."""
    assert room.letters.keep_invalid(refused())
    assert not room.letters.keep_invalid(refused(record_id=b"j" * 16))
    assert room.letters.keep_invalid(refused(uid=1001))
    await room.spool.barrier()
    await room.reopen()
    assert not room.letters.keep_invalid(refused())
    assert room.spool.dead_count == 2
    assert await room.letters.purge(Wanted(uid=1000), BY, "why") == 1
    assert room.letters.keep_invalid(refused())
    await room.spool.barrier()
    room.agree()


async def test_refused_evidence_fills_a_part_of_the_room_at_most(harness):
    """A bad client pauses no destination: an eighth of the room is all that it gets."""
    room = await Room(harness).open(dead_bytes=8000)
    kept = [room.letters.keep_invalid(refused(b'{"kind":"decision","n":%d}' % number)) for number in range(50)]
    await room.spool.barrier()
    assert 2 < sum(kept) < 10
    assert kept == sorted(kept, reverse=True)
    assert room.spool.dead_bytes <= 1000
    assert room.spool.dead_room(6000)
    room.agree()


async def test_refused_evidence_gives_way_to_the_platforms_dead(harness):
    """Where the room is full, and where the disk is, nothing is kept of it."""
    room = await Room(harness).open(dead_bytes=2000)
    for _ in range(3):
        await room.kill(await room.put("event", run_id="r", type="n" * 500))
    assert not room.letters.keep_invalid(refused())
    await room.reopen()
    room.spool.ledger.disk_full = True
    assert not room.letters.keep_invalid(refused())
    room.agree()


async def test_a_refused_record_is_judged_again(room):
    """Taken, it leaves the room and these books, for those that it was admitted to hold it; refused again it stays with the reason."""
    room.letters.keep_invalid(refused())
    room.letters.keep_invalid(refused(b"{}", record_id=b"j" * 16))
    await room.spool.barrier()
    assert (await room.letters.replay(ALL, BY)).left == {"invalid": 2}
    judged = []

    async def readmit(again):
        judged.append(again)
        return "$.kind: required" if again.body == b"{}" else None

    room.letters.readmit = readmit
    done = await room.letters.replay(ALL, BY)
    assert (done.replayed, done.left) == (1, {"$.kind: required": 1})
    assert judged == [refused(), refused(b"{}", record_id=b"j" * 16)]
    assert room.spool.dead_count == 1
    assert [(line.state, line.records) for line in room.spool.books.lines()] == [("admitted", 1), ("dead", 1)]
    (note,) = room.notes(State.QUEUED)
    assert (note.destination, note.cause, note.by, note.record_id) == ("", "replayed", BY, b"i" * 16)
    room.agree()
    await room.reopen()
    room.agree()


async def test_reasons_without_number_are_counted_together(room):
    """An answer stays readable however many letters are refused again, each in words of its own."""
    for number in range(50):
        room.letters.keep_invalid(refused(b"%d" % number))

    async def readmit(again):
        return f"no {again.body}"

    room.letters.readmit = readmit
    await room.spool.barrier()
    left = (await room.letters.replay(ALL, BY)).left
    assert sum(left.values()) == 50
    assert len(left) < 25
    assert left["invalid"] > 20


# -- looking -----------------------------------------------------------------------------------------------------------------


async def test_pages_go_both_ways(room):
    """The newest first for people; from a number on, the oldest first, for who wants them all."""
    await room.dead_run(events=4)
    number = lambda rows: [row for row, _ in rows]  # noqa: E731 - short
    assert number(await room.page(ALL, 3)) == [5, 4, 3]
    assert number(await room.page(ALL, 3, 0)) == [1, 2, 3]
    assert number(await room.page(ALL, 3, 3)) == [4, 5]
    assert await room.page(ALL, 3, 5) == []


async def test_a_page_holds_no_more_than_an_answer(room, monkeypatch):
    """A letter may hold a megabyte: a page ends early, with one letter at least."""
    monkeypatch.setattr(dead, "_PAGE_BYTES", 600)
    await room.dead_run(events=9)
    assert 1 < len(await room.page(ALL, 10)) < 10
    monkeypatch.setattr(dead, "_PAGE_BYTES", 0)
    assert [len(await room.page(ALL, 10, after)) for after in (None, 0)] == [1, 1]


async def test_what_a_letter_carries_is_counted(room):
    """All that died because of it at its own destination; what introduces nothing carries nothing."""
    run = await room.dead_run(events=3)
    await room.dead_run(events=2, name="local")
    await room.dead_run("other", events=4)
    page = [letter for _, letter in await room.page(ALL, 100, 0)]
    counts = await room.spool.run_in_thread(dead.carried, page)
    carries = {(letter.destination, letter.record_id): count for letter, count in zip(page, counts, strict=True)}
    assert carries["cloud", run[0].record_id] == 3
    assert sorted(carries.values()) == [0] * 9 + [2, 3, 4]


async def test_what_is_read_is_what_was_found(room):
    """Contents of the found; one that was replayed meanwhile, or is damaged, is left out."""
    run = await room.dead_run()
    found = await room.letters.find(ALL)
    await room.letters.purge(Wanted(ids=frozenset([run[1].record_id])), BY, "why")
    room.store.damage(found[2].key)
    assert [letter.record_id for letter in await room.letters.read(found)] == [run[0].record_id, run[3].record_id]


async def test_a_letter_has_the_history_of_its_tries(room):
    """Each with its time, status and reason, over a restart."""
    await room.dead_run(events=0)
    await room.reopen()
    ((_, letter),) = await room.page(ALL, 1)
    assert letter.history == (Try(5, 503, "503"), Try(9, 400, "400 no"))
    assert (letter.key, letter.tries, letter.status, letter.answer) == ("key", 2, 400, "the words")


async def test_one_users_refusals_leave_room_for_anothers(harness):
    """Of their room one user fills three quarters at most; who has less than a sixteenth of it is sure of that."""
    room = await Room(harness).open(dead_bytes=8 * 16_000)
    for number in range(200):
        room.letters.keep_invalid(refused(body=b'{"kind":"decision","contxt":"%d"}' % number))
    held = room.spool.ledger.invalid_bytes
    assert 11_000 < held[1000] <= 12_000
    while room.letters.keep_invalid(refused(body=b'{"kind":"decision","contxt":"%d"}' % held[1001], uid=1001)):
        pass
    assert 0 < held[1001] <= 1000
    assert room.letters.keep_invalid(refused(uid=1002))
