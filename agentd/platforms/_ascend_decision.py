"""ASCEND's decision on an action, in any of the four shapes that sources have of it. Pure, and it never raises.

A (documented): flat, `decision` and `status`. B: the same below `data`, beside an outer `status` that says how the call went.
C (older server): flat, `status`, and what policies and thresholds said. D: `decision` is an object with an `outcome`.
An unknown word is a review, and so is an approval beside which anything else in the answer says no, or fails, or has a policy say
what is not known to agree. What the client said itself comes back in some answers and is not looked at, nor are shadow policies,
which are not in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from agentd.gating import Word
from agentd.platforms._objections import AGREES, ASKS_A_PERSON, objection
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
_FLAGS = ("requires_approval", "decision_ready")  # true, false or null
_FREE = frozenset(
    {
        "actiondetails",
        "context",
        "metadata",
        "parameters",
        "riskindicators",
        "shadowenforcementdecision",
        "shadowpolicydecision",
    }
)


class Decision(NamedTuple):
    """What an answer says. `known` is False where it has no word, or one that no source has.

    `ready` is the answer's own word on whether this is final; None: it has none. `waits`: it says that somebody has yet to approve.
    `mixed`: it is about two actions.
    """

    word: Word
    reason: str
    platform_id: str | None
    known: bool = True
    ready: bool | None = None
    waits: bool = False
    mixed: bool = False


def read_decision(said: Any) -> Decision:
    """The decision: `decision` counts, then `status`; whatever contradicts an approval makes it a review."""
    levels = levels_of(said)
    words = [word for level in levels for word in _words(level)]
    told = [word for word in words if not (isinstance(word, str) and word in _NO_WORDS)]
    platform_id = next((found for level in levels if (found := _id_of(level)) is not None), None)
    flags = {name: [part[name] for part in _parts(levels) if part.get(name) is not None] for name in _FLAGS}
    ready = None if not flags["decision_ready"] else all(flag is True for flag in flags["decision_ready"])
    mixed = len({str(level["action_id"]) for level in levels if level.get("action_id") is not None}) > 1
    reason = next((why for level in levels if (why := _why(level))), "")
    word = _word(told[0]) if told else None
    if word is None:
        what = f"unknown decision {_shown(told[0])}" if told else "an answer without a decision"
        return Decision(Word.REVIEW, bounded(f"{what}: {reason}"), platform_id, known=False, ready=ready, mixed=mixed)
    beside = {_word(other) for other in told[1:] + _enforced(levels)}
    doubt = _doubt(word, beside, said, flags)
    if doubt:
        reason = f"{_shown(told[0])}, and the answer contradicts it{doubt}: {reason}"
        return Decision(Word.REVIEW, bounded(reason), platform_id, ready=ready, mixed=mixed)
    if word is Word.ALLOW and Word.PENDING in beside:
        word = Word.PENDING
    waits = word is Word.ALLOW and (True in flags["requires_approval"] or bool(objection(said, _FREE)))
    return Decision(word, bounded(reason or str(told[0])), platform_id, ready=ready, waits=waits, mixed=mixed)


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
    words = [decision]
    if isinstance(decision, dict):
        words = [decision[name] for name in _OUTCOMES if name in decision] or [decision]
    return [word for word in (*words, level.get("status")) if word is not None]


def _parts(levels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The levels and the objects of shape D in them."""
    return [*levels, *(decision for level in levels if isinstance(decision := level.get("decision"), dict))]


def _enforced(levels: Sequence[dict[str, Any]]) -> list[Any]:
    return [word for part in _parts(levels) if (word := part.get("enforcement_decision")) is not None]


def _doubt(word: Word, beside: set[Word | None], said: Any, flags: dict[str, list[Any]]) -> str:
    """What stands against a decision, begun with a blank where it has a name; empty where nothing does.

    A policy that asks for a person does not: the decision is pending, or a person has approved.
    """
    if word is not Word.ALLOW:
        return " by another word" if word is Word.PENDING and Word.DENY in beside else ""
    if not beside <= {Word.ALLOW, Word.PENDING}:
        return " by another word"
    unclear = next((name for name in _FLAGS if any(not isinstance(flag, bool) for flag in flags[name])), "")
    found = f"{unclear} is neither true nor false" if unclear else objection(said, _FREE, AGREES | ASKS_A_PERSON)
    return f" ({found})" if found else ""


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
