"""A record that has to go before what is in front of it, in a lane that is larger than the window."""

from __future__ import annotations

from spool_kit import entry, segment

from agentd.spool.queue import Queue

SIZE = 1000


def _filled(count, window_bytes, lane="run:a"):
    """A queue with a segment a record, its first lane parked for want of room; the store's rows by key."""
    queue = Queue("cloud", window_bytes, 10**6)
    rows = {number: [entry(number, lane, body=b"x" * SIZE)] for number in range(1, count + 1)}
    queue.recover([segment(key, entries) for key, entries in rows.items()])
    return queue, rows


def _read(queue, rows):
    told = set()
    while (key := queue.next_load()) is not None:
        told |= queue.loaded(key, rows[key])
    return told | queue.released()


def test_a_lane_is_read_up_to_what_has_to_go_first():
    """Larger than the window, and the record that it waits for is its last: it is read that far, once, and no further after that."""
    queue, rows = _filled(40, 10 * SIZE)
    _read(queue, rows)
    queue.block("run:a")
    _read(queue, rows)
    queue.unblock("run:a")
    _read(queue, rows)
    assert queue.find("run:a", 40) is None
    queue.bring("run:a", 40)
    assert "run:a" in _read(queue, rows)
    first = queue.find("run:a", 40)
    assert first is not None
    queue.end([first])
    assert queue.lanes["run:a"].needs == 0
    assert [each.number for each in queue.peek("run:a")] == list(range(1, 40))


def test_to_bring_what_is_nobodys_is_no_error():
    """The lane may have ended meanwhile."""
    queue, _ = _filled(1, 10**6)
    queue.bring("run:none", 7)
    assert queue.find("run:none", 7) is None


def test_a_parked_lane_hears_of_what_it_may_wait_for():
    """While a lane is on disk only its new records are not told, but for one that introduces something."""
    queue, rows = _filled(40, 10 * SIZE)
    _read(queue, rows)
    queue.block("run:a")
    _read(queue, rows)
    assert queue.parked == 1
    more = [entry(41, body=b"{}")]
    assert queue.push([segment(41, more)], more) == set()
    start = [entry(42, kind="run.start", body=b"{}")]
    assert queue.push([segment(42, start)], start) == {"run:a"}
