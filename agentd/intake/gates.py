"""The HTTP dialect of gates: ask, look, list, resolve. `add_gates` puts the routes into the application.

What a gate is shown for is decided by who asks: its own uid and admins see it, to everybody else it does not exist.
"""

from __future__ import annotations

import asyncio
import math

from aiohttp import web

from agentd.errors import UsageError
from agentd.intake import Control, GateRefusal, Gates, Sink
from agentd.intake.answers import Problem, json_answer
from agentd.intake.connection import Fault
from agentd.intake.door import grant_of, peer_of_request
from agentd.sections import Config
from agentd.units import parse_duration

_MAX_WAIT_S = 3600.0
_MAX_GATES = 1000  # of one answer
_STATES = ("open", "final", "all")


def add_gates(app: web.Application, gates: Gates, sink: Sink, control: Control, config: Config) -> None:
    """The routes of `/v1/gate` and `/v1/gates`."""
    routes = _Routes(gates, sink, control, config.intake.frame_timeout)
    app.router.add_post("/v1/gate", routes.ask)
    app.router.add_get("/v1/gates", routes.listing)
    app.router.add_get("/v1/gates/{gate_id}", routes.look)
    app.router.add_post("/v1/gates/{gate_id}/resolve", routes.resolve)


class _Routes:
    """The handlers, with what they ask."""

    def __init__(self, gates: Gates, sink: Sink, control: Control, body_timeout_s: float) -> None:
        self._gates = gates
        self._sink = sink
        self._control = control
        self._body_timeout_s = body_timeout_s

    async def ask(self, request: web.Request) -> web.Response:
        peer = peer_of_request(request)
        body = await self._body(request)
        try:
            return json_answer(await self._gates.ask(body, peer, grant_of(request)))
        except GateRefusal as refusal:
            self._sink.refuse(f"gate_{refusal.code.removeprefix('gate_')}", str(refusal), peer)
            raise _problem(refusal) from None

    async def look(self, request: web.Request) -> web.Response:
        peer, gate_id = peer_of_request(request), request.match_info["gate_id"]
        _check_query(request, "wait")
        wait_s = _seconds(request.query.get("wait", "0"))
        found = await self._gates.look(
            gate_id, wait_s, peer, admin=self._control.is_admin(peer), grant=grant_of(request)
        )
        if found is None:
            raise _unknown(gate_id)
        return json_answer(found)

    async def listing(self, request: web.Request) -> web.Response:
        peer = peer_of_request(request)
        _check_query(request, "state", "limit")
        state, limit = request.query.get("state", "all"), request.query.get("limit", "100")
        if state not in _STATES:
            raise Problem(400, "bad_request", f"state: expected {', '.join(_STATES)}, got {state[:64]!r}")
        if not (limit.isascii() and limit.isdecimal()) or not 1 <= int(limit[:9]) <= _MAX_GATES:
            raise Problem(400, "bad_request", f"limit: expected 1 to {_MAX_GATES}, got {limit[:64]!r}")
        found = await self._gates.listing(
            state, int(limit), peer, admin=self._control.is_admin(peer), grant=grant_of(request)
        )
        return json_answer(found)

    async def resolve(self, request: web.Request) -> web.Response:
        peer, gate_id = peer_of_request(request), request.match_info["gate_id"]
        if not self._control.may_decide(peer):
            raise Problem(
                403,
                "forbidden",
                "resolving is for the daemon's own uid, root and security.admin_uids, and within a sidecar for nobody",
            )
        try:
            found = await self._gates.resolve(gate_id, await self._body(request), peer)
        except GateRefusal as refusal:
            raise _problem(refusal) from None
        if found is None:
            raise _unknown(gate_id)
        return json_answer(found)

    async def _body(self, request: web.Request) -> bytes:
        peer = peer_of_request(request)
        if (request.content_length or 0) > request.client_max_size:
            self._sink.refuse(Fault.OVERSIZED, "HTTP: a body above intake.max_frame_bytes", peer)
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.read()
        except TimeoutError:
            text = "the rest of the body did not come within intake.frame_timeout"
            self._sink.refuse(Fault.HALF_MESSAGE, text, peer)
            raise Problem(408, "timeout", text) from None
        except web.RequestPayloadError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            raise Problem(400, "malformed", "the body is not encoded as its headers say") from None


def _problem(refusal: GateRefusal) -> Problem:
    return Problem(refusal.status, refusal.code, str(refusal))


def _unknown(gate_id: str) -> Problem:
    return Problem(404, "not_found", f"no gate {gate_id[:64]!r} of yours is on record")


def _check_query(request: web.Request, *known: str) -> None:
    """A misspelt parameter would be ignored, and the answer be to another question."""
    for name in request.query:
        if name not in known:
            raise Problem(400, "bad_request", f"{name[:64]!a}: no such parameter; expected {', '.join(known)}")


def _seconds(text: str) -> float:
    """A number of seconds, or a duration with a unit."""
    try:
        seconds = float(text) if text.isascii() else math.nan
    except ValueError:
        try:
            seconds = parse_duration(text)
        except UsageError as error:
            raise Problem(400, "bad_request", f"wait: {error}") from None
    if not (math.isfinite(seconds) and 0 <= seconds <= _MAX_WAIT_S):
        raise Problem(400, "bad_request", f"wait: expected 0 to {_MAX_WAIT_S:.0f} seconds, got {text[:64]!r}")
    return seconds
