"""One destination's side of the spool, as delivery sees it; the composition root fills it. Siblings don't meet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from agentd.outcomes import Learned
from agentd.queued import Death, Entry, Ref, Seal


class Lookup(Protocol):
    """What has to be known to make a batch: the lane's records, and the ids that they refer to."""

    def peek(self, lane: str) -> Iterator[Entry]:
        """The lane's records that may be taken now, in order."""
        ...

    def find(self, lane: str, number: int) -> Entry | None:
        """One record of a lane, if it is in memory."""
        ...

    def bring(self, lane: str, number: int) -> None:
        """Have the lane read up to this record, which goes before what is in front of it."""
        ...

    def reference(self, kind: str, local_id: str) -> Ref | None: ...


class Outbox(Lookup, Protocol):
    """Records of one destination that have not ended. Futures are done when the change is on disk."""

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> int:
        """How many records have not ended."""
        ...

    @property
    def highest(self) -> int:
        """The highest number that was given."""
        ...

    def members(self, seal: Seal) -> list[Entry] | None:
        """A sealed batch's records that have not ended; None while they are not all in memory."""
        ...

    def is_urgent(self, lane: str) -> bool:
        """Whether the lane's part in memory holds something urgent (agentd.records.URGENT)."""
        ...

    def seals(self, lane: str) -> Sequence[Seal]:
        """The lane's sealed batches, the first to be sent first."""
        ...

    def sealed_lanes(self) -> Sequence[str]: ...

    def block(self, lane: str) -> None:
        """The lane can't send now: its records may leave memory."""
        ...

    def unblock(self, lane: str) -> None: ...

    def fill(self) -> None:
        """See to it that more is read from disk where there is room."""
        ...

    def seal(self, seal: Seal) -> asyncio.Future[None]: ...

    def settle(
        self, seal: Seal, entries: Sequence[Entry], learned: Iterable[Learned], tries: int = 1
    ) -> asyncio.Future[None]:
        """The platform has the batch, after `tries` requests."""
        ...

    def bury(self, seal: Seal | None, entries: Sequence[Entry], death: Death) -> asyncio.Future[None]: ...

    def discard_stale(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """A newer record has taken their place: they end unsent, as shed."""
        ...

    def split(self, seal: Seal, parts: Sequence[Seal]) -> asyncio.Future[None]: ...

    def tell_first(self, lane: str) -> bool:
        """A run's end is at the head of its lane, unsealed: whether something has to go before it. The lane is then touched later."""
        ...

    def dead_room(self, size: int) -> bool:
        """Whether the dead letters have room for `size` more bytes."""
        ...
