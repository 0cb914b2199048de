"""AegisOS Comply: what it takes (nothing that is queued), and what its answers mean."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Response, Sending, Unencodable
from agentd.outcomes import Cause, Delivered, Learned, Pause, Reject, Retry, Scope, Unknown
from agentd.platforms.aegis import Standing
from agentd.queued import Entry, Source
from agentd.records import KINDS, LossClass

AEGIS = platforms.load("aegis")
SUBMIT, READ, LIST = AEGIS.gates["intent"], AEGIS.reads["intent"], AEGIS.reads["intents"]
RECORD_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
ITEM = Entry(1, RECORD_ID.bytes, "gate:x", "intent", LossClass.KEEP, Source("billing", 0, 0, "test"), 0, b"{}")
PENDING = {
    "id": "int_1", "status": "pending", "amount": 12500, "currency": "INR", "policyDecision": None,
    "createdAt": "2026-01-01T00:00:00Z",
}  # fmt: skip


def intent(**fields):
    return json.dumps({**PENDING, **fields}).encode()


def classify(call, status, body=b"", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return AEGIS.classify(call, [ITEM], Response(status, headers, body), Attempt(0.0))


# -- what it takes ---------------------------------------------------------------------------------------------------------


def test_no_kind_is_queued():
    """Aegis has no call that may be sent late: it takes no kind and introduces none."""
    assert (dict(AEGIS.calls), AEGIS.introduces) == ({}, frozenset())


@pytest.mark.parametrize("kind", KINDS)
def test_no_record_can_be_said(kind):
    """Whatever record it is handed, it has no words for it, and no reference to wait for."""
    item = msgspec.structs.replace(ITEM, kind=kind)
    assert AEGIS.references(item) == ()
    with pytest.raises(Unencodable, match=kind):
        AEGIS.encode(SUBMIT, [item], Context(str, lambda _kind, local: local))


def test_the_paths():
    """One POST that must not be repeated, since Aegis documents no idempotency, and two reads that may."""
    assert (SUBMIT.path, READ.path.format(id="int_1"), LIST.path) == ("/v1/intents", "/v1/intents/int_1", "/v1/intents")
    assert (SUBMIT.repeat, READ.repeat, LIST.repeat) == (False, True, True)
    assert not any(call.batch or call.strict_key or call.newest_only for call in (SUBMIT, READ, LIST))


def test_headers_are_a_bearer_and_the_key():
    """Authentication as documented; the idempotency key goes along, though Aegis promises nothing for it."""
    assert AEGIS.headers(Sending("aegis_sk_x", "k", 1.8e9)) == {
        "authorization": "Bearer aegis_sk_x",
        "idempotency-key": "k",
    }


# -- what the answers mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [202, 200, 201])
def test_a_taken_intent_has_a_name(status):
    """The POST's answer names the intent; the id is learned under the record's own."""
    assert classify(SUBMIT, status, intent()) == Delivered((Learned("intent", str(RECORD_ID), "int_1"),))


def test_additions_are_let_pass():
    """An answer with more in it than is documented is still an intent."""
    assert isinstance(classify(SUBMIT, 202, intent(later={"a": [None]})), Delivered)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"[]", b'"x"', b"<html>ok</html>", b"\xff", intent(id=""), intent(id=5), intent(id=None), intent(status=None),
     b'{"intent":' + intent() + b"}", b'{"data":' + b"[" * 50_000],
    ids=lambda body: body[:16].decode(errors="replace"),
)  # fmt: skip
def test_a_2xx_that_is_no_intent_is_no_delivery(body):
    """Somebody's 2xx without an intent's id: the POST may have acted and is not repeated; the read is asked again."""
    assert classify(SUBMIT, 202, body) == Unknown("202 without an intent")
    again = classify(READ, 200, body)
    assert isinstance(again, Retry)
    assert again.scope is Scope.DESTINATION


def test_a_read_introduces_nothing():
    """An intent read back is delivered, and so is a list of whatever shape; the list's shape is documented nowhere."""
    assert classify(READ, 200, intent(status="approved", matchedPolicy="p", riskScore=0.12)) == Delivered()
    assert AEGIS.classify(READ, [], Response(200, {}, intent()), Attempt(0.0)) == Delivered()
    for body in (b"[]", b'{"intents":[]}', b'{"data":[],"total":0}'):
        assert classify(LIST, 200, body) == Delivered()
    assert isinstance(classify(LIST, 200, b"<html>"), Retry)


@pytest.mark.parametrize(
    ("status", "submit", "read"),
    [
        (301, Pause(Scope.DESTINATION, "301: redirected to ?: is base_url right?"), None),
        (400, Reject("400"), None), (401, Pause(Scope.DESTINATION, "401"), None), (402, Pause(Scope.DESTINATION, "402"), None),
        (403, Pause(Scope.LANE, "403"), None), (404, Pause(Scope.DESTINATION, "404: is base_url right?"), None),
        (405, Pause(Scope.DESTINATION, "405: is base_url right?"), None),
        (408, Unknown("408"), Retry("408")), (409, Reject("409"), None), (413, Reject("413", Cause.TOO_LARGE), None),
        (422, Reject("422"), None), (425, Retry("425"), None), (429, Retry("429", None, Scope.DESTINATION), None),
        (500, Unknown("500"), Retry("500")), (502, Unknown("502"), Retry("502")), (503, Unknown("503"), Retry("503")),
    ],
)  # fmt: skip
def test_statuses(status, submit, read):
    """Failures are told apart; a failure under which a POST may have acted is unknown and never a reason to repeat it."""
    assert classify(SUBMIT, status) == submit
    assert classify(READ, status) == (submit if read is None else read)


def test_a_404_of_the_platform_is_about_the_intent():
    """With a JSON object it is an API that speaks, and the intent that is missing."""
    assert classify(READ, 404, b'{"error":{"code":"not_found","message":"no such intent"}}') == Reject(
        "404 not_found: no such intent"
    )


def test_retry_after_is_heeded():
    """A rate limit's wait is the server's."""
    assert classify(SUBMIT, 429, retry_after="7") == Retry("429", 7.0, Scope.DESTINATION)
    assert classify(READ, 503, retry_after="7") == Retry("503", 7.0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"code": "bad", "message": "words"}}, "400 bad: words"), ({"error": "words"}, "400 words"),
        ({"message": "words", "code": "bad"}, "400 bad: words"), ({"message": "words"}, "400 words"), ({"error": None}, "400"),
        ({"error": {"code": 5, "message": ["x"]}}, "400"), ({"error": 5}, "400"), ([1], "400"), ({"error": "x" * 9999}, "400 " + "x" * 496),
    ],
)  # fmt: skip
def test_the_reason_is_read_from_any_usual_envelope(body, reason):
    """No source shows an error's body: every usual one is read, and none breaks anything."""
    assert classify(SUBMIT, 400, json.dumps(body).encode()) == Reject(reason)


@pytest.mark.parametrize(
    ("call", "sent", "verdict"),
    [
        (SUBMIT, False, Retry("gone", None, Scope.DESTINATION)), (SUBMIT, True, Unknown("gone")),
        (READ, False, Retry("gone", None, Scope.DESTINATION)), (READ, True, Retry("gone")),
    ],
)  # fmt: skip
def test_lost_answers(call, sent, verdict):
    """What never left may be tried again; a POST whose answer was lost may be a spend and is not repeated."""
    assert AEGIS.classify(call, [ITEM], Lost("gone", sent), Attempt(0.0)) == verdict


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_a_verdict_and_no_failure_is_a_delivery(status):
    """Whatever is answered, by whomever, is a verdict; only a 2xx with an intent is a delivery of a POST."""
    for call in (SUBMIT, READ, LIST):
        for body in (b"", b"{}", intent(), b"<html>", b'{"error":{}}'):
            verdict = classify(call, status, body)
            assert not isinstance(verdict, Delivered) or 200 <= status < 300
            assert call is not SUBMIT or not isinstance(verdict, Retry) or status in (425, 429)


# -- how an intent stands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "standing"),
    [
        ("approved", Standing.ALLOW), ("denied", Standing.DENY), ("pending", Standing.PENDING), ("pending_approval", Standing.REVIEW),
        ("APPROVED", Standing.REVIEW), ("allowed", Standing.REVIEW), ("expired", Standing.REVIEW), ("approved ", Standing.REVIEW),
    ],
)  # fmt: skip
def test_an_intent_read_back_stands_by_its_status(status, standing):
    """`approved` alone is a grant; a person's turn is a review; a word that nobody documented is no grant."""
    assert AEGIS.standing(READ, Response(200, {}, intent(status=status))) is standing


@pytest.mark.parametrize("status", ["approved", "pending"])
def test_the_answer_to_the_post_is_never_a_grant(status):
    """A POST's answer is `pending`; whatever else a 200 or 202 there would mean is documented nowhere."""
    for http in (200, 202):
        assert AEGIS.standing(SUBMIT, Response(http, {}, intent(status=status))) is Standing.PENDING


def test_a_denial_counts_wherever_it_stands():
    """A no needs no second look."""
    assert AEGIS.standing(SUBMIT, Response(202, {}, intent(status="denied"))) is Standing.DENY


@pytest.mark.parametrize("decision", ["deny", "denied"])
def test_an_approval_that_contradicts_itself_is_no_grant(decision):
    """Approved, and the policy says no: somebody has to look."""
    answer = Response(200, {}, intent(status="approved", policyDecision=decision))
    assert AEGIS.standing(READ, answer) is Standing.REVIEW


@pytest.mark.parametrize("decision", ["allow", None, "require_approval", {"effect": "allow"}])
def test_a_policy_that_does_not_say_no_contradicts_nothing(decision):
    """A person may have approved what the policy put before them."""
    answer = Response(200, {}, intent(status="approved", policyDecision=decision))
    assert AEGIS.standing(READ, answer) is Standing.ALLOW


@pytest.mark.parametrize(
    ("status", "body"), [(200, b""), (200, b"{}"), (200, b"[]"), (500, intent(status="approved")), (302, intent(status="approved"))]
)  # fmt: skip
def test_what_is_no_intent_stands_nowhere(status, body):
    """An error that carries an intent, or a 2xx that carries none, says nothing."""
    assert AEGIS.standing(READ, Response(status, {}, body)) is None
