"""Reading the configuration again: checked first, all or nothing, and whoever it says nothing new of is not disturbed.

    reloader = Reloader(parts, loaded, read, env)
    reloader.request()          # SIGHUP: soon
    await reloader.reload(…)    # POST /-/reload: what changed. Raises ConfigError, and nothing has

What takes time (files, keys, a courier's last answer, a queue that is being dropped) comes before; the exchange itself is one turn
of the event loop. Those who ask while one is under way share the next: what they had written before they asked is in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from agentd.changes import Kept, Plan, Setup, as_document, changes
from agentd.compat.build import stands_of
from agentd.compat.gateway import Gateway
from agentd.config_checks import read_tokens
from agentd.control.answers import DaemonControl
from agentd.errors import AgentdError, ConfigError
from agentd.fleet import Fleet
from agentd.gate import build as gates
from agentd.gate.keeper import Keeper
from agentd.intake.access import Access
from agentd.intake.admit import Limits as AdmitLimits
from agentd.intake.reaper import Reaper
from agentd.intake.routing import Table
from agentd.intake.sink import SpoolSink
from agentd.logs import set_up
from agentd.redact.build import build_redactor, no_redactor
from agentd.redact.engine import Redactor
from agentd.sections import Config, Intake, Loaded
from agentd.spool import adopting
from agentd.spool.notices import Notices
from agentd.spool.spool import Spool
from agentd.targets import Target, targets_of

log = logging.getLogger("agentd")


class Parts(NamedTuple):
    """What follows the configuration. `routes` hears the names of the destinations, `bounds` what one user may."""

    spool: Spool
    sink: SpoolSink
    fleet: Fleet
    reaper: Reaper
    notices: Notices
    keeper: Keeper
    gateway: Gateway
    access: Access
    routes: Callable[[Iterable[str]], None]
    control: DaemonControl
    bounds: Callable[[Intake], None] = lambda _intake: None


class Fresh(NamedTuple):
    """A configuration that was read, and what was made of it."""

    loaded: Loaded
    targets: dict[str, Target]
    tokens: list[str]
    redactor: Redactor = no_redactor()

    def __repr__(self) -> str:
        """Without the tokens."""
        return f"<Fresh {self.setup!r}>"

    @property
    def setup(self) -> Setup:
        return Setup(self.loaded.config, self.targets, self.tokens)


def trusted_uids(config: Config) -> set[int]:
    """Who may speak for all on the Unix socket."""
    return {0, os.geteuid(), *config.security.admin_uids}


def table_of(targets: Mapping[str, Target]) -> Table:
    return Table(target.route() for target in targets.values())


def told(targets: Mapping[str, Target]) -> list[str]:
    """The destinations at which runs can be told what they lost."""
    return [name for name, target in targets.items() if "event" in target.kinds]


def admit_limits(config: Config) -> AdmitLimits:
    return AdmitLimits(int(config.intake.max_record_bytes), config.intake.max_depth)


class Reloader:
    """See the module. `loaded` is what is in force."""

    def __init__(
        self,
        parts: Parts,
        fresh: Fresh,
        read: Callable[[], Loaded],
        env: Mapping[str, str],
        followed: Callable[[Loaded], None],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`read` reads the configuration as it was read at the start; `followed` hears of each one that is in force.

        `around` is entered for each reading: whoever is told of its beginning and its end.
        """
        self._parts = parts
        self._now = fresh
        self._read = read
        self._env = env
        self._followed = followed
        self._around = around
        self._running: asyncio.Task[Plan] | None = None
        self._next: asyncio.Task[Plan] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Reloader of {self._now.loaded.path or 'the environment'}>"

    # -- asking ------------------------------------------------------------------------------------------------------

    def request(self) -> None:
        """Read it again soon. What comes of it is in the log and in the status."""
        if self._closed:
            log.info("stopping: the configuration is not read again", extra={"action": "reload_ignored"})
            return
        self._ask().add_done_callback(_look_at)

    async def reload(self) -> dict[str, Any]:
        """What changed. Raises ConfigError where nothing did for a fault in it, AgentdError when agentd is stopping."""
        if self._closed:
            raise AgentdError("agentd is stopping")
        task = self._ask()
        await asyncio.wait({task})  # who stops waiting stops nothing
        if task.cancelled():
            raise AgentdError("agentd is stopping")
        return as_document(task.result())

    async def close(self) -> None:
        """Read nothing more; one that is under way ends before its exchange, or after it."""
        self._closed = True
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self) -> asyncio.Task[Plan]:
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running), name="reload")
            self._next.add_done_callback(self._done)
        return self._next

    async def _after(self, before: asyncio.Task[Plan] | None) -> Plan:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        return await self._reload()

    def _done(self, task: asyncio.Task[Plan]) -> None:
        if self._running is task:
            self._running = None
        if self._next is task:
            self._next = None
        if not task.cancelled():
            task.exception()  # seen to where it was raised

    # -- doing -------------------------------------------------------------------------------------------------------

    async def _reload(self) -> Plan:
        reloads = self._parts.control.reloads
        try:
            with self._around():
                plan = await self._change()
        except ConfigError as error:
            reloads.refused(str(error))
            log.error("the configuration stays as it was: %s", error, extra={"action": "reload_failed"})
            raise
        reloads.done()
        log.info("configuration read again: %s", plan, extra={"action": "reloaded"})
        return plan

    async def _change(self) -> Plan:
        fresh = await asyncio.to_thread(self._load)
        async with self._parts.control.queues.undropped():
            plan = self._plan(fresh)
            if busy := [name for name in plan.added if self._parts.fleet.is_leaving(name)]:
                await self._parts.fleet.settle(busy)
                plan = self._plan(fresh)  # what was under way has ended
            self._follow(plan, fresh)
        return plan

    def _load(self) -> Fresh:
        """On a thread: a file may take its time."""
        loaded = self._read()
        redactor = build_redactor(loaded.config.redact, self._env)
        return Fresh(loaded, targets_of(loaded.config, self._env), read_tokens(loaded.config, self._env), redactor)

    def _plan(self, fresh: Fresh) -> Plan:
        spool = self._parts.spool
        identities = spool.meta.identities
        kept = {name: Kept(identities.get(name, ""), adopting.waiting(spool, name)) for name in spool.queues}
        return changes(self._now.setup, fresh.setup, kept)

    def _follow(self, plan: Plan, fresh: Fresh) -> None:
        """All of it in one turn of the loop; nothing here waits, or fails for anything in a configuration."""
        parts, config, targets = self._parts, fresh.loaded.config, fresh.targets
        stands = stands_of(targets, config, parts.spool)
        trusted = trusted_uids(config)
        set_up(config.log.level, config.log.format)
        adopting.adopt(parts.spool, {name: target.identity for name, target in targets.items()})
        parts.spool.ledger.senders.update(rule.uid for rule in config.security.peers)
        resize(parts.spool, config)
        parts.fleet.follow(plan, targets)
        if "dead_letters.max_bytes" in plan.settings:
            parts.fleet.letters_left()
        gates.follow(parts.keeper, targets, config, ways=parts.fleet.ways, trusted_uids=trusted)
        parts.access.follow(config.security, fresh.tokens)
        table = table_of(targets)
        parts.sink.admission.redactor.follow(fresh.redactor)
        parts.sink.admission.follow(table, admit_limits(config), trusted)
        parts.reaper.follow(table, float(config.runs.orphan_grace))
        parts.notices.follow(told(targets))
        parts.gateway.follow(stands)
        parts.routes(targets)
        parts.bounds(config.intake)
        parts.control.follow(fresh.loaded)
        self._now = fresh
        self._followed(fresh.loaded)


def resize(spool: Spool, config: Config) -> None:
    """The spool's bounds as they are configured now."""
    adopting.resize(
        spool,
        quotas={name: config.quota_of(name) for name in config.destinations},
        max_bytes=int(config.spool.max_bytes),
        dead_bytes=int(config.dead_letters.max_bytes),
    )
    spool.journal.follow(int(config.journal.retention * 1e6), int(config.journal.max_bytes))


def _look_at(task: asyncio.Task[Plan]) -> None:
    """A fault in the configuration is in the log; anything else is a defect of ours."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, AgentdError):
        log.error("reading the configuration again failed: %r", error, exc_info=error, extra={"action": "defect"})
