"""Records as they come: who listens, whose records he may see, and the newest of those that are queued."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentd.ageing import Clocks
from agentd.control.queue import QueueControl
from agentd.intake import Grant, Peer
from agentd.intake.tailing import Copies, Sees, Tails, Wish, record_line
from agentd.queued import Entry
from agentd.spool.census import Wanted
from agentd.spool.latest import latest
from agentd.spool.spool import Spool


class TailControl:
    """See `agentd.intake.tail.Overheard`."""

    def __init__(self, spool: Spool, queues: QueueControl, clocks: Clocks) -> None:
        self.tails = Tails(self._overhear)
        self._spool = spool
        self._queues = queues
        self._clocks = clocks

    def _overhear(self, show: Callable[[Copies], None] | None) -> None:
        self._spool.ledger.overhear(show)

    def sees(self, viewer: Peer, grant: Grant) -> Sees:
        return self._queues.own(viewer, grant)

    async def last(self, wish: Wish, count: int, sees: Sees | None) -> tuple[Sequence[bytes], frozenset[bytes]]:
        kind = wish.kinds[0] if len(wish.kinds) == 1 else None
        wanted = Wanted(self._clocks.ages(), wish.destination, None, None, kind)

        def meant(name: str, entry: Entry) -> bool:
            at = wish.destination in (None, name)
            return at and (sees is None or sees(name, entry.source)) and wish.wants(entry)

        copies = count * max(1, len(self._queues.names()))  # a record may wait at each of them, and counts once
        found = await self._queues.read(lambda rows, stop: latest(rows, wanted, meant, copies, stop=stop))
        records: dict[bytes, tuple[list[str], Entry]] = {}
        for name, entry in found:
            records.setdefault(entry.record_id, ([], entry))[0].append(name)
        newest = list(records.values())[-count:]
        return [record_line(names, entry) for names, entry in newest], frozenset(records)
