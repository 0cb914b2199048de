"""Dead letters: records that were refused for good, with the platform's answer, in a room of their own that is bounded."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from agentd.outcomes import Cause
from agentd.queued import Death, Entry, Source


class Letter(Struct, array_like=True):
    """One dead letter. `status` and `answer` are the platform's, where there was an answer."""

    destination: str
    number: int
    record_id: bytes
    lane: str
    kind: str
    source: Source
    admitted_us: int
    body: bytes
    cause: Cause
    reason: str
    died_us: int
    key: str = ""
    tries: int = 0
    status: int | None = None
    answer: str = ""


class Brief(Struct, array_like=True):
    """The tag of a letter's row: enough to list and filter without reading the record."""

    destination: str
    lane: str
    cause: str
    size: int


def letter_of(destination: str, entry: Entry, death: Death, now_us: int) -> Letter:
    return Letter(
        destination,
        entry.number,
        entry.record_id,
        entry.lane,
        entry.kind,
        entry.source,
        entry.admitted_us,
        entry.body,
        death.cause,
        death.reason,
        now_us,
        death.key,
        death.tries,
        death.status,
        death.answer,
    )


def encode(letter: Letter) -> tuple[bytes, bytes]:
    """(value, tag) of its row."""
    value = msgspec.msgpack.encode(letter)
    return value, msgspec.msgpack.encode(Brief(letter.destination, letter.lane, letter.cause, len(value)))


def decode(value: bytes) -> Letter:
    return msgspec.msgpack.decode(value, type=Letter)


def decode_brief(tag: bytes | None) -> Brief:
    return msgspec.msgpack.decode(tag or b"", type=Brief)
