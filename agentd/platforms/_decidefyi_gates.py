"""decide.fyi's gate: `POST /api/decide`, a decision by rulebook or by advice.

Sources: https://www.decide.fyi/openapi.json v1.10.0 and the repository decidefyi/decide (`api/decide.js`, `lib/rulebook-v1.js`,
docs/RULEBOOK_V1.md). The field `verdict` counts and nothing else, and only a rulebook binds: a `yes` of an advisory mode is a
`review`. `application_verdict` and `action` are words of the rulebook's author (`BLOCK` may be what a `yes` is about), so that
they contradict nothing; `c`, `decision`, `status` and `error` say what `verdict` says, and where they say otherwise it is a
`review` as well. So is a yes beside a flag or an error that speaks against it, and one whose record names another authority than
the rulebook (`lib/rulebook-runtime-contract.js`, sdk/decide.d.ts). The platform answers 200 also when it has no verdict. A repeat
under the same key gets the first record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentd.exchange import Attempt, Context, Lost, Reference, Request, Response
from agentd.gating import Gate, Question, Ruling, Traits, Word
from agentd.platforms._decidefyi_wire import (
    OPERATOR,
    RATE_CODES,
    in_progress,
    is_envelope,
    object_in,
    rate_s,
    reason_of,
    text_in,
    wait_s,
)
from agentd.platforms._objections import objection
from agentd.platforms._questions import given
from agentd.platforms._rulings import after, bounded, failed, is_cut, lost, says_twice, segment

_PATH = "/api/decide"
_VERDICTS = {"yes": Word.ALLOW, "no": Word.DENY, "review": Word.REVIEW}
# The words for a verdict that the JS SDK knows, and those with which the runtime has none.
_MEANS = {
    **dict.fromkeys(("yes", "approve", "allow", "pass"), "yes"),
    **dict.fromkeys(("no", "deny", "block", "reject"), "no"),
    **dict.fromkeys(("review", "unclear", "filtered", "tie", "pending", "hold"), "review"),
}
# What a record that binds says of itself where it says it. No source shows a `decision_contract` that binds: the conformance set
# has one in what it refuses from callers, in the words that the platform would use.
_BINDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "decision_contract": {
        "authority": ("production_verdict", "declarative_rulebook"),
        "production_verdict": (True,),
        "production_binding_required": (False,),
    },
    "runtime_binding": {
        "production_core": ("hybrid_declarative_rulebook_with_trusted_adapters", True),
        "binding_mode": ("direct_declarative_rulebook", "trusted_adapter_facts_then_declarative_rulebook"),
        "verdict_authority": ("declarative_rulebook",),
        "adapter_authority": ("facts_only",),
        "customer_supplied_code": ("rejected",),
    },
}
# Words of the caller or of the rulebook's author, and the signature, which is optional and no part of the verdict.
_FREE = frozenset(
    {
        "actionbinding", "adapterfacts", "context", "defaultoutcome", "evaluation", "evidence", "evidencemanifest", "inputs",
        "rules", "signature",
    }
)  # fmt: skip
_REST_S = 1.0  # after a 429, a 5xx or a 409 in progress that names no time
_MAX_LISTED = 5  # missing fields and errors that a reason names

_decode_text = msgspec.json.Decoder(str).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class Decide:
    """The gate; it has no state."""

    traits = Traits("decide", "decision", "decision_id", repeat=True)

    def references(self, question: Question) -> Sequence[Reference]:
        del question
        return ()

    def ask(self, question: Question, context: Context) -> Request:
        """The platform's fields as they are. `decision_id` is what the client calls the decision: decide.fyi refuses it."""
        del context
        return Request(_PATH, _encode(given(question, self.traits.id_field)))

    def rule(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        if isinstance(answer, Lost):
            return after(attempt, lost(answer))
        body = object_in(answer.body)
        if answer.status == 200:  # noqa: PLR2004 - the only status that a decision record is known to have
            return _decided(question, answer, body)
        if 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15
            return Ruling(Word.REVIEW, f"{answer.status} is no answer of decide.fyi's", _decision_id(answer, body))
        return after(attempt, _refused(answer, body, attempt))

    def follow(self, question: Question, platform_id: str, context: Context) -> Request | None:
        """Nothing: decide.fyi decides at once, and a review is its last word."""
        del question, platform_id, context
        return None

    def rule_followed(self, question: Question, answer: Response | Lost, attempt: Attempt) -> Ruling:
        return self.rule(question, answer, attempt)


# -- 200 --------------------------------------------------------------------------------------------------------------------


def _decided(question: Question, answer: Response, body: Mapping[str, Any]) -> Ruling:
    decision_id = _decision_id(answer, body)
    word = _VERDICTS.get(text_in(body, "verdict"))
    if word is None:
        return Ruling(Word.REVIEW, bounded(_without_verdict(answer, body)), decision_id)
    reason = text_in(body, "reason_code") or text_in(body, "verdict")
    binds = _by_rulebook(question) and not _advisory(body)
    doubt = _doubt(body, word, binds=binds) or ("a name occurs twice" if says_twice(answer.body) else "")
    if word is Word.ALLOW and not doubt:
        doubt = objection(body, _FREE)
    if doubt:
        return Ruling(Word.REVIEW, bounded(f"{reason}: {doubt}"), decision_id)
    if word is Word.ALLOW and not binds:
        return Ruling(Word.REVIEW, bounded(f"{reason}: advisory only, yes binds nobody; ask by rulebook"), decision_id)
    return Ruling(word, bounded(reason), decision_id)


def _without_verdict(answer: Response, body: Mapping[str, Any]) -> str:
    if not body:
        if is_cut(answer):
            return "200 that is too long to be read whole: ask for response_view minimal"
        return "200 without an answer of decide.fyi's: is base_url right?"
    if body.get("verdict") is not None:
        return f"200 with an unknown verdict {str(body['verdict'])[:80]!r}"
    said = [text_in(body, name) for name in ("c", "error", "v")]
    return f"200 without a verdict: {' '.join(word for word in said if word)}".rstrip(": ")


def _doubt(body: Mapping[str, Any], word: Word, *, binds: bool) -> str:
    """What in an answer speaks against its verdict, empty where nothing does."""
    lacking = [f"{name} {_listed(body[name])}" for name in ("missing_fields", "invalid_fields") if body.get(name)]
    if text_in(body, "status") == "needs_input" or text_in(body, "application_verdict") == "NEEDS_INPUT" or lacking:
        return ", ".join(["needs input", *lacking])
    if body.get("error"):
        return f"error {str(body['error'])[:120]}"
    if body.get("status") not in (None, "ok"):
        return f"status {str(body['status'])[:80]!r}"
    for name in ("c", "decision"):
        other = body.get(name)
        means = _MEANS.get(other.strip().lower()) if isinstance(other, str) else None
        # In the mode `multi` it is the option that was chosen, which may be any text.
        if other is not None and _VERDICTS.get(means or "") is not word and (binds or means is not None):
            return f"verdict {body['verdict']} contradicts {name} {str(other)[:80]!r}"
    return ""


def _by_rulebook(question: Question) -> bool:
    """Whether the request is for a rulebook's verdict: by its mode, or by the rulebook where it names no mode."""
    mode = question.request.get("mode")
    try:
        if mode is not None and bytes(mode).strip() != b"null":
            return _decode_text(mode).strip().lower() == "rulebook"
        rulebook = question.request.get("rulebook")
        return rulebook is not None and _decode_object(rulebook).get("schema_version") == "rulebook_v1"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _advisory(body: Mapping[str, Any]) -> bool:
    """Whether an answer says that it binds nobody, or does not say that it binds in the words that are known for it."""
    for name, members in _BINDS.items():
        said = body.get(name)
        if said is None:
            continue
        if not isinstance(said, dict):
            return True
        if any(not _is_one_of(said[member], words) for member, words in members.items() if member in said):
            return True
    return False


def _is_one_of(said: Any, words: Sequence[Any]) -> bool:
    """1 is not true."""
    return any(type(said) is type(word) and said == word for word in words)


def _decision_id(answer: Response, body: Mapping[str, Any]) -> str | None:
    named = text_in(body, "decision_id") or answer.headers.get("x-decision-id", "")
    return named if segment(named) is not None else None


# -- refusals ---------------------------------------------------------------------------------------------------------------


def _refused(answer: Response, body: Mapping[str, Any], attempt: Attempt) -> Ruling:
    """An answer that is no success. What decide.fyi's own word says comes before what the status says."""
    status, code, v = answer.status, text_in(body, "error"), text_in(body, "v")
    reason = _reason(answer, body)
    if "MONTHLY_CAP" in code or v == "monthly_cap_exceeded" or code == "DECIDE_AI_BUDGET_EXHAUSTED":
        return Ruling(Word.UNAVAILABLE, reason, acted=False)
    if status == 429 or code in RATE_CODES or v == "rate_limited":  # noqa: PLR2004
        wait = rate_s(answer, body, attempt)
        return Ruling(Word.UNAVAILABLE, reason, acted=False, again_s=_REST_S if wait is None else wait)
    if status == 409 and in_progress(answer, body):  # noqa: PLR2004 - the same key again gets what is being made
        wait = wait_s(answer, body, attempt)
        return Ruling(Word.UNAVAILABLE, reason, again_s=_REST_S if wait is None else wait)
    if status == 409:  # noqa: PLR2004
        return Ruling(Word.UNAVAILABLE, bounded(f"{reason}: another decision exists under this key, do not execute"))
    if code in OPERATOR:  # 503, and somebody has to configure something before anything is decided
        return Ruling(Word.UNAVAILABLE, reason, acted=False)
    if status == 404 and not is_envelope(body):  # noqa: PLR2004
        return failed(status, f"{reason}: is base_url right?")
    if status >= 500:  # noqa: PLR2004 - RFC 9110 §15; the same key and payload make one decision
        wait = wait_s(answer, body, attempt)
        return failed(status, reason, _REST_S if wait is None else wait)
    return failed(status, reason)


def _reason(answer: Response, body: Mapping[str, Any]) -> str:
    """Status, code and sentence, with what the platform lists as wrong."""
    reason = reason_of(answer, body)
    if body.get("forbidden_fields"):
        reason += f" {_listed(body['forbidden_fields'])}"
    errors = body.get("errors")
    wrong = [one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else []
    if wrong:
        reason += ": " + "; ".join(
            f"{text_in(one, 'field')} {text_in(one, 'message')}"[:120] for one in wrong[:_MAX_LISTED]
        )
    return bounded(reason)


def _listed(names: Any) -> str:
    shown = names[:_MAX_LISTED] if isinstance(names, list) else [names]
    return ", ".join(str(name)[:80] for name in shown)


GATES: Mapping[str, Gate] = {"decide": Decide()}
