"""The store and the one thread that may touch it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Concatenate, ParamSpec, TypeVar

from agentd.spool.store import Rows

P = ParamSpec("P")
T = TypeVar("T")


class Storage:
    """Calls from the event loop become jobs of the storage thread, which runs them in the order of the calls."""

    def __init__(self, store: Rows, thread: Executor) -> None:
        self._store = store
        self._thread = thread

    async def run(self, job: Callable[Concatenate[Rows, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`job(store, *args)` in the storage thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(self._store, *args, **kwargs))

    async def close(self) -> None:
        """Close the store in its thread, behind everything that was asked of it, and end the thread."""
        await self.run(_close)
        self._thread.shutdown(wait=False)


def _close(store: Rows) -> None:
    store.close()
