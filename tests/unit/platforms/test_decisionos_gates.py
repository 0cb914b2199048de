"""Decision OS's gate: a decision with its evaluation, what it sends and what each answer means."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, GATE_ANSWER_BYTES, Attempt, Context, Lost, Response, Unencodable
from agentd.gating import Question, Word
from agentd.queued import Entry, Source
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.wire import encode

DOS = platforms.load("decisionos")
GATE = DOS.gates["decision"]
GATE_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
CONTEXT = Context(lambda local: f"id-of-{local}" if local else "", lambda _kind, local: f"p-{local}")
OK = {"ok": True, "replayId": "rep_1", "policyVersionId": "pv_1", "diff": {"changed": False}}
RICH = {
    "context": "Refund?", "decision_id": "mine", "options": ["yes", {"key": "no", "probability": 0.1}], "chosen": "yes",
    "confidence": 0.9, "constraints": ["a"], "assumptions": ["b"], "model": "m", "parameters": {"t": 0}, "decision_type": "d",
    "create_agent_if_missing": True, "run_id": "r", "trace_id": "t", "tool_calls": {"name": "x"}, "tokens_input": 5, "cost_usd": 0.1,
}  # fmt: skip


def question(agent="billing", run_id=None, **fields):
    request = {name: Raw(json.dumps(value).encode()) for name, value in ({"context": "Refund?"} | fields).items()}
    return Question("decision", GATE_ID, "mine", agent, run_id, request, int(NOW * 1e6))


def sent(asked):
    return json.loads(GATE.ask(asked, CONTEXT).body)


def ruling(body=b"", status=200, *, headers=None, maybe_taken=False):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return GATE.rule(question(), Response(status, headers or {}, body), Attempt(NOW, maybe_taken))


def answer(evaluation=..., **data):
    told = {} if evaluation is ... else {"policyEval": evaluation}
    return {"data": {"id": "dec_1", "status": "logged", **told, **data}}


# -- the request -----------------------------------------------------------------------------------------------------------


def test_the_request_is_a_decision_records_with_its_evaluation():
    """Decision OS: what a record sends, `runPolicyEval`, and the gate's id as `requestId`; the client's own name stays here."""
    request = GATE.ask(question(**RICH), CONTEXT)
    assert (request.method, request.path) == ("POST", "/api/public/v1/decisions")
    body = json.loads(request.body)
    assert (body.pop("runPolicyEval"), body.pop("requestId")) == (True, GATE_ID)
    record = msgspec.json.decode(json.dumps({"kind": "decision", **RICH}), type=Record)
    item = Entry(
        1, bytes(16), lane_of(record, "billing"), kind_of(record), loss_class(record), Source("billing", 0, 0, "t"), 0, encode(record)
    )  # fmt: skip
    logged = json.loads(DOS.encode(DOS.calls["decision"], [item], CONTEXT).body)
    del logged["requestId"]
    assert body == logged
    assert request == GATE.ask(question(**RICH), CONTEXT)


def test_ids_of_the_client_come_first():
    """Decision OS: a `request_id` of the client's goes as `requestId`; the run is the request's, else the question's."""
    assert sent(question(request_id="mine"))["requestId"] == "mine"
    assert sent(question(run_id="r1"))["runId"] == "r1"
    assert "runId" not in sent(question())
    asked = question(run_id="r1")
    asked = msgspec.structs.replace(asked, request={**asked.request, "run_id": Raw(b'"label"')})
    assert sent(asked)["runId"] == "label"


def test_the_agent():
    """Decision OS: the asking agent, which the request may repeat; none at all is an error that names the field."""
    assert sent(question())["agentId"] == "id-of-billing"
    assert sent(question(agent_id="billing"))["agentId"] == "id-of-billing"
    assert sent(question(agent="", agent_id="sales"))["agentId"] == "id-of-sales"
    with pytest.raises(Unencodable, match=r"^\$\.request\.agent_id: expected 'billing'"):
        GATE.ask(question(agent_id="sales"), CONTEXT)
    with pytest.raises(Unencodable, match=r"^\$\.agent_id: required"):
        GATE.ask(question(agent=""), CONTEXT)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"confidence": 2}, r"confidence: expected .*1"), ({"confidence": "0.9"}, "confidence: expected number"),
        ({"context": 5}, "context: expected string"), ({"context": None}, "context: required"), ({"context": "  "}, "context: .*blank"),
        ({"chosn": "x"}, "chosn: unknown field of decision; did you mean chosen"), ({"chosenOptionKey": "x"}, "chosenOptionKey: unknown"),
        ({"id": "x"}, "id: unknown"), ({"to": "x"}, "to: unknown"), ({"kind": "decision"}, "kind: unknown"),
        ({"run_policy_eval": False}, "run_policy_eval: expected true"), ({"constraints": "x"}, "constraints: expected array"),
        ({"tokens_input": -1}, "tokens_input: "), ({"create_agent_if_missing": "y"}, "create_agent_if_missing: "),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_with_a_request(fields, words):
    """Decision OS: a wrong field is named with what would be right, before anything is sent."""
    with pytest.raises(Unencodable, match=rf"^\$\.request\.{words}"):
        GATE.ask(question(**fields), CONTEXT)


def test_nulls_are_left_out():
    """Decision OS: a null is a field left out; `run_policy_eval` may be said, as its SDK has it."""
    body = sent(question(chosen=None, parameters=None, run_policy_eval=True))
    assert set(body) == {"agentId", "requestId", "context", "runPolicyEval"}
    assert sent(question(run_policy_eval=None))["runPolicyEval"] is True


def test_a_field_that_agentd_does_not_know_goes_by_extra():
    """Decision OS: `extra` is merged into the request and takes the place of nothing in it."""
    body = sent(question(extra={"newField": 1, "runPolicyEval": False}))
    assert (body["newField"], body["runPolicyEval"]) == (1, True)


def test_what_kind_of_gate_it_is():
    """Decision OS: it names a decision, a repeat under its requestId is safe, its run is a label, nothing is followed."""
    assert (GATE.traits.introduces, GATE.traits.id_field, GATE.traits.repeat) == ("decision", "decision_id", True)
    assert GATE.references(question(run_id="r")) == ()
    assert GATE.follow(question(), "dec_1", CONTEXT) is None


# -- the evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluation", "word"),
    [
        (OK, Word.ALLOW), ({"ok": True}, Word.ALLOW), ({"ok": True, "error": None, "diff": None}, Word.ALLOW),
        ({"ok": True, "error": "", "diff": {}}, Word.ALLOW), ({"ok": True, "diff": {"changed": None}}, Word.ALLOW),
        ({"ok": False}, Word.DENY), ({"ok": False, "error": None, "diff": {"changed": True}}, Word.DENY),
        (..., Word.REVIEW), (None, Word.REVIEW), ({}, Word.REVIEW), ([], Word.REVIEW), (True, Word.REVIEW), ("ok", Word.REVIEW),
        ({"ok": None}, Word.REVIEW), ({"ok": 1}, Word.REVIEW), ({"ok": "true"}, Word.REVIEW), ({"ok": 0}, Word.REVIEW),
        (OK | {"error": "x"}, Word.REVIEW), (OK | {"error": {}}, Word.REVIEW), (OK | {"error": 0}, Word.REVIEW),
        ({"ok": False, "error": "policy not found"}, Word.REVIEW), (OK | {"diff": {"changed": True}}, Word.REVIEW),
        (OK | {"diff": {"changed": "no"}}, Word.REVIEW), (OK | {"diff": {"changed": 1}}, Word.REVIEW), (OK | {"diff": []}, Word.REVIEW),
        (OK | {"diff": "same"}, Word.REVIEW),
    ],
    ids=str,
)  # fmt: skip
def test_the_evaluation_counts(evaluation, word):
    """Decision OS: ok without error and change allows, a plain not-ok denies, whatever isn't certain is a review."""
    for status in (200, 201):
        found = ruling(answer(evaluation), status)
        assert (found.word, found.final, found.platform_id) == (word, True, "dec_1")


def test_both_spellings_and_both_envelopes():
    """Decision OS: the SDK takes `policy_eval` and an answer without `data`; two evaluations that differ are a review."""
    assert ruling(answer(policy_eval=OK)).word is Word.ALLOW
    assert ruling(answer(OK, policy_eval=OK)).word is Word.ALLOW
    assert ruling(answer(OK, policy_eval={"ok": False})).word is Word.REVIEW
    assert ruling({"id": "dec_1", "policyEval": OK}).word is Word.ALLOW
    assert ruling({"id": "dec_1", "policyEval": {"ok": False}}).word is Word.DENY


@pytest.mark.parametrize(
    "status", ["draft", "logged", "committed", "completed", "not_blocked", "rejection-free", None, 5]
)
def test_the_decisions_status_says_nothing(status):
    """Decision OS: `status` is open text, on which its sources disagree."""
    assert ruling(answer(OK, status=status)).word is Word.ALLOW


@pytest.mark.parametrize(
    "status", ["rejected", "Failed", "denied", "error", "policy_rejected", "blocked", "cancelled", False, 0]
)
def test_a_status_that_is_a_known_no_is_a_review(status):
    """Decision OS: a status that says no beside an evaluation that says yes is for a person to look at."""
    for body in (answer(OK, status=status), answer(OK) | {"status": status}):
        found = ruling(body)
        assert (found.word, found.final, found.platform_id) == (Word.REVIEW, True, "dec_1")


@pytest.mark.parametrize(
    "beside", [{"ok": False}, {"success": False}, {"error": {"code": 1}}, {"errors": ["x"]}, {"error_code": "X"}, {"blocked": True}, {"ok": "no"}], ids=str
)  # fmt: skip
def test_an_evaluation_beside_a_no_is_a_review(beside):
    """Decision OS: a failure beside an evaluation that is ok, around it or within `data`; the client's own words say nothing."""
    for body in (answer(OK) | beside, answer(OK, **beside), answer(OK | {"details": beside})):
        assert ruling(body).word is Word.REVIEW
    for name in ("parameters", "toolCalls", "options", "metadata"):
        assert ruling(answer(OK, **{name: [beside]})).word is Word.ALLOW
    assert ruling(answer({"ok": False}) | beside).word is not Word.ALLOW


def test_what_was_read_whole_is_not_said_to_be_cut():
    """Decision OS: of an answer to a gate 1 MiB is read; a page of 70 KB is a page."""
    begun = b'{"data":{"id":"dec_1","x":"' + b"x" * GATE_ANSWER_BYTES
    assert "cut" in ruling(begun).reason
    for whole in (b"<html>" + b"x" * 70_000, begun[:70_000]):
        assert ruling(whole).reason == "200 no data.id: is base_url right?"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"<html>", b"null", b"{}", b"\xff", b"{" * 90_000, {"data": None}, {"data": {"policyEval": OK}}, {"data": []},
        {"data": {"id": "", "policyEval": OK}}, {"data": {"id": 5, "policyEval": OK}}, {"data": {"id": "../x\n", "policyEval": OK}},
        b'{"data":{"id":"dec_1","x":"' + b"x" * ANSWER_BYTES, answer(OK) | {"error": "but"}, answer(OK) | {"error": {"code": 1}},
        b'{"data":{"id":"dec_1","policyEval":{"ok":false,"ok":true}}}',
        b'{"data":{"id":"dec_1","policyEval":{"ok":false}},"data":{"id":"dec_1","policyEval":{"ok":true}}}',
    ],
    ids=lambda body: str(body)[:40],
)  # fmt: skip
def test_an_answer_that_is_not_certain_is_a_review(body):
    """Decision OS: without the decision's id, cut, with an error beside it, or with a name twice: a final review."""
    found = ruling(body)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert 0 < len(found.reason) <= 500


@pytest.mark.parametrize("status", [202, 204, 206])
def test_another_success_is_a_review(status):
    """Decision OS: a decision is made with 200 or 201; any other success is not known to be one."""
    assert ruling(answer(OK), status).word is Word.REVIEW


# -- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "acted", "again_s", "said"),
    [
        (400, {"error": "bad"}, False, None, "bad"), (422, {"message": "bad"}, False, None, "bad"), (401, b"", False, None, "401"),
        (402, {"error": "used up"}, False, None, "quota"), (403, b"", False, None, "403"), (404, {"error": "no agent"}, False, None, "agent 'billing'"),
        (404, b"<html>", False, None, "base_url"), (409, {"error": "exists"}, True, None, "requestId"), (429, b"", False, 1.0, "429"),
        (408, b"", True, None, "408"), (500, b"", True, 1.0, "500"), (503, answer(OK), True, 1.0, "503"), (302, b"", True, None, "base_url"),
    ],
)  # fmt: skip
def test_refusals(status, body, acted, again_s, said):
    """Decision OS: no refusal is a verdict; an id under the requestId and a server that broke may mean a decision."""
    found = ruling(body, status)
    assert (found.word, found.final, found.acted, found.again_s) == (Word.UNAVAILABLE, True, acted, again_s)
    assert said in found.reason


def test_how_long_to_rest():
    """Decision OS: `Retry-After` of a 429; after an earlier try that may have been taken no refusal says that nothing was made."""
    assert ruling(b"", 429, headers={"retry-after": "7"}).again_s == 7.0
    assert ruling(b"", 401, maybe_taken=True).acted is True


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_answer(lost):
    """Decision OS: without an answer there is no verdict, and something was made only if something was sent."""
    found = GATE.rule(question(), Lost("timeout", sent=lost), Attempt(NOW))
    assert (found.word, found.acted, found.reason) == (Word.UNAVAILABLE, lost, "timeout")


@pytest.mark.parametrize("name", ["id", "policyEval", "policy_eval", "error", "resetAt", "message"])
@pytest.mark.parametrize("status", [200, 201, 202, 402, 404, 409, 429])
def test_no_body_breaks_a_ruling(status, name):
    """Decision OS: whatever stands in a field, there is a ruling, its reason short and sound."""
    for value in ([], {}, "x" * 60_000, [["x" * 9_000]], -1, 1e300, True, "\x00\n\u202e", {"ok": True, "diff": [1]}):
        for body in (answer(**{name: value}), {name: value}, answer(OK) | {name: value}):
            found = ruling(body, status)
            assert len(found.reason) <= 500
            msgspec.json.encode(found)
            assert found.word is not Word.ALLOW or (status < 202 and name not in {"policyEval", "policy_eval"})
