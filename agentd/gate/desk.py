"""One destination's desk: its adapter's gates, the way out, its circuit, its counts; and what all desks share."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from agentd.exchange import ANSWER_BYTES, Lost, Platform, Request, Response
from agentd.gate.breaker import Breaker
from agentd.gating import Gate
from agentd.queued import Ref
from agentd.spool.gaterows import GateRow, Stored
from agentd.stamp import Stamp

_OWN = frozenset({"breaker", "polls", "counts"})  # of a desk, whatever is configured
POLLS = 16  # of one destination at once, for gates that nobody waits for any more


class Way(Protocol):
    """The way out, with what a gate alone needs: a time limit of its own, and answers that may be long."""

    @property
    def unreachable(self) -> bool:
        """Whether the last try, of whatever request, found no connection."""
        ...

    async def send(
        self,
        request: Request,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        limit: int = ANSWER_BYTES,
    ) -> Response | Lost:
        """One request, one answer or the reason why there is none. Never raises for what the network does."""
        ...


class Shelf(Protocol):
    """What the gates ask of the spool (agentd.spool.gates.GateShelf). Futures raise SpoolFull."""

    @property
    def full(self) -> bool: ...
    @property
    def max_bytes(self) -> int: ...
    def stored(self) -> list[Stored]: ...
    def new_row(self) -> int: ...
    def save(self, gate: GateRow, steps: Sequence[str], introduced: Sequence[Ref] = ()) -> asyncio.Future[None]: ...
    def keep(self, gate: GateRow, steps: Sequence[str]) -> asyncio.Future[None]: ...
    def note(self, gate: GateRow, step: str) -> None: ...
    def drop(self, rows: Iterable[int]) -> None: ...
    async def load(self, stored: Stored) -> GateRow: ...
    def reference(self, destination: str, kind: str, local_id: str) -> Ref | None: ...
    def owners(self, kind: str, local_id: str) -> Sequence[Ref]: ...
    def introduce(self, gate: GateRow) -> list[Ref]: ...
    def learn(self, gate: GateRow) -> None: ...
    def is_anothers(self, gate: GateRow, kind: str, name: str) -> bool: ...
    def bury(self, gate: GateRow) -> None: ...
    def bury_strays(self, known: Iterable[str]) -> int: ...
    async def wait_for_names(self) -> None: ...


class Desk(Struct):
    """What a destination's gates need to be asked."""

    name: str
    platform: Platform
    gates: Mapping[str, Gate]
    way: Way
    breaker: Breaker
    api_key: str
    identity: str = ""  # what its references belong to
    signing_secret: str | None = None
    default_agent: str = ""
    takes_agent: Callable[[str], bool] = lambda _agent: True
    takes_events: Callable[[str], bool] = lambda _agent: True  # of an agent: where the event of a verdict goes
    agent_of: Callable[[str], str] = lambda local: local
    options: Mapping[str, str] = {}
    stamp: Stamp = Stamp()
    open_mode: bool = False  # fail_mode = "open"
    spend: Callable[[], None] = lambda: (
        None
    )  # hears of each request: gates are not held back by a rate limit, records are
    polls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(POLLS))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (gate, verdict), since the start

    def follow(self, other: Desk) -> None:
        """Be as the other is, for whoever has this one already, but for what was counted and learned."""
        for name in self.__struct_fields__:
            if name not in _OWN:
                setattr(self, name, getattr(other, name))
        self.breaker.backoff = other.breaker.backoff

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"<Desk {self.name}: {', '.join(self.gates)}>"


class Seldom:
    """Which lines are written: of each text one in `every_s` seconds, and then how many were left out since."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._written: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def more(self, text: str, now: float) -> int | None:
        """How many have been left out since the last line; None: this one is, too. `now` is monotonic seconds."""
        if now - self._written.get(text, -math.inf) < self._every_s:
            self._left_out[text] += 1
            return None
        self._written[text] = now
        return self._left_out.pop(text, 0)


class Common(Struct):
    """What all gates share. `clock` is monotonic seconds, `now_us` the wall clock, `share` random from 0 to 1."""

    shelf: Shelf
    clock: Callable[[], float]
    now_us: Callable[[], int]
    age_us: Callable[[int], int]  # how long ago `now_us` said this (agentd.ageing)
    share: Callable[[], float]
    reference_wait_s: float
    follow_s: float
    recorded: Callable[[GateRow], None]  # hears of each change that is on disk
    forgotten: Callable[
        [str, Stored | None], None
    ]  # hears of a gate that could not be recorded, and what was before it
    announce: Callable[[GateRow, float], None]  # the verdict and how long it took, for the run's events
    observe: Callable[[str, str, float], None] = lambda _destination, _gate, _seconds: (
        None
    )  # destination, gate, seconds until its first word
    draining: bool = False  # agentd is stopping
    unrecorded: Seldom = field(default_factory=Seldom)  # gates that found no room: one line for many
