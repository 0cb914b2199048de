"""The newest records that are queued, read from the disk: segments from the newest on, until there are enough."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import NamedTuple

from agentd.errors import SpoolDamaged
from agentd.queued import Entry
from agentd.spool import segments
from agentd.spool.census import Interrupted, Wanted, ended_of
from agentd.spool.segments import lane_hash
from agentd.spool.store import Rows
from agentd.spool.tables import Table

log = logging.getLogger("agentd.spool")

SEARCHED_BYTES = 64 * 2**20  # where little is meant, so much is read in vain; about a second


class _Found(NamedTuple):
    """A record by its age: the oldest is the least."""

    admitted_us: int
    number: int
    name: str
    entry: Entry


def latest(
    store: Rows,
    wanted: Wanted,
    meant: Callable[[str, Entry], bool],
    limit: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    max_bytes: int = SEARCHED_BYTES,
) -> list[tuple[str, Entry]]:
    """(destination, record) of the `limit` newest of which `meant` says yes, the oldest of them first. Raises Interrupted.

    `wanted` says what a segment must hold to be read (destination, kind, run). A segment goes by its oldest record: of one that was
    rewritten from many, records may be missed that are newer than some that are given.
    """
    found: list[_Found] = []
    for key, admitted_us, size in _newest_first(store, wanted):
        if (len(found) == limit and admitted_us < found[0].admitted_us) or max_bytes <= 0:
            break
        if stop():
            raise Interrupted
        max_bytes -= size
        try:
            name, entries = segments.decode(key, store.read(key) or b"")
        except SpoolDamaged as error:
            log.warning("%s: left out", error, extra={"action": "damaged"})
            continue
        ended = ended_of(store, key, len(entries))
        for place, entry in enumerate(entries):
            if (ended is None or not ended[place >> 3] & 1 << (place & 7)) and meant(name, entry):
                one = _Found(entry.admitted_us, entry.number, name, entry)
                (heapq.heappush if len(found) < limit else heapq.heappushpop)(found, one)
    return [(one.name, one.entry) for one in sorted(found, key=lambda one: one[:3])]


def _newest_first(store: Rows, wanted: Wanted) -> list[tuple[int, int, int]]:
    """(key, admission of its oldest record, size) of the segments that may hold what is meant."""
    hashed = None if wanted.lane is None else lane_hash(wanted.lane)
    found = []
    for key, tag, _ in store.tags(Table.SEGMENT):
        try:
            directory = segments.decode_directory(key, tag)
        except SpoolDamaged:
            continue
        if wanted.may_be_in(directory, hashed):
            found.append((directory.admitted_us, key, directory.size))
    found.sort(reverse=True)
    return [(key, admitted_us, size) for admitted_us, key, size in found]
