"""What in an answer speaks against the yes that it gives: a flag, a policy's word, an error, at whatever depth.

Platforms add fields, and a no may stand in one that no source has. So every member is looked at whose name means permission or
failure, in either spelling (`policy_decision`, `policyDecision`): a policy and a flag have to say what is known to agree, an error
has to be empty, and what merely sounds like a verdict must not be a known no. What a reader does not know counts as a no.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Words are compared without case, blanks, hyphens and underscores.
AGREES = frozenset(
    {
        "accept", "accepted", "allow", "allowed", "allows", "approve", "approved", "approves", "authorized", "autoapproved",
        "executed", "grant", "granted", "ok", "pass", "passed", "permit", "permitted", "succeeded", "success", "true", "yes",
    }
)  # fmt: skip
ASKS_A_PERSON = frozenset(
    {
        "escalate", "escalated", "humanreview", "manualreview", "needsapproval", "needsreview", "pending", "pendingapproval",
        "requireapproval", "requirereview", "requiresapproval", "requiresreview", "review",
    }
)  # fmt: skip

_FLAGS = frozenset(
    {
        "accepted", "allow", "allowed", "allows", "approved", "authorised", "authorized", "canexecute", "canproceed",
        "executionallowed", "granted", "isallowed", "isapproved", "isauthorized", "ispermitted", "issuccess", "mayproceed", "ok",
        "permit", "permitted", "proceed", "shouldproceed", "succeeded", "success", "successful",
    }
)  # fmt: skip
_POLICIES = frozenset({"policydecision", "policyoutcome", "policyresult", "policystatus", "policyverdict"})
_VERDICTS = frozenset(
    {
        "authorization", "decision", "disposition", "effect", "enforcementdecision", "judgement", "judgment", "outcome", "permission",
        "result", "ruling", "status", "verdict",
    }
)  # fmt: skip
_BARS = frozenset(
    {
        "blocked", "codeblocked", "denied", "disallowed", "failed", "forbidden", "isblocked", "isdenied", "iserror", "isfailed",
        "isrejected", "prohibited", "refused", "rejected", "revoked", "toolblocked",
    }
)  # fmt: skip
_FAILURES = frozenset(
    {
        "blockreason", "denialreason", "deniedby", "error", "errorcode", "errordetail", "errordetails", "errormessage", "errors",
        "errortype", "exception", "failure", "failurereason", "failures", "fault", "policyviolations", "rejectedby",
        "rejectionreason", "violation", "violations",
    }
)  # fmt: skip
_REFUSES = frozenset(
    {
        "block", "blocked", "decline", "declined", "denied", "denies", "deny", "disallow", "disallowed", "fail", "failed", "failure",
        "forbid", "forbidden", "prohibited", "refuse", "refused", "reject", "rejected", "revoked", "unauthorised", "unauthorized",
    }
)  # fmt: skip
_NO = _REFUSES | frozenset(
    {
        "abort", "aborted", "blocks", "canceled", "cancelled", "error", "errored", "expired", "false", "halted", "invalid", "no",
        "notallowed", "notapproved", "notauthorized", "notok", "notpermitted", "rejects", "stopped", "voided",
    }
)  # fmt: skip
_TURNS = frozenset({"no", "non", "not"})  # "not_blocked" is no block


def objection(said: Any, free: frozenset[str] = frozenset(), agrees: frozenset[str] = AGREES) -> str:
    """The first member, the outermost first, that does not go with a yes, as its name and value; empty where none objects.

    `free` are the members (in plain spelling) whose content is in somebody's own words: the client's, an author's. `agrees` are
    the words with which policies and flags agree.
    """
    parts: list[tuple[Any, bool]] = [(said, False)]
    for part, is_policys in parts:  # grows while it is gone through
        if isinstance(part, list):
            parts += [(inner, is_policys) for inner in part if isinstance(inner, dict | list)]
        elif isinstance(part, dict):
            for name, value in part.items():
                plain = _plain(name)
                if plain in free:
                    continue
                if _objects(plain, value, agrees, is_policys=is_policys):
                    return f"{name[:64]} {_shown(value)}"
                if isinstance(value, dict | list):
                    parts.append((value, is_policys or plain in _POLICIES or plain in _FLAGS))
    return ""


def refuses(word: Any) -> bool:
    """Whether a value is a known no: such a word, false, or zero."""
    if not isinstance(word, str):
        return isinstance(word, int | float) and not word
    if _plain(word) in _NO:
        return True
    tokens = set(word.casefold().replace("-", "_").replace(" ", "_").split("_"))
    return bool(tokens & _REFUSES) and not tokens & _TURNS


def agree(word: Any, agrees: Iterable[str] = AGREES) -> bool:
    """Whether a value is a known yes, or none at all: true, null, one of the words."""
    return word is None or word is True or (isinstance(word, str) and _plain(word) in agrees)


def _objects(name: str, value: Any, agrees: frozenset[str], *, is_policys: bool) -> bool:
    if name in _FAILURES:
        return value not in (None, "", [], {})
    if name in _BARS:
        return value not in (None, False, "", [], {})
    if name in _FLAGS or name in _POLICIES or (is_policys and name in _VERDICTS):
        return not isinstance(value, dict) and not agree(value, agrees)  # an object is judged by its members
    if name in _VERDICTS:
        return refuses(value)
    return is_policys and isinstance(value, str) and _plain(value) in _NO  # under whatever name; a reason is prose


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", "").replace("-", "").replace(" ", "")


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str | bool | int | float) else f"of type {type(value).__name__}"
