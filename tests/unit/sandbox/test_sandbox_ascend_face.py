"""ASCEND's face without sockets: how it judges, the four shapes of its answers, agents, and what a person may do."""

from __future__ import annotations

import hashlib
import hmac
import json

import msgspec
import pytest

from agentd.errors import UsageError
from agentd.sandbox import AscendSwitches, Call, Emulation
from agentd.sandbox.faults import PASS
from agentd.sandbox.inspection import inspect
from agentd.sandbox.pages import run_page

SUBMISSION = {"agent_id": "bot", "agent_name": "Bot", "action_type": "query", "resource": "orders"}
REVIEW = SUBMISSION | {"require_approval": True}
JWT = {"Authorization": "Bearer head.claims.signature"}


class Face:
    """A client of one face whose clock the test holds."""

    def __init__(self, *switches):
        self.now = 1000.0
        self.emulation = Emulation(
            ["ascend"], switches=[f"ascend.{switch}" for switch in switches], wall=lambda: self.now
        )
        self.face = self.emulation.faces["ascend"]

    def ask(self, method, path, body=None, *, raw=None, headers=None):
        """Status, headers and decoded body."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        call = Call(method, path, {"X-API-Key": "k"} if headers is None else headers, data, query, self.now)
        answer = self.emulation.answer(self.face, call, PASS)
        return answer.status, answer.headers, msgspec.json.decode(answer.body)

    def post(self, path, body=None, **more):
        status, _, said = self.ask("POST", path, body, **more)
        return status, said

    def get(self, path, **more):
        status, _, said = self.ask("GET", path, **more)
        return status, said

    def submit(self, **fields):
        return self.post("/api/v1/actions/submit", SUBMISSION | fields)[1]

    def pending(self):
        return str(self.submit(require_approval=True)["action_id"])

    def decision(self, **fields):
        return self.submit(**fields)["decision"]

    def details(self):
        return self.emulation.state().faces["ascend"]["details"]

    def person(self, item_id, verb):
        answer = inspect(self.emulation, "POST", f"/_sandbox/act/ascend/{item_id}/{verb}", "", b"")
        return answer.status


# -- submissions: required fields and validation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "required"),
    [
        ("doc", ["agent_id", "agent_name", "action_type", "resource"]),
        ("minimal", ["agent_id", "action_type"]),
        ("server", ["agent_id", "action_type", "description", "tool_name"]),
    ],
)
def test_required_fields_in_three_variants(variant, required):
    """Switch required_fields: exactly the fields of the variant must be there, and the refusal names the missing one."""
    face = Face(f"required_fields={variant}")
    whole = dict.fromkeys(required, "query")
    assert face.post("/api/v1/actions/submit", whole)[0] == 200
    for name in required:
        less = {key: value for key, value in whole.items() if key != name}
        for body in (less, less | {name: None}):
            status, said = face.post("/api/v1/actions/submit", body)
            assert (status, said["detail"]) == (422, f"Missing required fields: {name}")
    assert face.details()["actions"] == 1


def test_the_nested_tool_name_does_not_count():
    """The older server wants tool_name and description at the top; inside action_details it does not see them."""
    face = Face("required_fields=server")
    status, said = face.post(
        "/api/v1/actions/submit", SUBMISSION | {"action_details": {"tool_name": "t", "description": "d"}}
    )
    assert (status, said["detail"]) == (422, "Missing required fields: description, tool_name")


def test_the_status_of_a_missing_field_is_a_switch():
    """Documents disagree on 400 and 422; the older server says 422."""
    assert Face("missing_field=400").post("/api/v1/actions/submit", {})[0] == 400
    assert Face("missing_field=400", "required_fields=server").post("/api/v1/actions/submit", {})[0] == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"\xff", 400), (b"[]", 422), (b"[" * 100_000, 400), (json.dumps(SUBMISSION | {"orchestration_depth": 6}).encode(), 422),
        (json.dumps(SUBMISSION | {"orchestration_depth": -1}).encode(), 422), (json.dumps(SUBMISSION | {"context": []}).encode(), 422),
        (json.dumps(SUBMISSION | {"agent_id": 5}).encode(), 422), (json.dumps(SUBMISSION | {"action_type": "anything"}).encode(), 422),
    ],
)  # fmt: skip
def test_wrong_submissions(body, status):
    """What is no JSON is 400, what has a wrong type, depth or word is 422, and no action comes of it."""
    face = Face()
    assert face.post("/api/v1/actions/submit", raw=body)[0] == status
    assert face.details()["actions"] == 0


def test_free_words_for_an_action_outside_the_documented_variant():
    """The list of action types is closed by the documentation alone."""
    for variant in ("minimal", "server"):
        face = Face(f"required_fields={variant}")
        assert "action_id" in face.submit(action_type="anything", description="d", tool_name="t")


def test_nobody_scores_himself():
    """risk_score and risk_level of a submission are not looked at."""
    assert Face().submit(risk_score=100, risk_level="critical")["risk_score"] == 10


# -- decisions -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "decision"),
    [
        ({}, "approved"), ({"require_approval": True}, "pending"), ({"action_type": "transaction"}, "approved"),
        ({"action_type": "transaction", "risk_indicators": {"external_transfer": True}}, "pending"),
        ({"risk_indicators": {"external_transfer": True, "pii_involved": True}}, "denied"),
        ({"action_type": "system_operation", "risk_indicators": {"data_sensitivity": "high"}}, "pending"),
    ],
)  # fmt: skip
def test_each_outcome_can_be_asked_for(fields, decision):
    """The rules: thresholds by score, a policy that denies, approval on request."""
    assert Face().decision(**fields) == decision


def test_thresholds_depend_on_the_agent():
    """Unregistered 30/70, registered 30/80, autonomous at most 40/60: the same score, three outcomes."""
    face = Face("response_shape=C")
    for agent_type in ("supervised", "autonomous"):
        registration = {"agent_id": agent_type, "display_name": "x", "agent_type": agent_type}
        assert face.post("/api/registry/agents", registration)[0] == 201

    def submit(agent, action_type, **indicators):
        return face.submit(agent_id=agent, action_type=action_type, risk_indicators=indicators)

    seventy_five = [submit(agent, "transaction", external_transfer=True) for agent in ("bot", "supervised")]
    assert [said["status"] for said in seventy_five] == ["pending_approval", "approved"]
    sixty = [submit(agent, "system_operation") for agent in ("bot", "autonomous")]
    assert [said["status"] for said in sixty] == ["approved", "pending_approval"]
    assert sixty[1]["thresholds"] == {
        "auto_approve_below": 30, "max_risk_threshold": 60, "agent_type": "autonomous", "is_registered": True,
    }  # fmt: skip


@pytest.mark.parametrize("decision", ["approved", "denied", "pending"])
def test_a_switch_decides(decision):
    """Switch decision: every submission has the outcome that a test wants."""
    assert Face(f"decision={decision}").decision() == decision


def test_nothing_is_idempotent():
    """A repeated submission is another action, whatever keys it bears."""
    face = Face()
    ids = {
        face.post("/api/v1/actions/submit", SUBMISSION, headers={"X-API-Key": "k", "Idempotency-Key": "i"})[1][
            "action_id"
        ]
        for _ in range(3)
    }
    assert len(ids) == 3


# -- shapes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("switch", "kind"), [("int", int), ("string", str)])
@pytest.mark.parametrize("shape", ["A", "B", "C", "D"])
def test_ids_are_numbers_or_texts_in_every_shape(shape, switch, kind):
    """Switch id_type: an int, or act_ and hex; the same id answers for the action afterwards."""
    face = Face(f"response_shape={shape}", f"id_type={switch}")
    said = face.submit()
    action_id = (said["data"] if shape == "B" else said)["action_id"]
    assert type(action_id) is kind
    assert kind is int or action_id.startswith("act_")
    assert face.get(f"/api/v1/actions/{action_id}")[1]["action_id"] == action_id


def test_the_documented_shape():
    """Shape A is flat: id, status and decision in the same word, a whole score, a reason, a time."""
    said = Face().submit()
    assert set(said) == {"action_id", "status", "decision", "risk_score", "reason", "created_at"}
    assert (said["status"], said["decision"], type(said["risk_score"])) == ("approved", "approved", int)


def test_the_enveloped_shape():
    """Shape B: the outer status is not the decision, and what is pending is 202."""
    face = Face("response_shape=B")
    status, said = face.post("/api/v1/actions/submit", REVIEW)
    assert (status, said["status"], said["data"]["decision"]) == (202, "success", "pending")
    assert set(said["data"]) == {"action_id", "decision", "risk_assessment", "policy_result", "timestamp"}
    assert face.post("/api/v1/actions/submit", SUBMISSION)[0] == 200


def test_the_older_servers_shape():
    """Shape C: id twice, pending_approval, a float, a workflow, and no decision at all."""
    face = Face("response_shape=C", "id_type=int")
    status, said = face.post("/api/v1/actions/submit", REVIEW)
    assert (status, said["id"], said["action_id"], said["status"]) == (200, 1, 1, "pending_approval")
    assert "decision" not in said
    assert (said["requires_approval"], said["workflow_id"], said["risk_score"]) == (True, "wf_1", 10.0)


def test_the_decision_as_an_object():
    """Shape D: the decision is an object with outcome and reason."""
    said = Face("response_shape=D").submit()
    assert said["decision"]["outcome"] == "approved"
    assert said["decision"]["reason"]


def test_a_denial_in_a_403():
    """Switch governance_403: a denial is a 403 whose detail is an object about governance, without an id; the row is there."""
    face = Face("governance_403=on", "decision=denied", "error_envelope=enveloped")
    status, said = face.post("/api/v1/actions/submit", SUBMISSION | {"model_id": "m"})
    assert status == 403
    assert set(said) == {"detail"}
    assert "overnance" in said["detail"]["error"]
    assert (said["detail"]["model_id"], "action_id" in said["detail"]) == ("m", False)
    assert face.details()["actions_by_decision"] == {"denied": 1}
    face.emulation.throw("ascend.decision=approved")
    assert face.post("/api/v1/actions/submit", SUBMISSION)[0] == 200


# -- status, lists and approval --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        ("A", {"decision": "pending", "status": "pending"}, {"decision": "approved", "status": "approved"}),
        ("C", {"status": "processing", "decision_ready": False}, {"status": "approved", "decision_ready": True}),
        ("D", {"status": "pending", "approved_by": None}, {"status": "approved", "approved_by": "delay"}),
    ],
)
def test_a_decision_after_a_delay(shape, before, after):
    """Switch decision_delay: what is pending decides itself after so long, in the words of each shape."""
    face = Face(f"response_shape={shape}", "decision_delay=5s")
    action_id = face.pending()
    for seconds, expected in ((0.0, before), (4.9, before), (5.0, after)):
        face.now = 1000.0 + seconds
        said = face.get(f"/api/v1/actions/{action_id}/status")[1]
        assert {name: said[name] for name in expected} == expected


def test_a_delayed_decision_may_be_a_denial_and_a_person_may_be_first():
    """Switch delayed_decision; what a person has decided meanwhile stands."""
    face = Face("decision_delay=5", "delayed_decision=denied")
    left, decided = face.pending(), face.pending()
    assert face.person(decided, "approve") == 200
    face.now += 60
    assert face.get(f"/api/v1/actions/{left}/status")[1]["status"] == "denied"
    assert face.get(f"/api/v1/actions/{decided}/status")[1]["status"] == "approved"


def test_without_a_delay_it_waits_for_a_person():
    """Pending stays pending; in the older server's words that is pending_approval and not ready."""
    face = Face("response_shape=C")
    action_id = face.pending()
    face.now += 1e6
    said = face.get(f"/api/v1/actions/{action_id}/status")[1]
    assert (said["status"], said["decision_ready"]) == ("pending_approval", False)


@pytest.mark.parametrize(("verb", "decision"), [("approve", "approved"), ("reject", "denied")])
def test_approval_is_a_persons(verb, decision):
    """Approve and reject take a user's token and nothing else, and decide what is pending once."""
    face = Face()
    action_id = face.pending()
    path = f"/api/v1/actions/{action_id}/{verb}"
    status, said = face.post(path, {"reason": "because"})
    assert (status, said["error_code"]) == (401, "INVALID_TOKEN")
    assert face.post(path, {"reason": "because"}, headers=JWT)[1]["decision"] == decision
    status, said = face.post(path, headers=JWT)
    assert (status, said["error_code"]) == (400, "INVALID_STATE")
    assert face.post("/api/v1/actions/nosuch/approve", headers=JWT)[0] == 404


@pytest.mark.parametrize(("verb", "decision"), [("approve", "approved"), ("deny", "denied")])
def test_workflows_are_decided_by_a_user(verb, decision):
    """The workflow that shape C names is approved or denied by a user's token."""
    face = Face("response_shape=C")
    flow = face.submit(require_approval=True)["workflow_id"]
    assert face.post(f"/api/governance/workflows/{flow}/{verb}")[0] == 401
    assert face.post(f"/api/governance/workflows/{flow}/{verb}", headers=JWT)[1]["status"] == decision


def test_the_approval_view_takes_numbers():
    """GET /api/sdk/approval: a non-numeric id is 400, an unknown one 404; a denial reads rejected, with who and why."""
    face = Face("id_type=int")
    action_id = face.pending()
    assert face.get(f"/api/sdk/approval/{action_id}")[1]["status"] == "pending"
    face.post(f"/api/v1/actions/{action_id}/reject", {"reason": "too dear"}, headers=JWT)
    said = face.get(f"/api/sdk/approval/{action_id}")[1]
    assert (said["status"], said["rejected_by"], said["rejection_reason"]) == ("rejected", "user", "too dear")
    assert said["approved_by"] is None
    assert [face.get(f"/api/sdk/approval/{key}")[0] for key in ("act_1", "fail_open_1", "99")] == [400, 400, 404]


def test_lists():
    """Switch list_shape: an object with total, limit and offset, or a bare array with status_filter; newest first."""
    face = Face("id_type=int")
    for _ in range(3):
        face.submit()
    face.pending()
    said = face.get("/api/v1/actions?limit=2&offset=1")[1]
    assert ([each["action_id"] for each in said["actions"]], said["total"], said["limit"], said["offset"]) == (
        [3, 2],
        4,
        2,
        1,
    )
    assert face.get("/api/v1/actions?status=pending")[1]["total"] == 1
    assert face.get("/api/agent-activity?agent_id=nobody")[1]["total"] == 0
    assert face.get("/api/v1/actions")[1]["limit"] == 50
    assert face.get("/api/v1/actions?limit=x")[0] == 422
    face.emulation.throw("ascend.list_shape=array")
    assert [each["action_id"] for each in face.get("/api/v1/actions?status_filter=pending_approval")[1]] == [4]
    assert len(face.get("/api/v1/actions?status=pending")[1]) == 4


def test_detail_and_the_legacy_status():
    """The detail has what was submitted; the legacy status refuses X-API-Key and takes a bearer."""
    face = Face()
    action_id = face.submit(context={"session_id": "s"}, resource_id="r")["action_id"]
    said = face.get(f"/api/v1/actions/{action_id}")[1]
    assert (said["context"], said["resource_id"], said["agent_name"]) == ({"session_id": "s"}, "r", "Bot")
    status, said = face.get("/api/v1/actions/nosuch/status")
    assert (status, said["error_code"]) == (404, "ACTION_NOT_FOUND")
    legacy = f"/api/agent-action/status/{action_id}"
    assert face.get(legacy)[0] == 401
    assert face.get(legacy, headers={"Authorization": "Bearer k"})[0] == 200


# -- completion --------------------------------------------------------------------------------------------------------------------

DONE = {"status": "completed", "completed_at": "2026-01-01T00:00:00Z"}
FAILED = {"status": "failed", "failed_at": "2026-01-01T00:00:00Z", "error": "boom"}


def test_completion_and_failure_by_the_sdks_route():
    """The action's log has what was sent; the id of body and path must agree; an action nobody knows is 404."""
    face = Face()
    action_id = face.submit()["action_id"]
    complete, fail = (f"/api/agent-action/{action_id}/{verb}" for verb in ("complete", "fail"))
    assert face.post(complete, DONE | {"action_id": action_id, "result": {"rows": 3}})[0] == 200
    assert face.post(fail, FAILED | {"action_id": action_id, "error": {"code": 1}})[0] == 200
    log = face.emulation.run(action_id)["events"]
    assert [line["what"] for line in log] == ["submitted", "completed", "failed"]
    assert log[1]["said"]["result"] == {"rows": 3}
    assert face.post(complete, DONE | {"action_id": "other"})[0] == 400
    assert face.post(complete, {"action_id": action_id})[0] == 422
    assert face.post(complete, FAILED | {"action_id": action_id})[0] == 422
    assert face.post(fail, FAILED | {"action_id": action_id, "error": ["no"]})[0] == 422
    assert face.post("/api/agent-action/act_0/complete", DONE | {"action_id": "act_0"})[0] == 404


def test_a_repeated_completion_is_one_more_log_entry():
    """Nothing is idempotent here: a repeat is logged again, and counted as a duplicate."""
    face = Face()
    action_id = face.submit()["action_id"]
    for _ in range(3):
        assert face.post(f"/api/agent-action/{action_id}/complete", DONE | {"action_id": action_id})[0] == 200
    assert (face.emulation.state().duplicates, face.details()["completions"]) == (2, 3)


def test_completion_by_the_older_route():
    """Numeric ids only; the error is a string; a number that names no action is still 200 and shown as a stray."""
    face = Face("completion_routes=server", "id_type=int")
    action_id = face.submit()["action_id"]
    status, said = face.post(f"/api/sdk/action/{action_id}/completed", {})
    assert (status, set(said), said["action_id"]) == (200, {"action_id", "status", "logged_at"}, action_id)
    assert face.post(f"/api/sdk/action/{action_id}/failed", {"error": {"code": 1}})[0] == 422
    assert face.post(f"/api/sdk/action/{action_id}/failed", {})[0] == 422
    for odd in ("act_7", "fail_open_7", "7a", "%C2%B2"):
        assert face.post(f"/api/sdk/action/{odd}/completed", {})[0] == 400
    assert face.post("/api/sdk/action/99/failed", {"error": "x"})[0] == 200
    assert face.details()["stray_completions"] == 1
    assert face.emulation.run("stray:99")["events"][0]["said"] == {"error": "x"}
    assert face.get("/api/v1/actions/99")[0] == 404


@pytest.mark.parametrize(("routes", "sdk", "server"), [("sdk", 200, 404), ("server", 404, 200), ("both", 200, 200)])
def test_which_completion_routes_there_are(routes, sdk, server):
    """Switch completion_routes: a route that is not there is FastAPI's own 404, whatever the envelope."""
    face = Face(f"completion_routes={routes}", "id_type=int", "error_envelope=enveloped")
    face.submit()
    answers = [
        face.post("/api/agent-action/1/complete", DONE | {"action_id": "1"}),
        face.post("/api/sdk/action/1/completed", {}),
    ]
    assert [status for status, _ in answers] == [sdk, server]
    assert all(said == {"detail": "Not Found"} for status, said in answers if status == 404)


# -- agents, heartbeats, kill switch ---------------------------------------------------------------------------------------------------


def test_registration_is_upsert_like():
    """201 both times, with created true and then false; the agent is a draft until somebody activates it."""
    face = Face()
    body = {"agent_id": "bot", "display_name": "Bot"}
    status, said = face.post("/api/registry/agents", body)
    assert (status, said["created"], said["agent"]["status"]) == (201, True, "draft")
    status, said = face.post("/api/registry/agents", body | {"display_name": "Other"})
    assert (status, said["created"], said["agent"]["display_name"]) == (201, False, "Bot")
    assert face.person("agent:bot", "activate") == 200
    status, _, said = face.ask("PUT", "/api/registry/agents/bot", {"display_name": "New", "agent_id": "else"})
    assert (said["agent"]["agent_id"], said["agent"]["display_name"], said["agent"]["status"]) == (
        "bot",
        "New",
        "active",
    )
    assert [face.ask("DELETE", "/api/registry/agents/bot")[0] for _ in range(2)] == [200, 404]


@pytest.mark.parametrize(
    "wrong", [{"agent_id": "ab"}, {"agent_id": "a" * 65}, {"display_name": "x" * 256}, {"agent_type": "rogue"}, {"max_risk_threshold": 101}]
)  # fmt: skip
def test_wrong_registrations(wrong):
    """3 to 64 characters of id, at most 255 of name, known types, thresholds from 0 to 100."""
    assert Face().post("/api/registry/agents", {"agent_id": "abc", "display_name": "x"} | wrong)[0] == 422


def test_ten_registrations_a_minute():
    """The eleventh within a minute is 429 with Retry-After."""
    face = Face()
    for number in range(10):
        assert face.post("/api/registry/agents", {"agent_id": f"bot-{number}", "display_name": "x"})[0] == 201
    status, headers, _ = face.ask("POST", "/api/registry/agents", {"agent_id": "bot-10", "display_name": "x"})
    assert (status, headers["Retry-After"]) == (429, "61")
    face.now += 60
    assert face.post("/api/registry/agents", {"agent_id": "bot-10", "display_name": "x"})[0] == 201


def beat(**fields):
    return {"agent_id": "bot", "error_rate": 0.5, "metrics": {"error_rate": 0.1}} | fields


@pytest.mark.parametrize(("read", "rate"), [("nested", 0.1), ("flat", 0.5), ("both", 0.1)])
def test_which_metrics_are_read(read, rate):
    """Switch heartbeat_metrics: the server reads nested ones and loses flat ones, or the other way round, or has both."""
    face = Face(f"heartbeat_metrics={read}")
    status, said = face.post("/api/agents/health/heartbeat", beat())
    assert (status, said["success"], said["heartbeat_interval_seconds"]) == (200, True, 60)
    assert face.get("/api/agents/health/bot")[1]["metrics"] == {"error_rate": rate}
    assert face.get("/api/agents/health/nobody")[0] == 404


@pytest.mark.parametrize(
    "wrong",
    [{"error_rate": 1.5}, {"metrics": {"error_rate": -1}}, {"agent_id": ""}, {"requests_count": "x"}, {"metrics": 5}],
)
def test_wrong_heartbeats(wrong):
    """A share lies between 0 and 1, a count is a number, and an agent has a name."""
    assert Face().post("/api/agents/health/heartbeat", beat(**wrong))[0] == 422


def test_three_missed_heartbeats():
    """An agent is healthy for three intervals after its last heartbeat, and unhealthy then."""
    face = Face()
    face.post("/api/agents/health/heartbeat", beat())
    states = []
    for seconds in (0, 180, 181):
        face.now = 1000.0 + seconds
        states.append(face.get("/api/agents/health/bot")[1]["health_status"])
    assert states == ["healthy", "healthy", "unhealthy"]


def test_a_batch_of_heartbeats():
    """An array, of which the first 50 count and the rest is ignored in silence; anything else is refused."""
    face = Face()
    status, said = face.post("/api/agents/health/heartbeat/batch", [beat(agent_id=f"bot-{n}") for n in range(53)])
    assert (status, said["processed"], len(said["results"])) == (200, 50, 50)
    assert (face.details()["heartbeats"], face.details()["ignored_heartbeats"]) == (50, 3)
    assert face.post("/api/agents/health/heartbeat/batch", beat())[0] == 422


def test_unregistered_agents_may_be_refused():
    """Switch unregistered: a heartbeat is then 200 with success false, and a submission 403 without governance."""
    face = Face("unregistered=refuse")
    status, said = face.post("/api/agents/health/heartbeat", beat())
    assert (status, said["success"]) == (200, False)
    assert said["error"]
    assert face.details()["refused_heartbeats"] == 1
    status, said = face.post("/api/v1/actions/submit", SUBMISSION)
    assert (status, said["detail"]) == (403, "Agent must be registered first")
    assert face.details()["actions"] == 0
    face.post("/api/registry/agents", {"agent_id": "bot", "display_name": "x"})
    assert face.post("/api/agents/health/heartbeat", beat())[1]["success"] is True
    assert face.decision() == "approved"


def test_the_kill_switch():
    """Triggered for a reason of ten characters, told by status and as a broadcast command, and until released all is denied."""
    face = Face()
    assert face.get("/api/sdk/kill-switch/status")[1] == {
        "blocked": False, "reason": None, "activated_at": None, "activated_by": None,
    }  # fmt: skip
    assert face.post("/api/billing/kill-switch/org/trigger", {"reason": "too short"})[0] == 422
    assert face.post("/api/billing/kill-switch/org/trigger", {"reason": "long enough"})[0] == 200
    assert face.get("/api/sdk/kill-switch/status")[1]["blocked"] is True
    assert face.decision() == "denied"
    commands = face.get("/api/registry/agents/bot/commands")[1]
    assert (commands["count"], commands["commands"][0]["command_type"], commands["commands"][0]["is_broadcast"]) == (
        1,
        "BLOCK",
        True,
    )
    ack = f"/api/registry/agents/bot/commands/{commands['commands'][0]['command_id']}/ack"
    assert [face.post(ack) for _ in range(2)] == [(200, {"success": True})] * 2
    assert face.get("/api/registry/agents/bot/commands")[1]["count"] == 0
    assert face.get("/api/registry/agents/other/commands")[1]["count"] == 1
    assert face.post("/api/registry/agents/bot/commands/nosuch/ack")[0] == 404
    assert face.post("/api/billing/kill-switch/org/release", {"reason": "long enough"})[0] == 200
    assert face.decision() == "approved"


# -- who asks, how often, and how it is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-API-Key": "k"}, 200), ({"Authorization": "Bearer k"}, 200), ({"Authorization": "bearer k"}, 200), ({}, 401),
        ({"X-API-Key": " "}, 401), ({"Authorization": "Basic k"}, 401), ({"Authorization": "Bearer "}, 401),
    ],
)  # fmt: skip
def test_either_header_will_do(headers, status):
    """X-API-Key or a bearer; without both only liveness answers."""
    face = Face()
    assert face.get("/api/sdk/kill-switch/status", headers=headers)[0] == status
    assert face.get("/health", headers=headers)[0] == 200


def test_three_envelopes():
    """Switch error_envelope: enveloped with code and meta, flat with error_code, or FastAPI's detail alone."""
    said = {}
    for envelope in ("enveloped", "flat", "fastapi"):
        status, said[envelope] = Face(f"error_envelope={envelope}").get(
            "/api/v1/actions/x", headers={"X-API-Key": "k", "X-Correlation-ID": "c"}
        )
        assert status == 404
    assert said["enveloped"]["error"] == {"code": "ACTION_NOT_FOUND", "message": "Action x not found"}
    assert (said["enveloped"]["status"], set(said["enveloped"]["meta"])) == ("error", {"request_id", "timestamp"})
    assert set(said["flat"]) == {"detail", "error_code", "status", "correlation_id", "timestamp"}
    assert said["flat"]["correlation_id"] == "c"
    assert said["fastapi"] == {"detail": "Action x not found"}


def test_unknown_paths_and_methods():
    """What no route answers is FastAPI's own 404, and a wrong method its 405."""
    face = Face()
    assert face.get("/api/v1/nosuch") == (404, {"detail": "Not Found"})
    assert face.get("/api/registry/agents") == (405, {"detail": "Method Not Allowed"})


def test_a_limit_on_calls():
    """Switch per_minute: 429 with Retry-After and a reset in Unix seconds, or with the reset alone."""
    for headers_switch in ("both", "reset"):
        face = Face("per_minute=2", f"rate_headers={headers_switch}")
        first = face.ask("GET", "/api/deployment-info")
        assert (first[0], first[1]["X-RateLimit-Remaining"]) == (200, "1")
        face.get("/api/deployment-info")
        status, headers, said = face.ask("GET", "/api/deployment-info")
        assert (status, said["error_code"], headers["X-RateLimit-Reset"]) == (429, "RATE_LIMIT_EXCEEDED", "1020")
        assert headers.get("Retry-After") == ("21" if headers_switch == "both" else None)
        face.now = 1020.0
        assert face.get("/api/deployment-info")[0] == 200


def signed(body, secret="sandbox", timestamp="2026-01-01T00:00:00Z"):
    text = f"{timestamp}.{json.dumps(json.loads(body), sort_keys=True)}"
    mac = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {"X-API-Key": "k", "X-Request-Timestamp": timestamp, "X-Signature": f"v1={mac}"}


def test_signatures():
    """Switch signature: check refuses a wrong one, require a missing one too; it is over sorted JSON, not over the wire's bytes."""
    body = json.dumps(SUBMISSION | {"context": {"user_request": "ü"}}, separators=(",", ":")).encode()
    bare = {"X-API-Key": "k"}
    expected = {"off": (200, 200, 200), "check": (200, 401, 200), "require": (200, 401, 401)}
    for way, statuses in expected.items():
        face = Face(f"signature={way}")
        tries = (signed(body), signed(body, "wrong"), bare)
        assert tuple(face.post("/api/v1/actions/submit", raw=body, headers=headers)[0] for headers in tries) == statuses
    face = Face("signature=require", "signing_secret=other")
    assert face.post("/api/v1/actions/submit", raw=body, headers=signed(body, "other"))[0] == 200
    late = signed(body, "other") | {"X-Request-Timestamp": "2026-01-01T00:00:01Z"}
    assert face.post("/api/v1/actions/submit", raw=body, headers=late)[0] == 401
    timeless = signed(body, "other", timestamp="")
    assert face.post("/api/v1/actions/submit", raw=body, headers=timeless)[0] == 401
    odd = signed(body, "other") | {"X-Signature": "v1=\udc80"}
    assert face.post("/api/v1/actions/submit", raw=body, headers=odd)[0] == 401
    assert face.post("/api/v1/actions/submit", raw=b"{", headers=signed(b"{}", "other"))[0] == 400


def test_the_smaller_calls():
    """Dry run leaves no action; webhooks need https and events under either name; audit, scan and liveness answer."""
    face = Face()
    assert face.post("/api/governance/policies/evaluate-realtime", SUBMISSION)[1]["decision"] == "approved"
    assert face.details()["actions"] == 0
    assert face.post("/api/v1/actions/submit", SUBMISSION)[0] == 200
    hook = {"url": "https://x", "events": ["action.denied"]}
    assert face.post("/api/webhooks/configure", hook)[0] == 201
    assert face.post("/api/webhooks", {"target_url": "https://x", "event_types": ["action.denied"]})[0] == 201
    assert face.post("/api/webhooks", hook | {"url": "http://x"})[0] == 422
    assert face.post("/api/webhooks", {"url": "https://x"})[0] == 422
    assert face.post("/api/v1/output-filter/scan", {"text": "x"})[0] == 200
    assert face.get("/audit/logs")[1]["total"] == face.get("/api/audit/logs")[1]["total"] == 1
    assert face.get("/api/deployment-info")[1] == {"version": "sandbox", "environment": "sandbox"}


MCP = {  # as SDK 2.7.1 sends it: no agent, and null for what was not given
    "mcp_server": "files", "namespace": "filesystem", "verb": "read_file", "resource": "/tmp/x", "description": None,
    "action_type": "filesystem.read_file", "parameters": {}, "context": {}, "environment": "production", "tool_name": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "success", "status", "waits"),
    [
        ("approved", True, "approved", False),
        ("pending", True, "pending_approval", True),
        ("denied", False, "denied", False),
    ],
)
def test_an_mcp_tool_call_is_an_action(decision, success, status, waits):
    """Taken without an agent and with any type, answered in the members that the SDK reads, and listed like any action."""
    face = Face(f"decision={decision}")
    code, said = face.post("/api/v1/mcp/actions/submit", MCP)
    assert (code, said["success"], said["status"], said["requires_approval"]) == (200, success, status, waits)
    assert face.get(f"/api/v1/actions/{said['action_id']}/status")[1]["decision"] == decision
    assert face.post("/api/v1/mcp/actions/submit", MCP | {"agent_id": "bot"})[0] == 200
    assert [row["agent_id"] for row in face.get("/api/v1/actions")[1]["actions"]] == ["bot", None]


@pytest.mark.parametrize("name", ["mcp_server", "namespace", "verb", "resource"])
def test_an_mcp_tool_call_names_what_it_calls(name):
    """What the SDK's method demands the platform does."""
    face = Face()
    assert face.post("/api/v1/mcp/actions/submit", {key: MCP[key] for key in MCP if key != name})[0] == 422
    assert face.details()["actions"] == 0


def test_an_mcp_tool_call_of_a_stopped_or_unknown_agent():
    """An agent that is named is held to its registration; governance may deny by 403."""
    refuses = Face("unregistered=refuse")
    assert refuses.post("/api/v1/mcp/actions/submit", MCP | {"agent_id": "bot"})[0] == 403
    assert refuses.post("/api/v1/mcp/actions/submit", MCP)[0] == 200
    status, said = Face("decision=denied", "governance_403=on").post("/api/v1/mcp/actions/submit", MCP)
    assert (status, said["detail"]["mcp_server_name"]) == (403, "files")


def test_a_dry_run_needs_no_agent():
    """SDK 2.7.1 asks by type and resource alone, with any type; what would be denied says by which policy."""
    wish = {"action_type": "database.read", "resource": "orders"}
    path = "/api/governance/policies/evaluate-realtime"
    assert Face().post(path, wish | {"risk_score": 12.5, "context": {"a": 1}})[1]["decision"] == "approved"
    leak = Face().post(path, wish | {"risk_indicators": {"pii_involved": True, "external_transfer": True}})[1]
    assert (leak["decision"], leak["violations"]) == ("denied", ["personal data must stay inside"])
    assert [policy["name"] for policy in leak["matched_policies"]] == ["pii-stays-inside"]
    assert Face().post(path, {"action_type": "query"})[0] == 422


# -- inspection and a person's hand ----------------------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script>\"&"


def test_rows_and_their_verbs():
    """Actions, agents and strays are listed, newest first, each with what a person may do to it now."""
    face = Face("completion_routes=both", "id_type=int")
    face.post("/api/agents/health/heartbeat", beat())
    face.post("/api/sdk/action/99/completed", {})
    face.submit()
    face.pending()
    rows = face.emulation.runs()
    assert [(row["id"], row.get("verbs")) for row in rows] == [
        ("2", ["approve", "deny"]), ("1", []), ("agent:bot", ["block", "quarantine", "suspend"]), ("stray:99", None),
    ]  # fmt: skip
    assert face.emulation.state().runs == 4
    assert [row["id"] for row in face.emulation.runs(2, 1)] == ["1", "agent:bot"]
    assert face.emulation.run("agent:bot")["event_count"] == 1
    assert len(face.emulation.run("1", limit=0)["events"]) == 0


def test_a_person_decides_once():
    """Approve or deny by POST; a second word, an unknown verb and an unknown action are refused."""
    face = Face()
    one, two = face.pending(), face.pending()
    assert [face.person(one, "approve"), face.person(one, "deny"), face.person(two, "deny")] == [200, 409, 200]
    assert [face.person("nosuch", "approve"), face.person(two, "explode")] == [404, 409]
    assert face.get(f"/api/v1/actions/{one}")[1]["status"] == "approved"
    assert face.get(f"/api/v1/actions/{two}")[1]["status"] == "denied"


def test_a_person_stops_an_agent():
    """Block denies an agent's submissions and tells it by a command of its own, until it is unblocked."""
    face = Face()
    face.post("/api/agents/health/heartbeat", beat())
    assert [face.person("agent:bot", "unblock"), face.person("agent:nobody", "block")] == [404, 404]
    assert face.person("agent:bot", "block") == 200
    assert (face.decision(), face.decision(agent_id="other")) == ("denied", "approved")
    commands = face.get("/api/registry/agents/bot/commands")[1]["commands"]
    assert [(each["command_type"], each["is_broadcast"]) for each in commands] == [("BLOCK", False)]
    assert face.person("agent:bot", "unblock") == 200
    assert face.decision() == "approved"
    assert [face.person("kill-switch", verb) for verb in ("trigger", "release", "explode")] == [200, 200, 404]


def test_buttons_on_the_page():
    """What may be done is a button; pressing it does it and shows the action's page. Nothing that an agent wrote is markup."""
    face = Face("required_fields=minimal")
    face.submit(agent_id=EVIL, action_type=EVIL, resource=EVIL, require_approval=True)
    action_id = face.emulation.runs()[0]["id"]
    address = f"/_sandbox/view/ascend/{action_id}"
    for path in ("/_sandbox/", address):
        page = inspect(face.emulation, "GET", path, "", b"").body.decode()
        assert f'<form method="post" action="{address}/approve"><button>approve</button></form>' in page
        assert "<script" not in page
    answer = inspect(face.emulation, "POST", f"{address}/approve", "", b"")
    assert (answer.status, answer.headers["Location"]) == (303, address)
    assert "<button>" not in inspect(face.emulation, "GET", address, "", b"").body.decode()
    assert inspect(face.emulation, "POST", f"{address}/approve", "", b"").status == 409


def test_a_button_is_text():
    """What a face offers is escaped in the button and encoded in its address."""
    page = run_page({"id": EVIL, "face": "ascend", "verbs": [EVIL]}, 0, 10)
    assert "<button>&lt;script" in page
    assert "<script" not in page
    assert "alert('" not in page


def test_where_nothing_waits_for_a_person():
    """A platform that offers nothing, a platform that is not there, and a path of another form are 404."""
    emulation = Emulation(["agentos"])
    for path in ("act/agentos/x/approve", "act/ascend/x/approve", "act/agentos/x", "view/agentos/x/approve"):
        assert inspect(emulation, "POST", f"/_sandbox/{path}", "", b"").status == 404


def test_reset_forgets_all_but_the_switches():
    """Reset forgets actions, agents, strays and the kill switch; switches stay."""
    face = Face("id_type=int", "completion_routes=both")
    face.submit()
    face.post("/api/sdk/action/99/completed", {})
    face.person("kill-switch", "trigger")
    face.emulation.reset()
    assert face.emulation.runs() == []
    assert face.submit()["action_id"] == 1
    assert face.emulation.switches()["ascend"]["id_type"] == "int"


def test_switches_as_struct_and_text():
    """Thrown as text or as a whole; what is no such word is refused."""
    face = Face("decision_delay=500ms")
    assert face.emulation.switches()["ascend"]["decision_delay"] == 0.5
    face.emulation.throw(AscendSwitches(response_shape="C"))
    assert face.emulation.switches()["ascend"]["decision_delay"] is None
    for wrong in ("response_shape=E", "id_type=uuid", "per_minute=0", "decision_delay=-1", "nosuch=1"):
        with pytest.raises(UsageError):
            face.emulation.throw(f"ascend.{wrong}")
