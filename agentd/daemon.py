"""The composition root: builds everything, starts it, waits for the end, and takes it apart in reverse order.

Start: configuration → platforms and keys → spool (lock, recovery) → couriers → sink → socket. Stop, on SIGTERM or SIGINT:
no new connections and no reading, pending answers out, what is queued goes without waiting for batches to fill until
`shutdown.drain_timeout`, the rest stays on disk. A second signal ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agentd import __version__, crashpoints, logs
from agentd.ageing import Clocks
from agentd.compat.build import build_gateway
from agentd.compat.gateway import Gateway
from agentd.config_checks import read_tokens
from agentd.control.answers import DaemonControl
from agentd.control.health import Health, Probed
from agentd.control.letters import LetterControl
from agentd.control.service import Service
from agentd.crashpoints import Point, reached
from agentd.errors import AgentdError
from agentd.filesystems import refuse_network
from agentd.fleet import Fleet
from agentd.gate.build import build_keeper
from agentd.gate.keeper import Keeper
from agentd.http import Http
from agentd.identity import Uuid7
from agentd.intake import routes, streams
from agentd.intake.access import Access
from agentd.intake.admit import Admission
from agentd.intake.dedupe import Window
from agentd.intake.gates import add_gates
from agentd.intake.letters import add_letters
from agentd.intake.probe import ProbeListener
from agentd.intake.queues import add_queues
from agentd.intake.reaper import Reaper
from agentd.intake.records import add_records
from agentd.intake.reload import add_reload
from agentd.intake.server import Server
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams
from agentd.intake.top import add_sight
from agentd.quotas import Quotas
from agentd.redact.build import build_redactor
from agentd.reloading import Fresh, Parts, Reloader, admit_limits, table_of, told, trusted_uids
from agentd.sections import Loaded
from agentd.signals import signals_to
from agentd.spool.dead import DeadLetters
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.notices import Notices
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.spool.spool import Spool
from agentd.spool.tables import Table
from agentd.targets import targets_of

log = logging.getLogger("agentd")

_TICK_S = 1.0
_VACUUM_EVERY_TICKS = 30
_SETTLED_TICKS = (
    600  # nothing is deleted for its age before: a wall clock that was wrong at the start is put right by then
)
_STREAM_KEEP_US = 7 * 86400 * 10**6
_POLL_S = 0.02
_LAST_WORD_S = 0.5
_LAST_ANSWERS_S = 5.0  # for messages that are under way when the daemon is told to stop


def serve(
    loaded: Loaded,
    env: Mapping[str, str] = os.environ,
    reread: Callable[[], Loaded] | None = None,
    service: Service | None = None,
) -> int:
    """Run the daemon until a signal; `reread` is what a reload does. Returns the exit status. Raises ConfigError, StateError."""
    logs.set_up(loaded.config.log.level, loaded.config.log.format)
    os.umask(0o077)
    return asyncio.run(Daemon(loaded, env, reread, service=service).run())


class Left(NamedTuple):
    """What a destination's queue still held at the end, and why."""

    records: int
    reason: str


class Daemon:
    """One run of the daemon. `ready` is set once it takes records; `left` says after the end what stays on disk, by destination."""

    def __init__(
        self,
        loaded: Loaded,
        env: Mapping[str, str],
        reread: Callable[[], Loaded] | None = None,
        *,
        service: Service | None = None,
        beside: bool = False,
    ) -> None:
        """`reread` reads the configuration as it was read for `loaded`; without it there is no reloading.

        `beside` a command, in its supervisor's process.

        SIGTERM and SIGINT are left to the caller, who ends it by `stop`; and since the command runs under our own uid, being of
        that uid is no reason to let anybody decide what agents may do.
        """
        crashpoints.arm(env)
        self.loaded = loaded
        self.ready = asyncio.Event()
        self.left: dict[str, Left] = {}
        self.dead_letters = 0  # known at the end
        self._env = env
        self._reread = reread
        self._reloader: Reloader | None = None
        self._hung_up = False
        self._beside = beside
        self._service = service or Service()
        self.config = loaded.config
        self.targets = targets_of(self.config, env)
        self._tokens = read_tokens(self.config, env)
        self.access = Access(self.config.security, self._tokens)
        self._redactor = build_redactor(self.config.redact, env)
        logs.hide_with(self._redactor.text)
        self.http_url = ""  # where `listen.http` is, with its real port; empty without it, and until `ready`
        self._clocks = Clocks()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failed = False

    async def run(self) -> int:
        """From start to end. Returns the exit status: 1 if a part of the daemon died, 0 otherwise."""
        others = {signal.SIGHUP: self._hang_up, signal.SIGUSR1: logs.toggle_debug}
        with contextlib.nullcontext() if self._beside else signals_to(self.stop, others, ends=True):
            async with self._service as service, Health(service.pace) as health, contextlib.AsyncExitStack() as stack:
                probed = Probed(health)
                await stack.enter_async_context(ProbeListener(self.config.listen.probe, probed))
                parts, server = await self._build(stack, health)
                await server.start(service.sockets)
                stack.push_async_callback(server.aclose)
                self.http_url = server.http_url or ""
                await stack.enter_async_context(self._running(parts))
                self._begin_to_reload(parts)
                reached(Point.RECOVERY_STARTED)
                places = " and ".join(filter(None, (self.config.listen.socket, self.http_url)))
                log.info("agentd %s takes records at %s", __version__, places, extra={"action": "started"})
                probed.control = parts.control
                self.ready.set()
                service.ready(parts.spool, parts.fleet.couriers)
                await self._stop.wait()
                service.stopping()
                parts.control.draining = True
                parts.control.tail.tails.close()
                log.info("stopping", extra={"action": "stopping"})
                reached(Point.SHUTDOWN_BEGUN)
                await self._drain(parts, server)
        reached(Point.SHUTDOWN_CLOSED)
        log.info("stopped", extra={"action": "stopped"})
        logs.flush()
        return int(self._failed)

    async def _build(self, stack: contextlib.AsyncExitStack, health: Health) -> tuple[Parts, Server]:
        """All parts, joined; the socket and the couriers are still to be started."""
        spool = await self._open_spool()
        stack.push_async_callback(spool.close)
        spool.hide = self._redactor.text
        self._name_removed(spool)
        self._watch(spool.start())
        http = await stack.enter_async_context(Http())
        letters = DeadLetters(spool)
        notices = Notices(spool, told(self.targets), Uuid7(), self._clocks.now_us)
        fleet = Fleet(spool, http, letters, notices, self._clocks, self._watch)
        fleet.open(self.targets)
        file = Path(self.config.spool.directory) / "quota.json"
        quotas = await stack.enter_async_context(Quotas(fleet.targets, file, self._clocks.now_us))
        http.listen(quotas.heard)
        sink, reaper = await self._sink(spool, letters, notices)
        stack.push_async_callback(sink.close)
        stack.callback(reaper.close)
        keeper = build_keeper(
            fleet.targets, self.config, ways=fleet.ways, spool=spool, sink=sink, clocks=self._clocks,
            trusted_uids=trusted_uids(self.config), redactor=self._redactor,
        )  # fmt: skip
        stack.push_async_callback(keeper.close)
        await keeper.start()
        server: list[Server] = []
        control = DaemonControl(
            self.loaded,
            spool,
            sink,
            fleet.couriers,
            lambda: server[0].connections if server else 0,
            lambda: self.http_url or None,
            keeper,
            clocks=self._clocks,
            decides=not self._beside,
            health=health,
            missing=lambda: server[0].missing() if server else None,
            quota=quotas.document,
        )
        fleet.observer = control.observer
        stack.callback(control.queues.close)
        gateway = build_gateway(
            fleet.targets, self.config, spool=spool, sink=sink, keeper=keeper, http=http,
            is_admin=control.may_decide, clocks=self._clocks,
        )  # fmt: skip
        app = self._app(control, sink, keeper, letters, gateway)
        server.append(Server(self.config, sink, app))
        lists = partial(routes.follow, app)
        parts = Parts(
            spool, sink, fleet, reaper, notices, keeper, gateway, self.access, lists, control, server[0].follow
        )
        return parts, server[0]

    def _app(
        self, control: DaemonControl, sink: SpoolSink, keeper: Keeper, letters: DeadLetters, gateway: Gateway
    ) -> routes.Application:
        """Everything that the daemon answers over HTTP."""
        app = routes.build_app(sink, control, self.config, self.access)
        add_gates(app, keeper, sink, control, self.config)
        add_letters(app, LetterControl(letters, control.queues.read, self._clocks.now_us), control)
        add_queues(app, control.queues, control)
        add_records(app, control.records, control)
        add_sight(app, control.top, control.tail, control)
        add_reload(app, self.reload, control)
        gateway.add_to(app)
        return app

    # -- another configuration ---------------------------------------------------------------------------------------

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again. Returns what changed. Raises ConfigError where nothing did; AgentdError when stopping."""
        if self._reloader is None:
            raise AgentdError("agentd does not take records yet, or is beside a command and is not reloaded")
        return await self._reloader.reload()

    def _hang_up(self) -> None:
        """SIGHUP; one that comes during the start counts once that is over, since the file may be another by then."""
        self._hung_up = True
        if self._reloader is not None:
            self._reloader.request()

    def _begin_to_reload(self, parts: Parts) -> None:
        if self._reread is None:
            return
        fresh = Fresh(self.loaded, self.targets, self._tokens, self._redactor)
        self._reloader = Reloader(parts, fresh, self._reread, self._env, self._follow, self._service.reloading)
        if self._hung_up:
            self._reloader.request()

    def _follow(self, loaded: Loaded) -> None:
        self.loaded, self.config = loaded, loaded.config

    def _watch(self, task: asyncio.Task[None]) -> None:
        """If a part dies the daemon ends, with a status that has the service manager start it again: half of it is no daemon."""
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s died: %r", task.get_name(), error, exc_info=error, extra={"action": "died"})
            self._failed = True
            self._hurry.set()
            self._stop.set()

    @contextlib.asynccontextmanager
    async def _running(self, parts: Parts) -> AsyncIterator[None]:
        """The couriers and the housekeeping, until the block ends."""
        keeping = self._housekeeping(parts.control, parts.spool, parts.sink, parts.keeper, parts.reaper, parts.notices)
        task = asyncio.create_task(keeping, name="housekeeping")
        self._watch(task)
        parts.fleet.start()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, parts.fleet.close(), return_exceptions=True)

    def stop(self) -> None:
        """End in order; told a second time, without waiting for what can still be delivered."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _open_spool(self) -> Spool:
        config = self.config
        budget = int(config.memory.budget)
        refuse_network(Path(config.spool.directory))
        limits = Limits(
            quotas={name: config.quota_of(name) for name in self.targets},
            max_bytes=int(config.spool.max_bytes),
            dead_bytes=int(config.dead_letters.max_bytes),
            window_bytes=budget // 4,
            directory_bytes=budget // 8,
            seen_ids=config.intake.dedupe_window,
        )
        return await open_spool(
            Path(config.spool.directory),
            sync=config.spool.sync,
            limits=limits,
            identities={name: target.identity for name, target in self.targets.items()},
            journal=Journal(int(config.journal.retention * 1e6), int(config.journal.max_bytes)),
            now_us=self._clocks.now_us,
            pace=self._service.pace,
        )

    def _name_removed(self, spool: Spool) -> None:
        """A destination that is not configured any more keeps its queue, and somebody should know."""
        for name, queue in spool.queues.items():
            if name not in self.targets and queue.live:
                log.warning(
                    "%d records wait for destination %s, which is not in the configuration: put it back to have them sent",
                    queue.live, name, extra={"action": "removed", "destination": name},
                )  # fmt: skip

    async def _sink(self, spool: Spool, letters: DeadLetters, notices: Notices) -> tuple[SpoolSink, Reaper]:
        config = self.config
        spool.ledger.senders.update(rule.uid for rule in config.security.peers)
        shelf = SpoolShelf(spool, letters)
        window = Window(config.intake.dedupe_window)
        for _, value in await shelf.stored_ids():
            window.restore(value)
        known = Streams()
        for row, value in await shelf.stored_streams():
            try:
                known.add(row, streams.decode(value))
            except msgspec.MsgspecError:
                shelf.drop_streams([row])
                log.error(
                    "a stream's outcomes are damaged: its client's repeats may be stored twice",
                    extra={"action": "quarantine"},
                )
        table = table_of(self.targets)
        admission = Admission(
            table,
            shelf,
            window,
            admit_limits(config),
            Uuid7(),
            trusted_uids(config),
            grants=self.access.grant,
            notices=notices,
            redactor=self._redactor,
        )
        reaper = Reaper(shelf, table, float(config.runs.orphan_grace), config.intake.max_connections)
        sink = SpoolSink(
            admission,
            shelf,
            window,
            known,
            max_frame_bytes=int(config.intake.max_frame_bytes),
            now_us=self._clocks.now_us,
            clock=time.monotonic,
            runs=reaper,
        )
        letters.readmit = sink.readmit
        await reaper.start(sink)
        return sink, reaper

    async def _housekeeping(
        self,
        control: DaemonControl,
        spool: Spool,
        sink: SpoolSink,
        keeper: Keeper,
        reaper: Reaper,
        notices: Notices,
    ) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ticks += 1
            keep_us = int(self.config.runs.keep * 1e6)
            age_us = self._clocks.ages() if ticks > _SETTLED_TICKS else lambda _at_us: 0
            spool.tick(age_us, keep_us)
            notices.tick(age_us, keep_us)
            keeper.tick()
            reaper.tick()
            control.queues.tick()
            logs.tick()
            if ticks % _VACUUM_EVERY_TICKS == 0:
                spool.drop_rows(Table.STREAM, sink.prune(_older_than(_STREAM_KEEP_US, age_us)))
                while await spool.vacuum():
                    await asyncio.sleep(0)

    async def _drain(self, parts: Parts, server: Server) -> None:
        """Take nothing more, answer gates and send what is queued, due or not, within `drain_timeout` and while things move."""
        spool, fleet, keeper, reaper = parts.spool, parts.fleet, parts.keeper, parts.reaper
        if self._reloader is not None:
            await self._reloader.close()
        reaper.stop()
        drain_s = float(self.config.shutdown.drain_timeout)
        deadline = time.monotonic() + drain_s
        fleet.flush()
        keeper.drain()
        gates = asyncio.create_task(self._answer_gates(keeper, deadline), name="last gates")
        last_s = max(_LAST_WORD_S, min(_LAST_ANSWERS_S, drain_s))
        await self._close(server, gates, last_s + (drain_s if keeper.under_way else 0.0))
        if self._beside:  # nobody comes after the command: what it has left open is not kept for a later start
            reaper.end_all()
        fleet.flush()  # what the last messages and gates brought
        while time.monotonic() < deadline and not self._hurry.is_set():
            if not fleet.is_moving(deadline):
                break
            await asyncio.sleep(_POLL_S)
        await fleet.rest(_LAST_WORD_S)
        reached(Point.SHUTDOWN_DRAINED)
        self.dead_letters = spool.dead_count
        for name, queue in spool.queues.items():
            if queue.live:
                reason = fleet.couriers[name].status()[1] if name in fleet.couriers else "not in the configuration"
                self.left[name] = Left(queue.live, reason or "no time was left")
        if self.left:
            rest = ", ".join(f"{left.records} for {name}" for name, left in self.left.items())
            log.warning("%s stay on disk for the next start", rest, extra={"action": "left"})

    async def _close(self, server: Server, gates: asyncio.Task[None], timeout_s: float) -> None:
        """Let who is connected have his answer; told to hurry, those alone that are there."""
        closing = asyncio.create_task(server.aclose(timeout_s), name="last answers")
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        await gates
        if not closing.done():
            await asyncio.wait({closing}, timeout=_LAST_WORD_S)
            server.abort()
        await closing

    async def _answer_gates(self, keeper: Keeper, deadline: float) -> None:
        """Let gates that are under way come to an end, then write down what is certain of the others."""
        while keeper.under_way and time.monotonic() < deadline and not self._hurry.is_set():
            await asyncio.sleep(_POLL_S)
        await keeper.close()


def _older_than(limit_us: int, age_us: Callable[[int], int]) -> Callable[[int], bool]:
    return lambda at_us: age_us(at_us) > limit_us
