"""What waits in memory is bounded, what is lost is chosen and counted, and the books balance at any moment."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.client.buffer import DEBUG, INFO, KEEP, Buffer, Dropped, Ticket


def put(buffer, rank, data, ticket=None):
    buffer.put("event", rank, "r", data, len(data), ticket)


def filled(max_records=4, max_bytes=1000, ranks=()):
    buffer = Buffer(max_records, max_bytes)
    for number, rank in enumerate(ranks):
        put(buffer, rank, b"%d" % number)
    return buffer


def waiting(buffer):
    return [entry.data for entry in buffer.take(1000, 10**9)]


def test_records_leave_in_the_order_of_their_emits():
    """Whatever their levels, records are sent as they came."""
    assert waiting(filled(10, ranks=[INFO, KEEP, DEBUG, INFO, DEBUG])) == [b"0", b"1", b"2", b"3", b"4"]


def test_the_oldest_debug_goes_first_then_the_oldest_info():
    """A missing daemon costs memory up to a bound, then the oldest debug and info go first, counted."""
    buffer = filled(4, ranks=[INFO, DEBUG, KEEP, DEBUG])
    put(buffer, INFO, b"a")
    put(buffer, KEEP, b"b")
    put(buffer, KEEP, b"c")
    assert waiting(buffer) == [b"2", b"a", b"b", b"c"]
    assert Dropped(buffer.lost) == 3
    assert Dropped(buffer.lost).by_cause == {"no_daemon": 3}
    assert Dropped(buffer.lost).by_kind == {"event": 3}


def test_a_new_record_pushes_out_none_that_matters_more():
    """A debug that finds only info is lost itself, and info that finds only records to keep likewise."""
    buffer = filled(2, ranks=[INFO, INFO])
    put(buffer, DEBUG, b"x")
    assert waiting(buffer) == [b"0", b"1"]
    buffer = filled(2, ranks=[KEEP, KEEP])
    put(buffer, INFO, b"x")
    assert waiting(buffer) == [b"0", b"1"]


def test_the_bound_holds_even_for_records_that_are_never_shed():
    """When nothing else is left the oldest record of the kept ones goes, and is counted."""
    buffer = filled(2, ranks=[KEEP, KEEP])
    buffer.full_cause = "buffer_full"
    put(buffer, KEEP, b"new")
    assert waiting(buffer) == [b"1", b"new"]
    assert buffer.lost == {("buffer_full", "event"): 1}


def test_the_bound_in_bytes_holds_at_the_limit_and_beyond():
    """Bytes are bounded like records; a record larger than the bound is lost without costing the others."""
    buffer = Buffer(100, 10)
    put(buffer, INFO, b"x" * 9)
    put(buffer, INFO, b"y")
    assert buffer.lost == {}
    put(buffer, KEEP, b"z" * 11)
    assert (buffer.queued, sum(buffer.lost.values())) == (2, 1)
    put(buffer, INFO, b"w" * 2)
    assert waiting(buffer) == [b"y", b"ww"]


def test_what_is_under_way_counts_towards_the_bound_and_is_not_shed():
    """Records without an answer are memory too, and may be stored already: a new record gives way."""
    buffer = filled(2, ranks=[DEBUG, DEBUG])
    under_way = buffer.take(2, 100)
    put(buffer, KEEP, b"x")
    assert buffer.lost == {("no_daemon", "event"): 1}
    for entry in under_way:
        buffer.accept(entry)
    assert buffer.stats().accepted == 2


def test_a_ticket_hears_what_became_of_its_record():
    """Whoever waits for a record hears once: stored, refused or lost, and why."""
    heard = []
    tickets = [Ticket(lambda: heard.append(1)) for _ in range(3)]
    buffer = Buffer(10, 1000)
    for ticket in tickets:
        put(buffer, KEEP, b"x", ticket)
    first, second, third = buffer.take(10, 1000)
    buffer.accept(first)
    buffer.refuse(second, "invalid", "$.context: required")
    buffer.lose(third, "unsupported", "too old")
    assert [(ticket.state, ticket.reason) for ticket in tickets] == [
        ("stored", ""),
        ("refused", "$.context: required"),
        ("lost", "too old"),
    ]
    assert len(heard) == 3


def test_each_cause_is_reported_once():
    """on_error hears of a cause once, however often it comes."""
    buffer = filled(1, ranks=[KEEP] * 5)
    buffer.full_cause = "buffer_full"
    put(buffer, KEEP, b"x")
    assert [buffer.take_notice()[0] for _ in range(3)] == ["no_daemon", "buffer_full", ""]


class Books(RuleBasedStateMachine):
    """Any mix of emits, sends, answers and returns, beside a plain model."""

    def __init__(self):
        super().__init__()
        self.buffer = Buffer(8, 60)
        self.under_way = []
        self.emitted = Counter()

    @rule(rank=st.sampled_from([DEBUG, INFO, KEEP]), size=st.integers(1, 70), kind=st.sampled_from(["event", "task"]))
    def emit(self, rank, size, kind):
        self.emitted[kind] += 1
        self.buffer.put(kind, rank, "r", b"x" * size, size)

    @rule()
    def never(self):
        self.emitted["event"] += 1
        self.buffer.never("event", "", "no_run")

    @rule(records=st.integers(1, 5), size=st.integers(0, 60))
    def send(self, records, size):
        taken = self.buffer.take(records, size)
        assert [entry.number for entry in taken] == sorted(entry.number for entry in taken)
        assert len(taken) <= records
        assert len(taken) <= 1 or sum(len(entry.data) for entry in taken) <= size
        self.under_way += taken

    @rule(after=st.integers(0, 30), records=st.integers(1, 5), size=st.integers(0, 60))
    def send_again(self, after, records, size):
        parked = self.buffer.parked
        taken = self.buffer.take_parked(after, records, size)
        assert [entry.number for entry in taken] == sorted(entry.number for entry in taken)
        assert all(entry.number > after for entry in taken)
        assert len(taken) <= records
        assert len(taken) <= 1 or sum(len(entry.data) for entry in taken) <= size
        assert self.buffer.parked == parked - len(taken)
        self.under_way += taken

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), end=st.sampled_from(["accept", "refuse", "lose", "park"]))
    def answer(self, data, end):
        entry = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if end == "park":
            self.buffer.park(entry)
        elif end == "refuse":
            self.buffer.refuse(entry, "invalid", "no")
        elif end == "lose":
            self.buffer.lose(entry, "spool_full")
        else:
            self.buffer.accept(entry)

    @invariant()
    def the_books_balance(self):
        """Promise 8: emitted = accepted + refused + lost + buffered, within the bounds, at any moment."""
        stats = self.buffer.stats()
        assert stats.emitted == sum(self.emitted.values())
        assert stats.emitted == stats.accepted + stats.refused + stats.lost + stats.buffered
        assert stats.buffered <= 8
        assert stats.buffered_bytes <= 60
        assert stats.lost == Dropped(self.buffer.lost) == sum(stats.lost_by.values())
        assert self.buffer.under_way == len(self.under_way)


Books.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase
