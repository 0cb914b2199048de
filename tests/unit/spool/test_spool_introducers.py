"""What a record introduced is found by the record's number, wherever its lane lies; and what a newer record makes stale."""

from __future__ import annotations

import asyncio
from itertools import count

import msgspec
import pytest

from agentd.delivery.ports import Outbox
from agentd.outcomes import Cause, Learned, State
from agentd.queued import DEAD, INTRODUCED, KNOWN, Death, Entry, Ref, Seal, Source
from agentd.records import INTRODUCES, Record, kind_of, lane_of, loss_class
from agentd.spool import journal as journals
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.recovery import open_spool
from agentd.spool.tables import Table
from agentd.testing import MemoryStore
from agentd.wire import encode

LIMITS = Limits({"cloud": 10**6, "other": 10**6}, 2 * 10**6, 10**6, 10**6, 10**6, 10)
NO = Death(Cause.REJECTED, "no", key="k")
decode_record = msgspec.json.Decoder(Record).decode


class Rig:
    """A spool over a store in memory, with records put into it as intake does."""

    def __init__(self, folder):
        self.folder = folder
        self.store = MemoryStore()
        self.clock = count(1_000_000)

    async def open(self):
        self.spool = await open_spool(
            self.folder / "state", sync="normal", limits=LIMITS, identities=dict.fromkeys(LIMITS.quotas, "x"),
            journal=Journal(10**15, 10**9), now_us=lambda: next(self.clock), opener=lambda *_: self.store, retry_s=0,
        )  # fmt: skip
        self.spool.start()
        return self

    async def close(self):
        await self.spool.close()

    async def reopen(self):
        """Start anew from what is on disk."""
        await self.spool.barrier()
        await self.close()
        self.store = self.store.crash()
        return await self.open()

    async def put(self, kind, *, name="cloud", ordering="run", **fields):
        record = decode_record(msgspec.json.encode({"kind": kind, **fields}))
        number = self.spool.number(name)
        entry = Entry(
            number, number.to_bytes(16, "big"), lane_of(record, "billing", ordering, str(number)), kind, loss_class(record),
            Source("billing", 1000, 42, "frames"), next(self.clock), encode(record),
        )  # fmt: skip
        introduced = []
        if kind in INTRODUCES and (local_id := getattr(record, INTRODUCES[kind][1])) is not None:
            ref = Ref(name, INTRODUCES[kind][0], local_id, "billing", 1000, number)
            if self.spool.refs.introduce(ref) is ref:
                introduced.append(ref)
        await self.spool.append({name: [entry]}, introduced=introduced)
        assert kind_of(record) == kind
        return entry

    async def seal(self, *entries, name="cloud"):
        first, last = entries[0], entries[-1]
        seal = Seal(
            0, name, first.lane, first.number, last.number, len(entries), (), f"key-{first.number}", 1, b"s" * 32, "c"
        )
        await self.spool.seal(seal)
        return seal

    def state(self, kind, local_id, name="cloud"):
        return self.spool.refs.get(name, kind, local_id).state

    def notes(self):
        return [note for _, value in self.store.rows(Table.JOURNAL) for note in journals.decode(value)]


@pytest.fixture
async def rig(tmp_path):
    rig = await Rig(tmp_path).open()
    yield rig
    await rig.close()


# -- burying ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", ["run", "agent", "none"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_buried_decision_takes_its_own_reference_along(rig, ordering, restarted):
    """A decision's lane may be its run's, its agent's or its own: the reference that dies is the decision's, and no other."""
    await rig.put("run.start", run_id="r")
    await rig.put("decision", decision_id="first", context="c", run_id="r", ordering=ordering)
    buried = await rig.put("decision", decision_id="second", context="c", run_id="r", ordering=ordering)
    assert buried.lane == {"run": "run:r", "agent": "agent:billing", "none": f"record:{buried.number}"}[ordering]
    if restarted:
        rig = await rig.reopen()
        rig.spool.fill("cloud")
        await asyncio.gather(*rig.spool._loader._tasks.values())
        buried = rig.spool.queues["cloud"].find(buried.lane, buried.number)
    await rig.spool.bury(None, "cloud", [buried], NO)
    for one in (rig, await rig.reopen()):
        assert one.state("decision", "second") == DEAD
        assert (one.state("decision", "first"), one.state("run", "r")) == (INTRODUCED, INTRODUCED)


async def test_a_buried_start_takes_its_run_along(rig):
    """The same for a run, whose lane and reference have the same name."""
    start = await rig.put("run.start", run_id="r")
    await rig.put("run.start", run_id="s")
    await rig.spool.bury(await rig.seal(start), "cloud", [start], NO)
    assert (rig.state("run", "r"), rig.state("run", "s")) == (DEAD, INTRODUCED)


async def test_what_introduces_nothing_takes_nothing_along(rig):
    """A dead event of a run, or a decision without an id of its own, costs nobody a reference."""
    await rig.put("run.start", run_id="r")
    event = await rig.put("event", run_id="r", type="t")
    nameless = await rig.put("decision", context="c", run_id="r")
    await rig.spool.bury(None, "cloud", [event, nameless], NO)
    assert rig.state("run", "r") == INTRODUCED


async def test_the_same_number_elsewhere_is_another_record(rig):
    """Numbers are a destination's own: what is refused at one has been introduced at the other all the same."""
    here = await rig.put("decision", decision_id="d", context="c")
    there = await rig.put("decision", decision_id="d", context="c", name="other")
    assert here.number == there.number
    await rig.spool.bury(None, "cloud", [here], NO)
    assert (rig.state("decision", "d"), rig.state("decision", "d", "other")) == (DEAD, INTRODUCED)


async def test_a_repeated_introduction_does_not_take_the_first_ones_reference_along(rig):
    """The reference is the first introducer's: a second one that is refused changes nothing."""
    await rig.put("decision", decision_id="d", context="c", run_id="r")
    again = await rig.put("decision", decision_id="d", context="c again", run_id="r")
    await rig.spool.bury(None, "cloud", [again], NO)
    assert rig.state("decision", "d") == INTRODUCED


async def test_a_reference_that_the_platform_has_named_stays_named(rig):
    """What is known does not die with a record that is buried later under the same number."""
    decision = await rig.put("decision", decision_id="d", context="c", run_id="r")
    await rig.spool.settle(await rig.seal(decision), [decision], [Learned("decision", "d", "p-d")])
    await rig.spool.bury(None, "cloud", [decision], NO)
    assert rig.state("decision", "d") == KNOWN


# -- settling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", ["run", "agent", "none"])
async def test_the_journal_has_the_platforms_id_of_a_decision(rig, ordering):
    """Promise 9: the entry of a delivered decision names the platform's id for it, whichever lane it went in."""
    await rig.put("run.start", run_id="r")
    decision = await rig.put("decision", decision_id="d", context="c", run_id="r", ordering=ordering)
    await rig.spool.settle(await rig.seal(decision), [decision], [Learned("decision", "d", "p-d")])
    [note] = [note for note in rig.notes() if note.state is State.DELIVERED]
    assert (note.record_id, note.kind, note.platform_id, note.key) == (decision.record_id, "decision", "p-d", "key-2")
    assert (rig.state("decision", "d"), rig.state("run", "r")) == (KNOWN, INTRODUCED)


async def test_the_journal_gives_each_record_its_own_id(rig):
    """Several introducers in one lane: none gets another's id, and what introduces nothing gets none."""
    start = await rig.put("run.start", run_id="r")
    decisions = [await rig.put("decision", decision_id=name, context="c", run_id="r") for name in "ab"]
    nameless = await rig.put("decision", context="c", run_id="r")
    learned = [Learned("decision", "b", "p-b"), Learned("run", "r", "p-r"), Learned("decision", "a", "p-a")]
    entries = [start, *decisions, nameless]
    await rig.spool.settle(await rig.seal(*entries), entries, learned)
    delivered = [(note.record_id, note.platform_id) for note in rig.notes() if note.state is State.DELIVERED]
    assert delivered == list(zip([entry.record_id for entry in entries], ["p-r", "p-a", "p-b", ""], strict=True))


# -- stale -----------------------------------------------------------------------------------------------------------------


async def test_stale_records_end_as_shed_and_are_journalled(rig):
    """Promises 8 and 9: what a newer record replaces is booked as shed, cause `stale`, with an entry for each, once."""
    outbox: Outbox = SpoolOutbox(rig.spool, "cloud")
    beats = [await rig.put("heartbeat", status=str(number)) for number in range(3)]
    await outbox.discard_stale(beats[:2])
    await outbox.discard_stale(beats[:2])
    assert [entry.number for entry in outbox.peek("heartbeat:billing")] == [3]
    assert rig.spool.books.causes("cloud") == {"shed": {"stale": 2}}
    assert rig.spool.books.queued("cloud") == outbox.live == 1
    noted = [(note.record_id, note.state, note.cause) for note in rig.notes() if note.state is State.SHED]
    assert noted == [(beat.record_id, State.SHED, "stale") for beat in beats[:2]]


async def test_a_stale_record_that_was_sealed_leaves_an_empty_batch(rig):
    """What was sealed and is stale leaves a seal without members, which ends with nothing; a restart finds it so."""
    beats = [await rig.put("heartbeat", status=str(number)) for number in range(2)]
    seal = await rig.seal(beats[0])
    await SpoolOutbox(rig.spool, "cloud").discard_stale([beats[0]])
    assert SpoolOutbox(rig.spool, "cloud").members(seal) == []
    rig = await rig.reopen()
    outbox = SpoolOutbox(rig.spool, "cloud")
    outbox.fill()
    await asyncio.gather(*rig.spool._loader._tasks.values())
    assert [entry.number for entry in outbox.peek("heartbeat:billing")] == [2]
    for left in outbox.seals("heartbeat:billing"):
        assert outbox.members(left) == []
        await outbox.settle(left, [], ())
    assert (outbox.seals("heartbeat:billing"), outbox.live) == ([], 1)
