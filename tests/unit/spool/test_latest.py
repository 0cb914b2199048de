"""The newest queued records, found from the newest segment on, without reading all."""

from __future__ import annotations

import random

import pytest
from spool_kit import entry

from agentd.spool import segments
from agentd.spool.census import Interrupted, Wanted
from agentd.spool.directory import Segment
from agentd.spool.latest import latest
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table, ended_key
from agentd.testing import MemoryStore


class Disk:
    """Segments as the spool writes them."""

    def __init__(self):
        self.store = MemoryStore()
        self.keys = set()
        self.reads = 0

    def put(self, entries, destination="cloud", ended=()):
        key = key_of(Table.SEGMENT, len(self.keys) + 1)
        self.keys.add(key)
        encoded = segments.encode(destination, entries)
        puts = [Put(key, encoded.value, encoded.tag)]
        if ended:
            segment = Segment(key, encoded.directory)
            for index in ended:
                segment.end(index, entries[index].kind)
            puts.append(Put(ended_key(key), segment.bitmap()))
        self.store.commit(puts, ())
        return key

    def tags(self, table):
        return self.store.tags(table)

    def read(self, key):
        self.reads += key in self.keys
        return self.store.read(key)


@pytest.fixture
def disk():
    return Disk()


def numbers(disk, limit, meant=lambda *_: True, *, wanted=None, **options):
    found = latest(disk, wanted or Wanted(lambda stamp_us: stamp_us), meant, limit, **options)
    return [(name, entry.number) for name, entry in found]


def test_the_newest_are_given_the_oldest_of_them_first(disk):
    """Over destinations, by the time of their admission; what has ended is not queued."""
    disk.put([entry(1), entry(2), entry(5)], ended=[2])
    disk.put([entry(3), entry(4)], "local")
    assert numbers(disk, 3) == [("cloud", 2), ("local", 3), ("local", 4)]
    assert numbers(disk, 10) == [("cloud", 1), ("cloud", 2), ("local", 3), ("local", 4)]


def test_what_is_older_is_not_read(disk):
    """A queue of a million records costs what its end costs."""
    for row in range(50):
        disk.put([entry(row * 10 + number) for number in range(10)])
    assert numbers(disk, 12) == [("cloud", number) for number in range(488, 500)]
    assert disk.reads == 2


def test_what_is_not_meant_is_passed_over(disk):
    """By segment where the segment says so, else by record."""
    disk.put([entry(1, kind="task")])
    disk.put([entry(2), entry(3, kind="task")])
    disk.put([entry(4), entry(5)])
    tasks = Wanted(lambda stamp_us: stamp_us, kind="task")
    assert numbers(disk, 5, lambda _, one: one.kind == "task", wanted=tasks) == [("cloud", 1), ("cloud", 3)]
    assert disk.reads == 2


def test_reading_in_vain_has_a_bound(disk):
    """Where nothing is meant, it is given up after so many bytes."""
    for number in range(1, 21):
        disk.put([entry(number)])
    assert numbers(disk, 5, lambda *_: False, max_bytes=1) == []
    assert disk.reads == 1


def test_a_damaged_segment_is_left_out(disk):
    """It hides none of the others."""
    disk.put([entry(1)])
    key = disk.put([entry(2)])
    (tag,) = (tag for known, tag, _ in disk.tags(Table.SEGMENT) if known == key)
    disk.store.commit([Put(key, b"damaged", tag)], ())
    assert numbers(disk, 5) == [("cloud", 1)]


def test_it_ends_with_the_daemon(disk):
    """Whoever waits for it is told."""
    disk.put([entry(1)])
    with pytest.raises(Interrupted):
        numbers(disk, 5, stop=lambda: True)


@pytest.mark.parametrize("seed", range(5))
def test_as_a_plain_list_has_it(disk, seed):
    """Whatever the order of the rows, as long as each holds what came at about the same time."""
    rng = random.Random(seed)
    rows = [[entry(row * 8 + number, admitted_us=row * 8 + number) for number in range(8)] for row in range(12)]
    for row in rng.sample(rows, len(rows)):
        disk.put(row)
    newest = [("cloud", each.number) for row in rows for each in row]
    limit = rng.randrange(1, 30)
    assert numbers(disk, limit) == newest[-limit:]
