"""One destination's side of the spool, as delivery wants it (agentd.delivery.ports.Outbox)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from agentd.outcomes import Learned
from agentd.queued import Death, Entry, Ref, Seal
from agentd.spool.notices import Notices
from agentd.spool.spool import Spool


class SpoolOutbox:
    """Forwards to the spool and the destination's queue."""

    def __init__(
        self,
        spool: Spool,
        name: str,
        notices: Notices | None = None,
        ages: Callable[[], Callable[[int], int]] | None = None,
    ) -> None:
        """`ages` (agentd.ageing) judges how long a record took to be delivered; without it nobody asks."""
        self.name = name
        self._spool = spool
        self._notices = notices
        self._ages = ages
        self._queue = spool.queues[name]

    @property
    def live(self) -> int:
        return self._queue.live

    @property
    def highest(self) -> int:
        return self._spool.meta.next_number.get(self.name, 1) - 1

    def peek(self, lane: str) -> Iterator[Entry]:
        return self._queue.peek(lane)

    def members(self, seal: Seal) -> list[Entry] | None:
        return self._queue.members(seal.lane, seal.first, seal.last, seal.exceptions)

    def find(self, lane: str, number: int) -> Entry | None:
        return self._queue.find(lane, number)

    def bring(self, lane: str, number: int) -> None:
        self._queue.bring(lane, number)

    def is_urgent(self, lane: str) -> bool:
        found = self._queue.lanes.get(lane)
        return found is not None and found.is_urgent

    def seals(self, lane: str) -> Sequence[Seal]:
        return self._spool.seals.of_lane(self.name, lane)

    def sealed_lanes(self) -> Sequence[str]:
        return self._spool.seals.lanes(self.name)

    def block(self, lane: str) -> None:
        self._queue.block(lane)

    def unblock(self, lane: str) -> None:
        self._queue.unblock(lane)

    def fill(self) -> None:
        if self._queue.wants_loading():
            self._spool.fill(self.name)

    def reference(self, kind: str, local_id: str) -> Ref | None:
        return self._spool.refs.find(self.name, kind, local_id)

    def seal(self, seal: Seal) -> asyncio.Future[None]:
        return self._spool.seal(seal)

    def settle(
        self, seal: Seal, entries: Sequence[Entry], learned: Iterable[Learned], tries: int = 1
    ) -> asyncio.Future[None]:
        if self._ages is not None and entries:
            self._spool.timings.delivered(self.name, entries, self._ages())
        return self._spool.settle(seal, entries, learned, tries)

    def bury(self, seal: Seal | None, entries: Sequence[Entry], death: Death) -> asyncio.Future[None]:
        return self._spool.bury(seal, self.name, entries, death)

    def discard_stale(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        return self._spool.discard_stale(self.name, entries)

    def split(self, seal: Seal, parts: Sequence[Seal]) -> asyncio.Future[None]:
        return self._spool.split(seal, parts)

    def tell_first(self, lane: str) -> bool:
        return self._notices is not None and self._notices.tell_first(self.name, lane)

    def dead_room(self, size: int) -> bool:
        return self._spool.dead_room(size)
