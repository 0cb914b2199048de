"""Decision OS: the exact requests, and what its answers mean."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, Attempt, Context, Lost, Reference, Response, Sending, Unencodable
from agentd.identity import text_of
from agentd.outcomes import RECORD, Cause, Delivered, Learned, Pause, Reject, Retry, Scope, Split, Unknown
from agentd.queued import Entry, Source
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.wire import encode

DOS = platforms.load("decisionos")
RECORD_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
decode_record = msgspec.json.Decoder(Record).decode


def item(kind, *, agent="billing", raw=None, **fields):
    record = decode_record(raw or json.dumps({"kind": kind, **fields}).encode())
    return Entry(
        1, RECORD_ID.bytes, lane_of(record, agent), kind_of(record), loss_class(record), Source(agent, 0, 0, "test"),
        int(NOW * 1e6), encode(record),
    )  # fmt: skip


def decision(**fields):
    return item("decision", **{"context": "Refund?", **fields})


def snapshot(**fields):
    return item("snapshot", **{"decision_id": "d", "snapshot": {"prompt": "p"}, **fields})


def body_of(one, known=None):
    ids = {"d": "dec_1"} if known is None else known
    context = Context(lambda local: f"id-of-{local}" if local else "", lambda _kind, local: ids.get(local))
    return DOS.encode(DOS.calls[one.kind], [one], context).body


def sent(one, known=None):
    return json.loads(body_of(one, known))


def verdict(one, status, body=b"", *, headers=None, maybe_taken=False):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return DOS.classify(DOS.calls[one.kind], [one], Response(status, headers or {}, body), Attempt(NOW, maybe_taken))


# -- requests --------------------------------------------------------------------------------------------------------------


def test_two_kinds_and_two_calls():
    """Decisions and snapshots alone are taken; both may be repeated, one by one, as the very bytes that were sealed."""
    assert {kind: call.path for kind, call in DOS.calls.items()} == {
        "decision": "/api/public/v1/decisions", "snapshot": "/api/public/v1/snapshots",
    }  # fmt: skip
    for call in DOS.calls.values():
        assert (call.repeat, call.strict_key, call.batch, call.newest_only) == (True, True, False, False)
    assert DOS.introduces == {"decision"}


def test_headers_are_a_bearer_and_the_key():
    """Authentication as the SDK does it, and the idempotency key beside the `requestId` of the body."""
    assert DOS.headers(Sending("dos_live_x", "k", NOW)) == {
        "authorization": "Bearer dos_live_x",
        "idempotency-key": "k",
    }


def test_a_decision_in_its_least_form():
    """Agent, context and a `requestId` made of the record's id; nothing else is said, and no client-made decision id."""
    expected = {"agentId": "id-of-billing", "requestId": str(RECORD_ID), "context": "Refund?"}
    assert sent(decision()) == expected
    assert sent(decision(decision_id="mine")) == expected


def test_a_decision_with_everything():
    """Every field goes under its camelCase name; run and span are labels and stay as they were written."""
    whole = decision(
        decision_id="d", options=["yes", {"key": "no", "label": "No!", "probability": 0.2, "meta": {"a": None}}], chosen="yes",
        confidence=1, constraints=["c"], assumptions=["a", {"text": "t", "confidence": 0.5}], model="m", runner="r",
        prompt_version="1", prompt_hash="h", parameters={"snake_case": 1}, policy_version_id="pv", decision_type="refund",
        agent_name="Billing", create_agent_if_missing=True, trace_id="t", run_id="d", span_id="s", parent_span_id="u",
        session_id="se", conversation_id="co", request_id="mine", tool_calls=[{"name": "x"}], mcp_servers=["m"],
        tokens_input=0, tokens_output=7, cost_usd=0.5, latency_ms=12.5, error_text="",
    )  # fmt: skip
    assert sent(whole) == {
        "agentId": "id-of-billing", "requestId": "mine", "context": "Refund?",
        "options": [
            {"key": "yes", "label": "yes"}, {"key": "no", "label": "No!", "probability": 0.2, "meta": {"a": None}},
        ],
        "chosenOptionKey": "yes", "confidence": 1, "constraints": ["c"],
        "assumptions": ["a", {"text": "t", "confidence": 0.5}], "model": "m", "runner": "r", "promptVersion": "1",
        "promptHash": "h", "parameters": {"snake_case": 1}, "policyVersionId": "pv", "decisionType": "refund",
        "agentName": "Billing", "createAgentIfMissing": True, "traceId": "t", "runId": "d", "spanId": "s",
        "parentSpanId": "u", "sessionId": "se", "conversationId": "co", "toolCalls": [{"name": "x"}],
        "mcpServers": ["m"], "tokensInput": 0, "tokensOutput": 7, "costUsd": 0.5, "latencyMs": 12.5, "errorText": "",
    }  # fmt: skip


def test_create_agent_is_sent_only_when_true():
    """As the SDK does: an explicit false is left out."""
    assert "createAgentIfMissing" not in sent(decision(create_agent_if_missing=False))


def test_an_evaluation_is_never_asked_for():
    """A decision with an evaluation is a gate, whose answer the agent needs: no record can turn into one."""
    with pytest.raises(msgspec.ValidationError, match="run_policy_eval"):
        decision(run_policy_eval=True)


def test_a_snapshot_in_its_least_form():
    """The decision's real id, and the time at which it was taken in, since the server's would be that of its delivery."""
    assert sent(snapshot()) == {
        "agentId": "id-of-billing", "requestId": str(RECORD_ID), "decisionId": "dec_1", "snapshot": {"prompt": "p"},
        "capturedAt": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def test_a_snapshot_with_everything():
    """Every field goes under its camelCase name, what is inside of the free ones as it was written; times go in UTC."""
    whole = snapshot(
        tool_calls={"x": []}, model_usage={"input_tokens": 1}, timings={"latency_ms": 2}, eval={"a": 1}, eval_score=0,
        eval_pass=False, policy_version_id="pv", event_id="e", schema_version="1", captured_at="2026-01-31T12:00:00.5+05:30",
        trace_id="t", run_id="d", span_id="s", parent_span_id="u", request_id="mine",
    )  # fmt: skip
    assert sent(whole) == {
        "agentId": "id-of-billing", "requestId": "mine", "decisionId": "dec_1", "snapshot": {"prompt": "p"},
        "toolCalls": {"x": []}, "modelUsage": {"input_tokens": 1}, "timings": {"latency_ms": 2}, "eval": {"a": 1},
        "evalScore": 0, "evalPass": False, "policyVersionId": "pv", "eventId": "e", "schemaVersion": "1",
        "capturedAt": "2026-01-31T06:30:00.500000Z", "traceId": "t", "runId": "d", "spanId": "s", "parentSpanId": "u",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "given", "wire"),
    [
        ("options", "yes", [{"key": "yes", "label": "yes"}]),
        ("options", {"key": "k"}, [{"key": "k"}]),
        ("options", [{"key": "k", "label": None}, None], [{"key": "k"}]),
        ("options", [5], [5]),
        ("options", [], []),
        ("assumptions", "a", ["a"]),
        ("assumptions", [{"text": "null", "confidence": None}], [{"text": "null"}]),
        ("tool_calls", {"name": "x"}, [{"name": "x"}]),
        ("mcp_servers", "m", ["m"]),
        ("parameters", [1], {"value": [1]}),
    ],
)
def test_free_fields_of_a_decision_get_the_platforms_form(field, given, wire):
    """Arrays are arrays and objects objects; what comes otherwise is wrapped, nulls are left out, and nothing is lost."""
    (found,) = (
        value for name, value in sent(decision(**{field: given})).items() if name.lower() == field.replace("_", "")
    )
    assert found == wire


@pytest.mark.parametrize("field", ["snapshot", "tool_calls", "model_usage", "timings", "eval"])
def test_free_fields_of_a_snapshot_are_objects(field):
    """All five are objects here, `toolCalls` too; anything else goes under `value`."""
    (found,) = (
        value for name, value in sent(snapshot(**{field: [1]})).items() if name.lower() == field.replace("_", "")
    )
    assert found == {"value": [1]}


@pytest.mark.parametrize("null", ["null", " null "])
def test_null_is_nothing(null):
    """An optional field that is null is left out."""
    names = ("options", "assumptions", "parameters", "tool_calls", "mcp_servers", "model", "confidence", "request_id")
    fields = "".join(f',"{name}":{null}' for name in names)
    raw = f'{{"kind":"decision","context":"Refund?"{fields}}}'.encode()
    assert sent(item("decision", raw=raw)) == sent(decision())


def test_free_json_is_not_touched():
    """What is inside of a free field goes as the bytes that the client wrote."""
    raw = b'{"kind":"snapshot","decision_id":"d","snapshot":{ "a" : 1.50, "b": null }}'
    assert b'"snapshot":{ "a" : 1.50, "b": null }' in body_of(item("snapshot", raw=raw))


def test_the_request_id_never_changes():
    """Promise 4: the same record has the same `requestId` at each try, and its snapshot has another."""
    assert body_of(decision()) == body_of(decision())
    assert sent(decision())["requestId"] == str(RECORD_ID)


@pytest.mark.parametrize("one", [decision, snapshot])
def test_without_any_agent_it_cannot_be_said(one):
    """Decision OS demands an agent: what names none is dead with the reason instead of refused for ever."""
    with pytest.raises(Unencodable, match="agent_id"):
        sent(one(agent=""))


@pytest.mark.parametrize("context", ["", " \n\t"])
def test_a_blank_context_cannot_be_said(context):
    """Decision OS demands a context that is not blank."""
    with pytest.raises(Unencodable, match="context"):
        sent(decision(context=context))


def test_a_snapshot_of_a_dead_decision_cannot_be_said():
    """Where the platform has not taken the decision, its snapshot has nothing to refer to."""
    with pytest.raises(Unencodable, match="decision"):
        sent(snapshot(), known={})


def test_a_snapshot_waits_for_its_decision_and_a_decision_for_nothing():
    """Only `decision_id` is a reference: a run is a label to Decision OS."""
    assert list(DOS.references(snapshot(run_id="r"))) == [Reference("decision", "d")]
    assert list(DOS.references(decision(run_id="r", decision_id="d"))) == []


# -- verdicts --------------------------------------------------------------------------------------------------------------

LEARNED = Delivered((Learned("decision", "mine", "dec_9"),))


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    "body", [{"data": {"id": "dec_9", "status": "draft"}}, {"id": "dec_9"}, {"data": None, "id": "dec_9"}]
)
def test_a_decisions_id_is_learned(status, body):
    """The id comes in `data` or bare, with 200 or 201; it is learned under the client's own, else of the record itself."""
    assert verdict(decision(decision_id="mine"), status, body) == LEARNED
    assert verdict(decision(), status, body) == Delivered((Learned(RECORD, text_of(decision().record_id), "dec_9"),))
    named = verdict(snapshot(), status, {"data": {"id": "snap_1"}})
    assert named == Delivered((Learned(RECORD, text_of(snapshot().record_id), "snap_1"),))
    assert (LEARNED.introduces, named.introduces) == (True, False)


def test_a_failed_evaluation_is_a_delivery_all_the_same():
    """`policyEval.ok: false` comes inside a success: the decision is in the ledger."""
    assert verdict(decision(decision_id="mine"), 200, {"data": {"id": "dec_9", "policyEval": {"ok": False}}}) == LEARNED


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"[]", b'"dec_9"', b"\xff"])
@pytest.mark.parametrize("one", [decision(), decision(decision_id="mine"), snapshot()])
def test_a_success_of_somebody_else_is_no_delivery(one, body):
    """A 2xx that is no object comes from a proxy or a wrong base_url: everything waits."""
    found = verdict(one, 200, body)
    assert isinstance(found, Retry)
    assert found.scope is Scope.DESTINATION
    assert "base_url" in found.reason


@pytest.mark.parametrize(
    "body", [{}, {"data": {}}, {"data": {"id": ""}}, {"data": {"id": 5}}, {"data": {"run_id": "r"}}]
)
def test_a_success_without_an_id_is_asked_again(body):
    """Without the id nothing later could refer to it; the repeat is safe, since `requestId` makes it one decision."""
    assert verdict(decision(decision_id="mine"), 200, body) == Retry("200 without data.id")


def test_a_success_that_is_an_error_is_none():
    """An error text in a 2xx is no delivery, and is told."""
    assert verdict(decision(), 200, {"error": "busy"}) == Retry("200 busy")


def test_an_answer_that_was_cut():
    """Of a very long answer we have the beginning only: that is enough where no id is needed, and asked again where it is."""
    cut = b'{"data":{"context":"' + b"x" * ANSWER_BYTES
    assert verdict(decision(), 200, cut) == Delivered()
    assert verdict(snapshot(), 200, cut) == Delivered()
    assert isinstance(verdict(decision(decision_id="mine"), 200, cut), Retry)


@pytest.mark.parametrize("name", ["error", "message"])
def test_the_reason_is_the_platforms_text(name):
    """Errors are `{error}` or `{message}`; a refusal of one record is its end, with the platform's words."""
    assert verdict(decision(), 400, {name: " context is required "}) == Split("400 context is required")
    assert verdict(decision(), 422, {name: "no"}) == Split("422 no")
    assert verdict(decision(), 413, {name: "no"}) == Split("413 no", Cause.TOO_LARGE)


def test_a_key_without_its_scope_pauses_the_lane():
    """401 stops everything, 403 this lane first."""
    assert verdict(decision(), 401, {"error": "bad key"}) == Pause(Scope.DESTINATION, "401 bad key")
    assert verdict(decision(), 403, {"error": "no scope"}) == Pause(Scope.LANE, "403 no scope")


@pytest.mark.parametrize(
    ("reset_at", "until_s"),
    [
        ("2026-01-01T00:01:00Z", 60.0), ("2026-01-01T01:01:00+01:00", 60.0), ("2026-01-01T00:01:00", 60.0),
        ("2026-01-02", 3600.0), (NOW + 60, 60.0), ((NOW + 60) * 1000, 60.0), ("9999-01-01T00:00:00Z", 3600.0),
        ("2025-12-31T00:00:00Z", None), (NOW, None), ("soon", None), ("", None), (None, None), (True, None), ([], None),
        (10**400, None),
    ],
)  # fmt: skip
def test_a_used_up_quota_pauses_until_its_reset(reset_at, until_s):
    """402 stops everything until `resetAt`, in any of its likely forms; but a probe an hour finds a larger plan, and nonsense counts for nothing."""
    for body in ({"error": "quota", "resetAt": reset_at}, {"error": "quota", "data": {"resetAt": reset_at}}):
        assert verdict(decision(), 402, body) == Pause(Scope.DESTINATION, "402 quota", until_s)


def test_a_used_up_quota_without_a_reset_goes_by_retry_after():
    """402: where the body names no reset, the header may; without either a probe finds out."""
    assert verdict(decision(), 402, {"error": "q"}, headers={"retry-after": "90"}).until_s == 90.0
    assert verdict(decision(), 402, {"error": "q"}).until_s is None


@pytest.mark.parametrize(
    ("one", "text", "told"),
    [
        (decision(), "Agent not found", "agent 'billing'"),
        (decision(), "not found", "agent 'billing'"),
        (decision(agent=""), "not found", "agent_id"),
        (snapshot(), "Agent x not found", "agent 'billing'"),
        (snapshot(), "Decision dec_1 not found", "its decision"),
        (snapshot(), "not found", "either its decision or agent 'billing'"),
    ],
)
def test_an_unknown_agent_and_an_unknown_decision_are_told_apart(one, text, told):
    """404 is the record's end; its reason says which of the two to look after."""
    found = verdict(one, 404, {"error": text})
    assert isinstance(found, Reject)
    assert found.reason.startswith(f"404 {text} (")
    assert told in found.reason


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"data":null,"error":{"code":"NOT_FOUND"}}', b'{"detail":"Not Found"}']
)
def test_a_404_of_somebody_else_pauses(body):
    """A 404 that is not in Decision OS's words comes from a wrong base_url: nothing is buried for it."""
    found = verdict(decision(), 404, body)
    assert isinstance(found, Pause)
    assert found.scope is Scope.DESTINATION


def test_a_conflict_at_the_first_try_is_a_refusal():
    """409 to what was never sent before: somebody else used that `requestId`."""
    for one in (decision(), decision(decision_id="mine"), snapshot(), snapshot(request_id="x")):
        assert isinstance(verdict(one, 409, {"error": "conflict"}), Reject)


def test_a_conflict_with_our_own_repeat_is_a_delivery():
    """409 to a repeat under an id that is the record's own: the earlier try was taken."""
    assert verdict(decision(), 409, {"error": "conflict"}, maybe_taken=True) == Delivered()
    assert verdict(snapshot(), 409, {"error": "conflict"}, maybe_taken=True) == Delivered()


@pytest.mark.parametrize("one", [decision(decision_id="mine"), decision(request_id="x"), snapshot(request_id="x")])
def test_a_conflict_that_can_be_either_is_unknown(one):
    """Where the decision's id is needed and lost, or the client's own word may have served twice, nobody claims a delivery."""
    assert isinstance(verdict(one, 409, {"error": "conflict"}, maybe_taken=True), Unknown)


def test_rate_limit_and_outage():
    """429 is everybody's rest for as long as the header says, which the SDK would not wait; a 5xx is this lane's."""
    assert verdict(decision(), 429, {"error": "slow"}, headers={"retry-after": "7"}) == Retry(
        "429 slow", 7.0, Scope.DESTINATION
    )
    assert verdict(decision(), 503, {"error": "down"}) == Retry("503 down")


def test_a_lost_answer_is_asked_again():
    """The `requestId` makes each repeat safe."""
    for one in (decision(), snapshot()):
        for was_sent, scope in ((True, Scope.LANE), (False, Scope.DESTINATION)):
            found = DOS.classify(DOS.calls[one.kind], [one], Lost("timeout", sent=was_sent), Attempt(NOW))
            assert found == Retry("timeout", None, scope)
