"""The store's tables, and the one row that says how to read the others."""

from __future__ import annotations

from enum import IntEnum

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.spool.books import Line
from agentd.spool.store import key_of

FORMAT = 1


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


def encode_meta(meta: Meta) -> bytes:
    return msgspec.msgpack.encode(meta)


def decode_meta(value: bytes) -> Meta:
    """Raises SpoolDamaged for what is no Meta row, and for a format of a newer agentd."""
    try:
        head = msgspec.msgpack.decode(value)
        if isinstance(head, list) and head and isinstance(head[0], int) and head[0] > FORMAT:
            raise SpoolDamaged(
                f"the spool has format {head[0]}, this agentd knows {FORMAT}: start the newer agentd that wrote it"
            )
        return msgspec.msgpack.decode(value, type=Meta)
    except msgspec.MsgspecError as error:
        raise SpoolDamaged(f"meta row: {error}") from error
