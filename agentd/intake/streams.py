"""Streams: the last 64 outcomes of each client, kept with the records, so that a repeated envelope is stored once. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct, field

from agentd.errors import WireError
from agentd.wire import MAX_UNANSWERED, Ack


class Stream(Struct, array_like=True):
    """One client's stream. A stream belongs to the uid that opened it."""

    uid: int
    name: str
    last_seq: int = 0
    touched_us: int = 0
    outcomes: dict[int, Ack] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    # what found no room and has to come first (`order.Turns.away`); for envelopes that were under way then
    turned_away: dict[str, bytes] = field(default_factory=dict)
    turned_away_until: int = 0

    def known(self, seq: int) -> Ack | None:
        """The outcome of an envelope that was answered before. Raises WireError for one that is too old to know."""
        outcome = self.outcomes.get(seq)
        if outcome is None and seq <= self.last_seq:
            raise WireError(
                f"seq {seq}: {self.last_seq} was the last, and no outcome of {seq} is kept; seq rises by one", seq=seq
            )
        return outcome

    def waiting_room(self, seq: int) -> dict[str, bytes]:
        """What has to come before the rest of its run; at most 64 envelopes can have been under way when it was refused."""
        if seq > self.turned_away_until:
            self.turned_away.clear()
        return self.turned_away

    def remember_turned_away(self, seq: int) -> None:
        """Something of this envelope found no room."""
        self.turned_away_until = max(self.turned_away_until, seq + MAX_UNANSWERED - 1)

    def record(self, ack: Ack, now_us: int) -> None:
        """Keep an outcome; the oldest beyond 64 goes."""
        self.outcomes[ack.seq] = ack
        self.last_seq = max(self.last_seq, ack.seq)
        self.touched_us = now_us
        while len(self.outcomes) > MAX_UNANSWERED:
            del self.outcomes[min(self.outcomes)]


class Streams:
    """All streams, with the row that each has on disk."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, str], tuple[int, Stream]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, uid: int, name: str) -> tuple[int, Stream] | None:
        """(row, stream), None for one that never sent an envelope."""
        return self._streams.get((uid, name))

    def add(self, row: int, stream: Stream) -> Stream:
        self._streams[stream.uid, stream.name] = (row, stream)
        return stream

    def lost(self) -> dict[str, int]:
        """What clients say they lost before intake, by cause and kind, over all streams."""
        total: dict[str, int] = {}
        for _, stream in self._streams.values():
            for cause, records in stream.lost.items():
                total[cause] = total.get(cause, 0) + records
        return total

    def prune(self, is_old: Callable[[int], bool]) -> list[int]:
        """Forget streams that were silent for so long; gives their rows."""
        old = [(key, row) for key, (row, stream) in self._streams.items() if is_old(stream.touched_us)]
        for key, _ in old:
            del self._streams[key]
        return [row for _, row in old]


def encode(stream: Stream) -> bytes:
    return msgspec.msgpack.encode(stream)


def decode(value: bytes) -> Stream:
    """Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(value, type=Stream)
