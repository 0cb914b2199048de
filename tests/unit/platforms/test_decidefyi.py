"""decide.fyi: the exact requests of the three receipts, and what its answers mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import unquote
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, Attempt, Context, Lost, Reference, Response, Sending, Unencodable
from agentd.identity import text_of
from agentd.outcomes import RECORD, Cause, Delivered, Learned, Pause, Reject, Retry, Scope, Split, Unknown
from agentd.queued import Entry, Source
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.wire import encode

DECIDE = platforms.load("decidefyi")
RECORD_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOW = datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp()
MONTH_S = datetime(2026, 2, 1, tzinfo=UTC).timestamp() - NOW
decode_record = msgspec.json.Decoder(Record).decode

EXECUTION = {
    "action_taken": "approve", "target_system": "crm", "target_object_id": "006", "mutation": "set stage", "external_ref": "x-1",
    "decision_record_hash": "rh", "decision_receipt_hash": "ch", "evidence_refs": [{"id": "e"}], "execution_status": "executed",
    "execution_id": "e-1", "state_before_hash": "sha256:a", "state_after_hash": "sha256:b", "state_before_ref": "s3://a",
    "state_after_ref": {"at": 1}, "executor": {"type": "agent", "id": "a"}, "action_binding": {"system": "crm"},
    "execution_result": [1, None], "executed_at": "2026-01-31T12:00:00+05:30",
}  # fmt: skip
OUTCOME = {
    "outcome_status": "succeeded", "action_taken": "approve", "target_system": "crm", "target_object_id": "006", "mutation": "m",
    "external_ref": "x", "decision_record_hash": "rh", "decision_receipt_hash": "ch", "evidence_refs": [{"id": "e", "hash": "h"}],
    "action_executed": False, "observed_metrics": {"margin": 0.25, "n": 0}, "execution_receipt_id": "exec_1", "execution_hash": "eh",
}  # fmt: skip
CRM_SYNC = {
    "sync_status": "written", "sync_direction": "writeback", "crm_provider": "salesforce", "crm_object_type": "Opportunity",
    "crm_object_id": "006", "crm_record_url": "https://crm/006", "decision_record_hash": "rh", "decision_receipt_hash": "ch",
    "decision_verdict": "yes", "decision_action": "approve", "policy_id": "p", "policy_version": "1", "field_mapping": {"a": "b"},
}  # fmt: skip
WHOLE = {"execution": EXECUTION, "outcome": OUTCOME, "crm_sync": CRM_SYNC}
LEAST = {
    "execution": {"execution_status": "executed"},
    "outcome": {"outcome_status": "succeeded"},
    "crm_sync": {"sync_status": "written"},
}
RECEIPTS = {
    "execution": {"execution_receipt_id": "exec_1", "execution_hash": "h", "decision_id": "dec_1"},
    "outcome": {"outcome_id": "out_1", "outcome_hash": "h"},
    "crm_sync": {"sync_id": "sync_1", "sync_status": "written"},
}
KINDS = tuple(LEAST)


def item(kind, *, decision_id="d", **fields):
    record = decode_record(json.dumps({"kind": kind, "decision_id": decision_id, **fields}).encode())
    return Entry(
        1, RECORD_ID.bytes, lane_of(record, "billing"), kind_of(record), loss_class(record), Source("billing", 0, 0, "test"),
        1_767_225_600_000_000, encode(record),
    )  # fmt: skip


def request_of(given, known=None):
    ids = {"d": "dec_1"} if known is None else known
    context = Context(lambda local: local, lambda _kind, local: ids.get(local))
    return DECIDE.encode(DECIDE.calls[given.kind], [given], context)


def sent(given):
    return json.loads(request_of(given).body)


# -- requests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path"), [("execution", "execution"), ("outcome", "outcome"), ("crm_sync", "crm-sync")]
)
def test_each_kind_has_its_path_under_the_decision(kind, path):
    """The decision's platform id is in the path and not in the body; each kind has its own call, one record each."""
    request = request_of(item(kind, **LEAST[kind]))
    assert (request.method, request.path) == ("POST", f"/api/decision/dec_1/{path}")
    assert json.loads(request.body) == LEAST[kind]
    call = DECIDE.calls[kind]
    assert (call.name, call.batch, call.repeat, call.strict_key) == (path, False, True, True)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_goes_under_its_own_name(kind):
    """All documented fields go as they were written, times in UTC; what is agentd's own does not go."""
    given = item(kind, id=str(RECORD_ID), to="decide", agent_id="billing", **WHOLE[kind])
    expected = dict(WHOLE[kind])
    if "executed_at" in expected:
        expected["executed_at"] = "2026-01-31T06:30:00Z"
    assert sent(given) == expected


def test_only_the_gate_is_left_out():
    """The three receipts are telemetry; deciding is a gate and no record kind goes there. Receipts introduce nothing."""
    assert set(DECIDE.calls) == set(KINDS)
    assert DECIDE.introduces == frozenset()


def test_headers():
    """The platform's own names for the key and for the idempotency key, which is the record's id."""
    assert DECIDE.headers(Sending("decide_live_x", str(RECORD_ID), NOW)) == {
        "x-api-key": "decide_live_x", "x-idempotency-key": str(RECORD_ID),
    }  # fmt: skip


def test_the_decision_is_a_reference():
    """The decision's id is resolved, whatever characters the client's own has; the receipt's link is a label."""
    assert DECIDE.references(item("outcome", decision_id="a:b/c", **OUTCOME)) == (Reference("decision", "a:b/c"),)
    assert request_of(item("outcome", decision_id="a:b/c", **OUTCOME), {"a:b/c": "dec_9"}).path == (
        "/api/decision/dec_9/outcome"
    )


def test_a_dead_decision_can_take_no_receipt():
    """Without the platform's id there is no path to send to."""
    with pytest.raises(Unencodable, match="decision is unknown"):
        request_of(item("outcome", **LEAST["outcome"]), {})


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "...", "a/b", "/", "../x", "dec_1/../../x", "a\\b", "a\nb", "a\x00", "\x7f"]
)
def test_an_id_that_could_lead_elsewhere_is_not_sent(bad):
    """No id may climb out of its place in the path: dots, slashes and what can't be printed are refused, not quoted."""
    with pytest.raises(Unencodable, match="can't be the id"):
        request_of(item("execution", **LEAST["execution"]), {"d": bad})


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_id_is_one_segment_or_none(decision_id):
    """Whatever an id is made of, the client's URL has it whole as one segment, or it is not sent."""
    try:
        request = request_of(item("execution", **LEAST["execution"]), {"d": decision_id})
    except Unencodable:
        return
    url = URL("https://www.decide.fyi" + request.path)
    assert url.query_string == url.fragment == ""
    parts = url.raw_path.split("/")
    assert parts[:3] == ["", "api", "decision"]
    assert [unquote(part) for part in parts[3:]] == [decision_id, "execution"]


def test_documented_forms_are_kept_to():
    """A text, an array or an object that decide.fyi documents is made of whatever was given, and nothing is lost."""
    odd = {"mutation": {"b": 1}, "evidence_refs": "e", "executor": "me", "action_binding": [1], "execution_result": 5}
    assert sent(item("execution", execution_status="executed", **odd)) == {
        "execution_status": "executed", "mutation": '{"b": 1}', "evidence_refs": ["e"], "executor": {"value": "me"},
        "action_binding": {"value": [1]}, "execution_result": 5,
    }  # fmt: skip
    assert sent(item("outcome", outcome_status="s", observed_metrics=3))["observed_metrics"] == {"value": 3}


def test_a_time_without_a_date_in_utc_is_no_defect():
    """A moment in the year 1 that UTC has no date for goes as it was written."""
    early = sent(item("execution", execution_status="executed", executed_at="0001-01-01T00:00:00+05:30"))
    assert early["executed_at"] == "0001-01-01T00:00:00+05:30"


def test_the_same_record_is_the_same_bytes():
    """Promise 4: nothing of the moment is in the body, so that a repeat has the canonical payload of the first try."""
    given = item("execution", **EXECUTION)
    assert request_of(given) == request_of(given)


# -- answers ---------------------------------------------------------------------------------------------------------------


def verdict(status, body=b"", kind="execution", *, maybe_taken=False, now_s=NOW, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)
    return DECIDE.classify(DECIDE.calls[kind], [item(kind, **LEAST[kind])], answer, Attempt(now_s, maybe_taken))


def error(code, v="try again", **more):
    return {"c": "unclear", "v": v, "error": code, "message": "words", "request_id": "req_1", **more}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_receipt_bare_or_wrapped_is_delivered(kind, status):
    """The documentation shows receipts bare, the SDK reads them under a name: both are receipts, whose id is kept (promise 9)."""
    receipt_id = next(iter(RECEIPTS[kind].values()))
    named = Delivered((Learned(RECORD, text_of(item(kind, **LEAST[kind]).record_id), receipt_id),))
    assert verdict(status, RECEIPTS[kind], kind) == named
    assert verdict(status, {kind: RECEIPTS[kind], "request_id": "r"}, kind) == named
    assert not named.introduces
    without = {name: value for name, value in RECEIPTS[kind].items() if value != receipt_id}
    hashed = without | {f"{kind}_hash".replace("crm_", ""): "h"}
    assert verdict(status, hashed, kind) == Delivered()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"<html>", b'{"ok":true}', b'{"execution":null}', b'{"execution":{}}', b'{"outcome_id":"out_1"}',
             json.dumps(EXECUTION).encode(), b'{"execution_receipt_id":""}', b'{"execution_receipt_id":5}'],
)  # fmt: skip
def test_a_success_without_a_receipt_is_none(body):
    """2xx that is not this call's receipt, an echo of the request among it, is a wrong base_url: nothing counts as delivered."""
    found = verdict(200, body)
    assert isinstance(found, Retry)
    assert found.scope is Scope.DESTINATION
    assert "base_url" in found.reason


def test_an_unusable_answer_under_200_is_asked_again():
    """decide.fyi's own 200 without a receipt is repeated under the same key; a code in it counts as under its own status."""
    assert verdict(200, error("SOMETHING_NEW")) == Retry("200 SOMETHING_NEW: words: no receipt")
    assert verdict(200, error("DECIDE_API_UNAUTHORIZED")) == Pause(
        Scope.DESTINATION, "200 DECIDE_API_UNAUTHORIZED: words"
    )


def test_a_receipt_too_long_to_be_read_whole_is_delivered():
    """A 2xx object of which only the first 64 KiB are read must not be asked for again for ever."""
    assert verdict(200, (b'{"x":"' + b"x" * ANSWER_BYTES)[:ANSWER_BYTES]) == Delivered()
    assert isinstance(verdict(200, b"<" * ANSWER_BYTES), Retry)


@pytest.mark.parametrize("kind", ["API", "EXECUTION", "OUTCOME"])
@pytest.mark.parametrize("status", [401, 403])
def test_unauthorized_pauses_the_destination(status, kind):
    """A key that may not, for all calls or for one, stops everything; what is queued is kept."""
    reason = f"{status} DECIDE_{kind}_UNAUTHORIZED: words"
    assert verdict(status, error(f"DECIDE_{kind}_UNAUTHORIZED", "unauthorized")) == Pause(Scope.DESTINATION, reason)


def test_an_unknown_decision_is_the_end_of_its_receipt():
    """404 by decide.fyi: the decision is unknown or another key's. By anybody else: base_url is wrong, all is kept."""
    assert verdict(404, error("DECISION_NOT_FOUND")) == Reject("404 DECISION_NOT_FOUND")
    assert isinstance(verdict(404, {"c": "unclear", "v": "try again"}), Reject)
    assert isinstance(verdict(404, {"error": "no decision", "request_id": "r"}), Reject)
    for body in (
        b"",
        b"<html>",
        {"detail": "Not Found"},
        {"error": {"code": "404", "message": "m"}},
        {"error": "Not Found"},
    ):
        found = verdict(404, body)
        assert isinstance(found, Pause)
        assert found.scope is Scope.DESTINATION
        assert "base_url" in found.reason


def test_a_wrong_method_is_permanent_only_by_its_own_word():
    """405 says `try again` and does not mean it; without the envelope somebody else answers there."""
    assert isinstance(verdict(405, {"c": "unclear", "v": "try again", "error": "X_Y"}), Reject)
    assert isinstance(verdict(405, b""), Pause)


@pytest.mark.parametrize("maybe_taken", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        error("DECIDE_API_IDEMPOTENCY_CONFLICT", "idempotency_conflict"),
        error("DECIDE_EXECUTION_IDEMPOTENCY_CONFLICT"),
        error("DECIDE_EXECUTION_IDEMPOTENCY_CONFLICT", message="another write is still in progress"),
        error("DECIDE_EXECUTION_IDEMPOTENCY_CONFLICT", execution_status="pending"),
        b"",
        b"<html>",
        {"status": "conflict"},
    ],
)
def test_a_conflict_is_the_end(body, maybe_taken):
    """409 without a clear sign is a conflict: the key holds another payload, also where the try was a repeat."""
    assert isinstance(verdict(409, body, maybe_taken=maybe_taken), Reject)


@pytest.mark.parametrize(
    "body",
    [
        error("DECIDE_EXECUTION_IN_PROGRESS"),
        error("DECIDE_EXECUTION_IDEMPOTENCY_IN_PROGRESS", "in_progress"),
        error("DECIDE_EXECUTION_IDEMPOTENCY_CONFLICT", status="in_progress"),
        error("X_Y", v="in progress"),
        {"idempotency_status": "in-progress"},
        {"status": "Processing"},
        {"idempotency": {"status": "in_flight"}},
    ],
)
def test_a_twin_still_running_is_waited_for(body):
    """409 with a clear word that the first write still runs: again later, the same bytes under the same key."""
    found = verdict(409, body, retry_after="3")
    assert isinstance(found, Retry)
    assert (found.after_s, found.scope) == (3.0, Scope.LANE)


def test_the_idempotency_header_is_a_sign_too():
    """`x-idempotency-status` says it as clearly as a body."""
    assert isinstance(verdict(409, b"", x_idempotency_status="in_progress"), Retry)
    assert isinstance(verdict(409, b"", x_idempotency_status="conflict"), Reject)


def test_a_rate_limit_waits_for_its_minute():
    """429 of the minute: the whole destination waits, by Retry-After, else `retry_after`, else the reset."""
    limited = error("DECIDE_API_RATE_LIMITED", "rate_limited")
    reason = "429 DECIDE_API_RATE_LIMITED: words"
    reset = str(int((NOW + 20) * 1000))
    assert verdict(429, limited, retry_after="5", x_ratelimit_reset=reset) == Retry(reason, 5.0, Scope.DESTINATION)
    assert verdict(429, limited | {"retry_after": 7}, x_ratelimit_reset=reset) == Retry(reason, 7.0, Scope.DESTINATION)
    assert verdict(429, limited, x_ratelimit_reset=reset) == Retry(reason, 20.0, Scope.DESTINATION)
    assert verdict(429, limited) == Retry(reason, None, Scope.DESTINATION)
    runtime = {"ok": False, "error": "RATE_LIMIT_EXCEEDED", "message": "m", "retry_after": 9, "request_id": "r"}
    assert verdict(429, runtime) == Retry("429 RATE_LIMIT_EXCEEDED: m", 9.0, Scope.DESTINATION)


@pytest.mark.parametrize("body", [error("DECIDE_API_MONTHLY_CAP_EXCEEDED"), {"c": "x", "v": "monthly_cap_exceeded"}])
def test_a_monthly_cap_pauses_until_its_reset(body):
    """429 of the month: a pause until the reset, else for `retry_after`, else until the next month begins in UTC."""
    reset = NOW + 86_400

    def until(body, **headers):
        found = verdict(429, body, **headers)
        assert isinstance(found, Pause)
        assert found.scope is Scope.DESTINATION
        return found.until_s

    assert until(body, x_ratelimit_reset=f"{reset * 1000:.0f}") == 86_400
    assert until(body, x_ratelimit_reset=f"{reset:.0f}") == 86_400
    assert until(body | {"retry_after": 4000}) == 4000
    assert until(body) == MONTH_S


@pytest.mark.parametrize(
    "wrong", ["", "soon", "nan", "inf", "-5", "0", "30", "1000000000", "9" * 30, f"{NOW * 1000:.0f}"]
)
def test_a_reset_that_makes_no_sense_is_none(wrong):
    """A reset that is past, absurdly far or no number is as if it were not there."""
    found = verdict(429, error("DECIDE_API_MONTHLY_CAP_EXCEEDED"), x_ratelimit_reset=wrong)
    assert found.until_s == MONTH_S
    assert verdict(429, b"", x_ratelimit_reset=wrong).after_s is None


@pytest.mark.parametrize("value", [0, -1, True, None, "x", [], "nan", "1e999", 10**400])
def test_a_wait_that_makes_no_sense_is_none(value):
    """`retry_after` that is no number of seconds above zero does not end a monthly cap."""
    assert verdict(429, error("DECIDE_API_MONTHLY_CAP_EXCEEDED", retry_after=value)).until_s == MONTH_S


def test_a_cap_is_not_probed_every_second():
    """A reset of the minute beside a monthly cap does not make a month of probes a second."""
    found = verdict(429, error("DECIDE_API_MONTHLY_CAP_EXCEEDED", retry_after=1))
    assert found.until_s == 60


def test_december_ends_with_the_year():
    """The next month of December is January of the next year."""
    now = datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp()
    assert verdict(429, error("DECIDE_API_MONTHLY_CAP_EXCEEDED"), now_s=now).until_s == 3600


def test_a_used_up_budget_pauses():
    """The AI budget has its own reset, and without one it is looked at again in a while."""
    assert verdict(429, error("DECIDE_AI_BUDGET_EXHAUSTED", retry_after=600)).until_s == 600
    assert verdict(429, error("DECIDE_AI_BUDGET_EXHAUSTED")).until_s is None


@pytest.mark.parametrize(
    "code",
    ["RULEBOOK_ATTESTATION_SIGNATURE_REQUIRED", "DECIDE_AI_DISABLED_ZERO_COST", "DECIDE_AI_CONFIGURATION_INVALID"],
)
def test_503_that_needs_an_operator_pauses(code):
    """A 503 that no waiting cures pauses with its reason."""
    assert verdict(503, error(code)) == Pause(Scope.DESTINATION, f"503 {code}: words")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", error("DECIDE_AI_BUDGET_UNAVAILABLE"), error("DECIDE_STORE_UNAVAILABLE")]
)
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_other_server_errors_are_tried_again(status, body):
    """A store that is down and every other 5xx: again after backoff, or when the platform says."""
    found = verdict(status, body)
    assert isinstance(found, Retry)
    assert found.scope is Scope.LANE
    if isinstance(body, dict):
        assert verdict(status, body | {"retry_after": 2}).after_s == 2.0


@pytest.mark.parametrize(("status", "cause"), [(400, Cause.REJECTED), (422, Cause.REJECTED), (413, Cause.TOO_LARGE)])
def test_what_is_wrong_with_the_record_is_its_end(status, cause):
    """400, 413 and 422 are about this record, which goes alone: splitting it is burying it."""
    assert verdict(status, error("SOME_CODE")) == Split(f"{status} SOME_CODE: words", cause)


def test_reasons_can_be_counted():
    """A reason has no id, of a request or a decision, and an end, so that the same refusal is the same reason."""
    one, two = (verdict(404, error("A_B", request_id=f"req_{n}", message=f"no decision {n}")) for n in (1, 2))
    assert one == two
    assert len(verdict(405, error("A_B", message="x" * 5000)).reason) == 500


@pytest.mark.parametrize(("was_sent", "scope"), [(False, Scope.DESTINATION), (True, Scope.LANE)])
def test_a_lost_answer_is_tried_again(was_sent, scope):
    """Under the same key and with the same bytes a repeat gets the first receipt."""
    given = item("outcome", **LEAST["outcome"])
    found = DECIDE.classify(DECIDE.calls["outcome"], [given], Lost("gone", sent=was_sent), Attempt(NOW))
    assert found == Retry("gone", None, scope)
    never = msgspec.structs.replace(DECIDE.calls["outcome"], repeat=False)
    assert DECIDE.classify(never, [given], Lost("gone", sent=True), Attempt(NOW)) == Unknown("gone")
