"""Gates on disk: a row for each asking.

The row is written before the question leaves and again with its verdict, each time in one transaction with the reference that
it introduces and with its entries in the journal. Its tag says enough to index it, so that a start reads no requests.

    value = crc32:u32le body      body = msgpack of GateRow
    tag   = crc32:u32le brief     brief = msgpack of Brief

A row of which either half is damaged is not forgotten: its key would be free again, and the agent could act twice. What the
other half says is kept; a gate whose question or verdict can't be read any more is `unavailable` and may have acted.
"""

from __future__ import annotations

import zlib
from enum import StrEnum
from sys import intern
from typing import TypeVar

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.gating import Word
from agentd.queued import GATE_LANE, Source
from agentd.spool.checked import UNREADABLE
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table

T = TypeVar("T")


class Step(StrEnum):
    """How far a gate has come. After a kill ASKED has certainly not left, SENDING may have."""

    ASKED = "asked"
    SENDING = "sending"
    PENDING = "pending"  # the platform has it, and will say more
    FINAL = "final"


class GateRow(Struct, array_like=True):
    """One asking. Times are microseconds since 1970; `key` and `digest` are those under which it is asked again."""

    gate_id: str
    gate: str
    destination: str
    source: Source
    token: int  # of `[[security.tokens]]`, -1 on the Unix socket
    key: str | None
    digest: bytes
    kind: str  # of the reference that it introduces
    local_id: str
    run_id: str | None
    span_id: str | None
    request: bytes  # a JSON object: the platform's fields as they were asked
    idempotency_key: str
    asked_us: int
    deadline_s: float
    step: Step = Step.ASKED
    word: Word = Word.UNAVAILABLE
    proceed: bool = False
    fail_open: bool = False
    reason: str = ""
    platform_id: str | None = None
    acted: bool = False  # something may have been made of it at the platform
    decided_us: int = 0
    response: bytes = b""  # the platform's JSON, empty without one
    tries: int = 0
    relayed: bool = False  # the bytes that went out were an SDK's own
    resolved_by: int | None = None  # uid of the admin who said what became of it
    note: str = ""
    identity: str = ""  # of the destination when it was asked: what another platform would say of it means nothing
    row: int = 0
    owed: bytes = b""  # of an SDK's own question: the digest of what it sent, until its answer has gone out
    status: int = 0  # of the platform's answer that `response` is the body of

    @property
    def may_be_left(self) -> bool:
        """Whether whoever asked may go: what comes later is recorded and followed all the same.

        A question under way whose answer is waited for beyond its deadline bears the word PENDING already.
        """
        return self.step is Step.PENDING or (self.step is Step.SENDING and self.word is Word.PENDING)

    @property
    def lane(self) -> str:
        """Its lane in the journal, and in the reference that it introduces."""
        return GATE_LANE + self.gate_id


class Brief(Struct, array_like=True, gc=False):
    """The tag of a gate's row."""

    gate_id: str
    gate: str
    destination: str
    agent: str
    uid: int
    token: int
    key: str | None
    digest: bytes
    step: Step
    word: Word
    acted: bool
    asked_us: int
    decided_us: int
    owed: bytes = b""
    fail_open: bool = False


class Stored(Struct):
    """A row that exists: what its tag says. `damaged` says that no more than that can be read."""

    row: int
    brief: Brief
    size: int
    damaged: bool = False


def brief_of(gate: GateRow) -> Brief:
    """Its tag; names that many gates share are one text in memory."""
    return Brief(
        gate.gate_id, intern(gate.gate), intern(gate.destination), intern(gate.source.agent), gate.source.uid, gate.token, gate.key, gate.digest,
        gate.step, gate.word, gate.acted, gate.asked_us, gate.decided_us, gate.owed, gate.fail_open,
    )  # fmt: skip


def of_brief(brief: Brief, row: int) -> GateRow:
    """A gate of which the tag alone can be read: nobody knows what became of it."""
    return GateRow(
        brief.gate_id, brief.gate, brief.destination, Source(brief.agent, brief.uid, 0, "damaged"), brief.token,
        brief.key, brief.digest, "", brief.gate_id, None, None, b"{}", "", brief.asked_us, 0.0, step=Step.FINAL,
        reason="its row on disk is damaged; it may have acted", acted=True, decided_us=brief.decided_us, row=row,
        owed=brief.owed,
    )  # fmt: skip


def encode(gate: GateRow) -> Put:
    """The row with its tag."""
    value, tag = msgspec.msgpack.encode(gate), msgspec.msgpack.encode(brief_of(gate))
    return Put(key_of(Table.GATE, gate.row), _sum(value) + value, _sum(tag) + tag)


def decode(row: int, value: bytes | None) -> GateRow:
    """Raises SpoolDamaged."""
    gate = _checked(f"gate {row}", value, GateRow)
    gate.row = row
    return gate


def decode_brief(row: int, tag: bytes | None) -> Brief:
    """Raises SpoolDamaged."""
    brief = _checked(f"gate {row}: brief", tag, Brief)
    brief.gate, brief.destination, brief.agent = intern(brief.gate), intern(brief.destination), intern(brief.agent)
    return brief


def _sum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _checked(what: str, data: bytes | None, kind: type[T]) -> T:
    if data is None or _sum(data[4:]) != data[:4]:
        raise SpoolDamaged(f"{what}: wrong checksum")
    try:
        return msgspec.msgpack.decode(data[4:], type=kind)
    except UNREADABLE as error:
        raise SpoolDamaged(f"{what}: {error}") from error
