"""Whether the daemon gets on: its event loop goes round, and its storage thread ends what it is asked for.

    async with Health(pace) as health:      # before anything that takes time
        health.opened(spool)

The loop leaves its mark here about once a second; any thread may read what there is to say, also while the loop hangs. A platform
that is away changes nothing here: that is the status's and the metrics' affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, Self

from agentd.errors import StateError
from agentd.vitals import Pace, Vital

STALLED_S = (
    30.0  # a disk that is busy with others may take some seconds for a sync; a watchdog kills after 60 (systemd/)
)
_LOOK_S = 1.0


class Storage(Protocol):
    """What is asked of the spool."""

    def vital(self) -> Vital: ...
    def stuck(self) -> str | None: ...


class Control(Protocol):
    """What is asked of the daemon once it takes records."""

    def unready(self) -> str | None: ...
    def metrics(self) -> tuple[bytes, str]: ...


class Probed:
    """What `listen.probe` asks, from the start's beginning to the end's (agentd.intake.probe.Asks)."""

    def __init__(self, health: Health) -> None:
        self.control: Control | None = None  # from when it takes records
        self._health = health

    def unhealthy(self) -> str | None:
        return self._health.unhealthy()

    def unready(self) -> str | None:
        return "starting" if self.control is None else self.control.unready()

    def metrics(self) -> tuple[bytes, str]:
        if self.control is None:
            raise StateError("agentd is starting")
        return self.control.metrics()


class Health:
    """See the module. Written by the event loop alone."""

    def __init__(
        self,
        pace: Pace | None = None,
        *,
        stalled_s: float = STALLED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pace` is that of the start. `stalled_s`: what has not moved for so long hangs."""
        self._stalled_s = stalled_s
        self._clock = clock
        self._vital: Callable[[], Vital] = (pace or Pace()).vital
        self._stuck: Callable[[], str | None] = lambda: None
        self._task: asyncio.Task[None] | None = None
        self._rounds = -1
        self._doing = "the start"
        self._beat = self._moved = clock()

    def __repr__(self) -> str:
        return f"<Health {self.unhealthy() or 'ok'}>"

    async def __aenter__(self) -> Self:
        self.look()
        self._task = asyncio.create_task(self._run(), name="health")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def opened(self, spool: Storage) -> None:
        """From now on the storage thread is looked at."""
        self._vital, self._stuck, self._doing = spool.vital, spool.stuck, "the storage thread"
        self._rounds = -1
        self.look()

    def look(self) -> None:
        """Leave a mark, and see whether anything was ended since the last look. On the event loop."""
        vital = self._vital()
        self._beat = self._clock()
        if not vital.busy or vital.rounds != self._rounds:
            self._rounds, self._moved = vital.rounds, self._beat

    def stuck(self) -> str | None:
        """Why nothing reaches the disk, None if it does."""
        return self._stuck()

    def unhealthy(self) -> str | None:
        """What hangs, and since when; None if nothing does. On any thread."""
        now, beat, moved = self._clock(), self._beat, self._moved
        if self._task is not None and now - beat > self._stalled_s:
            return f"the event loop has not gone round for {now - beat:.0f} s"
        if beat - moved > self._stalled_s:
            return f"{self._doing} has ended nothing for {now - moved:.0f} s"
        return self.stuck()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()
