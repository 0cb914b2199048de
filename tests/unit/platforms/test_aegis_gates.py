"""Aegis's gate: the exact intent, and that nothing but an intent read back as approved is leave to spend."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec import Raw

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Request, Response, Unencodable
from agentd.gating import Question, Ruling, Word

GATE = platforms.load("aegis").gates["intent"]
GATE_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
LEAST = {"amount": 12500, "currency": "INR", "reason": "Vendor payment"}
BY_GATE = {"agentd_gate_id": GATE_ID}
NOW = Attempt(1000.0)
CONTEXT = Context(lambda local: f"id-of-{local}" if local else "id-of-default", lambda _kind, local: local)
PENDING = {
    "id": "int_1", "status": "pending", "amount": 12500, "currency": "INR", "policyDecision": None,
    "createdAt": "2026-01-01T00:00:00Z",
}  # fmt: skip


def question(request=LEAST, agent="billing", **raw):
    fields = {name: Raw(json.dumps(value).encode()) for name, value in request.items()}
    return Question(
        "intent", GATE_ID, "local-1", agent, None, fields | {name: Raw(text) for name, text in raw.items()}, 0
    )


def sent(request, agent="billing"):
    return json.loads(GATE.ask(question(request, agent), CONTEXT).body)


def refusal(asked):
    with pytest.raises(Unencodable) as caught:
        GATE.ask(asked, CONTEXT)
    return str(caught.value)


def intent(**fields):
    return json.dumps({**PENDING, **fields}).encode()


def rule(body, status=202, attempt=NOW, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return GATE.rule(question(), Response(status, headers, body), attempt)


def followed(body, status=200):
    return GATE.rule_followed(question(), Response(status, {}, body), NOW)


# -- the question ----------------------------------------------------------------------------------------------------------


def test_an_intent():
    """camelCase on the wire, the SDK's names in the request, the asking's id in `metadata`."""
    request = GATE.ask(question(), CONTEXT)
    assert (request.method, request.path, request.headers) == ("POST", "/v1/intents", {})
    assert json.loads(request.body) == LEAST | {"agentId": "id-of-billing", "metadata": BY_GATE}
    more = {"confidence": 0.9, "merchant": "Acme", "merchant_category": "office", "metadata": {"po": 7, "x": None}}
    assert sent(LEAST | more) == LEAST | {
        "agentId": "id-of-billing", "confidence": 0.9, "merchant": "Acme", "merchantCategory": "office", "metadata": BY_GATE | more["metadata"],
    }  # fmt: skip


def test_an_amount_goes_as_it_was_said():
    """No digit of an amount is lost or made on the way."""
    for text in (b"12500", b"12500.00", b"0.1", b"12345678901234567.89"):
        assert b'"amount":' + text + b"," in GATE.ask(question(LEAST, amount=text), CONTEXT).body


def test_the_clients_metadata_stays():
    """A member that the client gave is never overwritten; nulls are fields left out; its own name for it is not sent."""
    assert sent(LEAST | {"metadata": {"agentd_gate_id": "mine"}})["metadata"] == {"agentd_gate_id": "mine"}
    assert sent(LEAST | {"metadata": None, "merchant": None, "intent_id": "mine"}) == sent(LEAST)


@pytest.mark.parametrize(
    ("request_agent", "agent", "expected"),
    [(None, "billing", "id-of-billing"), ("billing", "billing", "id-of-billing"), ("sales", "", "id-of-sales"), ("id-of-billing", "billing", "id-of-billing"), (None, "", "id-of-default")],
)  # fmt: skip
def test_agents_are_local_names(request_agent, agent, expected):
    """An agent is named as in records: by the host's own name."""
    assert sent(LEAST | {"agent_id": request_agent}, agent)["agentId"] == expected


def test_nobody_spends_for_another_agent():
    """A request can't name another agent than the one that was let in, and one there must be."""
    assert refusal(question(LEAST | {"agent_id": "sales"})).startswith("$.request.agent_id: expected 'billing'")
    with pytest.raises(Unencodable, match=r"\$\.request\.agent_id: required"):
        GATE.ask(question(LEAST, ""), Context(lambda local: local, lambda _kind, local: local))


@pytest.mark.parametrize("name", LEAST)
def test_what_is_required(name):
    """Amount, currency and reason are demanded by name, null or absent."""
    without = {other: value for other, value in LEAST.items() if other != name}
    for request in (without, LEAST | {name: None}):
        assert refusal(question(request)).startswith(f"$.request.{name}: required; expected ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"amount": "12500"}, "$.request.amount: expected a number above 0"), ({"amount": True}, "$.request.amount: "),
        ({"amount": 0}, "$.request.amount: "), ({"amount": -1}, "$.request.amount: "), ({"amount": [1]}, "$.request.amount: "),
        ({"currency": "inr"}, "$.request.currency: expected an ISO 4217 code such as EUR"), ({"currency": "EURO"}, "$.request.currency: "),
        ({"currency": "EUR\n"}, "$.request.currency: "), ({"currency": 5}, "$.request.currency: "), ({"reason": " "}, "$.request.reason: "),
        ({"reason": 5}, "$.request.reason: "), ({"confidence": 1.01}, "$.request.confidence: expected a number from 0 to 1"),
        ({"confidence": "high"}, "$.request.confidence: "), ({"merchant": ""}, "$.request.merchant: "), ({"agent_id": 5}, "$.request.agent_id: "),
        ({"metadata": "x"}, "$.request.metadata: expected an object"),
        ({"merchantCategory": "x"}, "$.request.merchantCategory: unknown field; did you mean merchant_category?"),
        ({"agentId": "x"}, "$.request.agentId: unknown field; did you mean agent_id?"),
        ({"zzz": 1}, "$.request.zzz: unknown field; known: agent_id, amount, "), ({"y" * 999: 1}, "$.request." + "y" * 64 + ": "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields, words):
    """The API is documented: what it has no field for is refused by name, and each mistake says what would be right."""
    assert refusal(question(LEAST | fields)).startswith(words)


@pytest.mark.parametrize("text", [b"1e999", b"-1e999", b"9" * 500, b"[" * 50_000 + b"]" * 50_000, b"NaN"])
def test_an_amount_that_is_no_number(text):
    """A number that no reader holds never leaves."""
    assert refusal(question(LEAST, amount=text)).startswith("$.request.amount: ")


def test_it_waits_for_nothing_and_is_never_repeated():
    """Aegis documents no idempotency, and spending is never let pass without its word."""
    assert GATE.references(question()) == ()
    traits = GATE.traits
    assert (traits.repeat, traits.fails_open, traits.deadline_s, traits.poll_s) == (False, False, 5.0, 0.5)
    assert (traits.introduces, traits.id_field) == ("intent", "intent_id")


# -- the answer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http", [200, 201, 202])
@pytest.mark.parametrize(
    ("status", "word", "final"),
    [
        ("pending", Word.PENDING, False), ("approved", Word.PENDING, False), ("APPROVED", Word.PENDING, False), ("created", Word.PENDING, False),
        ("pending_approval", Word.PENDING, False), ("denied", Word.DENY, True),
    ],
)  # fmt: skip
def test_the_answer_to_the_post_is_never_a_grant(http, status, word, final):
    """It is `pending` by the documentation; whatever else it says, only a no is final, and the rest is read back."""
    found = rule(intent(status=status), http)
    assert (found.word, found.final, found.platform_id) == (word, final, "int_1")


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"[]", b'"x"', b"<html>ok</html>", b"\xff", intent()[:-1], intent(id=""), intent(id=5), intent(id=None), intent(id=".."),
     intent(id="x" * 300), intent(status=None), intent(status=""), intent(status=5), intent(status=["approved"]), b'{"intent":' + intent() + b"}",
     b"[" + intent() + b"]", b'{"data":' + b"[" * 50_000],
    ids=lambda body: body[:16].decode(errors="replace"),
)  # fmt: skip
def test_a_2xx_that_is_no_intent_may_have_acted(body):
    """Somebody's 2xx without an intent: the spend may be on its way, and nothing was allowed."""
    found = rule(body)
    assert (found.word, found.acted, found.final, found.platform_id) == (Word.UNAVAILABLE, True, True, None)
    assert followed(body).word is Word.PENDING
    assert followed(body).final is False


@pytest.mark.parametrize(
    ("status", "acted"),
    [
        (301, False), (302, True), (303, True), (400, False), (401, False), (402, False), (403, False), (404, False), (405, False), (408, True),
        (409, True), (413, False), (422, False), (425, False), (429, False), (500, True), (502, True), (503, True), (199, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"", intent(status="approved"), b'{"error":{"code":"bad","message":"words"}}'])
def test_failures(status, acted, body):
    """No failure is a grant, whatever it carries; one under which the POST may have acted says so."""
    found = rule(body, status)
    assert (found.word, found.acted, found.final, found.platform_id) == (Word.UNAVAILABLE, acted, True, None)
    assert found.reason.startswith(str(status))
    assert b"words" not in body or "bad: words" in found.reason


def test_a_path_that_is_not_there():
    """The one path that there is, is missing: another server answers."""
    assert rule(b"<html>", 404).reason == "404: is base_url right?"
    assert rule(b"", 301).reason.endswith("is base_url right?")


def test_a_rate_limit_says_when():
    """429: nothing was made; a second where the platform names no time."""
    assert rule(b"", 429, retry_after="7") == Ruling(Word.UNAVAILABLE, "429", acted=False, again_s=7.0)
    assert rule(b"", 429).again_s == 1.0
    assert rule(b"", 503, retry_after="7").again_s is None


@pytest.mark.parametrize("was_sent", [True, False])
def test_lost_answers(was_sent):
    """A POST whose answer was lost may be a spend; an earlier try that may have arrived is not undone by a later refusal."""
    assert GATE.rule(question(), Lost("gone", was_sent), NOW) == Ruling(Word.UNAVAILABLE, "gone", acted=was_sent)
    assert rule(b"", 400, Attempt(0.0, maybe_taken=True)).acted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"code": "bad", "message": "words"}}, "400 bad: words"), ({"error": "words"}, "400 words"),
        ({"message": "words", "code": "bad"}, "400 bad: words"), ({"message": "words"}, "400 words"), ({"error": None}, "400"),
        ({"error": {"code": 5, "message": ["x"]}}, "400"), ({"error": 5}, "400"), ([1], "400"), ({"error": "x" * 9999}, "400 " + "x" * 496),
        ({"error": "no such key aegis_sk_s3cret"}, "400 no such key [key]"),
    ],
)  # fmt: skip
def test_the_reason_is_read_from_any_usual_envelope(body, reason):
    """No source shows an error's body: every usual one is read, bounded, and without the key that it may quote."""
    assert rule(json.dumps(body).encode(), 400) == Ruling(Word.UNAVAILABLE, reason, acted=False)


# -- what comes later ------------------------------------------------------------------------------------------------------


def test_following():
    """The decision is read by id, which stays one segment of the path; what would not is not asked for."""
    assert GATE.follow(question(), "int_1", CONTEXT) == Request("/v1/intents/int_1", b"", method="GET")
    assert GATE.follow(question(), "a/../b?c", CONTEXT).path == "/v1/intents/a%2F..%2Fb%3Fc"
    for key in ("", ".", "..", "x" * 300, "a\nb"):
        assert GATE.follow(question(), key, CONTEXT) is None


@pytest.mark.parametrize(
    ("status", "word", "final"),
    [
        ("approved", Word.ALLOW, True), ("denied", Word.DENY, True), ("pending", Word.PENDING, False), ("pending_approval", Word.PENDING, False),
        ("APPROVED", Word.PENDING, False), ("allowed", Word.PENDING, False), ("expired", Word.PENDING, False), ("approved ", Word.PENDING, False),
    ],
)  # fmt: skip
def test_an_intent_read_back_stands_by_its_status(status, word, final):
    """`approved` alone is a grant; a person may still approve, so that a review ends nothing; an unknown word is open."""
    found = followed(intent(status=status, matchedPolicy="p-1", later={"a": [None]}))
    assert found == Ruling(word, f"{status}: p-1", "int_1", final=final)


@pytest.mark.parametrize(
    "decision",
    [
        "deny", "denied", "DENY", "blocked", {"effect": "deny"}, False, 0, 5, ["deny"], [], "no", "disallow", "not_allowed", "", "allow?", 1,
        {"allowed": False}, {"result": {"decision": "deny"}}, {"allowed": "no"}, {"allowed": 0}, {"result": {"allowed": 1}},
        {"allowed": True, "result": {"verdict": "disallow"}}, {"decision": ["allow"]}, {"rule": "deny"}, {"decision": "allow", "error": "x"},
        {"decision": "allow", "blocked": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_approval_that_contradicts_itself_is_no_grant(decision):
    """Approved, and the policy says no, or what nobody can read: somebody has to look."""
    found = followed(intent(status="approved", policyDecision=decision))
    assert (found.word, found.final) == (Word.REVIEW, True)


@pytest.mark.parametrize(
    "decision",
    [
        "allow", None, True, "require_approval", {"effect": "allow"}, {}, "Allowed", "approve", "approved", "yes", "review", "pending_approval",
        {"allowed": True}, {"result": {"decision": "allow", "reason": "below the limit"}}, {"decision": "require-approval", "rules": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_that_does_not_say_no_contradicts_nothing(decision):
    """A person may have approved what the policy put before them."""
    assert followed(intent(status="approved", policyDecision=decision)).word is Word.ALLOW


@pytest.mark.parametrize(
    "beside",
    [{"error": {"code": "x"}}, {"errorCode": "x"}, {"success": False}, {"blocked": True}, {"data": {"allowed": False}}, {"verdict": "no"}],
    ids=str,
)  # fmt: skip
def test_an_approval_beside_a_no_is_no_grant(beside):
    """A no anywhere else in the answer counts as much as the policy's; the client's own metadata says nothing."""
    found = followed(intent(status="approved", **beside))
    assert (found.word, found.final, found.platform_id) == (Word.REVIEW, True, "int_1")
    assert followed(intent(status="approved", metadata=beside)).word is Word.ALLOW


@pytest.mark.parametrize("status", ["approved", "denied"])
@pytest.mark.parametrize(
    ("shown", "field"),
    [
        ({"amount": 12501}, "amount"), ({"amount": "1250000"}, "amount"), ({"amount": True}, "amount"), ({"amount": "x"}, "amount"),
        ({"amount": [12500]}, "amount"), ({"currency": "USD"}, "currency"), ({"currency": 5}, "currency"), ({"agentId": "id-of-sales"}, "agentId"),
        ({"metadata": {"agentd_gate_id": "another"}}, "metadata.agentd_gate_id"),
    ],
    ids=str,
)  # fmt: skip
def test_another_intent_than_the_one_that_was_asked_about(status, shown, field):
    """What is read back has another amount, currency, agent or asking: it is no word about this one, in either direction."""
    asked_by = Attempt(0.0, agent_id="id-of-billing")
    found = GATE.rule_followed(question(), Response(200, {}, intent(status=status, **shown)), asked_by)
    assert (found.word, found.final, found.platform_id) == (Word.PENDING, False, None)
    assert found.reason.endswith(f"its {field} differs")


@pytest.mark.parametrize(
    "shown",
    [
        {"amount": 12500.0}, {"amount": "12500.00"}, {"amount": None}, {"currency": "inr"}, {"currency": None}, {"agentId": "ID-of-billing"},
        {"agentId": None}, {"metadata": {"agentd_gate_id": GATE_ID}}, {"metadata": {}}, {"metadata": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_the_same_intent_in_other_words(shown):
    """A number is compared as a number, a code without case; what the answer does not show is not compared."""
    asked_by = Attempt(0.0, agent_id="id-of-billing")
    body = intent(status="approved", **shown)
    assert GATE.rule_followed(question(), Response(200, {}, body), asked_by).word is Word.ALLOW
    assert followed(intent(status="approved", agentId="any")).word is Word.ALLOW  # where the asker's is not known
    mine = question(LEAST | {"metadata": {"agentd_gate_id": "mine"}})
    body = intent(status="approved", metadata={"agentd_gate_id": "mine"})
    assert GATE.rule_followed(mine, Response(200, {}, body), NOW).word is Word.ALLOW


def test_the_intent_that_was_read_is_named():
    """The ruling has the id of the answer, by which whoever asked can tell that it is about another intent."""
    assert followed(intent(status="approved", id="int_other")).platform_id == "int_other"


def test_a_name_that_occurs_twice_is_a_review():
    """Readers differ in which of two values counts: such an approval is none."""
    body = intent(status="denied")[:-1] + b',"status":"approved"}'
    assert followed(body).word is Word.REVIEW


@pytest.mark.parametrize("status", [199, 302, 400, 401, 403, 404, 408, 429, 500, 503])
def test_a_read_that_fails_decides_nothing(status):
    """An error that carries an intent says nothing of it; it is asked for again."""
    for body in (intent(status="approved"), intent(status="denied"), b""):
        found = followed(body, status)
        assert (found.word, found.final) == (Word.PENDING, False)
    assert GATE.rule_followed(question(), Lost("gone", sent=True), NOW) == Ruling(Word.PENDING, "gone", final=False)


def test_reasons_are_bounded():
    """However long a platform's words are."""
    long = msgspec.json.encode({**PENDING, "status": "denied", "matchedPolicy": "x" * 9999})
    assert len(followed(long).reason) == 500
    assert len(rule(intent(status="x" * 9999)).reason) <= 500
