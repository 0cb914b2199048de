"""The sink: messages in, acknowledgements out once the records are on disk. Joins admission, streams and the spool."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from agentd import __version__
from agentd.crashpoints import Point, reached
from agentd.errors import RecordError, SpoolFull, WireError
from agentd.intake import NO_TOKEN, Peer, Runs, Waiting
from agentd.intake.admit import FULL, Admission, Admitted, narrowed
from agentd.intake.dedupe import Window
from agentd.intake.dedupe import count as count_ids
from agentd.intake.evidence import grant_of, record_in
from agentd.intake.order import Place
from agentd.intake.streams import Stream, Streams
from agentd.outcomes import Cause
from agentd.queued import Entry, Ref, Refused
from agentd.records import Record, order_key
from agentd.wire import Ack, Hello, Message, Rejected, hello_answer

log = logging.getLogger("agentd.intake")

_LOG_EVERY_S = 10.0  # a line for each cause of refusal at most this often; the counters have them all


class Store(Protocol):
    """What the sink asks of the spool."""

    def append(
        self, copies: dict[str, list[Entry]], *, puts: Sequence[Any] = (), introduced: Sequence[Ref] = ()
    ) -> asyncio.Future[None]: ...
    def stream_row(self, row: int, value: bytes) -> Any: ...
    def new_stream_row(self) -> int: ...
    def keep_stream(self, row: int, value: bytes) -> None:
        """Write it with the next commit, or the first one after it that has room."""
        ...

    def seen(self, value: bytes, count: int) -> Any: ...
    def keep_invalid(self, refused: Sequence[Refused]) -> asyncio.Future[None] | None: ...
    async def wait_for_room(self) -> None: ...


class _Held(Struct):
    """Records that nobody waits an answer for, and that found queues full. What was partly taken names the rest in `to`."""

    items: list[tuple[int, Record | RecordError]]
    peer: Peer
    origin: str
    future: asyncio.Future[Ack] | None  # None: another part of the message answers for it
    ack: Ack
    order: int
    places: set[Place]  # where they wait, and all that comes later has to wait behind them
    parts: frozenset[int] = frozenset()  # of the items, those that are counted with another part of themselves
    hits: dict[int, Mapping[str, int]] = {}  # of the redaction rules, by index


class SpoolSink:
    """See `agentd.intake.Sink`."""

    def __init__(
        self,
        admission: Admission,
        store: Store,
        window: Window,
        known: Streams,
        *,
        max_frame_bytes: int,
        now_us: Callable[[], int],
        clock: Callable[[], float],
        runs: Runs | None = None,
    ) -> None:
        """`runs` watches over the processes that own some; None: nobody does."""
        self.admission = admission
        self.streams = known
        self.messages = 0
        self.runs = runs
        self._store = store
        self._window = window
        self._max_frame_bytes = max_frame_bytes
        self._now_us = now_us
        self._clock = clock
        self._under_way: dict[tuple[int, str, int], asyncio.Future[Ack]] = {}
        self._pending_ids: dict[tuple[int, bytes], asyncio.Future[None]] = {}
        self._held: deque[_Held] = deque()
        self._holder: asyncio.Task[None] | None = None
        self._order = 0  # of messages that may be held
        self._logged: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()

    # -- agentd.intake.Sink ------------------------------------------------------------------------------------------

    def hello(self, hello: Hello, peer: Peer) -> dict[str, Any]:
        last_seq = 0
        if hello.stream is not None:
            if not 0 < len(hello.stream) <= 64:  # noqa: PLR2004 - a UUID has 36
                raise WireError("$.stream: expected a UUID")
            known = self.streams.get(peer.uid, hello.stream)
            if known is not None or hello.lost:  # one that has sent nothing needs no place in memory or on disk
                stream = known[1] if known else self._open(peer.uid, hello.stream)
                stream.touched_us = self._now_us()  # whoever says hello has not gone
                if self.streams.report(stream, hello.lost):
                    self._store.keep_stream(*self.streams.row(stream))
                last_seq = stream.last_seq
        return hello_answer(__version__, self._max_frame_bytes, last_seq)

    def claim(self, hello: Hello, peer: Peer, transport: asyncio.Transport) -> Peer:
        return peer if self.runs is None else self.runs.claim(hello, peer, transport)

    def submit(
        self, message: Message, peer: Peer, *, stream: str | None, origin: str, hold: bool
    ) -> asyncio.Future[Ack]:
        self.messages += 1
        key = None if stream is None or message.seq is None else (peer.uid, stream, message.seq)
        if key is not None:
            before = self._before(key)
            if before is not None:
                return before
        if hold:
            return self._submit_silent(message, peer, origin)
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        items = list(enumerate(message.items))
        stream_of = None if key is None else self._stream_of(key)
        away = None if stream_of is None else stream_of.waiting_room(key[2] if key else 0)
        outcome = self.admission.admit(items, peer, origin, self._now_us(), away, seq=message.seq or 0)
        if stream_of is not None and outcome.turns.full:
            stream_of.remember_turned_away(outcome.turns.seq)
        ack = Ack(-1 if message.seq is None else message.seq, outcome.accepted, outcome.rejected)
        self._log_refusals(outcome, peer)
        self._write(outcome, ack, future, key)
        return future

    def _submit_silent(self, message: Message, peer: Peer, origin: str) -> asyncio.Future[Ack]:
        """A message that nobody waits an answer for: what finds no room waits, and its run's later records behind it."""
        self._order += 1
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        held = _Held(list(enumerate(message.items)), peer, origin, future, Ack(-1, 0), self._order, set())
        behind = set().union(*[other.places for other in self._held]) if self._held else ()
        if not self._admit_held(held, behind).full:
            return future
        held.future = waiting = Waiting()
        self._hold(held)
        return waiting

    def _admit_held(self, held: _Held, behind: Collection[Place]) -> Admitted:
        """Admit what finds room; the rest stays in `held.items`. The future is done with the last of it."""
        outcome = self.admission.admit(
            held.items, held.peer, held.origin, self._now_us(), hold=True, behind=behind, hits=held.hits
        )
        self._log_refusals(outcome, held.peer)
        full = {index for index, _ in outcome.full}
        self.admission.refused[Cause.SPOOL_FULL.value] -= len(full)  # they are not refused: they wait
        if held.parts:
            self._uncount(held, outcome)
        held.ack.accepted += outcome.accepted
        held.ack.rejected += [r for r in outcome.rejected if r.index not in full]
        again = _again(held, outcome)
        if full:
            held.items, held.places = list(outcome.full), outcome.waiting
            again.future = None
            self._write(outcome, held.ack, None, None, again)
        else:
            self._write(outcome, held.ack, held.future, None, again)
        return outcome

    def _uncount(self, held: _Held, outcome: Admitted) -> None:
        """Take back the count of parts: the record is counted once, with its other part."""
        refused = {rejected.index for rejected in outcome.rejected}
        parts = sum(index in held.parts and index not in refused for index, _ in held.items)
        outcome.accepted -= parts
        self.admission.accepted -= parts

    def knows(self, uid: int, record_id: bytes) -> bool:
        """Whether a record of this id was taken from the uid, as far back as the dedupe window goes."""
        return self._window.knows(uid, record_id)

    def refuse(self, cause: str, detail: str, peer: Peer) -> None:
        self.admission.refused[cause] += 1
        self._log(cause, detail, peer)

    def keep(self, raw: bytes, reason: str, peer: Peer, origin: str, kind: str = "") -> None:
        if raw:
            self._store.keep_invalid(self.admission.evidence(RecordError(raw=raw), reason, peer, origin, kind=kind))

    async def readmit(self, refused: Refused) -> str | None:
        """Judge once more what was refused as invalid, as its sender's. None: it is on disk; else why it is refused."""
        source, allowed = refused.source, refused.allowed
        peer = Peer(source.uid, -1, source.pid, token=-1 if allowed is None else NO_TOKEN)
        grant = None if allowed is None else grant_of(allowed)
        items = [(0, record_in(refused))]
        outcome = self.admission.admit(items, peer, source.origin, self._now_us(), grant=grant)
        outcome.invalid.clear()  # it is kept already
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._write(outcome, Ack(-1, outcome.accepted, outcome.rejected), future, None)
        ack = await future
        return ack.rejected[0].error if ack.rejected else None

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(
        self,
        outcome: Admitted,
        ack: Ack,
        future: asyncio.Future[Ack] | None,
        key: tuple[int, str, int] | None,
        again: _Held | None = None,
    ) -> None:
        """Hand over to the spool. `again` is held if the disk has no room; without it the records are refused."""
        puts = []
        seen = b"".join([*outcome.seen, *(part.rows for part in outcome.parts)])
        if seen:
            puts.append(self._store.seen(seen, count_ids(seen)))
        if key is not None:
            assert future is not None  # noqa: S101 - an envelope has an answer
            self._under_way[key] = future
            puts.append(self._stream_put(key, ack))
        waits = [self._pending_ids[repeat] for repeat in outcome.repeats if repeat in self._pending_ids]
        if outcome.invalid and (kept := self._store.keep_invalid(outcome.invalid)) is not None:
            waits.append(kept)  # what is refused is on disk, too, before its sender hears of it
        if not (outcome.copies or puts):
            _finish(future, ack, waits)
            return
        owners = self.runs and self.runs.admitted(outcome.copies, outcome.introduced, outcome.process)
        if owners:
            puts += owners.puts
        reached(Point.INTAKE_ADMITTED)
        stored = self._store.append(outcome.copies, puts=puts, introduced=outcome.introduced)
        reached(Point.INTAKE_HANDED_OVER)
        if owners:
            stored.add_done_callback(owners.done)
        if seen:
            self._remember_pending(outcome, stored)
        stored.add_done_callback(lambda done: self._stored(done, outcome, ack, future, key, waits, again))

    def _remember_pending(self, outcome: Admitted, stored: asyncio.Future[None]) -> None:
        for row in [*outcome.seen, *(part.key for part in outcome.parts)]:
            pending = (int.from_bytes(row[:4], "big"), row[4:20])
            self._pending_ids[pending] = stored
            stored.add_done_callback(partial(self._forget_pending, pending))

    def _forget_pending(self, pending: tuple[int, bytes], done: asyncio.Future[None]) -> None:
        if self._pending_ids.get(pending) is done:  # a later part of the same record may be pending still
            del self._pending_ids[pending]

    def _stored(
        self,
        done: asyncio.Future[None],
        outcome: Admitted,
        ack: Ack,
        future: asyncio.Future[Ack] | None,
        key: tuple[int, str, int] | None,
        waits: list[asyncio.Future[None]],
        again: _Held | None,
    ) -> None:
        if key is not None:
            self._under_way.pop(key, None)
        if done.cancelled():
            if future is not None:
                future.cancel()
            return
        if done.exception() is not None:
            self._forget(outcome)
            if again is not None:
                ack.accepted -= outcome.accepted
                self._hold(again)
                return
            self._undo(outcome, ack, key)
        reached(Point.INTAKE_STORED)
        _finish(future, ack, waits)

    def _forget(self, outcome: Admitted) -> None:
        """The disk had no room: nothing of it is accepted, and no id is kept."""
        self._window.forget(b"".join(outcome.seen))
        for part in outcome.parts:
            self._window.forget_part(part)
        self.admission.accepted -= outcome.accepted

    def _undo(self, outcome: Admitted, ack: Ack, key: tuple[int, str, int] | None) -> None:
        """All that was accepted is refused instead; what was taken in part is lacked by whoever lacked it before."""
        self.admission.refused[Cause.SPOOL_FULL.value] += outcome.accepted
        refused = {r.index: r for r in ack.rejected if r.index not in outcome.lacking}
        total = outcome.accepted + len(ack.rejected)
        ack.rejected = [
            refused.get(index) or Rejected(index, FULL, outcome.lacking.get(index, [])) for index in range(total)
        ]
        ack.accepted = 0
        if key is not None:
            self.admission.turn_back(outcome)
            self._stream_of(key).remember_turned_away(key[2])
            rewritten = self._store.append({}, puts=[self._stream_put(key, ack)])
            rewritten.add_done_callback(_look_at)  # if that fails too, the client repeats and is refused again

    # -- streams -----------------------------------------------------------------------------------------------------

    def _before(self, key: tuple[int, str, int]) -> asyncio.Future[Ack] | None:
        """The answer to an envelope that came before, or is still under way."""
        under_way = self._under_way.get(key)
        if under_way is not None:
            return under_way
        known = self.streams.get(key[0], key[1])
        ack = known[1].known(key[2]) if known else None
        if ack is None:
            return None
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        future.set_result(ack)
        return future

    def _open(self, uid: int, name: str) -> Stream:
        return self.streams.add(self._store.new_stream_row(), Stream(uid, name, touched_us=self._now_us()))

    def _stream_of(self, key: tuple[int, str, int]) -> Stream:
        known = self.streams.get(key[0], key[1])
        return known[1] if known else self._open(key[0], key[1])

    def _stream_put(self, key: tuple[int, str, int], ack: Ack) -> Any:
        stream = self._stream_of(key)
        self.streams.record(stream, ack, self._now_us())
        return self._store.stream_row(*self.streams.row(stream))

    # -- holding -----------------------------------------------------------------------------------------------------

    def _hold(self, held: _Held) -> None:
        place = next((i for i, other in enumerate(self._held) if other.order >= held.order), len(self._held))
        if place < len(self._held) and self._held[place].order == held.order:
            self._held[place] = _joined(held, self._held[place])
        else:
            self._held.insert(place, held)
        if self._holder is None or self._holder.done():
            self._holder = asyncio.create_task(self._try_held(), name="held messages")

    async def _try_held(self) -> None:
        """Admit what waits for room as room comes: in order within a run, and no destination waits for another."""
        while self._held:
            busy: set[Place] = set()
            for held in list(self._held):
                if (held.places and held.places <= busy) or self._admit_held(held, busy).full:
                    busy |= held.places
                else:
                    self._held.remove(held)
            if self._held:
                await self._store.wait_for_room()  # room that came before we asked for it was tried above

    @property
    def held(self) -> int:
        """Records that wait for room, and whose senders are not read meanwhile."""
        return sum(len(held.items) for held in self._held)

    async def close(self) -> None:
        """Give up what is still held: those who sent it were never told that it was taken."""
        if self._holder is not None:
            self._holder.cancel()
            await asyncio.gather(self._holder, return_exceptions=True)
        if self._held:
            log.warning("%d records that waited for room were not taken", self.held, extra={"action": "held_dropped"})
        for held in self._held:
            self.admission.refused[Cause.SPOOL_FULL.value] += sum(i not in held.parts for i, _ in held.items)
            if held.future is not None and not held.future.done():
                held.future.set_result(held.ack)

    def prune(self, is_old: Callable[[int], bool]) -> list[int]:
        """Forget streams that were silent for so long; gives their rows."""
        rows = self.streams.prune(is_old)
        forgotten = self.streams.take_forgotten(self._store.new_stream_row)
        if forgotten is not None:
            self._store.keep_stream(*self.streams.row(forgotten))
        return rows

    # -- logging -----------------------------------------------------------------------------------------------------

    def _log_refusals(self, outcome: Admitted, peer: Peer) -> None:
        for rejected in outcome.rejected[:1]:
            self._log("refused", f"{len(outcome.rejected)} of a message, the first: {rejected.error}", peer)

    def _log(self, cause: str, detail: str, peer: Peer) -> None:
        now = self._clock()
        if now - self._logged.get(cause, -_LOG_EVERY_S) < _LOG_EVERY_S:
            self._unlogged[cause] += 1
            return
        more = self._unlogged.pop(cause, 0)
        self._logged[cause] = now
        log.warning(
            "%s from uid %d pid %d: %s%s", cause, peer.uid, peer.pid, detail, f" (and {more} more since the last line)" if more else "",
            extra={"action": "refused", "cause": cause},
        )  # fmt: skip


def _again(held: _Held, outcome: Admitted) -> _Held:
    """What was taken, to be held if the disk has no room for it: each record for those who took it."""
    refused = {rejected.index for rejected in outcome.rejected}
    items = dict(held.items)
    again: list[tuple[int, Record | RecordError]] = []
    places: set[Place] = set()
    for index, names in outcome.placed:
        record = items[index]
        assert not isinstance(record, RecordError)  # noqa: S101 - it was taken
        again.append((index, narrowed(record, names) if index in refused else record))
        places.update((name, order_key(record)) for name in names)
    return replace(held, items=again, places=places, parts=held.parts | refused)


def _joined(one: _Held, other: _Held) -> _Held:
    """Two parts of a message as one, in its order: each record for all that it was for in either."""
    items = dict(one.items)
    for index, record in other.items:
        part = items.get(index)
        if part is not None and not isinstance(part, RecordError) and not isinstance(record, RecordError):
            record = narrowed(record, sorted({*_names(part), *_names(record)}))  # noqa: PLW2901 - the whole of it
        items[index] = record
    counted = {index for held in (one, other) for index, _ in held.items if index not in held.parts}
    return replace(
        one,
        items=sorted(items.items(), key=lambda item: item[0]),
        future=one.future or other.future,
        places=one.places | other.places,
        parts=frozenset(items) - counted,
    )


def _names(record: Record) -> Sequence[str]:
    """Where a part of a record goes to."""
    return (record.to,) if isinstance(record.to, str) else record.to or ()


def _look_at(done: asyncio.Future[None]) -> None:
    """Take note of a failure that nobody waits for; asyncio would complain otherwise."""
    if not done.cancelled():
        done.exception()


def _finish(future: asyncio.Future[Ack] | None, ack: Ack, waits: list[asyncio.Future[None]]) -> None:
    """Answer once the earlier records that these repeat are on disk too."""
    if future is None or future.done():
        return
    open_waits = [wait for wait in waits if not wait.done()]
    if not open_waits:
        if any(not wait.cancelled() and isinstance(wait.exception(), SpoolFull) for wait in waits):
            refused = {rejected.index: rejected for rejected in ack.rejected if rejected.error != FULL}
            total = ack.accepted + len(ack.rejected)
            ack = Ack(ack.seq, 0, [refused.get(index) or Rejected(index, FULL) for index in range(total)])
        future.set_result(ack)
        return
    open_waits[0].add_done_callback(lambda _: _finish(future, ack, waits))
