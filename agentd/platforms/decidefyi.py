"""decide.fyi (https://www.decide.fyi/openapi.json): the receipts of decisions that it made: execution, outcome, crm-sync.

What its strictness asks of us: a write is known by `x-idempotency-key` and its canonical payload, so that a repeat gets the
first receipt and another payload under the same key is refused. The key is the record's own id, hence one per operation, and
the sealed bytes are kept. The decision's id is in the path and nowhere in the body; one that could lead to another path is
not sent. 409 has two meanings (the key is taken; its first use is still running), 429 has two (the minute, the month), 503
two (a store is down; somebody has to configure something), and each is told by what the body says.

Deciding itself (`/api/decide`) is a gate and stands in `_decidefyi_gates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw

from agentd.exchange import (
    Attempt,
    Call,
    Context,
    Item,
    Lost,
    Reference,
    Request,
    Response,
    Sending,
    Unencodable,
    Usage,
)
from agentd.gating import Gate
from agentd.identity import text_of
from agentd.outcomes import RECORD, Delivered, Learned, Pause, Reject, Retry, Scope, Unknown, Verdict
from agentd.platforms._decidefyi_gates import GATES
from agentd.platforms._decidefyi_sdk import STAND_IN
from agentd.platforms._decidefyi_wire import (
    OPERATOR,
    RATE_CODES,
    in_progress,
    is_capped,
    is_envelope,
    left_in,
    object_in,
    rate_s,
    reason_of,
    text_in,
    until_s,
    wait_s,
)
from agentd.platforms.base import array_of, by_status, is_cut, lost, next_month_s, object_of, with_extra
from agentd.probing import Probe
from agentd.records import TYPES
from agentd.standin import StandIn

_PREFIX = "/api/decision"
_COUNTED = ("/api/decide", "/api/decision/")  # POST there makes a record
_NOT_SENT = frozenset({"id", "to", "agent_id", "extra", "decision_id"})  # ours; the decision's id is in the path

# Call → where the SDK looks for the receipt, and names that only its receipt bears, its id first: none is a field of the request.
_RECEIPTS = {
    "execution": ("execution", ("execution_receipt_id", "execution_hash", "decision_execution_version")),
    "outcome": ("outcome", ("outcome_id", "outcome_hash", "decision_outcome_version")),
    "crm-sync": ("crm_sync", ("sync_id", "sync_hash")),
}

_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(TYPES[kind]) for kind in ("execution", "outcome", "crm_sync")
}
_encode = msgspec.json.Encoder().encode


def _text(value: Raw) -> Raw | str:
    """The JSON value as the text that decide.fyi demands: anything else goes as its JSON."""
    text = bytes(value).strip()
    return value if text.startswith(b'"') else text.decode()


# Free JSON of our records whose form decide.fyi documents. What is not here goes as it was written.
_SHAPES: Mapping[str, Callable[[Raw], Raw | str]] = {
    "mutation": _text,
    "evidence_refs": array_of,
    "executor": object_of,
    "action_binding": object_of,
    "observed_metrics": object_of,
    "field_mapping": object_of,
}


class Decide:
    """The adapter; it has no state."""

    name = "decidefyi"
    default_base_url = "https://www.decide.fyi"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()
    options: Mapping[str, tuple[str, ...]] = {}
    gates: Mapping[str, Gate] = GATES
    # The path of a call is what follows the decision's id.
    calls: Mapping[str, Call] = {
        "execution": Call("execution", "/execution", strict_key=True),
        "outcome": Call("outcome", "/outcome", strict_key=True),
        "crm_sync": Call("crm-sync", "/crm-sync", strict_key=True),
    }
    stand_in: StandIn = STAND_IN
    # what is open to all says nothing of a key: a record that does not exist is looked for
    probe = Probe("/api/decision/agentd-check", frozenset({200, 404}))
    cap = "decide.fyi's monthly cap"

    def usage(self, request: Request, answer: Response, now_s: float) -> Usage:
        """Each new record counts, decisions and receipts alike; every answer to one says how many are left."""
        success = 200 <= answer.status < 300  # noqa: PLR2004
        body = {} if success else object_in(answer.body)
        left = left_in(answer)
        replayed = answer.headers.get("x-idempotency-status", "").lower() == "replayed"
        spent = int(success and not replayed and request.method == "POST" and request.path.startswith(_COUNTED))
        if not is_capped(body) and not (answer.status == 429 and left == 0):  # noqa: PLR2004
            return Usage(spent, bool(spent), left)
        resets_in_s = until_s(answer, body, Attempt(now_s)) or next_month_s(now_s)
        return Usage(left=0, reached=True, resets_in_s=resets_in_s)

    def headers(self, sending: Sending) -> dict[str, str]:
        return {"x-api-key": sending.api_key, "x-idempotency-key": sending.idempotency_key}

    def references(self, item: Item) -> Sequence[Reference]:
        return (Reference("decision", _decision_of(item)),)

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:
        decision_id = context.resolve("decision", _decision_of(items[0]))
        if decision_id is None:
            raise Unencodable("its decision is unknown to the platform")
        path = f"{_PREFIX}/{_segment(decision_id)}{call.path}"
        record = _decoders[items[0].kind].decode(items[0].body)
        return Request(path, with_extra(_encode(_fields(record)), record.extra))

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        body = object_in(answer.body)
        success = 200 <= answer.status < 300  # noqa: PLR2004 - which of them is a receipt's, no source says
        if success and (_is_receipt(call, body) or is_cut(answer)):
            receipt_id = text_in(_receipt(call, body), _RECEIPTS[call.name][1][0])
            return Delivered((Learned(RECORD, text_of(items[0].record_id), receipt_id),) if receipt_id else ())
        reason = reason_of(answer, body)
        ours = is_envelope(body)
        verdict = _by_code(answer, body, attempt, reason) if ours else None
        if verdict is not None:
            return verdict
        if success and ours:
            return Retry(f"{reason}: no receipt", wait_s(answer, body, attempt))  # safe under the same key
        if success:
            return Retry(f"{answer.status} without a receipt: is base_url right?", None, Scope.DESTINATION)
        return _by_number(answer, body, attempt, reason, ours=ours)


# -- requests ---------------------------------------------------------------------------------------------------------------


def _decision_of(item: Item) -> str:
    return item.lane.partition(":")[2]


def _segment(decision_id: str) -> str:
    """The id as exactly one segment of a path. Raises Unencodable.

    Quoting is not enough: `.` and `..` can't be quoted, and an encoded slash is a slash again behind some proxies.
    """
    if decision_id.strip(".") == "" or any(c in "/\\" or not c.isprintable() for c in decision_id):
        raise Unencodable(f"{decision_id[:80]!r} can't be the id of a decision")
    return quote(decision_id, safe="")


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:  # in the year 1 or 9999 the same moment may have no date in UTC
        return time


def _fields(record: Any) -> dict[str, Any]:
    """What of a record goes to the platform, under the names that both have, without what is absent or null."""
    sent: dict[str, Any] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name in _NOT_SENT or value is None or value is UNSET:
            continue
        if isinstance(value, Raw):
            if bytes(value).strip() in (b"", b"null"):
                continue
            value = _SHAPES[name](value) if name in _SHAPES else value
        elif isinstance(value, datetime):
            value = _utc(value)
        sent[name] = value
    return sent


# -- answers ----------------------------------------------------------------------------------------------------------------


def _is_receipt(call: Call, body: Mapping[str, Any]) -> bool:
    """Bare, as the documentation shows it, or under a name, as the SDK reads it."""
    return any(text_in(_receipt(call, body), name) for name in _RECEIPTS[call.name][1])


def _receipt(call: Call, body: Mapping[str, Any]) -> Mapping[str, Any]:
    wrapped = body.get(_RECEIPTS[call.name][0])
    return wrapped if isinstance(wrapped, dict) else body


def _by_code(answer: Response, body: Mapping[str, Any], attempt: Attempt, reason: str) -> Verdict | None:
    """What its own word means whatever the status; None where the word says nothing special."""
    code, word = text_in(body, "error"), text_in(body, "v")
    if is_capped(body):
        return Pause(Scope.DESTINATION, reason, until_s(answer, body, attempt) or next_month_s(attempt.now_s))
    if code == "DECIDE_AI_BUDGET_EXHAUSTED":
        return Pause(Scope.DESTINATION, reason, until_s(answer, body, attempt))
    if code in RATE_CODES or word == "rate_limited":
        return Retry(reason, rate_s(answer, body, attempt), Scope.DESTINATION)
    if code.endswith("_UNAUTHORIZED") or word == "unauthorized" or code in OPERATOR:
        return Pause(Scope.DESTINATION, reason)
    return None


def _by_number(answer: Response, body: Mapping[str, Any], attempt: Attempt, reason: str, *, ours: bool) -> Verdict:
    status = answer.status
    if status == 409:  # noqa: PLR2004
        running = in_progress(answer, body)
        return Retry(reason, wait_s(answer, body, attempt)) if running else Reject(reason)
    if status == 404 and not ours:  # noqa: PLR2004 - no route of decide.fyi's: somebody else answers there
        return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
    if status in {404, 405} and ours:
        return Reject(reason)
    if status == 429:  # noqa: PLR2004
        return Retry(reason, rate_s(answer, body, attempt), Scope.DESTINATION)
    verdict = by_status(answer, attempt, reason)
    return Retry(reason, wait_s(answer, body, attempt), verdict.scope) if isinstance(verdict, Retry) else verdict


PLATFORM = Decide()
