"""Which lanes have something that still needs its references: what waits, and what is dead and may come back."""

from __future__ import annotations

from collections.abc import Container, Mapping

from agentd.spool.queue import Queue
from agentd.spool.segments import lane_hash


class Needed:
    """A container of (destination, lane) for one moment. What waits is looked up once it is asked for, and rather too much than too little."""

    def __init__(self, dead: Container[tuple[str, str]], queues: Mapping[str, Queue]) -> None:
        self._dead = dead
        self._queues = queues
        self._queued: dict[str, set[int] | None] = {}

    def __contains__(self, place: object) -> bool:
        if place in self._dead or not isinstance(place, tuple):
            return True
        name, lane = place
        if name not in self._queued:
            queue = self._queues.get(name)
            self._queued[name] = set() if queue is None else queue.index.hashes()
        held = self._queued[name]
        return held is None or lane_hash(lane) in held
