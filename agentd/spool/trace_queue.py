"""Queued records that somebody asks for: by id, by lane, by place in their queue, or by the key of their batch.

Directories say which segments may hold one, and a segment's columns which records it is; bodies are read of those alone. An id of
which nothing else is known is searched for in the bytes of every segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Seal
from agentd.spool import columns, segments
from agentd.spool.columns import Columns
from agentd.spool.directory import decode_bitmap
from agentd.spool.seals import Seals
from agentd.spool.segments import Directory, lane_hash
from agentd.spool.store import Rows, row_of
from agentd.spool.tables import Table, ended_key


class Wanted(NamedTuple):
    """What is meant. `unknown` are those of the ids that may be anywhere."""

    lanes: frozenset[str]
    places: frozenset[tuple[str, int]]  # destination and number
    ids: frozenset[bytes]
    unknown: frozenset[bytes]
    key: str  # of a sealed batch


class Found(NamedTuple):
    """A live record. `entry` reads it whole."""

    destination: str
    lane: str
    uid: int
    record_id: bytes
    seal: Seal | None
    entry: Callable[[], Entry]


class QueueSearch:
    """One search. `goes_on` is called before each segment; `damaged` counts those that can't be read."""

    def __init__(self, store: Rows, wanted: Wanted, goes_on: Callable[[], None]) -> None:
        self.damaged = 0
        self._store = store
        self._wanted = wanted
        self._goes_on = goes_on
        self._seals = Seals()
        self._seals.restore((row_of(key), value) for key, value in store.rows(Table.SEAL))
        self._keyed = [seal for seal in self._seals.all() if seal.key == wanted.key]
        self._hashes = {lane_hash(lane) for lane in (*wanted.lanes, *(seal.lane for seal in self._keyed))}

    def run(self) -> Iterator[Found]:
        for key, tag, _ in self._store.tags(Table.SEGMENT):
            self._goes_on()
            is_due = self._may_hold(key, tag)
            if not (is_due or self._wanted.unknown):
                continue
            value = self._store.read(key) or b""
            if is_due or any(each in value for each in self._wanted.unknown):
                try:
                    yield from self._segment(key, value)
                except SpoolDamaged:
                    self.damaged += 1

    def _may_hold(self, key: int, tag: bytes | None) -> bool:
        try:
            directory: Directory = segments.decode_directory(key, tag)
        except SpoolDamaged:
            return True  # its records have to be looked at
        name, first, last = directory.destination, directory.first, directory.last
        is_there = any(name == there and first <= number <= last for there, number in self._wanted.places)
        return is_there or not self._hashes.isdisjoint(directory.lane_hashes())

    def _segment(self, key: int, value: bytes) -> Iterator[Found]:
        table = columns.read(key, value)
        bitmap = self._store.read(ended_key(key))
        ended = bytearray(len(table.numbers)) if bitmap is None else decode_bitmap(bitmap, len(table.numbers))[1]
        whole: list[Entry] = []

        def entry(index: int) -> Entry:
            if not whole:
                whole.extend(segments.decode(key, value)[1])
            return whole[index]

        for index, number in enumerate(table.numbers):
            if not ended[index >> 3] & 1 << (index & 7) and self._means(table, index):
                lane, name = table.lanes[table.lane_of[index]], table.destination
                sealed = (seal for seal in self._seals.of_lane(name, lane) if _is_in(seal, name, lane, number))
                uid = table.sources[table.source_of[index]].uid
                yield Found(name, lane, uid, table.id_of(index), next(sealed, None), lambda at=index: entry(at))  # type: ignore[misc]  # mypy does not infer a default of a lambda

    def _means(self, table: Columns, index: int) -> bool:
        lane, number = table.lanes[table.lane_of[index]], table.numbers[index]
        return (
            lane in self._wanted.lanes
            or table.id_of(index) in self._wanted.ids
            or (table.destination, number) in self._wanted.places
            or any(_is_in(seal, table.destination, lane, number) for seal in self._keyed)
        )


def _is_in(seal: Seal, destination: str, lane: str, number: int) -> bool:
    return (
        (seal.destination, seal.lane) == (destination, lane)
        and seal.first <= number <= seal.last
        and number not in seal.exceptions
    )
