"""The journal: gap-free numbers, and rows that go from the old end (promise 9)."""

from hashlib import sha256

import msgspec
import pytest
from spool_kit import entry

from agentd.errors import SpoolDamaged
from agentd.outcomes import Cause, State
from agentd.spool.checked import pack
from agentd.spool.journal import Journal, decode, decode_row


def test_numbers_have_no_gap_and_facts_are_kept():
    """Promise 9: each entry has the next number and says what was stored, for whom, and what became of it."""
    journal = Journal(100, 10**6)
    record = entry(7, kind="task", body=b'{"a":1}')
    journal.note(record, State.QUEUED, "cloud", 50)
    journal.note(record, State.DELIVERED, "cloud", 60, key="K", platform_id="P")
    row, value = journal.take()
    first, second = decode(value)
    assert (row, first.number, second.number) == (1, 1, 2)
    assert (first.sha256, first.agent, first.uid, first.lane) == (sha256(b'{"a":1}').digest(), "billing", 1000, "run:a")
    assert (second.state, second.key, second.platform_id, second.at_us) == (State.DELIVERED, "K", "P", 60)
    assert journal.take() is None
    assert len(journal) == 2


def test_a_segment_that_is_lost_whole_is_one_entry_for_each_kind():
    """Promise 9: what was shed leaves an entry with its numbers and their count."""
    journal = Journal(100, 10**6)
    journal.note_lost(
        "cloud", "event", 40, state=State.SHED, numbers="1-50", admitted_us=1, at_us=2, cause=str(Cause.QUEUE_FULL)
    )
    (note,) = decode(journal.take()[1])
    assert (note.count, note.lane, note.state, note.cause) == (40, "1-50", State.SHED, "queue_full")


def test_retention_takes_old_rows():
    """Rows whose newest entry is older than the retention go, the oldest first; later ones stay."""
    journal = Journal(100, 10**6)
    for at in (10, 20, 500):
        journal.note(entry(1), State.QUEUED, "cloud", at)
        journal.take()
    assert journal.expired(lambda at: 110 - at) == []
    assert journal.expired(lambda at: 115 - at) == [1]
    assert journal.expired(lambda at: 550 - at) == [2]
    assert journal.next_number == 4


def test_max_bytes_takes_old_rows():
    """Rows go from the old end until the journal is within `max_bytes`."""
    journal = Journal(10**9, 0)
    journal.restore(3, 100, 10)
    journal.restore(4, 100, 20)
    small = Journal(10**9, 150)
    small.restore(3, 100, 10)
    small.restore(4, 100, 20)
    assert small.expired(lambda at: 30 - at) == [3]
    assert journal.expired(lambda at: 30 - at) == [3, 4]


def test_a_restart_goes_on_where_it_was():
    """Rows that exist are not written over."""
    journal = Journal(100, 10**6)
    journal.restore(9, 100, 10)
    journal.next_number = 55
    journal.note(entry(1), State.QUEUED, "cloud", 20)
    row, value = journal.take()
    assert (row, decode(value)[0].number) == (10, 55)


def taken(journal, *numbers):
    """A row with an entry for each of these records."""
    for number in numbers:
        journal.note(entry(number), State.QUEUED, "cloud", 10)
    return journal.take()


def test_each_row_names_the_one_before_it():
    """Promise 9: a chain of digests, from the first row to the head that the meta row keeps."""
    journal = Journal(100, 10**6)
    _, first = taken(journal, 1)
    _, second = taken(journal, 2, 3)
    one, other = decode_row(first), decode_row(second)
    assert one.previous == b""
    assert other.previous == one.digest
    assert journal.head == other.digest
    assert [note.number for note in other.notes] == [2, 3]
    again = Journal(100, 10**6)
    again.restore(2, len(second), 10)
    again.head, again.next_number = journal.head, journal.next_number
    assert decode_row(taken(again, 4)[1]).previous == other.digest


def test_what_a_note_says_of_the_record_is_read_from_it():
    """Promise 9: run, occurred time and place in the queue stand in the entry, whatever becomes of the record."""
    journal = Journal(100, 10**6)
    body = b'{"kind":"run.start","run_id":"r","occurred_at":"2026-01-02T03:04:05Z"}'
    journal.note(entry(7, kind="run.start", body=body), State.QUEUED, "cloud", 50)
    journal.note(entry(8, kind="snapshot", lane="decision:d", body=b"no JSON"), State.QUEUED, "cloud", 50, by=4)
    journal.note(entry(9, kind="gate.decide", lane="gate:g", body=body), State.QUEUED, "cloud", 50, run="asked-in")
    one, other, gate = decode(journal.take()[1])
    assert (one.run, one.occurred_us, one.queue_number) == ("r", 1_767_323_045_000_000, 7)
    assert (other.run, other.occurred_us, other.by) == ("", 0, 4)
    assert (gate.run, gate.occurred_us) == ("asked-in", 0)


def test_what_was_refused_leaves_nothing():
    """A commit that is tried again without some records says nothing of them: numbers and digests are the others' alone."""
    journal = Journal(100, 10**6)
    taken(journal, 1)
    head = journal.head
    for number in (2, 3, 4):
        journal.note(entry(number), State.QUEUED, "cloud", 10)
    refused = journal.pending[0], journal.pending[2]
    journal.take()
    journal.note(entry(5), State.DEAD, "cloud", 11)  # of the next commit
    row, value = journal.retake(refused)
    made = decode_row(value)
    assert (row, made.previous, [(note.number, note.queue_number) for note in made.notes]) == (2, head, [(2, 3)])
    row, value = journal.take()
    assert (row, decode_row(value).previous) == (3, made.digest)
    assert [(note.number, note.queue_number) for note in decode(value)] == [(3, 5)]


def test_a_row_of_which_all_was_refused_is_none():
    """Its number and its place in the chain are the next row's."""
    journal = Journal(10**9, 10**6)
    taken(journal, 1)
    head = journal.head
    journal.note(entry(2), State.QUEUED, "cloud", 10)
    refused = list(journal.pending)
    journal.take()
    assert journal.retake(refused) == (2, None)
    assert (journal.head, journal.next_number, journal.rows) == (head, 2, range(1, 2))
    row, value = taken(journal, 3)
    assert (row, decode_row(value).previous, decode(value)[0].number) == (2, head, 2)


@pytest.mark.parametrize("value", [b"", b"\xc1", pack(b"\x01"), pack(msgspec.msgpack.encode(["x"])), b"\x93\x01\x02"])
def test_a_damaged_row_is_said_so(value):
    """Nothing is made of what is no row."""
    with pytest.raises(SpoolDamaged):
        decode_row(value)
