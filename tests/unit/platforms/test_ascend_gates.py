"""ASCEND's gate: the exact submission, what each shape of answer means, and the kill switch before it."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import (
    ANSWER_BYTES,
    GATE_ANSWER_BYTES,
    Attempt,
    Context,
    Lost,
    Reference,
    Request,
    Response,
    Unencodable,
)
from agentd.gating import Question, Ruling, Word

GATE = platforms.load("ascend").gates["action"]
GATE_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
LEAST = {"action_type": "query", "resource": "orders"}
NOW = Attempt(1000.0)
BY_GATE = {"agentd_gate_id": GATE_ID}


def question(request=LEAST, agent="billing"):
    raw = {name: Raw(json.dumps(value).encode()) for name, value in request.items()}
    return Question("action", GATE_ID, "local-1", agent, None, raw, 0)


def context(known=None):
    ids = known or {}
    return Context(
        lambda local: f"id-of-{local}" if local else "id-of-default", lambda _kind, local: ids.get(local, local)
    )


def sent(request, agent="billing", known=None):
    return json.loads(GATE.ask(question(request, agent), context(known)).body)


def refusal(request, agent="billing", known=None):
    with pytest.raises(Unencodable) as caught:
        GATE.ask(question(request, agent), context(known))
    return str(caught.value)


def answer(body, status=200, headers=None):
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def rule(body, status=200, headers=None, attempt=NOW):
    return GATE.rule(question(), answer(body, status, headers), attempt)


def followed(body, status=200):
    return GATE.rule_followed(question(), answer(body, status), NOW)


# -- the question ----------------------------------------------------------------------------------------------------------


def test_the_least_submission():
    """Agent and name from whoever asks, the asking's id in `context`, and nothing that was not said."""
    request = GATE.ask(question(), context())
    assert (request.method, request.path, request.headers) == ("POST", "/api/v1/actions/submit", {})
    assert json.loads(request.body) == {
        "agent_id": "id-of-billing", "agent_name": "billing", "action_type": "query", "resource": "orders", "context": BY_GATE,
    }  # fmt: skip


def test_the_union_of_what_servers_demand():
    """`tool_name` and `description` stand where either server looks for them, `parameters` likewise."""
    body = sent(
        LEAST | {"tool_name": "sql", "description": "count rows", "parameters": {"q": 1, "tool_name": "other", "a": 1},
                 "action_details": {"a": 2}}
    )  # fmt: skip
    assert (body["tool_name"], body["description"], body["parameters"]["q"]) == ("sql", "count rows", 1)
    assert body["action_details"] == {"q": 1, "tool_name": "sql", "a": 2, "description": "count rows"}


def test_names_within_the_details_are_lifted():
    """Who follows the SDK and says them within `action_details` alone is understood by the older server too."""
    body = sent(LEAST | {"action_details": {"tool_name": "sql", "description": "count", "x": [None]}})
    assert (body["tool_name"], body["description"]) == ("sql", "count")
    assert body["action_details"] == {"tool_name": "sql", "description": "count", "x": [None]}
    assert "tool_name" not in sent(LEAST | {"action_details": {"tool_name": 5, "description": " "}})


def test_nulls_are_left_out_and_the_unknown_is_carried_through():
    """A null is a field left out; a field that agentd does not know goes as it is, and so do its numbers."""
    raw = question(LEAST | {"resource_id": None, "metadata": None, "context": None, "later": {"a": [1]}})
    request = {**raw.request, "cost": Raw(b"1.50")}
    body = GATE.ask(msgspec.structs.replace(raw, request=request), context()).body
    assert b'"cost":1.50' in body
    assert json.loads(body)["later"] == {"a": [1]}
    assert not {"resource_id", "metadata"} & set(json.loads(body))


def test_the_clients_context_stays():
    """The asking's id is added; a member of that name that the client gave is the client's."""
    assert sent(LEAST | {"context": {"session_id": "s"}})["context"] == BY_GATE | {"session_id": "s"}
    assert sent(LEAST | {"context": {"agentd_gate_id": "mine"}})["context"] == {"agentd_gate_id": "mine"}
    both = {"context": {"business_justification": "theirs"}, "business_justification": "kwarg"}
    assert sent(LEAST | both)["context"] == BY_GATE | {"business_justification": "theirs"}
    alone = sent(LEAST | {"business_justification": "audit"})
    assert alone["context"] == BY_GATE | {"business_justification": "audit"}
    assert "business_justification" not in alone


def test_the_clients_own_name_for_it_is_not_sent():
    """`action_id` is what later records will call the action; ASCEND gives its own."""
    assert "action_id" not in sent(LEAST | {"action_id": "mine"})


@pytest.mark.parametrize(
    ("request_agent", "agent", "expected"),
    [
        (None, "billing", ("id-of-billing", "billing")), ("billing", "billing", ("id-of-billing", "billing")),
        ("sales", "", ("id-of-sales", "sales")), ("id-of-billing", "billing", ("id-of-billing", "billing")),
        ("id-of-default", "", ("id-of-default", "id-of-default")), (None, "", ("id-of-default", "id-of-default")),
    ],
)  # fmt: skip
def test_agents_are_local_names(request_agent, agent, expected):
    """An agent is named as in records: by the host's own name, from which the destination's table has the platform's."""
    body = sent(LEAST | {"agent_id": request_agent}, agent)
    assert (body["agent_id"], body["agent_name"]) == expected
    assert sent(LEAST | {"agent_id": request_agent, "agent_name": "Bot"}, agent)["agent_name"] == "Bot"


def test_nobody_speaks_for_another_agent():
    """A request can't name another agent than the one that was let in."""
    assert refusal(LEAST | {"agent_id": "sales"}).startswith("$.request.agent_id: expected 'billing'")


def test_an_agent_there_must_be():
    """ASCEND demands the agent's id."""
    with pytest.raises(Unencodable, match=r"\$\.request\.agent_id: required"):
        GATE.ask(question(LEAST, ""), Context(lambda local: local, lambda _kind, local: local))


@pytest.mark.parametrize("field", ["risk_score", "riskScore", "risk_level"])
def test_a_client_may_not_score_itself(field):
    """ASCEND: the score is the platform's; it is refused by name and never dropped in silence."""
    assert "may not score itself" in refusal(LEAST | {field: 1})
    assert sent(LEAST | {field: None})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action_type": None}, "$.request.action_type: required; expected a string that is not blank"),
        ({"action_type": " "}, "$.request.action_type: expected a string that is not blank"), ({"action_type": 5}, "$.request.action_type: "),
        ({"resource": ""}, "$.request.resource: "), ({"action_details": []}, "$.request.action_details: expected an object"),
        ({"context": "x"}, "$.request.context: expected an object"), ({"parameters": 1}, "$.request.parameters: "),
        ({"metadata": "x"}, "$.request.metadata: "), ({"risk_indicators": [1]}, "$.request.risk_indicators: "),
        ({"tool_name": ""}, "$.request.tool_name: "), ({"mcp_server_name": 5}, "$.request.mcp_server_name: "),
        ({"orchestration_depth": 6}, "$.request.orchestration_depth: expected an integer from 0 to 5"),
        ({"orchestration_depth": True}, "$.request.orchestration_depth: "), ({"require_approval": "yes"}, "$.request.require_approval: "),
        ({"parent_action_id": 1.5}, "$.request.parent_action_id: "), ({"parent_action_id": ""}, "$.request.parent_action_id: "),
        ({"timeout": 5}, "$.request.timeout: refused; how long to wait is the gate's deadline"), ({"agent_id": 5}, "$.request.agent_id: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields, words):
    """Bad input gets an error that names the field and what would be right."""
    assert refusal(LEAST | fields).startswith(words)


@pytest.mark.parametrize("raw", [b'"\xff"', b'"' + b"\xc3" + b'"'])
def test_what_is_no_text_is_named(raw):
    """Bytes that are no UTF-8 never leave."""
    asked = msgspec.structs.replace(question(), request=question().request | {"later": Raw(raw)})
    with pytest.raises(Unencodable, match=r"\$\.request\.later: expected UTF-8"):
        GATE.ask(asked, context())


@pytest.mark.parametrize(
    ("parent", "known", "wire"),
    [("mine", "7", 7), ("mine", "act_7", "act_7"), (7, "7", 7), ("mine", "007", "007"), ("mine", "9" * 19, "9" * 19), ("mine", "٧", "٧")],
)  # fmt: skip
def test_a_parent_is_a_reference(parent, known, wire):
    """The action before this one is known to the platform first; its id goes as it was received, a number as a number."""
    request = LEAST | {"parent_action_id": parent}
    assert GATE.references(question(request)) == (Reference("action", str(parent)),)
    assert sent(request, known={str(parent): known})["parent_action_id"] == wire


def test_a_dead_parent_is_no_parent():
    """An action that the platform does not know can't be named; no parent, no reference; a wrong one is `ask`'s to refuse."""
    assert "knows no such action" in refusal(LEAST | {"parent_action_id": "a"}, known={"a": None})
    assert GATE.references(question()) == ()
    assert GATE.references(question({"parent_action_id": [1]})) == ()


# -- the answer ------------------------------------------------------------------------------------------------------------

SHAPES = {
    "A": lambda word, key: {"action_id": key, "status": word, "decision": word, "risk_score": 10, "reason": "why"},
    "B": lambda word, key: {
        "status": "success",
        "data": {"action_id": key, "decision": word, "policy_result": {"reason": "why"}},
    },
    "C": lambda word, key: {
        "id": key, "action_id": key, "status": word, "risk_score": 10.0, "requires_approval": word.startswith("pend"),
        "alert_id": None, "policy_decision": "allow", "matched_policies": [], "message": "why",
    },
    "D": lambda word, key: {"action_id": key, "decision": {"outcome": word, "reason": "why"}},
}  # fmt: skip
WORDS = {
    "approved": Ruling(Word.ALLOW), "auto_approved": Ruling(Word.ALLOW), "executed": Ruling(Word.ALLOW), "denied": Ruling(Word.DENY),
    "pending": Ruling(Word.PENDING, final=False), "pending_approval": Ruling(Word.PENDING, final=False),
    "escalated": Ruling(Word.PENDING, final=False), "processing": Ruling(Word.PENDING, final=False),
    "requires_modification": Ruling(Word.REVIEW), "timeout": Ruling(Word.REVIEW),
}  # fmt: skip


@pytest.mark.parametrize("key", ["act_1", 7])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_word_in_every_shape(shape, word, key):
    """Four shapes, ten words, ids of two types: one meaning, the id as text, the platform's reason."""
    expected = msgspec.structs.replace(WORDS[word], reason="why", platform_id=str(key))
    status = 202 if shape == "B" and word == "pending" else 200
    assert rule(SHAPES[shape](word, key), status) == expected


@pytest.mark.parametrize(
    "word", ["APPROVED", "allowed", "approve", "yes", "ok", "approved ", "", "expired", "success", "\u0430pproved"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_unknown_word_is_a_review(shape, word):
    """What no source knows is never a grant, however much it looks like one."""
    found = rule(SHAPES[shape](word, "act_1"))
    assert (found.word, found.final, found.platform_id) == (Word.REVIEW, True, "act_1")


@pytest.mark.parametrize(
    "body",
    [
        {}, [], None, "approved", 5, True, {"action_id": "a"}, {"status": "success"}, {"status": "success", "data": {}}, {"decision": None},
        {"decision": ["approved"]}, {"decision": {"reason": "x"}}, {"decision": {"outcome": None}}, {"decision": True}, {"status": 1},
        {"decision": {"outcome": {"outcome": "approved"}}}, {"data": "approved"}, {"data": [{"decision": "approved"}]},
    ],
)  # fmt: skip
def test_a_success_without_a_word_is_a_review(body):
    """200 says that somebody answered; without a decision nobody was allowed anything."""
    found = rule(body)
    assert (found.word, found.final) == (Word.REVIEW, True)


@pytest.mark.parametrize(
    "beside",
    [
        {"enforcement_decision": "denied"}, {"enforcement_decision": "blocked"}, {"enforcement_decision": 5}, {"status": "denied"},
        {"status": "who knows"}, {"status": ["approved"]}, {"policy_decision": "DENY"}, {"policy_result": {"decision": "deny"}},
        {"policy_result": "blocked"}, {"execution_allowed": False}, {"allowed": False}, {"data": {"enforcement_decision": "denied"}},
        {"data": {"decision": "requires_modification"}}, {"error": {"code": "X"}}, {"error": "no"}, {"error": False}, {"error_code": "X"},
        {"errors": ["x"]}, {"data": {"success": False}}, {"data": {"error": {"code": "X"}}}, {"blocked": True}, {"blocked": "true"},
        {"policy_decision": False}, {"policy_decision": 0}, {"policy_decision": "conditional"}, {"policy_decision": {"decision": "deny"}},
        {"policy_decision": {"result": {"decision": "deny"}}}, {"policy_decision": ["deny"]}, {"policy_result": {"allowed": False}},
        {"policy_result": {"allowed": "no"}}, {"policy_result": {"result": {"allowed": 0}}}, {"policy_result": False},
        {"execution_allowed": 0}, {"execution_allowed": "false"}, {"execution_allowed": 1}, {"allowed": "no"}, {"success": "false"},
        {"decision": {"outcome": "approved", "execution_allowed": False}}, {"decision": {"outcome": "approved", "status": "denied"}},
        {"decision": {"outcome": "approved", "enforcement_decision": "denied"}},
        {"decision": {"outcome": "approved", "error": {"code": "X"}}}, {"requires_approval": "true"}, {"requires_approval": 0},
        {"decision_ready": "false"}, {"decision_ready": 0}, {"code_analysis": {"analyzed": True, "blocked": True}},
        {"mcp_governance": {"tool_blocked": True}}, {"policy_violations": ["pii"]}, {"matched_policies": [{"effect": "deny"}]},
        {"rejection_reason": "x"}, {"data": {"action_id": "b"}},
    ],
    ids=str,
)  # fmt: skip
def test_an_approval_that_contradicts_itself_is_a_review(beside):
    """`decision: approved` beside anything that says no, or that nobody knows, is for a person to look at."""
    found = rule({"action_id": "a", "decision": "approved"} | beside)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert found.platform_id == beside.get("data", {}).get("action_id", "a")
    later = followed({"action_id": "a", "decision": "approved"} | beside)
    assert later.word is not Word.ALLOW


@pytest.mark.parametrize("beside", [{"status": "pending_approval"}, {"enforcement_decision": "escalated"}, {"requires_approval": True}, {"decision_ready": False}, {"policy_decision": "require_approval"}, {"policy_result": {"decision": "escalate"}}, {"decision": {"outcome": "approved", "requires_approval": True}}, {"data": {"decision_ready": True}, "decision_ready": False}])  # fmt: skip
def test_an_approval_that_is_not_done_is_pending(beside):
    """Approved in one place and waiting in another: it is asked for until both say the same."""
    found = rule({"action_id": "a", "decision": "approved"} | beside)
    assert (found.word, found.final) == (Word.PENDING, False)
    assert rule({"action_id": "a", "decision": "approved"}, 202).word is Word.PENDING


@pytest.mark.parametrize(
    "beside",
    [
        {"status": "success"}, {"status": "executed"}, {"enforcement_decision": "auto_approved"}, {"policy_decision": "allow"}, {"data": None},
        {"policy_decision": None}, {"policy_result": None}, {"execution_allowed": True}, {"shadow_enforcement_decision": "denied"},
        {"requires_approval": False}, {"error": None}, {"error": ""}, {"errors": []}, {"error_code": None}, {"success": True}, {"blocked": False},
        {"policy_decision": "Approve"}, {"policy_decision": "approved"}, {"policy_result": {"decision": "allow", "matched": ["deny-pii"]}},
        {"policy_result": {"allowed": True, "reason": "nothing denied"}}, {"policy_result": {}}, {"matched_policies": 0}, {"matched_policies": ["p"]},
        {"alert_triggered": True, "alert_id": 7}, {"code_analysis": {"analyzed": False, "blocked": False, "block_reason": None}},
        {"prompt_security": {"analyzed": True, "blocked": False}}, {"mcp_governance": {"server_registered": True, "tool_blocked": False}},
        {"model_governance": {"registry_checked": False, "reason": "no model_id"}}, {"thresholds": {"is_registered": False}},
        {"output_scan_result": "not_scanned", "policy_violations": []}, {"metadata": {"error": "the client's"}},
        {"context": {"blocked": True}}, {"action_details": {"status": "failed"}}, {"decision_ready": True}, {"approved_by": None},
        {"decision": {"outcome": "approved", "reason": "why", "risk_score": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_what_says_nothing_else_contradicts_nothing(beside):
    """The newer fields may agree, be null, or speak of a shadow policy that is not in force."""
    assert rule({"action_id": "a", "decision": "approved"} | beside).word is Word.ALLOW


def test_a_denial_needs_no_second_look():
    """A no counts, whatever else is said; a pending beside a no is a review."""
    assert rule({"decision": "denied", "status": "approved"}).word is Word.DENY
    assert rule({"success": False, "decision": "denied"}).word is Word.DENY
    assert rule({"decision": {"status": "approved", "decision": "denied"}}).word is Word.DENY
    assert rule({"action_id": "a", "decision": "pending", "enforcement_decision": "denied"}).word is Word.REVIEW
    assert rule({"action_id": "a", "decision": "pending", "execution_allowed": False}).word is Word.PENDING


def test_a_name_that_occurs_twice_is_a_review():
    """Readers differ in which of two values counts: such an approval is none."""
    body = b'{"action_id":"a","decision":"denied","decision":"approved"}'
    assert rule(body).word is Word.REVIEW
    assert followed(body).word is Word.REVIEW


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("act_1", "act_1"), (7, "7"), (0, "0"), (10**18, str(10**18)), (True, None), (1.5, None), (None, None), ("", None), (" ", None), ([], None),
        ({}, None), ("..", None), (".", None), ("fail_open_1", None), ("x" * 201, None), ("a\nb", None), ("a/../b", "a/../b"),
    ],
)  # fmt: skip
def test_ids_are_kept_as_text(value, found):
    """An id is kept as it was received; what no server gives, or what would leave its place in a path, is no id."""
    assert rule({"action_id": value, "decision": "approved"}).platform_id == found
    pending = rule({"action_id": value, "decision": "pending"})
    assert (pending.word, pending.final) == ((Word.PENDING, False) if found else (Word.REVIEW, True))


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"<html>welcome</html>", b"ok", b'{"decision":"approved"', b'{"decision":"approved","x":1e999}', b"\xff", b"NaN",
     b'{"action_id":' + b"1" * 5000 + b',"decision":"approved"}', b'{"reason":"\\ud83d","decision":"approved"}', b"{" * 10_000,
     b'{"decision":"approved","x":' + b"[" * 10_000],
    ids=lambda body: body[:24].decode(errors="replace"),
)  # fmt: skip
def test_a_2xx_that_is_no_json_may_have_acted(body):
    """A page, or JSON that ends too early: the submission may be on the record there, and nobody was allowed anything."""
    found = rule(body)
    assert (found.word, found.acted, found.final, found.platform_id) == (Word.UNAVAILABLE, True, True, None)
    assert "base_url" in found.reason


def test_an_answer_too_long_says_so():
    """Of an answer to a gate 1 MiB is read: what is cut is not guessed at, and what was read whole is not said to be cut."""
    begun = b'{"decision":"approved","x":"' + b"x" * GATE_ANSWER_BYTES
    assert rule(begun[:GATE_ANSWER_BYTES]) == Ruling(Word.UNAVAILABLE, "200: an answer too long to be read whole")
    for whole in (begun[: ANSWER_BYTES + 5000], b"<html>" + b"x" * GATE_ANSWER_BYTES):
        assert rule(whole).reason == "200: no JSON: is base_url right?"
    assert rule(begun[: ANSWER_BYTES + 5000] + b'"}').word is Word.ALLOW


@pytest.mark.parametrize("body", [{"success": False, "error": "no"}, {"status": "error", "error": {"code": "X", "message": "no"}}, {"success": False, "decision": "approved"}])  # fmt: skip
def test_an_error_under_200_is_no_answer(body):
    """An error envelope under 200 is a failure after which something may stand on the record."""
    found = rule(body)
    assert (found.word, found.acted) == (Word.UNAVAILABLE, True)


@pytest.mark.parametrize("error", ["Governance policy violation", "governance_denied", "POLICY VIOLATION"])
def test_a_403_of_governance_is_a_denial(error):
    """ASCEND: 403 with such a detail is the platform's no, and it has no id."""
    detail = {"error": error, "detail": "no such tool", "model_id": None, "correlation_id": "asc_1"}
    assert rule({"detail": detail}, 403) == Ruling(Word.DENY, f"{error}: no such tool")


@pytest.mark.parametrize("body", [b"", b"<html>", {"detail": "governance"}, {"detail": {"error": "role"}}, {"error": "violation"}, {"decision": "approved"}])  # fmt: skip
def test_any_other_403_is_about_permission(body):
    """Turned away at the door: nothing was made, and nothing is allowed."""
    found = rule(body, 403)
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)


@pytest.mark.parametrize(
    ("status", "acted"),
    [
        (301, False), (302, True), (303, True), (307, False), (400, False), (401, False), (402, False), (404, False), (405, False), (408, True),
        (409, True), (413, False), (422, False), (429, False), (500, True), (502, True), (503, True), (504, True), (599, True), (199, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [{"decision": "approved", "action_id": "a"}, {"detail": "some words"}, b""])
def test_failures(status, acted, body):
    """No failure is a decision, whatever it carries; a submission is written down before it is judged, so that 5xx may have acted."""
    found = rule(body, status)
    assert (found.word, found.acted, found.final, found.platform_id) == (Word.UNAVAILABLE, acted, True, None)
    assert found.reason.startswith(str(status))
    assert body != {"detail": "some words"} or "some words" in found.reason


def test_an_earlier_try_may_have_acted():
    """Once an answer was lost, being turned away does not undo it."""
    assert rule(b"", 401, attempt=Attempt(0.0, maybe_taken=True)).acted
    assert GATE.rule(question(), Lost("gone", sent=False), Attempt(0.0, maybe_taken=True)).acted


@pytest.mark.parametrize(
    ("headers", "again_s"),
    [({"retry-after": "7"}, 7.0), ({"x-ratelimit-reset": "1090"}, 90.0), ({"x-ratelimit-reset-after": "12"}, 12.0), ({}, 1.0)],
)  # fmt: skip
def test_a_rate_limit_says_when(headers, again_s):
    """429: nothing was made, and the same may be asked when the platform says, after a second where it doesn't."""
    found = rule({"detail": "slow down"}, 429, headers)
    assert found == Ruling(Word.UNAVAILABLE, "429: slow down", acted=False, again_s=again_s)
    assert rule({}, 503, {"retry-after": "7"}).again_s is None


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_lost_answer(was_sent):
    """What was lost after it left may have acted."""
    assert GATE.rule(question(), Lost("gone", was_sent), NOW) == Ruling(Word.UNAVAILABLE, "gone", acted=was_sent)


def test_nothing_is_repeated():
    """ASCEND knows no idempotency of any kind: a submission is sent once."""
    traits = GATE.traits
    assert (traits.repeat, traits.fails_open, traits.deadline_s, traits.poll_s) == (False, True, 5.0, 2.0)
    assert (traits.introduces, traits.id_field) == ("action", "action_id")


def test_reasons_are_bounded_and_keep_no_secret():
    """What a platform says of a key that it refuses does not carry the key on."""
    found = rule(
        {"detail": "Invalid API key owkai_live_s3cret, sent as Bearer owkai_live_s3cret", "error_code": "X"}, 401
    )
    assert "s3cret" not in found.reason
    assert found.reason == "401 X: Invalid API key [key], sent as [key]"
    for body in (
        {"decision": "x" * 9999},
        {"decision": "approved", "reason": "x" * 9999},
        {"decision": "denied", "reason": "x" * 9999},
    ):
        assert len(rule(body).reason) <= 500
        assert len(followed(body).reason) <= 500


# -- what comes later ------------------------------------------------------------------------------------------------------


def test_following():
    """The decision is asked for by id, as text in one segment of the path."""
    for key, path in (("act_7", "act_7"), ("7", "7"), ("x/../y?z#ü", "x%2F..%2Fy%3Fz%23%C3%BC")):
        assert GATE.follow(question(), key, context()) == Request(f"/api/v1/actions/{path}/status", b"", method="GET")


@pytest.mark.parametrize("key", ["", " ", ".", "..", "fail_open_1", "x" * 300, "a\r\nb"])
def test_what_can_not_be_followed(key):
    """An id that would address something else is not asked for."""
    assert GATE.follow(question(), key, context()) is None


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "shape",
    [
        lambda word: {"action_id": 7, "decision": word, "status": word, "updated_at": "x"},
        lambda word: {"status": "success", "data": {"action_id": 7, "decision": word}},
        lambda word: {"action_id": 7, "status": word, "decision_ready": word != "processing"},
        lambda word: {"id": 7, "status": word, "approved_by": "ann", "requires_approval": True},
    ],
)  # fmt: skip
def test_every_word_when_followed(shape, word):
    """The same words in the shapes of a status; what is not decided is open."""
    found = followed(shape(word))
    assert (found.word, found.final, found.platform_id) == (WORDS[word].word, WORDS[word].final, "7")


def test_not_ready_is_not_final():
    """`decision_ready` false keeps an approval open, true makes an unknown word the last one."""
    assert followed({"status": "approved", "decision_ready": False}) == Ruling(Word.PENDING, "approved", final=False)
    assert followed({"status": "expired"}).final is False
    found = followed({"status": "expired", "decision_ready": True})
    assert (found.word, found.final) == (Word.REVIEW, True)


def test_a_person_may_have_approved_what_a_policy_put_before_them():
    """A policy that asks for approval contradicts none when the status is read; one that denies does."""
    assert followed({"status": "approved", "policy_decision": "require_approval"}).word is Word.ALLOW
    assert followed({"status": "approved", "policy_decision": "deny"}).word is Word.REVIEW


def test_an_answer_about_another_action():
    """A status names the action that it is about, by which whoever asked can tell; one about two actions decides nothing."""
    assert followed({"action_id": "act_other", "status": "approved"}).platform_id == "act_other"
    for word in ("approved", "denied"):
        found = followed({"action_id": "a", "data": {"action_id": "b", "decision": word}})
        assert (found.word, found.final, found.platform_id) == (Word.PENDING, False, None)
    assert followed({"action_id": 7, "data": {"action_id": "7", "decision": "approved"}}).word is Word.ALLOW


@pytest.mark.parametrize("status", [200, 202, 204, 302, 400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("body", [b"", b"<html>", {}, [], {"detail": "x"}, {"status": "error"}, {"success": False, "status": "approved"}])  # fmt: skip
def test_what_is_not_the_last_word_keeps_it_open(status, body):
    """A read that fails decides nothing, in either direction."""
    found = followed(body, status)
    assert (found.word, found.final) == (Word.PENDING, False)
    assert GATE.rule_followed(question(), Lost("gone", sent=True), NOW) == Ruling(Word.PENDING, "gone", final=False)


def test_a_failure_grants_nothing_when_followed():
    """An approval in the body of a failure is none."""
    assert followed({"decision": "approved"}, 500).word is Word.PENDING
    assert followed({"detail": {"error": "governance violation"}}, 403).word is Word.PENDING


# -- the kill switch -------------------------------------------------------------------------------------------------------


def guarded(body, status=200, headers=None):
    return GATE.rule_guard(answer(body, status, headers), NOW)


def test_the_kill_switch_is_read():
    """Before a submission; as the SDK reads it."""
    assert GATE.guard() == Request("/api/sdk/kill-switch/status", b"", method="GET")


@pytest.mark.parametrize("body", [{"blocked": False}, {"blocked": False, "reason": None}, {"status": "success", "data": {"blocked": False}}])  # fmt: skip
def test_a_switch_that_is_off(body):
    """Off, or none there: the submission goes on."""
    assert guarded(body) is None
    for missing in (b"", {"detail": "Not Found"}, b"<html>"):
        assert guarded(missing, 404) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"blocked": True, "reason": "incident 7"}, "kill switch: incident 7"), ({"blocked": True, "reason": None}, "kill switch: thrown"),
        ({"blocked": True, "reason": 5}, "kill switch: thrown"), ({"data": {"blocked": True, "reason": "x"}}, "kill switch: x"),
        ({"blocked": False, "data": {"blocked": True}}, "kill switch: thrown"), ({"blocked": True, "reason": "y" * 999}, "kill switch: " + "y" * 487),
    ],
)  # fmt: skip
def test_a_switch_that_is_thrown(body, reason):
    """A thrown switch is the platform's no, with its reason; nothing was submitted."""
    assert guarded(body) == Ruling(Word.DENY, reason, acted=False)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", {}, [], {"blocked": None}, {"blocked": "false"}, {"blocked": 0}, {"blocked": 1}, {"data": {}}]
)  # fmt: skip
def test_a_switch_that_can_not_be_read(body):
    """What does not say that it is off is not off."""
    found = guarded(body)
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert found.reason.startswith("kill switch: it can't be read")


@pytest.mark.parametrize("status", [201, 204, 302, 400, 401, 402, 403, 429, 500, 503])
def test_a_failure_is_no_switch_that_is_off(status):
    """Any failure but 404 leaves it unread, and nothing submitted."""
    found = guarded({"blocked": False}, status, {"retry-after": "3"})
    assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
    assert found.again_s == (3.0 if status == 429 else None)


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_lost_switch(was_sent):
    """The read may be lost as it likes: nothing was submitted."""
    found = GATE.rule_guard(Lost("gone", was_sent), NOW)
    assert found == Ruling(Word.UNAVAILABLE, "kill switch: gone", acted=False)
