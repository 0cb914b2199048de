"""The emulated AgentOS's control plane, as far as runs and approvals go: `/api/v1/approvals` and POST `/api/v1/rpc/<method>`.

Sources: PyPI `pyagentos-sdk` 0.4.0 (_control.py: methods, arguments, a list's default limit of 20),
https://agentos-ai.dev/docs/authentication: an agent's key reports and invokes, no more; a person's key names a workspace.
Known from nowhere, and chosen here: the shape of all that is read; a list is an array, the newest first. The methods that are not
in `METHODS` are not emulated: 404. Used by the face in `agentos` alone.
"""

from __future__ import annotations

import itertools
from typing import Any

from msgspec import UNSET

from agentd.sandbox._agentos_bodies import Refused, RpcBody, RpcListBody, RpcRunBody, read_body
from agentd.sandbox._agentos_people import People, Waiting
from agentd.sandbox._agentos_store import Run
from agentd.units import rfc3339

METHODS = ("approvals_decide", "approvals_list", "runs_get", "runs_get_events", "runs_list")
_AGENTS_KEY = "aos_agent_"
_PERSONS_KEY = "aos_user_"


def need_workspace(key: str, body: bytes | None = None) -> None:
    """A workspace's key, or a person's with a workspace beside the arguments. Raises Refused: 403 for an agent's key."""
    if key.startswith(_AGENTS_KEY):
        raise Refused(403, "an agent's key reports and invokes; this needs a workspace's")
    if body is not None and read_body(body, RpcBody).workspace is UNSET and key.startswith(_PERSONS_KEY):
        raise Refused(400, "Expected a workspace, as the key is a person's - at `$.workspace`")


class Control:
    """Reads of runs and approvals; nothing here changes anything."""

    def __init__(self, runs: dict[str, Run], people: People) -> None:
        self._runs = runs
        self._people = people

    def read(self, method: str, body: bytes) -> Any:
        """One RPC's data. Raises Refused."""
        if method == "runs_list":
            return self._list(read_body(body, RpcListBody))
        if method == "approvals_list":
            asked = read_body(body, RpcListBody)
            return self.approvals(None if asked.agent_id is UNSET else asked.agent_id, asked.limit)
        sent = read_body(body, RpcRunBody)
        run = self._runs.get(sent.run_id)
        if run is None:
            raise Refused(404, f"no run {sent.run_id}")
        if method == "runs_get":
            return run.detail()
        return run.shown_events(None if sent.limit is UNSET else sent.limit, 0)

    def _list(self, asked: RpcListBody) -> list[dict[str, Any]]:
        found = (
            run.row()
            for run in reversed(self._runs.values())
            if asked.agent_id in (UNSET, run.agent_id) and asked.status in (UNSET, run.status)
        )
        return list(itertools.islice(found, asked.limit))

    def approvals(self, agent_id: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """What waits for an approval, the newest first."""
        pending = self._people.all_pending("approval")
        return [approval(each) for each in pending if agent_id in (None, each.more["agent_id"])][:limit]


def approval(waiting: Waiting) -> dict[str, Any]:
    """An approval as the control plane shows it."""
    return {
        "id": waiting.id,
        "run_id": waiting.run_id,
        "agent_id": waiting.more["agent_id"],
        "tool": waiting.what,
        "input": waiting.more["tool_input"],
        "status": waiting.state,
        "created_at": rfc3339(waiting.asked_at),
        "expires_at": rfc3339(waiting.until),
    }
