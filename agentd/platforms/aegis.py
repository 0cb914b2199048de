"""AegisOS Comply (https://www.aegis-comply.com/api-reference.html, its pages of the Python and Node SDKs): leave to spend.

Aegis has no call for anything that may wait in a queue: an intent is a question whose answer its agent waits for, and
runs, events, outcomes and heartbeats are unknown to it. So `calls` is empty; `gates` and `reads` hold what it does have.

What it asks of us: it documents no idempotency, so a POST is never repeated once it may have arrived, and an answer that
is lost, is a 5xx or is not an intent leaves the outcome unknown. A POST's answer is always `pending` and never a grant:
only an intent that was read back as `approved` is one. `pending_approval` waits for a person and ends nothing. The
envelope of its errors is documented nowhere, so every usual one is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from agentd.exchange import Attempt, Call, Context, Item, Lost, Reference, Request, Response, Sending, Unencodable
from agentd.identity import text_of
from agentd.outcomes import Delivered, Learned, Pause, Reject, Retry, Scope, Split, Unknown, Verdict
from agentd.platforms.base import by_status, lost

_PATH = "/v1/intents"
_TURNED_AWAY = frozenset(
    {425, 429}
)  # before anything was done; any other failure that would be tried again may have acted


class Standing(StrEnum):
    """What an intent's status means for whoever asked; ALLOW and DENY are final."""

    ALLOW = "allow"
    DENY = "deny"
    REVIEW = "review"
    PENDING = "pending"


_STANDINGS = {
    "approved": Standing.ALLOW,
    "denied": Standing.DENY,
    "pending": Standing.PENDING,
    "pending_approval": Standing.REVIEW,
}
_REFUSALS = frozenset({"deny", "denied"})


class _Intent(Struct, rename="camel"):
    """What we need of an intent; other fields are let pass."""

    id: str
    status: str
    policy_decision: Any = None


_decode_intent = msgspec.json.Decoder(_Intent).decode
_decode_any = msgspec.json.Decoder().decode


class Aegis:
    """The adapter; it has no state."""

    name = "aegis"
    default_base_url = "https://api.aegis-os.com"
    encoder_version = 1
    introduces: frozenset[str] = frozenset()
    options: Mapping[str, tuple[str, ...]] = {}
    calls: Mapping[str, Call] = {}
    gates: Mapping[str, Call] = {"intent": Call("intents", _PATH, repeat=False)}  # POST
    reads: Mapping[str, Call] = {  # GET; the list takes status, agentId, from, to, limit (at most 100) and offset
        "intent": Call("intent", f"{_PATH}/{{id}}"),
        "intents": Call("intents.list", _PATH),
    }

    def headers(self, sending: Sending) -> dict[str, str]:
        return {"authorization": f"Bearer {sending.api_key}", "idempotency-key": sending.idempotency_key}

    def references(self, item: Item) -> Sequence[Reference]:  # noqa: ARG002 - the protocol's
        return ()

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:  # noqa: ARG002 - the protocol's
        raise Unencodable(f"Aegis has no call for {items[0].kind}")

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        if isinstance(answer, Lost):
            return lost(call, answer) or Unknown(answer.reason)
        body = _json(answer.body)
        reason = _reason(answer.status, body)
        if answer.status == 404 and not isinstance(body, dict):  # noqa: PLR2004 - no API answers so
            return Pause(Scope.DESTINATION, f"{reason}: is base_url right?")
        verdict = by_status(answer, attempt, reason)
        match verdict:
            case Delivered():
                return self._taken(call, items, answer, body)
            case Split():  # one intent has no halves
                return Reject(verdict.reason, verdict.cause)
            case Retry() if not call.repeat and answer.status not in _TURNED_AWAY:
                return Unknown(reason)
        return verdict

    def _taken(self, call: Call, items: Sequence[Item], answer: Response, body: object) -> Verdict:
        intent = _intent(answer.body)
        if intent is not None:
            is_new = not call.repeat
            return Delivered((Learned("intent", text_of(items[0].record_id), intent.id),) if is_new else ())
        if call.name == "intents.list" and isinstance(body, dict | list):  # its shape is documented nowhere
            return Delivered()
        reason = f"{answer.status} without an intent"
        return Retry(f"{reason}: is base_url right?", None, Scope.DESTINATION) if call.repeat else Unknown(reason)

    def standing(self, call: Call, answer: Response) -> Standing | None:
        """How an intent stands by this answer, None if the answer is no intent.

        Nothing but an intent that was read back as approved is ALLOW: not a POST's own answer, not an unknown word, and
        not an approval beside which the policy says no.
        """
        intent = _intent(answer.body) if 200 <= answer.status < 300 else None  # noqa: PLR2004 - RFC 9110 §15
        if intent is None:
            return None
        standing = _STANDINGS.get(intent.status, Standing.REVIEW)
        if standing is Standing.ALLOW and str(intent.policy_decision) in _REFUSALS:
            return Standing.REVIEW
        return Standing.PENDING if standing is Standing.ALLOW and not call.repeat else standing


def _intent(body: bytes) -> _Intent | None:
    try:
        intent = _decode_intent(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return intent if intent.id and intent.status else None


def _json(body: bytes) -> object:
    try:
        return _decode_any(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _reason(status: int, body: object) -> str:
    """The status, and what the platform says of it: `{message, code}`, the same below `error`, or `error` as text."""
    said = body.get("error") or body if isinstance(body, dict) else None
    if isinstance(said, dict):
        words = [word for name in ("code", "message") if isinstance(word := said.get(name), str) and word]
    else:
        words = [said] if isinstance(said, str) else []
    return f"{status} {': '.join(words)}"[:500].rstrip()


PLATFORM = Aegis()
