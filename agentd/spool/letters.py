"""Dead letters: records that were refused for good, with the platform's answer, in a room of their own that is bounded."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.outcomes import Cause
from agentd.queued import Allowed, Death, Entry, Refused, Source, Try
from agentd.records import LossClass
from agentd.spool.checked import UNREADABLE, pack, unpack

_T = TypeVar("_T", "Letter", "Brief")


class Letter(Struct, array_like=True):
    """One dead letter. `status` and `answer` are the platform's, where there was an answer; `history` the last tries.

    `destination` is empty for what was refused at intake (cause `invalid`): it was on its way to no queue yet.
    """

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
    loss: LossClass = LossClass.KEEP
    history: tuple[Try, ...] = ()
    allowed: Allowed | None = None  # see `queued.Refused`

    def entry(self, number: int) -> Entry:
        """The record again, under a new number of its queue; its id stays, and so does its idempotency key."""
        return Entry(number, self.record_id, self.lane, self.kind, self.loss, self.source, self.admitted_us, self.body)

    def refused(self) -> Refused:
        """What was refused at intake, as it was then."""
        return Refused(self.kind, self.record_id, self.lane, self.body, self.source, self.reason, self.allowed)


class Brief(Struct, array_like=True):
    """The tag of a letter's row: enough to list and filter without reading the record."""

    destination: str
    lane: str
    cause: str
    size: int
    record_id: bytes = b""  # empty in rows of format 1, as all that follows
    number: int = 0
    kind: str = ""
    uid: int = -1
    died_us: int = 0
    repeat: bytes = b""  # of what was refused at intake: a digest of sender and record, by which a repeat is known


class Wanted(Struct, frozen=True):
    """Which dead letters are meant; what is None or empty leaves nothing out. Times are microseconds since 1970."""

    ids: frozenset[bytes] = frozenset()
    destination: str | None = None
    run: str | None = None
    cause: str | None = None
    died_before_us: int | None = None
    uid: int | None = None  # of who sent them
    lanes: frozenset[tuple[str, str]] = frozenset()  # (destination, lane)

    def matches(self, brief: Brief) -> bool:
        return (
            (not self.ids or brief.record_id in self.ids)
            and (self.destination is None or brief.destination == self.destination)
            and (self.run is None or brief.lane == f"run:{self.run}")
            and (self.cause is None or brief.cause == self.cause)
            and (self.died_before_us is None or brief.died_us < self.died_before_us)
            and (self.uid is None or brief.uid == self.uid)
            and (not self.lanes or (brief.destination, brief.lane) in self.lanes)
        )


def without_secrets(death: Death, hide: Callable[[str], str]) -> Death:
    """The same with what the platform has said gone over: nobody knows what it puts into an answer."""
    history = tuple([Try(one.at_us, one.status, hide(one.reason)) for one in death.history])
    return msgspec.structs.replace(death, reason=hide(death.reason), answer=hide(death.answer), history=history)


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
        entry.loss,
        death.history,
    )


def brief_of(letter: Letter, size: int) -> Brief:
    """Its tag; `size` is that of the row's value."""
    return Brief(
        letter.destination, letter.lane, letter.cause, size, letter.record_id, letter.number, letter.kind,
        letter.source.uid, letter.died_us, b"" if letter.destination else repeat_of(letter.source.uid, letter.body),
    )  # fmt: skip


def repeat_of(uid: int, body: bytes) -> bytes:
    """What is the same for the same bytes of the same user."""
    return sha256(b"%d " % uid + body).digest()[:16]


def encode(letter: Letter) -> tuple[bytes, bytes]:
    """(value, tag) of its row."""
    value = pack(msgspec.msgpack.encode(letter))
    return value, pack(msgspec.msgpack.encode(brief_of(letter, len(value))))


def decode(value: bytes) -> Letter:
    """Raises SpoolDamaged."""
    return _decoded(value, Letter)


def decode_brief(tag: bytes | None) -> Brief:
    """Raises SpoolDamaged."""
    return _decoded(tag or b"", Brief)


def _decoded(value: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(unpack(value), type=kind)
    except UNREADABLE as error:
        raise SpoolDamaged(f"dead letter: {error}") from error
