"""The one way out: an aiohttp session per daemon, told to do nothing on its own.

No redirects (a 301 would turn a POST into a GET and report success: silent loss), no retries, no cookies, a bounded read of
each answer, and every failure of the network as `Lost` with the one fact that matters: was anything sent?
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp

from agentd import __version__
from agentd.exchange import ANSWER_BYTES, Lost, Request, Response

_CONNECT_S = 5.0
_KEEPALIVE_S = 10.0  # below the 15 s and more of common servers: an idle connection is ours to close, not theirs
# What every request carries beside its platform's own headers
HEADERS = {"user-agent": f"agentd/{__version__}", "content-type": "application/json", "accept": "application/json"}


class Http:
    """The session; one for all destinations, opened on the event loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(
        self, base_url: str, request: Request, headers: Mapping[str, str], timeout_s: float
    ) -> Response | Lost:
        """Send and read at most 64 KiB of the answer."""
        assert self._session is not None, "used outside its context"  # noqa: S101
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                request.method,
                base_url.rstrip("/") + request.path,
                data=request.body,
                headers={**headers, **request.headers},
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                body = await _read(answer)
                return Response(answer.status, {n.lower(): _text(v) for n, v in answer.headers.items()}, body)
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ServerFingerprintMismatch,
            aiohttp.ConnectionTimeoutError,
        ) as error:
            return Lost(_name(error), sent=False)
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            return Lost(_name(error), sent=True)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    left = ANSWER_BYTES
    while left > 0 and (part := await answer.content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _name(error: BaseException) -> str:
    """A reason without addresses that change with every try, so that repeats can be counted as one."""
    if isinstance(error, asyncio.TimeoutError):
        return "no connection in time" if isinstance(error, aiohttp.ConnectionTimeoutError) else "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection to {error.host}:{error.port}: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "connection closed before the answer"
    return _text(f"{type(error).__name__}: {error}")[:200]


def _text(value: str) -> str:
    """What a server sends need be no UTF-8, and aiohttp carries it as surrogates, which no log or JSON takes."""
    return value.encode(errors="replace").decode()


class Way:
    """A destination's transport: the session, its base URL and its time limit."""

    def __init__(self, http: Http, base_url: str, timeout_s: float) -> None:
        self._http = http
        self._base_url = base_url
        self._timeout_s = timeout_s

    async def send(self, request: Request, headers: Mapping[str, str]) -> Response | Lost:
        return await self._http.post(self._base_url, request, headers, self._timeout_s)
