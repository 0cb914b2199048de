"""Streams: the last 64 outcomes of each client, kept with the records, so that a repeated envelope is stored once. Pure.

A user's streams are bounded in number and in what their outcomes say: beyond that the one is forgotten that was silent longest, as if
it had been silent for a week. So who opens streams without end harms the memory of his own alone.

A hello says what its client has lost before intake since its stream began. The newest word of each stream counts; what those had
said that are forgotten is summed up in a stream that nobody has, so that the sum over all of them never goes down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct, field

from agentd.errors import WireError
from agentd.records import KINDS
from agentd.wire import MAX_UNANSWERED, Ack

_NOBODY = (-1, "")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CAUSES = frozenset(  # those of our own client library
    ["no_daemon", "buffer_full", "spool_full", "closed", "not_encodable", "unsupported", "too_large", "no_run"]
)
_MOST_CAUSES = 32  # of others, whoever sends them: they become labels of metrics
MOST_STREAMS = 4096  # of one user: with a process a second, who is silent for more than an hour
MOST_REFUSALS = 65536  # in the outcomes of one user's streams: about 10 MiB
_MOST = 10**15  # records, of a cause and kind of one stream
_OTHER = "other"


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

    @property
    def refusals(self) -> int:
        """How many its outcomes tell of."""
        return sum(len(ack.rejected) for ack in self.outcomes.values())


class Streams:
    """All streams, with the row that each has on disk."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, str], tuple[int, Stream]] = {}
        self._users: dict[
            int, dict[str, int]
        ] = {}  # by uid: the refusals in each stream's outcomes; the last in use is the last
        self._refusals: dict[int, int] = {}  # by uid, in all
        self._passed: list[int] = []  # rows of those that were forgotten for want of room
        self._causes: set[str] = set()
        self._forgotten: dict[str, int] = {}  # what those have lost that were forgotten, and is not in a row yet

    def __len__(self) -> int:
        return len(self._streams.keys() - {_NOBODY})

    def get(self, uid: int, name: str) -> tuple[int, Stream] | None:
        """(row, stream), None for one that never sent an envelope."""
        return self._streams.get((uid, name))

    def add(self, row: int, stream: Stream) -> Stream:
        self._streams[stream.uid, stream.name] = (row, stream)
        self._use(stream)
        self._causes |= {cause for cause, _ in map(_parts, stream.lost)} - _CAUSES
        return stream

    def record(self, stream: Stream, ack: Ack, now_us: int) -> None:
        """Keep an outcome of a stream."""
        stream.record(ack, now_us)
        self._use(stream)
        while self._refusals[stream.uid] > MOST_REFUSALS and len(stream.outcomes) > 1:
            del stream.outcomes[min(stream.outcomes)]  # all his others are forgotten already
            self._use(stream)

    def _use(self, stream: Stream) -> None:
        """It is the last in use of its user, who may have too much now."""
        if stream.uid < 0 and not stream.name:
            return
        uid, names = stream.uid, self._users.setdefault(stream.uid, {})
        before, now = names.pop(stream.name, 0), stream.refusals
        names[stream.name] = now
        self._refusals[uid] = self._refusals.get(uid, 0) + now - before
        while len(names) > MOST_STREAMS or (self._refusals[uid] > MOST_REFUSALS and len(names) > 1):
            self._passed.append(self._drop((uid, next(iter(names)))))

    def _drop(self, key: tuple[int, str]) -> int:
        """Forget a stream; gives its row."""
        uid, name = key
        row, stream = self._streams.pop(key)
        names = self._users[uid]
        self._refusals[uid] -= names.pop(name)
        if not names:
            del self._users[uid], self._refusals[uid]
        _add_up(self._forgotten, stream.lost)
        return row

    def report(self, stream: Stream, lost: Mapping[str, int]) -> bool:
        """A client says what it has lost so far, by `cause:kind`; False if that is nothing new. It can't take anything back."""
        said: dict[str, int] = {}
        for name, records in lost.items():
            known = self._name(name)
            said[known] = min(said.get(known, 0) + records, _MOST)
        more = {name: records for name, records in said.items() if records > stream.lost.get(name, 0)}
        stream.lost |= more
        return bool(more)

    def _name(self, name: str) -> str:
        """As it is counted: words that nobody knows are `other`, whatever a client calls them."""
        cause, kind = _parts(name)
        if cause not in _CAUSES and cause not in self._causes:
            if _WORD.fullmatch(cause) and len(self._causes) < _MOST_CAUSES:
                self._causes.add(cause)
            else:
                cause = _OTHER
        if not kind:
            return cause
        return f"{cause}:{kind if kind in KINDS else _OTHER}"

    def lost(self) -> dict[str, int]:
        """What clients say they lost before intake, by cause and kind, over all streams."""
        total = dict(self._forgotten)
        for _, stream in self._streams.values():
            for cause, records in stream.lost.items():
                total[cause] = total.get(cause, 0) + records
        return total

    def prune(self, is_old: Callable[[int], bool]) -> list[int]:
        """Forget streams that were silent for so long; gives their rows, and those of who had to go before."""
        old = [key for key, (_, stream) in self._streams.items() if key != _NOBODY and is_old(stream.touched_us)]
        rows, self._passed = [*self._passed, *[self._drop(key) for key in old]], []
        return rows

    def row(self, stream: Stream) -> tuple[int, bytes]:
        """Its row's number and value."""
        return self._streams[stream.uid, stream.name][0], encode(stream)

    def take_forgotten(self, new_row: Callable[[], int]) -> Stream | None:
        """The stream that nobody has, to be written in the commit that drops the others' rows; None: it is as it was."""
        if not self._forgotten:
            return None
        known = self._streams.get(_NOBODY)
        row, stream = known or (new_row(), Stream(*_NOBODY))
        _add_up(stream.lost, self._forgotten)
        self._forgotten = {}
        return self.add(row, stream)


def _parts(name: str) -> tuple[str, str]:
    cause, _, kind = name.partition(":")
    return cause, kind


def _add_up(total: dict[str, int], lost: Mapping[str, int]) -> None:
    for name, records in lost.items():
        total[name] = min(total.get(name, 0) + records, 2**63 - 1)  # what a row can hold


def encode(stream: Stream) -> bytes:
    return msgspec.msgpack.encode(stream)


def decode(value: bytes) -> Stream:
    """Raises msgspec.MsgspecError."""
    try:
        return msgspec.msgpack.decode(value, type=Stream)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
