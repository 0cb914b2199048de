"""`@gated`: a function that asks before it acts, acts only if the verdict proceeds, and tells how it went.

    @gated("action", action_type="transaction", resource="stripe", parameters=lambda invoice, amount: {"amount": amount})
    def refund(invoice, amount): ...

    @gated("decide", lambda lead: {"mode": "rulebook", "rulebook": RULES, "context": {"inputs": lead}}, key=lambda lead: lead["id"])
    async def give_discount(lead): ...

The function is called with its own arguments, or GateDenied is raised; its result and its exceptions are handed on as they
are. `action` is reported as completed or failed with its duration, `decide` by an execution and an outcome; a cancelled
function has failed. A verdict that is repeated under its key still acts: whether the act itself may happen twice is the
function's own business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from agentd.client import mode
from agentd.client.acting import Acting
from agentd.client.gates import Steps, play
from agentd.client.verdict import Verdict

if TYPE_CHECKING:
    from agentd.client.api import BaseClient

P = ParamSpec("P")
R = TypeVar("R")
_defaults: dict[bool, BaseClient] = {}  # by whether clients are inert: a test may make live ones


class _Gated:
    """What the decorator was told."""

    def __init__(
        self,
        gate: str,
        request: Callable[..., Mapping[str, Any]] | Mapping[str, Any] | None,
        fields: Mapping[str, Any],
        options: Mapping[str, Any],
        client: BaseClient | Callable[[], BaseClient] | None,
        key: Callable[..., str | None] | None,
        result: Callable[[Any], object] | None,
    ) -> None:
        if key is not None and not callable(key):
            raise TypeError(
                f"gated({gate!r}): key must be a function of the arguments: under one key all calls are one"
            )
        self._gate = gate
        self._request = request
        self._fields = fields
        self._options = options
        self._client = client
        self._key = key
        self.result = result

    def ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[BaseClient, Steps[Verdict]]:
        """The question that these arguments make."""
        client = self._its_client()
        asked = self._request(*args, **kwargs) if callable(self._request) else self._request or {}
        if not isinstance(asked, Mapping):
            raise TypeError(f"gated({self._gate!r}): request must give a mapping of fields, not {type(asked).__name__}")
        fixed = {name: _value(value, args, kwargs) for name, value in self._fields.items()}
        key = self._key(*args, **kwargs) if self._key is not None else None
        return client, client._asking(self._gate, {**fixed, **asked}, {**self._options, "key": key})  # noqa: SLF001 - its other half

    def _its_client(self) -> BaseClient:
        """The client that was given, or one for all functions that were given none, made at the first call."""
        from agentd.client.api import BaseClient, Client

        if self._client is None:
            if mode.inert not in _defaults:
                _defaults.setdefault(mode.inert, Client())
            return _defaults[mode.inert]
        return self._client if isinstance(self._client, BaseClient) else self._client()


def _value(value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return value(*args, **kwargs) if callable(value) else value


def gated(
    gate: str,
    request: Callable[..., Mapping[str, Any]] | Mapping[str, Any] | None = None,
    *,
    client: BaseClient | Callable[[], BaseClient] | None = None,
    key: Callable[..., str | None] | None = None,
    result: Callable[[Any], object] | None = None,
    to: str | None = None,
    deadline: float | None = None,
    agent_id: str | None = None,
    **fields: Any,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Put a gate before a function, plain or async.

    What is asked: `request` (a mapping, or a function of the arguments that makes one) over `fields`, of which each may be
    a function of the arguments too. `key`: a function of the arguments; the same key acts once at the platform. `result`:
    what to report of the function's result, by default nothing. `client`: one, or a function that gives one; by default a
    `Client()` of the module's own. An async function waits on its event loop, whichever kind of client it is.
    """
    options = {"to": to, "deadline": deadline, "agent_id": agent_id}
    plan = _Gated(gate, request, fields, options, client, key, result)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"gated({gate!r}): {function.__qualname__} is a generator, which acts when it is read")
        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", _around_async(plan, function))
        return _around(plan, function)

    return decorate


def _around(plan: _Gated, function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def ask_first(*args: P.args, **kwargs: P.kwargs) -> R:
        client, steps = plan.ask(args, kwargs)
        verdict = play(client._find, steps).require()  # noqa: SLF001 - as above
        with Acting(client, verdict, plan.result) as act:
            value = function(*args, **kwargs)
            act.done(value)
        return value

    return ask_first


def _around_async(plan: _Gated, function: Callable[P, Any]) -> Callable[P, Any]:
    @wraps(function)
    async def ask_first(*args: P.args, **kwargs: P.kwargs) -> Any:
        from agentd.client.aio_gates import play

        client, steps = plan.ask(args, kwargs)
        verdict = (await play(client._find, steps)).require()  # noqa: SLF001 - as above
        with Acting(client, verdict, plan.result) as act:
            value = await function(*args, **kwargs)
            act.done(value)
        return value

    return ask_first
