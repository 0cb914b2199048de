"""`AsyncClient`: the same names, with `await` where one waits. Emitting never waits, so it is not awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from agentd.client.acting import Acting
from agentd.client.aio_gates import Pending, play
from agentd.client.api import BaseClient, Decision, raise_unless_stored
from agentd.client.asking import DECISION_TIMEOUT_S, Gates
from agentd.client.buffer import Ticket
from agentd.client.flush import FlushResult, check, delivered, flush_stored, result_of
from agentd.client.gates import Steps
from agentd.client.verdict import Verdict

if TYPE_CHECKING:
    from typing import Unpack

    from agentd.client.channel import Channel
    from agentd.client.fields import ActionRequest, DecisionFields

T = TypeVar("T")


class PendingDecision(Decision, frozen=True):
    """A decision that is logged already. `await` it to wait as long as `wait` said, or to get a plain Decision at once."""

    waiting: Any = None

    def __await__(self) -> Generator[Any, None, Decision]:
        """Return once the decision is on disk, or raise NotStored."""
        return self._stored().__await__()

    async def _stored(self) -> Decision:
        if self.waiting is not None:
            await self.waiting()
        return Decision(self.decision_id, self.run_id, self.span_id)


class _Bell:
    """Lets a coroutine wait for something that another thread says."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a bell that isn't rung is no error
        try:
            async with asyncio.timeout(timeout):
                await self._rung.wait()
        except TimeoutError:
            return


class AsyncClient(Gates[Pending[Verdict], Pending[str]], BaseClient):
    """The client for asyncio. `async with AsyncClient() as client:` flushes at the end."""

    def _verdict(self, steps: Steps[Verdict]) -> Pending[Verdict]:
        return Pending(play(self._find, steps), "AsyncClient.gate")

    def _text(self, steps: Steps[str]) -> Pending[str]:
        return Pending(play(self._find, steps), "AsyncClient.request_human_input")

    @overload
    def execute_if_authorized(
        self,
        action_type: str,
        resource: str,
        execute: Callable[[], Awaitable[T]],
        *,
        timeout: float | None = None,
        result: Callable[[T], object] | None = None,
        **fields: Unpack[ActionRequest],
    ) -> Pending[T]: ...
    @overload
    def execute_if_authorized(
        self,
        action_type: str,
        resource: str,
        execute: Callable[[], T],
        *,
        timeout: float | None = None,
        result: Callable[[T], object] | None = None,
        **fields: Unpack[ActionRequest],
    ) -> Pending[T]: ...
    def execute_if_authorized(
        self,
        action_type: str,
        resource: str,
        execute: Callable[[], Any],
        *,
        timeout: float | None = None,
        result: Callable[[Any], object] | None = None,
        **fields: Unpack[ActionRequest],
    ) -> Pending[Any]:
        """As `Client.execute_if_authorized`; what `execute` returns is awaited if that is possible."""
        steps = self._asking_action(action_type, resource, DECISION_TIMEOUT_S if timeout is None else timeout, fields)
        return Pending(self._execute(steps, execute, result), "AsyncClient.execute_if_authorized")

    async def _execute(
        self, steps: Steps[Verdict], execute: Callable[[], Any], result: Callable[[Any], object] | None
    ) -> Any:
        verdict = (await play(self._find, steps)).require()
        with Acting(self, verdict, result) as act:
            made = execute()
            value = await made if inspect.isawaitable(made) else made
            act.done(value)
        return value

    def log_decision(
        self,
        context: str,
        *,
        options: object = None,
        chosen: str | None = None,
        confidence: float | None = None,
        wait: float | None = None,
        **fields: Unpack[DecisionFields],
    ) -> PendingDecision:
        """Log a decision at once. `await client.log_decision(…, wait=2.0)` raises NotStored unless it is on disk by then."""
        values = {"options": options, "chosen": chosen, "confidence": confidence, **fields}
        channel = self._channel
        if wait is None or channel is None:
            return PendingDecision(*self._decide(context, values))
        bell = _Bell()
        ticket = Ticket(bell.ring)
        ids = self._decide(context, values, ticket)
        return PendingDecision(*ids, waiting=lambda: _wait_for(channel, bell, ticket, wait))

    async def flush(self, timeout: float = 5.0, until: str = "stored") -> FlushResult:  # noqa: ASYNC109 - it says what is left instead of raising
        """Wait until everything emitted so far is on the daemon's disk, or also `delivered` to the platforms."""
        word = check(until)
        if self._channel is None:
            return flush_stored(None, timeout, word)
        began = monotonic()
        left, reason = await _settled(self._channel, timeout)
        result = result_of(word, monotonic() - began, left, reason)
        if word == "stored" or not result.ok:
            return result
        rest = max(timeout - result.waited_s, 0.0)
        return await asyncio.to_thread(delivered, self._find, rest, result.waited_s)

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        """Flush for at most `timeout` (default: exit_timeout) and end. Later emits are lost, cause `closed`."""
        if self._channel is None:
            return
        await _settled(self._channel, self._exit_timeout if timeout is None else timeout)
        await asyncio.to_thread(self._channel.close, 0.0)

    async def __aenter__(self) -> Self:
        """Use the client for the length of a block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and end."""
        await self.close()


async def _settled(channel: Channel, timeout: float) -> tuple[int, str]:  # noqa: ASYNC109 - as above
    """Wait until everything emitted so far has its answer. Returns how many have none, and why."""
    bell = _Bell()
    watcher = channel.watch(bell.ring)
    if watcher is not None:
        try:
            await bell.wait(timeout)
        finally:
            left = channel.unwatch(watcher)
        return left
    return 0, ""


async def _wait_for(channel: Channel, bell: _Bell, ticket: Ticket, wait: float) -> None:
    if not ticket.state:
        channel.hurry_up()
        await bell.wait(wait)
    raise_unless_stored(ticket, wait)
