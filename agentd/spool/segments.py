"""A segment: the records of one destination, one commit, one loss class and one user, at most 512 KiB, as one row of the store.

    value = b"AGS" version:u8 crc32:u32le body              crc32 over the body
    body  = msgpack [destination, loss, numbers, ids, lanes, lane_of, kinds, kind_of, sources, source_of, admitted, lengths, bodies]
    tag   = crc32:u32le directory                           crc32 over the directory
    directory = msgpack Directory: what the queue has to know without reading the bodies

Columns rather than rows: a hundred events of one frame share lane, kind and source, so a record costs 40 bytes beside its
own. Numbers rise per destination and are never used twice. Nothing here does I/O.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.queued import Entry, Source
from agentd.records import LossClass
from agentd.spool.checked import UNREADABLE

SEGMENT_BYTES = 512 * 1024  # above this one blob stops getting cheaper per byte, and commits get longer (measured)
_MAGIC = b"AGS"
VERSION = 1
_HEADER = len(_MAGIC) + 1 + 4


class _Body(Struct, array_like=True):
    destination: str
    loss: LossClass
    numbers: bytes
    ids: bytes
    lanes: list[str]
    lane_of: bytes
    kinds: list[str]
    kind_of: bytes
    sources: list[Source]
    source_of: bytes
    admitted: bytes
    lengths: bytes
    bodies: bytes


class Directory(Struct, array_like=True):
    """What is known of a segment without reading it. `lanes` holds 64-bit lane hashes, sorted."""

    version: int
    destination: str
    loss: LossClass
    first: int
    last: int
    count: int
    size: int  # of the whole row, in bytes
    admitted_us: int  # of its oldest record
    kinds: dict[str, int]
    lanes: bytes
    uid: int | None = (
        None  # whose records these are; None: of several users, as before segments were told apart by them
    )

    def lane_hashes(self) -> array[int]:
        return _array("Q", self.lanes)


class Encoded(NamedTuple):
    value: bytes
    tag: bytes
    directory: Directory


def lane_hash(lane: str) -> int:
    """64 bits of a lane's name, the same in every process: two lanes of one queue won't share one in practice."""
    return int.from_bytes(blake2b(lane.encode(), digest_size=8).digest(), "little")


def uid_of(entries: Sequence[Entry]) -> int | None:
    """Whose they all are; None for several users'."""
    uids = {entry.source.uid for entry in entries}
    return uids.pop() if len(uids) == 1 else None


def split(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries of one destination, loss class and user, cut into segments of at most 512 KiB; a larger record stands alone."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + len(entry.body) > SEGMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.body)
    if part:
        yield part


def encode(destination: str, entries: Sequence[Entry]) -> Encoded:
    """The row for these entries, which share destination and loss class and stand in number order."""
    lanes: dict[str, int] = {}
    kinds: dict[str, int] = {}
    sources: dict[Source, int] = {}
    counts: dict[str, int] = {}
    lane_of, kind_of, source_of = array("I"), array("H"), array("I")
    for entry in entries:
        lane_of.append(lanes.setdefault(entry.lane, len(lanes)))
        kind_of.append(kinds.setdefault(entry.kind, len(kinds)))
        source_of.append(sources.setdefault(entry.source, len(sources)))
        counts[entry.kind] = counts.get(entry.kind, 0) + 1
    bodies = b"".join([entry.body for entry in entries])
    body = msgspec.msgpack.encode(
        _Body(
            destination,
            entries[0].loss,
            array("Q", [entry.number for entry in entries]).tobytes(),
            b"".join([entry.record_id for entry in entries]),
            list(lanes),
            lane_of.tobytes(),
            list(kinds),
            kind_of.tobytes(),
            list(sources),
            source_of.tobytes(),
            array("Q", [entry.admitted_us for entry in entries]).tobytes(),
            array("I", [len(entry.body) for entry in entries]).tobytes(),
            bodies,
        )
    )
    value = b"".join((_MAGIC, bytes((VERSION,)), zlib.crc32(body).to_bytes(4, "little"), body))
    directory = Directory(
        VERSION,
        destination,
        entries[0].loss,
        entries[0].number,
        entries[-1].number,
        len(entries),
        len(value),
        min(entry.admitted_us for entry in entries),
        counts,
        array("Q", sorted(lane_hash(lane) for lane in lanes)).tobytes(),
        uid_of(entries),
    )
    packed = msgspec.msgpack.encode(directory)
    return Encoded(value, zlib.crc32(packed).to_bytes(4, "little") + packed, directory)


def check(key: int, value: bytes) -> memoryview:
    """The body of a row. Raises SpoolDamaged, naming what is wrong."""
    if len(value) < _HEADER or value[:3] != _MAGIC:
        raise SpoolDamaged(f"segment {key:#x}: not a segment")
    if value[3] != VERSION:
        raise SpoolDamaged(f"segment {key:#x}: format {value[3]}, this agentd knows {VERSION}")
    view = memoryview(value)[_HEADER:]
    if zlib.crc32(view) != int.from_bytes(value[4:8], "little"):
        raise SpoolDamaged(f"segment {key:#x}: wrong checksum")
    return view


def decode(key: int, value: bytes) -> tuple[str, list[Entry]]:
    """(destination, entries) of a row. Raises SpoolDamaged, naming what is wrong."""
    view = check(key, value)
    try:
        return _entries(key, msgspec.msgpack.decode(view, type=_Body))
    except (ValueError, IndexError, *UNREADABLE) as error:
        raise SpoolDamaged(f"segment {key:#x}: {error}") from error


def decode_directory(key: int, tag: bytes | None) -> Directory:
    """The directory of a row. Raises SpoolDamaged."""
    packed = (tag or b"")[4:]
    if not tag or zlib.crc32(packed) != int.from_bytes(tag[:4], "little"):
        raise SpoolDamaged(f"segment {key:#x}: directory: wrong checksum")
    try:
        return msgspec.msgpack.decode(packed, type=Directory)
    except UNREADABLE as error:
        raise SpoolDamaged(f"segment {key:#x}: directory: {error}") from error


def _entries(key: int, body: _Body) -> tuple[str, list[Entry]]:
    numbers, lengths, admitted = _array("Q", body.numbers), _array("I", body.lengths), _array("Q", body.admitted)
    lane_of, kind_of, source_of = _array("I", body.lane_of), _array("H", body.kind_of), _array("I", body.source_of)
    count = len(numbers)
    if (
        not count
        == len(lengths)
        == len(admitted)
        == len(lane_of)
        == len(kind_of)
        == len(source_of)
        == len(body.ids) // 16
    ):
        raise SpoolDamaged(f"segment {key:#x}: its columns differ in length")
    entries = []
    offset = 0
    for index in range(count):
        end = offset + lengths[index]
        entries.append(
            Entry(
                numbers[index],
                body.ids[16 * index : 16 * index + 16],
                body.lanes[lane_of[index]],
                body.kinds[kind_of[index]],
                body.loss,
                body.sources[source_of[index]],
                admitted[index],
                body.bodies[offset:end],
                key,
                index,
            )
        )
        offset = end
    if offset != len(body.bodies):
        raise SpoolDamaged(f"segment {key:#x}: its bodies differ in length")
    return body.destination, entries


def _array(code: str, data: bytes) -> array[int]:
    values: array[int] = array(code)
    values.frombytes(data)
    return values
