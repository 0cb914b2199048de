"""Standing in for AegisOS Comply (https://www.aegis-comply.com/api-reference.html): intents are asked, and read back.

Aegis has no telemetry, so that nothing is answered from here. Its approvals and agents have no documented path: to respond to an
approval is 403 like any write that no door names, to read one is 404.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentd.errors import RecordError
from agentd.platforms._sdk import members_of, reply, snake, text_in
from agentd.standin import STATUSES, Asked, Called, Does, Door, Handed, Reply, Why

_PATH = "/v1/intents"
_LIMIT_S = 9.0  # its SDK waits 10 s, and calls what takes longer safe to retry
# A second POST is a second spend. Retry layers take 5xx for a passing fault; after a defect of ours nobody knows either
# whether the first went out.
_STATUSES = STATUSES | {Why.INTERNAL: STATUSES[Why.OUTCOME_UNKNOWN]}


class AegisStandIn:
    """What of Aegis's API passes, and as what."""

    doors = (
        Door("POST", _PATH, Does.GATE, gate="intent", limit_s=_LIMIT_S),
        Door("GET", _PATH, Does.READ),
        Door("GET", f"{_PATH}/{{intentId}}", Does.READ),
    )
    names: Mapping[str, str] = {"intentId": "intent", "agentId": "agent"}
    headers: frozenset[str] = frozenset()

    def asks(self, called: Called) -> str | None:
        return called.door.gate or None

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        del make_id
        raise RecordError(f"Aegis takes no records at {called.door.path}")

    def asked(self, called: Called) -> Asked:
        members = members_of(called)
        request = {snake(name): value for name, value in members.items() if name != "agentId"}
        return Asked(text_in(members, "agentId"), None, request)

    def refusal(self, why: Why, message: str) -> Reply:
        """Its envelope is documented nowhere; its SDK's AegisError has a message and a code, which stand here in both places."""
        told = {"code": why.value, "message": message}
        return reply(_STATUSES[why], {"error": told, **told})


STAND_IN = AegisStandIn()
