"""decide.fyi's gate: what it sends, and what each answer means for whoever asked."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, GATE_ANSWER_BYTES, Attempt, Context, Lost, Response
from agentd.gating import Question, Word

GATE = platforms.load("decidefyi").gates["decide"]
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
CONTEXT = Context(lambda local: local, lambda _kind, local: local)
BOOK = {"schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1"}
ASKED = {"mode": "rulebook", "rulebook": BOOK, "context": {"inputs": {"discount": 5, "note": None}}}
RECORD = {
    "decision_record_version": "decision_record_v1", "verdict": "yes", "c": "yes", "v": "APPROVE", "status": "ok",
    "application_verdict": "APPROVE", "action": "approve_discount", "reason_code": "SMALL", "decision_id": "dec_1",
    "request_id": "req_1",
}  # fmt: skip
BINDING = {
    "production_core": "hybrid_declarative_rulebook_with_trusted_adapters", "binding_mode": "direct_declarative_rulebook",
    "verdict_authority": "declarative_rulebook", "customer_supplied_code": "rejected",
}  # fmt: skip
ADVISORY = {"authority": "advisory_only", "production_verdict": False, "production_binding_required": True}


def question(request=None, run_id=None):
    fields = {name: Raw(json.dumps(value).encode()) for name, value in (ASKED if request is None else request).items()}
    return Question("decide", "01890a5d-ac96-774b-bcce-b302099a8057", "mine", "", run_id, fields, int(NOW * 1e6))


def ruling(body=b"", status=200, *, request=None, headers=None, maybe_taken=False):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return GATE.rule(question(request), Response(status, headers or {}, body), Attempt(NOW, maybe_taken))


def record(**fields):
    return {name: value for name, value in (RECORD | fields).items() if value is not ...}


# -- the request -----------------------------------------------------------------------------------------------------------


def test_the_request_goes_as_it_is():
    """Decide: the platform's fields, their bytes untouched; a null at the top and the client's own name are left out."""
    asked = {**ASKED, "response_view": "minimal", "binding_mode": None, "decision_id": "mine", "question": "Ok? 🙂"}
    request = GATE.ask(question(asked), CONTEXT)
    assert (request.method, request.path) == ("POST", "/api/decide")
    assert json.loads(request.body) == {**ASKED, "response_view": "minimal", "question": "Ok? 🙂"}
    assert request == GATE.ask(question(asked), CONTEXT)


def test_what_kind_of_gate_it_is():
    """Decide: it names a decision, a repeat under its key is safe, nothing has to be known before and nothing is followed."""
    assert (GATE.traits.introduces, GATE.traits.id_field, GATE.traits.repeat) == ("decision", "decision_id", True)
    assert (GATE.traits.deadline_s, GATE.traits.poll_s) == (5.0, 0.0)
    assert GATE.references(question(run_id="r")) == ()
    assert GATE.follow(question(), "dec_1", CONTEXT) is None


# -- verdicts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "word"), [("yes", Word.ALLOW), ("no", Word.DENY), ("review", Word.REVIEW)]
)  # fmt: skip
@pytest.mark.parametrize(
    "smaller", [(), ("c", "v", "status", "action", "application_verdict", "decision_record_version")]
)
def test_the_verdict_counts(verdict, word, smaller):
    """Decide: yes, no and review of a rulebook, with the decision's id and the reason's code, in every view."""
    answer = record(**{"verdict": verdict, "c": verdict} | dict.fromkeys(smaller, ...))
    found = ruling(answer)
    assert (found.word, found.final, found.platform_id, found.reason) == (word, True, "dec_1", "SMALL")


@pytest.mark.parametrize(
    "fields",
    [
        {"application_verdict": "BLOCK", "v": "BLOCK", "action": "reject_discount"}, {"c": None}, {"error": None},
        {"decision": "yes"}, {"missing_fields": []}, {"decision_contract": None}, {"anything": {"new": 1}}, {"ok": True}, {"success": True},
        {"runtime_binding": BINDING}, {"runtime_binding": BINDING | {"adapter_authority": "facts_only"}}, {"runtime_binding": None},
        {"runtime_binding": {}}, {"decision_contract": {"schema_version": "decide_decision_contract_v1"}},
        {"decision_contract": {"authority": "production_verdict", "production_verdict": True}},
        {"adapter_facts": {"approved": False, "decision": "no"}}, {"action_binding": {"status": "failed"}},
        {"evaluation": {"matched": False, "checks": [{"passed": False}]}}, {"rulebook_contract": {"customer_executable_rulebooks": "rejected"}},
        {"rulebook_attestation": {"bundle": {"outcome": {"verdict": "yes", "application_verdict": "BLOCK"}},
                                  "signature": {"status": "unsigned", "error": "RULEBOOK_ATTESTATION_SIGNING_KEY_MISSING"}}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_words_of_the_rulebooks_author_contradict_nothing(fields):
    """Decide: what a yes is about is the author's vocabulary, and fields that are new or empty are let by."""
    assert ruling(record(**fields)).word is Word.ALLOW


DOUBTFUL = [
    {"c": "no"}, {"c": "unclear"}, {"c": "filtered"}, {"c": "review"}, {"c": "red"}, {"c": True}, {"decision": "no"},
    {"decision": "review"}, {"status": "needs_input"}, {"status": "degraded"}, {"status": "queued"}, {"status": 5},
    {"application_verdict": "NEEDS_INPUT"}, {"missing_fields": ["discount"]}, {"invalid_fields": ["discount"]},
    {"error": "DECIDE_AI_PROVIDER_TIMEOUT"}, {"error": {"code": 1}}, {"decision_contract": ADVISORY},
    {"decision_contract": {"authority": "advisory_only"}}, {"decision_contract": {"production_verdict": False}},
    {"decision_contract": {"production_binding_required": True}}, {"decision_contract": "advisory_only"},
    {"decision_contract": {"production_verdict": None}}, {"decision_contract": {"production_verdict": 1}},
    {"decision_contract": {"authority": "advisory"}}, {"decision_contract": {"authority": None}}, {"decision_contract": {"authority": False}},
    {"decision_contract": {"authority": "none"}}, {"runtime_binding": BINDING | {"verdict_authority": "advisory_only"}},
    {"runtime_binding": BINDING | {"verdict_authority": "caller_override"}}, {"runtime_binding": BINDING | {"verdict_authority": None}},
    {"runtime_binding": BINDING | {"production_core": False}}, {"runtime_binding": BINDING | {"production_core": "llm"}},
    {"runtime_binding": BINDING | {"binding_mode": "customer_executable_rulebook"}}, {"runtime_binding": "advisory_only"},
    {"runtime_binding": BINDING | {"customer_supplied_code": "accepted"}}, {"runtime_binding": False}, {"ok": False}, {"ok": 0},
    {"ok": "false"}, {"success": False}, {"errors": ["x"]}, {"error_code": "X"}, {"blocked": True}, {"execution_allowed": False},
    {"rulebook_contract": {"error": "x"}}, {"policy_bundle": {"status": "revoked"}},
]  # fmt: skip


@pytest.mark.parametrize("fields", DOUBTFUL, ids=json.dumps)
def test_a_yes_that_is_contradicted_is_a_review(fields):
    """Decide: where fields say what the verdict says, one that says otherwise makes it a review, never an allow."""
    found = ruling(record(**fields))
    assert (found.word, found.final, found.platform_id) == (Word.REVIEW, True, "dec_1")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"c": "yes"}, Word.REVIEW), ({"c": "allow"}, Word.REVIEW), ({"c": "unclear"}, Word.REVIEW),
        ({"status": "degraded"}, Word.REVIEW), ({"error": "X"}, Word.REVIEW), ({"c": "deny"}, Word.DENY),
    ],
)  # fmt: skip
def test_a_no_that_is_contradicted_is_a_review(fields, word):
    """Decide: a no that another field contradicts is a review too; another word for no is none."""
    assert ruling(record(verdict="no", **{"c": "no"} | fields)).word is word


@pytest.mark.parametrize(
    "verdict", ["Yes", "YES", "approve", "allow", "ok", "", None, True, 1, ["yes"], {"yes": 1}, ...]
)
def test_another_verdict_is_a_review(verdict):
    """Decide: the documented words are yes, no and review; any other, or none, is nothing to go on with."""
    assert ruling(record(verdict=verdict)).word is Word.REVIEW


def test_a_name_that_occurs_twice_is_a_review():
    """Decide: JSON in which a name occurs twice says two things, at whatever depth."""
    twice = b'{"verdict":"no","decision_id":"dec_1","verdict":"yes"}'
    assert ruling(twice).word is Word.REVIEW
    assert "twice" in ruling(b'{"verdict":"yes","rulebook":{"id":"a","id":"b"}}').reason


@pytest.mark.parametrize("mode", [None, "single", "multi", "runtime", "Rulebooks", 5, ["rulebook"]])
def test_advice_binds_nobody(mode):
    """Decide: outside of rulebooks a yes is a review that says why; a no still is a no."""
    asked = {"question": "Ship today?"} | ({} if mode is None else {"mode": mode})
    found = ruling(record(), request=asked)
    assert (found.word, found.final) == (Word.REVIEW, True)
    assert "advisory" in found.reason
    assert ruling(record(verdict="no", c="no", decision_contract=ADVISORY), request=asked).word is Word.DENY
    chosen = record(verdict="no", c="the red one", decision_contract=ADVISORY)
    assert ruling(chosen, request={"question": "a | b", "mode": "multi"}).word is Word.DENY


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"mode": " RuleBook "}, Word.ALLOW), ({"rulebook": BOOK}, Word.ALLOW), ({"rulebook": BOOK, "mode": None}, Word.ALLOW),
        ({"rulebook": BOOK, "mode": "single"}, Word.REVIEW), ({"rulebook": {}}, Word.REVIEW), ({"rulebook": "x"}, Word.REVIEW),
    ],
)  # fmt: skip
def test_what_asks_for_a_rulebooks_verdict(asked, word):
    """Decide: the mode, or without one a rulebook_v1 in the request, as the platform reads it."""
    assert ruling(record(), request=asked).word is word


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"status": "needs_input", "verdict": "review", "reason_code": "INPUT_SCHEMA_FAILED", "missing_fields": ["discount"],
          "invalid_fields": ["n"], "application_verdict": "NEEDS_INPUT"}, "INPUT_SCHEMA_FAILED: needs input, missing_fields discount, invalid_fields n"),
        ({"c": "unclear", "v": "Ask a question"}, "unclear Ask a question"),
        ({"c": "filtered", "v": "Cannot provide legal advice"}, "filtered Cannot provide legal advice"),
        ({"status": "degraded", "c": "unclear", "error": "DECIDE_AI_PROVIDER_TIMEOUT", "v": "try again"}, "DECIDE_AI_PROVIDER_TIMEOUT"),
        ({"c": "yes", "v": "yes", "decision_contract": ADVISORY}, "without a verdict: yes"),
        ({"verdict": "maybe"}, "unknown verdict 'maybe'"),
        (b"", "base_url"), (b"<html>hi</html>", "base_url"), (b"[]", "base_url"), (b"null", "base_url"), (b'"yes"', "base_url"),
        (b"\xff\xfe", "base_url"), (b"{" * GATE_ANSWER_BYTES, "minimal"), (b'{"verdict":"yes","evidence":"' + b"x" * GATE_ANSWER_BYTES, "too long to be read whole"),
        (b'{"verdict":"yes","evidence":"' + b"x" * ANSWER_BYTES, "base_url"), (b"<html>" + b"x" * 70_000, "base_url"),
        (b"<html>" + b"x" * GATE_ANSWER_BYTES, "base_url"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_a_200_without_a_verdict_is_a_final_review(body, said):
    """Decide: needs_input, unclear, filtered, degraded, and what is no answer of its own: a review that says what is missing."""
    found = ruling(body)
    assert (found.word, found.final, found.again_s) == (Word.REVIEW, True, None)
    assert said in found.reason


def test_the_header_names_a_decision_that_the_body_does_not():
    """Decide: `x-decision-id` is the decision's id as well; an id that no path could carry is none."""
    assert ruling(record(decision_id=...), headers={"x-decision-id": "dec_9"}).platform_id == "dec_9"
    for wrong in ("", " ", "..", "a\nb", "x" * 300, 5):
        assert ruling(record(decision_id=wrong)).platform_id is None


@pytest.mark.parametrize("status", [201, 202, 204, 206])
def test_another_success_is_a_review(status):
    """Decide: a decision record comes with 200; any other success is not known to be one."""
    assert ruling(record(), status).word is Word.REVIEW


# -- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "acted", "again_s"),
    [
        (400, {"error": "DECIDE_API_INVALID_REQUEST", "message": "m"}, False, None),
        (401, {"error": "DECIDE_API_UNAUTHORIZED", "v": "unauthorized", "c": "unclear"}, False, None), (402, b"", False, None),
        (403, {"error": "DECIDE_API_UNAUTHORIZED"}, False, None), (404, {"c": "unclear", "v": "try again"}, False, None),
        (405, {"c": "unclear", "v": "try again"}, False, None), (413, {"error": "DECIDE_AI_PROMPT_TOO_LARGE"}, False, None),
        (422, {"error": "RULEBOOK_INVALID"}, False, None), (408, b"", True, None),
        (409, {"error": "DECIDE_API_IDEMPOTENCY_CONFLICT", "v": "idempotency_conflict"}, True, None), (409, b"", True, None),
        (409, {"status": "in_progress"}, True, 1.0), (409, {"error": "DECIDE_IN_PROGRESS", "retry_after": 2}, True, 2.0),
        (429, {"error": "DECIDE_API_RATE_LIMITED", "retry_after": 7}, False, 7.0), (429, b"", False, 1.0),
        (429, {"ok": False, "error": "RATE_LIMIT_EXCEEDED", "retry_after": 3}, False, 3.0),
        (429, {"error": "DECIDE_API_MONTHLY_CAP_EXCEEDED", "retry_after": 9}, False, None),
        (429, {"v": "monthly_cap_exceeded"}, False, None), (429, {"error": "DECIDE_AI_BUDGET_EXHAUSTED"}, False, None),
        (500, {"c": "unclear", "v": "try again"}, True, 1.0), (502, b"<html>", True, 1.0), (503, {"retryable": True, "retry_after": 2}, True, 2.0),
        (503, {"error": "RULEBOOK_ATTESTATION_SIGNATURE_REQUIRED"}, False, None), (503, {"error": "DECIDE_AI_DISABLED_ZERO_COST"}, False, None),
        (301, b"", False, None), (302, b"", True, None), (307, b"", False, None), (600, record(), True, 1.0),
    ],
)  # fmt: skip
def test_refusals(status, body, acted, again_s):
    """Decide: no refusal is a verdict; what was turned away made nothing, what is under way or broke may have."""
    found = ruling(body, status)
    assert (found.word, found.final, found.acted, found.again_s) == (Word.UNAVAILABLE, True, acted, again_s)
    assert str(status) in found.reason


@pytest.mark.parametrize("status", [401, 422, 429, 503])
def test_an_earlier_try_may_have_acted(status):
    """Decide: after a try whose answer was lost, a refusal of the next does not say that nothing was made."""
    assert ruling({"error": "DECIDE_AI_DISABLED_ZERO_COST"}, status, maybe_taken=True).acted is True
    assert GATE.rule(question(), Lost("refused", sent=False), Attempt(NOW, maybe_taken=True)).acted is True


def test_a_refusal_says_what_is_wrong():
    """Decide: the platform's message, the places that it lists, and that a conflict is no leave to act."""
    errors = [{"field": "rulebook.version", "code": "x", "message": "must be 1-80 characters"}, 5]
    said = ruling({"error": "RULEBOOK_INVALID", "message": "validation failed", "errors": errors}, 422).reason
    assert said == "422 RULEBOOK_INVALID: validation failed: rulebook.version must be 1-80 characters"
    forbidden = {"error": "RULEBOOK_OUTPUT_MATERIAL_FORBIDDEN", "message": "m", "forbidden_fields": ["verdict"]}
    assert "verdict" in ruling(forbidden, 422).reason
    assert "do not execute" in ruling({"error": "DECIDE_API_IDEMPOTENCY_CONFLICT"}, 409).reason
    assert "base_url" in ruling(b"<html>", 404).reason
    assert "base_url" not in ruling({"c": "unclear", "v": "try again", "error": "NOT_FOUND"}, 404).reason
    assert "decide_live_abc" not in ruling({"error": "X_Y", "message": "key decide_live_abc"}, 401).reason


@pytest.mark.parametrize("sent", [False, True])
def test_a_lost_answer(sent):
    """Decide: without an answer there is no verdict, and something was made only if something was sent."""
    found = GATE.rule(question(), Lost("timeout", sent=sent), Attempt(NOW))
    assert (found.word, found.acted, found.reason) == (Word.UNAVAILABLE, sent, "timeout")


VALUES = ([], {}, "x" * 60_000, [["x" * 60_000]], -1, 1e300, True, "\x00\n\u202e", [{"a": [None]}])
SPEAKING = ("verdict", "c", "decision", "status", "error", "missing_fields", "decision_contract")
OTHERS = (
    "reason_code",
    "errors",
    "forbidden_fields",
    "decision_id",
    "retry_after",
    "idempotency",
    "message",
    "v",
    "action",
)


@pytest.mark.parametrize("status", [200, 201, 409, 422, 429, 503])
@pytest.mark.parametrize("name", [*SPEAKING, *OTHERS])
def test_no_body_breaks_a_ruling(status, name):
    """Decide: whatever stands in a field, there is a ruling, its reason short and sound, and no allow by accident."""
    for value in VALUES:
        found = ruling(record(**{name: value}), status)
        assert len(found.reason) <= 500
        msgspec.json.encode(found)
        assert found.word is not Word.ALLOW or (status == 200 and (name in OTHERS or value in ([], {})))
    assert ruling(b'{"verdict":"yes","reason_code":"\\ud83d"}', status).word is not Word.ALLOW
