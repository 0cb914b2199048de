"""A gate as it is shown: to the agent that asked (contract §4), and with what is known of it to whoever looks it up. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from agentd.gating import Word
from agentd.spool.gaterows import GateRow, Step
from agentd.units import rfc3339


def verdict_of(gate: GateRow, trouble: str = "", *, repeated: bool = False) -> dict[str, Any]:
    """What an agent hears. `trouble`: why what is on record is not the whole truth, so that nobody may act upon it."""
    word, reason, final = gate.word, gate.reason, gate.step is Step.FINAL
    if trouble or not (final or gate.may_be_left):
        word, final = Word.UNAVAILABLE, False
        reason = trouble or _UNDER_WAY[gate.step]
    elif gate.step is Step.SENDING:
        reason = "no answer so far; the question may have reached the platform, whose answer is waited for"
    shown: dict[str, Any] = {
        "gate_id": gate.gate_id,
        "gate": gate.gate,
        "destination": gate.destination,
        "verdict": word.value,
        "proceed": final and gate.proceed,
        "id": gate.local_id,
        "platform_id": gate.platform_id,
        "reason": reason,
        "final": final,
        "response": Raw(gate.response) if gate.response else None,
    }
    if repeated:
        shown["repeated"] = True
    if final and gate.fail_open:
        shown["fail_open"] = True
    return shown


_UNDER_WAY = {
    Step.ASKED: "no verdict within the deadline; nothing was sent so far",
    Step.SENDING: "no verdict within the deadline; the question may have reached the platform",
}


def facts_of(gate: GateRow, trouble: str = "") -> dict[str, Any]:
    """The same and what else is known, for those who may see it."""
    return verdict_of(gate, trouble) | _facts(gate) | {"request": Raw(gate.request)}


def summary_of(gate: GateRow, trouble: str = "") -> dict[str, Any]:
    """The same without what may be large: the request and the platform's answer."""
    shown = verdict_of(gate, trouble) | _facts(gate)
    del shown["response"]
    return shown


def _facts(gate: GateRow) -> dict[str, Any]:
    is_final = gate.step is Step.FINAL
    return {
        "step": gate.step.value,
        "acted": gate.acted,
        "agent_id": gate.source.agent,
        "run_id": gate.run_id,
        "span_id": gate.span_id,
        "uid": gate.source.uid,
        "pid": gate.source.pid,
        "key": gate.key,
        "deadline": gate.deadline_s,
        "tries": gate.tries,
        "relayed": gate.relayed,
        "asked_at": rfc3339(gate.asked_us / 1e6),
        "decided_at": rfc3339(gate.decided_us / 1e6) if is_final else None,
        "resolved_by": gate.resolved_by,
        "note": gate.note,
    }


def payload_of(gate: GateRow, waited_s: float) -> dict[str, Any]:
    """The payload of the event `gate.<name>`."""
    heard = verdict_of(gate)
    names = ("gate_id", "gate", "destination", "verdict", "proceed", "id", "platform_id", "reason")
    payload = {name: heard[name] for name in names} | {"deadline": gate.deadline_s, "waited_ms": round(waited_s * 1e3)}
    return payload | {name: True for name in ("fail_open",) if heard.get(name)}
