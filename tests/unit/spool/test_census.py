"""Counting what is queued: every record once, by lane, in bounded memory, and the oldest ones found without reading all."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from spool_kit import entry

from agentd.errors import SpoolDamaged
from agentd.queued import Source
from agentd.records import LossClass
from agentd.spool import columns, segments
from agentd.spool.census import Interrupted, Sort, Wanted, census, oldest
from agentd.spool.directory import Segment
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table, ended_key
from agentd.testing import MemoryStore

NOW_US = 10_000_000


def _age_us(stamp_us):
    return max(0, NOW_US - stamp_us)


def _wanted(**facts):
    return Wanted(_age_us, **facts)


class Disk:
    """Segments as the spool writes them."""

    def __init__(self):
        self.store = MemoryStore()
        self._rows = 0

    def put(self, entries, destination="cloud", ended=()):
        self._rows += 1
        key = key_of(Table.SEGMENT, self._rows)
        encoded = segments.encode(destination, entries)
        puts = [Put(key, encoded.value, encoded.tag)]
        if ended:
            segment = Segment(key, encoded.directory)
            for index in ended:
                segment.end(index, entries[index].kind)
            puts.append(Put(ended_key(key), segment.bitmap()))
        self.store.commit(puts, ())
        return key


@pytest.fixture
def disk():
    return Disk()


def test_what_of_a_lane_is_queued(disk):
    """Records, bytes, kinds, loss classes, the oldest, the first to be sent and the newest; what has ended is not in it."""
    disk.put([entry(1, kind="run.start", body=b"12"), entry(2, body=b"123"), entry(4, "run:b")], ended=[0])
    disk.put([entry(3, loss=LossClass.INFO, body=b"1234")])
    found = census(disk.store, _wanted())
    a, b = found.lanes
    assert (a.lane, a.records, a.bytes, a.kinds, a.losses) == ("run:a", 2, 7, {"event": 2}, {"keep": 1, "info": 1})
    assert (a.oldest.number, a.oldest.admitted_us, a.oldest.kind, a.oldest.record_id) == (
        2,
        20,
        "event",
        entry(2).record_id,
    )
    assert (a.head.number, a.newest_number, a.newest_us) == (2, 3, 30)
    assert (b.lane, b.records) == ("run:b", 1)
    assert (found.records, found.bytes, found.lanes_met, found.segments_read, found.exact) == (3, 9, 2, 2, True)


def test_a_record_that_came_back_is_the_oldest_and_not_the_first(disk):
    """A replayed record stands at the end of its lane and is as old as it was: head and oldest are told apart."""
    disk.put([entry(5, admitted_us=500), entry(6, admitted_us=600), entry(7, admitted_us=100)])
    [lane] = census(disk.store, _wanted()).lanes
    assert (lane.head.number, lane.oldest.number, lane.newest_number) == (5, 7, 7)


@pytest.mark.parametrize(
    ("facts", "numbers"),
    [
        ({}, {1, 2, 3, 4, 5}),
        ({"destination": "cloud"}, {1, 2, 3, 4}),
        ({"run": "a"}, {1, 3, 5}),
        ({"kind": "run.start"}, {1}),
        ({"agent": "sales"}, {4}),
        ({"agent": ""}, {2}),
        ({"older_us": NOW_US - 30}, {1, 2, 3}),
        ({"run": "a", "older_us": NOW_US - 25}, {1}),
        ({"run": "nobody's"}, set()),
        ({"mine": lambda name, source: name == "cloud" and source.uid == 1001}, {2, 4}),
    ],
)
def test_what_is_asked_for_narrows_it_down(disk, facts, numbers):
    """Destination, run, kind, agent, age and whose they are, together; for the list and for the oldest records."""

    def of(number, agent, uid, **more):
        made = entry(number, **more)
        made.source = Source(agent, uid, 1, "frames")
        return made

    disk.put([
        of(1, "billing", 1000, kind="run.start"), of(2, "", 1001, lane="run:b"), of(3, "billing", 1000),
        of(4, "sales", 1001, lane="run:c"),
    ])  # fmt: skip
    disk.put([of(5, "billing", 1000)], destination="local")
    found = census(disk.store, _wanted(**facts))
    peeked = oldest(disk.store, _wanted(**facts), 10, 10**6)
    assert {each.number for _, each in peeked.entries} == numbers
    assert found.records == len(numbers)
    assert sum(lane.records for lane in found.lanes) == len(numbers)


def test_only_what_may_hold_it_is_read(disk):
    """A segment whose directory knows no record that is meant is not read: asking for one run does not read the queue."""
    for number in range(20):
        disk.put([entry(number + 1, f"run:{number}")])
    assert census(disk.store, _wanted(run="7")).segments_read == 1
    assert census(disk.store, _wanted(destination="local")).segments_read == 0
    assert census(disk.store, _wanted(older_us=NOW_US - 50)).segments_read == 5


@pytest.mark.parametrize(
    ("sort", "lanes"),
    [
        (Sort.OLDEST, ["run:a", "run:b", "run:c"]),
        (Sort.RECORDS, ["run:c", "run:a", "run:b"]),
        (Sort.BYTES, ["run:b", "run:c", "run:a"]),
    ],
)
def test_lanes_are_sorted(disk, sort, lanes):
    """By the oldest record, by how many there are, by how many bytes."""
    disk.put(
        [entry(1), entry(2, "run:b", body=b"x" * 99), *(entry(n, "run:c", body=b"123") for n in (3, 4, 5)), entry(6)]
    )
    assert [lane.lane for lane in census(disk.store, _wanted(), sort).lanes] == lanes
    assert [lane.lane for lane in census(disk.store, _wanted(), sort, 2).lanes] == lanes[:2]


def test_a_list_agrees_with_the_queue_however_it_is_cut(disk):
    """Property: over random lanes, kinds, times, endings and segments the sums are those of the records themselves."""
    dice = random.Random(5)
    expected: Counter[str] = Counter()
    number = 0
    for _ in range(60):
        made, ended = [], []
        for index in range(dice.randrange(1, 40)):
            number += 1
            lane = f"run:{dice.randrange(12)}"
            made.append(
                entry(
                    number,
                    lane,
                    kind=dice.choice(["event", "task"]),
                    admitted_us=dice.randrange(10**6),
                    body=b"x" * dice.randrange(50),
                )
            )
            if dice.random() < 0.3:
                ended.append(index)
            else:
                expected[lane] += 1
        disk.put(made, ended=ended)
    found = census(disk.store, _wanted())
    assert {lane.lane: lane.records for lane in found.lanes} == expected
    assert all(sum(lane.kinds.values()) == sum(lane.losses.values()) == lane.records for lane in found.lanes)
    every = oldest(disk.store, _wanted(), 10**6, 10**9).entries
    times = [(each.admitted_us, each.number) for _, each in every]
    assert times == sorted(times)
    assert len(times) == found.records
    first = {
        lane.lane: min(time for time, (_, each) in zip(times, every, strict=True) if each.lane == lane.lane)
        for lane in found.lanes
    }
    heads = {lane.lane: min(each.number for _, each in every if each.lane == lane.lane) for lane in found.lanes}
    assert {lane.lane: lane.head.number for lane in found.lanes} == heads
    assert {lane.lane: (lane.oldest.admitted_us, lane.oldest.number) for lane in found.lanes} == first
    assert [each.number for _, each in oldest(disk.store, _wanted(), 7, 10**9).entries] == [n for _, n in times[:7]]


def test_more_lanes_than_are_kept(disk):
    """Of more lanes than memory is given for, those that stand first are kept, all are in the sums, and it is said."""
    for number in range(1, 101):
        disk.put([entry(number, f"run:{number}")])
    found = census(disk.store, _wanted(), Sort.OLDEST, 5, kept=10)
    assert [lane.lane for lane in found.lanes] == [f"run:{number}" for number in range(1, 6)]
    assert (found.records, found.lanes_met, found.exact) == (100, 100, False)


def test_damage_costs_its_segment_alone(disk):
    """A segment that can't be read is counted as damaged, one without a directory is read all the same."""
    whole, bare = entry(1), entry(3, "run:c")
    disk.put([whole])
    broken = disk.put([entry(2, "run:b")])
    nameless = disk.put([bare])
    value = bytearray(disk.store.read(broken))
    value[-1] ^= 1
    disk.store.commit([Put(broken, bytes(value), b"")], ())
    disk.store.commit([Put(nameless, disk.store.read(nameless), b"")], ())
    found = census(disk.store, _wanted())
    assert ([lane.lane for lane in found.lanes], found.damaged) == (["run:a", "run:c"], 1)
    peeked = oldest(disk.store, _wanted(), 10, 10**6)
    assert ([each.number for _, each in peeked.entries], peeked.damaged) == ([1, 3], 1)


def test_endings_that_are_damaged_leave_the_records_queued(disk):
    """What says which records have ended can't be read: they will be sent again, and so they are counted."""
    key = disk.put([entry(1), entry(2)], ended=[0])
    disk.store.commit([Put(ended_key(key), b"nonsense")], ())
    assert census(disk.store, _wanted()).records == 2


def test_it_ends_when_it_is_told(disk):
    """A daemon that stops is not held up by somebody's question."""
    disk.put([entry(1)])
    with pytest.raises(Interrupted):
        census(disk.store, _wanted(), stop=lambda: True)
    with pytest.raises(Interrupted):
        oldest(disk.store, _wanted(), 1, 1, stop=lambda: True)


def test_the_oldest_are_found_without_reading_all(disk):
    """Segments that are younger than what was found already are not read."""
    asked = []
    for number in range(1, 31):
        disk.put([entry(number)])
    found = oldest(disk.store, _wanted(), 3, 10**6, stop=lambda: bool(asked.append(1)))
    assert [each.number for _, each in found.entries] == [1, 2, 3]
    assert len(asked) == 3


def test_an_answer_is_bounded_in_bytes(disk):
    """Records of a megabyte each: as many as fit, one at least, and it is said that there are more."""
    disk.put([entry(number, body=b"x" * 1000) for number in range(1, 6)])
    found = oldest(disk.store, _wanted(), 5, 2500)
    assert ([each.number for _, each in found.entries], found.cut) == ([1, 2], True)
    assert [len(each.body) for _, each in found.entries] == [1000, 1000]
    assert len(oldest(disk.store, _wanted(), 5, 1).entries) == 1
    assert not oldest(disk.store, _wanted(), 2, 2500).cut


def test_columns_are_those_of_the_records():
    """What is read without bodies says the same as the whole; one that is cut is refused by name."""
    made = [entry(1), entry(2, "run:b", kind="task", body=b"12345")]
    value = segments.encode("cloud", made).value
    read = columns.read(1, value)
    whole = segments.decode(1, value)[1]
    assert (read.destination, read.loss, list(read.numbers), list(read.lengths)) == (
        "cloud",
        LossClass.KEEP,
        [1, 2],
        [2, 5],
    )
    assert [read.lanes[place] for place in read.lane_of] == [each.lane for each in whole]
    assert [read.kinds[place] for place in read.kind_of] == [each.kind for each in whole]
    assert [read.id_of(index) for index in range(2)] == [each.record_id for each in whole]
    with pytest.raises(SpoolDamaged, match="0x1"):
        columns.read(1, value[:-1])
