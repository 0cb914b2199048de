"""What one user may ask over HTTP at a time: his turn on the event loop, room for the bodies of his requests, and his rate.

A connection in frames or lines is simply not read while its user is over a limit; who speaks HTTP is told so, 429 with `Retry-After`,
and before his body is read. A body of unknown length (chunked, compressed) counts as the largest that may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil

from aiohttp import hdrs, web

from agentd.intake import Peer
from agentd.intake.answers import Problem
from agentd.intake.connection import Fault, Shared, who_of
from agentd.intake.door import known_peer
from agentd.intake.protocol import HttpProtocol
from agentd.intake.rota import REQUEST_S

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def within_bounds(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Let a request wait for its user's turn, and take its body where there is room for it. Raises Problem (429)."""
    protocol = request.protocol
    if not isinstance(protocol, HttpProtocol):
        return await handler(request)
    peer = known_peer(request)
    if peer is None:  # its handler says so, in the platform's own envelope; its body is not kept
        return await handler(request)
    shared, who = protocol.shared, who_of(peer)
    await _turn(shared, who)
    if not request.body_exists:
        return await handler(request)
    wait_s = shared.rates.wait_s(who, shared.rota.clock())
    if wait_s > 0:
        _refuse(
            shared, peer, "too fast", "intake.max_records_per_second_per_uid or max_bytes_per_second_per_uid", wait_s
        )
    size = _size(request)
    share = protocol.share(who)
    if not shared.budget.has_room(share, size):
        _refuse(shared, peer, "too much at a time", "intake.max_pending_bytes_per_uid", 1.0)
    shared.rates.charge(who, 0, request.content_length or 0, shared.rota.clock())
    shared.budget.add(share, size, waits=True)
    try:
        return await handler(request)
    finally:
        shared.budget.remove(share, size, waits=True)


def charge(request: web.Request, peer: Peer, records: int) -> None:
    """So many records were in a request."""
    if isinstance(request.protocol, HttpProtocol):
        shared = request.protocol.shared
        shared.rates.charge(who_of(peer), records, 0, shared.rota.clock())


@contextmanager
def at_work(request: web.Request, peer: Peer) -> Iterator[None]:
    """What is done meanwhile, without awaiting anything, is the user's share of the event loop."""
    protocol = request.protocol
    rota = protocol.shared.rota if isinstance(protocol, HttpProtocol) else None
    start = 0.0 if rota is None else rota.clock()
    try:
        yield
    finally:
        if rota is not None:
            rota.spend(who_of(peer), rota.clock() - start)


async def _turn(shared: Shared, who: int) -> None:
    """Return when it is the user's turn, which counts as a piece of work."""
    if shared.rota.has_turn(who):
        shared.rota.spend(who, REQUEST_S)
        return
    future: asyncio.Future[None] = shared.loop.create_future()
    shared.rota.wait(who, partial(_go, shared, who, future))
    await future


def _go(shared: Shared, who: int, future: asyncio.Future[None]) -> None:
    if not future.done():
        shared.rota.spend(who, REQUEST_S)
        future.set_result(None)


def _size(request: web.Request) -> int:
    plain = hdrs.CONTENT_ENCODING not in request.headers
    return request.content_length if plain and request.content_length is not None else request.client_max_size


def _refuse(shared: Shared, peer: Peer, what: str, key: str, wait_s: float) -> None:
    text = f"{what} from one user ({key}): come again in {ceil(wait_s)} s"
    shared.sink.refuse(Fault.TOO_MUCH, f"HTTP: {text}", peer)
    raise Problem(429, "too_many_requests", text, {hdrs.RETRY_AFTER: str(ceil(wait_s))})
