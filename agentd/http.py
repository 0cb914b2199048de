"""The one way out: aiohttp's client, told to do nothing on its own.

No redirects (a 301 would turn a POST into a GET and report success: silent loss), no retries, no cookies, no look at the
environment, a bounded read of each answer, the key taken out of what comes back, and every failure of the network as `Lost` with
the one fact that matters: was anything sent? Until the request has its connection nothing was, whatever a proxy or TLS made of the
way there.

Connections are kept for the next request and live for minutes at most: then a platform that has moved is found at its new address,
and certificates are read anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.tracing import Trace
from yarl import URL

from agentd import __version__
from agentd.errors import AgentdError, ConfigError
from agentd.exchange import ANSWER_BYTES, Lost, Request, Response
from agentd.reach import Reach
from agentd.trust import Trust, describe, refuses_ours, tls_error
from agentd.withheld import Withheld

log = logging.getLogger("agentd.http")

_WHOLE = 2**20  # bytes of a body that goes out in one write; aiohttp warns of a larger one
_KEEPALIVE_S = 10.0  # below the 15 s and more of common servers: an idle connection is ours to close, not theirs
_DNS_S = 60  # an address is asked for again, and at once when nobody is there any more
_RENEW_S = 300.0  # no connection is used for longer
# What every request carries beside its platform's own headers
HEADERS = {"user-agent": f"agentd/{__version__}", "content-type": "application/json", "accept": "application/json"}

_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ServerFingerprintMismatch, aiohttp.ConnectionTimeoutError)
_FAILED = (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError)
_REASON_CHARS = 200

Heard = Callable[[str, Request, Response | Lost], None]


class _Progress:
    """Whether a request has its connection: from then on bytes of it may have left."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False


_progress: ContextVar[_Progress] = ContextVar("progress")


class _Connector(aiohttp.TCPConnector):
    """Tells of each connection that it gives to a request: name, proxy and TLS are behind it then."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own word
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        _progress.get().begun = True
        return connection


class _Pool:
    """A session, and the certificates that its connections were made with."""

    def __init__(self, now: float) -> None:
        self.connector = _Connector(limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=_DNS_S)
        self.session = aiohttp.ClientSession(
            connector=self.connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            auto_decompress=True,
        )
        self.contexts: dict[Trust, ssl.SSLContext] = {}
        self.born = now
        self.users = 0

    async def close(self) -> None:
        await self.session.close()


class Http:
    """The sessions, of which one is in use; one for all destinations, opened on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool: _Pool | None = None
        self._retired: set[_Pool] = set()
        self._heard: Heard = lambda _name, _request, _answer: None

    def listen(self, heard: Heard) -> None:
        """`heard(destination, request, answer)` hears every answer; of those that others read, all but their bodies."""
        self._heard = heard

    async def __aenter__(self) -> Self:
        self._pool = _Pool(self._clock())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in filter(None, (self._pool, *self._retired)):
            await pool.close()

    def renew(self) -> None:
        """Certificates' files are read anew for the next request; what is under way ends as it began."""
        if self._pool is not None:
            self._pool.born = -math.inf

    async def post(
        self,
        reach: Reach,
        request: Request,
        headers: Mapping[str, str],
        timeout_s: float,
        limit: int = ANSWER_BYTES,
    ) -> Response | Lost:
        """Send and read at most `limit` bytes of the answer."""
        pool = self._borrow()
        try:
            opened = await self._send(pool, reach, request, headers, timeout_s, streams=False)
            answer = opened if isinstance(opened, Lost) else await opened.whole(limit)
        finally:
            await self._give_back(pool)
        self._heard(reach.name, request, answer)
        return answer

    @contextlib.asynccontextmanager
    async def open(
        self, reach: Reach, request: Request, headers: Mapping[str, str], timeout_s: float, *, streams: bool = False
    ) -> AsyncIterator[Opened | Lost]:
        """Send, and leave the body to be read within the block. With `streams` the time limit is for each silence in it."""
        pool = self._borrow()
        try:
            opened = await self._send(pool, reach, request, headers, timeout_s, streams=streams)
            answer = opened if isinstance(opened, Lost) else Response(opened.status, opened.headers, b"")
            self._heard(reach.name, request, answer)
            try:
                yield opened
            finally:
                if isinstance(opened, Opened):
                    await opened.close()
        finally:
            await self._give_back(pool)

    async def _send(
        self,
        pool: _Pool,
        reach: Reach,
        request: Request,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        streams: bool,
    ) -> Opened | Lost:
        total, silence = (None, timeout_s) if streams else (timeout_s, None)
        connect_s = reach.connect_within(timeout_s)
        timeout = aiohttp.ClientTimeout(total=total, connect=connect_s, sock_connect=connect_s, sock_read=silence)
        withheld = Withheld(headers)
        progress = _Progress()
        _progress.set(progress)
        try:
            return Opened(await _request(pool, reach, request, headers, timeout), withheld)
        except ConfigError as error:  # a certificate's file that was right at the start
            return Lost(str(error), sent=False)
        except _FAILED as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                pool.connector.clear_dns_cache(error.host, error.port or 0)  # it may have moved
            return _lost(error, reach, withheld, progress)

    def _borrow(self) -> _Pool:
        """The pool in use, which is not closed before it is given back."""
        pool = self._current()
        pool.users += 1
        return pool

    async def _give_back(self, pool: _Pool) -> None:
        pool.users -= 1
        for old in [one for one in self._retired if not one.users]:
            self._retired.discard(old)
            await old.close()

    def _current(self) -> _Pool:
        assert self._pool is not None, "used outside its context"  # noqa: S101
        now = self._clock()
        if now - self._pool.born >= _RENEW_S:
            old, self._pool = self._pool, _Pool(now)
            self._pool.contexts = _renewed(old.contexts)
            self._retired.add(old)
        return self._pool


async def _request(
    pool: _Pool, reach: Reach, request: Request, headers: Mapping[str, str], times: aiohttp.ClientTimeout
) -> aiohttp.ClientResponse:
    proxy = reach.proxy
    return await pool.session.request(
        request.method,
        URL(str(URL(reach.base_url)).rstrip("/") + request.path, encoded=True),  # a quoted path goes out as it is
        data=request.body if len(request.body) <= _WHOLE else io.BytesIO(request.body),
        headers={**headers, **request.headers},
        timeout=times,
        allow_redirects=False,
        ssl=_verified(pool, reach.trust),
        proxy=None if proxy is None else proxy.place,
        proxy_headers=None if proxy is None else _to_proxy(proxy.credentials),
    )


def _verified(pool: _Pool, trust: Trust) -> ssl.SSLContext | bool:
    """True is aiohttp's own context: the system's issuers, TLS 1.2 or newer (as Python makes them since 3.10)."""
    if trust == Trust():
        return True
    if trust not in pool.contexts:
        pool.contexts[trust] = trust.context()
    return pool.contexts[trust]


def _renewed(contexts: Mapping[Trust, ssl.SSLContext]) -> dict[Trust, ssl.SSLContext]:
    """From the files as they are now; where one can't be read any more, as it was."""
    found = {}
    for trust, old in contexts.items():
        try:
            found[trust] = trust.context()
        except ConfigError as error:
            log.warning("%s; what was read before goes on", error, extra={"action": "certificate"})
            found[trust] = old
    return found


def _to_proxy(credentials: str | None) -> dict[str, str]:
    """What the proxy alone hears: with CONNECT, before the platform's TLS begins."""
    said = {"user-agent": HEADERS["user-agent"]}
    return said if credentials is None else said | {"proxy-authorization": credentials}


class Opened:
    """An answer whose body is still to be read."""

    def __init__(self, answer: aiohttp.ClientResponse, withheld: Withheld) -> None:
        self._answer = answer
        self._withheld = withheld
        self.status = answer.status
        self.headers = _headers(answer, withheld)

    async def close(self) -> None:
        """Its connection may be used again, or is closed where something of the answer was not read."""
        self._answer.release()
        await self._answer.wait_for_close()

    async def whole(self, limit: int) -> Response | Lost:
        """The answer with at most `limit` bytes of its body; it is closed then."""
        try:
            body = self._withheld.data(await _read(self._answer, limit))
        except _FAILED as error:
            return Lost(self._withheld.text(_name(error)), sent=True, late=isinstance(error, TimeoutError))
        finally:
            await self.close()
        return Response(self.status, self.headers, body)

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


def _lost(error: BaseException, reach: Reach, withheld: Withheld, progress: _Progress) -> Lost:
    """What became of a request that has no answer."""
    sent = progress.begun and not isinstance(error, _UNSENT) and not refuses_ours(error)
    reason = withheld.text(_name(error) if sent else _unreached(error, reach))
    return Lost(reason, sent=sent, late=sent and isinstance(error, TimeoutError))


def _unreached(error: BaseException, reach: Reach) -> str:
    """Why nobody was there to hear it, by who stood in the way: the network, a proxy, TLS."""
    proxy = "" if reach.proxy is None else reach.proxy.place
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by(proxy, error, reach)
    if isinstance(error, TimeoutError):
        return f"no connection in time{f' through the proxy {proxy}' if proxy else ''}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"no connection to the proxy {proxy}: {_os_reason(error)}"
    tls = tls_error(error)
    if tls is not None:
        where = f"{error.host}:{error.port}" if isinstance(error, aiohttp.ClientConnectorError) else _host(reach)
        return _text(f"no connection to {where}: {describe(tls)}")[:_REASON_CHARS]
    if proxy and not isinstance(error, aiohttp.ClientConnectorError):
        return f"the proxy {proxy} broke off: {_name(error)}"
    return _name(error)


def _refused_by(proxy: str, error: aiohttp.ClientHttpProxyError, reach: Reach) -> str:
    status = f"{error.status} {_text(error.message)}"[:80].strip()
    if error.status == 407:  # noqa: PLR2004 - RFC 9110 §15.5.8
        wants = "wants a user and password" if reach.proxy and reach.proxy.credentials is None else "refuses our user"
        return f"the proxy {proxy} {wants} ({status})"
    if error.status in {502, 503, 504}:
        return f"the proxy {proxy} does not reach {_host(reach)} ({status})"
    return f"the proxy {proxy} refuses to connect to {_host(reach)} ({status})"


def _host(reach: Reach) -> str:
    url = URL(reach.base_url)
    return f"{url.host}:{url.port}"


def _os_reason(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error.os_error, ConnectionResetError):
        return "it hung up in the TLS handshake"
    return error.os_error.strerror or type(error.os_error).__name__


def _name(error: BaseException) -> str:
    """A reason without addresses that change with every try, so that repeats can be counted as one."""
    if isinstance(error, asyncio.TimeoutError):
        return "no connection in time" if isinstance(error, aiohttp.ConnectionTimeoutError) else "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection to {error.host}:{error.port}: {_os_reason(error)}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "connection closed before the answer"
    return _text(f"{type(error).__name__}: {error}")[:_REASON_CHARS]


def _text(value: str) -> str:
    """What a server sends need be no UTF-8, and aiohttp carries it as surrogates, which no log or JSON takes."""
    return value.encode(errors="replace").decode()


class Way:
    """A destination's way out, for its records, its gates and its SDK alike."""

    def __init__(self, http: Http, reach: Reach) -> None:
        self.reach = reach
        self.spend: Callable[[], None] = lambda: None  # whoever keeps a rate hears of requests that ask for no leave
        self._http = http
        self._unreachable = False

    def __repr__(self) -> str:
        return f"<Way to {self.reach.base_url}>"

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
        seconds = self.reach.timeout_s if timeout_s is None else timeout_s
        answer = await self._http.post(self.reach, request, headers, seconds, limit)
        self._unreachable = isinstance(answer, Lost) and not answer.sent
        return answer

    def open(
        self, request: Request, headers: Mapping[str, str], timeout_s: float, *, streams: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Opened | Lost]:
        """See `Http.open`."""
        return self._http.open(self.reach, request, headers, timeout_s, streams=streams)
