"""Aegis and decide.fyi through agentd by plain HTTP, as their pages show it."""

from __future__ import annotations

import uuid

import pytest
import requests
from harness import wait_for
from sdk_world import TOKEN, Standing

FACES = ("agentos", "aegis", "decidefyi")
INTENTS = "/v1/intents"
APPROVED = {"decision": "yes", "verdict": "APPROVED", "reason_code": "ALL", "action": "approve_discount"}
RULEBOOK = {
    "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
    "input_schema": {"required": ["discount"], "properties": {"discount": {"type": "number"}}},
    "rules": [{"rule_id": "all", "condition": {"field": "discount", "operator": "gte", "value": 0}, "outcome": APPROVED}],
    "default_outcome": APPROVED,
}  # fmt: skip
QUESTION = {"mode": "rulebook", "rulebook": RULEBOOK, "context": {"inputs": {"discount": 5}, "target_system": "crm"}}
UNIT = str(uuid.uuid4())  # the agent, by the id that Aegis gave it


class Caller:
    """Plain HTTP with a local token."""

    def __init__(self, standing):
        self._url = standing.url
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {TOKEN}"

    def __call__(self, method, path, body=None, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._session.request(method, self._url + path, json=body, headers=names, timeout=20)
        return answer.status_code, answer.json()

    def close(self):
        self._session.close()


@pytest.fixture
def aegis(world):
    return Standing(world, "aegis", agents={"buyer": UNIT})


@pytest.fixture
def decide(world):
    return Standing(world, "decidefyi")


@pytest.fixture
def call(request):
    caller = Caller(request.getfixturevalue("aegis" if "aegis" in request.fixturenames else "decide"))
    yield caller
    caller.close()


# -- Aegis -------------------------------------------------------------------------------------------------------------------------


WISH = {"agentId": "buyer", "amount": 12500, "currency": "INR", "reason": "flight", "merchantCategory": "travel"}


def test_an_intent_is_asked_and_read_back(aegis, call):
    """202 and pending, then what the policy says; the agent is known by our name, and listed by it."""
    status, intent = call("POST", INTENTS, WISH)
    assert (status, intent["status"]) == (202, "pending")
    found = wait_for(lambda: _decided(call, intent["id"]), 10)
    assert (found["status"], found["policyDecision"]) == ("approved", "allow")
    status, listed = call("GET", f"{INTENTS}?agentId=buyer&limit=5")
    assert [one["id"] for one in listed["intents"]] == [intent["id"]]
    assert aegis.rows()[0]["agentId"] == UNIT
    assert len(aegis.calls("POST", INTENTS)) == 1


def _decided(call, intent_id):
    status, found = call("GET", f"{INTENTS}/{intent_id}")
    assert status == 200
    return found if found["status"] != "pending" else None


def test_an_intent_is_never_made_twice(aegis, call):
    """Lost, unreachable, no intent at all: told apart by status and code, and nothing is repeated."""
    aegis.world.platform.faults("cut,face=aegis,count=1")
    status, said = call("POST", INTENTS, WISH)
    assert (status, said["error"]["code"]) == (424, "outcome_unknown")
    assert len(aegis.calls("POST", INTENTS)) == 1
    aegis.world.platform.down()
    assert call("POST", INTENTS, WISH)[0] == 503
    aegis.world.platform.up()
    assert call("POST", INTENTS, {**WISH, "amount": "much"})[0] == 400
    assert call("POST", f"{INTENTS}/int_1/approve", {})[0] == 403
    assert len(aegis.rows()) == 1


# -- decide.fyi ----------------------------------------------------------------------------------------------------------------------


def test_from_the_question_to_the_outcome(decide, call):
    """Decided by the platform, then executed and reported: receipts at once, and the platform's own in time."""
    status, record = call("POST", "/api/decide", QUESTION, x_idempotency_key="k")
    assert (status, record["verdict"]) == (200, "yes")
    assert call("POST", "/api/decide", QUESTION, x_idempotency_key="k")[1]["decision_id"] == record["decision_id"]
    one = f"/api/decision/{record['decision_id']}"
    executed = {"execution_status": "executed", "action_taken": "approve_discount", "target_system": "crm"}
    status, receipt = call("POST", f"{one}/execution", executed, x_idempotency_key="k_execution")
    assert (status, receipt["status"], receipt["execution_status"]) == (200, "queued", "executed")
    outcome = {"outcome_status": "succeeded", "execution_receipt_id": receipt["execution_receipt_id"]}
    assert call("POST", f"{one}/outcome", outcome)[1]["outcome"]["outcome_status"] == "succeeded"
    assert call("POST", f"{one}/crm-sync", {"sync_status": "written"})[0] == 200
    assert decide.drained()["delivered"] == 3
    assert call("GET", f"{one}/execution")[1]["count"] == 1
    assert call("GET", one)[1]["decision_id"] == record["decision_id"]
    assert call("GET", f"{one}/verify")[1]["valid"]
    assert call("POST", f"{one}/replay", {"replay_mode": "historical"})[1]["match"]
    assert call("GET", "/api/decision/status")[1]["ok"]
    assert len(decide.rows()) == 1


def test_a_receipt_is_known_by_its_key(decide, call):
    """The same under one key is one receipt, also after kill -9; something else under it is refused, as by the platform."""
    _, record = call("POST", "/api/decide", QUESTION)
    path = f"/api/decision/{record['decision_id']}/execution"
    decide.world.platform.down()
    body = {"execution_status": "executed"}
    first = call("POST", path, body, x_idempotency_key="k")[1]
    decide.daemon.kill()
    decide.daemon.start()
    again = call("POST", path, body, x_idempotency_key="k")[1]
    assert again["execution_receipt_id"] == first["execution_receipt_id"]
    status, said = call("POST", path, {"execution_status": "reverted"}, x_idempotency_key="k")
    assert (status, said["error"]) == (409, "DECIDE_API_IDEMPOTENCY_CONFLICT")
    decide.world.platform.up()
    assert decide.drained()["delivered"] == 1


def test_no_verdict_is_ever_made_up(decide, call):
    """Down, lost or malformed: `c` is unclear and there is no verdict."""
    decide.world.platform.faults("cut,face=decidefyi,count=1")
    status, said = call("POST", "/api/decide", QUESTION)
    assert (status, said["c"]) == (424, "unclear")
    decide.world.platform.faults()
    decide.world.platform.down()
    status, said = call("POST", "/api/decide", QUESTION)
    assert (status, said["c"], "verdict" in said) == (503, "unclear", False)
    decide.world.platform.up()
    status, said = call("POST", "/api/decide", {**QUESTION, "verdict": "yes"})
    assert (status, said["error"]) == (422, "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN")
    assert call("POST", "/api/decision/dec_1/execution", {})[0] == 400
