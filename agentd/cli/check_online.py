"""`agentd check --online`: does each platform take its key? One read for each destination, never a write, and no daemon is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol, cast

from agentd.errors import ConfigError
from agentd.exchange import Sending
from agentd.http import Http, Way
from agentd.probing import Found, Probe, Verdict, judge
from agentd.sections import Config
from agentd.targets import Target

LEVELS: Mapping[Found, Literal["ok", "warning", "error"]] = {
    Found.TAKEN: "ok",
    Found.REFUSED: "error",
    Found.AWAY: "warning",
    Found.UNCLEAR: "warning",
}
_WITHIN_S = 10.0


class Seen(NamedTuple):
    """What came of one destination's probe."""

    name: str
    verdict: Verdict


class Probing(Protocol):
    """An adapter that knows a read."""

    probe: Probe


def look(config: Config, env: Mapping[str, str]) -> list[Seen]:
    """All destinations at once, in their order; one whose key can't be read is left out, since there is nothing to ask with."""
    return asyncio.run(_look(_targets(config, env)))


def _targets(config: Config, env: Mapping[str, str]) -> Iterable[Target]:
    for name in config.destinations:
        try:
            yield Target(name, config, env)
        except ConfigError:
            continue


async def _look(targets: Iterable[Target]) -> list[Seen]:
    async with Http() as http:
        return await asyncio.gather(*(_ask(http, target) for target in targets))


async def _ask(http: Http, target: Target) -> Seen:
    probe = cast("Probing", target.platform).probe
    request = probe.request
    sending = Sending(target.api_key, "", time.time(), request.body, target.signing_secret)
    headers = {name: value for name, value in target.platform.headers(sending).items() if value}
    answer = await Way(http, target.reach).send(request, headers, timeout_s=min(target.reach.timeout_s, _WITHIN_S))
    return Seen(target.name, judge(probe, answer))
