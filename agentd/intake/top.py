"""The HTTP dialect of watching the daemon work: `GET /v1/top`, one look from memory.

Figures are for everybody, as those of `/v1/status` are. Lanes go by the names of runs, so each uid sees its own, admins all.
"""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from agentd.intake import Control, Grant, Peer
from agentd.intake.answers import Problem, json_answer
from agentd.intake.bounds import at_work
from agentd.intake.door import grant_of, peer_of_request
from agentd.intake.tail import Overheard, add_tail

SORTS = ("oldest", "largest", "slowest")
MOST = 100  # lanes
_ASKED = ("sort", "destination", "limit")


class Top(Protocol):
    """What the HTTP dialect asks of the daemon."""

    def look(
        self, sort: str, destination: str | None, limit: int, viewer: Peer, *, admin: bool, grant: Grant
    ) -> dict[str, Any]: ...


def add_sight(app: web.Application, top: Top, overheard: Overheard, control: Control) -> None:
    """The routes of `GET /v1/top` and `GET /v1/tail`."""
    add_top(app, top, control)
    add_tail(app, overheard, control)


def add_top(app: web.Application, top: Top, control: Control) -> None:
    """The route of `GET /v1/top`."""

    async def look(request: web.Request) -> web.Response:
        query = request.query
        unknown = [name for name in query if name not in _ASKED]
        if unknown:
            raise Problem(400, "bad_request", f"{unknown[0][:64]!r}: expected {', '.join(_ASKED)}")
        sort, limit = query.get("sort", SORTS[0]), query.get("limit", "10")
        if sort not in SORTS:
            raise Problem(400, "bad_request", f"sort: expected {', '.join(SORTS)}, got {sort[:64]!r}")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(MOST)) and int(limit) <= MOST):
            raise Problem(400, "bad_request", f"limit: expected 0 to {MOST}, got {limit[:64]!r}")
        peer = peer_of_request(request)
        admin, grant = control.is_admin(peer), grant_of(request)
        with at_work(request, peer):
            found = top.look(sort, query.get("destination"), int(limit), peer, admin=admin, grant=grant)
        return json_answer(found)

    app.router.add_get("/v1/top", look)
