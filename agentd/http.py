"""The one way out: an aiohttp session per daemon, told to do nothing on its own.

No redirects (a 301 would turn a POST into a GET and report success: silent loss), no retries, no cookies, a bounded read of
each answer, the key taken out of what comes back, and every failure of the network as `Lost` with the one fact that matters: was anything sent?
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from agentd import __version__
from agentd.errors import AgentdError
from agentd.exchange import ANSWER_BYTES, Lost, Request, Response
from agentd.withheld import Withheld

_CONNECT_S = 5.0
# of the whole time: where it is short, what hangs in connecting ends as "no connection", and not as an answer that was lost
_CONNECT_SHARE = 0.9
_WHOLE = 2**20  # bytes of a body that goes out in one write; aiohttp warns of a larger one
_KEEPALIVE_S = 10.0  # below the 15 s and more of common servers: an idle connection is ours to close, not theirs
# What every request carries beside its platform's own headers
HEADERS = {"user-agent": f"agentd/{__version__}", "content-type": "application/json", "accept": "application/json"}

_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ServerFingerprintMismatch, aiohttp.ConnectionTimeoutError)
_FAILED = (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError)


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
        self,
        base_url: str,
        request: Request,
        headers: Mapping[str, str],
        timeout_s: float,
        limit: int = ANSWER_BYTES,
    ) -> Response | Lost:
        """Send and read at most `limit` bytes of the answer."""
        connect_s = min(_CONNECT_S, timeout_s * _CONNECT_SHARE)
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=connect_s, sock_connect=connect_s)
        withheld = Withheld(headers)
        try:
            async with self._request(base_url, request, headers, timeout) as answer:
                body = withheld.data(await _read(answer, limit))
                return Response(answer.status, _headers(answer, withheld), body)
        except _UNSENT as error:
            return Lost(withheld.text(_name(error)), sent=False)
        except _FAILED as error:
            return Lost(withheld.text(_name(error)), sent=True)

    @contextlib.asynccontextmanager
    async def open(
        self, base_url: str, request: Request, headers: Mapping[str, str], timeout_s: float, *, streams: bool = False
    ) -> AsyncIterator[Opened | Lost]:
        """Send, and leave the body to be read within the block. With `streams` the time limit is for each silence in it."""
        total, silence = (None, timeout_s) if streams else (timeout_s, None)
        connect_s = min(_CONNECT_S, timeout_s * _CONNECT_SHARE)
        timeout = aiohttp.ClientTimeout(total=total, connect=connect_s, sock_connect=connect_s, sock_read=silence)
        async with contextlib.AsyncExitStack() as stack:
            found: Opened | Lost
            withheld = Withheld(headers)
            try:
                answer = await stack.enter_async_context(self._request(base_url, request, headers, timeout))
                found = Opened(answer, withheld)
            except _UNSENT as error:
                found = Lost(withheld.text(_name(error)), sent=False)
            except _FAILED as error:
                found = Lost(withheld.text(_name(error)), sent=True)
            yield found

    def _request(
        self, base_url: str, request: Request, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None, "used outside its context"  # noqa: S101
        return self._session.request(
            request.method,
            URL(str(URL(base_url)).rstrip("/") + request.path, encoded=True),  # a quoted path goes out as it is
            data=request.body if len(request.body) <= _WHOLE else io.BytesIO(request.body),
            headers={**headers, **request.headers},
            timeout=timeout,
            allow_redirects=False,
        )


class Opened:
    """An answer whose body is still to be read."""

    def __init__(self, answer: aiohttp.ClientResponse, withheld: Withheld) -> None:
        self._answer = answer
        self._withheld = withheld
        self.status = answer.status
        self.headers = _headers(answer, withheld)

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes, unpacked. Raises Broken when it does not come to its end."""
        held = b""  # may be the beginning of the key
        try:
            async for part in self._answer.content.iter_any():
                data = self._withheld.data(held + part)
                size = len(data) - self._withheld.begun(data)
                held = data[size:]
                if size:
                    yield data[:size]
        except _FAILED as error:
            raise Broken(self._withheld.text(_name(error))) from error
        if held:
            yield held


class Broken(AgentdError):  # noqa: N818 - what became of an answer
    """The answer broke off."""


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    left = limit
    while left > 0 and (part := await answer.content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _headers(answer: aiohttp.ClientResponse, withheld: Withheld) -> dict[str, str]:
    """Names in lower case."""
    return {name.lower(): withheld.text(_text(value)) for name, value in answer.headers.items()}


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
        self._unreachable = False

    @property
    def unreachable(self) -> bool:
        """Whether the last request, whatever it was for, found no connection."""
        return self._unreachable

    async def send(
        self,
        request: Request,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        limit: int = ANSWER_BYTES,
    ) -> Response | Lost:
        """One request; its time limit is the destination's own unless `timeout_s` says another."""
        seconds = self._timeout_s if timeout_s is None else timeout_s
        answer = await self._http.post(self._base_url, request, headers, seconds, limit)
        self._unreachable = isinstance(answer, Lost) and not answer.sent
        return answer
