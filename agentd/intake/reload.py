"""`POST /-/reload`: read the configuration again. For who may decide."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from agentd.errors import AgentdError, ConfigError
from agentd.intake import Control
from agentd.intake.answers import Problem, json_answer
from agentd.intake.door import peer_of_request

Reload = Callable[[], Awaitable[dict[str, Any]]]


def add_reload(app: web.Application, reload: Reload, control: Control) -> None:
    """The route. `reload` says what changed, and raises ConfigError where nothing did."""

    async def handle(request: web.Request) -> web.Response:
        if not control.may_decide(peer_of_request(request)):
            who = "the daemon's own uid, root and security.admin_uids, and within a sidecar for nobody"
            raise Problem(403, "forbidden", f"reloading is for {who}")
        try:
            return json_answer({"reloaded": True, **await reload()})
        except ConfigError as error:
            raise Problem(422, "bad_configuration", str(error)) from None
        except AgentdError as error:
            raise Problem(503, "draining", str(error)) from None

    app.router.add_post("/-/reload", handle)
