"""Decision OS in the sandbox, without sockets: what its bodies take, how its ledger is sealed, how its switches stand."""

from __future__ import annotations

import hashlib
import json

import pytest

from agentd.errors import UsageError
from agentd.sandbox import Call, Emulation
from agentd.sandbox._decisionos_bodies import DecisionBody, Refused, SnapshotBody, option_keys, read_body
from agentd.sandbox._decisionos_ledger import Ledger, Link, canonical, seal
from agentd.sandbox.decisionos import DecisionOS, DecisionosSwitches
from agentd.sandbox.faults import PASS
from agentd.sandbox.inspection import inspect

EVIL = "<script>alert('x')</script>\"&"
DECISION = {
    "agentId": "a", "context": "Refund?", "options": ["yes", {"key": "no", "label": "No", "probability": 0.2, "meta": {"a": None}}],
    "chosenOptionKey": "no", "constraints": ["c"], "assumptions": ["a", {"text": "t", "confidence": 1}], "confidence": 0.5,
    "model": "m", "runner": "r", "promptVersion": "1", "promptHash": "h", "parameters": {"t": 1}, "policyVersionId": "pv",
    "agentName": "A", "sessionId": "s", "conversationId": "c", "decisionType": "refund", "createAgentIfMissing": True,
    "traceId": "t", "runId": "r", "spanId": "s", "parentSpanId": "p", "requestId": "q", "runPolicyEval": False,
    "toolCalls": [{"name": "x"}], "mcpServers": ["m", {"a": 1}], "tokensInput": 1, "tokensOutput": 0, "costUsd": 0.1,
    "latencyMs": 1.5, "errorText": "",
}  # fmt: skip
SNAPSHOT = {
    "agentId": "a", "decisionId": "d", "snapshot": {"prompt": "p"}, "toolCalls": {"x": []}, "modelUsage": {"input_tokens": 1},
    "timings": {"latency_ms": 1}, "eval": {}, "evalScore": 1, "evalPass": False, "policyVersionId": "pv", "eventId": "e",
    "schemaVersion": "1", "traceId": "t", "runId": "r", "spanId": "s", "parentSpanId": "p", "requestId": "q",
    "capturedAt": "2026-01-01T00:00:00Z",
}  # fmt: skip


def raw(fields):
    return json.dumps(fields).encode()


# -- bodies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "least", "shape"),
    [
        (DECISION, {"agentId": "a", "context": "c"}, DecisionBody),
        (SNAPSHOT, {"agentId": "a", "decisionId": "d", "snapshot": {}}, SnapshotBody),
    ],
)
def test_whole_and_smallest_body(whole, least, shape):
    """Every documented field is taken, few are needed; what was sent is kept as it was."""
    assert read_body(raw(whole), shape)[1] == whole
    assert read_body(raw(least), shape)[1] == least
    for name in least:
        with pytest.raises(Refused, match=name):
            read_body(raw({key: value for key, value in least.items() if key != name}), shape)


@pytest.mark.parametrize(
    ("whole", "shape", "name"),
    [(DECISION, DecisionBody, n) for n in DECISION] + [(SNAPSHOT, SnapshotBody, n) for n in SNAPSHOT],
)
def test_null_and_snake_case_are_refused(whole, shape, name):
    """No field is null, and each has its camelCase name only."""
    with pytest.raises(Refused, match=name):
        read_body(raw(whole | {name: None}), shape)
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    if snake != name:
        with pytest.raises(Refused, match=snake):
            read_body(raw(whole | {snake: whole[name]}), shape)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("agentId", ""), ("agentId", 5), ("context", ""), ("context", " \n"), ("options", {"key": "a"}), ("options", [5]),
        ("options", [{"label": "a"}]), ("options", [{"key": "a", "label": None}]), ("options", [{"key": "a", "score": 1}]),
        ("options", [{"key": "a", "probability": 1.01}]), ("constraints", [1]), ("assumptions", [{"confidence": 1}]),
        ("confidence", 1.01), ("confidence", -0.1), ("confidence", "0.5"), ("parameters", []), ("toolCalls", {"x": 1}),
        ("toolCalls", ["x"]), ("mcpServers", {}), ("tokensInput", 1.5), ("tokensOutput", -1), ("costUsd", "1"),
        ("runPolicyEval", "true"), ("runId", 7), ("requestId", ""),
    ],
)  # fmt: skip
def test_wrong_decisions(name, wrong):
    """Types and ranges of a decision: `toolCalls` is an array here, shares lie between 0 and 1, a context is not blank."""
    with pytest.raises(Refused, match=name) as refused:
        read_body(raw(DECISION | {name: wrong}), DecisionBody)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("snapshot", []), ("snapshot", "text"), ("toolCalls", []), ("modelUsage", 1), ("timings", []), ("eval", True),
        ("evalScore", 1.5), ("evalPass", "yes"), ("capturedAt", "yesterday"), ("capturedAt", 1767225600), ("decisionId", ""),
    ],
)  # fmt: skip
def test_wrong_snapshots(name, wrong):
    """Types and ranges of a snapshot: `toolCalls` and all other free fields are objects here."""
    with pytest.raises(Refused, match=name):
        read_body(raw(SNAPSHOT | {name: wrong}), SnapshotBody)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"agentId":"a","context":"\xff"}', b'{"agentId":"a","context":"c","parameters":{"x":NaN}}',
        b'{"agentId":"a","context":"c","parameters":{"x":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(body):
    """What is no JSON, no UTF-8 or no object is a refusal and never a crash."""
    with pytest.raises(Refused):
        read_body(body, DecisionBody)


def test_what_may_be_chosen():
    """A text is its own key; without options anything may be chosen."""
    assert option_keys(read_body(raw(DECISION), DecisionBody)[0]) == {"yes", "no"}
    assert option_keys(read_body(raw({"agentId": "a", "context": "c"}), DecisionBody)[0]) is None


# -- the ledger ----------------------------------------------------------------------------------------------------------------


def test_the_canonical_form():
    """A seal is SHA-256 over JSON with keys sorted at every depth, no blanks and no ASCII escapes."""
    value = {"b": [{"z": 1.5, "a": None}], "a": "ü"}
    assert canonical(value) == '{"a":"ü","b":[{"a":null,"z":1.5}]}'.encode()
    assert seal(value) == hashlib.sha256(canonical(value)).hexdigest()


def test_a_chain():
    """Indices are consecutive, the first link has no predecessor, each other names the seal before it."""
    ledger = Ledger()
    links = [ledger.append({"context": str(number)}) for number in range(3)]
    assert [link.index for link in links] == [1, 2, 3]
    assert [link.prev_hash for link in links] == [None, links[0].content_hash, links[1].content_hash]
    found = ledger.verify()
    assert (found["ok"], found["checked"], found["errors"], found["error_details"]) == (True, 3, 0, [])
    assert found["transcript"][1] == {
        "chain_index": 2,
        "content_hash": links[1].content_hash,
        "prev_hash": links[0].content_hash,
    }


def test_a_change_breaks_its_seal_and_a_swap_the_link():
    """Verification names a changed content and a broken link, each with what was found and what was expected."""
    ledger = Ledger()
    first, second = ledger.append({"a": 1}), ledger.append({"a": 2})
    (error,) = ledger.verify(tampered=1)["error_details"]
    assert (error["chain_index"], error["reason"], error["stored_hash"]) == (
        1,
        "content_hash_mismatch",
        first.content_hash,
    )
    assert error["computed_hash"] != error["stored_hash"]
    payload = {**second.payload, "prevHash": "other"}
    ledger.links[1] = Link(2, payload, seal(payload), "other")
    (error,) = ledger.verify()["error_details"]
    assert (error["reason"], error["expected_prev"], error["actual_prev"]) == (
        "broken_link",
        first.content_hash,
        "other",
    )


# -- switches and inspection -----------------------------------------------------------------------------------------------------


def ask(emulation, method, path, body=None, **headers):
    face, relative = emulation.route(f"/decisionos/api/public/v1/{path}")
    relative, _, query = relative.partition("?")
    headers = {"Authorization": "Bearer k", "Host": "h:1"} | headers
    answer = emulation.answer(
        face, Call(method, relative, headers, b"" if body is None else raw(body), query, 1.0), PASS
    )
    return answer.status, json.loads(answer.body)


def test_switches_by_text_and_by_struct():
    """Every switch can be thrown as text, all at once as a Struct; a wrong value is refused by name."""
    texts = [
        "agents=a,b", "status_word=draft", "request_id_conflict=original", "request_id_scope=workspace", "created_status=201",
        "replayed_status=201", "envelope=bare", "error_field=message", "invalid_status=422", "chosen_must_be_option=false",
        "policy_eval_ok=false", "monthly_decisions=3", "reset_at_in_402=true", "tampered_link=1", "max_body_bytes=1KiB",
    ]  # fmt: skip
    emulation = Emulation(["decisionos"], switches=[f"decisionos.{text}" for text in texts])
    assert len(texts) == len(DecisionosSwitches.__struct_fields__)
    assert emulation.faces["decisionos"].switches == DecisionosSwitches(
        "a,b", "draft", "original", "workspace", "201", "201", "bare", "message", "422", False, False, 3, True, 1, 1024
    )
    emulation.throw(DecisionosSwitches(agents="z"))
    assert emulation.switches()["decisionos"]["agents"] == "z"
    for wrong in ("status_word=done", "monthly_decisions=0", "policy_eval_ok=maybe", "nosuch=1"):
        with pytest.raises(UsageError):
            emulation.throw(f"decisionos.{wrong}")


def test_the_request_id_is_the_key_in_the_books():
    """The ledger of requests shows `requestId`; what has none, or is no JSON, has no key."""
    face = DecisionOS()
    for body, key in ((b'{"requestId":"q"}', "q"), (b"{}", ""), (b"", ""), (b"\xff", ""), (b'{"requestId":5}', "")):
        assert face.idempotency_key(Call("POST", "/", {}, body)) == key


def test_rows_totals_and_reset():
    """A row a decision, newest first; found by its id or its `requestId`; snapshots are its events; reset forgets all."""
    emulation = Emulation(["decisionos"], switches=["decisionos.agents=a"], wall=lambda: 1.0)
    _, first = ask(emulation, "POST", "decisions", {"agentId": "a", "context": "one", "requestId": "q1"})
    _, second = ask(emulation, "POST", "decisions", {"agentId": "a", "context": "two"})
    ids = [answer["data"]["id"] for answer in (first, second)]
    for number in range(3):
        ask(
            emulation,
            "POST",
            "snapshots",
            {"agentId": "a", "decisionId": ids[0], "snapshot": {"n": number}, "requestId": str(number)},
        )
    ask(emulation, "POST", "snapshots", {"agentId": "a", "decisionId": ids[0], "snapshot": {"n": 0}, "requestId": "0"})
    assert [row["id"] for row in emulation.runs()] == ids[::-1]
    assert [row["id"] for row in emulation.runs(1, 1)] == ids[:1]
    found = emulation.run("q1", 1, 1)
    assert found == emulation.run(ids[0], 1, 1)
    assert (found["context"], found["snapshots"], found["event_count"], found["requests"]) == ("one", 3, 3, 1)
    assert [(one["snapshot"], one["requests"]) for one in found["events"]] == [({"n": 1}, 1)]
    assert emulation.run(ids[0])["events"][0]["requests"] == 2
    state = emulation.state()
    assert (state.runs, state.events, state.duplicates) == (2, 3, 1)
    assert state.faces["decisionos"]["details"]["replayed"] == 1
    emulation.reset()
    assert emulation.runs() == []
    with pytest.raises(KeyError):
        emulation.run("q1")


def test_nothing_waits_for_a_person():
    """A logged decision can be neither approved nor denied."""
    assert DecisionOS().act("dec_1", "approve").status == 404


def test_pages_escape_what_agents_wrote():
    """Nothing that an agent sends becomes markup, on either page, in any field."""
    emulation = Emulation(["decisionos"], wall=lambda: 1.0)
    body = {**DECISION, "agentId": EVIL, "context": EVIL, "parameters": {EVIL: EVIL}, "runId": EVIL, "requestId": EVIL}
    _, answer = ask(emulation, "POST", "decisions", body)
    decision_id = answer["data"]["id"]
    snapshot = {**SNAPSHOT, "agentId": EVIL, "decisionId": decision_id, "snapshot": {EVIL: EVIL}}
    assert ask(emulation, "POST", "snapshots", snapshot)[0] == 200
    for path in ("/", f"/view/decisionos/{decision_id}"):
        page = inspect(emulation, "GET", f"/_sandbox{path}", "", b"").body.decode()
        assert "&lt;script&gt;" in page
        assert "<script" not in page
