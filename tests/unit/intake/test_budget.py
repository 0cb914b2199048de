"""The memory that one user's messages take, however many connections he has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentd.intake.budget import Budget, Share

ME, OTHER = 1000, 1001


def halves(budget, *sizes):
    """Connections of one user that hold so much of a message each."""
    shares = [Share(budget, ME) for _ in sizes]
    for share, size in zip(shares, sizes, strict=True):
        budget.hold(share, size)
    return shares


def test_one_user_alone_may_move_twice_the_limit_and_half_beside_others():
    """On all his connections together: so that nobody's answer waits behind more than a commit or two of his."""
    budget = Budget(100)
    shares = [Share(budget, ME) for _ in range(300)]
    for share in shares[:200]:
        budget.add(share, 1)
    assert not budget.is_crowded(shares[0].purse)
    budget.add(shares[200], 1)
    assert budget.is_crowded(shares[0].purse)
    beside = Budget(100)
    mine, _ = Share(beside, ME), Share(beside, OTHER)
    beside.add(mine, 50)
    assert not beside.is_crowded(mine.purse)
    beside.add(mine, 1)
    assert beside.is_crowded(mine.purse)


def test_who_is_crowded_hears_once_below_half():
    """Then all that wait of his connections are called, and another user's are not."""
    budget, woken = Budget(100), []
    mine, his = Share(budget, ME), Share(budget, OTHER)
    budget.add(his, 80)
    budget.add(mine, 60)
    assert budget.is_crowded(mine.purse)
    budget.wait(mine, lambda: woken.append("mine"))
    budget.wait(his, lambda: woken.append("his"))
    budget.remove(mine, 20)
    assert woken == []
    budget.remove(mine, 20)
    assert woken == ["mine"]
    assert not budget.is_crowded(mine.purse)


def test_messages_that_wait_for_room_stop_none_of_the_users_others():
    """They don't move; what they take counts in memory alone."""
    budget = Budget(100, per_uid=1000)
    holder, other = Share(budget, ME), Share(budget, ME)
    budget.add(holder, 900, waits=True)
    assert holder.look()
    assert not other.look()
    assert not budget.is_crowded(other.purse)
    budget.add(other, 101, waits=True)
    assert budget.is_crowded(other.purse)


def test_above_his_limit_none_of_a_users_connections_is_read():
    """They are told at once, each, in the turn in which it is reached; another user's are read."""
    budget, halted = Budget(100, per_uid=1000), []
    shares = [Share(budget, ME, lambda n=n: halted.append(n)) for n in range(3)]
    his = Share(budget, OTHER, lambda: halted.append("his"))
    budget.hold(shares[0], 600)
    budget.hold(shares[1], 400)
    assert halted == []
    assert all(budget.may_read(share) for share in shares)
    budget.hold(shares[1], 401)
    assert halted == [0, 1, 2]
    assert [budget.may_read(share) for share in (*shares, his)] == [
        True,
        False,
        False,
        True,
    ]  # the first that began goes on


def test_the_first_that_began_gets_its_message_through_and_then_the_next():
    """However large they are together: none waits for ever."""
    budget, woken = Budget(10**6, per_uid=1000), []
    shares = halves(budget, 800, 700, 600)
    for number, share in enumerate(shares[1:], 1):
        budget.wait_to_read(share, lambda number=number: woken.append(number))
    budget.hold(shares[0], 5000)
    assert budget.may_read(shares[0])
    budget.add(shares[0], 5000)
    budget.hold(shares[0], 0)
    assert not any(budget.may_read(share) for share in shares)  # what is under way comes first
    budget.remove(shares[0], 5000)
    assert woken == [1]
    assert [budget.may_read(share) for share in shares] == [False, True, False]
    budget.hold(shares[1], 0)
    assert woken == [1, 2]


def test_a_message_that_begins_comes_behind_those_that_began_before():
    """A connection with one message after the other does not keep the first place."""
    budget = Budget(10**6, per_uid=1000)
    first, second = halves(budget, 800, 700)
    budget.hold(first, 900)
    budget.began(first)
    assert [budget.may_read(first), budget.may_read(second)] == [False, True]


def test_a_request_is_taken_alone_or_where_there_is_room():
    """Who can be told to come again is, unless he has nothing in memory at all."""
    budget = Budget(100, per_uid=1000)
    share = Share(budget, ME)
    assert budget.has_room(share, 5000)
    budget.add(share, 400, waits=True)
    assert budget.has_room(share, 600)
    assert not budget.has_room(share, 601)


def test_who_has_gone_is_forgotten_with_the_last_of_his():
    """Users that nobody remembers cost nothing."""
    budget = Budget(100)
    share = Share(budget, ME)
    budget.add(share, 10)
    budget.leave(share)
    assert repr(budget) == "<Budget 10 of 100 under way, 1 users>"
    budget.remove(share, 10)
    assert repr(budget) == "<Budget 0 of 100 under way, 0 users>"


@given(st.data())
def test_whoever_waits_is_woken_in_the_end(data):
    """Reads, submissions and answers in any order, by connections that keep to what they are told: all messages get through."""
    ready = []
    budget = Budget(100, per_uid=200, later=ready.append)
    links = [Link(budget, who, ready) for who in (ME, ME, ME, OTHER)]
    for link in links:
        link.left = data.draw(st.lists(st.integers(1, 400), max_size=5))
    for _ in range(2000):
        busy = [link for link in links if link.moves()]
        if not ready and not busy:
            break
        if ready and data.draw(st.booleans()):
            ready.pop(0)()
        elif busy:
            data.draw(st.sampled_from(busy)).step(data)
        else:
            ready.pop(0)()
        kept = sum(link.share.held + link.share.own for link in links if link.share.who == ME)
        assert kept <= 200 + 50 + 400
    assert [link.left for link in links] == [[]] * 4
    assert budget.total == budget.moving == 0


class Link:
    """A connection in small: reads up to 50 bytes at a time, submits whole messages, and waits where it has to."""

    def __init__(self, budget, who, ready):
        self.budget, self.ready = budget, ready
        self.share = Share(budget, who, self.govern)
        self.left, self.read, self.under_way, self.reading = [], 0, [], True

    def moves(self):
        return bool(self.under_way or (self.reading and self.left))

    def step(self, data):
        if self.under_way and (not (self.reading and self.left) or data.draw(st.booleans())):
            self.budget.remove(self.share, self.under_way.pop(0))
            self.pump()
            return
        self.read = min(self.left[0], self.read + 50)
        self.pump()

    def pump(self):
        if (
            self.left
            and self.read == self.left[0]
            and not self.share.look()
            and not self.budget.is_crowded(self.share.purse)
        ):
            size = self.left.pop(0)
            self.read = 0
            self.under_way.append(size)
            self.budget.add(self.share, size)
        self.govern()

    def govern(self):
        self.budget.hold(self.share, self.read)
        full = bool(self.left) and self.read == self.left[0]
        may = self.budget.may_read(self.share)
        self.reading = may and not full
        self.budget.wait(self.share, self.pump if full else None)
        self.budget.wait_to_read(self.share, None if may else self.govern)
