"""Looking into the queues of a daemon that does not run: the same documents from its state folder, only read.

Whoever may read the folder sees all of it.
"""

from __future__ import annotations

from typing import Any

from agentd.control import queue_documents as documents
from agentd.control.queue import RECORD_BYTES, disk_figures, wanted_of, wanted_receipts_of
from agentd.intake.queues import Asked
from agentd.sections import Config
from agentd.spool.census import Sort, census, oldest
from agentd.spool.look import Look
from agentd.spool.receipts import receipts

_HASHES = 2_000_000  # lanes are not counted in a queue whose directories hold more than this


class QueueAtRest:
    """What a look found. `config` tells quotas and platforms; queues that it does not name are shown all the same."""

    def __init__(self, look: Look, now_us: int, config: Config) -> None:
        self._look = look
        self._now_us = now_us
        self._config = config

    def _age_us(self, stamp_us: int) -> int:
        return max(0, self._now_us - stamp_us)

    def names(self) -> list[str]:
        return sorted(self._look.ledger.queues)

    def stats(self, destination: str | None) -> dict[str, Any]:
        shown = [name for name in self.names() if destination in (None, name)]
        return documents.stats_document(
            {name: self._destination(name) for name in shown},
            at_us=self._now_us,
            running=False,
            max_bytes=int(self._config.spool.max_bytes),
            **disk_figures(self._look.ledger),
        )

    def _destination(self, name: str) -> dict[str, Any]:
        ledger = self._look.ledger
        configured = self._config.destinations.get(name)
        quota = self._config.quota_of(name) if configured else 0
        return {
            "platform": configured.platform if configured else None,
            "state": "stopped" if configured else "removed",
            "reason": None if configured else "not in the configuration; its queue is kept",
            "retry_in_s": None,
            **documents.destination_document(ledger, name, self._age_us, None, quota),
            "lanes": {"known": self._lanes_of(name), "waits": {}, "parked": 0},
            "window_bytes": 0,
            "window_max_bytes": 0,
        }

    def _lanes_of(self, name: str) -> int | None:
        """How many lanes there are at most: of one whose records have ended a segment may still tell."""
        hashes = [segment.hashes for segment in self._look.ledger.queues[name].index]
        if any(of_segment is None for of_segment in hashes) or sum(len(each or ()) for each in hashes) > _HASHES:
            return None
        return len({hashed for of_segment in hashes for hashed in of_segment or ()})

    def lanes(self, asked: Asked) -> dict[str, Any]:
        ledger, store = self._look
        found = census(store, wanted_of(asked, self._age_us, None), Sort(asked.sort), asked.limit)
        lanes = [
            documents.lane_document(
                lane,
                self._age_us,
                documents.waits_at_rest(ledger, lane.destination, lane.lane, lane.head.kind),
                parked=False,
                sealed=len(ledger.seals.of_lane(lane.destination, lane.lane)),
            )
            for lane in found.lanes
        ]
        return documents.lanes_document(found, lanes, {name: queue.live for name, queue in ledger.queues.items()})

    def records(self, asked: Asked) -> dict[str, Any]:
        found = oldest(self._look.store, wanted_of(asked, self._age_us, None), asked.limit, RECORD_BYTES)
        shown = [documents.record_document(name, entry, self._age_us, whole=True) for name, entry in found.entries]
        return documents.records_document(found, shown)

    def receipts(self, asked: Asked) -> dict[str, Any]:
        ledger, store = self._look
        wanted = wanted_receipts_of(asked, self._age_us, None)
        return documents.receipts_document(receipts(store, ledger.journal.rows, wanted, asked.limit))
