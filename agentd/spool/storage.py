"""The store and the one thread that may touch it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Concatenate, ParamSpec, TypeVar

from agentd.spool.store import Rows
from agentd.vitals import Pace, Vital

P = ParamSpec("P")
T = TypeVar("T")


class Storage:
    """Calls from the event loop become jobs of the storage thread, which runs them in the order of the calls."""

    def __init__(self, store: Rows, thread: Executor, pace: Pace | None = None) -> None:
        """`pace` is what the store steps within a job that takes long."""
        self._store = store
        self._thread = thread
        self._pace = pace or Pace()
        self._jobs: set[Future[Any]] = set()  # that have not ended; those whose asker was cancelled go on
        self._ended = 0

    def vital(self, *, more: bool = False) -> Vital:
        """Whether the thread gets on with what was asked of it; there is `more` that somebody has yet to ask."""
        return Vital(self._ended + self._pace.steps, busy=bool(self._jobs) or more)

    async def run(self, job: Callable[Concatenate[Rows, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`job(store, *args)` in the storage thread."""
        future = self._thread.submit(lambda: job(self._store, *args, **kwargs))
        self._jobs.add(future)
        future.add_done_callback(self._end)
        return await asyncio.wrap_future(future)

    def _end(self, future: Future[Any]) -> None:
        """In the storage thread, or wherever a job was cancelled that had not begun."""
        self._ended += 1
        self._jobs.discard(future)

    async def close(self) -> None:
        """Close the store in its thread, behind everything that was asked of it, and end the thread."""
        await self.run(_close)
        self._thread.shutdown(wait=False)


def _close(store: Rows) -> None:
    store.close()
