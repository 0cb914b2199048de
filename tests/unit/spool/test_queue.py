"""The queue by itself: window, horizon, parking, endings and shedding, without a disk."""

import pytest
from spool_kit import entry, segment

from agentd.errors import SpoolDamaged
from agentd.records import LossClass
from agentd.spool.directory import Segment, decode_bitmap
from agentd.spool.lane import ENTRY_OVERHEAD
from agentd.spool.queue import Moved, Queue
from agentd.spool.segments import Directory, lane_hash

MIB = 2**20
KEEP, INFO, DEBUG = LossClass.KEEP, LossClass.INFO, LossClass.DEBUG


def queue(window=10**6, directory=10**6):
    return Queue("cloud", window, directory)


def numbers(entries):
    return [entry.number for entry in entries]


def fill(made, rows):
    """Read until there is nothing to read or no room. Returns what was read."""
    read = []
    while (key := made.next_load()) is not None:
        read.append(key)
        made.loaded(key, rows[key])
    return read


def recovered(rows, window=10**6):
    """A queue that was opened over these rows: key → records."""
    made = queue(window)
    made.recover(segment(key, entries) for key, entries in rows.items())
    return made


def test_what_is_committed_can_be_taken_without_reading():
    """With room in the window, records go from the commit to the courier without a read."""
    made = queue()
    entries = [entry(1, "run:a"), entry(2, "run:b"), entry(3, "run:a")]
    assert made.push([segment(1, entries)], entries) == {"run:a", "run:b"}
    assert numbers(made.peek("run:a")) == [1, 3]
    assert made.next_load() is None
    assert made.live == 3
    assert made.window_bytes == 3 * (2 + ENTRY_OVERHEAD)
    assert list(made.peek("run:c")) == []


def test_a_full_window_leaves_records_on_disk():
    """What finds the window full is read in its turn, in order, when something has left it."""
    made = queue(window=600)
    first, second = [entry(1, body=b"x" * 400)], [entry(2, body=b"x" * 400)]
    made.push([segment(1, first)], first)
    assert made.push([segment(2, second)], second) == set()
    assert made.next_load() is None
    made.end(first)
    assert fill(made, {2: second}) == [2]
    assert numbers(made.peek("run:a")) == [2]


def test_a_large_commit_enters_as_far_as_there_is_room():
    """A commit larger than the window goes in segment by segment, at most one beyond the limit."""
    made = queue(window=1000)
    parts = [[entry(n, body=b"x" * 400)] for n in range(1, 6)]
    made.push([segment(n, part) for n, part in enumerate(parts, 1)], [e for part in parts for e in part])
    assert numbers(made.peek("run:a")) == [1, 2]
    assert made.window_bytes <= 1000 + 400 + ENTRY_OVERHEAD
    assert made.index.horizon == 3


def test_segments_of_one_commit_are_scanned_by_number_not_by_class():
    """Promise 2: where loss classes overlap, a record waits for every unread segment that may hold a lower number."""
    rows = {
        1: [entry(1, loss=DEBUG), entry(4, loss=DEBUG)],
        2: [entry(5, loss=INFO)],
        3: [entry(2), entry(3), entry(6)],
    }
    made = queue(window=1)
    block = [entry(0, "run:z")]
    made.push([segment(9, block)], block)
    made.push([segment(key, rows[key]) for key in rows], [])
    made.end(block)
    seen = []
    while (key := made.next_load()) is not None:
        told = made.loaded(key, rows[key])
        new = [n for n in numbers(made.peek("run:a")) if n not in seen]
        assert not new or "run:a" in told
        seen += new
        made.end(list(made.peek("run:a")))
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_window_of_records_that_are_kept_back_reads_on():
    """Promise 2: a full window whose records all wait for an unread segment is not a standstill."""
    rows = {
        1: [entry(1, "run:b"), *[entry(n, loss=KEEP) for n in range(3, 13)]],
        2: [entry(2, loss=INFO), entry(13, loss=INFO)],
    }
    made = recovered(rows, window=100)
    assert fill(made, rows) == [1]
    made.end(list(made.peek("run:b")))
    assert list(made.peek("run:a")) == []
    assert fill(made, rows) == [2]
    assert numbers(made.peek("run:a")) == list(range(2, 14))


def test_a_sealed_batch_that_reaches_beyond_the_window_is_read_whole():
    """Promise 4: a batch goes out as it was sealed; until it is whole it asks for more, also of a full window."""
    rows = {n: [entry(n)] for n in range(1, 5)}
    made = recovered(rows, window=300)
    assert fill(made, rows) == [1, 2]
    assert made.members("run:a", 1, 4) is None
    assert fill(made, rows) == [3, 4]
    assert numbers(made.members("run:a", 1, 4, exceptions=(3,))) == [1, 2, 4]
    assert made.members("run:unknown", 1, 4) == []


def test_a_parked_lane_leaves_memory_and_comes_back():
    """Promise 2: a blocked lane gives its room away, others go past it, and it returns whole and in order."""
    rows = {n: [entry(2 * n - 1, "run:a"), entry(2 * n, "run:b")] for n in range(1, 6)}
    made = recovered(rows, window=600)
    fill(made, rows)
    made.block("run:a")
    taken = []
    while batch := list(made.peek("run:b")):
        taken += numbers(batch)
        made.end(batch)
        fill(made, rows)
    assert taken == [2, 4, 6, 8, 10]
    assert list(made.peek("run:a")) == []
    made.unblock("run:a")
    back = []
    fill(made, rows)
    while batch := list(made.peek("run:a")):
        back += numbers(batch)
        made.end(batch)
        fill(made, rows)
    assert back == [1, 3, 5, 7, 9]
    assert made.live == made.window_bytes == 0


def test_many_lanes_come_back_within_the_window():
    """Memory stays bounded when a thousand parked lanes are wanted again at once."""
    rows = {n: [entry(n, f"run:{n}", body=b"x" * 1000)] for n in range(1, 101)}
    made = recovered(rows, window=5000)
    for _ in range(200):
        fill(made, rows)
        for lane in list(made.lanes):
            made.block(lane)
    assert len(made.lanes) == 100
    for lane in list(made.lanes):
        made.unblock(lane)
    fill(made, rows)
    assert made.window_bytes <= 5000 + 1000 + ENTRY_OVERHEAD
    taken = set()
    while batch := [e for lane in list(made.lanes) for e in made.peek(lane)]:
        taken |= set(numbers(batch))
        made.end(batch)
        fill(made, rows)
        assert made.window_bytes <= 5000 + 1000 + ENTRY_OVERHEAD
    assert taken == set(range(1, 101))


def test_a_rewritten_segment_brings_no_record_twice():
    """Promise 2: a parked lane that is half read back when its segments are rewritten gets each record once."""
    rows = {1: [entry(1), entry(2)], 2: [entry(3), entry(4)], 3: [entry(5), entry(6)]}
    made = recovered(rows, window=1)
    fill(made, rows)
    made.block("run:a")
    fill(made, rows)
    assert made.window_bytes == 0
    made.unblock("run:a")
    key = made.next_load()
    made.loaded(key, rows[key])
    assert numbers(made.peek("run:a")) == [1, 2]
    old = [made.segments[n] for n in (1, 2, 3)]
    live = [entry(n) for n in range(1, 7)]
    moves = {Moved((n + 1) // 2, (n - 1) % 2): Moved(7, n - 1) for n in range(1, 7)}
    made.replace(old, [segment(7, live)], moves, {"run:a"})
    assert numbers(made.peek("run:a")) == [1, 2]
    made.window_limit = 10**6
    assert fill(made, {7: live}) == [7]
    assert numbers(made.peek("run:a")) == [1, 2, 3, 4, 5, 6]
    made.end(list(made.peek("run:a")))
    assert made.live == made.window_bytes == 0
    assert not made.segments


def test_a_record_that_was_moved_while_it_was_sent_ends_where_it_is():
    """Promise 4: who holds a sealed record by its old place ends it at its new one, once."""
    entries = [entry(1), entry(2)]
    held = entry(1)
    made = queue()
    old = segment(1, entries)
    held.segment, held.index = 1, 0
    made.push([old], entries)
    moved = [entry(1), entry(2)]
    new = segment(5, moved)
    made.replace([old], [new], {Moved(1, 0): Moved(5, 0), Moved(1, 1): Moved(5, 1)}, {"run:a"})
    made.remember(1, Moved(5, 0))
    ended = made.end([held])
    assert numbers(ended.entries) == [1]
    assert made.live == 1
    assert new.has_ended(0)
    assert numbers(made.peek("run:a")) == [2]
    assert made.end([held]).entries == []


def test_lanes_of_unread_segments_are_told_when_what_kept_them_back_is_shed():
    """A record that becomes visible because an unread segment was shed is announced, or nobody would look."""
    made = queue(window=1)
    rows = {1: [entry(1, "run:b"), entry(3)], 2: [entry(2, "run:c", loss=DEBUG), entry(4, "run:c", loss=DEBUG)]}
    made.recover(segment(key, entries) for key, entries in rows.items())
    key = made.next_load()
    made.loaded(key, rows[key])
    assert list(made.peek("run:a")) == []
    made.shed(DEBUG, 1, lambda _: False)
    assert "run:a" in made.released()
    assert numbers(made.peek("run:a")) == [3]
    assert made.released() == set()


def test_an_ending_is_counted_once_and_deletes_a_row_with_its_last_record():
    """Promise 8: endings are booked once; bitmaps go to disk until the last record takes the row with it."""
    entries = [entry(1), entry(2, kind="task"), entry(3)]
    made = queue()
    made.push([segment(1, entries)], entries)
    first = made.end(entries[:2])
    assert (numbers(first.entries), first.deletes, list(first.bitmaps)) == ([1, 2], [], [1])
    assert decode_bitmap(first.bitmaps[1], 3) == ({"event": 1, "task": 0}, bytearray([0b011]))
    assert made.end(entries[:2]) == ([], [], {})
    last = made.end(entries)
    assert (numbers(last.entries), last.deletes, last.bitmaps) == ([3], [1], {})
    assert made.live == made.window_bytes == made.stored_bytes == 0


def test_a_bitmap_comes_back():
    """Promise 1: after a restart neither an ended record is back nor a live one gone."""
    entries = [entry(n) for n in range(1, 11)]
    made = queue()
    made.push([segment(1, entries)], entries)
    bitmap = made.end([entries[0], entries[9]]).bitmaps[1]
    again = segment(1, [entry(n) for n in range(1, 11)])
    again.restore_bitmap(bitmap)
    assert again.live == 8
    assert [again.has_ended(index) for index in range(10)] == [True, *[False] * 8, True]
    for damaged in (b"", b"\xc1", bitmap[:-1], segment(2, [entry(20)]).bitmap()):
        with pytest.raises(SpoolDamaged):
            segment(1, [entry(n) for n in range(1, 11)]).restore_bitmap(damaged)


def test_shedding_takes_the_oldest_of_a_class_and_spares_what_is_protected():
    """Promise 6: whole segments, oldest first, of the class that was named; sealed ones stay."""
    made = queue()
    rows = {
        1: [entry(1)],
        2: [entry(2, loss=DEBUG)],
        3: [entry(3, loss=DEBUG)],
        4: [entry(4, loss=DEBUG)],
        5: [entry(5, loss=INFO)],
    }
    for key, entries in rows.items():
        made.push([segment(key, entries)], entries)
    taken = made.shed(DEBUG, 1, lambda s: s.key == 2)
    assert [s.key for s in taken] == [3]
    assert numbers(made.peek("run:a")) == [1, 2, 4, 5]
    assert [s.key for s in made.shed(DEBUG, 10**6, lambda _: False)] == [2, 4]
    assert made.shed(DEBUG, 1, lambda _: False) == []
    assert made.index.class_bytes[DEBUG] == 0
    assert made.live == 2


def test_an_unreadable_row_takes_its_records_out_of_the_window():
    """A damaged segment is out of directory and window, so that none of its records is sent and booked twice."""
    rows = {1: [entry(1)], 2: [entry(2)]}
    made = recovered(rows, window=1)
    assert made.next_load() == 1
    gone = made.unreadable(1)
    assert gone.live == 1
    assert made.live == 1
    assert fill(made, rows) == [2]
    assert numbers(made.peek("run:a")) == [2]
    assert made.unreadable(77) is None


def test_a_row_that_is_another_one_is_found():
    """A row whose records are not those of its directory is damaged, however well both can be read."""
    made = recovered({1: [entry(1), entry(2)]})
    made.check(1, [entry(1), entry(2)])
    made.check(99, [entry(1)])
    for wrong in ([entry(1)], [entry(2), entry(3)]):
        with pytest.raises(SpoolDamaged, match="directory"):
            made.check(1, wrong)


def test_a_directory_without_room_costs_reads_and_nothing_else():
    """Memory: lane hashes beyond the limit are dropped; every lane may then be in the segment."""
    made = queue(directory=8)
    first, second = [entry(1)], [entry(2, "run:b")]
    made.push([segment(1, first)], first)
    made.push([segment(2, second)], second)
    assert made.directory_bytes == 8
    assert made.segments[2].hashes is None
    assert {s.key for s in made.index.holding("run:x")} == {2}
    assert {s.key for s in made.index.holding("run:a")} == {1, 2}
    made.end(first)
    assert made.directory_bytes == 0


def test_oldest_and_lowest_follow_the_queue():
    """What `status` and `flush` ask: the age of the oldest record and the lowest number that is left."""
    made = queue()
    assert made.lowest() is None
    assert made.oldest_us(lambda at: 100 - at) is None
    for n in (1, 2, 3):
        entries = [entry(n)]
        made.push([segment(n, entries)], entries)
        if n == 1:
            first = entries
    assert (made.lowest(), made.oldest_us(lambda at: 100 - at)) == (1, 90)
    made.end(first)
    assert (made.lowest(), made.oldest_us(lambda at: 100 - at)) == (2, 80)


def test_reading_can_fail_and_be_tried_again():
    """A read that failed is asked for again; while rows are rewritten nothing is asked for."""
    rows = {1: [entry(1)]}
    made = recovered(rows)
    assert made.next_load() == 1
    assert made.next_load() is None
    assert made.being_read() == {1}
    made.load_failed()
    made.rewriting = True
    assert made.next_load() is None
    made.rewriting = False
    assert made.next_load() == 1
    made.end([])
    assert repr(made).startswith("<Queue cloud 1 in 1 segments")
    assert repr(made.segments[1]) == "<Segment 0x1 1-1 keep 1/1>"


def test_one_blocked_lane_larger_than_memory_hides_no_other():
    """Promise 2: 300 MB of a lane that can't be sent lie ahead of 1,000 healthy lanes; with a budget of 64 MiB all of
    those are delivered, and the window never holds more than its limit and one segment."""
    limit = 64 * MIB // 4
    made = queue(limit, 8 * MIB)
    body = bytes(5000)  # shared: the test itself does not need 300 MB
    per_segment, stuck_segments = 100, 600
    hashes = lane_hash("run:stuck").to_bytes(8, "little")

    def stuck(key):
        first = (key - 1) * per_segment + 1
        directory = Directory(
            1,
            "cloud",
            KEEP,
            first,
            first + per_segment - 1,
            per_segment,
            per_segment * 5000,
            0,
            {"event": per_segment},
            hashes,
        )
        return Segment(key, directory)

    made.recover(stuck(key) for key in range(1, stuck_segments + 1))
    assert made.stored_bytes == 300_000_000
    rows = {}
    base = stuck_segments * per_segment
    for part in range(100):
        rows[stuck_segments + 1 + part] = [
            entry(base + part * 50 + n + 1, f"run:{(part * 50 + n) % 1000}", body=body) for n in range(50)
        ]
    made.recover(segment(key, entries) for key, entries in rows.items())

    def read(key):
        if key in rows:
            return rows[key]
        made_entries = [entry((key - 1) * per_segment + n + 1, "run:stuck", body=body) for n in range(per_segment)]
        for index, each in enumerate(made_entries):
            each.segment, each.index = key, index
        return made_entries

    largest = per_segment * (5000 + ENTRY_OVERHEAD)
    taken = []
    ready = set()
    for _ in range(100_000):
        key = made.next_load()
        if key is None and not ready:
            break
        if key is not None:
            ready |= made.loaded(key, read(key))
            assert made.window_bytes <= limit + largest
        made.block("run:stuck")
        ready.discard("run:stuck")
        for lane in sorted(ready):
            entries = list(made.peek(lane))
            taken += numbers(entries)
            made.end(entries)
        ready.clear()
    assert sorted(taken) == list(range(base + 1, base + 5001))
    assert made.live == base
    made.unblock("run:stuck")
    key = made.next_load()
    made.loaded(key, read(key))
    assert next(made.peek("run:stuck")).number == 1
