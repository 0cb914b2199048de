"""The HTTP dialect: records, health, metrics, status and flush for curl, SDKs and supervisors.

`build_app` makes the application from a sink, the daemon's `Control` and the rules of access; `door` decides who comes in,
and tells a handler who asks (`peer_of_request`, `grant_of`). Every error is `{"error": {"code": …, "message": …}}`: a handler
raises `answers.Problem`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any

import msgspec
from aiohttp import web

from agentd.errors import RecordError, SpoolFull, UsageError, WireError
from agentd.intake import Control, Sink
from agentd.intake.access import Access
from agentd.intake.answers import Problem, error_answer, json_answer
from agentd.intake.bounds import at_work, charge, within_bounds
from agentd.intake.connection import Fault
from agentd.intake.door import ACCESS, DESTINATIONS, SINK, at_the_door, grant_of, peer_of_request
from agentd.intake.protocol import HttpProtocol
from agentd.sections import Config
from agentd.units import parse_duration
from agentd.wire import Ack, Dialect, Hello, Message, decode_message

_log = logging.getLogger("agentd.intake.http")
_MAX_FLUSH_S = 3600.0
_NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large", 417: "expectation_failed"}
_FULL = str(SpoolFull())
Application = web.Application
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(sink: Sink, control: Control, config: Config, access: Access | None = None) -> web.Application:
    """The application with every endpoint of the intake; the composition root may add routes before it is started.

    Without `access` nobody is let in over TCP, and everybody on the Unix socket may do all.
    """
    app = web.Application(
        middlewares=[_in_our_form, at_the_door, within_bounds], client_max_size=config.intake.max_frame_bytes
    )
    app[SINK] = sink
    app[ACCESS] = access or Access()
    app[DESTINATIONS] = set(config.destinations)
    app.on_response_prepare.append(_sign)
    routes = _Routes(sink, control, config)
    app.router.add_post("/v1/records", routes.records)
    app.router.add_post("/v1/flush", routes.flush)
    app.router.add_get("/v1/status", routes.status)
    app.router.add_get("/v1/runs/{run_id}", routes.run)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    app.router.add_get("/metrics", routes.metrics)
    return app


def follow(app: web.Application, destinations: Iterable[str]) -> None:
    """These are the destinations from now on; an application that runs takes no other object."""
    names = app[DESTINATIONS]
    names.clear()
    names.update(destinations)


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "agentd"  # instead of the names and versions of what it is made with


@web.middleware
async def _in_our_form(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every error as JSON; a failure of ours is logged and not shown."""
    protocol = request.protocol
    with protocol.busy() if isinstance(protocol, HttpProtocol) else nullcontext():
        try:
            response = await handler(request)
        except Problem as problem:
            response = problem.answer()
        except web.HTTPException as error:
            if error.status < 400:  # noqa: PLR2004 - a redirect is an answer
                raise
            response = _of_exception(request, error)
        except ConnectionError:
            raise  # the client is gone
        except Exception:  # noqa: BLE001 - the last resort: aiohttp's own answer would be no JSON
            _log.exception("%s %s failed", request.method, request.path, extra={"action": "defect"})
            response = error_answer(500, "internal", "internal error; the daemon's log has it")
    if isinstance(protocol, HttpProtocol) and protocol.ended:
        response.force_close()
    return response


def _of_exception(request: web.Request, error: web.HTTPException) -> web.Response:
    messages = {
        404: f"there is nothing at {request.path}",
        405: f"{request.path} does not take {request.method}",
        413: f"the body has more than {request.client_max_size} bytes (intake.max_frame_bytes)",
    }
    response = error_answer(
        error.status, _CODES.get(error.status, "bad_request"), messages.get(error.status, error.reason)
    )
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


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
            items.append(RecordError(str(error), raw=error.raw))
    if errors and len(errors) == len(lines):
        raise errors[0]
    return Message(None, items)


def _answer(seq: int | None, ack: Ack) -> web.Response:
    """202 if anything was taken, in part too (or nothing was asked), 503 if only full queues are in the way, 422 otherwise."""
    rejected = ack.rejected
    body = ({} if seq is None else {"seq": seq}) | {"accepted": ack.accepted, "rejected": rejected}
    if ack.accepted or not rejected or any(refusal.to for refusal in rejected):
        return json_answer(body, 202)
    first = ack.rejected[0]
    message = f"none of {len(rejected)} records was taken; record {first.index}: {first.error}"
    if any(refusal.error != _FULL for refusal in ack.rejected):
        return error_answer(422, "refused", message, more=body)
    response = error_answer(503, "spool_full", message, more=body)
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
            raise Problem(408, "timeout", text) from None
        except WireError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            self._sink.keep(error.raw, str(error), peer, Dialect.HTTP)
            raise Problem(400, "malformed", str(error)) from None
        except web.RequestPayloadError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            raise Problem(400, "malformed", "the body is not encoded as its headers say") from None
        charge(request, peer, len(message.items))
        with at_work(request, peer):
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
        return json_answer(self._control.status())

    async def flush(self, request: web.Request) -> web.Response:
        if not self._control.is_admin(peer_of_request(request)):
            raise Problem(403, "forbidden", "flush is for the daemon's own uid, root and security.admin_uids")
        until = request.query.get("until", "delivered")
        if until not in {"stored", "delivered"}:
            raise Problem(400, "bad_request", f"until: expected stored or delivered, got {until[:64]!r}")
        return json_answer(await self._control.flush(until, _seconds(request.query.get("timeout", "5"))))

    async def run(self, request: web.Request) -> web.Response:
        run_id = request.match_info["run_id"]
        peer = peer_of_request(request)
        admin = self._control.is_admin(peer)
        found = await self._control.run(run_id, viewer=peer, admin=admin, grant=grant_of(request))
        if found is None:
            raise Problem(404, "not_found", f"nothing is known of a run {run_id[:256]!r}")
        return json_answer(found)


def _health(word: str, reason: str | None) -> web.Response:
    return json_answer({"status": "ok"}) if reason is None else json_answer({"status": word, "reason": reason}, 503)


def _seconds(text: str) -> float:
    """A number of seconds, or a duration with a unit."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parse_duration(text)
        except UsageError as error:
            raise Problem(400, "bad_request", f"timeout: {error}") from None
    if not (math.isfinite(seconds) and 0 <= seconds <= _MAX_FLUSH_S):
        raise Problem(400, "bad_request", f"timeout: expected 0 to {_MAX_FLUSH_S:.0f} seconds, got {text[:64]!r}")
    return seconds
