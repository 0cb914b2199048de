"""Records as they come, for whoever listens: what is wanted, what is held for a reader, what a slow one misses. Pure.

    tails = Tails(overhear)                 # `overhear(tails.show)` when the first comes, `overhear(None)` when the last has gone
    listener = tails.open(Wish(level="warn"), uid)
    listener.take(2**18, sees)              # JSON lines of what came since, and gaps

Who hands records over does it at most once a commit and waits for nobody: a reference is kept, and matching and encoding are left
to the reader's own turn. What a reader has not taken is bounded in records and bytes; what comes above that is counted in its place
and gone, for that reader alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from agentd.identity import text_of
from agentd.queued import Entry, Source
from agentd.units import rfc3339

LEVELS = ("debug", "info", "warn", "error")
MOST = 16  # listeners
MOST_OF_ONE = 4  # of one user
HELD_RECORDS = 2000
HELD_BYTES = 2**20  # of records; one message is held however large it is
_BESIDE = 200  # bytes of a record beside its body
_BETWEEN_LOOKS = 8  # records between two looks at the clock
_LEVELLED = ("event", "span")

Sees = Callable[[str, Source], bool]
Copies = Mapping[str, Sequence[Entry]]


class _Named(Struct):
    """What has to be looked up in a record's body."""

    level: str = "info"
    run_id: str | None = None


_named = msgspec.json.Decoder(_Named)
_encoder = msgspec.json.Encoder()


class Wish(Struct, frozen=True):
    """Which records are wanted; what is empty or None leaves nothing out.

    `level` is the least one: only events and spans have a level, so with it nothing else is shown.
    """

    kinds: tuple[str, ...] = ()
    agent: str | None = None
    run: str | None = None
    destination: str | None = None
    level: str | None = None

    def wants(self, entry: Entry) -> bool:
        """Whether it is meant, wherever it goes."""
        if (self.kinds and entry.kind not in self.kinds) or (self.agent is not None and entry.agent != self.agent):
            return False
        if self.level is not None and entry.kind not in _LEVELLED:
            return False
        by_lane = self.run is None or entry.lane == f"run:{self.run}"
        if by_lane and self.level in (None, LEVELS[0]):
            return True
        named = _named.decode(entry.body)
        return (by_lane or named.run_id == self.run) and (
            self.level is None or LEVELS.index(named.level) >= LEVELS.index(self.level)
        )

    @property
    def is_everything(self) -> bool:
        return self == Wish()


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """So many listen already that there is no place for one more."""


class _Gap(Struct):
    """So many records came when there was no room for them."""

    records: int = 0


class Listener:
    """One reader. Lives on the event loop, as do those who show it something."""

    def __init__(self, wish: Wish, uid: int) -> None:
        self.wish = wish
        self.uid = uid
        self.closed = False
        self.news = asyncio.Event()  # there is something to take, or the end has come
        self.missed = 0  # records, altogether
        self._held: deque[_Gap | tuple[list[str], Entry]] = deque()
        self._records = 0
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Listener of uid {self.uid}: {self._records} held, {self.missed} missed>"

    @property
    def is_behind(self) -> bool:
        """Whether there is something to take."""
        return bool(self._held)

    def offer(self, found: Collection[tuple[list[str], Entry]], size: int) -> None:
        """Records of one message, with where each goes; `size` is theirs together."""
        if self._records and (self._records + len(found) > HELD_RECORDS or self._bytes + size > HELD_BYTES):
            self.missed += len(found)
            if not (self._held and isinstance(self._held[-1], _Gap)):
                self._held.append(_Gap())
            gap = self._held[-1]
            assert isinstance(gap, _Gap)  # noqa: S101 - it was made so
            gap.records += len(found)
        else:
            self._records += len(found)
            self._bytes += size
            self._held.extend(found)
        self.news.set()

    def take(
        self,
        size: int,
        sees: Sees | None,
        shown: Collection[bytes] = (),
        enough: Callable[[], bool] = lambda: False,
    ) -> list[bytes]:
        """JSON lines of about so many bytes at most, the oldest first, until there is `enough`; those in `shown` are left out.

        `sees` says whose records the reader may see at which destination; None: everybody's.
        """
        lines: list[bytes] = []
        looked_at = 0
        while self._held and size > 0:
            looked_at += 1
            if looked_at % _BETWEEN_LOOKS == 0 and enough():
                break
            one = self._held.popleft()
            if isinstance(one, _Gap):
                lines.append(gap_line(one.records, exact=self.wish.is_everything and sees is None))
                continue
            names, entry = one
            self._records -= 1
            self._bytes -= len(entry.body) + _BESIDE
            names = [name for name in names if self._at(name) and (sees is None or sees(name, entry.source))]
            if names and entry.record_id not in shown and self.wish.wants(entry):
                lines.append(record_line(names, entry))
                size -= len(lines[-1])
        if not self._held:
            self.news.clear()
        return lines

    def _at(self, name: str) -> bool:
        return self.wish.destination in (None, name)

    def close(self) -> None:
        """There is nothing more to come."""
        self.closed = True
        self.news.set()


class Tails:
    """All who listen. `overhear` is told what to call with the records of each commit, None while nobody listens."""

    def __init__(self, overhear: Callable[[Callable[[Copies], None] | None], None]) -> None:
        self._overhear = overhear
        self._listeners: set[Listener] = set()
        self._ended = False

    def __repr__(self) -> str:
        return f"<Tails {len(self._listeners)} listen>"

    def __len__(self) -> int:
        return len(self._listeners)

    def open(self, wish: Wish, uid: int) -> Listener:
        """One more, until `close` with it. Raises Busy."""
        if self._ended:
            raise Busy("the daemon stops")
        of_uid = Counter(listener.uid for listener in self._listeners)
        if len(self._listeners) >= MOST or of_uid[uid] >= MOST_OF_ONE:
            raise Busy(f"{len(self._listeners)} listen already, {of_uid[uid]} of them yours: end one of these first")
        listener = Listener(wish, uid)
        if not self._listeners:
            self._overhear(self.show)
        self._listeners.add(listener)
        return listener

    def close(self, listener: Listener | None = None) -> None:
        """One has gone; without it: nobody hears anything more."""
        for one in [listener] if listener is not None else list(self._listeners):
            one.close()
            self._listeners.discard(one)
        self._ended = self._ended or listener is None
        if not self._listeners:
            self._overhear(None)

    def show(self, copies: Copies) -> None:
        """The records of a message, with their destinations."""
        found: dict[bytes, tuple[list[str], Entry]] = {}  # 0.3 µs a record
        size = 0
        for name, entries in copies.items():
            for entry in entries:
                known = found.get(entry.record_id)
                if known is None:
                    found[entry.record_id] = ([name], entry)
                    size += len(entry.body) + _BESIDE
                else:
                    known[0].append(name)
        if found:
            for listener in self._listeners:
                listener.offer(found.values(), size)


# -- lines -------------------------------------------------------------------------------------------------------------


def record_line(names: list[str], entry: Entry) -> bytes:
    """A record as it was stored, with what agentd knows of it."""
    document: dict[str, Any] = {
        "admitted_at": rfc3339(entry.admitted_us / 1e6),
        "destinations": names,
        "kind": entry.kind,
        "id": text_of(entry.record_id),
        "lane": entry.lane,
        "agent": entry.agent,
        "uid": entry.source.uid,
        "bytes": len(entry.body),
        "record": Raw(entry.body),  # spliced: it was checked when it came in
    }
    return _encoder.encode(document) + b"\n"


def gap_line(records: int, *, exact: bool) -> bytes:
    """So many were not shown; not `exact`: some of them might not have been wanted, or not been the reader's to see."""
    return msgspec.json.encode({"not_shown": records, "exact": exact}) + b"\n"


def pieces(lines: Sequence[bytes], size: int) -> Iterator[bytes]:
    """The lines in pieces of at most so many bytes."""
    data = b"".join(lines)
    return (data[at : at + size] for at in range(0, len(data), size))
