"""Dropping a queue: all that waits for a destination is taken out for good, counted as purged, cause `dropped`.

Evidence leaves an entry a record in the journal, everything else one for each segment and kind, all with who and why. The newest
segments go first, some MB in a commit, and last, together with the seals, those that sealed batches have records in: a daemon that
dies in between finds a queue that is shorter at its end and otherwise as it was. What is admitted meanwhile stays.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from agentd.ageing import Clocks
from agentd.errors import SpoolDamaged, StateError
from agentd.outcomes import Cause, State
from agentd.queued import Entry, Seal
from agentd.records import EVIDENCE, INTRODUCES
from agentd.spool.directory import Segment
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.loader import read_segment
from agentd.spool.mending import bury_introducers
from agentd.spool.recovery import Sync, open_spool
from agentd.spool.segments import lane_hash
from agentd.spool.spool import Spool
from agentd.spool.store import Rows

log = logging.getLogger("agentd.spool")

_STEP_BYTES = 2 * 2**20  # of segments that have to be read, in one commit: about 20 ms of the event loop's time
_LAST_BYTES = 16 * 2**20  # of those that belong together with the seals
_UNBOUNDED = 2**62
_WHOLE = 256  # segments in one commit that need no reading


class Dropped(Struct):
    """What was taken out. `tried` is how many records' batches had been sent before: the platform may have them."""

    records: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    tried: int = 0


class Deletion(NamedTuple):
    """Who takes it out, and why."""

    by: int
    reason: str


async def drop(spool: Spool, name: str, who: Deletion) -> Dropped:
    """Take out what is queued for `name` by now. Whoever delivers to it has been told to start nothing meanwhile."""
    through = spool.meta.next_number.get(name, 1) - 1
    await spool.barrier()  # all of that is in the queue now
    drain = _Drain(spool, name, who, through)
    for sealed in (False, True):
        while left := drain.left(sealed=sealed):
            for step in drain.steps(left, _LAST_BYTES if sealed else _STEP_BYTES):
                await drain.take(step, and_seals=sealed)
    await drain.take((), and_seals=True)
    spool.tell_named()
    dropped = drain.dropped
    if dropped.records:
        log.warning(
            "%s: %d records dropped by uid %d: %s", name, dropped.records, who.by, who.reason,
            extra={"action": "dropped", "destination": name},
        )  # fmt: skip
    return dropped


class _Drain:
    """One queue on its way out."""

    def __init__(self, spool: Spool, name: str, who: Deletion, through: int) -> None:
        """`through` is the highest number that goes."""
        self._spool = spool
        self._name = name
        self._who = who
        self._through = through
        self._done: set[int] = set()  # segments of which only newer records are left
        self.dropped = Dropped(tried=sum(seal.count for seal in self._seals() if seal.tried))

    def _seals(self) -> list[Seal]:
        seals = self._spool.seals
        of_queue = [seal for lane in seals.lanes(self._name) for seal in seals.of_lane(self._name, lane)]
        return [seal for seal in of_queue if seal.first <= self._through]

    def left(self, *, sealed: bool) -> list[Segment]:
        """The segments that are still to go, the newest first: those that hold sealed records, or the others."""
        bounds: dict[int, tuple[int, int]] = {}
        for seal in self._seals():
            hashed = lane_hash(seal.lane)
            first, last = bounds.get(hashed, (seal.first, seal.last))
            bounds[hashed] = min(first, seal.first), max(last, seal.last)
        found = [
            segment
            for segment in self._spool.queues[self._name].index
            if segment.first <= self._through and segment.key not in self._done and _may_hold(segment, bounds) is sealed
        ]
        return sorted(found, key=lambda segment: -segment.first)

    def steps(self, left: Sequence[Segment], most_bytes: int) -> Iterator[list[Segment]]:
        """What goes with one commit each."""
        step: list[Segment] = []
        size = 0
        for segment in left:
            cost = segment.size if self._is_read(segment) else 0
            if step and (size + cost > most_bytes or len(step) == _WHOLE):
                yield step
                step, size = [], 0
            step.append(segment)
            size += cost
        if step:
            yield step

    def _is_read(self, segment: Segment) -> bool:
        """Whether its records have to be known one by one."""
        evidence = any(count and kind in EVIDENCE for kind, count in segment.kinds.items())
        return segment.last > self._through or evidence

    async def take(self, step: Sequence[Segment], *, and_seals: bool) -> None:
        """Take out what is left of these segments, with one commit; what was rewritten meanwhile is met again under another key."""
        wanted = [segment.key for segment in step if self._is_read(segment)]
        rows = await self._spool.run_in_thread(_read, wanted)
        here = [segment for segment in step if not segment.gone]
        whole = [segment for segment in here if segment.key not in rows]
        single = [entry for segment in here for entry in self._live(segment, rows.get(segment.key, ()))]
        ended = self._spool.take_out(self._name, whole, single)
        for segment in whole:
            self._book_segment(segment)
        for segment in here:
            self._done.add(segment.key)
            self._book_records(segment, [entry for entry in ended if entry.segment == segment.key])
        for seal in self._seals() if and_seals else ():
            self._spool.retire(seal)
        await self._spool.barrier()

    def _live(self, segment: Segment, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.number <= self._through and not segment.has_ended(entry.index)]

    def _book_segment(self, segment: Segment) -> None:
        by, reason = self._who
        self._spool.ledger.lose(self._name, segment, State.PURGED, Cause.DROPPED, by=by, reason=reason)
        if self._is_read(segment):  # it could not be
            bury_introducers(self._spool.ledger, self._name, segment)
        self._count(segment.kinds)

    def _book_records(self, segment: Segment, entries: Sequence[Entry]) -> None:
        """Evidence one by one, the others by kind, as those of a whole segment; what they would have introduced is dead."""
        spool, name, now = self._spool, self._name, self._spool.ledger.now_us()
        by, reason = self._who
        others: Counter[str] = Counter()
        for entry in entries:
            spool.books.end(name, entry.kind, State.PURGED, Cause.DROPPED)
            if entry.kind in EVIDENCE:
                spool.journal.note(entry, State.PURGED, name, now, cause=str(Cause.DROPPED), by=by, reason=reason)
            else:
                others[entry.kind] += 1
            if entry.kind in INTRODUCES:
                spool.refs.bury(name, entry.number)
        for kind, count in others.items():
            spool.journal.note_lost(
                name, kind, count, state=State.PURGED, numbers=f"{segment.first}-{segment.last}",
                admitted_us=segment.admitted_us, at_us=now, cause=str(Cause.DROPPED), by=by, reason=reason,
            )  # fmt: skip
        self._count(Counter(entry.kind for entry in entries))

    def _count(self, kinds: Mapping[str, int]) -> None:
        self.dropped.records += sum(kinds.values())
        self.dropped.kinds.update({kind: count for kind, count in kinds.items() if count})


def _may_hold(segment: Segment, bounds: Mapping[int, tuple[int, int]]) -> bool:
    """Whether records of a sealed batch may be in it; `bounds` says for each lane between which numbers there are any."""
    hashes = bounds if segment.hashes is None else [hashed for hashed in segment.hashes if hashed in bounds]
    return any(bounds[hashed][0] <= segment.last and segment.first <= bounds[hashed][1] for hashed in hashes)


def _read(store: Rows, keys: Sequence[int]) -> dict[int, list[Entry]]:
    """The records of these rows; one that is damaged or gone is left out, and goes whole."""
    found = {}
    for key in keys:
        with contextlib.suppress(SpoolDamaged):
            found[key] = read_segment(store, key)
    return found


async def drop_at_rest(directory: Path, name: str, who: Deletion, *, sync: Sync, journal: Journal) -> Dropped:
    """The same for a daemon that does not run, under its lock. Nothing is said of what the queue belongs to: it stays what it was.

    Raises StateError, also where there is no such queue; AlreadyRunning.
    """
    now_us = Clocks().now_us
    limits = Limits({}, _UNBOUNDED, _UNBOUNDED, 1, _UNBOUNDED, _UNBOUNDED)  # reads nothing that it does not have to
    spool = await open_spool(directory, sync=sync, limits=limits, identities={}, journal=journal, now_us=now_us)
    try:
        _ = spool.start()  # `close` waits for it
        if name not in spool.queues:
            raise StateError(f"there is no queue {name!r} in {directory}; there are {', '.join(sorted(spool.queues))}")
        return await drop(spool, name, who)
    finally:
        await spool.close()
