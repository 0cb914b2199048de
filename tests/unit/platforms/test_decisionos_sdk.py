"""Standing in for Decision OS: the unmodified SDK talks to the stand-in through a transport in memory."""

from __future__ import annotations

import json

import decision_os
import httpx
import pytest
from sdk_kit import NOW_US, answer, called, find_door, handed, make_id, shown

from agentd import platforms
from agentd.errors import RecordError
from agentd.exchange import Context
from agentd.queued import Entry, Source
from agentd.records import kind_of, lane_of, loss_class
from agentd.standin import Does, Why
from agentd.wire import encode

DOS = platforms.load("decisionos")
STAND_IN = DOS.stand_in
LOG, CAPTURE = "/api/public/v1/decisions", "/api/public/v1/snapshots"


class Line:
    """The SDK's transport: every call goes to the stand-in, whose records are kept; refusals can be ordered."""

    def __init__(self):
        self.records = []
        self.handed = []
        self.calls = 0
        self.refusal = None

    def __call__(self, request):
        self.calls += 1
        if self.refusal is not None:
            reply = STAND_IN.refusal(*self.refusal)
        else:
            records, done = handed(STAND_IN, request.method, request.url.raw_path.decode(), request.content)
            self.records += records
            self.handed.append(done)
            reply = done.reply
        return httpx.Response(reply.status, content=reply.body, headers={"content-type": "application/json"})


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def dos(line, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the SDK's waits between its tries
    with decision_os.DecisionOS(api_key="local", agent_id="billing", base_url="http://agentd/dos") as client:
        client._http.close()
        client._http = httpx.Client(transport=httpx.MockTransport(lambda request: line(_below(request))))
        yield client


def _below(request):
    """The request as the engine sees it, below the destination's name."""
    return httpx.Request(request.method, str(request.url).replace("/dos", "", 1), content=request.content)


def sent(record, known=None):
    """What the adapter makes of a record."""
    entry = Entry(
        1, bytes(16), lane_of(record, "billing"), kind_of(record), loss_class(record), Source("billing", 0, 0, "test"),
        NOW_US, encode(record),
    )  # fmt: skip
    context = Context(lambda local: f"id-of-{local}", lambda _kind, local: (known or {}).get(local, local))
    return json.loads(DOS.encode(DOS.calls[entry.kind], [entry], context).body)


EVERYTHING = {
    "options": ["eng", {"key": "billing", "probability": 0.2}], "chosen": "eng", "constraints": ["no PII"],
    "assumptions": ["it is Monday", {"text": "t", "confidence": 0.5}], "confidence": 0.9, "model": "gpt-4o", "runner": "r",
    "prompt_version": "v1", "prompt_hash": "h", "parameters": {"temperature": 0}, "policy_version_id": "pv",
    "decision_type": "routing", "agent_name": "Billing", "create_agent_if_missing": True, "trace_id": "t", "run_id": "run",
    "span_id": "s", "parent_span_id": "p", "session_id": "se", "conversation_id": "c", "request_id": "req-1",
    "tool_calls": [{"name": "x"}], "mcp_servers": [{"name": "m"}], "tokens_input": 1, "tokens_output": 2, "cost_usd": 0.1,
    "latency_ms": 12, "error_text": "e",
}  # fmt: skip


# -- telemetry -----------------------------------------------------------------------------------------------------------------


def test_a_decision_is_logged_at_once(dos, line):
    """The SDK gets an id that is known here, and no seal that nobody has made."""
    result = dos.log_decision("  Route this ticket ", chosen="eng")
    (record,) = line.records
    assert (record.context, record.chosen, record.agent_id) == ("Route this ticket", "eng", "billing")
    assert (result.decision_id, result.status) == (record.decision_id, "logged")
    assert (result.content_hash, result.chain_index, result.receipt, result.policy_eval) == (None, None, None, None)


def test_every_argument_of_a_decision_reaches_the_platform(dos, line):
    """What the SDK would have sent to Decision OS is what the adapter sends there, for each of its arguments."""
    dos.log_decision("Route", **EVERYTHING)
    body = {
        decided: value
        for decided, value in json.loads(encode(line.records[0])).items()
        if decided not in {"kind", "extra"}
    }
    assert body.pop("decision_id") == make_id("decision:req-1")
    assert body == {"context": "Route", "agent_id": "billing", **EVERYTHING}
    assert "extra" not in shown(line.records[0])
    assert sent(line.records[0])["chosenOptionKey"] == "eng"


def test_every_argument_of_a_snapshot_reaches_the_platform(dos, line):
    """A snapshot names its decision as it was told, and carries the rest."""
    more = {
        "tool_calls": {"a": 1}, "model_usage": {"input_tokens": 1}, "timings": {"latency_ms": 3}, "eval_score": 0.5,
        "eval_pass": True, "policy_version_id": "pv", "event_id": "e", "schema_version": "1", "trace_id": "t", "run_id": "r",
        "span_id": "s", "parent_span_id": "p", "request_id": "req-2",
    }  # fmt: skip
    result = dos.capture_snapshot(
        "dec-local", {"prompt": "p"}, eval_result={"ok": 1}, captured_at="2026-01-01T01:00:00+01:00", **more
    )
    (record,) = line.records
    expected = {"decision_id": "dec-local", "snapshot": {"prompt": "p"}, "eval": {"ok": 1}, "agent_id": "billing"}
    assert shown(record) == {"kind": "snapshot", "captured_at": "2026-01-01T00:00:00Z", **expected, **more}
    assert result.snapshot_id == make_id("snapshot:req-2")
    assert sent(record, {"dec-local": "dec_1"})["decisionId"] == "dec_1"


def test_one_request_id_is_one_decision(dos, line):
    """`requestId` is the key under which a call is known, apart for decisions and snapshots, and goes on to the platform."""
    first, second = (dos.log_decision("Route", request_id="r") for _ in range(2))
    dos.capture_snapshot(first.decision_id, {}, request_id="r")
    assert first.decision_id == second.decision_id
    assert [done.key for done in line.handed] == ["decision:r", "decision:r", "snapshot:r"]
    assert [record.request_id for record in line.records] == ["r", "r", "r"]


def test_without_a_request_id_the_call_is_its_own():
    """Whoever sends none gets the id that the engine makes for this very call."""
    words = []
    records, done = handed(
        STAND_IN, "POST", LOG, {"context": "c"}, make_id=lambda word: words.append(word) or make_id("x")
    )
    assert (words, done.key, records[0].decision_id, records[0].agent_id) == ([""], "", make_id("x"), None)


def test_what_agentd_does_not_know_is_carried_through():
    """A newer SDK's members go on as they were written, nulls left out, and never over our own."""
    body = {
        "context": "c",
        "agentId": "a",
        "riskTier": {"level": 3},
        "gone": None,
        "runPolicyEval": False,
        "requestId": "r",
    }
    (record,), _ = handed(STAND_IN, "POST", LOG, body)
    assert shown(record)["extra"] == {"riskTier": {"level": 3}}
    assert sent(record) == {"agentId": "id-of-billing", "requestId": "r", "context": "c", "riskTier": {"level": 3}}
    record.extra["requestId"] = record.extra["riskTier"]
    assert sent(record)["requestId"] == "r"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2026-01-01T00:00:00", "2026-01-01T00:00:00Z"), ("2026-01-01T02:00:00.5+02:00", "2026-01-01T00:00:00.500000Z")],
)
def test_a_time_without_an_offset_is_in_utc(text, expected):
    """`datetime.utcnow().isoformat()` is a time, too."""
    (record,), _ = handed(STAND_IN, "POST", CAPTURE, {"decisionId": "d", "snapshot": {}, "capturedAt": text})
    assert shown(record)["captured_at"] == expected


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (LOG, {}, r"^\$\.context: required"),
        (LOG, {"context": "  "}, r"^\$\.context: required, and not blank"),
        (LOG, {"context": 3}, r"^\$\.context: expected a string"),
        (LOG, {"context": "c", "confidence": 2}, r"^\$\.confidence: "),
        (LOG, {"context": "c", "tokensInput": "many"}, r"^\$\.tokensInput: expected integer"),
        (LOG, {"context": "c", "chosenOptionKey": 3}, r"^\$\.chosenOptionKey: "),
        (LOG, {"context": "c", "constraints": [1]}, r"^\$\.constraints\[0\]|^\$\.constraints\[...\]"),
        (LOG, {"context": "c", "requestId": 3}, r"^\$\.requestId: expected a string"),
        (LOG, {"context": "c", "agentId": ""}, r"^\$\.agentId: "),
        (LOG, {"context": "c", "runPolicyEval": "yes"}, r"^\$\.runPolicyEval: expected a boolean"),
        (LOG, b"[1]", r"^\$: expected an object"),
        (LOG, b'{"context": "\xff"}', r"^\$"),
        (CAPTURE, {"snapshot": {}}, r"^\$\.decisionId: required"),
        (CAPTURE, {"decisionId": "d"}, r"^\$\.snapshot: required"),
        (CAPTURE, {"decisionId": "d", "snapshot": [1]}, r"^\$\.snapshot: expected an object"),
        (CAPTURE, {"decisionId": "d", "snapshot": {}, "capturedAt": "noon"}, r"^\$\.capturedAt: expected an ISO 8601"),
        (CAPTURE, {"decisionId": "d", "snapshot": {}, "evalScore": -1}, r"^\$\.evalScore: "),
    ],
)
def test_what_is_wrong_is_named_as_the_sdk_names_it(path, body, message):
    """A refusal speaks of the member that was sent."""
    with pytest.raises(RecordError, match=message):
        handed(STAND_IN, "POST", path, body)


# -- gates and reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "gate"), [(True, "decision"), (False, None), (None, None), ("true", None)])
def test_an_evaluation_makes_a_decision_a_gate(value, gate):
    """`runPolicyEval: true` waits for the platform; everything else is telemetry, or is refused as such."""
    assert STAND_IN.asks(called(STAND_IN, "POST", LOG, {"context": "c", "runPolicyEval": value})) == gate


def test_what_the_gate_asks_is_on_record_under_the_names_of_the_sdk():
    """Fields in snake_case, the agent beside them; the run's name stays the label that it is."""
    body = {"context": "c", "agentId": "a", "runPolicyEval": True, "runId": "run", "chosenOptionKey": "x", "newer": 1}
    asked = STAND_IN.asked(called(STAND_IN, "POST", LOG, body))
    assert (asked.agent, asked.run_id) == ("a", None)
    assert {name: json.loads(bytes(value)) for name, value in asked.request.items()} == {
        "context": "c", "run_id": "run", "chosen": "x", "extra": {"newer": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", ["decisions", "decisions/d", "agents", "agents/a", "workspace/usage", "ledger/verify", "receipt/d"]
)
def test_reads_pass(path):
    """All that the SDK reads goes on."""
    assert find_door(STAND_IN, "GET", f"/api/public/v1/{path}")[0].does is Does.READ


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "decisions/d"), ("POST", "agents"), ("PATCH", "decisions/d"), ("GET", "keys")]
)
def test_nothing_else_passes(method, path):
    """What is not listed does not pass."""
    assert find_door(STAND_IN, method, f"/api/public/v1/{path}") is None


# -- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "error", "calls"),
    [
        (Why.MALFORMED, decision_os.ValidationError, 1),
        (Why.UNAUTHENTICATED, decision_os.AuthenticationError, 1),
        (Why.FORBIDDEN, decision_os.PermissionDeniedError, 1),
        (Why.NOT_FOUND, decision_os.NotFoundError, 1),
        (Why.CONFLICT, decision_os.DecisionOSError, 1),
        (Why.TOO_LARGE, decision_os.DecisionOSError, 1),
        (Why.SPOOL_FULL, decision_os.ServerError, 3),
        (Why.UNREACHABLE, decision_os.ServerError, 3),
        (Why.NO_ANSWER, decision_os.ServerError, 3),
        (Why.OUTCOME_UNKNOWN, decision_os.DecisionOSError, 1),
        (Why.INTERNAL, decision_os.ServerError, 3),
    ],
)
def test_the_sdk_raises_its_own_errors(dos, line, why, error, calls):
    """Each refusal is an exception of the SDK's; what may have acted is asked once, what was not taken again."""
    line.refusal = (why, "$.confidence: between 0 and 1")
    with pytest.raises(error) as caught:
        dos.log_decision("Route")
    assert type(caught.value) is error
    assert line.calls == calls
    if why is not Why.UNAUTHENTICATED:  # there the SDK has a sentence of its own
        assert "$.confidence: between 0 and 1" in str(caught.value)


def test_a_refusal_says_why_to_machines_too():
    """`{error, code}`: people read the one, scripts the other."""
    assert answer(STAND_IN.refusal(Why.SPOOL_FULL, "later")) == {"error": "later", "code": "spool_full"}
