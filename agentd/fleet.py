"""The fleet: for each destination its target, its way out and its courier, and what a reload exchanges of them.

    fleet = Fleet(spool, http, letters, notices, clocks, watch)
    fleet.open(targets)         # couriers, which do nothing yet
    fleet.start()
    fleet.follow(plan, targets) # in one turn of the loop: whoever is not in the plan is not disturbed
    await fleet.close()

The three dicts are the same for the daemon's whole life: whoever reads them sees what is configured now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from agentd.ageing import Clocks
from agentd.changes import Plan
from agentd.delivery.courier import Courier
from agentd.http import Http, Way
from agentd.spool.dead import DeadLetters
from agentd.spool.notices import Notices
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.spool import Spool
from agentd.targets import Target
from agentd.trust import Trust

log = logging.getLogger("agentd")

_POLL_S = 0.02
_LAST_ANSWER_S = (
    60.0  # for what is under way at a destination that was removed; a destination's timeout is 30 s by default
)

Observer = Callable[[str, float, int], None]


def _nobody(_verdict: str, _seconds: float, _records: int) -> None:
    """Until somebody counts."""


def _unheard(_lanes: set[str]) -> None:
    """Nobody delivers what is in them."""


class Fleet:
    """See the module."""

    def __init__(
        self,
        spool: Spool,
        http: Http,
        letters: DeadLetters,
        notices: Notices,
        clocks: Clocks,
        watch: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`watch` hears of every courier's task."""
        self.targets: dict[str, Target] = {}
        self.ways: dict[str, Way] = {}
        self.couriers: dict[str, Courier] = {}
        self.observer: Callable[[str], Observer] = lambda _name: _nobody
        self._spool = spool
        self._http = http
        self._notices = notices
        self._clocks = clocks
        self._watch = watch
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._runs = False
        letters.listen(self.letters_left)

    def __repr__(self) -> str:
        return f"<Fleet {', '.join(self.couriers) or 'of none'}{f', {len(self._leaving)} leaving' if self._leaving else ''}>"

    # -- life --------------------------------------------------------------------------------------------------------

    def open(self, targets: Mapping[str, Target]) -> None:
        """Couriers for all of these, whose queues there are already."""
        for target in targets.values():
            self._add(target)

    def start(self) -> None:
        """Set them going."""
        self._runs = True
        for name, courier in self.couriers.items():
            courier.observe(self.observer(name))
            self._run(name)

    async def close(self) -> None:
        """End all of them as they are: what was under way is repeated after the restart."""
        self._runs = False
        for task in (*self._tasks.values(), *self._leaving.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._leaving.values(), return_exceptions=True)

    def flush(self) -> None:
        """Everything that is queued by now goes without waiting for batches to fill."""
        for courier in self.couriers.values():
            courier.flush()

    def is_moving(self, deadline: float) -> bool:
        """Whether anything that waits may still go out before `deadline` (monotonic)."""
        queues = self._spool.queues
        return bool(self._leaving) or any(
            queues[name].live and courier.moving(deadline) for name, courier in self.couriers.items()
        )

    async def rest(self, within_s: float) -> None:
        """Start nothing more, and hear what was sent to its end: an answer that is not heard is a batch sent twice."""
        deadline = time.monotonic() + within_s
        for courier in self.couriers.values():
            courier.suspend()
        while time.monotonic() < deadline and any(courier.lanes.in_flight for courier in self.couriers.values()):
            await asyncio.sleep(_POLL_S)

    def letters_left(self) -> None:
        """Dead letters have left their room, or have more of it."""
        for courier in self.couriers.values():
            courier.letters_left()

    # -- a reload ----------------------------------------------------------------------------------------------------

    def is_leaving(self, name: str) -> bool:
        """Whether one that was removed has something under way still."""
        return name in self._leaving

    async def settle(self, names: Iterable[str]) -> None:
        """Wait for couriers of these names that were removed and have something under way: nobody sends what another one is sending."""
        leaving = [self._leaving[name] for name in names if name in self._leaving]
        if leaving:
            await asyncio.wait(leaving)

    def follow(self, plan: Plan, targets: Mapping[str, Target]) -> None:
        """Let go, take in, exchange. There are queues for all of `targets`."""
        for name in plan.removed:
            self._let_go(name)
        for name in plan.moved:  # nothing waits there: nothing is under way
            if (task := self._tasks.pop(name, None)) is not None:
                task.cancel()
        for name in (*plan.moved, *plan.added):
            self._add(targets[name])
            self.couriers[name].take_over(self._spool.queues[name].lanes)
            if self._runs:
                self.couriers[name].observe(self.observer(name))
                self._run(name)
        for name, courier in self.couriers.items():
            if (name in plan.changed and name not in plan.moved) or plan.is_common:
                self.ways[name].reach = targets[name].reach
                courier.exchange(targets[name].settings(), self.ways[name], probes=name in plan.changed)
        self.targets.update(targets)
        if any(target.reach.trust != Trust() for target in targets.values()):
            self._http.renew()

    def _way(self, target: Target) -> Way:
        return Way(self._http, target.reach)

    def _add(self, target: Target) -> None:
        name = target.name
        way = self._way(target)
        courier = Courier(
            target.settings(), target.platform, SpoolOutbox(self._spool, name, self._notices, self._clocks.ages), way,
            now_us=self._clocks.now_us, age_us=self._clocks.age_us,
        )  # fmt: skip
        way.spend = courier.throttle.charge
        self._spool.listen(name, courier.touch)
        self.targets[name], self.ways[name], self.couriers[name] = target, way, courier

    def _run(self, name: str) -> None:
        task = asyncio.create_task(self.couriers[name].run(), name=f"courier {name}")
        self._tasks[name] = task
        self._watch(task)

    def _let_go(self, name: str) -> None:
        """Nothing new goes out from now on; what is under way gets its answer."""
        courier, task = self.couriers.pop(name), self._tasks.pop(name, None)
        target = self.targets.pop(name)
        del self.ways[name]
        courier.suspend()
        within_s = min(float(target.destination.timeout), _LAST_ANSWER_S)
        leaving = asyncio.create_task(self._last_answers(name, courier, task, within_s), name=f"last answers {name}")
        self._leaving[name] = leaving
        leaving.add_done_callback(lambda done: self._left(name, done))
        self._watch(leaving)

    async def _last_answers(
        self, name: str, courier: Courier, task: asyncio.Task[None] | None, within_s: float
    ) -> None:
        deadline = time.monotonic() + within_s
        try:
            while courier.lanes.in_flight and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if queued := self._spool.queues[name].live:
            log.warning(
                "%s was removed from the configuration: %d records are kept; put it back to have them sent, or take them out "
                "with 'agentd queue drop %s'", name, queued, name, extra={"action": "removed", "destination": name},
            )  # fmt: skip

    def _left(self, name: str, task: asyncio.Task[None]) -> None:
        if self._leaving.get(name) is task:
            del self._leaving[name]
        if name not in self.couriers:
            self._spool.listen(name, _unheard)
