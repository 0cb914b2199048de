"""How the sandbox judges a submission, and the four shapes in which ASCEND may say so. Used by the face in `ascend` alone.

The thresholds are the older server's: 30 and 70 for agents that nobody registered, 30 and 80 for registered ones, and at most
40 and 60 for autonomous ones. The scores and the one policy are the sandbox's own, made so that each outcome can be asked for:

- a score is the sum of what the type of action and each risk indicator weigh;
- at or above the second threshold a person decides, as with `require_approval`; below it the action is approved;
- personal data on its way outside (`pii_involved` with `external_transfer`) is denied.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agentd.sandbox._ascend_bodies import SubmitBody
from agentd.units import rfc3339

_TYPE_WEIGHTS = {"data_modification": 40, "transaction": 50, "system_operation": 60, "communication": 20}
_OTHER_TYPE = 10
_INDICATOR_WEIGHTS = {"pii_involved": 15, "financial_data": 15, "external_transfer": 25}
_SENSITIVITY_WEIGHTS = {"high": 20, "high_sensitivity": 20, "medium": 10, "medium_sensitivity": 10}
_LEVELS = ((85, "critical"), (70, "high"), (40, "medium"))
_ALERT = 70
_MAX_SCORE = 100
_POLICY = "pii-stays-inside"
_SERVER_WORD = {"pending": "pending_approval"}


class Thresholds(Struct, frozen=True):
    """Below the first: approved by itself; from the second on: a person decides."""

    auto_approve_below: int = 30
    max_risk_threshold: int = 70
    agent_type: str = "unregistered"
    is_registered: bool = False


class Judgement(Struct, frozen=True):
    """What is decided about a submission, and why."""

    decision: str  # approved, pending, denied
    reason: str
    score: int
    thresholds: Thresholds
    policies: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """The score in a word."""
        return next((word for least, word in _LEVELS if self.score >= least), "low")


def thresholds_of(agent_type: str, first: int | None, second: int | None) -> Thresholds:
    """A registered agent's thresholds; an autonomous one's are capped."""
    first, second = 30 if first is None else first, 80 if second is None else second
    if agent_type == "autonomous":
        first, second = min(first, 40), min(second, 60)
    return Thresholds(first, second, agent_type, is_registered=True)


def judge(body: SubmitBody, thresholds: Thresholds, blocked: str, forced: str) -> Judgement:
    """Decide by the rules above; `blocked` is the reason of a kill switch, `forced` a decision that a switch demands."""
    score = _score(body)
    if blocked:
        return Judgement("denied", f"blocked: {blocked}", score, thresholds)
    if forced != "rules":
        return Judgement(forced, f"the sandbox is set to {forced}", score, thresholds)
    indicators = body.risk_indicators or {}
    if indicators.get("pii_involved") and indicators.get("external_transfer"):
        return Judgement("denied", "personal data must stay inside", score, thresholds, (_POLICY,))
    if body.require_approval:
        return Judgement("pending", "approval was asked for", score, thresholds)
    if score >= thresholds.max_risk_threshold:
        return Judgement("pending", f"risk {score} needs a person's approval", score, thresholds)
    return Judgement("approved", f"risk {score} is acceptable", score, thresholds)


def _score(body: SubmitBody) -> int:
    indicators = body.risk_indicators or {}
    score = _TYPE_WEIGHTS.get(body.action_type or "", _OTHER_TYPE)
    score += sum(weight for name, weight in _INDICATOR_WEIGHTS.items() if indicators.get(name))
    score += _SENSITIVITY_WEIGHTS.get(str(indicators.get("data_sensitivity") or body.data_sensitivity), 0)
    return min(score, _MAX_SCORE)


class Action(Struct):
    """One submission, and all that became of it."""

    id: str
    sent: dict[str, Any]
    body: SubmitBody
    judgement: Judgement
    decision: str
    created_at: float
    updated_at: float
    correlation_id: str
    decides_at: float | None = None  # when it decides itself
    decided_by: str = ""
    reason: str = ""
    log: list[dict[str, Any]] = []
    completions: int = 0

    @property
    def shown_id(self) -> int | str:
        """The id as the platform writes it: a number where it is made of digits."""
        return int(self.id) if self.id.isdecimal() else self.id

    @property
    def server_status(self) -> str:
        """The older server's word for the decision."""
        return _SERVER_WORD.get(self.decision, self.decision)

    def note(self, now: float, what: str, **more: Any) -> None:
        """Write into the action's log."""
        self.updated_at = now
        self.log.append({"sequence_number": len(self.log) + 1, "at": rfc3339(now), "what": what, **more})


def submitted(action: Action, shape: str) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to a submission in one of the four shapes."""
    judgement = action.judgement
    if shape == "A":
        return 200, {
            "action_id": action.shown_id,
            "status": action.decision,
            "decision": action.decision,
            "risk_score": judgement.score,
            "reason": action.reason,
            "created_at": rfc3339(action.created_at),
        }
    if shape == "B":
        return (202 if action.decision == "pending" else 200), {"status": "success", "data": _enveloped(action)}
    if shape == "D":
        decision = {"outcome": action.decision, "reason": action.reason, "risk_score": judgement.score}
        return 200, {"action_id": action.shown_id, "decision": decision, "timestamp": rfc3339(action.created_at)}
    return 200, _flat(action)


def mcp_submitted(action: Action) -> tuple[int, dict[str, Any]]:
    """The answer about an MCP tool call; SDK 2.7.1 takes whatever is neither denied nor to be approved for allowed."""
    judgement = action.judgement
    return 200, {
        "success": action.decision != "denied",
        "action_id": action.shown_id,
        "status": action.server_status,
        "requires_approval": action.decision == "pending",
        "risk_score": judgement.score,
        "risk_level": judgement.level,
        "reason": action.reason,
    }


def foreseen(judgement: Judgement) -> dict[str, Any]:
    """The answer to a dry run, as SDK 2.7.1 reads it."""
    return {
        "decision": judgement.decision,
        "reason": judgement.reason,
        "risk_score": judgement.score,
        "matched_policies": [{"name": name, "effect": "deny"} for name in judgement.policies],
        "violations": [judgement.reason] if judgement.decision == "denied" else [],
    }


def _enveloped(action: Action) -> dict[str, Any]:
    judgement = action.judgement
    return {
        "action_id": action.shown_id,
        "decision": action.decision,
        "risk_assessment": {"risk_score": judgement.score, "risk_level": judgement.level},
        "policy_result": {"decision": action.decision, "reason": action.reason, "matched": judgement.policies},
        "timestamp": rfc3339(action.updated_at),
    }


def _flat(action: Action) -> dict[str, Any]:
    judgement = action.judgement
    pending, alert = action.decision == "pending", judgement.score >= _ALERT
    return {
        "id": action.shown_id,
        "action_id": action.shown_id,
        "status": action.server_status,
        "risk_score": float(judgement.score),
        "risk_level": judgement.level,
        "requires_approval": pending,
        "alert_triggered": alert,
        "alert_id": action.shown_id if alert else None,
        "workflow_id": f"wf_{action.id}" if pending else None,
        "policy_decision": "deny" if judgement.policies else "allow",
        "matched_policies": list(judgement.policies),
        "matched_smart_rules": [],
        "correlation_id": action.correlation_id,
        "processing_time_ms": 1,
        "thresholds": judgement.thresholds,
        "code_analysis": None,
        "message": action.reason,
    }


def denial(action: Action) -> dict[str, Any]:
    """A denial as it comes in a 403: without an action_id."""
    return {
        "error": "Governance policy violation",
        "detail": action.reason,
        "mcp_server_name": action.body.mcp_server_name,
        "model_id": action.body.model_id,
        "correlation_id": action.correlation_id,
    }


def polled(action: Action, shape: str) -> dict[str, Any]:
    """The answer to a question for the status, in the same four dialects."""
    updated = rfc3339(action.updated_at)
    if shape == "A":
        said = {"action_id": action.shown_id, "decision": action.decision, "status": action.decision}
        return said | {"updated_at": updated, "risk_score": action.judgement.score}
    if shape == "B":
        return {"status": "success", "data": _enveloped(action)}
    if shape == "D":
        by = {"approved_by": action.decided_by or None, "approved_at": updated if action.decided_by else None}
        return {"id": action.shown_id, "status": action.decision, **by}
    working = action.decision == "pending" and action.decides_at is not None
    status = "processing" if working else action.server_status
    score = float(action.judgement.score)
    return {
        "action_id": action.shown_id,
        "status": status,
        "risk_score": score,
        "timestamp": updated,
        "decision_ready": action.decision != "pending",
    }


def detail(action: Action) -> dict[str, Any]:
    """All that the platform tells of one action."""
    said = {name: action.sent.get(name) for name in _TOLD}
    said |= {"action_id": action.shown_id, "status": action.decision, "decision": action.decision}
    said |= {"risk_score": action.judgement.score}
    return said | {"created_at": rfc3339(action.created_at), "updated_at": rfc3339(action.updated_at)}


_TOLD = (
    "agent_id", "agent_name", "action_type", "resource", "resource_id", "action_details", "context", "risk_indicators",
)  # fmt: skip
