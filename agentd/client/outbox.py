"""The client's side of the frames dialect: hello, envelopes, answers, repeats. Pure: bytes in, bytes out; no socket, no clock.

Within a stream `seq` rises by one from 1, also across reconnects, with at most 64 envelopes unanswered. Whatever got no
answer is repeated after a reconnect with the same seq and the same bytes, so that nothing is stored twice. Records that
the daemon has no room for and that must not be shed come back to the buffer's front and go out under a fresh seq; until
they went through, one envelope at a time is under way, so that nothing younger overtakes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from agentd.client.buffer import KEEP, Buffer, Entry
from agentd.client.lines import render
from agentd.wire import HEADER_BYTES, MAX_FRAME_BYTES, MAX_UNANSWERED, frame, frame_length

ENVELOPE_RECORDS = 100
ENVELOPE_BYTES = 256 * 1024
FULL = "spool full"
_ENVELOPE_ROOM = 64  # bytes of an envelope beside its records: {"seq":18446744073709551615,"records":[]}
_MAX_CAUSES = 32  # a peer must not be able to make us count endlessly many different things


class Envelope(NamedTuple):
    """What is under way under one seq. Its bytes are made again from the entries for a repeat: they come out the same."""

    seq: int
    entries: list[Entry]

    def frame(self) -> bytes:
        records = b",".join([render(entry.data) for entry in self.entries])
        return frame(b'{"seq":%d,"records":[%b]}' % (self.seq, records))


class Outbox:
    """One stream: what was sent, what is unanswered, what the daemon said it knows."""

    def __init__(self, buffer: Buffer, stream: str, client: str) -> None:
        self.stream = stream
        self.spool_full = False  # the daemon had no room; the channel waits before it asks for the next frame
        self._buffer = buffer
        self._client = client
        self._seq = 0
        self._unanswered: dict[int, Envelope] = {}
        self._held: list[Entry] = []
        self._kinds: frozenset[str] | None = None
        self._max_frame = MAX_FRAME_BYTES
        self._causes: set[str] = set()

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def hello(self) -> bytes:
        """The frame that a connection begins with. The counts are totals since the stream began."""
        hello = {
            "hello": 1,
            "stream": self.stream,
            "owns_runs": True,
            "lost": self._buffer.lost_by(),
            "emitted": self._buffer.emitted,
            "client": self._client,
        }
        return frame(msgspec.json.encode(hello))

    def on_hello(self, answer: Mapping[str, Any]) -> None:
        """Learn what the daemon takes."""
        kinds = answer.get("kinds")
        self._kinds = frozenset(map(str, kinds)) if isinstance(kinds, list) else None
        limit = answer.get("max_frame_bytes")
        self._max_frame = limit if isinstance(limit, int) and limit > 0 else MAX_FRAME_BYTES

    def repeats(self) -> list[Envelope]:
        """The unanswered envelopes, oldest first, as they were."""
        return [self._unanswered[seq] for seq in sorted(self._unanswered)]

    def next_envelope(self) -> Envelope | None:
        """The next envelope, or None: nothing waits, too much is unanswered, or the daemon has to make room first."""
        window = 1 if self.spool_full else MAX_UNANSWERED
        if self._held or len(self._unanswered) >= window:
            return None
        entries: list[Entry] = []
        while not entries:
            taken = self._take()
            if not taken:
                return None
            entries = [entry for entry in taken if self._fits(entry)]
        self._seq += 1
        envelope = Envelope(self._seq, entries)
        self._unanswered[self._seq] = envelope
        return envelope

    def _take(self) -> list[Entry]:
        """As much as an envelope may hold. Half of the buffer at most is under way: the other half is for what comes."""
        buffer = self._buffer
        room = max(buffer.max_bytes // 2 - buffer.bytes_under_way, 0)
        records = max(buffer.max_records // 2 - buffer.under_way, 0)
        if buffer.under_way and not (room and records):
            return []
        return buffer.take(
            max(min(ENVELOPE_RECORDS, records), 1), min(ENVELOPE_BYTES, self._max_frame - _ENVELOPE_ROOM, room)
        )

    def _fits(self, entry: Entry) -> bool:
        if self._kinds is not None and entry.kind not in self._kinds:
            self._buffer.lose(entry, "unsupported", f"this agentd is older and knows no {entry.kind} records")
            return False
        if entry.size + _ENVELOPE_ROOM > self._max_frame:
            self._buffer.lose(entry, "too_large", f"a record of {entry.size} bytes is above max_frame_bytes")
            return False
        return True

    def on_answer(self, answer: Mapping[str, Any]) -> str | None:
        """Settle the envelope that is answered. Returns what the daemon has against the connection itself, if anything."""
        seq = answer.get("seq")
        error = answer.get("error")
        reasons = _reasons(answer.get("rejected"))
        envelope = self._unanswered.pop(seq, None) if isinstance(seq, int) else None
        if envelope is None:
            return str(error) if error is not None else None
        full = False
        for index, entry in enumerate(envelope.entries):
            reason = str(error) if error is not None else reasons.get(index)
            if reason is None:
                self._buffer.accept(entry)
            elif reason.startswith(FULL):
                full = True
                self._no_room(entry)
            else:
                self._buffer.refuse(entry, self._cause(reason), reason)
        self._after(full=full)
        return None

    def _no_room(self, entry: Entry) -> None:
        if entry.rank == KEEP:
            self._held.append(entry)
        else:
            self._buffer.lose(entry, "spool_full")

    def _after(self, *, full: bool) -> None:
        """Once all answers are in, the held records return to the buffer together and in order."""
        if full:
            self.spool_full = True
        elif not self._held:
            self.spool_full = False
        if self._held and not self._unanswered:
            self._buffer.put_back(self._held)
            self._held = []

    def _cause(self, reason: str) -> str:
        """A short, stable name for a refusal: what stands before the first colon, `invalid` for a field that is wrong."""
        cause = "invalid" if reason.startswith("$") else reason.partition(":")[0][:64].strip() or "invalid"
        if cause not in self._causes and len(self._causes) >= _MAX_CAUSES:
            return "other"
        self._causes.add(cause)
        return cause

    def oldest(self) -> int | None:
        """The smallest number of a record that has neither an answer nor been given up."""
        numbers = [entry.number for envelope in self._unanswered.values() for entry in envelope.entries]
        numbers += [entry.number for entry in self._held]
        queued = self._buffer.oldest_queued()
        if queued is not None:
            numbers.append(queued)
        return min(numbers, default=None)

    def left_until(self, number: int) -> int:
        """How many records emitted no later than `number` have no answer yet."""
        entries = [entry for envelope in self._unanswered.values() for entry in envelope.entries] + self._held
        return sum(entry.number <= number for entry in entries) + self._buffer.queued_until(number)

    def give_up(self, cause: str) -> None:
        """Count all that is left as lost."""
        for envelope in self._unanswered.values():
            for entry in envelope.entries:
                self._buffer.lose(entry, cause)
        for entry in self._held:
            self._buffer.lose(entry, cause)
        self._unanswered.clear()
        self._held = []
        self._buffer.lose_all(cause)


def _reasons(rejected: object) -> dict[int, str]:
    """Index → reason, from whatever the peer wrote there."""
    items = rejected if isinstance(rejected, list) else []
    return {item.get("index", -1): str(item.get("error")) for item in items if isinstance(item, dict)}


class Frames:
    """Bytes from the socket, cut into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete now. Raises WireError or ValueError for what is none of ours."""
        self._data += data
        messages: list[dict[str, Any]] = []
        while len(self._data) >= HEADER_BYTES:
            end = HEADER_BYTES + frame_length(self._data[:HEADER_BYTES])
            if len(self._data) < end:
                break
            messages.append(msgspec.json.decode(bytes(self._data[HEADER_BYTES:end]), type=dict[str, Any]))
            del self._data[:end]
        return messages
