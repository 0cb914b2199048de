"""ASCEND's gate: leave for an action (`POST /api/v1/actions/submit`), and the kill switch that is read before it.

Fields are those of ascend-ai-sdk 2.7.1 (`evaluate_action`, `AgentAction`); ones that it lacks are carried through. Sources
disagree on what a server demands and where it looks, so the body is their union: `tool_name` and `description` at top level and
within `action_details`, `parameters` likewise. Sources also disagree on the answer, and all four shapes of it are read.

ASCEND knows no idempotency, and writes an action down before it judges it: a submission is never repeated, and what is lost or
fails with 5xx may have left an action behind. agentd's id of the asking goes along in `context`, which a list of actions shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response, Unencodable
from agentd.gating import Gate, Question, Ruling, Traits, Word
from agentd.platforms._ascend_answers import decoded, is_denial, is_json, is_ours, is_refusal, reason_of, wait_s
from agentd.platforms._ascend_decision import Decision, levels_of, names_an_action, read_decision
from agentd.platforms._questions import OBJECT, TEXT, Kind, agent_of, check, given, members, read, with_gate_id, wrong
from agentd.platforms._rulings import after, bounded, failed, is_cut, lost, says_twice, segment, still_open
from agentd.stamp import stamped

_SUBMIT = "/api/v1/actions/submit"
_STATUS = "/api/v1/actions/{id}/status"
_KILL_SWITCH = "/api/sdk/kill-switch/status"
_REST_S = 1.0  # after a 429 that names no time
_MAX_DIGITS = 18  # of an id that is sent as a number: fits 64 bits

_KINDS: Mapping[str, Kind] = dict.fromkeys(
    ("agent_id", "agent_name", "action_type", "resource", "tool_name", "description", "mcp_server_name", "model_id"), TEXT
) | {
    "orchestration_session_id": TEXT,
    "action_details": OBJECT,
    "context": OBJECT,
    "risk_indicators": OBJECT,
    "parameters": OBJECT,
    "metadata": OBJECT,
    "resource_id": Kind(str, "expected a string"),
    "business_justification": Kind(str, "expected a string"),
    "parent_action_id": Kind(int | Annotated[str, Meta(pattern=r"\S")], "expected the id of an action"),
    "orchestration_depth": Kind(Annotated[int, Meta(ge=0, le=5)], "expected an integer from 0 to 5"),
    "require_approval": Kind(bool, "expected true or false"),
}  # fmt: skip
_OWN_SCORE = "refused; the score is the platform's, a client may not score itself"
_REFUSED = {
    "risk_score": _OWN_SCORE,
    "riskScore": _OWN_SCORE,
    "risk_level": _OWN_SCORE,
    "timeout": "refused; how long to wait is the gate's deadline",
    "wait_for_decision": "refused; how long to wait is the gate's deadline",
}
_MOVED = frozenset(
    {"agent_id", "agent_name", "action_details", "context", "business_justification", "parent_action_id"}
)
_LIFTED = ("tool_name", "description")  # at top level and within action_details

_encode = msgspec.json.Encoder().encode


class ActionGate:
    """The gate `action`; it has no state."""

    traits = Traits("submit", "action", "action_id", repeat=False, fails_open=True, deadline_s=5.0, poll_s=2.0)

    # -- the question -------------------------------------------------------------------------------------------------------

    def references(self, question: Question) -> Sequence[Reference]:
        try:
            parent = _parent(given(question, self.traits.id_field))
        except Unencodable:
            return ()  # `ask` says what is wrong with it
        return () if parent is None else (Reference("action", parent),)

    def ask(self, question: Question, context: Context) -> Request:
        fields = given(question, self.traits.id_field)
        for name in fields:
            if name in _REFUSED:
                raise wrong(name, _REFUSED[name])
        check(fields, _KINDS, ("action_type",))
        local, agent = agent_of(fields, question, context)
        body: dict[str, Any] = {"agent_id": agent, "agent_name": fields.get("agent_name", local)}
        body |= {name: value for name, value in fields.items() if name not in _MOVED}
        details = _details(fields)
        body |= {
            name: text for name in _LIFTED if name not in body and _is_text(text := decoded(details.get(name, b"")))
        }
        if details:
            body["action_details"] = details
        body["context"] = with_gate_id(stamped(_circumstances(fields), context.stamp), question)
        parent = _parent(fields)
        if parent is not None:
            body["parent_action_id"] = _known_parent(parent, context)
        return Request(_SUBMIT, _encode(body))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:  # noqa: ARG002 - the protocol's
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        said = decoded(answer.body)
        reason = reason_of(answer.status, said)
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return after(attempt, _submitted(answer, said, reason))
        if answer.status == 403 and is_denial(said):  # noqa: PLR2004
            return Ruling(Word.DENY, _denial(said) or bounded(reason))
        if answer.status == 404 and not is_ours(said):  # noqa: PLR2004
            reason = f"{reason}: is base_url right?"
        return after(attempt, failed(answer.status, reason, _rest(answer, attempt)))

    # -- what comes later ---------------------------------------------------------------------------------------------------

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:  # noqa: ARG002 - the protocol's
        place = segment(platform_id) if names_an_action(platform_id) else None
        return None if place is None else Request(_STATUS.format(id=place), b"", method="GET")

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:  # noqa: ARG002 - the protocol's
        if isinstance(answer, Lost):
            return still_open(answer.reason)
        said = decoded(answer.body)
        found = read_decision(said) if 200 <= answer.status < 300 else None  # noqa: PLR2004 - RFC 9110 §15
        if found is None or (is_refusal(said) and found.word is not Word.DENY):
            return still_open(reason_of(answer.status, said), again_s=_rest(answer, attempt))
        if found.mixed:
            return still_open(f"an answer about two actions: {found.reason}")
        is_open = found.word is Word.PENDING or (found.word is Word.ALLOW and found.ready is False)
        if is_open or (not found.known and found.ready is not True):
            return still_open(found.reason, found.platform_id)
        return _final(found, answer)

    # -- the kill switch ----------------------------------------------------------------------------------------------------

    def guard(self) -> Request:
        return Request(_KILL_SWITCH, b"", method="GET")

    def rule_guard(self, answer: Response | Lost, attempt: Attempt) -> Ruling | None:
        """For any answer nothing was submitted: `acted` is False. A 404 is a server without a kill switch."""
        if isinstance(answer, Lost):
            return Ruling(Word.UNAVAILABLE, bounded(f"kill switch: {answer.reason}"), acted=False)
        if answer.status == 404:  # noqa: PLR2004
            return None
        said = decoded(answer.body)
        levels = [level for level in levels_of(said) if "blocked" in level] if answer.status == 200 else []  # noqa: PLR2004
        states = [level["blocked"] for level in levels]
        if any(state is True for state in states):
            why = next((level["reason"] for level in levels if _is_text(level.get("reason"))), "thrown")
            return Ruling(Word.DENY, bounded(f"kill switch: {why}"), acted=False)
        if states and all(state is False for state in states):
            return None
        reason = f"kill switch: it can't be read: {reason_of(answer.status, said)}"
        return Ruling(Word.UNAVAILABLE, bounded(reason), acted=False, again_s=_rest(answer, attempt))


# -- requests --------------------------------------------------------------------------------------------------------------


def _details(fields: Mapping[str, Raw]) -> dict[str, Raw]:
    """What the SDK makes of `parameters` and the named fields, which win over it."""
    named = {name: fields[name] for name in _LIFTED if name in fields}
    return members(fields, "parameters") | members(fields, "action_details") | named


def _circumstances(fields: Mapping[str, Raw]) -> dict[str, Raw]:
    """`context`, and in it `business_justification`, where the SDK puts it unless it is there already."""
    why = fields.get("business_justification")
    return ({} if why is None else {"business_justification": why}) | members(fields, "context")


def _parent(fields: Mapping[str, Raw]) -> str | None:
    parent = read(fields, "parent_action_id", _KINDS["parent_action_id"])
    return None if parent is None else str(parent)


def _known_parent(parent: str, context: Context) -> int | str:
    """The platform's id of the action before this one, a number where it looks like one. Raises Unencodable."""
    known = context.resolve("action", parent)
    if known is None:
        raise wrong("parent_action_id", "the platform knows no such action")
    is_number = known.isascii() and known.isdecimal() and len(known) <= _MAX_DIGITS and str(int(known)) == known
    return int(known) if is_number else known


# -- answers ---------------------------------------------------------------------------------------------------------------


def _submitted(answer: Response, said: Any, reason: str) -> Ruling:
    """What a 2xx means: a page is somebody else's, and a platform can say no under 200."""
    if not is_json(answer, said):
        what = "an answer too long to be read whole" if is_cut(answer) else "no JSON: is base_url right?"
        return failed(answer.status, f"{answer.status}: {what}")
    found = read_decision(said)
    if is_refusal(said) and found.word is not Word.DENY:
        return failed(answer.status, reason)
    is_open = found.word is Word.PENDING or (found.word is Word.ALLOW and _is_unfinished(answer, found))
    if not is_open:
        return _final(found, answer)
    if found.platform_id is None:
        return Ruling(Word.REVIEW, bounded(f"pending, without an id by which to ask for the decision; {found.reason}"))
    return still_open(found.reason, found.platform_id)


def _final(found: Decision, answer: Response) -> Ruling:
    """The platform's last word; an approval in which a name occurs twice may be read as something else by others."""
    if found.word is Word.ALLOW and found.mixed:
        return Ruling(Word.REVIEW, bounded(f"an answer about two actions: {found.reason}"), found.platform_id)
    if found.word is Word.ALLOW and says_twice(answer.body):
        return Ruling(Word.REVIEW, bounded(f"a name occurs twice in the answer: {found.reason}"), found.platform_id)
    return Ruling(found.word, found.reason, found.platform_id)


def _is_unfinished(answer: Response, found: Decision) -> bool:
    """Whether an approval is none yet: 202 means pending, and so does an approval that is still required."""
    return answer.status == 202 or found.ready is False or found.waits  # noqa: PLR2004 - RFC 9110 §15.3.3


def _denial(said: dict[str, Any]) -> str:
    """What a governance denial says: its `error`, then the detail."""
    detail = said["detail"]
    words = [detail[name] for name in ("error", "message", "detail") if _is_text(detail.get(name))]
    return bounded(": ".join(words))


def _rest(answer: Response, attempt: Attempt) -> float | None:
    """How long a 429 asks to wait."""
    if answer.status != 429:  # noqa: PLR2004
        return None
    rest_s = wait_s(answer.headers, attempt.now_s)
    return _REST_S if rest_s is None else rest_s


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


GATES: Mapping[str, Gate] = {"action": ActionGate()}
