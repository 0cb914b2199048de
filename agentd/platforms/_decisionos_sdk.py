"""Standing in for Decision OS towards decision-os-sdk 0.2.1 (and whoever speaks its public API).

Logging is answered at once: the SDK wants `data.id`, and a decision gets one of agentd's making, which later snapshots may
name. Content hash, chain index and receipt come into being on the ledger and are not made up here. A decision with
`runPolicyEval: true` waits for the platform's evaluation: it is a gate.

Of the control plane no write is documented: there is no door for one, and so each is 403.

`requestId` is what the SDK repeats a call under, and it keeps decisions and snapshots apart: no source says that a snapshot may
not have its decision's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Raw

from agentd.errors import RecordError
from agentd.platforms._sdk import camel, checked, fields_of, is_object, members_of, reply, said, text_in, time_in
from agentd.records import TYPES
from agentd.standin import STATUSES, Asked, Called, Does, Door, Handed, Reply, Why

_API = "/api/public/v1"
_LOG = Door("POST", f"{_API}/decisions", Does.RECORD, gate="decision", kind="decision")
_CAPTURE = Door("POST", f"{_API}/snapshots", Does.RECORD, kind="snapshot")
_READS = (
    "decisions", "decisions/{decisionId}", "agents", "agents/{agentId}", "workspace/usage", "ledger/verify",
    "receipt/{decisionId}",
)  # fmt: skip
_EVALUATE = "runPolicyEval"


def _names(kind: str, *ours: str) -> dict[str, str]:
    """Member → field: all but those that only agentd knows."""
    fields = [field for field in TYPES[kind].__struct_fields__ if field not in {"id", "to", "extra", *ours}]
    return {camel(field): field for field in fields}


_DECISION = {name: field for name, field in _names("decision", "decision_id").items() if field != "chosen"}
_DECISION["chosenOptionKey"] = "chosen"
_SNAPSHOT = _names("snapshot")


class DecisionOSStandIn:
    """What of Decision OS's API passes, and as what."""

    doors = (_LOG, _CAPTURE, *(Door("GET", f"{_API}/{path}", Does.READ) for path in _READS))
    names: Mapping[str, str] = {"decisionId": "decision", "agentId": "agent"}
    headers: frozenset[str] = frozenset()

    def asks(self, called: Called) -> str | None:
        evaluate = called.members.get(_EVALUATE)
        is_gate = called.door == _LOG and evaluate is not None and bytes(evaluate).strip() == b"true"
        return "decision" if is_gate else None

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        members = members_of(called)
        word = text_in(members, "requestId")
        if called.door == _LOG:
            key = word and f"decision:{word}"
            made = make_id(key)
            return Handed([_decision(members, made)], reply(200, {"data": {"id": made, "status": "logged"}}), key)
        key = word and f"snapshot:{word}"
        return Handed([_snapshot(members)], reply(200, {"data": {"id": make_id(key)}}), key)

    def asked(self, called: Called) -> Asked:
        """`runId` stays a label of the question's: it names no run that Decision OS would know."""
        fields = fields_of(members_of(called), _DECISION, dropped={_EVALUATE})
        if "extra" in fields:
            fields["extra"] = Raw(said(fields["extra"]))
        fields.pop("agent_id", None)
        return Asked(text_in(called.members, "agentId"), None, fields)

    def refusal(self, why: Why, message: str) -> Reply:
        """`{error: "text"}`. The SDK chooses its exception by the status, and shows the text but for 401.

        It repeats 5xx and nothing else, under the same `requestId`: 424 it raises at once as its DecisionOSError.
        """
        return reply(STATUSES[why], {"error": message, "code": why.value})


def _decision(members: Mapping[str, Raw], made: str) -> dict[str, Any]:
    if not text_in(members, "context").strip():
        raise RecordError("$.context: required, and not blank")
    if _EVALUATE in members and bytes(members[_EVALUATE]).strip() != b"false":
        raise RecordError(f"$.{_EVALUATE}: expected a boolean")
    fields = fields_of(members, _DECISION, dropped={_EVALUATE})
    return checked("decision", fields | {"decision_id": made}, _DECISION)


def _snapshot(members: Mapping[str, Raw]) -> dict[str, Any]:
    if "snapshot" in members and not is_object(members["snapshot"]):
        raise RecordError("$.snapshot: expected an object")
    fields = fields_of(members, _SNAPSHOT)
    if "captured_at" in fields:
        fields["captured_at"] = time_in(members, "capturedAt")
    return checked("snapshot", fields, _SNAPSHOT)


STAND_IN = DecisionOSStandIn()
