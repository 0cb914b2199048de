"""The journal: gap-free numbers, and rows that go from the old end (promise 9)."""

from hashlib import sha256

from spool_kit import entry

from agentd.outcomes import Cause, State
from agentd.spool.journal import Journal, decode


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
