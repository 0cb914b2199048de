"""The fakes that agentd is tested with, public so that an adapter or an embedding can be tested with them as well.

`FakeClock` stands still until it is told, `ScriptedTransport` is a platform that answers by a script, and `MemoryOutbox` is
one destination's queue without a disk. None of them does I/O; their own tests hold them to the protocols they stand for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from agentd.exchange import Lost, Request, Response
from agentd.outcomes import Cause, Learned
from agentd.queued import DEAD, INTRODUCED, KNOWN, Death, Entry, Ref, Seal, Source
from agentd.records import INTRODUCES, RUN_ENDS, URGENT, Record, kind_of, lane_of, loss_class
from agentd.testing.store import Commit, MemoryStore
from agentd.wire import encode

_EPOCH_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z: a wall clock that looks like one

Answer: TypeAlias = Response | Lost | Exception


class FakeClock:
    """Two clocks that only move when told: call it for monotonic seconds, `now_us()` is the wall clock."""

    def __init__(self, monotonic: float = 1000.0, wall_us: int = _EPOCH_US) -> None:
        self._monotonic = monotonic
        self._wall_us = wall_us

    def __repr__(self) -> str:
        return f"<FakeClock {self._monotonic:.6f} s>"

    def __call__(self) -> float:
        """Monotonic seconds."""
        return self._monotonic

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return self._wall_us

    def advance(self, seconds: float) -> None:
        """Both clocks move on."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back; use set_wall for the other")
        self._monotonic += seconds
        self._wall_us += round(seconds * 1e6)

    def set_wall(self, shift_s: float) -> None:
        """Somebody sets the wall clock, forward or back; the monotonic one does not notice."""
        self._wall_us += round(shift_s * 1e6)


def answer(status: int = 200, body: object = b'{"data":null,"error":null}', **headers: str) -> Response:
    """A platform's answer; anything but bytes is sent as JSON, and `retry_after="3"` is the header `retry-after`."""
    content = body if isinstance(body, bytes) else encode(body)
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


class Sent(NamedTuple):
    """A request as the transport got it."""

    path: str
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body as Python values."""
        return msgspec.json.decode(self.body)


class ScriptedTransport:
    """A way out that ends in a script: each request takes the next answer, then `then` answers all that follow.

    `then` is an answer, or a callable from the request to one. An exception among the answers is raised, as an adapter or a
    transport with a defect would. `hold()` keeps requests under way until `release()`.
    """

    def __init__(self, *script: Answer, then: Answer | Callable[[Sent], Answer] | None = None) -> None:
        self.script: deque[Answer] = deque(script)
        self.then = answer() if then is None else then
        self.requests: list[Sent] = []
        self.under_way = 0
        self.most_under_way = 0
        self._holding = False
        self._held: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ScriptedTransport {len(self.requests)} requests, {self.under_way} under way>"

    @property
    def held(self) -> int:
        """How many requests wait for `release`."""
        return len(self._held)

    def hold(self) -> None:
        """Requests from now on get no answer until they are released."""
        self._holding = True

    def release(self, count: int | None = None) -> None:
        """Answer the `count` that wait longest; None means all of them, and holds none any more."""
        if count is None:
            self._holding = False
        for _ in range(len(self._held) if count is None else count):
            self._held.popleft().set_result(None)

    async def send(self, request: Request, headers: Mapping[str, str]) -> Response | Lost:
        """Take the request and answer by the script (agentd.exchange.Transport)."""
        sent = Sent(request.path, request.body, {**headers, **request.headers})
        self.requests.append(sent)
        said = self._next(sent)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self._holding:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._held.append(future)
                await future
            else:
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if isinstance(said, Exception):
            raise said
        return said

    def _next(self, sent: Sent) -> Answer:
        if self.script:
            return self.script.popleft()
        return self.then(sent) if callable(self.then) else self.then


class MemoryOutbox:
    """One destination's queue in memory (agentd.delivery.ports.Outbox), with what became of each record in plain sight.

    With `auto_commit` False every change waits for `commit()` as it would for a disk. `log` holds what was asked of it, in
    order; `delivered`, `dead` and `stale` what ended, and how.
    """

    def __init__(self, name: str = "cloud", *, dead_limit: int | None = None, auto_commit: bool = True) -> None:
        self.name = name
        self.dead_limit = dead_limit
        self.auto_commit = auto_commit
        self.entries: dict[str, list[Entry]] = {}
        self.delivered: list[Entry] = []
        self.tries: list[int] = []  # of each delivered record
        self.dead: list[tuple[Entry, Death]] = []
        self.stale: list[Entry] = []
        self.blocked: set[str] = set()
        self.owed: set[str] = set()  # lanes whose run is to be told something before its end
        self.log: list[tuple[str, str]] = []
        self._refs: dict[tuple[str, str], Ref] = {}
        self._seals: dict[str, list[Seal]] = {}
        self._highest = 0
        self._seq = 0
        self._waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<MemoryOutbox {self.name} {self.live} queued, {len(self.delivered)} delivered, {len(self.dead)} dead>"

    # -- what a test does --------------------------------------------------------------------------------------------

    def put(self, record: Record, *, agent: str = "", now_us: int = _EPOCH_US, record_id: bytes | None = None) -> Entry:
        """Admit a record: number it, put it into its lane, note what it introduces."""
        self._highest += 1
        kind = kind_of(record)
        if record_id is None:
            record_id = record.id.bytes if record.id is not None else UUID(int=self._highest).bytes
        lane = lane_of(record, agent)
        source = Source(agent, 0, 0, "test")
        entry = Entry(self._highest, record_id, lane, kind, loss_class(record), source, now_us, encode(record))
        self.entries.setdefault(lane, []).append(entry)
        if kind in INTRODUCES:
            id_kind, field = INTRODUCES[kind]
            local_id = getattr(record, field)
            if local_id is not None and (id_kind, local_id) not in self._refs:
                self._refs[id_kind, local_id] = Ref(self.name, id_kind, local_id, agent, 0, entry.number)
        return entry

    def know(self, kind: str, local_id: str, platform_id: str) -> None:
        """Have a reference that the platform has named."""
        self._refs[kind, local_id] = Ref(self.name, kind, local_id, "", 0, 0, KNOWN, platform_id)

    def commit(self) -> None:
        """All that was asked so far is on disk."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def reopen(self) -> MemoryOutbox:
        """What a daemon finds that starts after a crash: the same records, and seals that may have been tried."""
        other = MemoryOutbox(self.name, dead_limit=self.dead_limit)
        other.entries = {lane: list(entries) for lane, entries in self.entries.items()}
        other.delivered, other.dead, other.stale = list(self.delivered), list(self.dead), list(self.stale)
        other._refs = {key: msgspec.structs.replace(ref) for key, ref in self._refs.items()}
        other._seals = {
            lane: [msgspec.structs.replace(seal, tried=True) for seal in seals] for lane, seals in self._seals.items()
        }
        other._highest, other._seq = self._highest, self._seq
        return other

    # -- agentd.delivery.ports.Outbox --------------------------------------------------------------------------------

    @property
    def live(self) -> int:
        return sum(len(entries) for entries in self.entries.values())

    @property
    def highest(self) -> int:
        return self._highest

    def peek(self, lane: str) -> Iterator[Entry]:
        return iter(tuple(self.entries.get(lane, ())))

    def members(self, seal: Seal) -> list[Entry] | None:
        return [
            entry
            for entry in self.entries.get(seal.lane, ())
            if seal.first <= entry.number <= seal.last and entry.number not in seal.exceptions
        ]

    def find(self, lane: str, number: int) -> Entry | None:
        return next((entry for entry in self.entries.get(lane, ()) if entry.number == number), None)

    def bring(self, lane: str, number: int) -> None:
        """All of it is in memory."""

    def seals(self, lane: str) -> Sequence[Seal]:
        return tuple(self._seals.get(lane, ()))

    def sealed_lanes(self) -> Sequence[str]:
        return tuple(self._seals)

    def block(self, lane: str) -> None:
        self.blocked.add(lane)

    def unblock(self, lane: str) -> None:
        self.blocked.discard(lane)

    def fill(self) -> None:
        """Everything is in memory already."""

    def reference(self, kind: str, local_id: str) -> Ref | None:
        return self._refs.get((kind, local_id))

    def seal(self, seal: Seal) -> asyncio.Future[None]:
        self.log.append(("seal", seal.key))
        self._add_seal(seal)
        return self._waiter()

    def settle(
        self, seal: Seal, entries: Sequence[Entry], learned: Iterable[Learned], tries: int = 1
    ) -> asyncio.Future[None]:
        self.tries.extend([tries] * len(entries))
        self.log.append(("settle", seal.key))
        for one in learned:
            ref = self._refs.get((one.kind, one.local_id))
            if ref is not None:
                ref.platform_id, ref.state = one.platform_id, KNOWN
        self.delivered.extend(entries)
        return self._end(seal, entries)

    def bury(self, seal: Seal | None, entries: Sequence[Entry], death: Death) -> asyncio.Future[None]:
        self.log.append(("bury", death.cause.value))
        for entry in entries:
            self.dead.append((entry, death))
            for ref in self._refs.values():  # by number: a decision's lane may be its run's
                if ref.number == entry.number and ref.state == INTRODUCED:
                    ref.state = DEAD
        return self._end(seal, entries)

    def discard_stale(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        self.log.append(("discard", str(len(entries))))
        self.stale.extend(entries)
        return self._end(None, entries)

    def split(self, seal: Seal, parts: Sequence[Seal]) -> asyncio.Future[None]:
        self.log.append(("split", seal.key))
        self._retire(seal)
        for part in parts:
            self._add_seal(part)
        return self._waiter()

    def is_urgent(self, lane: str) -> bool:
        """Like the spool: also behind others."""
        return any(entry.kind in URGENT for entry in self.peek(lane))

    def tell_first(self, lane: str) -> bool:
        """A queue in memory sheds nothing; a test says otherwise by `owed`."""
        self.log.append(("tell_first", lane))
        return lane in self.owed

    def dead_room(self, size: int) -> bool:
        held = sum(len(entry.body) for entry, _ in self.dead)
        return self.dead_limit is None or held + size <= self.dead_limit

    # -- the inside --------------------------------------------------------------------------------------------------

    def causes(self) -> dict[Cause, int]:
        """How many records are dead, by cause."""
        found: dict[Cause, int] = {}
        for _, death in self.dead:
            found[death.cause] = found.get(death.cause, 0) + 1
        return found

    def _add_seal(self, seal: Seal) -> None:
        self._seq += 1
        seal.seq = self._seq
        self._seals.setdefault(seal.lane, []).append(seal)
        self._seals[seal.lane].sort(key=lambda other: (other.first, other.seq))

    def _retire(self, seal: Seal) -> None:
        left = [other for other in self._seals.get(seal.lane, ()) if other.seq != seal.seq]
        if left:
            self._seals[seal.lane] = left
        else:
            self._seals.pop(seal.lane, None)

    def _end(self, seal: Seal | None, entries: Sequence[Entry]) -> asyncio.Future[None]:
        for entry in entries:
            lane = self.entries[entry.lane]
            lane.remove(entry)
            if not lane:
                del self.entries[entry.lane]
            ref = self._refs.get(("run", entry.lane.partition(":")[2]))
            if ref is not None and entry.kind in RUN_ENDS:
                ref.ended = True
        if seal is not None:
            self._retire(seal)
        return self._waiter()

    def _waiter(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.auto_commit:
            future.set_result(None)
        else:
            self._waiters.append(future)
        return future


__all__ = ["Commit", "FakeClock", "MemoryOutbox", "MemoryStore", "ScriptedTransport", "Sent", "answer"]
