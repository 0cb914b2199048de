"""Who watches records come: what is wanted, what is held for a reader, what a slow one misses."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest

from agentd.intake import tailing
from agentd.intake.tailing import HELD_BYTES, HELD_RECORDS, MOST, MOST_OF_ONE, Busy, Tails, Wish, pieces
from agentd.queued import Entry, Source
from agentd.records import LossClass

ME, OTHER = 1000, 1001


def entry(number, kind="event", *, uid=ME, agent="billing", lane="run:r", **fields):
    body = msgspec.json.encode({"kind": kind, "run_id": "r", **fields})
    return Entry(
        number, UUID(int=number).bytes, lane, kind, LossClass.INFO, Source(agent, uid, 1, "frames"), 10**15, body
    )


class House:
    """Tails, and whether anybody is overheard."""

    def __init__(self):
        self.show = None
        self.tails = Tails(self._overhear)

    def _overhear(self, show):
        self.show = show

    def listen(self, uid=ME, **wish):
        return self.tails.open(Wish(**wish), uid)

    def come(self, *entries, to=("cloud",)):
        self.show({name: list(entries) for name in to})


@pytest.fixture
def house():
    return House()


def taken(listener, sees=None, **options):
    lines = listener.take(options.pop("size", 10**9), sees, **options)
    return [json.loads(line) for line in lines]


def ids(listener, sees=None):
    return [UUID(document["id"]).int for document in taken(listener, sees)]


def test_nobody_is_overheard_while_nobody_listens(house):
    """The first listener turns it on, the last one off: nothing is spent on what nobody reads."""
    assert house.show is None
    one, two = house.listen(), house.listen()
    assert house.show is not None
    house.tails.close(one)
    house.come(entry(1))
    assert ids(two) == [1]
    house.tails.close(two)
    assert house.show is None
    assert taken(one) == []


def test_a_record_is_shown_once_with_all_its_destinations(house):
    """As it was stored, with what agentd knows of it."""
    listener = house.listen()
    house.come(entry(7, type="hello", payload={"n": 1}), to=("cloud", "archive"))
    (document,) = taken(listener)
    assert document == {
        "admitted_at": "2001-09-09T01:46:40.000000Z", "destinations": ["cloud", "archive"], "kind": "event",
        "id": str(UUID(int=7)), "lane": "run:r", "agent": "billing", "uid": ME, "bytes": len(entry(7, type="hello", payload={"n": 1}).body),
        "record": {"kind": "event", "run_id": "r", "type": "hello", "payload": {"n": 1}},
    }  # fmt: skip
    assert not listener.is_behind
    assert not listener.news.is_set()


@pytest.mark.parametrize(
    ("wish", "shown"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"kinds": ("task", "decision")}, [4, 5]),
        ({"agent": "sales"}, [6]),
        ({"run": "r"}, [1, 2, 3, 4, 5]),
        ({"level": "debug"}, [1, 2, 3, 6]),
        ({"level": "info"}, [2, 3, 6]),
        ({"level": "warn"}, [3]),
        ({"level": "error"}, []),
        ({"level": "warn", "run": "other"}, []),
        ({"kinds": ("event",), "level": "info", "agent": "billing"}, [2, 3]),
        ({"destination": "cloud"}, [1, 2, 3, 4, 5, 6]),
        ({"destination": "archive"}, []),
    ],
)
def test_what_is_wanted(house, wish, shown):
    """Each filter leaves out what it does not name; a level is the least one, of events and spans alone."""
    listener = house.listen(**wish)
    house.come(
        entry(1, level="debug"), entry(2), entry(3, level="warn"), entry(4, "task", status="failed"),
        entry(5, "decision", lane="agent:billing"), entry(6, "span", lane="run:other", agent="sales", run_id="other"),
    )  # fmt: skip
    assert ids(listener) == shown


def test_others_records_are_not_shown(house):
    """Whose it is, and where it goes, is asked of each record at the time at which it is shown."""
    listener = house.listen()
    house.come(entry(1), entry(2, uid=OTHER), to=("cloud", "secret"))
    (document,) = taken(listener, lambda name, source: source.uid == ME and name != "secret")
    assert (UUID(document["id"]).int, document["destinations"]) == (1, ["cloud"])


def test_what_was_shown_before_is_left_out(house):
    """A record that came in the list of the queued ones does not come again."""
    listener = house.listen()
    house.come(entry(1), entry(2))
    assert [UUID(one["id"]).int for one in taken(listener, shown={UUID(int=1).bytes})] == [2]


def test_a_slow_reader_misses_records_and_is_told_where(house):
    """What it has not taken is bounded; the gap stands in its place, and those after it are shown again once there is room."""
    listener = house.listen()
    for number in range(HELD_RECORDS + 120):
        house.come(entry(number + 1))
    documents = taken(listener)
    assert documents[-1] == {"not_shown": 120, "exact": True}
    assert len(documents) == HELD_RECORDS + 1
    assert listener.missed == 120
    house.come(entry(99_999))
    assert ids(listener) == [99_999]


def test_gaps_and_records_stay_in_order(house):
    """Room that comes is used at once: what comes then stands behind the gap."""
    listener = house.listen()
    house.come(*[entry(number + 1) for number in range(HELD_RECORDS)])
    house.come(entry(6001))
    house.come(entry(6002))
    assert 0 < len(taken(listener, size=1500)) < 20
    house.come(entry(6003))
    house.come(*[entry(7000 + number) for number in range(100)])
    tail = taken(listener)[-3:]
    assert [one.get("not_shown", one.get("record")) is not None for one in tail]
    assert tail[0] == {"not_shown": 2, "exact": True}
    assert UUID(tail[1]["id"]).int == 6003
    assert tail[2] == {"not_shown": 100, "exact": True}


def test_large_records_are_bounded_by_their_bytes(house):
    """A megabyte is held, however few records that is; one message alone is held however large it is."""
    listener = house.listen()
    house.come(entry(1, payload="x" * 2 * HELD_BYTES))
    house.come(entry(2, payload="x"))
    documents = taken(listener)
    assert [one.get("not_shown") for one in documents] == [None, 1]
    house.come(entry(3, payload="x" * (HELD_BYTES // 2)))
    house.come(entry(4, payload="x" * (HELD_BYTES // 2)))
    assert [one.get("not_shown") for one in taken(listener)] == [None, 1]


@pytest.mark.parametrize(("wish", "sees"), [({"run": "r"}, None), ({}, lambda *_: True)])
def test_what_was_missed_under_a_filter_is_an_upper_bound(house, wish, sees):
    """Nobody has looked whether it was wanted."""
    listener = house.listen(**wish)
    house.come(*[entry(number + 1) for number in range(HELD_RECORDS)])
    house.come(entry(6001))
    assert taken(listener, sees)[-1] == {"not_shown": 1, "exact": False}


def test_a_turn_is_bounded(house):
    """About so many bytes, or until there is enough, and the rest in the next one."""
    listener = house.listen()
    house.come(*[entry(number + 1) for number in range(50)])
    assert len(taken(listener, size=1)) == 1
    assert listener.is_behind
    assert listener.news.is_set()
    few = taken(listener, enough=lambda: True)
    assert 0 < len(few) < 10
    assert len(taken(listener)) == 49 - len(few)


def test_there_is_a_place_for_so_many(house):
    """Of one user, and of all; whoever goes makes room."""
    mine = [house.listen() for _ in range(MOST_OF_ONE)]
    with pytest.raises(Busy, match="4 of them yours"):
        house.listen()
    house.tails.close(mine[0])
    house.listen()
    for uid in range(MOST - MOST_OF_ONE):
        house.listen(uid)
    with pytest.raises(Busy, match="16 listen already"):
        house.listen(OTHER)


def test_the_end_is_the_end_for_all(house):
    """Listeners are told, nobody is overheard any more, and nobody new is let in."""
    listener = house.listen()
    house.come(entry(1))
    house.tails.close()
    assert listener.closed
    assert listener.news.is_set()
    assert house.show is None
    with pytest.raises(Busy, match="stops"):
        house.listen()
    assert repr(house.tails) == "<Tails 0 listen>"


def test_lines_in_pieces():
    """All bytes, in order, in pieces of a size."""
    assert list(pieces([b"abc", b"", b"de"], 2)) == [b"ab", b"cd", b"e"]
    assert list(pieces([], 2)) == []


def test_levels_are_those_of_records():
    """In their order."""
    assert tailing.LEVELS == ("debug", "info", "warn", "error")
