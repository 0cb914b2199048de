"""Telling runs what they lost: an event `agentd.lost`, level `warn`, once for each gap and before the run's end where that is to come.

A notice is an ordinary record of agentd's own, in the name of whose records were shed. It is placed
- before the run's end when that is admitted (`before_end`, which intake asks),
- when the destination has room again and all that waits of the run is in memory (`tick`),
- before an end that waits already, when that comes to the head of its lane (`tell_first`, which delivery asks): the end, and what was
  admitted after it, take a later place behind the notice. That much may exceed the quota: it is bounded by the lanes that are looked at;
- after an end that was sealed or delivered before anybody knew (`tick`): the platform may refuse it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agentd.outcomes import Cause
from agentd.queued import DEAD, Entry, Source
from agentd.records import INTRODUCES, RUN_ENDS, Event, LossClass
from agentd.spool.lost import Gap
from agentd.spool.spool import Spool
from agentd.units import rfc3339
from agentd.wire import encode

log = logging.getLogger("agentd.spool")

TYPE = "agentd.lost"
ORIGIN = "agentd"
_MOST_A_TICK = 500  # runs that are looked at: about 15 ms of the event loop, where all of them are told
_BYTES = 600  # of a notice beside its run's and agent's names, at most


class Notices:
    """Of those destinations that take events."""

    def __init__(
        self, spool: Spool, destinations: Iterable[str], new_id: Callable[[], bytes], now_us: Callable[[], int]
    ) -> None:
        """What is shed elsewhere is counted and told nobody."""
        self._spool = spool
        self.follow(destinations)
        self._losses = spool.ledger.losses
        self._new_id = new_id
        self._now_us = now_us
        self._round: dict[str, deque[str]] = {}  # whose turn it is, by destination

    def follow(self, destinations: Iterable[str]) -> None:
        """Of these from now on."""
        self._spool.ledger.tells = frozenset(destinations)

    # -- intake's side -----------------------------------------------------------------------------------------------

    def size_before_end(self, destination: str, lane: str) -> int:
        """How many bytes go before the run's end; 0: nothing is to be told."""
        return self._size(destination, lane) if self._owes(destination, lane) else 0

    def before_end(self, destination: str, lane: str) -> Entry | None:
        """What has to be stored right before the run's end, and with it."""
        return self._notice(destination, lane) if self._owes(destination, lane) else None

    def _owes(self, destination: str, lane: str) -> bool:
        return destination in self._spool.ledger.tells and self._losses.find(destination, lane) is not None

    # -- delivery's side ---------------------------------------------------------------------------------------------

    def tell_first(self, destination: str, lane: str) -> bool:
        """An end is at the head of its lane. True: something goes before it, and the lane will be touched."""
        spool = self._spool
        if destination not in spool.ledger.tells:
            return False
        if spool.may_lose(destination, lane):
            return True  # what was shed just now is being counted
        if self._losses.find(destination, lane) is None or not spool.has_disk_for(2 * self._size(destination, lane)):
            return False
        following = list(spool.queues[destination].peek(lane))
        if not self._may_move(destination, lane, following):
            return False
        spool.append({destination: [self._notice(destination, lane)]}).add_done_callback(_look_at)
        _ = spool.move_back(destination, following)  # tried until it is on disk
        return True

    def _may_move(self, destination: str, lane: str, following: Sequence[Entry]) -> bool:
        """Whether the platform takes the run, these are all that there is behind the end, and nobody knows one by its number."""
        spool = self._spool
        ref = spool.refs.get(destination, "run", lane.partition(":")[2])
        if (ref is not None and ref.state == DEAD) or any(entry.kind in INTRODUCES for entry in following):
            return False
        return not spool.queues[destination].has_more(lane)

    # -- by and by ---------------------------------------------------------------------------------------------------

    def tick(self, age_us: Callable[[int], int], keep_us: int) -> None:
        """Tell whoever can be told by now, and forget those whose loss is so old that their run is forgotten too."""
        for name in self._losses.destinations():
            turn = self._round.setdefault(name, deque())
            if not turn:
                turn.extend(self._losses.lanes(name))
            chosen = [turn.popleft() for _ in range(min(len(turn), _MOST_A_TICK))]
            kept_us = keep_us + (self._spool.queues[name].oldest_us(age_us) or 0)  # as its reference is
            self._forget(name, [lane for lane in chosen if self._is_over(name, lane, age_us, kept_us)])
            self._tell(name, chosen)

    def _is_over(self, name: str, lane: str, age_us: Callable[[int], int], kept_us: int) -> bool:
        """Whether the run is forgotten, or was never taken by the platform."""
        gap = self._losses.find(name, lane)
        ref = self._spool.refs.get(name, "run", lane.partition(":")[2])
        return gap is not None and (age_us(gap.last_us) > kept_us or (ref is not None and ref.state == DEAD))

    def _forget(self, name: str, lanes: Sequence[str]) -> None:
        for lane in lanes:
            self._losses.forget(name, lane)
            self._spool.wake()

    def _tell(self, name: str, lanes: Sequence[str]) -> None:
        ending = self._spool.ending(name)
        notices: list[Entry] = []
        size = 0
        for lane in lanes:
            fits = self._owes(name, lane) and self._has_room(name, size + self._size(name, lane))
            if fits and lane not in ending and self._is_open(name, lane):
                size += self._size(name, lane)
                notices.append(self._notice(name, lane))
        if notices:
            self._spool.append({name: notices}).add_done_callback(_look_at)
            log.warning(
                "%s: %d runs have lost records to a full queue, and are told", name, len(notices),
                extra={"action": "told", "destination": name},
            )  # fmt: skip

    def _has_room(self, name: str, size: int) -> bool:
        """Whether its queue may take so much now: up to half of its quota while it holds anything, and nothing is shed for it."""
        spool, queue = self._spool, self._spool.queues[name]
        if spool.disk_full or queue.index.cold is not None or not spool.fits(name, size):
            return False
        return not queue.live or 2 * (queue.stored_bytes + size) <= spool.limits.quotas.get(name, 0)

    def _is_open(self, name: str, lane: str) -> bool:
        """Whether no end of it waits: before that one it is told when its turn comes."""
        queue = self._spool.queues[name]
        return not queue.has_more(lane) and all(entry.kind not in RUN_ENDS for entry in queue.peek(lane))

    def _size(self, destination: str, lane: str) -> int:
        gap = self._losses.find(destination, lane)
        agent = "" if gap is None else gap.agent
        return _BYTES + 6 * (len(lane) + len(agent))  # a character of a name takes six bytes at most, as \u0000

    # -- the event ---------------------------------------------------------------------------------------------------

    def _notice(self, destination: str, lane: str) -> Entry:
        gap = self._losses.find(destination, lane)
        assert gap is not None  # noqa: S101 - the callers have looked
        source = Source(gap.agent, gap.uid, 0, ORIGIN)
        body = encode(_event(lane.partition(":")[2], gap))
        number = self._spool.number(destination)
        entry = Entry(number, self._new_id(), lane, "event", LossClass.KEEP, source, self._now_us(), body)
        self._losses.tell(destination, lane, entry.record_id)
        return entry


def _event(run_id: str, gap: Gap) -> Event:
    payload = {
        "records": gap.records,
        "cause": Cause.QUEUE_FULL,
        "kinds": gap.kinds,
        "levels": gap.levels,
        "first_at": rfc3339(gap.first_us / 1e6),
        "last_at": rfc3339(gap.last_us / 1e6),
    }
    return Event(
        run_id=run_id, type=TYPE, level="warn", payload=msgspec.Raw(encode(payload)), agent_id=gap.agent or None
    )


def _look_at(done: asyncio.Future[None]) -> None:
    """Without room on the disk they come again: the gap is there still."""
    if not done.cancelled():
        done.exception()
