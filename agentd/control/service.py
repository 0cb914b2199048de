"""The daemon towards its service manager: how the start goes, that every part lives, what a reload does, how the end goes.

    service = Service(inherit(os.environ))
    async with service:                      # before anything that takes time
        spool = await open_spool(…, pace=service.pace)
        service.ready(spool, couriers)
        with service.reloading(): …
        service.stopping()

The watchdog is fed for work that was done since the last look and for nothing else: each courier's loop is asked to go round
once between two looks, the storage thread has to end one of the jobs that it was given. The task that looks has no say of its
own; if the event loop hangs it hangs with it. Start and stop are extended on the same evidence, so that the repair of a large
spool and a long drain are given time, and a repair that hangs is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, Self

from agentd.delivery.courier import Courier
from agentd.errors import AgentdError
from agentd.spool.queue import Queue
from agentd.systemd import NOTHING, Inherited
from agentd.vitals import Pace, Vital, Vitals

log = logging.getLogger("agentd")

_LOOK_S = 10.0  # at least so often, for the status line; the watchdog may want it more often
_LOOK_WHILE_S = 2.0  # while starting and stopping, which systemd gives 90 s each unless the unit says otherwise
_EXTEND_S = 20.0  # so much more from each look on: a step of the work may take a while on a slow disk
_NAMED = 3  # destinations in the status line


class Spool(Protocol):
    """What is asked of the spool."""

    @property
    def queues(self) -> Mapping[str, Queue]: ...
    @property
    def dead_count(self) -> int: ...
    def vital(self) -> Vital: ...


class Service:
    """See the module. Without a service manager nothing is looked at and nobody is told."""

    def __init__(self, inherited: Inherited = NOTHING) -> None:
        """`sockets` are None where the daemon has to open its own."""
        self.pace = Pace()  # of the start
        self.sockets = inherited.sockets or None
        self._notifier = inherited.notifier
        self._watchdog_s = inherited.watchdog_s
        self._spool: Spool | None = None
        self._couriers: Mapping[str, Courier] = {}
        self._vitals = Vitals()
        self._tell: Callable[[str], None] = self._extend
        self._doing = "opening the spool"
        self._stopping = False
        self._said = ""
        self._hung: list[str] = []
        self._refused = ""  # why the last reload was
        self._again = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Service {self._doing}{f', {self._hung} hang' if self._hung else ''}>"

    async def __aenter__(self) -> Self:
        if self._notifier:
            self._vitals.look(self._parts())  # what the first look is compared with
            self._task = asyncio.create_task(self._run(), name="service manager")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- the daemon's life -------------------------------------------------------------------------------------------

    def ready(self, spool: Spool, couriers: Mapping[str, Courier]) -> None:
        """It takes records. `couriers` is read at each look: a reload may change them."""
        self._spool, self._couriers = spool, couriers
        self._now("takes records", self._feed)
        self._notifier.ready(self._status())

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Around the reading of another configuration: `systemctl reload` waits for the end. What it was refused for stays in the status."""
        self._notifier.reloading()
        self._refused = ""
        try:
            yield
        except AgentdError as error:
            self._refused = str(error)
            raise
        finally:
            self._notifier.ready(self._status())

    def stopping(self) -> None:
        """The end has begun."""
        self._stopping = True
        self._now("stopping", self._extend)
        self._notifier.stopping(self._status())
        self._extend("")

    def _now(self, doing: str, tell: Callable[[str], None]) -> None:
        self._doing, self._tell = doing, tell
        self._again.set()  # the next look comes by the new measure

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def _every_s(self) -> float:
        if self._tell == self._extend:
            return _LOOK_WHILE_S
        return min(_LOOK_S, self._watchdog_s or _LOOK_S)

    async def _run(self) -> None:
        while True:
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._again.wait()
                    continue
            self.look()

    def look(self) -> None:
        """Feed or extend, if every part has got on; say which has not."""
        hung = self._vitals.look(self._parts())
        for courier in self._couriers.values():
            courier.touch(set())  # go round once: that is what the next look asks for
        if hung != self._hung and hung:
            log.error("no progress for %.0f s: %s", self._every_s, ", ".join(hung), extra={"action": "hangs"})
        elif hung != self._hung:
            log.info("all parts get on again", extra={"action": "gets_on"})
        self._hung = hung
        status = self._status()
        news, self._said = "" if status == self._said else status, status
        if not hung:
            self._tell(news)
        elif news:
            self._notifier.status(news)

    def _parts(self) -> dict[str, Vital]:
        if self._spool is None:
            return {"the start": self.pace.vital()}
        if self._stopping:  # how long delivery may take then is shutdown.drain_timeout's affair
            return {"storage": self._spool.vital()}
        loops = {f"courier {name}": Vital(courier.rounds, busy=True) for name, courier in self._couriers.items()}
        return {"storage": self._spool.vital(), **loops}

    def _feed(self, news: str) -> None:
        if self._watchdog_s is not None:
            self._notifier.feed(news)
        elif news:
            self._notifier.status(news)

    def _extend(self, news: str) -> None:
        self._notifier.extend(_EXTEND_S, news)

    def _status(self) -> str:
        """One line: what is done, what waits where, what hangs."""
        parts = [self._doing]
        if self._spool is not None:
            parts.append(_queued(self._spool, self._couriers))
        if self._refused:
            parts.append(f"not reloaded: {self._refused}")
        if self._hung:
            parts.append(f"no progress: {', '.join(self._hung)}")
        return "; ".join(parts)


def _queued(spool: Spool, couriers: Mapping[str, Courier]) -> str:
    waiting = {name: queue.live for name, queue in spool.queues.items() if queue.live}
    total, dead = sum(waiting.values()), spool.dead_count
    most = sorted(waiting, key=lambda name: -waiting[name])[:_NAMED]
    named = [f"{name} {waiting[name]:,}{_state(couriers.get(name))}" for name in most]
    named += ["…"] * (len(waiting) > _NAMED)
    return f"{total:,} queued" + (f" ({', '.join(named)})" if named else "") + (f", {dead:,} dead" if dead else "")


def _state(courier: Courier | None) -> str:
    state = courier.status()[0] if courier is not None else "not configured"
    return "" if state == "ok" else f" {state}"
