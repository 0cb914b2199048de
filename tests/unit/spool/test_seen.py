"""Which rows of the dedupe window may leave the disk."""

from __future__ import annotations

from agentd.spool.seen import SeenRows

A, B = b"\x00\x00\x00\x05", b"\x00\x00\x00\x06"


def put(rows, row, uid, count, most=10):
    return rows.add(row, SeenRows.tag(uid + bytes(24), count), most)


def test_the_oldest_row_goes_when_the_window_has_passed_it():
    """One user alone: as many ids as the window has stay at least."""
    rows = SeenRows()
    assert [put(rows, row, A, 4) for row in range(1, 6)] == [[], [], [], [1], [2]]
    assert rows.count == 12


def test_it_is_a_row_of_who_has_most():
    """Another user's flood takes none of mine."""
    rows = SeenRows()
    assert put(rows, 1, A, 4) == []
    gone = [row for number in range(2, 100) for row in put(rows, number, B, 2)]
    assert gone == list(range(2, 97))
    assert rows.count == 4 + 3 * 2


def test_rows_of_older_versions_are_one_users():
    """Their tags say no uid; a damaged count is no more than the row can hold."""
    rows = SeenRows()
    rows.add(1, (9).to_bytes(4, "little"), 2**63, largest=100)
    rows.add(2, b"\xff\xff\xff\x7f", 2**63, largest=100)
    assert rows.count == 109
    assert put(rows, 3, A, 1) == [1]
