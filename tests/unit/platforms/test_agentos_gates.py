"""AgentOS's gates, invoke and human input: what they send and what each answer means."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, GATE_ANSWER_BYTES, Attempt, Context, Lost, Reference, Response, Unencodable
from agentd.gating import Question, Word

GATES = platforms.load("agentos").gates
INVOKE, HUMAN = GATES["invoke"], GATES["human_input"]
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
CONTEXT = Context(lambda local: f"id-of-{local}" if local else "", lambda _kind, local: f"p-{local}")
DEAD = Context(lambda local: local, lambda _kind, _local: None)
PATH = "/api/ingest/v1/human-input/request"
DONE = {"run_id": "run_1", "output": {"summary": "s"}, "duration_ms": 5, "session_id": None}
REPLY = {"input": "go ahead", "request_id": "hir_1"}
PENDING = {"request_id": "hir_1", "status": "pending"}


def question(gate, agent="billing", run_id=None, **fields):
    request = {name: Raw(json.dumps(value).encode()) for name, value in fields.items()}
    return Question(gate, "01890a5d-ac96-774b-bcce-b302099a8057", "mine", agent, run_id, request, int(NOW * 1e6))


def invoke(**fields):
    return question("invoke", **fields)


def human(run_id="r", **fields):
    return question("human_input", run_id=run_id, **{"prompt": "Ship?"} | fields)


def body_of(gate, asked, context=CONTEXT):
    return json.loads(gate.ask(asked, context).body)


def failure(code, message="m"):
    return json.dumps({"data": None, "error": {"code": code, "message": message}}).encode()


def response(data=None, status=200, headers=None, **envelope):
    body = data if isinstance(data, bytes) else json.dumps({"data": data, "error": None} | envelope).encode()
    return Response(status, headers or {}, body)


def ran(data=None, status=200, *, maybe_taken=False, **envelope):
    return INVOKE.rule(invoke(), response(data, status, **envelope), Attempt(NOW, maybe_taken))


def heard(data=None, status=200, *, maybe_taken=False, **envelope):
    return HUMAN.rule(human(), response(data, status, **envelope), Attempt(NOW, maybe_taken))


def followed(data=None, status=200, **envelope):
    return HUMAN.rule_followed(human(), response(data, status, **envelope), Attempt(NOW))


# -- invoke: the request ---------------------------------------------------------------------------------------------------


def test_an_invoke_as_the_sdk_sends_it():
    """AgentOS: the agent in the path, an input always, the parent run by the platform's id; flags only where they are true."""
    request = INVOKE.ask(invoke(), CONTEXT)
    assert (request.method, request.path, request.body) == (
        "POST",
        "/api/v1/agents/id-of-billing/invoke",
        b'{"input":{}}',
    )
    fields = {
        "input": {"q": None}, "prompt_variables": {"A": "b"}, "parent_run_id": "r", "session_id": "s", "external_user_id": "u",
        "test": True, "start_session": False, "history": None, "invocation_id": "mine",
    }  # fmt: skip
    asked = invoke(agent_id="hosted", **fields)
    assert INVOKE.ask(asked, CONTEXT).path == "/api/v1/agents/id-of-hosted/invoke"
    assert body_of(INVOKE, asked) == {
        "input": {"q": None}, "prompt_variables": {"A": "b"}, "parent_run_id": "p-r", "session_id": "s", "external_user_id": "u",
        "test": True,
    }  # fmt: skip
    assert INVOKE.ask(asked, CONTEXT) == INVOKE.ask(asked, CONTEXT)
    turns = [{"role": "user", "content": "hi"}]
    assert body_of(INVOKE, invoke(history=turns, test=False)) == {"input": {}, "history": turns}


def test_a_parent_that_died_is_left_out():
    """AgentOS: the parent is a run that is waited for; without it the hosted run goes alone, as a run.start would."""
    asked = invoke(parent_run_id="r")
    assert INVOKE.references(asked) == (Reference("run", "r", optional=True),)
    assert body_of(INVOKE, asked, DEAD) == {"input": {}}
    for fields in ({}, {"parent_run_id": None}, {"parent_run_id": 5}):
        assert INVOKE.references(invoke(run_id="other", **fields)) == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stream": True}, "stream: expected to be left out"), ({"input": "x"}, "input: expected an object"), ({"input": []}, "input: "),
        ({"prompt_variables": {"a": 1}}, "prompt_variables: expected an object of strings"), ({"session_id": ""}, "session_id: "),
        ({"session_id": "s", "start_session": True}, "start_session: expected at most one of session_id, start_session, history"),
        ({"start_session": True, "history": []}, "history: expected at most one"), ({"history": [{"role": "user"}]}, "history: "),
        ({"history": "x"}, "history: expected an array"), ({"test": "yes"}, "test: expected true or false"), ({"inputs": {}}, "inputs: unknown field"),
        ({"agent_id": 5}, "agent_id: "), ({"agent": "", "agent_id": None}, "agent_id: required"), ({"parent_run_id": 5}, "parent_run_id: "),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_with_an_invoke(fields, words):
    """AgentOS: a wrong field is named with what would be right, before anything is sent."""
    with pytest.raises(Unencodable, match=rf"^\$\.request\.{words}"):
        INVOKE.ask(invoke(**fields), CONTEXT)


@pytest.mark.parametrize("agent", ["..", ".", "a/b", "a\\b", "a\nb", "x" * 300])
def test_an_agent_is_one_segment_of_the_path(agent):
    """AgentOS: an id that would lead to another path is refused; anything else is quoted."""
    with pytest.raises(Unencodable, match=r"^\$\.request\.agent_id: .*can't be"):
        INVOKE.ask(invoke(agent_id=agent), DEAD)
    assert INVOKE.ask(invoke(agent_id="a b?#"), DEAD).path == "/api/v1/agents/a%20b%3F%23/invoke"


def test_what_kind_of_gate_an_invoke_is():
    """AgentOS: never repeated, a minute long, and what it makes is no run that records of an agent could name."""
    traits = INVOKE.traits
    assert (traits.repeat, traits.deadline_s, traits.introduces, traits.poll_s) == (False, 60.0, "invocation", 0.0)
    assert INVOKE.follow(invoke(), "run_1", CONTEXT) is None
    assert INVOKE.rule_followed(invoke(), response(DONE), Attempt(NOW)).final is False


# -- invoke: the answer ----------------------------------------------------------------------------------------------------


def test_a_run_that_is_complete():
    """AgentOS: 200 with a run's id is an allow, whatever its output is."""
    for data in (
        DONE,
        {"run_id": "run_1"},
        DONE | {"output": None, "status": "completed", "more": 1},
        DONE | {"awaiting_input": None},
    ):
        found = ran(data)
        assert (found.word, found.final, found.platform_id) == (Word.ALLOW, True, "run_1")


@pytest.mark.parametrize("status", [200, 202])
@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ({"awaiting_approval": {"approval_id": "apr_1"}}, "awaiting approval apr_1"), ({"awaiting_approval": "x"}, "awaiting approval"),
        ({"awaiting_input": {"request_id": "q", "question": "Which one?"}}, "awaiting input: Which one?"), ({"awaiting_input": True}, "awaiting input"),
    ],
)  # fmt: skip
def test_a_run_that_paused_is_pending(status, waits, said):
    """AgentOS: a paused run is no success, under whichever status; it can't be followed, a person has to see to it."""
    found = ran(DONE | waits, status)
    assert (found.word, found.final, found.platform_id) == (Word.PENDING, False, "run_1")
    assert said in found.reason


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200), (b"<html>", 200), (b"[]", 200), (b"null", 200), (b"{}", 200), (b"\xff", 200), (b"{" * 90_000, 200), (None, 200), ([], 200),
        ({}, 200), ({"output": 1}, 200), (DONE | {"run_id": ""}, 200), (DONE | {"run_id": 5}, 200), (DONE | {"run_id": ".."}, 200),
        (DONE | {"status": "failed"}, 200), (DONE | {"status": ["completed"]}, 200), (DONE, 201), (DONE, 202), (DONE, 204), (DONE, 206),
        (b'{"data":{"run_id":"run_1","output":"' + b"x" * ANSWER_BYTES, 200), (b'{"data":{"run_id":"a","run_id":"b"},"error":null}', 200),
        (b'{"data":{"run_id":"a"},"error":{"code":"PROVIDER_ERROR","message":"m"}}', 200), (b'{"data":{"run_id":"a"},"error":"x"}', 200),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_an_answer_that_is_not_certain_is_a_review(body, status):
    """AgentOS: without its envelope, a run's id or a result, cut, or with an error: a final review."""
    found = ran(body, status)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert 0 < len(found.reason) <= 500


@pytest.mark.parametrize("beside", [{"success": False}, {"ok": 0}, {"error": {"code": "X"}}, {"blocked": True}, {"decision": "denied"}], ids=str)  # fmt: skip
def test_a_result_beside_a_no_is_a_review(beside):
    """AgentOS: a no around the result or within `data` is looked at; what the agent or the person said is theirs."""
    for found in (ran(DONE | beside), heard(REPLY | beside)):
        assert (found.word, found.final) == (Word.REVIEW, True)
    for found in (ran(DONE, **beside), heard(REPLY, **beside)):
        assert found.word is Word.REVIEW
    assert ran(DONE | {"output": beside}).word is Word.ALLOW
    assert heard(REPLY | {"context": beside}).word is Word.ALLOW


def test_what_was_read_whole_is_not_said_to_be_cut():
    """AgentOS: of an answer to a gate 1 MiB is read; a page of 70 KB is a page."""
    assert "longer than can be read" in ran(b'{"data":"' + b"x" * GATE_ANSWER_BYTES).reason
    for whole in (b'{"data":"' + b"x" * 70_000, b"<html>" + b"x" * GATE_ANSWER_BYTES):
        assert "base_url" in ran(whole).reason


REFUSALS = [
    (400, failure("VALIDATION_ERROR"), False, None), (401, failure("UNAUTHENTICATED"), False, None), (402, failure("PAYMENT_REQUIRED"), False, None),
    (403, b"", False, None), (404, failure("NOT_FOUND"), False, None), (404, b"<html>", False, None), (422, b"", False, None),
    (408, b"", True, None), (409, b"", True, None), (429, failure("RATE_LIMITED"), False, 1.0), (429, b"", False, 1.0),
    (500, failure("INTERNAL_ERROR"), True, None), (502, failure("BAD_GATEWAY"), True, None), (503, failure("RATE_LIMITED"), False, 1.0),
    (302, b"", True, None), (307, b"", False, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "acted", "again_s"), REFUSALS, ids=lambda value: str(value)[:30])
def test_refusals(status, body, acted, again_s):
    """AgentOS: no refusal is a verdict; what was turned away made nothing, what broke or ran out of time may have."""
    for rule in (ran, heard):
        found = rule(body, status)
        assert (found.word, found.final, found.acted, found.again_s) == (Word.UNAVAILABLE, True, acted, again_s)
        assert str(status) in found.reason


def test_a_timeout_or_a_conflict_of_an_invoke_is_no_verdict():
    """AgentOS: their meaning is documented for questions to people alone; a run may be under way."""
    for status, code in ((408, "TIMEOUT"), (409, "CONFLICT")):
        found = ran(failure(code), status)
        assert (found.word, found.acted) == (Word.UNAVAILABLE, True)


def test_rest_and_earlier_tries():
    """AgentOS: `Retry-After` of a 429; what an earlier try may have made stays made."""
    assert ran(None, 429, headers={"retry-after": "7"}).again_s == 7.0
    assert ran(b"", 401, maybe_taken=True).acted is True
    assert heard(b"", 401, maybe_taken=True).acted is True


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("gate", [INVOKE, HUMAN])
def test_a_lost_answer(gate, sent):
    """AgentOS: without an answer there is no verdict, and something was made only if something was sent."""
    found = gate.rule(human(), Lost("timeout", sent=sent), Attempt(NOW))
    assert (found.word, found.acted, found.reason) == (Word.UNAVAILABLE, sent, "timeout")


# -- human input: the request ----------------------------------------------------------------------------------------------


def test_a_question_as_the_sdk_asks_it():
    """AgentOS: the run by the platform's id, the prompt, an hour; asked for again it is the same with its request_id."""
    request = HUMAN.ask(human(context={"amount": 5}, question_id="mine"), CONTEXT)
    body = {"run_id": "p-r", "prompt": "Ship?", "timeout_seconds": 3600, "context": {"amount": 5}}
    assert (request.method, request.path, json.loads(request.body)) == ("POST", PATH, body)
    again = HUMAN.follow(human(context={"amount": 5}, question_id="mine"), "hir_1", CONTEXT)
    assert (again.method, again.path, json.loads(again.body)) == ("POST", PATH, body | {"request_id": "hir_1"})
    assert body_of(HUMAN, human(timeout_seconds=60))["timeout_seconds"] == 60


def test_the_run_of_a_question():
    """AgentOS: the question's own run or the one in its request, which may not be two; it is waited for."""
    assert HUMAN.references(human()) == (Reference("run", "r"),)
    inside = msgspec.structs.replace(human(run_id=None), request={"prompt": Raw(b'"p"'), "run_id": Raw(b'"x"')})
    assert HUMAN.references(inside) == (Reference("run", "x"),)
    assert body_of(HUMAN, inside)["run_id"] == "p-x"
    with pytest.raises(Unencodable, match=r"^\$\.request\.run_id: expected 'r'"):
        HUMAN.ask(msgspec.structs.replace(inside, run_id="r"), CONTEXT)
    assert HUMAN.references(human(run_id=None)) == ()
    with pytest.raises(Unencodable, match=r"^\$\.request\.run_id: required"):
        HUMAN.ask(human(run_id=None), CONTEXT)
    for call in (lambda: HUMAN.ask(human(), DEAD), lambda: HUMAN.follow(human(), "hir_1", DEAD)):
        with pytest.raises(Unencodable, match=r"^\$\.request\.run_id: .*unknown to the platform"):
            call()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, "prompt: required"), ({"prompt": " "}, "prompt: expected a string"), ({"prompt": 5}, "prompt: "),
        ({"timeout_seconds": 0}, "timeout_seconds: expected a whole"), ({"timeout_seconds": 1.5}, "timeout_seconds: "),
        ({"timeout_seconds": True}, "timeout_seconds: "), ({"context": "x"}, "context: expected an object"),
        ({"request_id": "hir_1"}, "request_id: expected to be left out"), ({"promt": "x"}, "promt: unknown field; did you mean prompt"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_with_a_question(fields, words):
    """AgentOS: a wrong field is named with what would be right, before anybody is asked."""
    with pytest.raises(Unencodable, match=rf"^\$\.request\.{words}"):
        HUMAN.ask(human(**fields), CONTEXT)


def test_what_kind_of_gate_a_question_is():
    """AgentOS: the first POST is never repeated; it is followed by long polls for an hour."""
    traits = HUMAN.traits
    assert (traits.repeat, traits.deadline_s, traits.introduces) == (False, 3600.0, "question")
    assert (traits.poll_s, traits.poll_timeout_s) == (1.0, 285.0)


# -- human input: the answer -----------------------------------------------------------------------------------------------

WORDS = [
    (REPLY, 200, Word.ALLOW, True), (REPLY | {"status": "answered"}, 200, Word.ALLOW, True), (PENDING, 202, Word.PENDING, False),
    (PENDING, 200, Word.PENDING, False), (PENDING | {"input": "yes"}, 202, Word.PENDING, False), (REPLY | {"input": ""}, 200, Word.REVIEW, True),
    (REPLY | {"input": " \n"}, 200, Word.REVIEW, True), (REPLY | {"input": None}, 200, Word.REVIEW, True), (REPLY | {"input": True}, 200, Word.REVIEW, True),
    (REPLY | {"input": ["yes"]}, 200, Word.REVIEW, True), (REPLY | {"status": "cancelled"}, 200, Word.REVIEW, True),
    (REPLY | {"status": []}, 200, Word.REVIEW, True), (REPLY, 201, Word.REVIEW, True), (REPLY, 202, Word.REVIEW, True), ({}, 200, Word.REVIEW, True),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status", "word", "final"), WORDS, ids=str)
def test_what_a_person_said(data, status, word, final):
    """AgentOS: a reply allows, however it reads; pending goes on, an empty reply or another state is a review."""
    found = heard(data, status)
    assert (found.word, found.final, found.platform_id) == (word, final, data.get("request_id"))
    if word is Word.REVIEW and status != 200:  # no reply, and none of the platform's last words
        word, final = Word.PENDING, False
    assert (followed(data, status).word, followed(data, status).final) == (word, final)


@pytest.mark.parametrize(("status", "code"), [(408, "TIMEOUT"), (409, "CONFLICT")])
def test_nobody_replied_or_it_was_cancelled(status, code):
    """AgentOS: these two errors are answers, and deny; the reason begins with the status and the word."""
    for rule in (heard, followed):
        found = rule(failure(code), status)
        assert (found.word, found.final) == (Word.DENY, True)
        assert found.reason.startswith(f"{status} {code}")


@pytest.mark.parametrize("data", [{"status": "pending"}, PENDING | {"request_id": ""}, PENDING | {"request_id": 5}])
def test_pending_without_an_id_cannot_be_followed(data):
    """AgentOS: a first answer that names no request is a final review; a later one needs none."""
    assert (heard(data, 202).word, heard(data, 202).final) == (Word.REVIEW, True)
    assert (followed(data, 202).word, followed(data, 202).final) == (Word.PENDING, False)


@pytest.mark.parametrize(
    ("status", "body"),
    [(status, body) for status, body, _, _ in REFUSALS]
    + [(200, b"<html>"), (200, b""), (200, failure("INTERNAL_ERROR"))],
)
def test_all_but_the_last_word_is_pending(status, body):
    """AgentOS: while a question is followed, an error of any sort says nothing about the reply."""
    found = followed(body, status)
    assert (found.word, found.final) == (Word.PENDING, False)
    assert found.again_s == (1.0 if status == 429 or "RATE" in str(body) else None)


def test_a_lost_poll_is_pending():
    """AgentOS: a poll without an answer is asked again."""
    found = HUMAN.rule_followed(human(), Lost("timeout", sent=True), Attempt(NOW))
    assert (found.word, found.final, found.reason) == (Word.PENDING, False, "timeout")


@pytest.mark.parametrize(
    "name", ["run_id", "output", "status", "input", "request_id", "awaiting_approval", "awaiting_input", "session_id"]
)
@pytest.mark.parametrize("status", [200, 202, 206, 408, 409, 429, 500])
def test_no_body_breaks_a_ruling(status, name):
    """AgentOS: whatever stands in a field, there is a ruling, its reason short and sound."""
    for value in (
        [],
        {},
        "x" * 60_000,
        [["x" * 9_000]],
        -1,
        1e300,
        True,
        "\x00\n\u202e",
        {"question": ["x" * 900], "approval_id": {}},
    ):
        for rule in (ran, heard, followed):
            for data in (DONE | REPLY | {name: value}, {name: value}, value):
                found = rule(data, status)
                assert len(found.reason) <= 500
                msgspec.json.encode(found)
                assert found.word is not Word.ALLOW or status == 200
