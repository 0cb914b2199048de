"""What is only passed on: reads, and the control plane for admins. The answer goes back as it comes, nothing of it is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from agentd.compat.headers import returning
from agentd.compat.names import Refused, body_of
from agentd.compat.paths import path_of
from agentd.compat.stands import Stand
from agentd.exchange import Lost, Request
from agentd.http import Broken, Http, Opened
from agentd.standin import Called, Reply, Why

MAX_ANSWER_BYTES = 64 * 2**20  # passed on piece by piece; above it the answer is cut off
_AT_ONCE = 64 * 1024  # an answer up to this goes out in one piece, with its length
_WITHOUT_BODY = frozenset({204, 304})


def request_of(called: Called) -> Request:
    """The call as it goes out, under the platform's names. Raises BadTarget."""
    path = path_of(called.door, called.segments, called.query)
    return Request(path, body_of(called), method=called.door.method)


async def pass_on(
    incoming: web.Request, http: Http, stand: Stand, called: Called, *, unsafe: bool
) -> web.StreamResponse:
    """Send the call and give its answer back. Raises Refused. `unsafe`: it must not be repeated after a lost answer."""
    request = request_of(called)
    headers = stand.headers(called, request.body)
    async with http.open(stand.reach, request, headers, stand.wait_s(called.door)) as answer:
        if isinstance(answer, Lost):
            raise unanswered(answer, unsafe=unsafe)
        check_redirect(answer.status, answer.headers)
        return await give_back(incoming, answer)


def unanswered(answer: Lost, *, unsafe: bool) -> Refused:
    """Why there is no answer to give."""
    if not answer.sent:
        return Refused(Why.UNREACHABLE, f"the platform can't be reached: {answer.reason}; nothing was sent")
    if unsafe:
        text = f"no answer: {answer.reason}; the outcome is unknown, the platform may have acted: do not repeat it"
        return Refused(Why.OUTCOME_UNKNOWN, text)
    return Refused(Why.NO_ANSWER, f"no answer: {answer.reason}")


def check_redirect(status: int, headers: Mapping[str, str]) -> None:
    """Raise Refused for an answer that leads elsewhere: an SDK that followed it would ask another host than ours."""
    if 300 <= status < 400 and status not in _WITHOUT_BODY:  # noqa: PLR2004 - RFC 9110 §15.4
        where = headers.get("location", "?")[:200]
        raise Refused(Why.UNREACHABLE, f"the platform redirects to {where}: is base_url right?")


async def give_back(incoming: web.Request, answer: Opened) -> web.StreamResponse:
    """The answer, whole or piece by piece."""
    headers = returning(answer.headers)
    parts = answer.parts()
    streams = answer.headers.get("content-type", "").startswith("text/event-stream")
    begun = b"" if streams else await _begin(parts)
    if not streams and len(begun) < _AT_ONCE:
        return web.Response(status=answer.status, body=begun or None, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(incoming)
    left = MAX_ANSWER_BYTES
    try:
        if begun:
            await response.write(begun)
        async for part in parts:
            left -= len(part)
            if left < 0 and not streams:
                raise Broken(f"the answer has more than {MAX_ANSWER_BYTES} bytes")  # noqa: TRY301 - as any other breach
            await response.write(part)
    except Broken as error:
        raise ConnectionResetError(
            str(error)
        ) from error  # ends the connection: a body that just ended would look whole
    await response.write_eof()
    return response


async def _begin(parts: AsyncIterator[bytes]) -> bytes:
    """The first 64 KiB or all there is. Raises Refused where it breaks off before."""
    begun = bytearray()
    try:
        async for part in parts:
            begun += part
            if len(begun) >= _AT_ONCE:
                break
    except Broken as error:
        raise Refused(Why.NO_ANSWER, f"the answer broke off: {error}") from None
    return bytes(begun)


def cut_off(incoming: web.Request) -> None:
    """End the connection in the middle, as the platform did: a body that just ended would look whole."""
    if incoming.transport is not None:
        incoming.transport.abort()


def response_of(reply: Reply) -> web.Response:
    return web.Response(
        status=reply.status, body=reply.body, headers={"content-type": "application/json", **reply.headers}
    )
