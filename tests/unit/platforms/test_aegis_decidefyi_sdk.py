"""Standing in for Aegis and decide.fyi, which are called by plain HTTP: their pages' examples as they are."""

from __future__ import annotations

import json

import pytest
from sdk_kit import NOW_US, answer, called, find_door, handed, make_id, shown

from agentd import platforms
from agentd.errors import RecordError
from agentd.exchange import Context
from agentd.queued import Entry, Source
from agentd.records import kind_of, lane_of, loss_class
from agentd.standin import STATUSES, Does, Why
from agentd.wire import encode

AEGIS, DECIDE = (platforms.load(name).stand_in for name in ("aegis", "decidefyi"))
ADAPTER = platforms.load("decidefyi")
EXECUTION, OUTCOME, CRM = (f"/api/decision/dec_1/{what}" for what in ("execution", "outcome", "crm-sync"))
EXECUTED = {
    "execution_status": "executed", "action_taken": "approve_refund", "target_system": "stripe", "target_object_id": "ch_1",
    "mutation": "refund.create", "execution_id": "ex_1", "external_ref": "re_1", "decision_record_hash": "sha256:a",
    "decision_receipt_hash": "sha256:b", "state_before_hash": "sha256:c", "state_after_hash": "sha256:d",
    "executor": {"type": "agent", "id": "billing"},
}  # fmt: skip


def sent(record):
    entry = Entry(
        1, bytes(16), lane_of(record, "billing"), kind_of(record), loss_class(record), Source("billing", 0, 0, "test"),
        NOW_US, encode(record),
    )  # fmt: skip
    request = ADAPTER.encode(
        ADAPTER.calls[entry.kind], [entry], Context(lambda local: local, lambda _kind, local: f"p-{local}")
    )
    return request.path, json.loads(request.body)


# -- Aegis -----------------------------------------------------------------------------------------------------------------------


def test_an_intent_is_a_gate():
    """Leave to spend is asked for; its fields stand on record under the names of the SDK in Python."""
    body = {
        "agentId": "a",
        "amount": 12500,
        "currency": "INR",
        "reason": "r",
        "merchantCategory": "travel",
        "merchant": None,
    }
    call = called(AEGIS, "POST", "/v1/intents", body)
    asked = AEGIS.asked(call)
    assert AEGIS.asks(call) == "intent"
    assert (asked.agent, asked.run_id, sorted(asked.request)) == (
        "a", None, ["amount", "currency", "merchant_category", "reason"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message"), [({"agentId": 3}, r"^\$\.agentId: expected a string"), (b"[1]", r"^\$: expected an object")]
)
def test_an_intent_that_is_none_is_refused(body, message):
    """By the name that was sent."""
    with pytest.raises(RecordError, match=message):
        AEGIS.asked(called(AEGIS, "POST", "/v1/intents", body))


def test_intents_are_read():
    """One, and the list; nothing else of Aegis passes, since no page names another path."""
    assert find_door(AEGIS, "GET", "/v1/intents")[0].does is Does.READ
    found, segments = find_door(AEGIS, "GET", "/v1/intents/int_1")
    assert (found.does, segments, AEGIS.names["intentId"]) == (Does.READ, {"intentId": "int_1"}, "intent")
    for method, path in (
        ("POST", "/v1/intents/int_1/approve"),
        ("GET", "/v1/approvals"),
        ("DELETE", "/v1/intents/int_1"),
    ):
        assert find_door(AEGIS, method, path) is None


@pytest.mark.parametrize("why", list(Why))
def test_aegis_is_refused_for_in_both_usual_envelopes(why):
    """Code and message stand where either reading looks; what may have spent money is no 5xx."""
    reply = AEGIS.refusal(why, "m")
    assert answer(reply) == {"error": {"code": why.value, "message": "m"}, "code": why.value, "message": "m"}
    assert reply.status == (424 if why in {Why.OUTCOME_UNKNOWN, Why.INTERNAL} else STATUSES[why])


# -- decide.fyi: receipts ----------------------------------------------------------------------------------------------------------


def test_an_execution_is_queued():
    """All of it reaches the platform; the receipt repeats what was said, says that it is queued, and invents no hash."""
    (record,), done = handed(DECIDE, "POST", EXECUTION, EXECUTED, {"X-Idempotency-Key": "k_execution"})
    assert shown(record) == {"kind": "execution", "decision_id": "dec_1", **EXECUTED}
    assert sent(record) == ("/api/decision/p-dec_1/execution", EXECUTED)
    receipt = {
        "execution_receipt_id": "agentd_" + make_id("execution:dec_1:k_execution"),
        "decision_id": "dec_1",
        "execution_status": "executed",
        "status": "queued",
        "reported_at": "2026-01-01T00:00:00.000000Z",
    }
    assert answer(done.reply) == {**receipt, "execution": receipt}
    assert (done.reply.status, done.key, done.conflicts) == (200, "execution:dec_1:k_execution", True)


@pytest.mark.parametrize(
    ("path", "body", "place", "id_name"),
    [
        (
            OUTCOME,
            {"outcome_status": "succeeded", "observed_metrics": {"a": 1}, "action_executed": True},
            "outcome",
            "outcome_id",
        ),
        (
            CRM,
            {"sync_status": "written", "crm_provider": "salesforce", "field_mapping": {"a": "b"}},
            "crm_sync",
            "sync_id",
        ),
    ],
)
def test_outcomes_and_syncs_are_queued_likewise(path, body, place, id_name):
    """Bare as documented, and below the name under which the JavaScript SDK looks."""
    (record,), done = handed(DECIDE, "POST", path, body)
    said = answer(done.reply)
    assert shown(record) == {"kind": place, "decision_id": "dec_1", **body}
    assert said[place] == {name: value for name, value in said.items() if name != place}
    assert said[id_name].startswith("agentd_")
    assert done.key == ""


def test_the_same_key_is_another_for_each_receipt():
    """One handle for execution and outcome, or for two decisions, mixes nothing up."""
    headers = {"x-idempotency-key": "k"}
    keys = {
        handed(DECIDE, "POST", path, body, headers)[1].key
        for path, body in (
            (EXECUTION, EXECUTED),
            ("/api/decision/dec_2/execution", EXECUTED),
            (OUTCOME, {"outcome_status": "succeeded"}),
        )
    }
    assert len(keys) == 3


def test_an_id_of_ours_is_not_told_to_the_platform():
    """An outcome cites the execution's receipt: the platform's own id goes on, ours means nothing there."""
    _, executed = handed(DECIDE, "POST", EXECUTION, EXECUTED)
    ours = answer(executed.reply)["execution_receipt_id"]
    for cited, expected in ((ours, {}), ("exec_9", {"execution_receipt_id": "exec_9"})):
        body = {"outcome_status": "succeeded", "execution_receipt_id": cited}
        (record,), _ = handed(DECIDE, "POST", OUTCOME, body)
        assert sent(record)[1] == {"outcome_status": "succeeded", **expected}


def test_what_agentd_does_not_know_is_carried_through():
    """Members without a field go on as they were; agent and decision of the body are members like any other."""
    body = {**EXECUTED, "agent_id": "x", "region": "eu", "gone": None, "executed_at": "2026-01-01T00:00:00"}
    (record,), _ = handed(DECIDE, "POST", EXECUTION, body)
    assert record.agent_id is None
    assert sent(record)[1] == {**EXECUTED, "executed_at": "2026-01-01T00:00:00Z", "agent_id": "x", "region": "eu"}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (EXECUTION, {}, r"^\$\.execution_status: required$"),
        (EXECUTION, b"", r"^\$\.execution_status: required$"),
        (EXECUTION, {"execution_status": 1}, r"^\$\.execution_status: "),
        (EXECUTION, {**EXECUTED, "executed_at": "noon"}, r"^\$\.executed_at: expected an ISO 8601"),
        (OUTCOME, {"outcome_status": "succeeded", "action_executed": "yes"}, r"^\$\.action_executed: "),
        (CRM, b"3", r"^\$: expected an object"),
    ],
)
def test_what_is_wrong_is_named(path, body, message):
    """A refusal speaks of the member that was sent."""
    with pytest.raises(RecordError, match=message):
        handed(DECIDE, "POST", path, body)


# -- decide.fyi: the rest ------------------------------------------------------------------------------------------------------------


def test_deciding_is_a_gate():
    """A question as it stands; it is the destination's, and the caller's key goes on with it."""
    call = called(DECIDE, "POST", "/api/decide", {"mode": "rulebook", "rulebook": {"a": 1}, "agent_id": "x"})
    asked = DECIDE.asked(call)
    assert DECIDE.asks(call) == "decide"
    assert (asked.agent, asked.run_id, sorted(asked.request)) == ("", None, ["agent_id", "mode", "rulebook"])
    assert "x-idempotency-key" in DECIDE.headers


READS = (
    [
        "GET /api/decision/" + path
        for path in ("status", "receipt-keys", "policy-bundles", "policy-patterns", "rulebooks")
    ]
    + ["GET /api/decision/dec_1" + path for path in ("", "/verify", "/packet", "/execution", "/outcome", "/crm-sync")]
    + [
        "POST /api/decision/" + path
        for path in ("verify", "packet/verify", "dec_1/verify", "dec_1/replay", "dec_1/diff")
    ]
    + [
        "POST /api/decision/dec_1/counterfactuals",
        "GET /api/decision/chains/c",
        "GET /api/decision/policies/p/anomalies",
    ]
)


@pytest.mark.parametrize("read", READS)
def test_reads_pass(read):
    """All of the documented calls that store nothing, whatever their method."""
    assert find_door(DECIDE, *read.split())[0].does is Does.READ


def test_registries_are_no_decisions():
    """A path that is fixed is not taken for a decision of that name."""
    assert find_door(DECIDE, "GET", "/api/decision/status")[1] == {}
    assert find_door(DECIDE, "POST", "/api/decision/packet/verify")[1] == {}


@pytest.mark.parametrize("why", list(Why))
def test_no_refusal_of_decide_fyi_s_reads_as_a_verdict(why):
    """`c` is unclear, there is no verdict, and the message says what is wrong."""
    reply = DECIDE.refusal(why, "m")
    said = answer(reply)
    assert (said["c"], said["message"], reply.status) == ("unclear", "m", STATUSES[why])
    assert "verdict" not in said
    assert said["error"].isupper()
