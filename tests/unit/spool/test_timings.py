"""Times on the way through the spool are observed once a message, a commit and a batch."""

from __future__ import annotations

from spool_kit import entry

from agentd.spool.timings import Timings
from agentd.spool.writer import Append

SOME = {"cloud": [object()]}


def handed_over(at, **more):
    append = Append(more.pop("copies", SOME), None, 1, **more)
    append.at = at
    return append


def test_a_commit_answers_messages():
    """Each message's wait and the commit itself are counted; what nobody waits an answer for is not a message."""
    timings = Timings(clock=lambda: 10.0)
    rows, replay, moved = handed_over(9.0, copies={}), handed_over(9.0, returned=[object()]), handed_over(9.0, moved=True)  # fmt: skip
    timings.committed(9.7, [handed_over(9.5), handed_over(9.9), rows, replay, moved], 40)
    assert (sum(timings.ack.counts), round(timings.ack.total, 6)) == (2, 0.6)
    assert (sum(timings.commit.counts), round(timings.commit.total, 6)) == (1, 0.3)
    assert timings.commit_records.total == 40
    assert round(timings.last_commit_s, 6) == 0.3


def test_a_commit_without_records_says_nothing_of_their_number():
    """Endings and seals alone do not drag the mean number of records down."""
    timings = Timings()
    timings.committed(0.0, [], 0)
    assert (sum(timings.commit.counts), sum(timings.commit_records.counts)) == (1, 0)


def test_a_batch_is_delivered():
    """Every record of it is counted, from its admission on, at its own destination; a clock that ran back counts as it stands."""
    timings = Timings()
    entries = [entry(number) for number in (1, 2, 3)]
    ages = {id(one): 4_000_000 - index * 1_000_000 for index, one in enumerate(entries)}
    stamps = iter([ages[id(entries[0])], ages[id(entries[-1])]] * 2)
    timings.delivered("cloud", entries, lambda _at: next(stamps))
    timings.delivered("cloud", entries[::-1], lambda _at: next(stamps))
    assert sum(timings.delivery["cloud"].counts) == 6
    assert timings.delivery["cloud"].total == 18.0
    told = {one.name: one for one in timings.told()}
    assert set(told) == {"agentd_ack_seconds", "agentd_commit_seconds", "agentd_commit_records", "agentd_delivery_seconds"}  # fmt: skip
    assert set(told["agentd_delivery_seconds"].parts) == {("cloud",)}
