"""The memory that messages take: of one connection, of one user, of all. Sums in, decisions out; no I/O.

Two sums count for a user (a *purse*). What is **under way** has been submitted and is not on disk: the part of it that moves may
be twice `intake.max_pending_bytes`, and half of it while others are connected, less if there are many who send: so nobody's answer
waits behind more than a commit or two; messages that wait for room in a queue don't move, and keep none of the user's others from being submitted. What is
**kept** is that and whatever was read and not submitted, halves of messages above all: above `intake.max_pending_bytes_per_uid`
none of the user's connections is read. But one always may, the one whose message began first, while nothing is under way:
so a user with many large messages gets them through, one after the other. It is `intake.frame_timeout` that bounds its turn.

So a user costs at most `max_pending_bytes_per_uid`, one message and one read (256 KiB) beyond it, however many connections there are.
"""

from __future__ import annotations

from collections.abc import Callable

_ALONE = 2  # limits that one user may have under way on all his connections while nobody else is connected
_BESIDE = 2  # the part of the limit for each of several: 4 MiB, which is what one commit holds


class Purse:
    """What one user has in memory."""

    def __init__(self) -> None:
        self.own = 0  # under way
        self.moving = 0  # of that, what does not wait for room in a queue
        self.held = 0  # read, and not submitted
        self.sharers = 0  # connections with anything under way
        self.guests: dict[Share, None] = {}  # connections
        self.halted = False  # too much is kept: none is read until that is below half
        self.holders: dict[Share, None] = {}  # with anything held, whose message began first before the others
        self.waiting: dict[Share, Callable[[], None]] = {}  # for what is under way to be less
        self.unread: dict[Share, Callable[[], None]] = {}  # for what is kept to be less

    @property
    def kept(self) -> int:
        """All of it."""
        return self.own + self.held


class Budget:
    """The bytes of all connections together.

    One connection may have `limit` under way. When all together have more, each user may have its equal share of `limit`, and
    each of his connections an equal share of that: so a connection whose messages are held for a full queue keeps nobody
    else from sending.
    """

    def __init__(
        self, limit: int, per_uid: int = 2**62, later: Callable[[Callable[[], None]], object] = lambda wake: wake()
    ) -> None:
        """`later` calls what waits, after what happens now."""
        self.limit = limit
        self.per_uid = per_uid
        self.total = 0
        self.moving = 0
        self._later = later
        self._purses: dict[int, Purse] = {}
        self._crowded: dict[Purse, None] = {}  # with too much under way, until that is below half

    def __repr__(self) -> str:
        return f"<Budget {self.total} of {self.limit} under way, {len(self._purses)} users>"

    def enter(self, share: Share, who: int) -> Purse:
        """The purse of a user who has one connection more."""
        purse = self._purses.setdefault(who, Purse())
        purse.guests[share] = None
        return purse

    def leave(self, share: Share) -> None:
        """The connection is gone; what it has under way still counts until it is done."""
        self.hold(share, 0)
        self.wait(share, None)
        self.wait_to_read(share, None)
        share.purse.guests.pop(share, None)
        share.is_ours = False
        self._forget(share)

    def ceiling(self, purse: Purse, total: int) -> int:
        """What one connection may have under way while no more than `total` bytes are free use for all."""
        if self.total <= total:
            return self.limit
        return self.limit // max(1, self._users()) // max(1, purse.sharers)

    def add(self, share: Share, size: int, *, waits: bool = False) -> None:
        """A message is under way; `waits` for room, or is not ours to move."""
        purse = share.purse
        purse.sharers += share.own == 0
        share.own += size
        purse.own += size
        self.total += size
        if not waits:
            purse.moving += size
            self.moving += size
        self._halt(purse)

    def remove(self, share: Share, size: int, *, waits: bool = False) -> None:
        purse = share.purse
        share.own -= size
        purse.own -= size
        self.total -= size
        purse.sharers -= share.own == 0
        if not waits:
            purse.moving -= size
            self.moving -= size
        self._wake_senders()
        self._wake_readers(purse)
        self._forget(share)

    def hold(self, share: Share, size: int) -> None:
        """A connection has so many bytes read and not submitted."""
        purse, before = share.purse, share.held
        if size == before:
            return
        share.held = size
        purse.held += size - before
        if not size:
            purse.holders.pop(share, None)
        elif share not in purse.holders:
            purse.holders[share] = None
        if size < before:
            self._wake_readers(purse)
        self._halt(purse)

    def began(self, share: Share) -> None:
        """What it holds now is of another message: those that began before come first."""
        if share in share.purse.holders:
            del share.purse.holders[share]
            share.purse.holders[share] = None

    def may_read(self, share: Share) -> bool:
        """Whether more may be read of this connection."""
        purse = share.purse
        return purse.kept <= self.per_uid or (purse.own == 0 and next(iter(purse.holders), None) is share)

    def has_room(self, share: Share, size: int) -> bool:
        """Whether so many bytes more may be kept, for who can be told to come again."""
        return share.purse.kept == 0 or share.purse.kept + size <= self.per_uid

    def is_crowded(self, purse: Purse) -> bool:
        """Whether too much of the user's is under way for any more of it."""
        if purse not in self._crowded and self._exceeds(purse, 1):
            self._crowded[purse] = None
        return purse in self._crowded

    def wait(self, share: Share, wake: Callable[[], None] | None) -> None:
        """Call `wake` when there is less under way again; None takes that back."""
        if wake is not None:
            share.purse.waiting[share] = wake
        else:
            share.purse.waiting.pop(share, None)

    def wait_to_read(self, share: Share, wake: Callable[[], None] | None) -> None:
        """Call `wake` when it may be that `may_read`; None takes that back."""
        if wake is not None:
            share.purse.unread[share] = wake
        else:
            share.purse.unread.pop(share, None)

    def _exceeds(self, purse: Purse, part: int) -> bool:
        if len(self._purses) <= 1:
            limit = _ALONE * self.limit
        else:
            limit = self.limit // (_BESIDE if self.moving <= self.limit else max(_BESIDE, self._users()))
        return purse.moving > limit // part or purse.own > self.per_uid // part

    def _users(self) -> int:
        return sum(purse.own > 0 for purse in self._purses.values())

    def _wake_senders(self) -> None:
        eased = [purse for purse in self._crowded if not self._exceeds(purse, 2)]
        for purse in eased:
            del self._crowded[purse]
        for purse in self._purses.values() if self.total <= self.limit // 2 else eased:
            self._call(purse.waiting)

    def _halt(self, purse: Purse) -> None:
        """None of the user's connections is read any more, from now on: each might bring another 256 KiB in this very turn."""
        if purse.kept > self.per_uid and not purse.halted:
            purse.halted = True
            for share in list(purse.guests):
                share.halt()

    def _wake_readers(self, purse: Purse) -> None:
        if purse.kept <= self.per_uid // 2:
            purse.halted = False
            self._call(purse.unread)
        elif purse.unread and purse.own == 0:
            first = next(iter(purse.holders), None)
            wake = None if first is None else purse.unread.pop(first, None)
            if wake is not None:
                self._later(wake)

    def _call(self, waiting: dict[Share, Callable[[], None]]) -> None:
        woken = list(waiting.values())
        waiting.clear()
        for wake in woken:
            self._later(wake)

    def _forget(self, share: Share) -> None:
        purse = share.purse
        if not purse.guests and not purse.kept:
            self._crowded.pop(purse, None)
            if self._purses.get(share.who) is purse:
                del self._purses[share.who]


class Share:
    """One connection's part of the budget: full above the limit, and then until it is below half of it."""

    def __init__(self, budget: Budget, who: int = 0, halt: Callable[[], None] = lambda: None) -> None:
        """`who` is the user; `halt` has the connection look whether it may be read."""
        self.own = 0
        self.held = 0
        self.full = False
        self.who = who
        self.halt = halt
        self.is_ours = True  # until its connection has left
        self.purse = budget.enter(self, who)
        self._budget = budget

    def look(self) -> bool:
        """Whether this connection has to wait, as things are now."""
        budget = self._budget
        if self.full:
            self.full = self.own > budget.ceiling(self.purse, budget.limit // 2) // 2
        else:
            self.full = self.own > budget.ceiling(self.purse, budget.limit)
        return self.full
