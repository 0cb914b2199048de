"""The sandbox on a socket: `Sandbox`. Only I/O is here: reading bodies, and ending connections the way a fault says.

    async with Sandbox() as sandbox:     # 127.0.0.1, a free port
        sandbox.url                      # the base URL of every platform in it; sandbox.url_for("agentos") ends in /agentos

It runs on aiohttp's low-level server, without router, middleware and access log, because it is also the sink of load tests.
Endpoints below `/_sandbox` are in `inspection`; a platform's own are in its face.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Any, Self

import msgspec
from aiohttp import web

from agentd.sandbox.books import NO_ANSWER, Repeat, RequestLine, digest
from agentd.sandbox.emulation import Emulation, State
from agentd.sandbox.faces import Answer, Call, Face
from agentd.sandbox.faults import Decision, Faults
from agentd.sandbox.inspection import PREFIX, inspect

_HARD_BODY_LIMIT = 64 * 1024 * 1024  # bytes; a platform's own limit lies below and answers in its own words
_TOO_LARGE = 413
_GRACE_S = 1.0  # for answers under way when the sandbox stops
_BACKLOG = 1024
# Linger on, zero seconds: closing sends RST at once, so that the peer sees a reset and not an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Sandbox:
    """Emulated platforms on one TCP port, with faults, switches and inspection.

    - `faces`: platforms by name, see `faces.face_names()`.
    - `api_keys`: None accepts every key that is not empty; else only those, and 401 for the rest.
    - `switches`: texts such as `"agentos.late_events=409"`, or a face's Struct (`AgentosSwitches(late_events="409")`).
    - `seed`: of the faults' die; the same seed and the same order of requests give the same faults.
    - `keep_requests`: length of the ledger; counters and repeats cover everything.

    `faults` is the live list of faults: `add`, `replace`, `clear`. All state is in memory and survives `down` and `stop`.
    """

    def __init__(
        self,
        faces: Iterable[str] = ("agentos",),
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Iterable[str] | None = None,
        *,
        switches: Iterable[str | msgspec.Struct] = (),
        seed: int = 0,
        keep_requests: int = 1000,
    ) -> None:
        self._emulation = Emulation(faces, api_keys=api_keys, switches=switches, seed=seed, keep_requests=keep_requests)
        self._host = host
        self._port = port
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None  # done when something happens; there while somebody waits for it

    def __repr__(self) -> str:
        """Say where it listens."""
        where = self.url if self._listener is not None else "down" if self._placeholder is not None else "not started"
        return f"<Sandbox {'+'.join(self._emulation.faces)} {where}>"

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind and listen; `port=0` takes a free one and keeps it."""
        self._stopping = asyncio.get_running_loop().create_future()
        # A hanging request ends when its client goes: handler_cancellation.
        self._web = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._placeholder = self._bind()
        self._port = self._placeholder.getsockname()[1]
        await self.up()

    async def stop(self) -> None:
        """Stop listening, give answers under way a moment, and close every connection. Safe to call twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
        if self._web is not None:
            await self._web.shutdown(_GRACE_S)
            self._web = None
        if listener is not None:
            await listener.wait_closed()

    async def down(self) -> None:
        """Close the listening socket for good and reset every connection: new ones are refused until `up`."""
        if self._listener is None or self._web is None:
            return
        self._listener.close()
        self._listener = None
        # Bound but not listening: the port stays ours, and no client can take it as its own source port.
        self._placeholder = self._bind()
        for connection in self._web.connections:
            _reset(connection.transport)

    async def up(self) -> None:
        """Listen again on the same port."""
        if self._placeholder is None or self._web is None:
            return
        placeholder, self._placeholder = self._placeholder, None
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._web, sock=placeholder, backlog=_BACKLOG)

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host, self._port))
        except OSError:
            bound.close()
            raise
        return bound

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    # -- what tests and command lines use ---------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port, known after `start`."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end; paths belong to the face that claims them."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def url_for(self, face: str) -> str:
        """A base URL under which every path belongs to one face. Raises KeyError for a face that is not here."""
        return f"{self.url}/{self._emulation.faces[face].name}"

    @property
    def faults(self) -> Faults:
        """The faults: `add("status=503,rate=0.1")`, `replace`, `clear`."""
        return self._emulation.faults

    def throw(self, switch: str | msgspec.Struct) -> None:
        """Throw a switch: `"agentos.late_events=409"`, or all of a face's as its Struct. Raises UsageError."""
        self._emulation.throw(switch)

    def switches(self) -> dict[str, dict[str, Any]]:
        """How all switches stand, by face."""
        return self._emulation.switches()

    def state(self) -> State:
        """The totals since the last reset."""
        return self._emulation.state()

    def runs(self, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """One row a run, newest first."""
        return self._emulation.runs(limit, offset)

    def run(self, external_or_id: str, limit: int | None = None, offset: int = 0) -> dict[str, Any]:
        """One run with tasks and events in sequence, by the platform's id or the client's. Raises KeyError."""
        return self._emulation.run(external_or_id, limit, offset)

    def requests(self, limit: int | None = None) -> list[RequestLine]:
        """The latest requests, newest first."""
        return self._emulation.requests(limit)

    def repeats(self, at_least: int = 1) -> dict[str, Repeat]:
        """Per idempotency key, over all requests: how often it came, and whether always with the same bytes."""
        return self._emulation.repeats(at_least)

    def act(self, face: str, item_id: str, verb: str, text: str = "") -> Answer:
        """What a person does at a platform: `act("agentos", request_id, "answer", "go on")`. Raises KeyError, UsageError."""
        answer = self._emulation.act(face, item_id, verb, text)
        self._tell()
        return answer

    def reset(self) -> None:
        """Forget all that was received and rewind the faults' die; faults and switches stay."""
        self._emulation.reset()

    # -- requests -----------------------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if path == PREFIX or path.startswith(PREFIX + "/"):
            sent = await _read(request) or b""
            answer = inspect(self._emulation, request.method, path, query, sent)
            self._tell()
            return _response(answer)
        face, relative = self._emulation.route(path)
        decision = self._emulation.faults.decide(face.name, relative)
        call = Call(request.method, relative, request.headers, b"", query, self._emulation.wall())
        if decision.ending == "down":
            self._emulation.unanswered(face, call, decision)
            return _cut(request)
        body = await _read(request)
        if body is None:
            return self._too_large(face, call, decision)
        call = Call(request.method, relative, request.headers, body, query, call.now)
        return await self._judge(request, face, call, decision)

    async def _judge(self, request: web.BaseRequest, face: Face, call: Call, decision: Decision) -> web.StreamResponse:
        """Commit first, then be late or cut off: what is lost is the answer, never the request."""
        if decision.ending == "hang":
            self._emulation.unanswered(face, call, decision)
            await self._wait(None)
            return _cut(request)
        answer = self._emulation.answer(face, call, decision)
        self._tell()
        if answer.held is not None:
            answer = await self._hold(face, call, decision, answer)
        if decision.delay_s:
            await self._wait(decision.delay_s)
        return _cut(request) if decision.ending == "cut" else _response(answer)

    async def _hold(self, face: Face, call: Call, decision: Decision, answer: Answer) -> Answer:
        """A long poll's answer in the end: when it is held no more, or as it stands when the sandbox stops or the line is cut."""
        status = NO_ANSWER  # if the client goes
        try:
            while answer.held is not None and decision.ending != "cut" and not self._is_stopping():
                await self._happening(answer.held.until - self._emulation.wall())
                answer = answer.held.look(self._emulation.wall())
            status = answer.status
        finally:
            self._emulation.note(face, call, status, decision, body_digest=digest(call.body))
        return answer

    def _tell(self) -> None:
        """Something has happened: whoever holds an answer looks again."""
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)

    async def _happening(self, seconds: float) -> None:
        """Wait until something happens, but no longer; stopping the sandbox ends it."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        awaited = [self._news] if self._stopping is None else [self._news, self._stopping]
        await asyncio.wait(awaited, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)

    def _is_stopping(self) -> bool:
        return self._stopping is not None and self._stopping.done()

    def _too_large(self, face: Face, call: Call, decision: Decision) -> web.StreamResponse:
        """Answer before the body has come to its end; the connection can't be used any more."""
        answer = face.refuse(_TOO_LARGE, f"the body exceeds {_HARD_BODY_LIMIT} bytes")
        self._emulation.note(face, call, answer.status, decision)
        response = _response(answer)
        response.force_close()
        return response

    async def _wait(self, seconds: float | None) -> None:
        """Wait so long, or for ever; stopping the sandbox ends it."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping], timeout=seconds)


async def _read(request: web.BaseRequest) -> bytes | None:
    """The whole body; None if it exceeds what the sandbox reads at all."""
    chunks: list[bytes] = []
    size = 0
    while not request.content.at_eof():
        chunk = await request.content.readany()
        size += len(chunk)
        if size > _HARD_BODY_LIMIT:
            return None
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _reset(transport: asyncio.Transport | None) -> None:
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def _cut(request: web.BaseRequest) -> web.Response:
    """Reset the connection; aiohttp finds it gone when it comes to write what is returned here."""
    _reset(request.transport)
    return web.Response()
