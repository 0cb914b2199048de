"""What every gate owes to whoever waits for it: held against each gate of each adapter that `agentd.platforms` finds.

A new gate adds one row to GRANTS: the least question that it takes, and the one answer that allows it.
"""

from __future__ import annotations

import copy
import json
import posixpath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Request, Response, Unencodable
from agentd.gating import Question, Ruling, Word

GATE_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8058"
CONTEXT = Context(lambda local: local or "agent-1", lambda _kind, local_id: f"p-{local_id}")
NOW = Attempt(1000.0)
GATES = {(name, gate): found for name in platforms.names() for gate, found in platforms.load(name).gates.items()}
DEADLINES = {"invoke": 60.0, "human_input": 3600.0}  # contract §4; 5 s for every other


class Grant(NamedTuple):
    """A question, and the answer that allows it. `word` is where in the answer the decision stands, `known` its good words."""

    request: dict[str, Any]
    body: dict[str, Any]
    word: tuple[str, ...]
    known: frozenset[str] = frozenset()
    followed: bool = False  # only an answer to `follow` grants


RULEBOOK = {"mode": "rulebook", "rulebook": {"schema_version": "rulebook_v1"}}
REPLIES = frozenset({"answered", "completed", "received", "replied", "resolved", "responded"})
GRANTS = {
    ("aegis", "intent"): Grant(
        {"amount": 12500, "currency": "INR", "reason": "r"}, {"id": "int_1", "status": "approved"}, ("status",),
        frozenset({"approved"}), followed=True,
    ),
    ("agentos", "invoke"): Grant({}, {"data": {"run_id": "r", "status": "completed"}, "error": None}, ("data", "status"), frozenset({"completed"})),
    ("agentos", "human_input"): Grant(
        {"prompt": "p"}, {"data": {"request_id": "q", "status": "answered", "input": "yes"}, "error": None}, ("data", "status"), REPLIES
    ),
    ("ascend", "action"): Grant(
        {"action_type": "query"}, {"action_id": "act_1", "decision": "approved"}, ("decision",),
        frozenset({"approved", "auto_approved", "executed"}),
    ),
    ("decidefyi", "decide"): Grant(RULEBOOK, {"verdict": "yes", "decision_id": "d"}, ("verdict",), frozenset({"yes"})),
    ("decisionos", "decision"): Grant({"context": "c"}, {"data": {"id": "dec_1", "policyEval": {"ok": True}}}, ("data", "policyEval", "ok")),
}  # fmt: skip


# The whole answers that sources show for a yes: those of the documentation, the servers' own, the SDKs' tests.
ASCEND_SERVER = {
    "id": 1547, "action_id": 1547, "status": "approved", "risk_score": 35.0, "risk_level": "low", "cvss_score": 3.5, "cvss_severity": "low",
    "cvss_vector": "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:U/C:L/I:N/A:N", "requires_approval": False, "alert_triggered": True, "alert_id": 7,
    "workflow_id": None, "policy_decision": "allow", "matched_policies": 0, "matched_smart_rules": 0,
    "correlation_id": "action_20250115_103045_a1b2c3d4", "processing_time_ms": 145, "action_type": "email_send", "nist_control": "AC-3",
    "nist_description": "Access Enforcement", "mitre_tactic": "TA0002", "mitre_technique": "T1566",
    "thresholds": {"auto_approve_below": 30, "max_risk_threshold": 80, "agent_type": "supervised", "is_registered": False},
    "code_analysis": {"analyzed": True, "language": None, "findings_count": 0, "max_severity": None, "patterns_matched": [], "blocked": False,
                      "block_reason": None, "risk_adjustment": 0},
    "message": "Action processed through complete governance pipeline - Status: approved",
}  # fmt: skip
DECIDE_RECORD = {
    "status": "ok", "engine": "decide_rulebook_v1", "c": "yes", "v": "APPROVE", "verdict": "yes", "application_verdict": "BLOCK",
    "action": "reject_discount", "reason_code": "R", "evidence": ["R"], "matched_rule_id": None, "decision_id": "dec_1",
    "rulebook_contract": {"schema_url": "https://x", "evaluator_version": "decide_rulebook_v1"},
    "runtime_binding": {"production_core": "hybrid_declarative_rulebook_with_trusted_adapters", "binding_mode": "direct_declarative_rulebook",
                        "verdict_authority": "declarative_rulebook", "customer_supplied_code": "rejected"},
    "evaluation": {"matched": False, "checks": [{"field": "denied", "operator": "eq", "passed": False}]},
    "rulebook": {"schema_version": "rulebook_v1", "id": "r", "version": "1", "hash": "h"}, "policy_bundle": {"policy_id": "r"},
    "rulebook_attestation": {"bundle": {"outcome": {"status": "ok", "verdict": "yes"}},
                             "signature": {"status": "unsigned", "error": "RULEBOOK_ATTESTATION_SIGNING_KEY_MISSING"}},
    "decision_confidence": {"score": 0.9, "level": "high", "recommendation": "review"}, "integrity": {"hash_algorithm": "sha256"},
}  # fmt: skip
ASCEND_NEWER = {
    "action_id": 5095, "status": "approved", "decision": "approved", "risk_score": 9, "code_analysis": {"analyzed": True, "blocked": False},
    "prompt_security": {"analyzed": True, "blocked": False},
    "mcp_governance": {"server_registered": True, "governance_enabled": True, "tool_blocked": False, "server_name": "s"},
    "model_governance": {"registry_checked": False, "reason": "No model_id provided"}, "output_scan_result": "not_scanned",
    "output_findings_count": None, "enforcement_decision": "auto_approved", "enforcement_decision_source": "policy",
    "shadow_enforcement_decision": "denied", "metadata": {"existing_caller_key": "must-survive"},
}  # fmt: skip
SHOWN = [
    (("ascend", "action"), {"action_id": "act_1", "status": "approved", "decision": "approved", "risk_score": 10, "reason": "r", "created_at": "x"}),
    (("ascend", "action"), {"status": "success", "data": {"action_id": "act_1", "decision": "approved", "risk_assessment": {"risk_score": 10},
                                                          "policy_result": {"decision": "approved", "reason": "r", "matched": []}, "timestamp": "x"}}),
    (("ascend", "action"), ASCEND_SERVER), (("ascend", "action"), ASCEND_NEWER),
    (("ascend", "action"), {"action_id": "act_1", "decision": {"outcome": "approved", "reason": "r", "risk_score": 10}, "timestamp": "x"}),
    (("aegis", "intent"), {"id": "int_1", "status": "approved", "amount": 12500, "currency": "INR", "policyDecision": "allow",
                           "matchedPolicy": "deny-above-100000", "riskScore": 0.12, "createdAt": "x", "updatedAt": "x"}),
    (("decidefyi", "decide"), DECIDE_RECORD),
    (("decisionos", "decision"), {"data": {"id": "dec_1", "status": "logged", "contentHash": "h", "chainIndex": 1, "receipt": {"sig": "s"},
                                           "policyEval": {"ok": True, "replayId": "r", "policyVersionId": "p", "diff": {"changed": False}, "error": None}}}),
    (("agentos", "invoke"), {"data": {"run_id": "r", "output": {"summary": "s"}, "duration_ms": 5, "session_id": None}, "error": None}),
    *((key, grant.body) for key, grant in GRANTS.items()),
]  # fmt: skip
# Objects whose content is the client's, an author's or a person's, and a signature, which is no part of the verdict.
FREE = frozenset({"metadata", "output", "evaluation", "checks", "signature"})


@pytest.fixture(params=GATES, ids="-".join)
def key(request):
    return request.param


def question(key, request=None, run_id=RUN_ID):
    fields = GRANTS[key].request if request is None else request
    raw = {name: Raw(json.dumps(value).encode()) for name, value in fields.items()}
    return Question(key[1], GATE_ID, "local-1", "billing", run_id, raw, 1_767_225_600_000_000)


def answer(body, status=200, headers=None):
    return Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def rulings(key, response, attempt=NOW):
    """What an answer means, to the question and, where the gate can be followed, to the asking for its decision."""
    gate, asked = GATES[key], question(key)
    found = [gate.rule(asked, response, attempt)]
    return [*found, gate.rule_followed(asked, response, attempt)] if gate.traits.poll_s else found


def granting(key, body, status=200):
    """The ruling of the answer that can allow."""
    return rulings(key, answer(body, status))[-1 if GRANTS[key].followed else 0]


def instead(key, word):
    """The answer that allows, with another word."""
    body = copy.deepcopy(GRANTS[key].body)
    inner = body
    for name in GRANTS[key].word[:-1]:
        inner = inner[name]
    inner[GRANTS[key].word[-1]] = word
    return body


def nulls(value):
    if isinstance(value, dict):
        return any(nulls(inner) for inner in value.values())
    return any(nulls(inner) for inner in value) if isinstance(value, list) else value is None


# -- what a gate says of itself --------------------------------------------------------------------------------------------


def test_every_gate_is_looked_at():
    """A gate without a row here would be held to nothing; a row without a gate proves nothing."""
    assert set(GATES) == set(GRANTS)


def test_traits(key):
    """Sane data: names, deadlines of the contract, and no polling faster than ten times a second."""
    traits = GATES[key].traits
    assert traits.call
    assert traits.introduces.isidentifier()
    assert traits.id_field.endswith("_id")
    assert traits.deadline_s == DEADLINES.get(key[1], 5.0)
    assert traits.poll_s == 0 or traits.poll_s >= 0.1
    assert traits.poll_timeout_s > 0


def test_what_must_not_be_repeated_is_not():
    """Contract §4: ASCEND's submission and Aegis's intent are never repeated, and a spend never fails open."""
    assert not GATES["ascend", "action"].traits.repeat
    assert not GATES["aegis", "intent"].traits.repeat
    assert not GATES["aegis", "intent"].traits.fails_open


# -- the question ----------------------------------------------------------------------------------------------------------


def test_the_same_question_is_the_same_bytes(key):
    """One POST of one JSON object without a null, the same each time."""
    gate, asked = GATES[key], question(key)
    request = gate.ask(asked, CONTEXT)
    assert isinstance(request, Request)
    assert request == gate.ask(question(key), CONTEXT)
    assert request.method == "POST"
    assert request.path.startswith("/")
    body = json.loads(request.body)
    assert isinstance(body, dict)
    assert not nulls(body)
    for reference in gate.references(asked):
        assert reference.kind
        assert reference.local_id


def test_nulls_and_the_clients_own_name_are_not_sent(key):
    """A null is a field left out, and what the client calls the thing is between it and agentd."""
    gate = GATES[key]
    more = GRANTS[key].request | {"later": None, gate.traits.id_field: "mine"}
    assert gate.ask(question(key, more), CONTEXT) == gate.ask(question(key), CONTEXT)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = (
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.none()
)
ANY_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)  # fmt: skip


@pytest.mark.parametrize("key", GATES, ids="-".join)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_request_is_encoded_or_refused_by_name(key, data):
    """Whatever stands in the fields: JSON in UTF-8, the same each time, or an error that names the place."""
    names = sorted(
        {*GRANTS[key].request, "agent_id", "metadata", "context", "parent_run_id", "parent_action_id", "zzz"}
    )
    fields = data.draw(st.dictionaries(st.sampled_from(names), ANY_JSON, max_size=4))
    asked = question(key, GRANTS[key].request | fields, data.draw(st.sampled_from([None, RUN_ID])))
    GATES[key].references(asked)
    refused = ""
    try:
        request = GATES[key].ask(asked, CONTEXT)
    except Unencodable as error:
        refused = str(error)
    if refused:
        assert refused.startswith("$.")
        assert len(refused) < 1000
        return
    assert request == GATES[key].ask(asked, CONTEXT)
    assert isinstance(json.loads(request.body.decode(), parse_constant=pytest.fail), dict)


# -- the answer ------------------------------------------------------------------------------------------------------------


def test_a_grant_is_a_grant(key):
    """The rows here are true: without them the tests below would prove nothing."""
    assert granting(key, GRANTS[key].body).word is Word.ALLOW


@pytest.mark.parametrize("body", [None, b"", b"<html>", {"error": {"code": "X", "message": "m"}}])
def test_no_failure_grants(key, body):
    """No status but a success allows anything, whatever the body says; 401, 402, 403 and 5xx least of all."""
    for status in (*range(100, 200), *range(300, 600)):
        for found in rulings(key, answer(GRANTS[key].body if body is None else body, status)):
            check_ruling(found)
            assert found.word is not Word.ALLOW


def test_turned_away_or_perhaps_acted(key):
    """Bad key, no money, no permission: certainly nothing was made. 5xx: nobody knows. An earlier lost try: nobody knows."""
    gate, asked = GATES[key], question(key)
    for status in (401, 402, 403):
        found = gate.rule(asked, answer(b"", status), NOW)
        assert (found.word, found.final, found.acted) == (Word.UNAVAILABLE, True, False)
        assert gate.rule(asked, answer(b"", status), Attempt(0.0, maybe_taken=True)).acted
    for status in (500, 502, 503, 504):
        found = gate.rule(asked, answer(b"", status), NOW)
        assert (found.word, found.acted) == (Word.UNAVAILABLE, True)


def test_a_rate_limit_asks_for_rest(key):
    """429: nothing was made; how long to rest, bounded, by the platform or by agentd; a read for the decision rests too."""
    for headers in ({}, {"retry-after": "7"}, {"retry-after": "1e999"}, {"retry-after": "nan"}):
        found = GATES[key].rule(question(key), answer(b"", 429, headers), NOW)
        assert (found.word, found.acted) == (Word.UNAVAILABLE, False)
        assert 0 <= found.again_s <= 3600
    for found in rulings(key, answer(b"", 429, {"retry-after": "7"})):
        assert found.again_s == 7.0


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_lost_answer(key, was_sent):
    """UNAVAILABLE, and `acted` unless certainly nothing was sent; a lost read decides nothing."""
    gate, lost = GATES[key], Lost("gone", was_sent)
    found = gate.rule(question(key), lost, NOW)
    assert (found.word, found.final, found.acted, found.reason) == (Word.UNAVAILABLE, True, was_sent, "gone")
    if gate.traits.poll_s:
        later = gate.rule_followed(question(key), lost, NOW)
        assert (later.word, later.final) == (Word.PENDING, False)


LOOKALIKES = ["APPROVED", "Yes", "YES", "allow", "allowed", "ok", "OK", "true", "granted", " approved", "approved\n", "\u0430pproved", "", "null"]  # fmt: skip


@pytest.mark.parametrize("key", GATES, ids="-".join)
@settings(max_examples=150, deadline=None)
@given(word=st.sampled_from(LOOKALIKES) | TEXT | ANY_JSON.filter(lambda value: value is not None))
def test_an_unknown_word_never_allows(key, word):
    """What no source has for a yes is none, of whatever type; a number that equals true is not true."""
    assume(word is not True and not (isinstance(word, str) and word in GRANTS[key].known))
    assume(not isinstance(word, dict) or key != ("ascend", "action"))  # an object has its own word for it
    assert granting(key, instead(key, word)).word is not Word.ALLOW


@pytest.mark.parametrize(("key", "body"), SHOWN)
def test_a_yes_that_sources_show_is_a_grant(key, body):
    """What a platform says of something that it allows is no contradiction, however much it says."""
    found = granting(key, body)
    assert found.word is Word.ALLOW, found.reason


NOES = ["no", "deny", "Denied", "disallow", "not_allowed", "blocked", "reject", "false", "failed", False, 0]
ERRORS = [{"code": "X", "message": "m"}, {"code": None}, "X", ["X"], True, 7]
FORMS = [
    (("allowed", "execution_allowed", "executionAllowed", "approved", "permitted", "authorized", "success", "ok"), [*NOES, 1, "maybe", [], ["yes"]]),
    (("policy_decision", "policyDecision", "policy_result"), [*NOES, 1, "maybe", [], {"allowed": False}, {"result": {"decision": "deny"}}]),
    (("decision", "verdict", "outcome", "result", "effect", "status", "enforcement_decision"), NOES),
    (("error", "errors", "error_code", "errorCode", "failure"), [*ERRORS, *NOES]),
    (("blocked", "denied", "rejected", "forbidden", "tool_blocked"), [True, "yes", "true", 1, {"by": "policy"}, ["x"]]),
]  # fmt: skip
MEANS = {
    name: values for names, values in FORMS for name in names
}  # permission or failure, and what under it is no yes


def objects_in(value):
    """Every object of an answer in which the platform speaks itself, the outermost first."""
    if isinstance(value, dict):
        return [value, *(found for name, inner in value.items() if name not in FREE for found in objects_in(inner))]
    return [found for inner in value for found in objects_in(inner)] if isinstance(value, list) else []


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_no_anywhere_never_allows(data):
    """A yes in which one member is added or changed, at any depth, to one that says no or fails, in any form, is none."""
    key, body = data.draw(st.sampled_from(SHOWN))
    body = copy.deepcopy(body)
    name = data.draw(st.sampled_from(sorted(MEANS)))
    data.draw(st.sampled_from(objects_in(body)))[name] = data.draw(st.sampled_from(MEANS[name]))
    status = data.draw(st.sampled_from([200, 201]))
    for found in rulings(key, answer(body, status)):
        check_ruling(found)
        assert found.word is not Word.ALLOW


@pytest.mark.parametrize("key", GATES, ids="-".join)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_answer_has_a_ruling(key, data):
    """Any JSON under any status is a ruling that can be written down: bounded, with an id that is a text or none."""
    names = st.sampled_from(
        ["data", "decision", "status", "verdict", "id", "action_id", "run_id", "request_id", "policyEval", "error", "detail", "reason",
         "message", "code", "c", "v", "success", "decision_contract", "policy_result", "policyDecision", "enforcement_decision"]
    )  # fmt: skip
    words = st.sampled_from(["pending", "denied", "no", "review", "requires_modification", "deny"])
    shaped = st.recursive(
        LEAVES | words, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=5)
    )
    body = json.dumps(data.draw(shaped)).encode()
    cut = data.draw(st.integers(0, len(body)))
    response = Response(data.draw(st.sampled_from([200, 201, 202, 204, 400, 403, 404, 409, 422, 500])), {}, body)
    for one in (response, msgspec.structs.replace(response, body=body[:cut])):
        for found in rulings(key, one):
            check_ruling(found)
            assert found.word is not Word.ALLOW or one.status < 300
            assert found.word is not Word.ALLOW or key[1] == "human_input" or b"{" in one.body


def check_ruling(found):
    assert isinstance(found, Ruling)
    assert len(found.reason) <= 500
    assert found.platform_id is None or (isinstance(found.platform_id, str) and found.platform_id)
    assert found.final or found.word in (Word.PENDING, Word.REVIEW)
    assert found.again_s is None or 0 <= found.again_s <= 3600
    msgspec.json.encode(found)


HOSTILE = [
    b"", b" ", b"null", b"[]", b"{}", b'"approved"', b"true", b"7", b"<html>200 OK</html>", b"\xff\xfe\x00", b'{"data":', b"NaN", b"1e999",
    b"{" * 30_000, b"[" * 30_000 + b"]" * 30_000, b'{"data":' + b"[" * 30_000 + b"]" * 30_000 + b"}", b'{"id":' + b"9" * 5000 + b"}",
    b'{"action_id":1e999,"decision":"approved"}', b'{"status":"\\ud83d"}', b'{"data":null,"error":null}', b'{"data":{"id":null}}',
    b"x" * 65536, b'{"decision":"' + b"x" * 65523, b"<html>" + b"x" * 70_000, b'{"decision":"' + b"x" * (2**20 - 13),
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body[:16].decode(errors="replace"))
@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_garbage_under_success_never_allows(key, status, body):
    """A page, a cut answer, numbers beyond all bounds: nobody said yes, and something may have been made."""
    for found in rulings(key, Response(status, {}, body), NOW):
        check_ruling(found)
        assert found.word is not Word.ALLOW
        assert found.acted


def test_a_name_that_occurs_twice_never_allows(key):
    """Of two values under one name, readers take either: where a name occurs twice there is no yes."""
    body = json.dumps(GRANTS[key].body).encode()
    for name in GRANTS[key].body:
        twice = b'{"' + name.encode() + b'":null,' + body[1:]
        assert granting(key, twice).word is not Word.ALLOW


def test_reasons_carry_no_key(key):
    """A platform that quotes the key which it refuses does not get it into logs and books."""
    secrets = [
        "owkai_live_s3cret",
        "aegis_sk_s3cret",
        "dos_live_s3cret",
        "decide_live_s3cret",
        "aos_agent_s3cret",
        "Bearer s3cret",
    ]
    for secret in secrets:
        words = f"no such key {secret}"
        for body in (
            {"error": words},
            {"detail": words},
            {"error": {"code": "X", "message": words}, "data": None},
            {"message": words},
        ):
            for found in rulings(key, answer(body, 401)):
                assert "s3cret" not in found.reason


# -- what comes later ------------------------------------------------------------------------------------------------------


def test_what_can_be_followed_has_a_call(key):
    """A gate with a pause between two reads has the read, the same bytes each time; without one there is none."""
    gate = GATES[key]
    request = gate.follow(question(key), "id_1", CONTEXT)
    assert (request is not None) == (gate.traits.poll_s > 0)
    assert request == gate.follow(question(key), "id_1", CONTEXT)


@pytest.mark.parametrize("key", GATES, ids="-".join)
@settings(max_examples=300, deadline=None)
@given(
    platform_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from([".", "..", "../x", "a/../../b", "%2e%2e", "a?b=c", "a#b", "a;b", "\\..\\", "//evil", "a b", "a\r\nX: y", "@host", ""])
)  # fmt: skip
def test_no_id_climbs_out_of_its_place(key, platform_id):
    """An id is one segment of a path, whatever it is made of, or it isn't asked for."""
    request = GATES[key].follow(question(key), platform_id, CONTEXT)
    usual = GATES[key].follow(question(key), "id_1", CONTEXT)
    if request is None or usual is None:
        return
    assert request.method == usual.method
    split = urlsplit("https://host" + request.path)
    assert (split.netloc, split.query, split.fragment) == ("host", "", "")
    assert posixpath.normpath(request.path) == request.path
    assert request.path.isascii()
    assert request.path.isprintable()
    parts, others = request.path.split("/"), usual.path.split("/")
    assert len(parts) == len(others)
    for part, other in zip(parts, others, strict=True):
        assert unquote(part) == (platform_id if other == "id_1" else other)


def test_a_pending_answer_can_be_followed(key):
    """Whatever is not final has an id that can be asked for: else nobody would ever hear the last word."""
    if not GATES[key].traits.poll_s:
        return
    for body in ({"status": "pending"}, {"decision": "pending"}, {"data": {"status": "pending"}, "error": None}):
        for platform_id in ("", "..", "x" * 300, 5.5, None, {}, "ok_1", 7):
            ids = dict.fromkeys(("id", "action_id", "request_id"), platform_id)
            full = {"data": body["data"] | ids, "error": None} if "data" in body else body | ids
            found = GATES[key].rule(question(key), answer(full), NOW)
            if not found.final:
                assert GATES[key].follow(question(key), found.platform_id, CONTEXT) is not None


# -- a kill switch ---------------------------------------------------------------------------------------------------------

GUARDED = [key for key, gate in GATES.items() if hasattr(gate, "guard")]


@pytest.mark.parametrize("key", GUARDED, ids="-".join)
def test_a_guard_only_ever_stops(key):
    """A kill switch is read; it lets pass, denies or can't be read, and nothing was asked by then."""
    gate = GATES[key]
    assert (gate.guard().method, gate.guard().body) == ("GET", b"")
    answers = [Response(status, {}, body) for status in range(100, 600) for body in (b"", b"{}", b"<html>")]
    answers += [Response(200, {}, body) for body in HOSTILE]
    for one in [*answers, Lost("gone", sent=True), Lost("gone", sent=False)]:
        found = gate.rule_guard(one, NOW)
        if found is not None:
            check_ruling(found)
            assert found.word in (Word.DENY, Word.UNAVAILABLE)
            assert not found.acted
