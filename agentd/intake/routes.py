"""The HTTP dialect: records, health, metrics, status and flush for curl, SDKs and supervisors.

`build_app` makes the application from a sink and the daemon's `Control`; `HttpProtocol` is one connection in it, handed
over by `server` at its first byte. Every error is `{"error": {"code": …, "message": …}}`; who asks is read from the socket.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import msgspec
from aiohttp import web

from agentd.config import Config
from agentd.errors import RecordError, SpoolFull, UsageError, WireError
from agentd.intake import Control, Peer, Sink
from agentd.intake.connection import Fault, Shared
from agentd.intake.listen import peer_of
from agentd.units import parse_duration
from agentd.wire import Ack, Dialect, Hello, Message, decode_message, encode

_log = logging.getLogger("agentd.intake.http")
_KEEPALIVE_S = 600.0  # an idle HTTP connection; SDKs end theirs after 15 s and open another
_LINGERING_S = 10.0  # an answered request's body is read and thrown away, so that its sender comes to read the answer
_MAX_FLUSH_S = 3600.0
_MAX_DEAD_LETTERS = 1000  # of one answer
_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large", 417: "expectation_failed"}
_FULL = str(SpoolFull())
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=encode(body), status=status, headers=headers, content_type="application/json")


def _error(status: int, code: str, message: str, **more: object) -> web.Response:
    return _json({"error": {"code": code, "message": message}, **more}, status)


class _Problem(Exception):  # noqa: N818 - it is answered, not reported
    """An answer that is an error, in words of its own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class HttpProtocol(web.RequestHandler):
    """One HTTP connection: aiohttp's, and in it the terms of every connection here (half a head, a reader that stalls)."""

    def __init__(self, manager: web.Server, shared: Shared, peer: Peer) -> None:
        options: dict[str, Any] = {"access_log": None, "logger": _log, "keepalive_timeout": _KEEPALIVE_S}
        options["lingering_time"] = min(_LINGERING_S, shared.watch.timeout_s)
        super().__init__(manager, loop=shared.loop, **options)
        self.ended = False  # the peer will ask no more
        self._shared = shared
        self._peer = peer
        self._pipe: asyncio.Transport | None = None  # aiohttp's `transport` is None as soon as it begins to close
        self._fed = False  # something came that no handler has begun with
        self._requests = 0  # under way
        self._left = 0  # bytes of the answer that the peer had not taken when last looked at

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a request, its body included, is the handler's."""
        self._shared.watch.stop(self)
        self._fed = False
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if data and not self._requests and not self._fed:
            self._fed = True
            self._shared.watch.start(self)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp always closes, here an answer may be due
        self.ended = True
        return self._fed or self._requests > 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._pipe = None
        self._shared.watch.stop(self)
        super().connection_lost(exc)
        self._shared.leave(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._shared.watch.start(self)
        self._left = self._pipe.get_write_buffer_size() if self._pipe is not None else 0

    def resume_writing(self) -> None:
        super().resume_writing()
        self._shared.watch.stop(self)

    def stop(self) -> None:
        """Take no further request; close once the one under way is answered."""
        self.close()
        if not self._requests and self._pipe is not None:
            self._pipe.close()

    def abort(self) -> None:
        if self._pipe is not None:
            self._pipe.abort()

    def expired(self) -> None:
        if self._pipe is None:
            return
        if self.writing_paused:
            before, self._left = self._left, self._pipe.get_write_buffer_size()
            if self._left < before:
                self._shared.watch.start(self)
                return
            self._shared.sink.refuse(Fault.SLOW_READER, "an HTTP answer lies unread", self._peer)
            self._pipe.abort()
        else:
            text = "the rest of the request did not come within intake.frame_timeout"
            self._shared.sink.refuse(Fault.HALF_MESSAGE, text, self._peer)
            body = encode({"error": {"code": "timeout", "message": text}})
            head = f"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            self._pipe.write(head.encode() + b"\r\nConnection: close\r\nServer: agentd\r\n\r\n" + body)
            self._pipe.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not read as HTTP, in our form."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        text = " ".join((message or "the request could not be read").split())[:300]
        if status < 500:  # noqa: PLR2004
            self._shared.sink.refuse(Fault.MALFORMED, f"HTTP: {text}", self._peer)
            response = _error(status, "bad_request", text)
        else:
            _log.error("a request failed", exc_info=exc)
            response = _error(status, "internal", "internal error; the daemon's log has it")
        response.headers["Server"] = "agentd"
        response.force_close()
        return response


def build_app(sink: Sink, control: Control, config: Config) -> web.Application:
    """The application with every endpoint of the intake; the composition root may add routes before it is started."""
    app = web.Application(middlewares=[_in_our_form], client_max_size=config.intake.max_frame_bytes)
    app.on_response_prepare.append(_sign)
    routes = _Routes(sink, control, config)
    app.router.add_post("/v1/records", routes.records)
    app.router.add_post("/v1/flush", routes.flush)
    app.router.add_get("/v1/status", routes.status)
    app.router.add_get("/v1/runs/{run_id}", routes.run)
    app.router.add_get("/v1/dead-letters", routes.dead_letters)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    app.router.add_get("/metrics", routes.metrics)
    return app


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "agentd"  # instead of the names and versions of what it is made with


@web.middleware
async def _in_our_form(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every error as JSON; a failure of ours is logged and not shown."""
    protocol = request.protocol
    with protocol.busy() if isinstance(protocol, HttpProtocol) else nullcontext():
        try:
            response = await handler(request)
        except _Problem as problem:
            response = _error(problem.status, problem.code, str(problem))
        except web.HTTPException as error:
            if error.status < 400:  # noqa: PLR2004 - a redirect is an answer
                raise
            response = _of_exception(request, error)
        except ConnectionError:
            raise  # the client is gone
        except Exception:  # noqa: BLE001 - the last resort: aiohttp's own answer would be no JSON
            _log.exception("%s %s failed", request.method, request.path)
            response = _error(500, "internal", "internal error; the daemon's log has it")
    if isinstance(protocol, HttpProtocol) and protocol.ended:
        response.force_close()
    return response


def _of_exception(request: web.Request, error: web.HTTPException) -> web.Response:
    messages = {
        404: f"there is nothing at {request.path}",
        405: f"{request.path} does not take {request.method}",
        413: f"the body has more than {request.client_max_size} bytes (intake.max_frame_bytes)",
    }
    response = _error(error.status, _CODES.get(error.status, "bad_request"), messages.get(error.status, error.reason))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def peer_of_request(request: web.Request) -> Peer:
    """Who asks, as the kernel says. Raises ConnectionResetError when nobody waits for the answer any more."""
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    return peer_of(request.transport.get_extra_info("socket"))


def parse_body(body: bytes, content_type: str) -> Message:
    """The records of a request's body, in order: one record, an array, an envelope, or a JSON document a line.

    Raises WireError where nothing of it can be read. In lines a bad one is an error in its place.
    """
    lines = [line for line in (line.strip() for line in body.split(b"\n")) if line]
    if content_type in _NDJSON or (len(lines) > 1 and _is_json(lines[0])):
        return _of_lines(lines)
    if not lines:
        raise WireError("the body is empty: expected a record, an array of records, or one record a line")
    return _records_of(body)


def _records_of(data: bytes) -> Message:
    message = decode_message(data)
    if isinstance(message, Hello):
        raise WireError("a hello begins a connection in frames or lines; HTTP has none")
    return message


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _of_lines(lines: list[bytes]) -> Message:
    items: list[Any] = []
    errors: list[WireError] = []
    for line in lines:
        try:
            items += _records_of(line).items
        except WireError as error:
            errors.append(error)
            items.append(RecordError(str(error)))
    if errors and len(errors) == len(lines):
        raise errors[0]
    return Message(None, items)


def _answer(seq: int | None, ack: Ack) -> web.Response:
    """202 if anything was taken (or nothing was asked), 503 if only a full queue is in the way, 422 otherwise."""
    rejected = [{"index": refusal.index, "error": refusal.error} for refusal in ack.rejected]
    body = ({} if seq is None else {"seq": seq}) | {"accepted": ack.accepted, "rejected": rejected}
    if ack.accepted or not rejected:
        return _json(body, 202)
    first = ack.rejected[0]
    message = f"none of {len(rejected)} records was taken; record {first.index}: {first.error}"
    if any(refusal.error != _FULL for refusal in ack.rejected):
        return _error(422, "refused", message, **body)
    response = _error(503, "spool_full", message, **body)
    response.headers["Retry-After"] = "1"
    return response


async def _read(request: web.Request) -> bytes:
    """The whole body; one that says it is too large is not waited for."""
    if (request.content_length or 0) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
    return await request.read()


class _Routes:
    """The handlers, with what they ask."""

    def __init__(self, sink: Sink, control: Control, config: Config) -> None:
        self._sink = sink
        self._control = control
        self._body_timeout_s = config.intake.frame_timeout

    async def records(self, request: web.Request) -> web.Response:
        peer = peer_of_request(request)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                message = parse_body(await _read(request), request.content_type)
        except web.HTTPRequestEntityTooLarge:
            self._sink.refuse(Fault.OVERSIZED, "HTTP: a body above intake.max_frame_bytes", peer)
            raise
        except TimeoutError:
            text = "the rest of the body did not come within intake.frame_timeout"
            self._sink.refuse(Fault.HALF_MESSAGE, text, peer)
            raise _Problem(408, "timeout", text) from None
        except WireError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            raise _Problem(400, "malformed", str(error)) from None
        except web.RequestPayloadError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            raise _Problem(400, "malformed", "the body is not encoded as its headers say") from None
        future = self._sink.submit(message, peer, stream=None, origin=Dialect.HTTP, hold=False)
        return _answer(message.seq, await asyncio.shield(future))  # a daemon that stops must not withdraw the message

    async def healthz(self, _request: web.Request) -> web.Response:
        return _health("unhealthy", self._control.unhealthy())

    async def readyz(self, _request: web.Request) -> web.Response:
        return _health("unready", self._control.unready())

    async def metrics(self, _request: web.Request) -> web.Response:
        body, content_type = self._control.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(self, _request: web.Request) -> web.Response:
        return _json(self._control.status())

    async def flush(self, request: web.Request) -> web.Response:
        if not self._control.is_admin(peer_of_request(request)):
            raise _Problem(403, "forbidden", "flush is for the daemon's own uid, root and security.admin_uids")
        until = request.query.get("until", "delivered")
        if until not in {"stored", "delivered"}:
            raise _Problem(400, "bad_request", f"until: expected stored or delivered, got {until[:64]!r}")
        return _json(await self._control.flush(until, _seconds(request.query.get("timeout", "5"))))

    async def run(self, request: web.Request) -> web.Response:
        run_id = request.match_info["run_id"]
        found = await self._control.run(run_id)
        if found is None:
            raise _Problem(404, "not_found", f"nothing is known of a run {run_id[:256]!r}")
        return _json(found)

    async def dead_letters(self, request: web.Request) -> web.Response:
        peer = peer_of_request(request)
        limit = request.query.get("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _MAX_DEAD_LETTERS:
            raise _Problem(400, "bad_request", f"limit: expected 1 to {_MAX_DEAD_LETTERS}, got {limit[:64]!r}")
        found = await self._control.dead_letters(
            limit=int(limit),
            destination=request.query.get("destination") or None,
            run=request.query.get("run") or None,
            cause=request.query.get("cause") or None,
            viewer=peer,
            admin=self._control.is_admin(peer),
        )
        return _json(found)


def _health(word: str, reason: str | None) -> web.Response:
    return _json({"status": "ok"}) if reason is None else _json({"status": word, "reason": reason}, 503)


def _seconds(text: str) -> float:
    """A number of seconds, or a duration with a unit."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parse_duration(text)
        except UsageError as error:
            raise _Problem(400, "bad_request", f"timeout: {error}") from None
    if not (math.isfinite(seconds) and 0 <= seconds <= _MAX_FLUSH_S):
        raise _Problem(400, "bad_request", f"timeout: expected 0 to {_MAX_FLUSH_S:.0f} seconds, got {text[:64]!r}")
    return seconds
