"""The three dialects on one socket, as functions from bytes to messages and back. No I/O; server and client share it.

The first byte of a connection chooses: `0x00` frames (4-byte big-endian length below 16 MiB, so its first byte is 0), `{`,
`[` or white space lines of JSON, an ASCII capital HTTP/1.1. A message is a record, an array of records, an envelope
`{"seq": n, "records": […]}` or, first on a connection, a hello. A record that is not valid becomes a `RecordError` in its
place: one bad record never costs its neighbours.
"""

from __future__ import annotations

import re
import struct
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from agentd.errors import RecordError, WireError
from agentd.explain import explain
from agentd.records import KINDS, Record, UInt

CONTRACT = 1
MAX_FRAME_BYTES = 2**24 - 1
MAX_RECORDS = 20_000  # of one message: more would keep everybody else waiting for longer than about 0.2 s
MAX_UNANSWERED = 64  # envelopes of one stream under way, and outcomes kept for repeats
_LENGTH = struct.Struct(">I")
HEADER_BYTES = _LENGTH.size
_WHITE = b" \t\r\n"
_SPLIT_LIMIT_BYTES = 2**20  # the by-hand split of a too deep array costs 0.3 µs a token: bounded to about 0.3 s


class Dialect(StrEnum):
    FRAMES = "frames"
    LINES = "lines"
    HTTP = "http"


class Hello(Struct, forbid_unknown_fields=False, kw_only=True):
    """How a client library introduces itself. Unknown fields are let pass: a newer client may say more."""

    hello: UInt
    stream: str | None = None
    owns_runs: bool = False
    lost: dict[str, UInt] = {}
    client: str | None = None
    emitted: UInt | None = None


class Rejected(Struct, omit_defaults=True, gc=False):
    """Why a record was refused. With `to` by these destinations alone: others took it, and it is wanted again for these."""

    index: int
    error: str
    to: list[str] = []


class Ack(Struct, omit_defaults=True, gc=False):
    """The answer to an envelope, sent when its records are on disk."""

    seq: int
    accepted: int
    rejected: list[Rejected] = []


class Message(NamedTuple):
    """A decoded message: `seq` is None where no answer is wanted; each item is a record or the reason against it."""

    seq: int | None
    items: list[Record | RecordError]


class _Envelope(Struct, forbid_unknown_fields=True, gc=False):
    seq: UInt
    records: list[Record]


class _RawEnvelope(Struct, gc=False):
    seq: UInt
    records: list[Raw]


_decode_records = msgspec.json.Decoder(list[Record]).decode
_record_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
decode_record = _record_decoder.decode  # a single record; raises msgspec.DecodeError
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_raw_envelope = msgspec.json.Decoder(_RawEnvelope).decode
_decode_raw_list = msgspec.json.Decoder(list[Raw]).decode
_decode_hello = msgspec.json.Decoder(Hello).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
encode = msgspec.json.Encoder().encode


def dialect_of(first: int) -> Dialect | None:
    """The dialect that a connection's first byte chooses, None for none of ours."""
    if first == 0:
        return Dialect.FRAMES
    if first in b"{[" + _WHITE:
        return Dialect.LINES
    return Dialect.HTTP if 0x41 <= first <= 0x5A else None  # noqa: PLR2004 - A … Z


def frame(message: bytes) -> bytes:
    """The message as a frame. Raises WireError above 16 MiB − 1."""
    if not 0 < len(message) <= MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(message)} bytes: expected 1 to {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(message)) + message


def frame_length(header: bytes | bytearray | memoryview, limit: int = MAX_FRAME_BYTES) -> int:
    """The length that a 4-byte header names. Raises WireError for 0 and for more than `limit`."""
    length = int(_LENGTH.unpack(header)[0])
    if not 0 < length <= limit:
        raise WireError(f"frame of {length} bytes: expected 1 to {limit} (intake.max_frame_bytes)")
    return length


def decode_message(data: bytes) -> Message | Hello:
    """What a frame or a line says. Raises WireError, with `seq` where it had one, for what is no message."""
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look into Raw: one bad byte would poison the batch it is spliced into
        return _bounded(_decode_fast(data))
    except UnicodeDecodeError as error:
        raise WireError(f"invalid UTF-8 at byte {error.start}", fatal=True) from None
    except msgspec.ValidationError:
        return _bounded(_decode_carefully(data))
    except msgspec.DecodeError as error:
        return _bounded(_decode_broken(data, error))
    except RecursionError:
        return _bounded(_decode_deep(data))


def _bounded(message: Message | Hello) -> Message | Hello:
    if isinstance(message, Message) and len(message.items) > MAX_RECORDS:
        raise WireError(f"{len(message.items)} records in one message: expected at most {MAX_RECORDS}", seq=message.seq)
    return message


def _decode_carefully(data: bytes) -> Message | Hello:
    try:
        return _decode_slowly(data)
    except msgspec.DecodeError as error:
        return _decode_broken(data, error)
    except RecursionError:
        return _decode_deep(data)


def _decode_broken(data: bytes, error: msgspec.DecodeError) -> Message:
    """What the parser refuses: no JSON, unless it is for a lone surrogate. Python writes those; one costs its record only."""
    if _SURROGATE.search(data):
        return _decode_deep(data, _syntax(error))
    raise WireError(_syntax(error), fatal=True) from None


def _decode_fast(data: bytes) -> Message | Hello:
    head = data[:12].lstrip(_WHITE)
    if head.startswith(b'{"seq"'):
        envelope = _decode_envelope(data)
        return Message(envelope.seq, list(envelope.records))
    if head.startswith(b"["):
        return Message(None, list(_decode_records(data)))
    if head.startswith(b'{"kind"'):
        return Message(None, [decode_record(data)])
    return _decode_slowly(data)


def _decode_slowly(data: bytes) -> Message | Hello:
    """The careful way: find out what it was meant to be, then judge each record on its own."""
    seq: int | None = None
    try:
        if data.lstrip(_WHITE).startswith(b"["):
            return Message(None, [_judge(raw) for raw in _decode_raw_list(data)])
        fields = _decode_fields(data)
        if "hello" in fields and "kind" not in fields:
            return _decode_hello(data)
        if "records" not in fields and "seq" not in fields:
            return Message(None, [_judge(Raw(data))])
        seq = _seq_of(fields)
        unknown = sorted(fields.keys() - {"seq", "records"})
        if unknown:
            raise WireError(f"$.{unknown[0][:64]}: unknown field of an envelope (seq, records)", seq=seq)
        envelope = _decode_raw_envelope(data)
        return Message(envelope.seq, [_judge(raw) for raw in envelope.records])
    except msgspec.ValidationError as error:
        raise WireError(explain(error, b""), seq=seq) from None


def _judge(raw: Raw) -> Record | RecordError:
    data = bytes(raw)
    try:
        return decode_record(data)
    except msgspec.ValidationError as error:
        return RecordError(explain(error, data), raw=data)
    except RecursionError:
        return RecordError("$: nested too deeply", raw=data)
    except msgspec.DecodeError as error:
        return RecordError(f"$: {_syntax(error)}", raw=data)


def _seq_of(fields: dict[str, Raw]) -> int | None:
    try:
        return msgspec.json.decode(fields["seq"], type=UInt)
    except (KeyError, msgspec.ValidationError):
        return None


def _syntax(error: Exception) -> str:
    return str(error) if "malformed" in str(error) or "truncated" in str(error) else f"JSON is malformed: {error}"


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]')
_SEQ = re.compile(rb'\s*\{\s*"seq"\s*:\s*(\d{1,19})\s*,\s*"records"\s*:\s*\[')


def _decode_deep(data: bytes, why: str = "nested too deeply") -> Message:
    """An array or envelope with a record that is too deep for the parser: that record alone is refused.

    A single record, or a message too long to be cut by hand, is refused as a whole.
    """
    match = _SEQ.match(data)
    seq = int(match[1]) if match else None
    if seq is not None and seq >= 2**63:
        raise WireError("$.seq: expected an integer below 2**63")
    start = match.end() if match else data.find(b"[") + 1
    single = match is None and not data.lstrip(_WHITE).startswith(b"[")
    if len(data) > _SPLIT_LIMIT_BYTES or single:
        raise WireError(why, seq=seq, raw=data if single else b"")
    try:
        return Message(seq, [_judge_deep(part) for part in split_array(data, start)])
    except msgspec.DecodeError as error:
        raise WireError(_syntax(error), seq=seq, fatal=True) from None


def _judge_deep(part: bytes) -> Record | RecordError:
    try:
        return _judge(Raw(part))
    except RecursionError:
        return RecordError("$: nested too deeply", raw=part)


def split_array(data: bytes, start: int) -> list[bytes]:
    """The elements of the JSON array whose first element begins at `start`, cut without parsing what is in them."""
    parts: list[bytes] = []
    depth = 0
    begin = start
    for token in _TOKEN.finditer(data, start):
        char = token[0]
        if char in (b"[", b"{"):
            depth += 1
        elif char == b"," and depth == 0:
            parts.append(data[begin : token.start()])
            begin = token.end()
        elif char in (b"]", b"}"):
            if depth == 0:
                return [*parts, data[begin : token.start()]]
            depth -= 1
    raise msgspec.DecodeError("Input data was truncated")


_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def deeper_than(data: bytes, limit: int) -> bool:
    """Whether valid JSON nests deeper than `limit`. Two memory scans for ordinary records, one per level otherwise."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", data).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # takes away the innermost level everywhere, so once per level
    return bool(brackets)


def hello_answer(version: str, max_frame_bytes: int, last_seq: int) -> dict[str, Any]:
    """The answer to a hello; `last_seq` is the highest seq of the stream whose outcome is on disk, 0 for none."""
    return {
        "hello": 1,
        "agentd": version,
        "contract": CONTRACT,
        "max_frame_bytes": max_frame_bytes,
        "kinds": list(KINDS),
        "last_seq": last_seq,
    }
