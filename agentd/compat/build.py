"""The gateway from what the composition root has: targets, sink, spool, gate room, session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, cast

from agentd.ageing import Clocks
from agentd.compat.gateway import Gateway
from agentd.compat.names import Agents, Names, locals_of
from agentd.compat.paths import Doors
from agentd.compat.relay import Relay
from agentd.compat.stands import Stand
from agentd.compat.telemetry import Store, Telemetry
from agentd.exchange import Platform
from agentd.gate.keeper import Keeper
from agentd.http import Http
from agentd.intake import Peer
from agentd.reach import Reach
from agentd.sections import Config, Destination
from agentd.spool.spool import Spool
from agentd.standin import StandIn


class Site(Protocol):
    """A configured destination with what is known of it."""

    @property
    def name(self) -> str: ...
    @property
    def destination(self) -> Destination: ...
    @property
    def platform(self) -> Platform: ...
    @property
    def reach(self) -> Reach: ...
    @property
    def api_key(self) -> str: ...
    @property
    def signing_secret(self) -> str | None: ...
    def agent_of(self, local: str) -> str: ...


class Standing(Protocol):
    """An adapter that has something to say to its platform's SDK."""

    stand_in: StandIn


def build_gateway(
    sites: Mapping[str, Site],
    config: Config,
    *,
    spool: Spool,
    sink: Store,
    keeper: Keeper,
    http: Http,
    is_admin: Callable[[Peer], bool],
    clocks: Clocks,
) -> Gateway:
    """The platforms of all destinations towards their SDKs; `add_to` puts it into the intake's application."""
    return Gateway(
        stands_of(sites, config, spool),
        sink,
        Telemetry(sink, clocks.said_us, keeper.redactor),
        Relay(keeper, http),
        http,
        is_admin=is_admin,
        body_timeout_s=float(config.intake.frame_timeout),
        now_us=clocks.now_us,
    )


def stands_of(sites: Mapping[str, Site], config: Config, spool: Spool) -> dict[str, Stand]:
    """What stands in for each of them."""
    wait_s = float(config.intake.reference_wait)
    return {name: _stand(site, spool, wait_s) for name, site in sites.items()}


def _stand(site: Site, spool: Spool, wait_s: float) -> Stand:
    stand_in = cast("Standing", site.platform).stand_in
    table = site.destination.agents
    agents = Agents(site.agent_of, site.destination.agent_id or "", locals_of(table))
    return Stand(
        name=site.name,
        platform=site.platform,
        stand_in=stand_in,
        doors=Doors(stand_in.doors),
        names=Names(site.name, stand_in.names, spool.refs, spool.wait_for_names, agents),
        reach=site.reach,
        api_key=site.api_key,
        signing_secret=site.signing_secret,
        timeout_s=float(site.destination.timeout),
        reference_wait_s=wait_s,
        is_open=site.destination.passthrough == "admin",
    )
