"""The HTTP dialect of watching records come: `GET /v1/tail`, JSON lines without end.

Admins see all, everybody else the records of their own uid, of agents and destinations that they were given; what they may see is asked
anew for each slice, so that a reload which takes something away ends it. A line is a record (`{"admitted_at", "destinations", "kind", …,
"record"}`), a gap (`{"not_shown": 120, "exact": true}`: so many came while the reader was slow) or empty (nothing came for a while).

It never has more than a little in the connection: what the reader has not taken waits in its `Listener`, which is bounded, so that a
reader that stalls costs that much memory, is never waited for, and goes on where it is when it reads again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Protocol

from aiohttp import web

from agentd.intake import Control, Grant, Peer
from agentd.intake.answers import Problem, Unauthorized
from agentd.intake.bounds import at_work
from agentd.intake.door import ACCESS, known_peer, peer_of_request
from agentd.intake.queues import Busy as Reading
from agentd.intake.tailing import LEVELS, Busy, Listener, Sees, Tails, Wish, pieces
from agentd.records import KINDS

MOST_LAST = 1000
_SLICE_BYTES = 2**18
_TURN_S = 0.002  # on the event loop, shared by all readers
_SLICE_S = 0.05  # between two turns: readers take about 4 % of the event loop's time, however many and whatever comes
_PIECE_BYTES = 2**14  # asyncio tells a connection to pause above 64 KiB, which is taken for a reader that is gone
_BEAT_S = 1.0  # without news an empty line, by which either side knows that the other is there
_FILTERS = ("kind", "agent", "run", "destination", "level", "last")


class Overheard(Protocol):
    """What the HTTP dialect asks of the daemon."""

    tails: Tails

    def sees(self, viewer: Peer, grant: Grant) -> Sees:
        """Whether a record of this source, for this destination, is the viewer's own."""
        ...

    async def last(self, wish: Wish, count: int, sees: Sees | None) -> tuple[Sequence[bytes], frozenset[bytes]]:
        """The newest records that are queued, as lines, the oldest of them first, and their ids. Raises queues.Busy."""
        ...


def add_tail(app: web.Application, overheard: Overheard, control: Control) -> None:
    """The route of `GET /v1/tail`."""
    app.router.add_get("/v1/tail", _Route(overheard, control).tail)


class _Route:
    def __init__(self, overheard: Overheard, control: Control) -> None:
        self._overheard = overheard
        self._control = control

    async def tail(self, request: web.Request) -> web.StreamResponse:
        wish, last = _wish_of(request), _last_of(request)
        peer = peer_of_request(request)
        try:
            listener = self._overheard.tails.open(wish, peer.uid)
        except Busy as busy:
            raise Problem(429, "too_many_requests", str(busy), {"Retry-After": "5"}) from None
        try:
            sees = self._sees(request)
            before = await self._overheard.last(wish, last, sees) if last else ((), frozenset[bytes]())
            return await self._answer(request, listener, *before)
        except Reading as busy:
            raise Problem(503, "busy", str(busy), {"Retry-After": "5"}) from None
        finally:
            self._overheard.tails.close(listener)

    def _sees(self, request: web.Request) -> Sees | None:
        """Who asks, by the rules of now. Raises Unauthorized."""
        peer = known_peer(request)
        if peer is None:
            raise Unauthorized
        if self._control.is_admin(peer):
            return None
        return self._overheard.sees(peer, request.config_dict[ACCESS].grant(peer))

    async def _answer(
        self, request: web.Request, listener: Listener, lines: Sequence[bytes], shown: frozenset[bytes]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        await response.prepare(request)
        reader, loop = _Reader(request, response, listener), asyncio.get_running_loop()
        await reader.send(lines)
        while not listener.closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    await listener.news.wait()
            peer = known_peer(request)
            until = loop.time() + _TURN_S / max(1, len(self._overheard.tails))
            with nullcontext() if peer is None else at_work(request, peer):
                try:
                    found = listener.take(_SLICE_BYTES, self._sees(request), shown, partial(_is_past, loop, until))
                except Unauthorized:
                    break
            await reader.send(found if found or listener.is_behind else [b"\n"])
            await asyncio.sleep(_SLICE_S)
        if await reader.drained():
            await response.write_eof()
        return response


def _is_past(loop: asyncio.AbstractEventLoop, time_s: float) -> bool:
    return loop.time() > time_s


class _Reader:
    """The connection, never filled further than it empties."""

    def __init__(self, request: web.Request, response: web.StreamResponse, listener: Listener) -> None:
        self._request = request
        self._response = response
        self._listener = listener

    async def send(self, lines: Sequence[bytes]) -> None:
        """All of it, unless the end comes first. Raises ConnectionError when the reader is gone."""
        for piece in pieces(lines, _PIECE_BYTES):
            if not await self.drained():
                return
            await self._response.write(piece)

    async def drained(self) -> bool:
        """Wait until nothing is on its way; False where that does not happen before the end: the connection is given up then."""
        while self._pipe().get_write_buffer_size():
            if self._listener.closed:
                self._pipe().abort()
                return False
            await asyncio.sleep(_SLICE_S)
        return True

    def _pipe(self) -> asyncio.Transport:
        pipe = self._request.transport
        if pipe is None or pipe.is_closing():
            raise ConnectionResetError("the reader is gone")
        return pipe


def _wish_of(request: web.Request) -> Wish:
    query = request.query
    unknown = [name for name in query if name not in _FILTERS]
    if unknown:
        raise Problem(400, "bad_request", f"{unknown[0][:64]!r}: expected {', '.join(_FILTERS)}")
    kinds = tuple(query.getall("kind", []))
    for kind in kinds:
        if kind not in KINDS:
            raise Problem(400, "bad_request", f"kind: expected {', '.join(KINDS)}, got {kind[:64]!r}")
    level = query.get("level")
    if level is not None and level not in LEVELS:
        raise Problem(400, "bad_request", f"level: expected {', '.join(LEVELS)}, got {level[:64]!r}")
    return Wish(kinds, query.get("agent"), query.get("run"), query.get("destination"), level)


def _last_of(request: web.Request) -> int:
    text = request.query.get("last", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST_LAST)) and int(text) <= MOST_LAST):
        raise Problem(400, "bad_request", f"last: expected 0 to {MOST_LAST}, got {text[:64]!r}")
    return int(text)
