"""The client's side of the frames dialect: hello, envelopes, answers, repeats. Pure: bytes in, bytes out; no socket, no clock.

Within a stream `seq` rises by one from 1, also across reconnects, with at most 64 envelopes unanswered. Whatever got no
answer is repeated after a reconnect with the same seq and the same bytes, so that nothing is stored twice.

Records that must not be shed and found no room are parked: for all of their destinations, or, where some took them, for the
others. The daemon remembers for 64 envelopes what has to come first where, so what is younger may go on meanwhile. Parked
records are tried again in sweeps, oldest first and with nothing younger between, until all have been tried or none of an
envelope is taken: then, as before, the first of each run that is parked has been refused last, and is waited for.

While a refusal looks as if the daemon had no room for anything, one envelope at a time is under way and all are sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from agentd.client.buffer import KEEP, Buffer, Entry
from agentd.client.lines import narrow, render
from agentd.wire import HEADER_BYTES, MAX_FRAME_BYTES, MAX_UNANSWERED, frame, frame_length

ENVELOPE_RECORDS = 100
ENVELOPE_BYTES = 256 * 1024
FULL = "spool full"
_ENVELOPE_ROOM = 64  # bytes of an envelope beside its records: {"seq":18446744073709551615,"records":[]}
_SWEEP_WITHIN = MAX_UNANSWERED - 4  # envelopes after a refusal, while the daemon still knows of it
_MAX_CAUSES = 32  # a peer must not be able to make us count endlessly many different things


class Envelope(NamedTuple):
    """What is under way under one seq. Its bytes are made again from the entries for a repeat: they come out the same."""

    seq: int
    entries: list[Entry]
    parked: int = 0  # how many of the first of them were parked: this is part of a sweep
    is_probe: bool = False  # sent while the daemon seemed to be full

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
        self._narrowed: set[int] = set()  # numbers of those parked that some destinations have
        self._sweep_due = False
        self._last_was_sweep = False
        self._sweep_by: int | None = None  # the seq at which one has to go out at the latest
        self._swept: int | None = None  # the highest number that the sweep under way has tried; None: there is none
        self.failed_sweeps = 0  # in a row
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

    @property
    def queued(self) -> int:
        """How many records could go out now or after the next answer."""
        waiting = self._buffer.queued - (0 if self.sweeping else self._buffer.parked)
        return waiting + (1 if self._may_tell else 0)

    @property
    def _may_tell(self) -> bool:
        """Whether runs are to be told what they lost, and the daemon has room."""
        return not self.spool_full and not self._buffer.parked and self._buffer.has_to_tell

    @property
    def sweeping(self) -> bool:
        """Whether parked records are being tried again, or are to be as soon as nothing is unanswered."""
        return self._sweep_due or self._swept is not None or (self.spool_full and self._buffer.parked > 0)

    def sweep(self) -> None:
        """Try the parked records again."""
        self._sweep_due = self._buffer.parked > 0

    def next_envelope(self) -> Envelope | None:
        """The next envelope, or None: nothing waits, too much is unanswered, or the daemon has to make room first."""
        if self._sweep_by is not None and self._seq + 1 >= self._sweep_by:
            self._sweep_by = None
            self.sweep()
        window = 1 if self.spool_full or self.sweeping else MAX_UNANSWERED
        if len(self._unanswered) >= window:
            return None
        entries: list[Entry] = []
        if self._swept is not None or (self.sweeping and not self._is_others_turn()):
            entries = self._sweep()
        parked = len(entries)
        if not parked or (self.spool_full and not self._buffer.parked_after(self._swept or 0)):
            entries += self._fresh(ENVELOPE_RECORDS - parked, sum(entry.size for entry in entries))
        if not entries:
            return None
        self._seq += 1
        self._last_was_sweep = parked == len(entries)
        envelope = self._unanswered[self._seq] = Envelope(self._seq, entries, parked, self.spool_full)
        return envelope

    def _is_others_turn(self) -> bool:
        """No two failed sweeps in a row while anything else waits, that others may have room for."""
        return self._last_was_sweep and self._buffer.queued > self._buffer.parked

    def _sweep(self) -> list[Entry]:
        """The next of the sweep; none: it is over."""
        self._sweep_due = False
        self._sweep_by = None
        room = min(ENVELOPE_BYTES, self._max_frame - _ENVELOPE_ROOM)
        while taken := self._buffer.take_parked(self._swept or 0, ENVELOPE_RECORDS, room):
            self._swept = taken[-1].number
            if entries := [entry for entry in taken if self._fits(entry)]:
                return entries
        self._swept = None
        return []

    def _fresh(self, records: int, size: int) -> list[Entry]:
        """What has not been sent before, beside `size` bytes that were."""
        if self._may_tell:
            self._buffer.tell()
        while records > 0 and (taken := self._take(records, size)):
            if entries := [entry for entry in taken if self._fits(entry)]:
                return entries
        return []

    def _take(self, records: int, size: int) -> list[Entry]:
        """As much as an envelope may hold. Half of the buffer at most is under way: the other half is for what comes."""
        buffer = self._buffer
        room = max(buffer.max_bytes // 2 - buffer.bytes_under_way, 0)
        free = max(buffer.max_records // 2 - buffer.under_way, 0)
        if buffer.under_way and not (room and free):
            return []
        room = min(ENVELOPE_BYTES - size, self._max_frame - _ENVELOPE_ROOM - size, room)
        if size and room < (buffer.oldest_size() or 0):
            return []
        return buffer.take(max(min(records, free), 1), room)

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
        refusals = _refusals(answer.get("rejected"))
        envelope = self._unanswered.pop(seq, None) if isinstance(seq, int) else None
        if envelope is None:
            return str(error) if error is not None else None
        full = taken = False
        moved = False  # any of those that were parked
        had_parked = self._buffer.parked > 0
        for index, entry in enumerate(envelope.entries):
            reason, to = (str(error), []) if error is not None else refusals.get(index, (None, []))
            if reason is None:
                self._buffer.accept(entry)
                taken = True
            elif not reason.startswith(FULL):
                self._buffer.refuse(entry, self._cause(reason), reason)
            else:
                full |= not to and entry.rank == KEEP and entry.number not in self._narrowed
                taken |= bool(to)
                self._no_room(entry, to, envelope.seq)
            moved |= index < envelope.parked and (reason is None or bool(to))
        full |= not taken and any(reason.startswith(FULL) for reason, _ in refusals.values())
        if envelope.parked:
            self._after_sweep(moved=moved)
        if envelope.is_probe:
            self.spool_full = full and not taken
        elif full and not envelope.parked and not (had_parked and taken):
            self.spool_full = True
        return None

    def _no_room(self, entry: Entry, to: list[str], seq: int) -> None:
        """Park it for `to`, since others have it; none named: for all that it was sent for."""
        if entry.rank != KEEP:
            self._buffer.lose(entry, "spool_full", f"{entry.kind} lost: no room for {', '.join(to)}" if to else "")
            return
        if to:
            self._narrowed.add(entry.number)
        self._buffer.park(entry, narrow(entry.data, to) if to else None)
        self._sweep_by = min(self._sweep_by or seq + _SWEEP_WITHIN, seq + _SWEEP_WITHIN)

    def _after_sweep(self, *, moved: bool) -> None:
        """Go on with the sweep while there is room for any, and until each was tried."""
        self.failed_sweeps = 0 if moved else self.failed_sweeps + 1
        if not moved or not self._buffer.parked_after(self._swept or 0):
            self._swept = None
        if not self._buffer.parked:
            self._narrowed.clear()

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
        queued = self._buffer.oldest_queued()
        if queued is not None:
            numbers.append(queued)
        return min(numbers, default=None)

    def left_until(self, number: int) -> int:
        """How many records emitted no later than `number` have no answer yet."""
        entries = [entry for envelope in self._unanswered.values() for entry in envelope.entries]
        return sum(entry.number <= number for entry in entries) + self._buffer.queued_until(number)

    def give_up(self, cause: str) -> None:
        """Count all that is left as lost."""
        for envelope in self._unanswered.values():
            for entry in envelope.entries:
                self._buffer.lose(entry, cause)
        self._unanswered.clear()
        self._buffer.lose_all(cause)


def _refusals(rejected: object) -> dict[int, tuple[str, list[str]]]:
    """Index → reason, and the destinations that it is for if not for all, from whatever the peer wrote there."""
    items = rejected if isinstance(rejected, list) else []
    return {item.get("index", -1): (str(item.get("error")), _names(item)) for item in items if isinstance(item, dict)}


def _names(refusal: dict[str, Any]) -> list[str]:
    to = refusal.get("to")
    return [str(name) for name in to] if isinstance(to, list) else []


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
