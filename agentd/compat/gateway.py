"""`/{destination}/…`: who calls, through which door, and what becomes of it. Every answer is in the platform's envelope.

The composition root makes one `Gateway` and puts it into the intake's application before that is started.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec
from aiohttp import web
from msgspec import Raw

from agentd.compat.names import Asker, Refused
from agentd.compat.passing import pass_on, response_of
from agentd.compat.paths import BadTarget, read_target
from agentd.compat.relay import Relay
from agentd.compat.stands import Stand
from agentd.compat.telemetry import Telemetry
from agentd.errors import Forbidden, RecordError
from agentd.http import Http
from agentd.intake import Peer, Sink
from agentd.intake.answers import Unauthorized
from agentd.intake.connection import Fault
from agentd.intake.door import grant_of, peer_of_request
from agentd.standin import Called, Does, Door, Reply, Why

log = logging.getLogger("agentd.compat")

_ROUTE = "/{destination:(?!(?:v1|healthz|readyz|metrics)/)[a-z][a-z0-9_]*}/{tail:.*}"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110 §9.2.1
_RETRY_AFTER = {Why.SPOOL_FULL: {"retry-after": "1"}}
_ESCAPES = (
    re.compile(  # escapes in their order, so that an escaped backslash hides nothing: a pair, half of one, any other
        rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
    )
)
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode


class Gateway:
    """The platforms towards their SDKs."""

    def __init__(
        self,
        stands: Mapping[str, Stand],
        sink: Sink,
        telemetry: Telemetry,
        relay: Relay,
        http: Http,
        *,
        is_admin: Callable[[Peer], bool],
        body_timeout_s: float,
        now_us: Callable[[], int],
    ) -> None:
        self._stands = stands
        self._sink = sink
        self._telemetry = telemetry
        self._relay = relay
        self._http = http
        self._is_admin = is_admin
        self._body_timeout_s = body_timeout_s
        self._now_us = now_us

    def follow(self, stands: Mapping[str, Stand]) -> None:
        """By these from now on; calls under way end by those that they began with."""
        self._stands = stands

    def add_to(self, app: web.Application) -> None:
        app.router.add_route("*", _ROUTE, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call of an SDK."""
        stand = self._stands.get(request.match_info["destination"])
        if stand is None:
            raise web.HTTPNotFound
        try:
            return await self._answer(request, stand)
        except Refused as refused:
            return _refuse(stand, refused.why, str(refused))
        except Forbidden as error:
            return _refuse(stand, Why.FORBIDDEN, str(error))
        except (BadTarget, RecordError) as error:
            return _refuse(stand, Why.MALFORMED, str(error))
        except Unauthorized as error:
            response = _refuse(stand, Why.UNAUTHENTICATED, str(error))
            response.headers.update(error.headers)
            return response
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:  # the last resort: the SDK wants its platform's envelope
            log.exception(
                "%s: %s %s failed", stand.name, request.method, request.path,
                extra={"action": "defect", "destination": stand.name},
            )  # fmt: skip
            return _refuse(stand, Why.INTERNAL, "internal error; the daemon's log has it")

    async def _answer(self, request: web.Request, stand: Stand) -> web.StreamResponse:
        peer, grant = peer_of_request(request), grant_of(request)
        grant.check_destination(stand.name)
        asker = Asker(peer, grant, trusted=peer.local and self._is_admin(peer))
        segments, query = read_target(request.raw_path)
        found = stand.doors.find(request.method, segments)
        if found is None:
            raise _no_door(stand, request.method, segments)
        door, named = found
        if door.does is Does.ADMIN and not (stand.is_open and asker.trusted):
            raise Refused(Why.FORBIDDEN, _closed(stand, door))
        body = _mended(await self._read(request, peer))
        headers = {name.lower(): value for name, value in request.headers.items()}
        called = Called(door, named, query, headers, body, {} if door.array else _members(body), self._now_us())
        return await self._do(request, stand, called, asker)

    async def _do(self, request: web.Request, stand: Stand, called: Called, asker: Asker) -> web.StreamResponse:
        does = called.door.does
        if does in (Does.RECORD, Does.GATE) and (gate := stand.stand_in.asks(called)):
            return await self._relay.ask(request, stand, called, asker, gate)
        if does is Does.RECORD:
            return response_of(await self._telemetry.take(stand, called, asker))
        if does is Does.ADMIN:
            log.info(
                "uid %d uses %s's control plane: %s %s", asker.peer.uid, stand.name, called.door.method, request.path,
                extra={"action": "control_plane", "destination": stand.name},
            )  # fmt: skip
        translated = await stand.names.translate(called, asker, stand.reference_wait_s)
        return await pass_on(request, self._http, stand, translated, unsafe=does is Does.ADMIN)

    async def _read(self, request: web.Request, peer: Peer) -> bytes:
        """The whole body, at most `intake.max_frame_bytes`. Raises Refused."""
        limit = request.client_max_size
        if (request.content_length or 0) > limit:  # one that says so is not waited for
            raise self._oversized(limit, peer)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise self._oversized(limit, peer) from None
        except TimeoutError:
            text = "the rest of the body did not come within intake.frame_timeout"
            self._sink.refuse(Fault.HALF_MESSAGE, text, peer)
            raise Refused(Why.MALFORMED, text) from None
        except web.RequestPayloadError as error:
            self._sink.refuse(Fault.MALFORMED, f"HTTP: {error}", peer)
            raise Refused(Why.MALFORMED, "the body is not encoded as its headers say") from None

    def _oversized(self, limit: int, peer: Peer) -> Refused:
        self._sink.refuse(Fault.OVERSIZED, "HTTP: a body above intake.max_frame_bytes", peer)
        return Refused(Why.TOO_LARGE, f"the body has more than {limit} bytes (intake.max_frame_bytes)")


def _no_door(stand: Stand, method: str, segments: Sequence[str]) -> Refused:
    """What no door names is not there to read; to write it is taken for control plane, which is told from nothing else."""
    told = f"agentd passes no {method} /{'/'.join(segments)[:200]} on to {stand.name}"
    if method in _SAFE:
        return Refused(Why.NOT_FOUND, told)
    return Refused(Why.FORBIDDEN, f"{told}: a write that it does not know may be control plane")


def _closed(stand: Stand, door: Door) -> str:
    if stand.is_open:
        return f"{door.method} {door.path} is for the daemon's own uid, root and security.admin_uids on the Unix socket"
    return f'{door.method} {door.path} is control plane: closed by [destinations.{stand.name}] passthrough = "agent"'


def _mended(body: bytes) -> bytes:
    """With U+FFFD for halves of surrogate pairs, which `json.dumps` writes and no parser but Python's takes."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPES.sub(lambda found: b"\\ufffd" if found[1] else found[0], body)


def _members(body: bytes) -> Mapping[str, Raw]:
    """The members of a body that is a JSON object; none where there is no body. Raises RecordError."""
    if not body.strip():
        return {}
    try:
        body.decode()  # msgspec does not look into what stays raw
        return _decode_members(body)
    except UnicodeDecodeError as error:
        raise RecordError(f"$: invalid UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError:
        raise RecordError("$: expected a JSON object") from None
    except RecursionError:
        raise RecordError("$: nested too deeply") from None
    except msgspec.DecodeError as error:
        raise RecordError(f"$: no JSON: {error}") from None


def _refuse(stand: Stand, why: Why, message: str) -> web.Response:
    reply = stand.stand_in.refusal(why, message)
    return response_of(Reply(reply.status, reply.body, _RETRY_AFTER.get(why, {}) | dict(reply.headers)))
