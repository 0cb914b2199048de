"""Rewriting: rows that are mostly ended records, and rows too small to be worth their place in memory, become few full ones.

A lane that can't send keeps a few records of each segment alive, so that the disk fills with what has been delivered; a
destination that is down while records trickle in gets a segment per record, each with a directory in memory. `choose` finds
a run of neighbours of one loss class and user, `rewrite` puts their live records into new rows and deletes the old ones in one
transaction, and `Compactor` takes that over into the queue. It runs between two commits, so that what ended meanwhile is
either in the rows that are read or in memory, and never in a commit behind its back. A crash leaves the old rows or the
new ones. Numbers, seals and order are not touched.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Seal
from agentd.records import LossClass
from agentd.spool import segments
from agentd.spool.committer import Committer
from agentd.spool.directory import Segment, decode_bitmap
from agentd.spool.ledger import Ledger
from agentd.spool.lost import tally_entries
from agentd.spool.queue import Moved, Queue
from agentd.spool.storage import Storage
from agentd.spool.store import DiskFull, Put, Rows, key_of
from agentd.spool.tables import Meta, Table, encode_meta, ended_key

log = logging.getLogger("agentd.spool")

SLACK = 1.5  # stored bytes to live ones above which the emptiest segments are rewritten
WORTH_BYTES = 2**20  # what is wasted in all below that: a short queue is soon empty by itself
TINY_BYTES = 64 * 1024
MANY_TINY = 64  # of them in a row are merged into at most nine
_RUN_LIVE_BYTES = 4 * 2**20  # one run writes no more than a large commit does,
_RUN_BYTES = 16 * 2**20  # and reads no more than about 50 ms worth


def choose(parts: Iterable[Sequence[Segment]], avoid: Container[int] = ()) -> list[Segment]:
    """The run of segments to rewrite now, empty for none. A run never crosses from one part to another."""
    by_kind: dict[tuple[int, LossClass, int | None], list[Segment]] = {}
    for place, part in enumerate(parts):
        for segment in part:
            if segment.key not in avoid:
                by_kind.setdefault((place, segment.loss, segment.uid), []).append(segment)
    lists = list(by_kind.values())
    live = sum(segment.live_bytes for of_class in lists for segment in of_class)
    waste = sum(segment.size for of_class in lists for segment in of_class) - live
    if waste > (SLACK - 1) * live and waste >= WORTH_BYTES:
        empty = [run for of_class in lists for run in _runs(of_class, _is_empty)]
        return max(empty, key=lambda run: sum(s.size - s.live_bytes for s in run), default=[])
    tiny = [run for of_class in lists for run in _runs(of_class, _is_tiny)]
    return max((run for run in tiny if len(run) >= MANY_TINY), key=len, default=[])


def _is_empty(segment: Segment) -> bool:
    return segment.live_bytes * SLACK < segment.size


def _is_tiny(segment: Segment) -> bool:
    return segment.live_bytes < TINY_BYTES


def _runs(of_class: Sequence[Segment], fits: Callable[[Segment], bool]) -> list[list[Segment]]:
    """Neighbours that fit, as many together as one run may take."""
    found: list[list[Segment]] = [[]]
    live = size = 0
    for segment in of_class:
        full = live + segment.live_bytes > _RUN_LIVE_BYTES or size + segment.size > _RUN_BYTES
        if not fits(segment) or (full and found[-1]):
            found.append([])
            live = size = 0
        if fits(segment):
            found[-1].append(segment)
            live += segment.live_bytes
            size += segment.size
    return [run for run in found if run]


class Rewritten(NamedTuple):
    """New segments with their records, and where each record was."""

    made: list[tuple[Segment, list[Entry]]]
    moves: dict[Moved, Moved]  # old place → new place


class _Damaged(Exception):  # noqa: N818 - carries which row it was
    def __init__(self, key: int, error: SpoolDamaged) -> None:
        super().__init__(str(error))
        self.key = key


def rewrite(store: Rows, name: str, keys: Sequence[int], meta: Meta) -> Rewritten:
    """Put what is live on disk of these segments into new ones. Raises DiskFull, sqlite3.Error, _Damaged."""
    live: list[Entry] = []
    for key in keys:
        try:
            live += _live(store, key)
        except SpoolDamaged as error:
            raise _Damaged(key, error) from error
    live.sort(key=lambda entry: entry.number)
    result = Rewritten([], {})
    puts: list[Put] = []
    row = meta.next_segment
    for part in segments.split(live):
        encoded = segments.encode(name, part)
        key = key_of(Table.SEGMENT, row)
        row += 1
        puts.append(Put(key, encoded.value, encoded.tag))
        result.made.append((Segment(key, encoded.directory), part))
        for index, entry in enumerate(part):
            result.moves[Moved(entry.segment, entry.index)] = Moved(key, index)
            entry.segment, entry.index = key, index
    meta.next_segment = row
    puts.append(Put(key_of(Table.META, 0), encode_meta(meta)))
    store.commit(puts, [*keys, *map(ended_key, keys)])
    reached(Point.REWRITE_WRITTEN)
    return result


def _live(store: Rows, key: int) -> list[Entry]:
    """The records of a row that the disk does not know to have ended."""
    value = store.read(key)
    if value is None:
        raise SpoolDamaged(f"segment {key:#x}: its row is gone")
    entries = segments.decode(key, value)[1]
    bitmap = store.read(ended_key(key))
    if bitmap is None:
        return entries
    _, ended = decode_bitmap(bitmap, len(entries))
    return [entry for entry in entries if not ended[entry.index >> 3] & 1 << (entry.index & 7)]


class Compactor:
    """At most one run a tick; `done(name)` hears that a queue may be read again."""

    def __init__(self, ledger: Ledger, storage: Storage, committer: Committer, done: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._storage = storage
        self._committer = committer
        self._done = done
        self._avoid: set[int] = set()  # rows that can't be read: the loader sets them aside when it comes to them
        self._looked: dict[str, tuple[int, int]] = {}

    def tick(self) -> None:
        """Ask for a run where one is worth it."""
        for queue in self._ledger.queues.values():
            state = (len(queue.segments), queue.live)
            if self._ledger.disk_full or self._looked.get(queue.name) == state:
                continue  # nothing has changed since a look that found nothing
            if self._choose(queue):
                self._committer.between(partial(self._run, queue))
                return
            self._looked[queue.name] = state

    def _choose(self, queue: Queue) -> list[Segment]:
        return choose(queue.index.parts(), self._avoid | queue.being_read())

    async def _run(self, queue: Queue) -> None:
        old = self._choose(queue)  # anew: time has passed
        if not old:
            return
        queue.rewriting = True
        try:
            keys = [segment.key for segment in old]
            result = await self._storage.run(rewrite, queue.name, keys, self._ledger.meta)
        except _Damaged as error:
            self._avoid.add(error.key)
            log.error("%s: can't rewrite: %s", queue.name, error, extra={"action": "rewrite_failed"})
        except (DiskFull, sqlite3.Error) as error:
            log.error("%s: can't rewrite: %s", queue.name, error, extra={"action": "rewrite_failed"})
        else:
            self._take_over(queue, old, result)
            reached(Point.REWRITE_TAKEN_OVER)
        finally:
            queue.rewriting = False
            self._done(queue.name)

    def _take_over(self, queue: Queue, old: Sequence[Segment], result: Rewritten) -> None:
        """The new rows are on disk. What ended in memory meanwhile has ended in them, too."""
        self._count_shed(queue, old, result)
        before = {segment.key: segment for segment in old}
        was = {
            new: before[place.row].gone or before[place.row].has_ended(place.place)
            for place, new in result.moves.items()
        }
        kept: list[Segment] = []
        lanes: set[str] = set()
        for segment, entries in result.made:
            for entry in entries:
                lanes.add(entry.lane)
                if was[Moved(segment.key, entry.index)]:
                    segment.end(entry.index, entry.kind)
                elif any(seal.first <= entry.number <= seal.last for seal in self._seals(queue, entry)):
                    queue.remember(entry.number, Moved(segment.key, entry.index))
            if segment.live == 0:
                self._committer.delete_segment(segment.key)
                continue
            if segment.ended is not None:
                self._committer.put(Put(ended_key(segment.key), segment.bitmap()))
            kept.append(segment)
        for segment in old:
            self._committer.delete_segment(segment.key)  # an ending that waits to be written is in the new row's bitmap
        queue.replace(old, kept, result.moves, lanes)
        log.info("%s: %d segments rewritten as %d", queue.name, len(old), len(kept), extra={"action": "rewritten"})

    def _count_shed(self, queue: Queue, old: Sequence[Segment], result: Rewritten) -> None:
        """What was shed meanwhile is in the new rows alone: whose it was is counted there."""
        taken = {segment.key for segment in old if self._committer.take_shed(segment.key) is not None}
        if not taken:
            return
        shed = {segment.key: segment for segment in old if segment.key in taken}
        places = {new: place for place, new in result.moves.items()}
        for segment, entries in result.made:
            was = [places[Moved(segment.key, entry.index)] for entry in entries]
            lost = [
                entry
                for entry, place in zip(entries, was, strict=True)
                if place.row in shed and not shed[place.row].has_ended(place.place)
            ]
            self._committer.lose(queue.name, tally_entries(lost))

    def _seals(self, queue: Queue, entry: Entry) -> Sequence[Seal]:
        return self._ledger.seals.of_lane(queue.name, entry.lane)
