"""What `flush` answers, and the one request that it makes when it waits for the platforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from agentd.errors import AgentdError

if TYPE_CHECKING:
    from agentd.client.channel import Channel

Until = Literal["stored", "delivered"]
_GRACE_S = 1.0  # the daemon counts the timeout itself; its answer needs a moment more
_OK = 200


class NotStored(AgentdError):  # noqa: N818 - a state that is found, named as the reader would say it
    """The record is not on the daemon's disk."""


class FlushResult(Struct, frozen=True):
    """What a flush waited for and what is left: per destination, and under `client` what has not reached the daemon."""

    ok: bool
    waited_s: float
    until: Until
    left: dict[str, int] = {}
    reason: str = ""

    def __bool__(self) -> bool:
        """Whether nothing is left."""
        return self.ok


def check(until: str) -> Until:
    """The word, if it is one of the two. Raises ValueError."""
    if until == "stored":
        return "stored"
    if until == "delivered":
        return "delivered"
    raise ValueError(f'flush: until must be "stored" or "delivered", got {until!r}')


def result_of(until: Until, waited_s: float, left: int, reason: str) -> FlushResult:
    """The result of waiting for the daemon's disk."""
    return FlushResult(not left, waited_s, until, {"client": left} if left else {}, reason)


def delivered(find: Callable[[], str], timeout: float, waited_s: float) -> FlushResult:
    """Ask the daemon to deliver what it holds, and wait for it."""
    from time import monotonic

    began = monotonic()
    try:
        status, answer = _ask(find(), f"/v1/flush?until=delivered&timeout={timeout:.3f}", timeout + _GRACE_S)
    except (OSError, ValueError) as error:
        return FlushResult(
            False, waited_s + monotonic() - began, "delivered", {}, f"the daemon did not answer: {error}"
        )
    waited_s += monotonic() - began
    if status != _OK:
        fault = answer.get("error")
        words = fault.get("message") if isinstance(fault, dict) else fault
        return FlushResult(False, waited_s, "delivered", {}, f"the daemon refused ({status}): {words}")
    left = answer.get("left")
    return FlushResult(
        answer.get("flushed") is True,
        waited_s,
        "delivered",
        {str(name): int(count) for name, count in left.items()} if isinstance(left, dict) else {},
        str(answer.get("reason") or ""),
    )


def _ask(path: str, target: str, timeout_s: float) -> tuple[int, dict[str, Any]]:
    from agentd.client.http import Unheard, exchange, request

    heard = exchange(path, request("POST", target), timeout_s)
    if isinstance(heard, Unheard):
        raise ConnectionError(heard.reason)
    return heard.status, msgspec.json.decode(heard.body, type=dict[str, Any])


def flush_stored(channel: Channel | None, timeout: float, until: Until) -> FlushResult:
    """Wait in this thread until the daemon has answered everything emitted so far."""
    from time import monotonic

    if channel is None:
        return FlushResult(True, 0.0, until, {}, "this client is disabled")
    began = monotonic()
    left, reason = channel.flush(timeout)
    return result_of(until, monotonic() - began, left, reason)
