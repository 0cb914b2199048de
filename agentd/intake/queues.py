"""The HTTP dialect of looking into the queue: `GET /v1/queue`, and `POST /v1/queue/drop`.

Counts are for everybody, as those of `/v1/status` are. Lanes go by the names of runs, so each uid sees its own; contents are for
admins and for the uid that sent them. Dropping is for who may decide.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from aiohttp import web
from msgspec import Struct

from agentd.errors import UsageError
from agentd.intake import Control, Grant, Peer
from agentd.intake.answers import Problem, json_answer
from agentd.intake.door import grant_of, peer_of_request
from agentd.records import KINDS
from agentd.units import parse_duration

VIEWS = ("stats", "lanes", "records", "receipts")
SORTS = ("oldest", "records", "bytes")
MOST = 1000  # lanes, records or receipts of one answer
REASON_CHARS = 1000
_FILTERS = ("destination", "run", "agent", "kind", "older", "since", "sort", "limit")
_GATE = "gate."  # begins the kinds of gates, which leave receipts


class Asked(Struct, frozen=True):
    """Which part of the queue; what is None leaves nothing out."""

    destination: str | None = None
    run: str | None = None
    agent: str | None = None
    kind: str | None = None
    older_s: float = 0.0
    since_s: float | None = None
    sort: str = "oldest"
    limit: int = 100


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """Too many ask at once, or the daemon stops."""


class Queues(Protocol):
    """What the HTTP dialect asks of the queues. Answers are JSON objects (agentd.control.queue_documents)."""

    def names(self) -> list[str]:
        """The destinations that have a queue."""
        ...

    def stats(self, destination: str | None) -> dict[str, Any]: ...

    async def lanes(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]:
        """Raises Busy, as do the other two that read the disk."""
        ...

    async def records(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]: ...

    async def receipts(self, asked: Asked, viewer: Peer, *, admin: bool, grant: Grant) -> dict[str, Any]: ...

    async def drop(self, destination: str, reason: str, admin: Peer) -> dict[str, Any]: ...


class _Drop(Struct, forbid_unknown_fields=True):
    destination: str
    reason: str


def add_queues(app: web.Application, queues: Queues, control: Control) -> None:
    """The routes of `/v1/queue`."""
    routes = _Routes(queues, control)
    app.router.add_get("/v1/queue", routes.look)
    app.router.add_post("/v1/queue/drop", routes.drop)


class _Routes:
    """The handlers, with what they ask."""

    def __init__(self, queues: Queues, control: Control) -> None:
        self._queues = queues
        self._control = control

    async def look(self, request: web.Request) -> web.Response:
        view = request.query.get("view", "stats")
        if view not in VIEWS:
            raise _bad(f"view: expected {', '.join(VIEWS)}, got {view[:64]!r}")
        asked = self._asked(request)
        peer = peer_of_request(request)
        if view == "stats":
            found = self._queues.stats(asked.destination)
            if not self._control.is_admin(peer):  # it names everybody's agents, and what the platform calls them
                for facts in found["destinations"].values():
                    facts["taken_for"] = None
            return json_answer(found)
        answer = {"lanes": self._queues.lanes, "records": self._queues.records, "receipts": self._queues.receipts}[view]
        try:
            found = await answer(asked, peer, admin=self._control.is_admin(peer), grant=grant_of(request))
        except Busy as busy:
            raise Problem(503, "busy", str(busy), {"Retry-After": "5"}) from None
        return json_answer(found)

    async def drop(self, request: web.Request) -> web.Response:
        peer = peer_of_request(request)
        if not self._control.may_decide(peer):
            who = "the daemon's own uid, root and security.admin_uids, and within a sidecar for nobody"
            raise Problem(403, "forbidden", f"dropping is for {who}")
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Drop)
        except msgspec.MsgspecError as error:
            raise _bad(f'{error}; expected {{"destination": …, "reason": …}}') from None
        reason = " ".join(wanted.reason.split())
        if not 1 <= len(reason) <= REASON_CHARS:
            raise _bad(f"reason: expected 1 to {REASON_CHARS} characters: who reads the journal will want to know")
        self._check_destination(wanted.destination)
        return json_answer(await self._queues.drop(wanted.destination, reason, peer))

    def _asked(self, request: web.Request) -> Asked:
        query = request.query
        for name in query:
            if name not in ("view", *_FILTERS):
                raise _bad(f"{name[:64]!a}: no such parameter; expected view, {', '.join(_FILTERS)}")
        destination, kind = query.get("destination") or None, query.get("kind") or None
        if destination is not None:
            self._check_destination(destination)
        if kind is not None and kind not in KINDS and not kind.startswith(_GATE):
            raise _bad(f"kind: expected {', '.join(KINDS)}, got {kind[:64]!r}")
        sort = query.get("sort", "oldest")
        if sort not in SORTS:
            raise _bad(f"sort: expected {', '.join(SORTS)}, got {sort[:64]!r}")
        since = query.get("since")
        return Asked(
            destination,
            query.get("run") or None,
            query.get("agent"),
            kind,
            _seconds("older", query.get("older", "0")),
            None if since is None else _seconds("since", since),
            sort,
            _limit(query.get("limit", "100")),
        )

    def _check_destination(self, name: str) -> None:
        known = self._queues.names()
        if name not in known:
            raise _bad(f"destination: there is no queue {name[:64]!r}; there are {', '.join(known) or 'none'}")


def _bad(message: str) -> Problem:
    return Problem(400, "bad_request", message)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST))) or not 1 <= int(text) <= MOST:
        raise _bad(f"limit: expected 1 to {MOST}, got {text[:64]!r}")
    return int(text)


def _seconds(name: str, text: str) -> float:
    """A number of seconds, or a duration with a unit."""
    try:
        return parse_duration(float(text) if text.isascii() and text.replace(".", "", 1).isdecimal() else text)
    except UsageError as error:
        raise _bad(f"{name}: {error}") from None
