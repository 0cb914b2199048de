"""The HTTP dialect of asking where a thing is: `GET /v1/records/{id}`, by whatever name it goes.

Admins see all, everybody else what is his own: another's records do not exist to him.
"""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from agentd.intake import Control, Grant, Peer
from agentd.intake.answers import Problem, json_answer
from agentd.intake.door import grant_of, peer_of_request
from agentd.intake.queues import Busy

MAX_ID = 300  # characters: no id, key or name is longer


class Records(Protocol):
    """What the HTTP dialect asks. Answers are JSON objects (agentd.control.record_documents)."""

    async def where(self, asked: str, viewer: Peer, *, admin: bool, grant: Grant) -> tuple[dict[str, Any] | None, str]:
        """What is known of it, None if nothing is that the viewer may see; and the sentence for that. Raises Busy."""
        ...


def add_records(app: web.Application, records: Records, control: Control) -> None:
    """The route of `GET /v1/records/{id}`."""

    async def where(request: web.Request) -> web.Response:
        asked = request.match_info["id"]
        if len(asked) > MAX_ID:
            raise Problem(400, "bad_request", f"id: {len(asked)} characters, and no id has more than {MAX_ID}")
        peer = peer_of_request(request)
        try:
            found, nothing = await records.where(asked, peer, admin=control.is_admin(peer), grant=grant_of(request))
        except Busy as busy:
            raise Problem(503, "busy", str(busy), {"Retry-After": "5"}) from None
        if found is None:
            raise Problem(404, "not_found", nothing)
        return json_answer(found)

    app.router.add_get("/v1/records/{id}", where)
