"""Aegis's gate: leave to spend (`POST /v1/intents`), which is decided later and read by id.

What it asks of us: it documents no idempotency, so a POST is never repeated once it may have arrived, and an answer that
is lost, is a 5xx or is not an intent leaves the outcome unknown. A POST's answer is always `pending` and never a grant:
only an intent that was read back as `approved`, is the one that was asked about, and in which nothing says no is one.
`pending_approval` waits for a person and ends nothing. The envelope of its errors is documented nowhere, so every usual one is
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response
from agentd.gating import Gate, Question, Ruling, Traits, Word
from agentd.platforms._objections import AGREES, ASKS_A_PERSON, objection
from agentd.platforms._questions import (
    GATE_ID,
    OBJECT,
    TEXT,
    Kind,
    agent_of,
    check,
    check_names,
    given,
    members,
    read,
    with_gate_id,
)
from agentd.platforms._rulings import after, bounded, failed, lost, says_twice, segment, still_open
from agentd.platforms.base import retry_after
from agentd.stamp import stamped

_PATH = "/v1/intents"
_REST_S = 1.0  # after a 429 that names no time
_REQUIRED = ("amount", "currency", "reason")
_KINDS: Mapping[str, Kind] = {
    "agent_id": TEXT,
    # No source has bounds; nothing and less can't be spent.
    "amount": Kind(Annotated[float, Meta(gt=0)], "expected a number above 0"),
    "currency": Kind(Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")], "expected an ISO 4217 code such as EUR"),
    "reason": TEXT,
    "confidence": Kind(Annotated[float, Meta(ge=0, le=1)], "expected a number from 0 to 1"),
    "merchant": TEXT,
    "merchant_category": TEXT,
    "metadata": OBJECT,
}
_WIRE_NAMES = {"merchant_category": "merchantCategory"}
_MADE_BELOW = frozenset({"agent_id", "metadata"})
_FREE = frozenset({"metadata"})  # the client's own words
_AGREES = AGREES | ASKS_A_PERSON  # what a policy may say of an approved intent: it may have put it before a person


class _Intent(Struct, rename="camel"):
    """What we need of an intent; other fields are let pass."""

    id: str
    status: str
    matched_policy: Any = None
    amount: Any = None
    currency: Any = None
    agent_id: Any = None
    metadata: Any = None


_decode_intent = msgspec.json.Decoder(_Intent).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class IntentGate:
    """The gate `intent`; it has no state."""

    traits = Traits("intents", "intent", "intent_id", repeat=False, fails_open=False, deadline_s=5.0, poll_s=0.5)

    # -- the question -------------------------------------------------------------------------------------------------------

    def references(self, question: Question) -> Sequence[Reference]:  # noqa: ARG002 - the protocol's
        return ()

    def ask(self, question: Question, context: Context) -> Request:
        fields = given(question, self.traits.id_field)
        check_names(fields, _KINDS)
        check(fields, _KINDS, _REQUIRED)
        body: dict[str, str | Raw | dict[str, Any]] = {"agentId": agent_of(fields, question, context)[1]}
        body |= {
            _WIRE_NAMES.get(name, name): fields[name] for name in _KINDS if name in fields and name not in _MADE_BELOW
        }
        body["metadata"] = with_gate_id(stamped(members(fields, "metadata"), context.stamp), question)
        return Request(_PATH, _encode(body))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:  # noqa: ARG002 - the protocol's
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        if not 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            reason = _reason(answer) + (": is base_url right?" if answer.status == 404 else "")  # noqa: PLR2004 - one path
            return after(attempt, failed(answer.status, reason, _rest(answer, attempt)))
        intent = _intent(answer.body)
        if intent is None:
            return failed(answer.status, f"{answer.status} without an intent: is base_url right?")
        match intent.status:
            case "denied":
                return Ruling(Word.DENY, _why(intent), intent.id)
            case "pending" | "pending_approval":  # the second one waits for a person
                return still_open(_why(intent), intent.id)
            case (
                _
            ):  # not even `approved`: what that would mean here is documented nowhere, and a read says it for certain
                return still_open(f"{_why(intent)}, to be read back", intent.id)

    # -- what comes later ---------------------------------------------------------------------------------------------------

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:  # noqa: ARG002 - the protocol's
        place = segment(platform_id)
        return None if place is None else Request(f"{_PATH}/{place}", b"", method="GET")

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        if isinstance(answer, Lost):
            return still_open(answer.reason)
        intent = _intent(answer.body) if 200 <= answer.status < 300 else None  # noqa: PLR2004 - RFC 9110 §15
        if intent is None:
            return still_open(_reason(answer), again_s=_rest(answer, attempt))
        other = _differs(intent, question, attempt)
        if other:
            return still_open(f"another intent than the one that was asked about: its {other} differs")
        match intent.status:
            case "approved":
                doubt = "a name occurs twice" if says_twice(answer.body) else _doubt(answer.body)
                if doubt:
                    return Ruling(Word.REVIEW, bounded(f"{_why(intent)}, and in the answer {doubt}"), intent.id)
                return Ruling(Word.ALLOW, _why(intent), intent.id)
            case "denied":
                return Ruling(Word.DENY, _why(intent), intent.id)
            case _:
                return still_open(_why(intent), intent.id)


def _doubt(body: bytes) -> str:
    """What stands against an approval. A policy that asked for a person does not: one has approved."""
    found = objection(_decode_any(body), _FREE, _AGREES)
    return f"{found} contradicts it" if found else ""


def _differs(intent: _Intent, question: Question, attempt: Attempt) -> str:
    """The field, of those that the answer shows, by which it is about something else than was asked; empty where it isn't.

    The intent's id is compared by whoever asked for it.
    """
    fields = given(question, "intent_id")
    currency = read(fields, "currency", Kind(str, "expected a string"))
    metadata = intent.metadata if isinstance(intent.metadata, dict) else {}
    asked = members(fields, "metadata").get(GATE_ID)  # the client's own, which may be anything
    compared = {
        "amount": (_number(intent.amount), read(fields, "amount", Kind(float, "expected a number"))),
        "currency": (_folded(intent.currency), _folded(currency)),
        "agentId": (_folded(intent.agent_id), _folded(attempt.agent_id or None)),
        f"metadata.{GATE_ID}": (metadata.get(GATE_ID), question.gate_id if asked is None else None),
    }
    return next(
        (name for name, (found, meant) in compared.items() if None not in (found, meant) and found != meant), ""
    )


def _number(value: Any) -> Any:
    """An amount as it is compared: text may hold a number; what is none equals nothing."""
    if isinstance(value, bool):
        return str(value)  # true would equal 1
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _folded(value: Any) -> Any:
    return value.strip().casefold() if isinstance(value, str) else value


def _intent(body: bytes) -> _Intent | None:
    """The intent that an answer shows; None without one, or where its id or status is none."""
    try:
        intent = _decode_intent(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return intent if intent.status and segment(intent.id) is not None else None


def _why(intent: _Intent) -> str:
    """The status, and the policy that led to it."""
    policy = f": {intent.matched_policy}" if isinstance(intent.matched_policy, str) and intent.matched_policy else ""
    return bounded(f"{intent.status[:64]}{policy}")


def _reason(answer: Response) -> str:
    """The status, and what the platform says of it: `{message, code}`, the same below `error`, or `error` as text."""
    try:
        body = _decode_any(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        body = None
    said = body.get("error") or body if isinstance(body, dict) else None
    if isinstance(said, dict):
        words = [word for name in ("code", "message") if isinstance(word := said.get(name), str) and word]
    else:
        words = [said] if isinstance(said, str) else []
    return bounded(f"{answer.status} {': '.join(words)}")


def _rest(answer: Response, attempt: Attempt) -> float | None:
    """How long a 429 asks to wait."""
    if answer.status != 429:  # noqa: PLR2004
        return None
    rest_s = retry_after(answer.headers, attempt.now_s)
    return _REST_S if rest_s is None else rest_s


GATES: Mapping[str, Gate] = {"intent": IntentGate()}
