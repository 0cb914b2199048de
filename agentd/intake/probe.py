"""`listen.probe`: health and counts for kubelet and Prometheus, on a port of its own.

`/healthz`, `/readyz` and `/metrics`, by GET or HEAD, and nothing else: no records, no tokens, no names of agents or runs. Whoever
reaches the port may ask, so whatever a stranger could take is small: a few connections, one short request each, one scrape a second
for all. It runs on a thread of its own: while the event loop hangs somebody still says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

from agentd.config_probe_checks import probe_address
from agentd.errors import AgentdError
from agentd.intake.listen import open_tcp, url_of

_log = logging.getLogger("agentd.intake.probe")

MAX_CONNECTIONS = 32  # who comes then takes the place of the one that has said nothing for longest
MAX_HEAD_BYTES = 8192
TIMEOUT_S = 5.0  # for a request's head, for its answer, and for the event loop to say what it has counted
FRESH_S = 1.0  # who scrapes within this time gets the same text
_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]")
_JSON = "application/json"
_PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}  # fmt: skip


class Asks(Protocol):
    """Whom it asks. The first two on its own thread, the last on the event loop."""

    def unhealthy(self) -> str | None: ...
    def unready(self) -> str | None: ...
    def metrics(self) -> tuple[bytes, str]:
        """Raises AgentdError while there are none."""
        ...


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = _JSON

    def encode(self, *, head_only: bool) -> bytes:
        """As it goes out; every answer is the last of its connection."""
        allow = "Allow: GET, HEAD\r\n" if self.status == 405 else ""  # noqa: PLR2004
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\nServer: agentd\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\n{allow}Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if head_only else self.body)


def read_head(data: bytes) -> tuple[str, str] | Answer | None:
    """Method and path of a request; None while its head is not whole; the answer where it can't be one."""
    end = data.find(b"\r\n\r\n")
    if end < 0 and len(data) <= MAX_HEAD_BYTES:
        return None
    if not 0 <= end <= MAX_HEAD_BYTES:
        return _error(431, "too_large", f"a request's head has at most {MAX_HEAD_BYTES} bytes here")
    line = _LINE.fullmatch(data[:end].partition(b"\r\n")[0])
    if line is None:
        return _error(400, "bad_request", "this is no HTTP/1.1 request")
    method, path = line[1].decode(), line[2].decode().partition("?")[0]
    if path not in {"/healthz", "/readyz", "/metrics"}:
        return _error(404, "not_found", "here are /healthz, /readyz and /metrics")
    if method not in {"GET", "HEAD"}:
        return _error(405, "method_not_allowed", "GET or HEAD")
    return method, path


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, json.dumps({"error": {"code": code, "message": message}}).encode())


def of_health(word: str, reason: str | None) -> Answer:
    """What /healthz and /readyz say."""
    if reason is None:
        return Answer(200, b'{"status": "ok"}')
    return Answer(503, json.dumps({"status": word, "reason": reason}).encode())


class ProbeListener:
    """The port and its thread, from entering the block to its end; without an address there is neither."""

    def __init__(self, address: str | None, asks: Asks, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url: str | None = None  # with the port that port 0 became
        self.timeout_s = timeout_s
        self.guests: dict[_Guest, None] = {}  # the oldest first
        self._address = address
        self._asks = asks
        self._main: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._listens = threading.Event()
        self._thread: threading.Thread | None = None
        self._scrape: asyncio.Task[Answer] | None = None
        self._scraped_at = 0.0

    def __repr__(self) -> str:
        return f"<ProbeListener {self.url or 'off'}>"

    async def __aenter__(self) -> Self:
        """Listen. Raises AlreadyRunning, StateError, ConfigError."""
        if self._address is None:
            return self
        sock = open_tcp(*probe_address(self._address), f"[listen] probe: {self._address}")
        self.url = url_of(sock)
        self._main = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(sock,), name="agentd probe", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._listens.wait)
        _log.info("probes are answered at %s", self.url, extra={"action": "probe"})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(self._thread.join, self.timeout_s)

    # -- on its own thread -------------------------------------------------------------------------------------------

    def _run(self, sock: socket.socket) -> None:
        asyncio.run(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        server = await self._loop.create_server(lambda: _Guest(self), sock=sock)
        self._listens.set()
        async with server:
            await self._stop.wait()
        for guest in list(self.guests):
            guest.abort()
        if self._scrape is not None:
            self._scrape.cancel()
            await asyncio.gather(self._scrape, return_exceptions=True)

    def welcome(self, guest: _Guest) -> None:
        """Let it in; where all places are taken, instead of the oldest one."""
        if len(self.guests) >= MAX_CONNECTIONS:
            oldest = next(iter(self.guests))
            self.leave(oldest)
            oldest.abort()
        self.guests[guest] = None

    def leave(self, guest: _Guest) -> None:
        self.guests.pop(guest, None)

    async def answer(self, path: str) -> Answer:
        """What there is at one of the three paths."""
        if path == "/healthz":
            return of_health("unhealthy", self._asks.unhealthy())
        if path == "/readyz":
            return of_health("unready", self._asks.unready())
        now = time.monotonic()
        if self._scrape is None or (self._scrape.done() and now - self._scraped_at >= FRESH_S):
            self._scraped_at = now
            self._scrape = asyncio.get_running_loop().create_task(self._metrics())
        return await asyncio.shield(self._scrape)

    async def _metrics(self) -> Answer:
        assert self._main is not None  # noqa: S101 - it listens
        try:
            asked = asyncio.run_coroutine_threadsafe(_called(self._asks.metrics), self._main)
            async with asyncio.timeout(self.timeout_s):
                body, content_type = await asyncio.wrap_future(asked)
        except TimeoutError:
            return _error(503, "unavailable", "the event loop does not answer")
        except AgentdError as error:
            return _error(503, "unavailable", str(error))
        except RuntimeError:  # it is closed
            return _error(503, "unavailable", "agentd is stopping")
        return Answer(200, body, content_type)


async def _called(metrics: Callable[[], tuple[bytes, str]]) -> tuple[bytes, str]:
    return metrics()


class _Guest(asyncio.Protocol):
    """One connection: a request's head in, an answer out, the end."""

    def __init__(self, house: ProbeListener) -> None:
        self._house = house
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a stream
        self._transport = transport
        self._house.welcome(self)
        # twice: for its head, and for the answer, which may have to wait for the event loop
        self._timer = asyncio.get_running_loop().call_later(2 * self._house.timeout_s, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._task is not None:  # a body, or a second request: the answer is the last one
            return
        self._data += data
        head = read_head(self._data)
        if isinstance(head, Answer):
            self._say(head.encode(head_only=False))
        elif head is not None:
            self._task = asyncio.get_running_loop().create_task(self._reply(*head))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._house.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _reply(self, method: str, path: str) -> None:
        answer = await self._house.answer(path)
        self._say(answer.encode(head_only=method == "HEAD"))

    def _say(self, answer: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - it was made
        self._transport.write(answer)
        self._transport.close()
