"""Gates on an event loop: they can last an hour, so they take no thread, and cancelling one closes its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from agentd.client.gates import Find, Pause, Steps, place
from agentd.client.http import RECV_BYTES, Answer, Heard, Unheard, words

T = TypeVar("T")


async def exchange(path: str, message: bytes, timeout_s: float) -> Heard | Unheard:
    """As `http.exchange`, without a thread."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(message)
            await writer.drain()
            answer = Answer()
            while True:
                heard = answer.feed(await reader.read(RECV_BYTES))
                if heard is not None:
                    return heard
    except (OSError, ValueError) as error:
        reason = words(error, timeout_s)
        return Unheard(reason, sent=True) if writer is not None else Unheard(f"{path} ({reason})", sent=False)
    finally:
        if writer is not None:
            writer.close()


async def play(find: Find, steps: Steps[T]) -> T:
    """Do the steps of a gate on this loop."""
    heard: Heard | Unheard | None = None
    while True:
        try:
            step = steps.send(heard)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            heard = None
        else:
            path = place(find)
            heard = path if isinstance(path, Unheard) else await exchange(path, step.message, step.timeout_s)


class Pending(Coroutine[Any, Any, T]):
    """What AsyncClient's gates return: await it once. It is a coroutine that refuses to be taken for its own result.

    `if client.gate(…):` without `await` would be true of any coroutine, and an agent would act unasked; this one raises.
    """

    __slots__ = ("_coroutine", "_name")

    def __init__(self, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        """`name` is what Python's own warning calls it if nobody awaits it."""
        self._coroutine = coroutine
        self._name = name
        for attribute in ("__name__", "__qualname__"):
            setattr(coroutine, attribute, name)

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the result."""
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """As a coroutine's."""
        return self._coroutine.send(value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """As a coroutine's."""
        if isinstance(typ, BaseException):
            return self._coroutine.throw(typ)
        return self._coroutine.throw(typ, val, tb)

    def close(self) -> None:
        """As a coroutine's."""
        self._coroutine.close()

    def __bool__(self) -> NoReturn:
        """There is no result yet. Raises TypeError."""
        raise TypeError(f"{self!r} has to be awaited before it is true or false: `if await client.gate(…):`")

    def __getattr__(self, name: str) -> Any:
        """The coroutine's own attributes, which debuggers ask for, and no others."""
        if name in Pending.__slots__:  # made without __init__, by `copy` for one
            raise AttributeError(name)
        if name.startswith(("cr_", "__")):
            return getattr(self._coroutine, name)
        raise AttributeError(f"{self!r} has no {name!r}: await it first, the result has")

    def __repr__(self) -> str:
        return f"<{self._name}(…), to be awaited>"
