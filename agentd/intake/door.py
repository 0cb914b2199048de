"""The door of the HTTP dialect: which requests come in at all, and whose they are.

On the Unix socket the kernel says who asks, and the socket's mode who may. Over TCP any program and any web page of this
machine can send requests: so Host and Origin are looked at first (DNS rebinding, cross-site requests), then the local token.
`at_the_door` sees to both. What lies below `/{destination}/` is let through to its handler, which judges the path, asks
`peer_of_request` and answers `Unauthorized` in the platform's own envelope; who asks for nobody does nothing in any name.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import unquote

from aiohttp import web

from agentd.intake import Grant, Peer, Sink
from agentd.intake.access import Access
from agentd.intake.answers import Problem, Unauthorized
from agentd.intake.connection import Fault
from agentd.intake.listen import NOBODY, peer_of
from agentd.intake.owner import uid_of
from agentd.intake.protocol import HttpProtocol

ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
DESTINATIONS: web.AppKey[set[str]] = web.AppKey("destinations", set[str])  # a reload changes what is in it
SINK: web.AppKey[Sink] = web.AppKey("sink", Sink)
_OPEN = frozenset({"/healthz", "/metrics"})
_OWN_SITE = frozenset({"none", "same-origin"})  # Sec-Fetch-Site of an address typed in, and of a page of ours
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def at_the_door(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Let a request in, or raise Problem: 403 for other people's pages, 400 for a path that leads elsewhere, 401."""
    address = _tcp_address(request)
    if address is not None and (foreign := _foreign(request, *address)):
        _count(request, Fault.FOREIGN_PAGE)
        raise Problem(403, "forbidden", foreign)
    if _is_destinations(request):
        return await handler(request)
    wrong = fault_in_target(request.raw_path)
    if wrong is not None:
        raise Problem(400, "bad_request", wrong)
    if address is not None and request.raw_path.partition("?")[0] not in _OPEN:
        peer_of_request(request)
    return await handler(request)


def peer_of_request(request: web.Request) -> Peer:
    """Who asks: on the Unix socket as the kernel says, over TCP the holder of a local token.

    Raises Unauthorized over TCP without a token of ours, and ConnectionResetError when nobody waits for the answer any more.
    """
    peer = known_peer(request)
    if peer is None:
        _count(request, Fault.UNAUTHORIZED)
        raise Unauthorized
    return peer


def known_peer(request: web.Request) -> Peer | None:
    """Who asks; None over TCP without a token of ours. Raises ConnectionResetError."""
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    sock = request.transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return peer_of(sock)
    token = request.config_dict[ACCESS].token_of(_shown(request))
    if token is None:
        return None
    protocol = request.protocol
    return protocol.holder(token) if isinstance(protocol, HttpProtocol) else Peer(uid_of(sock), -1, 0, token)


def grant_of(request: web.Request) -> Grant:
    """What who asks may do: its agents and destinations. Raises as `peer_of_request` does."""
    return request.config_dict[ACCESS].grant(peer_of_request(request))


def fault_in_target(target: str) -> str | None:
    """What is wrong with a request's target as it was sent: it names another host, or climbs; None if nothing is.

    `%2F` is no fault: an id may hold it, and it never separates segments here. `..;` climbs on servers that cut parameters.
    """
    path = target.partition("?")[0]
    if not path.startswith("/") or path.startswith("//"):
        return "the request's target is not a path: expected one such as /v1/records"
    for segment in path.split("/"):
        plain = unquote(segment)
        if plain.partition(";")[0] in {".", ".."} or "\\" in plain or "#" in segment or not _is_visible(plain):
            return "the path has '.', '..', a backslash, '#' or a control character in it"
    return None


def _is_visible(text: str) -> bool:
    return all(ord(character) >= 0x20 and character != "\x7f" for character in text)  # noqa: PLR2004 - ASCII's controls


def _tcp_address(request: web.Request) -> tuple[str, int] | None:
    """Our end of the connection where it came over TCP; None on the Unix socket."""
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    if request.transport.get_extra_info("socket").family == socket.AF_UNIX:
        return None
    host, port = request.transport.get_extra_info("sockname")[:2]
    return host, port


def _foreign(request: web.Request, host: str, port: int) -> str:
    """What shows that somebody else's page or name is behind the request; empty if nothing does."""
    names = {"127.0.0.1", "localhost", "[::1]", host}
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or hosts[0].lower() not in names | {f"{name}:{port}" for name in names}:
        return f"Host: expected 127.0.0.1:{port} or localhost:{port}"
    origins = {f"http://{name}:{port}" for name in names}
    if any(origin.lower() not in origins for origin in request.headers.getall("Origin", [])):
        return "Origin: web pages may not use agentd"
    if any(site.lower() not in _OWN_SITE for site in request.headers.getall("Sec-Fetch-Site", [])):
        return "Sec-Fetch-Site: other sites' pages may not use agentd"
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return "agentd answers no preflight: web pages may not use it"
    return ""


def _count(request: web.Request, fault: Fault) -> None:
    """Count and log it; without the query, in which a secret may stand."""
    path = request.raw_path.partition("?")[0][:100]
    request.config_dict[SINK].refuse(fault, f"HTTP: {request.method} {path}", NOBODY)


def _is_destinations(request: web.Request) -> bool:
    """Whether a handler of a destination's answers this; the raw path decides, so that no spelling gets round it."""
    before, _, rest = request.raw_path.partition("/")
    known = not before and rest.partition("/")[0] in request.config_dict[DESTINATIONS]
    return known and request.match_info.http_exception is None


def _shown(request: web.Request) -> Iterator[str]:
    yield from (value.strip() for value in request.headers.getall("X-API-Key", []))
    for value in request.headers.getall("Authorization", []):
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip()
