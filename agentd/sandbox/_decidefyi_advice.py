"""The advisory modes of `/api/decide`: `single`, `multi` and `runtime`, whose answers bind nobody. Pure; no AI is asked.

Sources: `api/decide.js` of https://github.com/decidefyi/decide for the choice of a mode, the answers to unusable and to refused
questions, the failures of the AI provider and their codes. The words by which it knows a topic that it refuses are not known: here
a short list. Used by the face in `decidefyi` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from agentd.sandbox._decidefyi_bodies import Refused

Ai = Literal[
    "ok", "invalid_response", "timeout", "rate_limited", "rejected", "unavailable",
    "disabled", "misconfigured", "budget_exhausted", "budget_unavailable",
]  # fmt: skip
MODES = ("rulebook", "single", "multi", "runtime")
_LEAST_QUESTION = 3  # characters
_OPTIONS = range(2, 9)
_RETRY_S = 60
_REFUSED_TOPICS = re.compile(
    r"\b(invest\w*|stocks?|crypto\w*|mortgage|medic\w*|diagnos\w*|symptoms?|dosage|doctor|legal\w*|lawsuit|lawyer|sue)\b",
    re.IGNORECASE,
)
_WORDS = {
    "yes": frozenset({"yes", "approve", "allow", "pass"}),
    "no": frozenset({"no", "deny", "block", "reject"}),
}


def mode_of(request: Mapping[str, Any]) -> str:
    """The mode asked for; where none is, options or a `|` in the question make it `multi`. Raises Refused.

    A rulebook that says that it is one is evaluated, whatever the mode says.
    """
    mode, rulebook = request.get("mode"), request.get("rulebook")
    if isinstance(rulebook, dict) and rulebook.get("schema_version") == "rulebook_v1":
        return "rulebook"
    if mode is None:
        return "multi" if "options" in request or "|" in str(request.get("question", "")) else "single"
    if mode not in MODES:
        raise Refused(400, "DECIDE_API_INVALID_REQUEST", f"mode must be one of {', '.join(MODES)}")
    return str(mode)


def verdict_word(text: str) -> str:
    """Any verdict word as yes, no or review; what is not known is review."""
    folded = text.strip().lower()
    return next((verdict for verdict, words in _WORDS.items() if folded in words), "review")


def unusable(request: Mapping[str, Any], mode: str) -> dict[str, Any] | None:
    """The answer to a question that can't be or is not to be answered: HTTP 200, and no verdict."""
    question = request.get("question", "")
    if not isinstance(question, str) or len(question.strip()) < _LEAST_QUESTION:
        return {"c": "unclear", "v": "Ask a question"}
    if mode == "multi" and len(options_of(request)) not in _OPTIONS:
        return {"c": "unclear", "v": "Need 2-8 options"}
    if _REFUSED_TOPICS.search(question):
        return {"c": "filtered", "v": "Not available for finance, medical or legal questions"}
    return None


def options_of(request: Mapping[str, Any]) -> list[str]:
    """What there is to choose from: `options`, else the parts of the question between `|`."""
    options = request.get("options")
    if isinstance(options, list):
        return [option for option in options if isinstance(option, str) and option.strip()]
    question = str(request.get("question", ""))
    return [part.strip() for part in question.split("|") if part.strip()] if "|" in question else []


def failure(ai: Ai) -> dict[str, Any] | None:
    """The answer while the AI provider fails, None while it works. Raises Refused where the answer is no 200."""
    match ai:
        case "ok":
            return None
        case "disabled":
            raise Refused(503, "DECIDE_AI_DISABLED_ZERO_COST", "AI is switched off")
        case "misconfigured":
            raise Refused(503, "DECIDE_AI_CONFIGURATION_INVALID", "AI is not configured")
        case "budget_exhausted":
            raise Refused(429, "DECIDE_AI_BUDGET_EXHAUSTED", "the AI budget is used up", retry_after=_RETRY_S)
        case "budget_unavailable":
            raise Refused(503, "DECIDE_AI_BUDGET_UNAVAILABLE", "the AI budget can't be read", retryable=True)
        case _:
            retryable = ai in {"timeout", "rate_limited", "unavailable"}
            code = f"DECIDE_AI_PROVIDER_{ai.upper()}"
            return {"status": "degraded", "c": "unclear", "v": "try again", "error": code, "retryable": retryable}


def advice(request: Mapping[str, Any], mode: str, word: str) -> dict[str, Any]:
    """The outcome of an advisory mode: `word`, or in `multi` the first option."""
    chosen = options_of(request)[0] if mode == "multi" else word
    return {
        "verdict": verdict_word(chosen),
        "c": chosen,
        "v": chosen,
        "application_verdict": "ADVISORY",
        "action": "review_advice",
        "reason_code": "ADVISORY_ONLY",
        "matched_rule_id": None,
        "evidence": [],
        "evidence_manifest": {"codes": [], "sources": []},
    }
