"""Places among the connections when they run out."""

from __future__ import annotations

import pytest

from agentd.intake import NO_TOKEN, Peer
from agentd.intake.places import Places

ME, OTHER, NOBODY = Peer(1000, 1000, 1), Peer(1001, 1001, 2), Peer(-1, -1, 0, NO_TOKEN)


class Guest:
    def __init__(self, peer, *, token=False):
        self.uid = peer.uid
        self.is_stranger = not peer.local and not token
        self.aborted = False

    def abort(self):
        self.aborted = True


def places(limit, *guests):
    made = Places(limit)
    for guest in guests:
        made.add(guest)
    return made


def test_the_last_places_are_for_those_who_hold_few():
    """Of 64 one uid gets 60; of the other four another uid gets one, and so on, to the last."""
    made = places(64)
    while made.has_one(ME):
        made.add(Guest(ME))
    assert len(made) == 60
    for uid in range(2000, 2004):
        peer = Peer(uid, uid, 3)
        assert made.has_one(peer)
        made.add(Guest(peer))
        assert not made.has_one(peer)
    assert (len(made), made.has_one(OTHER)) == (64, False)
    made.discard(next(iter(made)))
    assert (made.has_one(ME), made.has_one(OTHER)) == (False, True)


@pytest.mark.parametrize("limit", [1, 2, 15])
def test_few_places_are_all_for_whoever_comes(limit):
    """Where there is no sixteenth part nothing is kept back."""
    made = places(limit, *(Guest(ME) for _ in range(limit - 1)))
    assert made.has_one(ME)
    made.add(Guest(ME))
    assert not made.has_one(OTHER)


def test_a_stranger_makes_room_over_tcp_alone():
    """The oldest that came over TCP and has shown no token; who came over the Unix socket drives nobody out."""
    guests = [Guest(ME), Guest(NOBODY, token=True), Guest(NOBODY), Guest(NOBODY)]
    made = places(4, *guests)
    assert not made.has_one(ME)
    assert made.has_one(NOBODY)
    assert ([guest.aborted for guest in guests], list(made)) == (
        [False, False, True, False],
        [guests[0], guests[1], guests[3]],
    )
    made.add(Guest(NOBODY, token=True))
    assert made.has_one(NOBODY)
    made.add(Guest(NOBODY, token=True))
    assert not made.has_one(NOBODY)


def test_one_uid_has_so_many_and_no_more():
    """`intake.max_connections_per_uid`, whatever is free; one that goes leaves its place; the refusal names the key."""
    made = places(64)
    made.per_uid = 10
    guests = [Guest(ME) for _ in range(10)]
    for guest in guests:
        assert made.has_one(ME)
        made.add(guest)
    assert not made.has_one(ME)
    assert "max_connections_per_uid = 10" in made.why_none(ME)
    assert made.has_one(OTHER)
    made.discard(guests[0])
    made.discard(guests[0])
    assert made.has_one(ME)
    assert "intake.max_connections = 64" in made.why_none(ME)


def test_over_tcp_the_limit_is_everybodys_together():
    """Nobody knows whose they are until they show a token: a stranger makes room also there."""
    made = places(64)
    made.per_uid = 2
    guests = [Guest(NOBODY, token=True), Guest(NOBODY)]
    for guest in guests:
        made.add(guest)
    assert made.has_one(NOBODY)
    assert [guest.aborted for guest in guests] == [False, True]
