"""The audit: a whole spool balances, and each planted lie is found, and found for what it is (promises 8 and 9)."""

import random
from contextlib import closing

import msgspec
import pytest
from look_kit import GATE_ID, Disk, files_of, killed
from spool_kit import entry, seal_of

from agentd.errors import NewerFormat
from agentd.identity import text_of
from agentd.outcomes import Cause, State
from agentd.queued import Death
from agentd.spool import journal, segments
from agentd.spool.audit import Audit, Count, audit
from agentd.spool.books import Line
from agentd.spool.checked import pack, unpack
from agentd.spool.directory import decode_bitmap
from agentd.spool.findings import Findings, Severity
from agentd.spool.look import open_rows
from agentd.spool.readonly import ReadOnlyStore
from agentd.spool.seals import encode as encode_seals
from agentd.spool.store import key_of, row_of
from agentd.spool.tables import FORMAT, Meta, Table, decode_meta, encode_meta

META = key_of(Table.META, 0)


@pytest.fixture
async def disk(tmp_path, caplog):
    """A spool with something in each table, that was closed in order."""
    caplog.set_level("CRITICAL", "agentd")
    made = Disk(tmp_path)
    await made.open()
    await made.fill()
    await made.stop()
    yield made
    await made.stop()


def audited(disk) -> Audit:
    with open_rows(disk.folder) as store:
        return audit(store)


def lies(disk) -> list[str]:
    """What an audit says, `where: what`, errors alone."""
    return [f"{found.where}: {found.what}" for found in audited(disk).findings if found.severity is Severity.ERROR]


def change_meta(disk, **changes):
    disk.change(META, encode_meta(msgspec.structs.replace(decode_meta(disk.value(META)), **changes)))


def change_books(disk, place, by):
    """One line of the books says something else; its checksum is right."""
    meta = decode_meta(disk.value(META))
    lines = [line._replace(records=line.records + by) if line[:4] == place else line for line in meta.books]
    assert lines != meta.books
    change_meta(disk, books=lines)


# -- what is whole ---------------------------------------------------------------------------------------------------


async def test_a_whole_spool_balances(disk):
    """Promise 8: counted from the records, admitted is delivered + queued + dead + purged + shed + quarantined."""
    found = audited(disk)
    assert found.findings == []
    assert found.balanced
    assert found.counts == [
        Count("cloud", "decision", admitted=2, queued=1, dead=1),
        Count("cloud", "event", admitted=8, queued=5, dead=1, shed=2),
        Count("cloud", "run.start", admitted=1, delivered=1),
        Count("local", "event", admitted=2, queued=2),
    ]
    assert found.causes == {"cloud": {"dead": {"rejected": 2}, "shed": {"queue_full": 2}}}
    assert (found.journal.first, found.journal.last, found.gates) == (1, 9, 1)


async def test_an_audit_changes_nothing(disk):
    """It reads."""
    before = files_of(disk.folder)
    audited(disk)
    assert files_of(disk.folder) == before


def test_a_killed_spool_balances(tmp_path):
    """Promise 8: after kill -9 too, with the log that the daemon has left."""
    assert lies(killed(tmp_path)) == []


async def test_a_running_spool_balances_at_any_moment(disk):
    """Promise 8: beside a daemon that admits, delivers, replays and purges, each commit is a state that adds up."""
    spool = await disk.open()
    for number in range(12):
        records = disk.records(3, kind="decision", body=b'{"kind":"decision","context":"c"}')
        await spool.append({"cloud": records})
        seal = seal_of(records[:2], key=f"k{number}")
        await spool.seal(seal)
        with closing(ReadOnlyStore(disk.folder / "spool")) as store:
            assert audit(store).findings == []
        if number % 2:
            await spool.settle(seal, records[:2])
        else:
            await spool.bury(seal, "cloud", records[:2], Death(Cause.REJECTED, "no"))
        with closing(ReadOnlyStore(disk.folder / "spool")) as store:
            assert audit(store).findings == []
    await disk.stop()
    assert lies(disk) == []


async def test_a_new_spool_balances(tmp_path):
    """Nothing was admitted, and nothing is missing."""
    disk = Disk(tmp_path)
    await disk.open()
    await disk.stop()
    assert audited(disk).findings == []
    assert audited(disk).counts == []


async def test_numbers_are_matched_in_parts(disk, monkeypatch):
    """A queue with more evidence than fits into memory at once is read several times, with the same result."""
    spool = await disk.open()
    records = disk.records(50, kind="decision", body=b"{}")
    await spool.append({"cloud": records})
    await disk.stop()
    monkeypatch.setattr("agentd.spool.audit.AT_ONCE", 7)
    assert lies(disk) == []
    number = records[10].number
    drop_note(disk, lambda note: note.queue_number == number and note.state is State.QUEUED, to=State.DELIVERED)
    assert any(f"is in the queue of cloud (record {number}), but is delivered" in lie for lie in lies(disk))


# -- lies about the books ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["admitted", "delivered"])
async def test_a_changed_line_of_the_books_is_found(disk, state):
    """The sum is wrong, and so is what the journal counts."""
    change_books(disk, ("cloud", "run.start", state, ""), 1)
    found = lies(disk)
    assert any(lie.startswith("books of cloud: run.start: ") and "admitted, but" in lie for lie in found)
    assert f"books of cloud: run.start: 2 {state} by the books, 1 by the journal" in found


async def test_books_that_were_changed_so_that_they_add_up_are_found(disk):
    """One delivered less and one purged more: the journal knows better."""
    meta = decode_meta(disk.value(META))
    books = [line for line in meta.books if line.state != "delivered"]
    change_meta(disk, books=[*books, Line("cloud", "run.start", "purged", "dropped", 1)])
    assert lies(disk) == ["books of cloud: run.start: 0 delivered by the books, 1 by the journal"]


async def test_what_was_shed_is_held_against_the_journal(disk):
    """Telemetry that was shed has entries, and as many as the books say."""
    change_books(disk, ("cloud", "event", "shed", "queue_full"), -1)
    change_books(disk, ("cloud", "event", "admitted", ""), -1)
    assert lies(disk) == ["books of cloud: event: 1 shed by the books, 2 by the journal"]


async def test_a_state_that_there_is_not_is_found(disk):
    """A line that means nothing is said so."""
    change_meta(disk, books=[*decode_meta(disk.value(META)).books, Line("cloud", "event", "evaporated", "", 1)])
    assert lies(disk) == ["books of cloud: event: no state 'evaporated'"]


async def test_missing_books_are_found(disk):
    """Without the meta row there are no books."""
    disk.delete(META)
    assert "meta row: is missing: there are no books" in lies(disk)
    disk.insert(META, b"damaged")
    assert any(lie.startswith("meta row: can't be read") for lie in lies(disk))


async def test_a_newer_spool_is_refused(disk):
    """What its rows mean is for its own agentd to say."""
    disk.change(META, encode_meta(Meta(format=FORMAT + 1)))
    with pytest.raises(NewerFormat):
        audited(disk)


# -- lies about dead letters -------------------------------------------------------------------------------------------


async def test_a_deleted_letter_is_found(disk):
    """The books know of it, and by which cause it died."""
    disk.delete(disk.keys(Table.DEAD)[0])
    found = lies(disk)
    assert "books of cloud: decision: 1 dead for rejected by the books, 0 letters" in found
    assert any(lie.startswith("books of cloud: decision: 2 admitted, but") for lie in found)


async def test_a_letter_that_nobody_wrote_is_found(disk):
    """One more than the books say."""
    key = disk.keys(Table.DEAD)[0]
    disk.insert(key + 100, disk.value(key), disk.value(key, "tag"))
    assert "books of cloud: decision: 1 dead for rejected by the books, 2 letters" in lies(disk)


async def test_a_damaged_letter_is_found(disk):
    """Its tag still counts it; its content is gone."""
    disk.change(disk.keys(Table.DEAD)[0], b"\xc1damaged")
    assert lies(disk) == ["dead letter 1: can't be read: wrong checksum"]


async def test_a_tag_of_another_letter_is_found(disk):
    """Lists are made from tags: one that lies hides a letter."""
    first, second = disk.keys(Table.DEAD)
    disk.change(first, disk.value(second, "tag"), "tag")
    assert lies(disk) == ["dead letter 1: its tag is of another letter"]
    disk.change(first, b"\xc1", "tag")
    assert lies(disk) == ["dead letter 1: its tag can't be read: wrong checksum"]


# -- lies about the queues ---------------------------------------------------------------------------------------------


def segment_of(disk, kind):
    """The key of the segment that holds records of a kind."""
    for key in disk.keys(Table.SEGMENT):
        name, entries = segments.decode(key, disk.value(key))
        if name == "cloud" and any(each.kind == kind for each in entries):
            return key, entries
    raise AssertionError(kind)


def rewrite(disk, key, entries, name="cloud", **changes):
    """The segment with other records, checksums and directory right."""
    made = segments.encode(name, entries)
    disk.change(key, made.value)
    disk.change(key, changes.get("tag", made.tag), "tag")


async def test_a_deleted_segment_is_found(disk):
    """Its records are missing from the sum, and the journal asks for its evidence by name."""
    key, entries = segment_of(disk, "decision")
    disk.delete(key)
    disk.delete(key - key_of(Table.SEGMENT, 0) + key_of(Table.ENDED, 0))
    found = lies(disk)
    waiting = next(each for each in entries if each.kind == "decision")
    assert any(lie.startswith("books of cloud: decision: 2 admitted, but 0 delivered + 0 queued") for lie in found)
    assert (
        f"decision {text_of(waiting.record_id)}: queued for cloud as record {waiting.number} (journal entry 3), is not in the "
        "queue, and no entry says how it ended" in found
    )


async def test_endings_without_their_segment_are_found(disk):
    """A segment that was deleted alone leaves its endings."""
    key, _ = segment_of(disk, "decision")
    disk.delete(key)
    assert f"segment {row_of(key)}: endings of a segment that is not there" in lies(disk)


async def test_a_flipped_bit_of_the_endings_is_found(disk):
    """A record that was delivered would be sent again, or one that waits be forgotten."""
    (key,) = disk.keys(Table.ENDED)
    value = bytearray(disk.value(key))
    value[-1] ^= 1
    disk.change(key, bytes(value))
    assert any("which of its records have ended can't be read: wrong checksum" in lie for lie in lies(disk))


async def test_endings_with_a_right_checksum_that_lie_are_found(disk):
    """Bits against the kinds beside them; and where both lie, the books know better."""
    (key,) = disk.keys(Table.ENDED)
    _, entries = segment_of(disk, "decision")
    kinds, ended = decode_bitmap(disk.value(key), len(entries))
    ended[0] ^= 1  # the decision that waits
    disk.change(key, pack(msgspec.msgpack.encode([kinds, bytes(ended)])))
    assert any(
        "its endings say that 1 decision, 3 event wait, its records that 3 event do" in lie for lie in lies(disk)
    )
    disk.change(key, pack(msgspec.msgpack.encode([kinds | {"decision": 0}, bytes(ended)])))
    found = lies(disk)
    assert any(lie.startswith("books of cloud: decision: 2 admitted, but 0 delivered + 0 queued") for lie in found)
    disk.change(key, pack(msgspec.msgpack.encode([kinds, bytes([ended[0] | 0x80])])))
    assert any("endings of more than its 6 records" in lie for lie in lies(disk))


async def test_a_damaged_segment_is_found(disk):
    """Its checksum says so, and its records are missing from the sum."""
    key, _ = segment_of(disk, "decision")
    value = bytearray(disk.value(key))
    value[-1] ^= 1
    disk.change(key, bytes(value))
    found = lies(disk)
    assert f"segment {row_of(key)}: can't be read: wrong checksum" in found
    assert any(lie.startswith("books of cloud: decision: ") for lie in found)


async def test_a_directory_that_lies_is_found(disk):
    """Delivery reads directories: a record that its directory does not know would never be sent."""
    key, entries = segment_of(disk, "decision")
    other = segments.encode("cloud", [*entries[:-1], entry(entries[-1].number, lane="run:b")])
    disk.change(key, other.tag, "tag")
    (found,) = lies(disk)
    assert found == f"segment {row_of(key)}: its directory differs from its records in size, lanes"
    disk.change(key, b"damaged", "tag")
    assert any("its directory can't be read" in lie for lie in lies(disk))


async def test_a_number_that_is_given_twice_is_found(disk):
    """Two records of one number: endings and seals would mean both."""
    key, entries = segment_of(disk, "decision")
    made = segments.encode("cloud", [entry(entries[0].number, kind="event")])
    disk.insert(key + 1000, made.value, made.tag)
    change_meta(disk, next_segment=row_of(key) + 1001)
    assert any("1 of its numbers stand in another segment of cloud too" in lie for lie in lies(disk))


async def test_numbers_that_do_not_rise_or_are_still_to_come_are_found(disk):
    """Numbers are given once, in order, and none is used before its time."""
    key, entries = segment_of(disk, "decision")
    rewrite(disk, key, [*entries[:-2], entries[-1], entries[-2]])
    assert any("its records' numbers do not rise" in lie for lie in lies(disk))
    rewrite(disk, key, entries)
    change_meta(disk, next_number={"cloud": 5, "local": 3}, next_segment=1)
    found = lies(disk)
    assert any("is not below the number of the next one (5)" in lie for lie in found)
    assert any("is not below the number of the next one (1)" in lie for lie in found)


async def test_a_record_that_was_delivered_and_waits_is_found(disk):
    """The journal has the platform's receipt, and the queue the record: it would be sent twice."""
    key, _ = segment_of(disk, "decision")
    start = entry(1, kind="run.start", body=b"{}")
    made = segments.encode("cloud", [start])
    disk.insert(key + 1000, made.value, made.tag)
    change_meta(disk, next_segment=row_of(key) + 1001)
    assert (
        f"run.start {text_of(start.record_id)}: is in the queue of cloud (record 1), but is delivered (journal entry 2)"
        in lies(disk)
    )


async def test_a_record_that_the_journal_does_not_know_is_found(disk):
    """Evidence that nobody admitted."""
    key, _ = segment_of(disk, "decision")
    stranger = entry(500, kind="decision", body=b"{}")
    made = segments.encode("cloud", [stranger])
    disk.insert(key + 1000, made.value, made.tag)
    change_meta(disk, next_segment=row_of(key) + 1001, next_number={"cloud": 501, "local": 3})
    expected = f"decision {text_of(stranger.record_id)}: is in the queue of cloud (record 500), and the journal has no entry of it"
    assert expected in lies(disk)


# -- lies about seals and references -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"first": 900, "last": 901}, "is over records 900-901 of cloud, which there never were: the next is 12"),
        ({"count": 9}, "9 records can't lie between 4 and 5 of run:a"),
        ({"first": 6, "last": 5}, "2 records can't lie between 6 and 5 of run:a"),
        ({"count": 1}, "was made over 1 records of run:a, 2 lie within its bounds"),
    ],
)
async def test_a_seal_over_nothing_is_found(disk, facts, what):
    """Promise 4: a sealed batch is never regrouped, so its bounds have to be those of its records."""
    (key,) = disk.keys(Table.SEAL)
    seal = seal_of([entry(4), entry(5)], key="batch-key")
    seal.seq = 2
    disk.change(key, encode_seals([msgspec.structs.replace(seal, **facts)]))
    assert f"seal batch-key: {what}" in lies(disk)


async def test_a_seal_whose_records_have_all_ended_is_told(disk):
    """It costs nothing, the next daemon lets it go, and it contradicts nothing: a note."""
    (key,) = disk.keys(Table.SEAL)
    disk.change(key, encode_seals([seal_of([entry(1)], key="old")]))
    found = audited(disk)
    assert found.balanced
    assert [each.severity for each in found.findings] == [Severity.NOTE]
    assert "none of its 1 batches has a record in the queue any more" in found.findings[0].what


async def test_damaged_seals_and_references_are_found(disk):
    """A batch may be regrouped, or a name be forgotten."""
    disk.change(disk.keys(Table.SEAL)[0], b"\xc1damaged")
    disk.change(disk.keys(Table.REF)[0], b"\xc1damaged")
    assert lies(disk) == [
        "seals 2: can't be read: their batches may be regrouped",
        "reference 1: can't be read: wrong checksum",
    ]


async def test_a_reference_whose_introducer_is_gone_is_found(disk):
    """What names it would wait for ever."""
    key = disk.keys(Table.REF)[0]
    fields = msgspec.msgpack.decode(unpack(disk.value(key)))
    fields[5:7] = [1, "introduced"]
    disk.change(key, pack(msgspec.msgpack.encode(fields)))
    assert lies(disk) == ["run a: waits for record 1 of cloud, which is not in its queue any more"]


# -- lies about the journal --------------------------------------------------------------------------------------------


def drop_note(disk, which, to=None):
    """Say something else in a note, the row's own checksum right."""
    for key in disk.keys(Table.JOURNAL):
        previous, notes = msgspec.msgpack.decode(unpack(disk.value(key)), type=tuple[bytes, list[journal.Note]])
        for note in notes:
            if which(note):
                note.state = to
                disk.change(key, pack(msgspec.msgpack.encode((previous, notes))))
                return key
    raise AssertionError("no such note")


async def test_a_deleted_row_of_the_journal_is_found(disk):
    """Promise 9: the numbers have a gap where it was."""
    keys = disk.keys(Table.JOURNAL)
    disk.delete(keys[2])
    found = lies(disk)
    assert any("1 rows before it are missing: entries" in lie for lie in found)


async def test_a_changed_row_of_the_journal_is_found(disk):
    """Promise 9: the row behind it names the digest that it had."""
    key = drop_note(disk, lambda note: note.state is State.DELIVERED and note.kind == "run.start", to=State.SHED)
    (broken, *_) = [lie for lie in lies(disk) if lie.startswith("journal row")]
    assert broken == (
        f"journal row {row_of(key) + 1}: row {row_of(key)} is not the one that it was written behind: its content was changed"
    )


async def test_the_newest_row_of_the_journal_is_not_changed_unseen(disk):
    """No row is behind it: the meta row names its digest."""
    last = disk.keys(Table.JOURNAL)[-1]
    previous, _, notes = journal.decode_row(disk.value(last))
    notes[-1].agent = "somebody-else"
    disk.change(last, pack(msgspec.msgpack.encode((previous, notes))))
    assert f"the journal's end: row {row_of(last)} is not as it was written last" in lies(disk)


async def test_a_journal_that_was_cut_off_is_found(disk):
    """Promise 9: the meta row knows how many entries there were."""
    disk.delete(disk.keys(Table.JOURNAL)[-1])
    assert "the journal's end: its newest entry is 8, the last that was written 9" in lies(disk)


async def test_a_damaged_row_of_the_journal_is_found(disk):
    """What it held is named by the numbers that are missing."""
    key = disk.keys(Table.JOURNAL)[1]
    disk.change(key, b"\xc1damaged")
    found = lies(disk)
    assert f"journal row {row_of(key)}: can't be read: wrong checksum" in found
    assert any("can't be read" in lie and "entries" in lie for lie in found)


async def test_rows_whose_numbers_lie_are_found(disk):
    """Gaps within a row, a row without entries, one that names none before it, one that begins elsewhere."""
    first, second = disk.keys(Table.JOURNAL)[:2]
    previous, notes = msgspec.msgpack.decode(unpack(disk.value(second)), type=tuple[bytes, list[journal.Note]])
    for change, what in (
        (lambda: notes[0].__setattr__("number", 77), "begins with entry 77, behind 1"),
        (lambda: notes.append(msgspec.structs.replace(notes[0], number=99)), "the numbers of its row have a gap"),
        (notes.clear, "holds no entry"),
    ):
        change()
        disk.change(second, pack(msgspec.msgpack.encode((previous, notes))))
        assert any(what in lie for lie in lies(disk)), what
    third = disk.keys(Table.JOURNAL)[2]
    _, notes = msgspec.msgpack.decode(unpack(disk.value(third)), type=tuple[bytes, list[journal.Note]])
    disk.change(third, pack(msgspec.msgpack.encode((b"", notes))))
    assert first < second < third
    assert any("names no row before it" in lie for lie in lies(disk)) or any(
        "holds no entry" in lie for lie in lies(disk)
    )


async def test_retention_is_no_gap(disk):
    """Rows that were let go at the old end are not missed, and what they said of the queues is not asked for."""
    for key in disk.keys(Table.JOURNAL)[:3]:
        disk.delete(key)
    found = audited(disk)
    assert [each.what for each in found.findings] == []
    assert found.journal.first > 1


async def test_a_journal_with_holes_accuses_nobody(disk):
    """Where entries are lost, that none says how a record ended means nothing."""
    keys = disk.keys(Table.JOURNAL)
    disk.delete(keys[1])  # the delivery of the run's start
    assert not any("no entry says how it ended" in lie for lie in lies(disk))


async def test_a_journal_of_format_1_is_read(disk):
    """Rows without digest and numbers of the queue stand before those that have them."""
    keys = disk.keys(Table.JOURNAL)
    for key in keys:
        notes = journal.decode(disk.value(key))
        disk.change(key, msgspec.msgpack.encode([msgspec.structs.replace(note, queue_number=0) for note in notes]))
    change_meta(disk, journal_head=b"")
    found = audited(disk)
    assert found.findings == []
    assert found.journal.unnumbered > 0
    await disk.open()
    await disk.put(1, kind="task")
    await disk.stop()
    assert lies(disk) == []


# -- the rest ----------------------------------------------------------------------------------------------------------


async def test_lies_about_gates_are_found(disk):
    """A gate that can't be read, whose tag says otherwise, or that has two rows."""
    (key,) = disk.keys(Table.GATE)
    value, tag = disk.value(key), disk.value(key, "tag")
    disk.insert(key + 5, value, tag)
    assert lies(disk) == [f"gate row 6: gate {GATE_ID} has a second row"]
    disk.delete(key + 5)
    disk.change(key, value[:-1])
    assert lies(disk) == ["gate row 1: can't be read: gate 1: wrong checksum"]


async def test_an_open_gate_that_is_on_record_no_more_is_found(disk):
    """It may have acted: somebody has to know of it."""
    disk.delete(disk.keys(Table.GATE)[0])
    assert lies(disk) == []  # it had its last word
    last = disk.keys(Table.JOURNAL)[-1]
    disk.delete(last)
    meta = decode_meta(disk.value(META))
    row = journal.decode_row(disk.value(last - 1))
    change_meta(disk, journal_number=meta.journal_number - 1, journal_head=row.digest)
    assert lies(disk) == [f"gate {GATE_ID}: was asked (journal entry 8), and is on record no more"]


async def test_foreign_rows_and_damaged_rows_of_intake_are_found(disk):
    """Whatever agentd did not write, or can't read any more."""
    disk.sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('text', 1, 1, x'00')")
    disk.insert(key_of(Table.STREAM, 4), b"\xc1damaged")
    assert lies(disk) == [
        "the database: 1 rows that agentd did not write",
        "stream row 4: can't be read: wrong checksum",
    ]


async def test_a_damaged_database_is_a_finding(disk):
    """A page that can't be read ends the audit with a finding, not with a traceback."""
    path = disk.folder / "spool" / "cache.db"
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = random.Random(page).randbytes(64)
    path.write_bytes(content)
    assert any(lie.startswith("the database: ") for lie in lies(disk))


async def test_quarantined_evidence_is_not_asked_for_again(disk):
    """What recovery has set aside and booked is accounted for: the next audit balances, and shows it."""
    key, _ = segment_of(disk, "decision")
    value = bytearray(disk.value(key))
    value[-1] ^= 1
    disk.change(key, bytes(value))
    await disk.open()
    await disk.filled()
    await disk.spool.barrier()
    await disk.stop()
    found = audited(disk)
    assert [each.what for each in found.findings if each.severity is Severity.ERROR] == []
    assert Count("cloud", "decision", admitted=2, dead=1, quarantined=1) in found.counts


def test_many_findings_of_one_sort_are_counted():
    """A million missing records are twenty lines and a number."""
    findings = Findings()
    findings.note("seals", "a", "b")
    for number in range(30):
        findings.error("lost", f"record {number}", "is not there")
    found = findings.all()
    assert len(found) == 22
    assert (found[20].where, found[20].what) == ("lost", "and 10 more of this kind")
    assert found[21].severity is Severity.NOTE
    assert len(findings) == 31


def test_it_is_told_how_far_it_is(tmp_path):
    """A long audit says that it goes on."""
    heard = []
    with open_rows(killed(tmp_path).folder) as store:
        audit(store, heard.append)
    assert heard == ["the journal is read", "the queues are read", "the dead letters are read"]
