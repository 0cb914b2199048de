"""The books: admitted = delivered + queued + dead + purged + shed + quarantined, each with its cause (promise 8)."""

from agentd.outcomes import Cause, State
from agentd.spool.books import Books, Line, decode, encode


def books():
    made = Books()
    made.admit("cloud", "event", 10)
    made.admit("cloud", "task")
    made.admit("local", "event", 5)
    made.end("cloud", "event", State.DELIVERED, "", 4)
    made.end("cloud", "event", State.SHED, Cause.QUEUE_FULL, 2)
    made.end("cloud", "task", State.DEAD, Cause.REJECTED)
    return made


def test_what_is_queued_is_what_was_admitted_and_has_not_ended():
    """Promise 8: the queue is the difference, per destination and per kind."""
    made = books()
    assert (made.queued("cloud"), made.queued("local"), made.queued("unknown")) == (4, 5, 0)
    assert made.queued_kinds("cloud") == {"event": 4}
    assert made.total("cloud", State.DELIVERED) == 4
    assert made.destinations() == ["cloud", "local"]


def test_each_loss_has_its_cause():
    """Promise 8: shed, dead and the like are told by cause; admissions and deliveries are not among them."""
    assert books().causes("cloud") == {"shed": {"queue_full": 2}, "dead": {"rejected": 1}}
    assert books().causes("local") == {}


def test_the_books_come_back():
    """Promise 8: what was written is what is read, and nothing else is left."""
    made = books()
    again = Books()
    again.admit("old", "event")
    again.restore(decode(encode(made.snapshot())))
    assert again.snapshot() == made.snapshot()
    assert again.destinations() == ["cloud", "local"]


def test_a_snapshot_stands_still():
    """A commit writes the books of its own moment, whatever is booked while it runs."""
    made = books()
    before = made.snapshot()
    made.admit("cloud", "event")
    made.admit("cloud", "task", -1)
    assert Line("cloud", "event", "admitted", "", 10) in before
    assert Line("cloud", "task", "admitted", "", 1) not in list(made.lines())
