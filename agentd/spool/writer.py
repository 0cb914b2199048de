"""A commit: everything that happened since the last one, written in one transaction by the storage thread.

`Pending` gathers on the event loop; `write` runs in the storage thread and touches nothing that the loop changes.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct, field

from agentd.crashpoints import Point, reached
from agentd.errors import SpoolDamaged
from agentd.outcomes import State
from agentd.queued import Entry, Ref
from agentd.spool import columns, lost, segments
from agentd.spool.directory import Segment
from agentd.spool.journal import Note
from agentd.spool.letters import Brief
from agentd.spool.lost import Found
from agentd.spool.store import DiskFull, Put, Rows, key_of
from agentd.spool.tables import Meta, Table, encode_meta

log = logging.getLogger("agentd.spool")


class Noted(NamedTuple):
    """An entry for the journal that goes to disk with an append; `facts` are `Journal.note`'s."""

    entry: Entry
    state: State
    destination: str
    facts: dict[str, str | bool | int]


class Returned(NamedTuple):
    """A dead letter that goes back into its queue: its row goes with the commit that holds the record."""

    key: int
    brief: Brief
    size: int


class Append(Struct):
    """One message's records on their way to the disk, by destination.

    What comes back (`returned`, `moved`) is in the books already, as admitted: a dead letter is booked out of the dead, a record
    that only gets a later place in its queue is not booked at all. `deletes` go with the same commit.
    """

    copies: dict[str, list[Entry]]
    future: asyncio.Future[None]
    size: int
    puts: list[Put] = field(default_factory=list)
    introduced: list[Ref] = field(default_factory=list)
    notes: list[Noted] = field(default_factory=list)
    awaited: bool = False  # somebody waits: refused where there is no room, also without records
    sizes: Counter[tuple[str, int]] = field(default_factory=Counter)  # of its records, by destination and user
    returned: list[Returned] = field(default_factory=list)
    moved: bool = False  # its old place is given up in the same commit, so that it can't be refused
    by: int = -1  # uid of who had it replayed
    noted: list[Note] = field(default_factory=list)  # what the commit says of it in the journal
    at: float = field(default_factory=time.monotonic)  # when it was handed over

    @property
    def admits(self) -> bool:
        """Whether its records are new."""
        return not self.moved and not self.returned


class Written(NamedTuple):
    """What a commit made: new segments and their records, by destination; what runs lost; free room within the store."""

    segments: dict[str, list[Segment]]
    entries: dict[str, list[Entry]]
    next_segment: int
    lost: Found
    free_bytes: int | None = None  # where it was asked for


class Pending(Struct):
    """What the next commit will hold."""

    appends: list[Append] = field(default_factory=list)
    puts: dict[int, Put] = field(default_factory=dict)
    deletes: set[int] = field(default_factory=set)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    shed: dict[int, tuple[str, Segment]] = field(default_factory=dict)  # by key, with its destination
    lost: Found = field(default_factory=dict)  # of shed segments that were counted already
    lost_rows: tuple[int, int] = (0, 0)  # for runs that are told, and for what they lose
    told: list[bytes] = field(default_factory=list)  # ids of notices
    measures: bool = False  # the free room within the store
    claims: int = 0  # bytes within the store, for the day when the disk is full
    frees: int = 0  # bytes of what is shed

    def put(self, put: Put) -> None:
        self.deletes.discard(put.key)
        self.puts[put.key] = put

    def delete(self, key: int) -> None:
        self.puts.pop(key, None)
        self.deletes.add(key)


def write(store: Rows, pending: Pending, meta: Meta) -> Written:
    """Write it all; on disk when it returns. Raises DiskFull, sqlite3.Error."""
    made = Written({}, {}, meta.next_segment, _count_lost(store, pending))
    puts = list(pending.puts.values())
    row = meta.next_segment
    for name, entries in _by_destination(pending.appends).items():
        ordered = sorted(entries, key=lambda e: (e.loss, e.source.uid, e.number))
        for _, group in groupby(ordered, key=lambda e: (e.loss, e.source.uid)):
            for part in segments.split(list(group)):
                encoded = segments.encode(name, part)
                key = key_of(Table.SEGMENT, row)
                row += 1
                puts.append(Put(key, encoded.value, encoded.tag))
                made.segments.setdefault(name, []).append(Segment(key, encoded.directory))
                for index, entry in enumerate(part):
                    entry.segment, entry.index = key, index
        made.entries[name] = entries
    if made.lost:
        puts.append(Put(key_of(Table.LOST, pending.lost_rows[1]), lost.encode_found(made.lost)))
    deletes = set(pending.deletes)
    for append in pending.appends:
        puts.extend(append.puts)
        deletes.update(back.key for back in append.returned)
    meta.next_segment = row
    meta.commits += 1
    puts.append(Put(key_of(Table.META, 0), encode_meta(meta)))
    reached(Point.COMMIT_BEGUN)
    store.commit(puts, deletes)
    reached(Point.COMMIT_WRITTEN)
    if pending.claims:
        claim(store, pending.claims)
    return made._replace(next_segment=row, free_bytes=store.free_bytes() if pending.measures else None)


def claim(store: Rows, size: int) -> None:
    """Take room for settling and deleting into the store, as far as the disk has any."""
    try:
        store.claim(size)
    except (DiskFull, sqlite3.Error) as error:  # what was free is somebody else's by now, or the disk is broken
        log.warning("no room can be reserved within the spool: %s", error, extra={"action": "disk_full"})


def _count_lost(store: Rows, pending: Pending) -> Found:
    """By run, what the segments hold that this commit sheds: the last moment at which anybody can know."""
    found = {name: dict(gaps) for name, gaps in pending.lost.items()}
    for key, (name, segment) in pending.shed.items():
        try:
            gaps = lost.tally(columns.read(key, store.read(key) or b""), segment.ended)
        except SpoolDamaged as error:
            log.error(
                "%s: %d shed records: whose they were can't be read, and nobody is told: %s", name, segment.live, error,
                extra={"action": "damaged", "destination": name},
            )  # fmt: skip
        else:
            lost.join(found, name, gaps)
    return {name: gaps for name, gaps in found.items() if gaps}


def _by_destination(appends: list[Append]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for append in appends:
        for name, entries in append.copies.items():
            found.setdefault(name, []).extend(entries)
    return found
