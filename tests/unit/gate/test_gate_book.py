"""The index of the gates on record: what it finds, and what it lets go."""

import pytest

from agentd.gate.book import OWN_KEY, Book, may_ask_again, owner_of
from agentd.gating import Word
from agentd.spool.gaterows import Brief, Step, Stored

DAY_US = 86_400 * 10**6


def brief(number, *, key=None, step=Step.FINAL, word=Word.ALLOW, acted=True, uid=1000, decided_us=0, token=-1):
    return Brief(
        f"g{number}", "act", "cloud", "", uid, token, key, b"", step, word, acted, number, decided_us or number
    )


def book(*briefs, size=100, **limits):
    sizes = [limits.pop(name, 10**6) for name in ("max_bytes", "open_bytes", "index_bytes")]
    made = Book(*sizes, **limits)
    for number, each in enumerate(briefs):
        made.put(Stored(number, each, size))
    return made


def ids(stored):
    return [each.brief.gate_id for each in stored]


def test_gates_are_found_by_id_and_by_key():
    """A key belongs to its owner."""
    made = book(brief(1, key="k"), brief(2, key="k", uid=1001), brief(3))
    assert made.get("g3").row == 2
    assert made.under(1000, "k").brief.gate_id == "g1"
    assert made.under(1001, "k").brief.gate_id == "g2"
    assert made.under(1002, "k") is None
    assert ids(made.newest(lambda _: True)) == ["g3", "g2", "g1"]


def test_callers_without_a_uid_are_told_apart_by_their_token():
    """Over TCP the kernel may not say whose a connection is: then the token is the owner."""
    assert len({owner_of(-1, 0), owner_of(-1, 1), owner_of(0, -1), owner_of(1, 0)}) == 4
    assert owner_of(1000, -1) == owner_of(1000, 3)


def test_a_change_keeps_its_place():
    """What is recorded again is counted once, and stays where it was asked."""
    made = book(brief(1, step=Step.SENDING), brief(2), size=100)
    made.put(Stored(0, brief(1), 150))
    assert ids(made.newest(lambda _: True)) == ["g2", "g1"]
    assert (len(made), made._bytes, made._open_bytes) == (2, 250, 0)


def test_what_was_decided_long_ago_is_forgotten():
    """§4: remembered for `gate.remember` after the verdict; what is open is not old."""
    made = book(
        brief(1, key="k", decided_us=DAY_US),
        brief(2, decided_us=DAY_US),
        brief(3, step=Step.PENDING, decided_us=DAY_US),
    )
    assert made.prune(lambda at: 2 * DAY_US - at, DAY_US) == []
    assert made.prune(lambda at: 2 * DAY_US + 1 - at, DAY_US) == [0, 1]
    assert made.under(1000, "k") is None
    assert ids(made.newest(lambda _: True)) == ["g3"]


@pytest.mark.parametrize(("key", "kept"), [("k", True), (None, False)])
def test_a_key_whose_answer_was_lost_is_never_forgotten(key, kept):
    """§4: it stays `unavailable` until somebody resolves it; without a key nobody asks for it again."""
    made = book(brief(1, key=key, word=Word.UNAVAILABLE))
    assert bool(made.prune(lambda at: 10 * DAY_US - at, DAY_US)) is not kept


def test_unkeyed_ones_are_bounded_in_number():
    """The newest so and so many that have their last word; keys and open ones don't count."""
    made = book(brief(1, key="k"), brief(2), brief(3, step=Step.ASKED), brief(4), brief(5), unkeyed=2)
    assert made.overflow() == [1]
    assert ids(made.newest(lambda _: True)) == ["g5", "g4", "g3", "g1"]


def test_room_is_made_by_those_that_nobody_asks_for():
    """A question that fits only if others go makes the oldest go; keyed ones stay, and then there is no room."""
    made = book(brief(1), brief(2, key="k"), brief(3), max_bytes=300)
    assert made.room(200)
    assert made.overflow(200) == [0, 2]
    assert made.room(200)
    assert not made.room(201)


def test_what_is_under_way_is_bounded():
    """It is in memory as a whole."""
    made = book(brief(1, step=Step.SENDING), size=100, open_bytes=150)
    assert made.room(50)
    assert not made.room(51)


def test_what_may_be_asked_again_under_its_key():
    """Only what has its last word, of which certainly nothing was made, and after which nobody was let go."""
    assert may_ask_again(brief(1, word=Word.UNAVAILABLE, acted=False))
    let_go = brief(1, word=Word.UNAVAILABLE, acted=False)
    let_go.fail_open = True
    for other in (
        let_go, brief(1, word=Word.UNAVAILABLE), brief(1, word=Word.DENY, acted=False),
        brief(1, word=Word.UNAVAILABLE, acted=False, step=Step.SENDING),
    ):  # fmt: skip
        assert not may_ask_again(other)


def test_no_owner_has_it_all():
    """Three quarters of the room, of what is under way and of its number are one owner's at most; the rest is for others."""
    open_ones = book(*(brief(number, step=Step.SENDING) for number in range(3)), size=100, open_bytes=400, under_way=4)
    owner = owner_of(1000, -1)
    assert (open_ones.room(1, owner), open_ones.room(100, owner + 1)) == (False, True)
    few = book(*(brief(number, step=Step.SENDING) for number in range(2)), size=100, open_bytes=400)
    assert (few.room(100, owner), few.room(101, owner), few.room(200, owner + 1)) == (True, False, True)
    keyed = book(*(brief(number, key=f"k{number}") for number in range(3)), size=100, max_bytes=400)
    assert (keyed.room(1, owner), keyed.room(100, owner + 1)) == (False, True)
    keyed.prune(lambda at: 10**18 - at, 0)
    assert keyed.room(100, owner)
    assert not book(*(brief(number, step=Step.SENDING) for number in range(4)), under_way=4).room(1, owner + 1)


MINUTE_US = 60 * 10**6


def client(number, **more):
    """A gate whose key the client library made, since the caller had none."""
    return brief(number, key=f"{OWN_KEY}{number}", **more)


def test_keys_that_the_client_library_made_weigh_nothing_after_ten_minutes():
    """They are there for a lost answer within the deadline; then they make room like gates without a key."""
    made = book(*(client(number) for number in range(1, 5)), brief(5, key="k"), size=100, max_bytes=500)
    assert not made.room(100, owner_of(1000, -1))
    assert made.prune(lambda at: 10 * MINUTE_US - at, DAY_US) == []
    assert (made.room(400, owner_of(1000, -1)), made.room(100)) == (False, False)
    made.prune(lambda at: 10 * MINUTE_US + 10 - at, DAY_US)
    assert (made.room(275, owner_of(1000, -1)), made.room(400), made.room(401)) == (True, True, False)
    assert made.under(1000, f"{OWN_KEY}2").brief.gate_id == "g2"
    assert made.overflow(200) == [0, 1]
    made.put(Stored(2, client(3, decided_us=11 * MINUTE_US), 100))  # a person has resolved it: it counts anew
    assert made.overflow(300) == [3]
    assert (made._kept_bytes_of[1000], made._bytes) == (200, 200)
    made.prune(lambda at: 10**18 - at, 0)
    kept = {*made._kept_bytes_of.values(), *made._kept_index_of.values()}
    assert (made._bytes, made._index, kept) == (0, 0, {0})


def test_a_lost_answer_under_a_key_of_the_client_library_is_forgotten_in_time():
    """Nobody knows the key any more; the caller's own stays."""
    made = book(client(1, word=Word.UNAVAILABLE), brief(2, key="k", word=Word.UNAVAILABLE))
    assert made.prune(lambda at: DAY_US - at, DAY_US) == []
    assert made.prune(lambda at: 2 * DAY_US - at, DAY_US) == [0]


def test_what_is_known_of_gates_is_bounded_in_memory():
    """However little they take on disk: those that nobody asks for make room, the others leave none, and nobody has it all."""
    made = book(*(brief(number) for number in range(5)), size=1, index_bytes=3500)
    assert made.room(1)
    assert made.overflow(1) == [0, 1]
    keyed = book(*(brief(number, key="k" * 300 + str(number)) for number in range(6)), size=1, index_bytes=8000)
    assert (keyed.room(1, owner_of(1000, -1)), keyed.room(1, owner_of(1001, -1))) == (False, True)
    for number in range(6, 8):
        keyed.put(Stored(number, brief(number, key="k" * 300 + str(number), uid=1001), 1))
    assert not keyed.room(1, owner_of(1001, -1))
