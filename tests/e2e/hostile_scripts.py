"""What each face is played: records and gates under ids of their own, each a line of the tables in test_e2e_hostile_platform."""

import json
import urllib.request
import uuid
from typing import Any, NamedTuple

from harness import KEY, World


def outcome(decision: str) -> dict[str, str]:
    return {"decision": decision, "verdict": "SAID", "reason_code": f"RULE_{decision.upper()}", "action": "go_on"}


SMALL = {
    "rule_id": "small",
    "condition": {"field": "discount", "operator": "lte", "value": 10},
    "outcome": outcome("yes"),
}
RULEBOOK = {
    "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
    "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
    "rules": [SMALL], "default_outcome": outcome("no"),
}  # fmt: skip


class Step(NamedTuple):
    """A gate that is asked. `local_id` is the agent's own name for what it makes."""

    gate: str
    request: dict[str, Any]
    face: str
    local_id: str = ""


class Part(NamedTuple):
    """A face's script: gates by their name in the table, and records, some of which name what the gates made."""

    gates: dict[str, Step]
    records: dict[str, list[dict[str, Any]]]
    prior: str = ""  # a decision that decide.fyi made before


def rulebook(**inputs: Any) -> dict[str, Any]:
    context = {"inputs": inputs, "target_system": "crm", "requested_action": "approve_discount"}
    return {"mode": "rulebook", "rulebook": RULEBOOK, "context": context}


def _agentos(run: str, world: World) -> Part:
    ledger, task, lone = world.ledger, str(uuid.uuid4()), str(uuid.uuid4())
    step = {"kind": "task", "run_id": run, "task_id": task, "name": "parse"}
    gates = {
        "human_input": Step("human_input", {"prompt": f"{run}: May I?"}, "agentos"),
        "invoke": Step("invoke", {"input": {"of": run, "as": "invoke"}}, "agentos"),
        "session": Step("invoke", {"input": {"of": run, "as": "session"}, "session_id": "of-a-cookie"}, "agentos"),
    }
    records = {
        "events": ledger.events_of(run, 3, size=300),
        "span": [{"kind": "span", "run_id": run, "span_id": f"s-{run}", "name": "classify", "duration_ms": 3}],
        "task": [step | {"status": "running", "input": {"page": 1}}, step | {"status": "completed", "output": 7}],
        "lone_task": [step | {"task_id": lone, "status": "completed"}],
        "end": [ledger.end(run, output="done")],
        "late_event": [ledger.event(run, late=True)],
        "second_end": [{"kind": "run.fail", "run_id": run, "error_message": "after all"}],
    }
    return Part(gates, records)


def _aegis(run: str, _world: World) -> Part:
    spend = {"amount": 5, "currency": "USD", "reason": f"{run}: supplies"}
    gates = {
        name: Step("intent", spend | {"amount": amount}, "aegis") for name, amount in (("small", 5), ("large", 5e5))
    }
    return Part(gates, {})


def _ascend(run: str, _world: World) -> Part:
    wish = {"action_type": "data_access", "resource": "invoices", "tool_name": "sql", "description": f"{run}: read"}
    personal = {"risk_indicators": {"pii_involved": True, "external_transfer": True}}
    gates = {
        "action": Step("action", wish, "ascend", f"a-{run}"),
        "pii": Step("action", wish | personal, "ascend", f"p-{run}"),
        "approval": Step("action", wish | {"require_approval": True}, "ascend", f"w-{run}"),
        "bare": Step("action", {"action_type": "data_access"}, "ascend", f"b-{run}"),
    }
    records = {
        "completed": [{"kind": "action.completed", "action_id": f"a-{run}", "result": {"rows": 3}, "duration_ms": 7}],
        "failed": [{"kind": "action.failed", "action_id": f"w-{run}", "error": "no such table"}],
        "heartbeat": [{"kind": "heartbeat", "agent_id": f"bot-{run}", "metrics": {"requests_count": 3}}],
    }
    return Part(gates, records)


def _decidefyi(run: str, world: World) -> Part:
    gates = {
        "yes": Step("decide", rulebook(discount=5), "decidefyi", f"d-{run}"),
        "no": Step("decide", rulebook(discount=50), "decidefyi", f"n-{run}"),
        "lacking": Step("decide", rulebook(), "decidefyi", f"l-{run}"),
        "question": Step("decide", {"question": f"{run}: may I?"}, "decidefyi", f"q-{run}"),
    }
    prior = call(world, "/decidefyi/api/decide", rulebook(discount=1))["decision_id"]
    records = {
        "execution": [{"kind": "execution", "decision_id": f"d-{run}", "execution_status": "executed"}],
        "outcome": [{"kind": "outcome", "decision_id": prior, "outcome_status": "succeeded"}],
        "crm_sync": [{"kind": "crm_sync", "decision_id": prior, "sync_status": "written", "field_mapping": {"a": "b"}}],
    }
    return Part(gates, records, prior)


def _decisionos(run: str, _world: World) -> Part:
    made = {"kind": "decision", "context": f"{run}: route", "options": ["eng", "billing"], "run_id": run}
    gates = {
        "policy": Step(
            "decision", {"context": f"{run}: ask", "options": ["eng"], "chosen": "eng"}, "decisionos", f"g-{run}"
        )
    }
    records = {
        "decision": [made | {"decision_id": f"l-{run}", "chosen": "eng", "confidence": 0.9}],
        "no_option": [made | {"chosen": "sales"}],
        "snapshot": [{"kind": "snapshot", "decision_id": f"l-{run}", "snapshot": {"prompt": "…"}}],
        "of_gate": [{"kind": "snapshot", "decision_id": f"g-{run}", "snapshot": {"prompt": "…"}}],
    }  # fmt: skip
    return Part(gates, records)


SCRIPTS = {"agentos": _agentos, "aegis": _aegis, "ascend": _ascend, "decidefyi": _decidefyi, "decisionos": _decisionos}
IDS = {"action": "action_id", "decide": "decision_id", "decision": "decision_id"}  # the gate's field for the local id
AFTER_END = ("end", "late_event", "second_end")


def call(world: World, path: str, body: Any = None) -> Any:
    """What somebody else asks of a platform, with the same key."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(world.platform.url + path, data, headers), timeout=10) as answer:
        return json.load(answer)
