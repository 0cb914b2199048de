"""Questions whose caller has hung up before the answer: whoever sends the same bytes again is owed that answer.

Below an SDK lie retry layers that repeat a call which takes too long (ascend-ai-sdk: three times in urllib3, and all of that
three times more). At a gate each repeat would be another action. So a question whose answer was not read stays open for ten
minutes, and the same bytes of the same caller join it. Who still listens is not repeating: two that ask the same at the same
time ask twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web

from agentd.errors import SpoolFull
from agentd.gate.owed import KEPT_S
from agentd.intake.protocol import HttpProtocol

# Most answers have some KiB. Above it answers are dropped that were probably read, and if there are none new questions are
# turned away: an owed answer is never dropped.
_MAX_OPEN = 512

T = TypeVar("T")


class Caller(Protocol):
    """The connection on which a question came."""

    @property
    def missed(self) -> bool:
        """Whether it has gone without having read its answer."""
        ...

    @property
    def heard(self) -> bool:
        """Whether it has certainly read its answer."""
        ...

    def answered(self) -> None:
        """Its answer is about to go out."""
        ...


class _Question(Generic[T]):
    def __init__(self, task: asyncio.Task[T], caller: Caller, until: float) -> None:
        self.task = task
        self.caller = caller  # the latest
        self.until = until


class Unheard(Generic[T]):
    """The questions of one gateway that are under way, and those whose answer nobody has read for certain."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[Hashable, list[_Question[T]]] = {}

    def __len__(self) -> int:
        return sum(len(questions) for questions in self._open.values())

    async def ask(self, key: Hashable, caller: Caller, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `ask` gives, or what an earlier question under `key` gave to somebody who did not read it.

        A caller that is cancelled leaves its question under way. Raises what `ask` raises, and SpoolFull where too many
        questions are open.
        """
        self._forget()
        question = next((one for one in self._open.get(key, ()) if one.caller.missed), None)
        if question is None:
            question = self._begin(key, caller, ask)
        question.caller = caller
        try:
            return await asyncio.shield(question.task)
        finally:
            caller.answered()

    def _begin(self, key: Hashable, caller: Caller, ask: Callable[[], Coroutine[Any, Any, T]]) -> _Question[T]:
        if len(self) >= _MAX_OPEN and not self._drop_one():
            raise SpoolFull
        task = asyncio.create_task(ask(), name="sdk gate")
        task.add_done_callback(_look_at)
        question = _Question(task, caller, self._clock() + KEPT_S)
        self._open.setdefault(key, []).append(question)
        return question

    def _forget(self) -> None:
        now = self._clock()
        for key, questions in list(self._open.items()):
            self._keep(
                key, [one for one in questions if not one.task.done() or (one.until > now and not one.caller.heard)]
            )

    def _drop_one(self) -> bool:
        """Let go of an answer that is not owed to anybody who is known to have missed it."""
        for key, questions in self._open.items():
            for one in questions:
                if one.task.done() and not one.caller.missed:
                    self._keep(key, [other for other in questions if other is not one])
                    return True
        return False

    def _keep(self, key: Hashable, questions: list[_Question[T]]) -> None:
        if questions:
            self._open[key] = questions
        else:
            del self._open[key]


def _look_at(task: asyncio.Task[Any]) -> None:
    """Nobody may be there to take its exception; it is on record with the gate."""
    if not task.cancelled():
        task.exception()


class Connection:
    """The connection of a request, as a `Caller`.

    Who has closed his side before the answer counts as gone, though some that do (`nc -N`) still listen. After it a peer that
    gave up waiting closes with the answer unread, which resets the connection; one that has read it closes in peace or asks on.
    """

    def __init__(self, incoming: web.Request) -> None:
        protocol = incoming.protocol
        assert isinstance(protocol, HttpProtocol)  # noqa: S101 - all of ours are
        self._protocol = protocol
        self._number = protocol.begun
        self._answered = self._gone = False

    @property
    def missed(self) -> bool:
        if not self._answered:
            return not self._is_there()
        return self._gone or (self._protocol.was_reset and not self.heard)

    @property
    def heard(self) -> bool:
        if not self._answered or self._gone:
            return False
        has_closed = self._protocol.transport is None and not self._protocol.was_reset
        return has_closed or self._protocol.begun > self._number

    def answered(self) -> None:
        self._gone = self._gone or not self._is_there()
        self._answered = True

    def _is_there(self) -> bool:
        transport = self._protocol.transport
        return transport is not None and not transport.is_closing() and not self._protocol.ended
