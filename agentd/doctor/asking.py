"""Asking the platforms: the way to each, step by step, and whether it takes the key. Reads alone, as `agentd check --online` asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Protocol, cast
from urllib.parse import urlsplit

from msgspec.structs import replace

from agentd.doctor.facts import Hop
from agentd.errors import ConfigError
from agentd.exchange import Lost, Response, Sending
from agentd.http import Http, Way
from agentd.probing import Probe, judge
from agentd.reach import Reach
from agentd.sections import Config
from agentd.targets import Target
from agentd.trust import describe

_WITHIN_S = 8.0
_STEP_S = 5.0
_PORTS = {"http": 80, "https": 443}


class Probing(Protocol):
    """An adapter that knows a read."""

    probe: Probe


def hops(config: Config, env: Mapping[str, str]) -> list[Hop]:
    """All destinations at once, in their order."""
    return asyncio.run(_hops(config, env, config.destinations))


async def _hops(config: Config, env: Mapping[str, str], names: Iterable[str]) -> list[Hop]:
    async with Http() as http:
        return await asyncio.gather(*(_hop(http, name, config, env) for name in names))


async def _hop(http: Http, name: str, config: Config, env: Mapping[str, str]) -> Hop:
    try:
        target = Target(name, config, env)
    except ConfigError as error:
        url = config.destinations[name].base_url
        return Hop(
            name, url, urlsplit(url).hostname or "", 0, unreadable=str(error).removeprefix(f"[destinations.{name}] ")
        )
    hop = await _go(_begin(target), target.reach)
    if hop.dns_error or hop.tcp_error or hop.tls_error:
        return hop
    return await _ask(http, target, hop)


def _begin(target: Target) -> Hop:
    url = urlsplit(target.base_url)
    proxy = target.reach.proxy
    return Hop(
        target.name, target.base_url, url.hostname or "", url.port or _PORTS.get(url.scheme, 0),
        "" if proxy is None else proxy.place, "" if proxy is None else proxy.source,
    )  # fmt: skip


async def _go(hop: Hop, reach: Reach) -> Hop:
    """Name, connection and, where no proxy is between, TLS."""
    first = urlsplit(hop.proxy) if hop.proxy else None
    host, port = (first.hostname or "", first.port or 0) if first is not None else (hop.host, hop.port)
    try:
        async with asyncio.timeout(_STEP_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return replace(hop, dns_error=f"no answer from the name servers within {_STEP_S:.0f} s")
    except OSError as error:
        return replace(hop, dns_error=error.strerror or str(error))
    hop = replace(hop, addresses=tuple(dict.fromkeys(str(one[4][0]) for one in found)))
    begun = time.monotonic()
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return replace(hop, tcp_error=f"nobody answers within {_STEP_S:.0f} s: a firewall, mostly")
    except OSError as error:
        return replace(hop, tcp_error=_os_reason(error))
    hop = replace(hop, tcp_ms=round((time.monotonic() - begun) * 1000, 1))
    await _close(writer)
    if hop.proxy or not hop.base_url.startswith("https://"):
        return hop
    return await _tls(hop, reach)


def _os_reason(error: OSError) -> str:
    """The kernel's words, and not asyncio's of all addresses that were tried."""
    return os.strerror(error.errno) if error.errno else str(error)


async def _tls(hop: Hop, reach: Reach) -> Hop:
    try:
        context = reach.trust.context()
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(hop.host, hop.port, ssl=context, server_hostname=hop.host)
    except ConfigError as error:
        return replace(hop, tls_error=str(error))
    except TimeoutError:
        return replace(hop, tls_error=f"it does not end the TLS handshake within {_STEP_S:.0f} s")
    except (ssl.SSLError, OSError) as error:
        return replace(hop, tls_error=describe(error) or str(error))
    shown = writer.get_extra_info("peercert") or {}
    await _close(writer)
    days = None
    if ends := shown.get("notAfter"):
        days = (ssl.cert_time_to_seconds(ends) - time.time()) / 86400
    issuer = {key: value for pairs in shown.get("issuer", ()) for key, value in pairs}
    return replace(hop, certificate_days=days, issuer=issuer.get("organizationName") or issuer.get("commonName") or "")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


async def _ask(http: Http, target: Target, hop: Hop) -> Hop:
    probe = cast("Probing", target.platform).probe
    request = probe.request
    sending = Sending(target.api_key, "", time.time(), request.body, target.signing_secret)
    headers = {name: value for name, value in target.platform.headers(sending).items() if value}
    answer = await Way(http, target.reach).send(request, headers, timeout_s=min(target.reach.timeout_s, _WITHIN_S))
    verdict = judge(probe, answer)
    if isinstance(answer, Lost):
        return replace(hop, lost=answer.reason)
    return replace(
        hop, key_found=verdict.found.value, key_said=verdict.reason, status=answer.status, clock_ahead_s=ahead(answer, time.time())
    )  # fmt: skip


def ahead(answer: Response, now_s: float) -> float | None:
    """By how much our clock is ahead of the platform's, as far as its Date says, which has whole seconds."""
    try:
        said = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    off = now_s - said.replace(tzinfo=said.tzinfo or UTC).timestamp()
    return 0.0 if 0 <= off < 1 else off if off < 0 else off - 1
