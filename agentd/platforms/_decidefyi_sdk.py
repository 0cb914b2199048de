"""Standing in for decide.fyi (https://www.decide.fyi/openapi.json v1.10.0), which is called by plain HTTP or its JavaScript SDK.

Deciding is a gate. Receipts are answered at once: with what a receipt repeats of its request, an id of agentd's making and
`status: "queued"`; hashes and signatures are the platform's alone and are not made up here. A receipt's id of ours means
nothing to the platform, so that an outcome that cites one is sent without it: the execution goes out before it anyway.

`x-idempotency-key` is the caller's handle for a repeat: that of a question goes on to the platform, that of a receipt is kept
here, where the receipt gets a key of agentd's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Raw

from agentd.platforms._sdk import checked, fields_of, members_of, reply, text_in, time_in
from agentd.records import TYPES
from agentd.standin import STATUSES, Asked, Called, Does, Door, Handed, Reply, Why
from agentd.units import rfc3339

_ONE = "/api/decision/{decision_id}"
_DECIDE = Door("POST", "/api/decide", Does.GATE, gate="decide")
_OURS = "agentd_"  # how the receipts' ids begin that agentd makes
# What follows the decision's id → the record's kind, the receipt's id, its status, and where the JavaScript SDK looks for it
_RECEIPTS = {
    "execution": ("execution", "execution_receipt_id", "execution_status", "execution"),
    "outcome": ("outcome", "outcome_id", "outcome_status", "outcome"),
    "crm-sync": ("crm_sync", "sync_id", "sync_status", "crm_sync"),
}
_GETS = (
    "status", "receipt-keys", "policy-bundles", "policy-patterns", "rulebooks", "chains/{chain_id}",
    "policies/{policy_id}/{question}",
)  # fmt: skip
_READS = (
    *(Door("GET", f"/api/decision/{path}", Does.READ) for path in _GETS),
    *(Door("GET", f"{_ONE}{path}", Does.READ) for path in ("", "/verify", "/packet")),
    *(Door("GET", f"{_ONE}/{what}", Does.READ) for what in _RECEIPTS),
    # What is compared, replayed or verified is stored nowhere.
    *(Door("POST", f"/api/decision/{path}", Does.READ) for path in ("verify", "packet/verify")),
    *(Door("POST", f"{_ONE}/{what}", Does.READ) for what in ("verify", "replay", "diff", "counterfactuals")),
)
_FIELDS = {
    kind: {name: name for name in TYPES[kind].__struct_fields__ if name not in {"id", "to", "extra", "agent_id"}}
    for kind, *_ in _RECEIPTS.values()
}
_ERRORS = {
    Why.MALFORMED: ("DECIDE_API_INVALID_REQUEST", "try again"),
    Why.UNAUTHENTICATED: ("DECIDE_API_UNAUTHORIZED", "unauthorized"),
    Why.FORBIDDEN: ("DECIDE_API_UNAUTHORIZED", "unauthorized"),
    Why.CONFLICT: ("DECIDE_API_IDEMPOTENCY_CONFLICT", "idempotency_conflict"),
}


class DecideStandIn:
    """What of decide.fyi's API passes, and as what."""

    doors = (
        _DECIDE,
        *(Door("POST", f"{_ONE}/{what}", Does.RECORD, kind=kind) for what, (kind, *_) in _RECEIPTS.items()),
        *_READS,
    )
    names: Mapping[str, str] = {"decision_id": "decision"}
    headers = frozenset({"prefer", "x-decision-response-view", "x-idempotency-key", "x-request-id"})

    def asks(self, called: Called) -> str | None:
        return called.door.gate or None

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        what = called.door.path.rpartition("/")[2]
        kind, id_name, status_name, place = _RECEIPTS[what]
        decision_id = called.segments["decision_id"]
        word = called.headers.get("x-idempotency-key", "")
        key = word and f"{what}:{decision_id}:{word}"
        record = _record(kind, decision_id, members_of(called))
        receipt = {
            id_name: _OURS + make_id(key),
            "decision_id": decision_id,
            status_name: record[status_name],
            "status": "queued",
            "reported_at": rfc3339(called.now_us / 1e6),
        }
        return Handed([record], reply(200, receipt | {place: receipt}), key, conflicts=True)

    def asked(self, called: Called) -> Asked:
        """decide.fyi knows no agents: a question is always the destination's."""
        return Asked("", None, members_of(called))

    def refusal(self, why: Why, message: str) -> Reply:
        """`{c, v, error, message}`: whatever the status, `c` is no verdict, and its callers go on by `yes` alone."""
        code, v = _ERRORS.get(why, (f"AGENTD_{why.name}", "try again"))
        return reply(STATUSES[why], {"c": "unclear", "v": v, "error": code, "message": message})


def _record(kind: str, decision_id: str, members: Mapping[str, Raw]) -> dict[str, Any]:
    names = _FIELDS[kind]
    # The decision is the one in the path; what else the body calls so is the caller's own word.
    fields = fields_of(members, names) | {"decision_id": decision_id}
    if text_in(members, "execution_receipt_id").startswith(_OURS):
        fields.pop("execution_receipt_id", None)
    if "executed_at" in fields:
        fields["executed_at"] = time_in(members, "executed_at")
    return checked(kind, fields, names)


STAND_IN = DecideStandIn()
