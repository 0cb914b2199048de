"""ASCEND's decision on an action, in any of the four shapes that sources have of it. Pure, and it never raises.

A (documented): flat, `decision` and `status`. B: the same below `data`, beside an outer `status` that says how the call went.
C (older server): flat, `status`, and what policies and thresholds said. D: `decision` is an object with an `outcome`.
An unknown word is a review, and so is an approval beside which anything else in the answer says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from agentd.gating import Word
from agentd.platforms._rulings import bounded, segment

_MADE_LOCALLY = "fail_open_"  # what the SDK calls an action that it let pass without asking
_WORDS = {
    "approved": Word.ALLOW,
    "auto_approved": Word.ALLOW,
    "executed": Word.ALLOW,
    "denied": Word.DENY,
    "pending": Word.PENDING,
    "pending_approval": Word.PENDING,
    "escalated": Word.PENDING,
    "processing": Word.PENDING,
    "requires_modification": Word.REVIEW,
    "timeout": Word.REVIEW,
}
_NO_WORDS = frozenset({"success", "ok"})  # `status` of an envelope: the call went well, whatever was decided
_OUTCOMES = ("outcome", "decision", "status")  # under which the object of shape D may have its word
_FORBIDS = frozenset({"deny", "denied", "block", "blocked", "reject", "rejected"})  # of a policy, letters in any case


class Decision(NamedTuple):
    """What an answer says. `known` is False where it has no word, or one that no source has.

    `ready` is the answer's own word on whether this is final; None: it has none.
    """

    word: Word
    reason: str
    platform_id: str | None
    known: bool = True
    ready: bool | None = None


def read_decision(said: Any) -> Decision:
    """The decision: `decision` counts, then `status`; whatever contradicts an approval makes it a review."""
    levels = levels_of(said)
    words = [word for level in levels for word in _words(level)]
    told = [word for word in words if not (isinstance(word, str) and word in _NO_WORDS)]
    platform_id = next((found for level in levels if (found := _id_of(level)) is not None), None)
    ready = next((level["decision_ready"] for level in levels if isinstance(level.get("decision_ready"), bool)), None)
    reason = next((why for level in levels if (why := _why(level))), "")
    word = _word(told[0]) if told else None
    if word is None:
        what = f"unknown decision {_shown(told[0])}" if told else "an answer without a decision"
        return Decision(Word.REVIEW, bounded(f"{what}: {reason}"), platform_id, known=False, ready=ready)
    beside = {_word(other) for other in told[1:] + _enforced(levels)}
    if _is_contradicted(word, beside, levels):
        reason = f"{_shown(told[0])}, and the answer contradicts it: {reason}"
        return Decision(Word.REVIEW, bounded(reason), platform_id, ready=ready)
    if word is Word.ALLOW and Word.PENDING in beside:
        word = Word.PENDING
    return Decision(word, bounded(reason or str(told[0])), platform_id, ready=ready)


def levels_of(said: Any) -> list[dict[str, Any]]:
    """The objects that may hold the decision, the most telling one first: the envelope's inside before the envelope."""
    if not isinstance(said, dict):
        return []
    data = said.get("data")
    return [data, said] if isinstance(data, dict) else [said]


def names_an_action(platform_id: str) -> bool:
    """Whether ASCEND can have given this id, and it is one segment of a path."""
    return segment(platform_id) is not None and not platform_id.startswith(_MADE_LOCALLY)


def _word(told: Any) -> Word | None:
    return _WORDS.get(told) if isinstance(told, str) else None


def _words(level: dict[str, Any]) -> list[Any]:
    """What a level says of the decision, the word that counts first."""
    decision = level.get("decision")
    if isinstance(decision, dict):
        decision = next((decision[name] for name in _OUTCOMES if name in decision), decision)
    return [word for word in (decision, level.get("status")) if word is not None]


def _enforced(levels: Sequence[dict[str, Any]]) -> list[Any]:
    return [word for level in levels if (word := level.get("enforcement_decision")) is not None]


def _is_contradicted(word: Word, beside: set[Word | None], levels: Sequence[dict[str, Any]]) -> bool:
    if word is Word.ALLOW:
        return not beside <= {Word.ALLOW, Word.PENDING} or any(_forbids(level) for level in levels)
    return word is Word.PENDING and Word.DENY in beside


def _forbids(level: dict[str, Any]) -> bool:
    """Whether anything beside the decision says no: a policy, or a flag."""
    result = level.get("policy_result")
    policies = (level.get("policy_decision"), result.get("decision") if isinstance(result, dict) else result)
    if any(isinstance(word, str) and word.casefold() in _FORBIDS for word in policies):
        return True
    return level.get("execution_allowed") is False or level.get("allowed") is False


def _id_of(level: dict[str, Any]) -> str | None:
    """The action's id as text, as it was received: a string or an integer."""
    for name in ("action_id", "id"):
        value = level.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and names_an_action(value):
            return value
    return None


def _why(level: dict[str, Any]) -> str:
    """What the answer says of its reasons."""
    parts = (level, level.get("decision"), level.get("policy_result"))
    reasons = [part.get(name) for part in parts if isinstance(part, dict) for name in ("reason", "message", "comments")]
    said = [reason for reason in reasons if isinstance(reason, str) and reason.strip()]
    by = level.get("approved_by")
    return said[0] if said else f"approved by {by}" if isinstance(by, str) and by else ""


def _shown(word: Any) -> str:
    """A word from outside, for a reason."""
    return repr(word[:64]) if isinstance(word, str) else f"of type {type(word).__name__}"
