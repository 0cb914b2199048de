"""Seals: what was sealed comes back as it was, and what was cut up or ended does not."""

from spool_kit import entry, seal_of, segment

from agentd.spool.directory import Segment
from agentd.spool.seals import Seals, encode


def sealed(numbers, lane="run:a", **facts):
    return seal_of([entry(n, lane) for n in numbers], **facts)


def seals_of(*groups):
    """Seals as a spool makes them: each group is a commit and has a row."""
    made = Seals()
    for row, group in enumerate(groups, 1):
        for seal in group:
            seal.seq = made.take_seq()
        made.add(group, row)
    return made


def test_a_lane_gives_its_batches_in_order():
    """Promise 2: the batch with the lowest number is sent first, in whatever order they were sealed."""
    late, early, other = sealed([5, 6]), sealed([1, 2]), sealed([3], "run:b")
    made = seals_of([late, early], [other])
    assert made.of_lane("cloud", "run:a") == [early, late]
    assert made.of_lane("local", "run:a") == []
    assert made.lanes("cloud") == ["run:a", "run:b"]
    assert len(made) == 3
    assert len(made.all()) == 3


def test_a_row_goes_with_its_last_seal():
    """A row of seals is deleted when all in it are retired, and a seal is retired once."""
    one, two = sealed([1]), sealed([2], "run:b")
    made = seals_of([one, two])
    assert made.retire(one) is None
    assert made.retire(one) is None
    assert made.retire(two) == 1
    assert made.lanes("cloud") == []


def test_seals_come_back_as_tried():
    """Promise 4: after a restart a batch is the same batch, and may have reached the platform."""
    one, two = sealed([1, 3], key="key-1", body=b"{}"), sealed([4, 9])
    seals_of([one, two])
    restored = Seals()
    assert restored.restore([(1, encode([one, two]))]) == []
    first, second = restored.of_lane("cloud", "run:a")
    assert (first.tried, first.key, first.body, first.row) == (True, "key-1", b"{}", 1)
    assert (second.first, second.last) == (4, 9)
    assert restored.take_seq() == 3


def test_parts_take_the_place_of_the_whole():
    """Promise 4: a whole that was cut up is not sent again, although its row lives on for a neighbour."""
    whole, neighbour = sealed([1, 2, 3, 4]), sealed([7], "run:b")
    seals_of([whole, neighbour])
    halves = [sealed([1, 2]), sealed([3, 4])]
    for seq, half in enumerate(halves, 3):
        half.seq = seq
    restored = Seals()
    restored.restore([(1, encode([whole, neighbour])), (2, encode(halves))])
    assert [(s.first, s.last) for s in restored.of_lane("cloud", "run:a")] == [(1, 2), (3, 4)]
    assert restored.empty_rows([1, 2]) == []
    assert restored.retire(restored.of_lane("cloud", "run:b")[0]) == 1


def test_a_later_batch_within_the_bounds_of_another_is_no_part_of_it():
    """Promise 4: a record that a batch left out may be sealed by itself without unsealing the batch."""
    batch = sealed([1, 2, 4])
    batch.exceptions = (3,)
    single = sealed([3])
    seals_of([batch], [single])
    restored = Seals()
    restored.restore([(1, encode([batch])), (2, encode([single]))])
    assert [(s.first, s.count) for s in restored.of_lane("cloud", "run:a")] == [(1, 3), (3, 1)]


def test_damaged_and_empty_rows_are_named():
    """A row that can't be read is named, and so is one whose seals were all replaced."""
    whole = sealed([1, 2])
    halves = [sealed([1]), sealed([2])]
    seals_of([whole], halves)
    restored = Seals()
    assert restored.restore([(1, encode([whole])), (2, encode(halves)), (3, b"\xc1")]) == [3]
    assert restored.empty_rows([1, 2]) == [1]


def test_covers_finds_what_overlaps():
    """Promise 6: shedding asks which sealed batches a segment may hold records of."""
    made = seals_of([sealed([5, 8])])
    assert made.covers("cloud", segment(1, [entry(1), entry(5)]))
    assert made.covers("cloud", segment(1, [entry(6), entry(7)]))
    assert not made.covers("cloud", segment(1, [entry(9), entry(20)]))
    assert not made.covers("cloud", segment(1, [entry(6, "run:b")]))
    assert not made.covers("local", segment(1, [entry(5), entry(8)]))


def test_covers_knows_the_sealed_among_many_lanes():
    """Whether the segment has more lanes or the destination more seals, until the lane's last one is retired; also after a start."""
    seals = [sealed([number], f"run:{number}") for number in range(1, 50)]
    few, many = seals_of(seals[:2]), seals_of(seals)
    wide = segment(1, [entry(number, f"run:{number}") for number in range(2, 30)])
    narrow = segment(2, [entry(2, "run:2")])
    blind = segment(3, [entry(2, "run:2")])
    blind.hashes = None
    restored = Seals()
    restored.restore([(1, encode(seals[:2]))])
    for made in (few, many, restored):
        assert all(made.covers("cloud", each) for each in (wide, narrow, blind))
    few.retire(seals[1])
    assert not any(few.covers("cloud", each) for each in (wide, narrow))
    many.retire(seals[1])
    assert (many.covers("cloud", wide), many.covers("cloud", narrow)) == (True, False)


def test_covers_costs_no_look_at_every_seal(monkeypatch):
    """A full queue whose rest is sealed asks it of each segment, for each record that finds no room."""
    made = seals_of([sealed([number], f"run:{number}") for number in range(1, 301)])
    looks = []
    monkeypatch.setattr(Segment, "may_hold", lambda *arguments: looks.append(arguments))
    monkeypatch.setattr(made, "_by_lane", Counting(made._by_lane))
    assert all(made.covers("cloud", segment(number, [entry(number, f"run:{number}")])) for number in range(1, 301))
    assert len(looks) + made._by_lane.looks <= 600


class Counting(dict):
    """Counts the seals that are looked at."""

    looks = 0

    def __getitem__(self, key):
        self.looks += 1
        return super().__getitem__(key)

    def items(self):
        self.looks += len(self)
        return super().items()
