"""Where a thing is, by whatever name it goes: journal, queue, letters, references and gates (promise 9)."""

import tracemalloc
from hashlib import sha256

import msgspec
import pytest
from look_kit import DECISION, EVENT, GATE_ID, Disk
from spool_kit import entry, seal_of

from agentd.identity import text_of
from agentd.outcomes import Cause, State
from agentd.queued import Death, Source
from agentd.spool.census import Interrupted
from agentd.spool.journal import Note
from agentd.spool.look import open_rows
from agentd.spool.tables import Table
from agentd.spool.trace import id_of, trace


@pytest.fixture
async def disk(tmp_path, caplog):
    """A run whose start is delivered; a decision and events that wait, some of them sealed; two dead; a gate with its verdict."""
    caplog.set_level("CRITICAL", "agentd")
    made = Disk(tmp_path)
    await made.open()
    await made.fill()
    await made.stop()
    yield made
    await made.stop()


def traced(disk, asked, uid=None, **options):
    with open_rows(disk.folder) as store:
        return trace(store, asked, uid, **options)


def states(record):
    return [note.state for note in record.notes]


def text(number):
    return text_of(number.to_bytes(16, "big"))


async def test_a_record_by_its_id(disk):
    """The whole story of one record: when it came, when it was delivered, as what and under which key."""
    found = traced(disk, text(1))
    (record,) = found.records
    assert (record.uid, record.record_id) == (1000, (1).to_bytes(16, "big"))
    queued, delivered = record.notes
    assert (queued.state, queued.run, queued.queue_number) == (State.QUEUED, "a", 1)
    assert (delivered.state, delivered.key, delivered.platform_id) == (State.DELIVERED, "start-key", "platform-run-a")
    assert (record.letters, record.waiting, found.references) == ([], [], [])
    assert (found.first, found.last, found.damaged) == (1, 9, 0)
    assert traced(disk, text(1).replace("-", "")).records == found.records


@pytest.mark.parametrize("asked", ["a", "platform-run-a"])
async def test_a_run_by_its_clients_name_and_by_the_platforms(disk, asked):
    """What the platform's own pages show leads to the run as well: its records, and how many wait or are dead."""
    found = traced(disk, asked)
    assert [(ref.local_id, ref.platform_id) for ref in found.references] == [("a", "platform-run-a")]
    assert {record.record_id[-1] for record in found.records} >= {1, 2, 3, 4, 5}
    lane = found.lanes["cloud", "run:a"]
    assert (lane.queued, lane.dead) == (6, 2)
    assert [gate.gate_id for gate in found.gates] == [GATE_ID]  # it was asked within the run


@pytest.mark.parametrize("asked", ["a", "platform-run-a"])
async def test_a_run_is_found_when_its_reference_is_forgotten(disk, asked):
    """References go a week after their run; the journal keeps what they said for as long as it is kept."""
    for key in disk.keys(Table.REF):
        disk.delete(key)
    found = traced(disk, asked)
    assert found.references == []
    assert states(found.records[0]) == [State.QUEUED, State.DELIVERED]
    assert {record.record_id[-1] for record in found.records} >= {1, 2, 3}


async def test_a_decision_by_the_id_that_its_client_gave_it(disk):
    """`decision_id` stands in the record, and in its entry."""
    found = traced(disk, "d-1")
    assert [states(record) for record in found.records] == [[State.QUEUED], [State.QUEUED, State.DEAD]]
    assert [(waiting.size, waiting.entry.body) for record in found.records for waiting in record.waiting] == [
        (len(DECISION), b"")
    ]


async def test_a_dead_record_is_found_with_its_letter(disk):
    """Its cause, and the platform's answer."""
    (record,) = traced(disk, text(3)).records
    ((number, letter),) = record.letters
    assert (number, letter.cause, letter.reason, letter.key) == (1, Cause.REJECTED, "409 no", "dead-key")
    assert states(record) == [State.QUEUED, State.DEAD]


async def test_a_key_leads_to_what_went_under_it(disk):
    """Delivered, dead or sealed and not yet answered: each by the key that the platform saw."""
    (delivered,) = traced(disk, "start-key").records
    assert (delivered.record_id[-1], states(delivered)) == (1, [State.QUEUED, State.DELIVERED])  # from its beginning
    assert [record.record_id[-1] for record in traced(disk, "dead-key").records] == [3, 7]
    sealed = traced(disk, "batch-key").records
    assert [record.record_id[-1] for record in sealed] == [4, 5]
    assert {waiting.seal.key for record in sealed for waiting in record.waiting} == {"batch-key"}


async def test_telemetry_is_found_while_it_waits(disk):
    """Events leave no entry of their own: the queue itself is searched for the id."""
    (record,) = traced(disk, text(6)).records
    assert (record.notes, record.waiting[0].destination, record.waiting[0].entry.kind) == ([], "cloud", "event")
    assert record.sha256 == sha256(EVENT).digest()
    assert record.waiting[0].seal is None


async def test_what_was_shed_leaves_no_name(disk):
    """A segment that was shed whole is one entry without ids: what it held is not found."""
    assert not traced(disk, text(10))
    assert not traced(disk, "nonsense")


@pytest.mark.parametrize("asked", [GATE_ID, "pay-7", "verdict-7", "platform-gate", "gate-key"])
async def test_a_gate_by_each_of_its_names(disk, asked):
    """Its id, its key, the id of its answer, the platform's, and the key that went to the platform."""
    found = traced(disk, asked)
    assert [gate.gate_id for gate in found.gates] == [GATE_ID]
    (record,) = [record for record in found.records if text_of(record.record_id) == GATE_ID]
    assert [(note.state, note.cause) for note in record.notes] == [(State.QUEUED, "asked"), (State.DELIVERED, "allow")]
    assert {note.run for note in record.notes} == {"a"}


async def test_a_gate_that_is_on_record_no_more_is_in_the_journal(disk):
    """Gates are remembered for a day, their entries for as long as the journal."""
    disk.delete(disk.keys(Table.GATE)[0])
    for key in disk.keys(Table.REF):
        disk.delete(key)
    found = traced(disk, "verdict-7")
    assert found.gates == []
    assert [text_of(record.record_id) for record in found.records] == [GATE_ID]


async def test_others_records_are_left_out(disk):
    """Of one user's question nothing of another's is answered, whatever name leads to it."""
    spool = await disk.open()
    mine = entry(spool.number("cloud"), kind="task", body=b'{"kind":"task","run_id":"a"}')
    mine.source = Source("other", 2000, 1, "frames")
    await spool.append({"cloud": [mine]})
    await disk.stop()
    assert [record.uid for record in traced(disk, "a", 2000).records] == [2000]
    assert traced(disk, "a", 2000).references == []
    assert traced(disk, "a", 2000).lanes["cloud", "run:a"].queued == 1
    for asked in (text(1), "platform-run-a", GATE_ID, "dead-key", "d-1", text(6)):
        assert not traced(disk, asked, 2000), asked
        assert traced(disk, asked, 1000), asked


async def test_what_was_dropped_with_its_segment_is_told(disk):
    """A queue that was dropped leaves one entry a kind: it is the end of what was queued there."""
    spool = await disk.open()
    records = disk.records(2, kind="decision", body=b'{"kind":"decision","context":"c","decision_id":"gone"}')
    await spool.append({"cloud": records})
    key = next(key for key, of in spool.queues["cloud"].segments.items() if of.first == records[0].number)
    segment = spool.queues["cloud"].segments[key]
    spool.queues["cloud"].take_out([segment])
    spool._committer.delete_segment(key)
    spool.ledger.lose("cloud", segment, State.PURGED, Cause.DROPPED, by=7, reason="wrong place")
    await spool.barrier()
    await disk.stop()
    for record in traced(disk, "gone").records:
        assert states(record) == [State.QUEUED, State.PURGED]
        assert (record.notes[1].by, record.notes[1].reason, record.notes[1].count) == (7, "wrong place", 2)


async def test_a_replay_is_part_of_the_story(disk):
    """Dead, put back by somebody, delivered: one record, in the order of its entries."""
    from agentd.spool.dead import DeadLetters
    from agentd.spool.letters import Wanted

    spool = await disk.open()
    letters = DeadLetters(spool)
    assert (await letters.replay(Wanted(frozenset({(3).to_bytes(16, "big")})), by=42)).replayed == 1
    (again,) = [each for each in (await disk.filled()).peek("run:a") if each.record_id[-1] == 3]
    seal = seal_of([again], key="again")
    await spool.seal(seal)
    await spool.settle(seal, [again])
    await disk.stop()
    (record,) = traced(disk, text(3)).records
    assert states(record) == [State.QUEUED, State.DEAD, State.QUEUED, State.DELIVERED]
    assert (record.notes[2].cause, record.notes[2].by) == ("replayed", 42)
    assert record.letters == []


async def test_a_purge_is_part_of_the_story(disk):
    """Who took it away, and why."""
    from agentd.spool.dead import DeadLetters
    from agentd.spool.letters import Wanted

    spool = await disk.open()
    await DeadLetters(spool).purge(Wanted(frozenset({(3).to_bytes(16, "big")})), 42, "a test order")
    await disk.stop()
    (record,) = traced(disk, text(3)).records
    assert states(record)[-1] is State.PURGED
    assert (record.notes[-1].by, record.notes[-1].reason) == (42, "a test order")


async def test_the_same_record_at_two_destinations_is_one(disk):
    """An id has one story with a part for each destination that took it."""
    spool = await disk.open()
    record_id = bytes(15) + b"\xaa"
    copies = {}
    for name in ("cloud", "local"):
        copy = entry(spool.number(name), kind="task", body=b"{}")
        copy.record_id = record_id
        copies[name] = [copy]
    await spool.append(copies)
    await spool.bury(None, "local", copies["local"], Death(Cause.TOO_LARGE, "413"))
    await disk.stop()
    (record,) = traced(disk, text_of(record_id)).records
    assert [(note.destination, note.state) for note in record.notes] == [
        ("cloud", State.QUEUED),
        ("local", State.QUEUED),
        ("local", State.DEAD),
    ]
    assert [waiting.destination for waiting in record.waiting] == ["cloud"]


async def test_many_records_are_counted(disk):
    """A run may have more records than an answer holds."""
    found = traced(disk, "a", most=3)
    assert (len(found.records), found.more) == (3, len(traced(disk, "a").records) - 3)
    assert found.lanes["cloud", "run:a"].queued == 6


async def test_a_run_however_large_takes_little_memory(disk):
    """Neither the bodies of its records are kept nor the entries of those that have no room in the answer."""
    spool = await disk.open(quotas={"cloud": 2**30, "local": 1})
    for _ in range(20):
        await disk.put(1, body=b'"' + b"x" * 2**20 + b'"')
    for _ in range(40):
        tasks = await disk.put(100, kind="task")
        await spool.settle(seal_of(tasks), tasks)
    await disk.stop()
    tracemalloc.start()
    try:
        found = traced(disk, "a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(found.records), found.more > 3800) == (200, True)
    assert peak < 6 * 2**20


async def test_no_more_is_counted_than_fits(disk, monkeypatch):
    """What is left out is counted by its ids, which take room, too."""
    monkeypatch.setattr("agentd.spool.trace.MOST_COUNTED", 2)
    assert traced(disk, "a", most=1).more == 2


async def test_damaged_rows_are_counted(disk):
    """What can't be read may have said more: it is told, and nothing else stops."""
    disk.change(disk.keys(Table.JOURNAL)[0], b"\xc1damaged" + (1).to_bytes(16, "big"))
    disk.change(disk.keys(Table.DEAD)[0], b"\xc1damaged", "tag")
    disk.change(disk.keys(Table.DEAD)[0], b"\xc1damaged")
    disk.change(disk.keys(Table.SEGMENT)[1], b"damaged")
    disk.change(disk.keys(Table.SEGMENT)[1], b"damaged", "tag")
    disk.change(disk.keys(Table.REF)[0], b"\xc1damaged a")
    disk.change(disk.keys(Table.GATE)[0], b"damaged a")
    found = traced(disk, "a")
    assert found.damaged >= 4
    assert traced(disk, text(1)).records


async def test_a_search_can_be_stopped(disk):
    """A daemon that ends waits for nobody's question."""
    with pytest.raises(Interrupted):
        traced(disk, "a", stop=lambda: True)


async def test_a_spool_without_anything_answers_nothing(tmp_path):
    """A new spool."""
    disk = Disk(tmp_path)
    await disk.open()
    await disk.stop()
    found = traced(disk, "a")
    assert (bool(found), found.first, found.last) == (False, 0, 0)


@pytest.mark.parametrize("asked", ["", "a", "0" * 31, "g" * 32, "{" + text(1) + "}", "urn:uuid:" + text(1)])
def test_what_is_no_id_is_a_name(asked):
    """Only the two usual spellings of a UUID are one."""
    assert id_of(asked) is None
    assert id_of(text(1)) == (1).to_bytes(16, "big")


def test_an_entry_for_a_whole_segment_is_found_by_its_bytes():
    """Such entries are searched for as bytes: an empty id, then the kind, as msgpack writes them."""
    note = Note(1, State.PURGED, "cloud", b"", "decision", "", "1-9", -1, 0, 0, b"", count=3)
    assert b"\xc4\x00" + msgspec.msgpack.encode("decision") in msgspec.msgpack.encode(note)
