"""Receipts: what the journal says was delivered, the newest first."""

from __future__ import annotations

import pytest
from spool_kit import entry, seal_of

from agentd.outcomes import Cause, Learned
from agentd.queued import Death, Ref
from agentd.spool.census import Interrupted
from agentd.spool.receipts import WantedReceipts, receipts


def _found(harness, limit=10, **facts):
    wanted = WantedReceipts(lambda at_us: max(0, 2_000_000 - at_us), **facts)
    return receipts(harness.store, harness.spool.journal.rows, wanted, limit)


async def _deliver(harness, kind="decision", tries=1, destination="cloud", **facts):
    [made] = await harness.put(1, destination, kind=kind, **facts)
    seal = seal_of([made], destination, key=f"key-{made.number}")
    await harness.spool.seal(seal)
    learned = []
    if kind == "run.start":
        harness.spool.refs.put(Ref(destination, "run", "r", "billing", 1000, made.number))
        learned = [Learned("run", "r", "p-r")]
    await harness.spool.settle(seal, [made], learned, tries)
    return made


async def test_a_receipt_names_the_record_here_and_there(harness):
    """Local id, platform's id, idempotency key, tries and times of each delivery, the newest first."""
    await harness.open()
    start = await _deliver(harness, "run.start", tries=3, lane="run:r", body=b'{"kind":"run.start","run_id":"r"}')
    later = await _deliver(harness)
    newest, first = _found(harness).notes
    assert newest.record_id == later.record_id
    assert (first.record_id, first.platform_id, first.key, first.tries, first.run) == (
        start.record_id,
        "p-r",
        f"key-{start.number}",
        3,
        "r",
    )
    assert first.admitted_us == start.admitted_us
    assert first.at_us < newest.at_us


async def test_what_was_not_delivered_has_no_receipt(harness):
    """Admissions, dead letters and telemetry are none."""
    await harness.open()
    [queued, dead] = await harness.put(2, kind="decision")
    await harness.spool.bury(None, "cloud", [dead], Death(Cause.REJECTED, "400"))
    [event] = await harness.put(1, kind="event")
    seal = seal_of([event])
    await harness.spool.seal(seal)
    await harness.spool.settle(seal, [event])
    assert _found(harness).notes == []
    assert queued.kind == "decision"


@pytest.mark.parametrize(
    ("facts", "numbers"),
    [
        ({}, [3, 2, 1]),
        ({"run": "r"}, [2]),
        ({"kind": "task"}, [2]),
        ({"kind": "event"}, []),
        ({"destination": "local"}, []),
        ({"agent": "billing"}, [3, 2, 1]),
        ({"agent": "sales"}, []),
        ({"since_us": 0}, []),
        ({"mine": lambda name, source: (name, source.uid) == ("cloud", 1000)}, [3, 2, 1]),
        ({"mine": lambda _name, source: source.uid == 1001}, []),
    ],
)
async def test_what_is_asked_for_narrows_it_down(harness, facts, numbers):
    """Run, kind, destination, agent, time, and whose they are."""
    await harness.open()
    await _deliver(harness)
    await _deliver(harness, "task", lane="run:r", body=b'{"kind":"task","run_id":"r"}')
    await _deliver(harness)
    assert [note.queue_number for note in _found(harness, **facts).notes] == numbers


async def test_only_so_many_are_read(harness):
    """The limit ends the search, and so does what is older than what is meant."""
    await harness.open()
    for _ in range(5):
        await _deliver(harness)
    notes = _found(harness, limit=2).notes
    assert [note.queue_number for note in notes] == [5, 4]
    age = 2_000_000 - notes[-1].at_us
    asked = []
    wanted = WantedReceipts(lambda at_us: 2_000_000 - at_us, since_us=age)
    rows = harness.spool.journal.rows
    found = receipts(harness.store, rows, wanted, 10, stop=lambda: bool(asked.append(1)))
    assert [note.queue_number for note in found.notes] == [5, 4]
    assert len(asked) < len(rows)


async def test_a_search_that_was_cut_says_so(harness):
    """A journal that is larger than is searched at a time: what was found, and that there is more."""
    await harness.open()
    for _ in range(3):
        await _deliver(harness)
    wanted = WantedReceipts(lambda _at: 0)
    found = receipts(harness.store, harness.spool.journal.rows, wanted, 10, max_bytes=100)
    assert (len(found.notes), found.complete) == (1, False)
    with pytest.raises(Interrupted):
        receipts(harness.store, harness.spool.journal.rows, wanted, 10, stop=lambda: True)


async def test_a_damaged_row_costs_its_own_receipts(harness):
    """The others are found, and the damage is counted."""
    await harness.open()
    await _deliver(harness)
    await _deliver(harness)
    rows = harness.spool.journal.rows
    key = (5 << 48) | rows[-1]
    value = bytearray(harness.store.read(key))
    value[-1] ^= 1
    harness.store._rows[key] = (bytes(value), harness.store._rows[key][1])
    found = _found(harness)
    assert ([note.queue_number for note in found.notes], found.damaged) == ([1], 1)


async def test_the_journals_rows_are_known_after_a_start(harness):
    """From the oldest that retention has left to the newest, also after a restart."""
    await harness.open()
    await _deliver(harness)
    before = harness.spool.journal.rows
    assert len(before) > 1
    await harness.crash(start=False)
    assert harness.spool.journal.rows == before
    assert entry(1).number == 1
