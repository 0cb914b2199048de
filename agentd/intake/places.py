"""Who gets a place among `intake.max_connections`. No I/O.

Nobody may lock the others out by holding connections: one uid has at most `intake.max_connections_per_uid`, the last places are for
uids that hold few, and on TCP, where anybody may connect, who has shown no token yet makes room for who comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from agentd.intake import Peer

_KEPT = 16  # one place in 16 is kept for uids that hold few
_FEW = 4  # one in 4 of these places is few


class Guest(Protocol):
    """A connection that is open."""

    @property
    def uid(self) -> int:
        """Whose it is; -1 for all that came over TCP."""
        ...

    @property
    def is_stranger(self) -> bool:
        """Whether it came over TCP and has shown no token so far."""
        ...

    def abort(self) -> None: ...


G = TypeVar("G", bound=Guest)


class Places(Generic[G]):
    """The open connections."""

    def __init__(self, limit: int, per_uid: int | None = None) -> None:
        self.limit = limit
        self.per_uid = limit if per_uid is None else per_uid
        self._held: Counter[int] = Counter()  # by uid
        self._guests: dict[G, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._guests)

    def __iter__(self) -> Iterator[G]:
        return iter(self._guests)

    def add(self, guest: G) -> None:
        if guest not in self._guests:
            self._held[guest.uid] += 1
        self._guests[guest] = None

    def discard(self, guest: G) -> None:
        if guest in self._guests:
            del self._guests[guest]
            self._held[guest.uid] -= 1
            if not self._held[guest.uid]:
                del self._held[guest.uid]

    def has_one(self, peer: Peer) -> bool:
        """Whether one more may come in. Ends a connection where that is what it takes."""
        kept = self.limit // _KEPT
        free = self.limit - len(self)
        held = self._held[peer.uid]
        if held < self.per_uid and (free > kept or (free > 0 and held < max(kept // _FEW, 1))):
            return True
        stranger = None if peer.local else next((guest for guest in self._guests if guest.is_stranger), None)
        if stranger is None:
            return False
        self.discard(stranger)
        stranger.abort()
        return True

    def why_none(self, peer: Peer) -> str:
        """Why there is none for one more, for who is turned away."""
        if self._held[peer.uid] >= self.per_uid:
            return f"too many connections of one user (intake.max_connections_per_uid = {self.per_uid})"
        return f"too many connections (intake.max_connections = {self.limit})"
