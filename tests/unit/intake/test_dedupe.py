"""The last ids that were seen: what is a repeat, what is a mistake, and what is forgotten."""

from __future__ import annotations

from uuid import UUID

import pytest

from agentd.intake.dedupe import Seen, Window, count


def rid(number):
    return UUID(int=number).bytes


def test_an_id_is_new_then_the_same_or_other():
    """The same id with the same content is a repeat; with other content it is a mistake; looking changes nothing."""
    window = Window(10)
    assert window.look(5, rid(1), b"a") is Seen.NEW
    assert window.look(5, rid(1), b"a") is Seen.NEW
    window.add(5, rid(1), b"a")
    assert window.look(5, rid(1), b"a") is Seen.SAME
    assert window.look(5, rid(1), b"b") is Seen.OTHER


@pytest.mark.parametrize("uid", [0, 6, 2**32 - 1])
def test_ids_are_compared_within_one_uid(uid):
    """Nobody can spoil another user's id by using it first."""
    window = Window(10)
    window.add(5, rid(1), b"a")
    assert window.look(uid, rid(1), b"b") is Seen.NEW


@pytest.mark.parametrize(
    ("size", "oldest", "newest"), [(3, Seen.NEW, Seen.SAME), (4, Seen.SAME, Seen.SAME), (0, Seen.NEW, Seen.NEW)]
)
def test_the_window_holds_its_size_and_the_oldest_goes(size, oldest, newest):
    """An id counts while it is within the last `intake.dedupe_window` ids."""
    window = Window(size)
    for number in range(4):
        window.add(5, rid(number), b"a")
    assert len(window) == min(size, 4)
    assert window.look(5, rid(0), b"a") is oldest
    assert window.look(5, rid(3), b"a") is newest


def test_what_was_not_kept_is_forgotten():
    """A refused record uses up no id: it may come again, also with other content."""
    window = Window(10)
    rows = window.add(5, rid(1), b"a") + window.add(5, rid(2), b"a")
    window.add(5, rid(3), b"a")
    window.forget(rows)
    assert [window.look(5, rid(n), b"b") for n in (1, 2, 3)] == [Seen.NEW, Seen.NEW, Seen.OTHER]


def test_the_window_is_kept_over_a_restart():
    """The rows that go to disk bring back the same window, oldest first, cut to the size that is configured now."""
    window = Window(10)
    rows = [window.add(5, rid(n), b"a") for n in range(4)]
    assert count(b"".join(rows)) == 4
    other = Window(2)
    other.restore(b"".join(rows[:3]))
    other.restore(rows[3])
    assert [other.look(5, rid(n), b"a") for n in range(4)] == [Seen.NEW, Seen.NEW, Seen.SAME, Seen.SAME]


@pytest.mark.parametrize("cut", [1, 27, 29, 55])
def test_a_torn_row_costs_itself_alone(cut):
    """What is left of a row that was cut short is passed over."""
    window = Window(10)
    rows = window.add(5, rid(1), b"a") + window.add(5, rid(2), b"a")
    other = Window(10)
    other.restore(rows[:cut])
    assert len(other) == cut // 28


# -- per destination -------------------------------------------------------------------------------------------------------


def test_a_record_may_be_known_in_part():
    """Which destinations have it is remembered with it, and it stays the same record: other content is still a mistake."""
    window = Window(10)
    window.add_part(5, rid(1), b"a", ["one"])
    assert window.look(5, rid(1), b"a") is Seen.PART
    assert window.look(5, rid(1), b"b") is Seen.OTHER
    window.add_part(5, rid(1), b"a", ["two"])
    assert [window.has(5, rid(1), name) for name in ("one", "two", "three")] == [True, True, False]
    assert not window.has(6, rid(1), "one")
    assert not window.has(5, rid(2), "one")
    assert len(window) == 1


def test_parts_are_kept_over_a_restart():
    """Rows say which destinations have a record; the newest say all of it, so that rows are let go in the order of their ids."""
    window = Window(10)
    rows = [window.add_part(5, rid(1), b"a", ["one"]).rows, window.add(5, rid(2), b"b")]
    rows.append(window.add_part(5, rid(1), b"a", ["two"]).rows)
    for kept in (rows, rows[2:]):
        other = Window(10)
        for row in kept:
            other.restore(row)
        assert other.look(5, rid(1), b"a") is Seen.PART
        assert [other.has(5, rid(1), name) for name in ("one", "two", "three")] == [True, True, False]
    assert [count(row) for row in rows] == [1, 1, 1]
    small = Window(2)
    small.restore(b"".join(rows))
    small.add(5, rid(3), b"c")
    assert [small.look(5, rid(1), b"a"), small.look(5, rid(2), b"b")] == [Seen.PART, Seen.NEW]


def test_a_part_that_was_not_kept_is_forgotten_alone():
    """What one destination has stays known when the disk refuses another's copy; with the last of them the id is free."""
    window = Window(10)
    first, second = (window.add_part(5, rid(1), b"a", [name]) for name in ("one", "two"))
    window.forget_part(second)
    assert [window.has(5, rid(1), name) for name in ("one", "two")] == [True, False]
    window.forget_part(first)
    assert window.look(5, rid(1), b"b") is Seen.NEW
    window.forget_part(first)


def test_a_row_that_lost_its_parts_is_no_whole_record():
    """A torn row is never taken for a record that everybody has: that would lose it in silence."""
    rows = Window(10).add_part(5, rid(1), b"a", ["one"]).rows
    other = Window(10)
    other.restore(rows[:28])
    assert other.look(5, rid(1), b"a") is Seen.OTHER
    other.restore(rows[28:])  # parts of nothing
    assert not other.has(5, rid(1), "one")


def test_a_flood_of_ids_pushes_out_its_own_users():
    """The oldest id of who has most in the window goes: nobody else's is forgotten for it."""
    window = Window(10)
    for number in range(4):
        window.add(5, rid(number), b"a")
    for number in range(100):
        window.add(6, rid(number), b"a")
    assert len(window) == 10
    assert all(window.knows(5, rid(number)) for number in range(4))
    assert [number for number in range(100) if window.knows(6, rid(number))] == list(range(94, 100))
    for number in range(4, 100):
        window.add(5, rid(number), b"a")
    assert sum(window.knows(6, rid(number)) for number in range(100)) == 5  # and equal shares where both have more
