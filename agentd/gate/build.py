"""The keeper from what the composition root has: targets, ways out, spool, sink."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypedDict, cast

import msgspec

from agentd.ageing import Clocks
from agentd.delivery.backoff import Backoff
from agentd.exchange import Platform
from agentd.gate.breaker import Breaker
from agentd.gate.desk import Desk, Way
from agentd.gate.keeper import Keeper
from agentd.gating import Gate
from agentd.intake import Peer, Sink
from agentd.intake.admit import Limits
from agentd.intake.routing import Route
from agentd.records import Event
from agentd.redact.engine import Redactor
from agentd.sections import Config, Destination
from agentd.spool.gaterows import GateRow
from agentd.spool.gates import GateShelf
from agentd.spool.spool import Spool
from agentd.stamp import Stamp
from agentd.wire import Ack, Message, encode

log = logging.getLogger("agentd.gate")

_OPEN_SHARE = 4  # gates under way are in memory as a whole: at most this part of memory.budget
_INDEX_SHARE = 4  # the same of what is known in memory of every gate on record: about 20,000 of them by default


class Site(Protocol):
    """A configured destination with what is known of it."""

    @property
    def name(self) -> str: ...
    @property
    def destination(self) -> Destination: ...
    @property
    def platform(self) -> Platform: ...
    @property
    def api_key(self) -> str: ...
    @property
    def signing_secret(self) -> str | None: ...
    @property
    def identity(self) -> str: ...
    @property
    def stamp(self) -> Stamp: ...
    def agent_of(self, local: str) -> str: ...
    def route(self) -> Route: ...


class Outlet(Way, Protocol):
    """A way out that somebody keeps a rate of."""

    @property
    def spend(self) -> Callable[[], None]: ...


class Gating(Protocol):
    """An adapter that has gates."""

    gates: Mapping[str, Gate]


def build_keeper(
    sites: Mapping[str, Site],
    config: Config,
    *,
    ways: Mapping[str, Outlet],
    spool: Spool,
    sink: Sink,
    trusted_uids: Iterable[int],
    clocks: Clocks,
    redactor: Redactor | None = None,
) -> Keeper:
    """The gates of every destination that has some; `start` is still to be called. `sites` may change behind it (`follow`)."""
    return Keeper(
        _desks(sites, config, ways),
        GateShelf(spool, redactor),
        _limits(config),
        redactor=redactor,
        **_times(config),
        open_bytes=int(config.memory.budget) // _OPEN_SHARE,
        index_bytes=int(config.memory.budget) // _INDEX_SHARE,
        announce=_announcer(sites, sink),
        trusted_uids=trusted_uids,
        now_us=clocks.now_us,
        clocks=clocks,
    )


def follow(
    keeper: Keeper,
    sites: Mapping[str, Site],
    config: Config,
    *,
    ways: Mapping[str, Outlet],
    trusted_uids: Iterable[int],
) -> None:
    """The same keeper by another configuration."""
    keeper.follow(_desks(sites, config, ways), _limits(config), trusted_uids, **_times(config))


class _Times(TypedDict):
    reference_wait_s: float
    remember_s: float
    follow_s: float


def _times(config: Config) -> _Times:
    return {
        "reference_wait_s": float(config.intake.reference_wait),
        "remember_s": float(config.gate.remember),
        "follow_s": float(config.gate.follow),
    }


def _limits(config: Config) -> Limits:
    return Limits(int(config.intake.max_record_bytes), config.intake.max_depth)


def _desks(sites: Mapping[str, Site], config: Config, ways: Mapping[str, Outlet]) -> list[Desk]:
    backoff = Backoff(float(config.retry.initial), float(config.retry.max))
    return [_desk(site, ways[name], backoff) for name, site in sites.items()]


def _desk(site: Site, way: Outlet, backoff: Backoff) -> Desk:
    route = site.route()
    return Desk(
        name=site.name,
        platform=site.platform,
        gates=cast("Gating", site.platform).gates,
        way=way,
        breaker=Breaker(backoff),
        api_key=site.api_key,
        identity=site.identity,
        signing_secret=site.signing_secret,
        default_agent=route.default_agent,
        takes_agent=route.takes_agent,
        takes_events=lambda agent: route.takes("event", agent),
        agent_of=site.agent_of,
        options=site.destination.options or {},
        stamp=site.stamp,
        open_mode=site.destination.fail_mode == "open",
        spend=way.spend,
    )


def _announcer(sites: Mapping[str, Site], sink: Sink) -> Callable[[GateRow, dict[str, Any]], None]:
    """Queues the event of a verdict in the name of whoever asked; where nobody takes events there is none to queue."""

    def announce(gate: GateRow, payload: dict[str, Any]) -> None:
        source = gate.source
        if gate.run_id is None or not any(site.route().takes("event", source.agent) for site in sites.values()):
            return
        event = Event(
            run_id=gate.run_id, type=f"gate.{gate.gate}", level="warn", payload=msgspec.Raw(encode(payload)),
            agent_id=source.agent or None,
        )  # fmt: skip
        peer = Peer(source.uid, -1, source.pid, gate.token)
        future = sink.submit(Message(None, [event]), peer, stream=None, origin="agentd", hold=False)
        future.add_done_callback(lambda done: _look_at(gate, done))

    return announce


def _look_at(gate: GateRow, done: Any) -> None:
    ack: Ack | None = None if done.cancelled() else done.result()
    if ack is not None and ack.rejected:
        log.warning(
            "the event of %s gate %s was refused: %s", gate.gate, gate.gate_id, ack.rejected[0].error,
            extra={"action": "gate_event_refused"},
        )  # fmt: skip
