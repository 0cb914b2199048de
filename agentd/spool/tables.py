"""The store's tables, and the one row that says how to read the others."""

from __future__ import annotations

from enum import IntEnum

import msgspec
from msgspec import Struct

from agentd.errors import NewerFormat, SpoolDamaged
from agentd.spool.books import Line
from agentd.spool.checked import UNREADABLE, pack, unpack
from agentd.spool.store import key_of

FORMAT = 2  # 2: rows carry checksums (`checked`), which the code of format 1 would take for damage


class Table(IntEnum):
    """The upper bits of a row's key."""

    SEGMENT = 1  # tag: Directory
    ENDED = 2  # same row number as its segment: which records have ended
    SEAL = 3
    DEAD = 4  # tag: Brief of the letter
    JOURNAL = 5  # tag: time of its newest note, 8 bytes
    SEEN = 6  # ids within intake's dedupe window; tag: how many, 4 bytes
    STREAM = 7  # last outcomes of a client's stream
    REF = 8
    META = 9
    GATE = 10  # tag: Brief of the gate
    LOST = 11  # what runs lost to a full queue and were not told yet
    OWNER = 12  # the process that owns an open run


def ended_key(segment_key: int) -> int:
    """The row that says which of a segment's records have ended."""
    return segment_key - key_of(Table.SEGMENT, 0) + key_of(Table.ENDED, 0)


class Meta(Struct, array_like=True):
    """Row 0 of META, rewritten by every commit."""

    format: int = FORMAT
    next_segment: int = 1
    next_number: dict[str, int] = {}
    identities: dict[str, str] = {}
    journal_number: int = 1
    commits: int = 0
    books: list[Line] = []
    journal_head: bytes = b""  # digest of the journal's newest row: what is cut off its end shows


def encode_meta(meta: Meta) -> bytes:
    """`[format, checked row]`: the format comes first and bare, so that an agentd of every format reads it and knows its place."""
    return msgspec.msgpack.encode([meta.format, pack(msgspec.msgpack.encode(meta))])


def decode_meta(value: bytes) -> Meta:
    """Raises NewerFormat for that of a newer agentd, SpoolDamaged for what is no Meta row."""
    try:
        head = msgspec.msgpack.decode(value)
        found, *rest = head if isinstance(head, list) and head else [0]
        checked = rest[0] if len(rest) == 1 and isinstance(rest[0], bytes) else None  # else format 1
        if isinstance(found, int) and found > FORMAT and not (checked is not None and _is_known(checked)):
            raise NewerFormat(found, FORMAT)
        return msgspec.msgpack.decode(value if checked is None else unpack(checked), type=Meta)
    except UNREADABLE as error:
        raise SpoolDamaged(f"meta row: {error}") from error


def _is_known(checked: bytes) -> bool:
    """Whether the row itself is whole and of a format that we know: then it is the number before it that is damaged."""
    try:
        return msgspec.msgpack.decode(unpack(checked), type=Meta).format <= FORMAT
    except (SpoolDamaged, *UNREADABLE):
        return False
