"""AgentOS: the exact requests, and what its answers mean."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest

from agentd import platforms
from agentd.exchange import ANSWER_BYTES, Attempt, Context, Lost, Reference, Response, Sending, Unencodable
from agentd.outcomes import Delivered, Learned, Pause, Reject, Retry, Scope, Split
from agentd.queued import Entry, Source
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.wire import encode

AGENTOS = platforms.load("agentos")
RECORD_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
ADMITTED = "2026-01-01T00:00:00Z"
decode_record = msgspec.json.Decoder(Record).decode


def item(kind, *, agent="billing", raw=None, **fields):
    record = decode_record(raw or json.dumps({"kind": kind, **fields}).encode())
    return Entry(
        1, RECORD_ID.bytes, lane_of(record, agent), kind_of(record), loss_class(record), Source(agent, 0, 0, "test"),
        1_767_225_600_000_000, encode(record),
    )  # fmt: skip


def context(*, inject_id=True, known=None):
    ids = {"r": "p-r"} if known is None else known
    return Context(lambda local: f"id-of-{local}" if local else "", lambda _kind, local: ids.get(local), inject_id)


def body_of(*items, **asked):
    call = AGENTOS.calls[items[0].kind]
    return AGENTOS.encode(call, items, context(**asked)).body


def sent(*items, **asked):
    return json.loads(body_of(*items, **asked))


def event(payload=None, **asked):
    fields = {} if payload is None else {"payload": payload}
    return sent(item("event", run_id="r", type="t", **fields), **asked)["events"][0]


# -- requests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("run.start", "run/start"), ("event", "events"), ("span", "events"), ("task", "tasks"),
        ("run.complete", "run/complete"), ("run.fail", "run/fail"), ("run.cancel", "run/cancel"),
    ],
)  # fmt: skip
def test_each_kind_has_its_path(kind, path):
    """The seven kinds go to the six calls of /api/ingest/v1; events and spans alone are batched."""
    call = AGENTOS.calls[kind]
    assert call.path == f"/api/ingest/v1/{path}"
    assert call.batch is (path == "events")
    assert call.repeat


def test_headers_are_a_bearer_and_the_key():
    """Authentication as the SDK does it, and the idempotency key with every call."""
    assert AGENTOS.headers(Sending("aos_agent_x", "k", 1.8e9)) == {
        "authorization": "Bearer aos_agent_x",
        "idempotency-key": "k",
    }


EXTRA = {"newer": {"b": 1}, "none": None, "run_id": "stolen", "type": "stolen", "agent_id": "stolen", "id": "stolen"}


@pytest.mark.parametrize(
    ("kind", "fields", "place"),
    [
        ("run.start", {}, lambda body: body),
        ("event", {"type": "t"}, lambda body: body["events"][0]),
        ("span", {"span_id": "s", "name": "n"}, lambda body: body["events"][0]),
        ("task", {"task_id": "t", "name": "n", "status": "running"}, lambda body: body["task"]),
        ("run.complete", {}, lambda body: body),
        ("run.fail", {"error_message": "e"}, lambda body: body),
        ("run.cancel", {}, lambda body: body),
    ],
)
def test_what_agentd_has_no_field_for_goes_with_the_record(kind, fields, place):
    """`extra` stands where the record does; its nulls are left out, and it overwrites nothing that is ours to say."""
    plain = place(sent(item(kind, run_id="r", **fields)))
    assert (
        place(sent(item(kind, run_id="r", extra=EXTRA, **fields)))
        == {name: value for name, value in EXTRA.items() if value is not None} | plain
    )
    assert place(sent(item(kind, run_id="r", extra={}, **fields))) == plain


def test_a_start_in_its_least_form():
    """`external_run_id` is always sent, by default the run's own id, so that the server dedupes a repeat; input is `{}`."""
    assert sent(item("run.start", run_id="r")) == {
        "agent_id": "id-of-billing", "trigger_type": "sdk", "input": {}, "external_run_id": "r",
    }  # fmt: skip


def test_a_start_with_everything():
    """What the client says goes as it says it; the parent is named by the platform's id."""
    start = item(
        "run.start", run_id="r", external_run_id="mine", trigger_type="webhook", parent_run_id="up", input={"a": [1]}
    )
    assert sent(start, known={"up": "p-up"}) == {
        "agent_id": "id-of-billing", "trigger_type": "webhook", "input": {"a": [1]}, "external_run_id": "mine", "parent_run_id": "p-up",
    }  # fmt: skip


def test_a_start_without_a_living_parent():
    """A parent that is dead is left out, never null."""
    assert "parent_run_id" not in sent(item("run.start", run_id="r", parent_run_id="up"), known={})


def test_a_start_without_any_agent_cannot_be_said():
    """AgentOS demands an agent: a start that names none is dead with the reason instead of refused for ever."""
    with pytest.raises(Unencodable, match="agent"):
        sent(item("run.start", agent="", run_id="r"))


@pytest.mark.parametrize(
    ("given", "wrapped"), [(5, {"value": 5}), ("x", {"value": "x"}), ([1], {"value": [1]}), ({"k": 1}, {"k": 1})]
)
def test_what_must_be_an_object_is_wrapped(given, wrapped):
    """AgentOS takes objects as input and payload: anything else goes under `value`, and nothing is lost."""
    assert sent(item("run.start", run_id="r", input=given))["input"] == wrapped
    assert event(given, inject_id=False)["payload"] == wrapped
    assert sent(item("run.fail", run_id="r", error_message="e", error_detail=given))["error_detail"] == wrapped


@pytest.mark.parametrize("null", ["null", " null ", "\\n null"])
def test_null_is_nothing(null):
    """A null payload, input, output or detail is what AgentOS refuses a whole batch for: it is left out or `{}`."""
    null = null.replace("\\n", "\n")

    def raw(kind, rest, *names):
        fields = "".join(f',"{name}":{null}' for name in names)
        return item(kind, raw=f'{{"kind":"{kind}","run_id":"r"{rest}{fields}}}'.encode())

    assert sent(raw("run.start", "", "input"))["input"] == {}
    assert sent(raw("event", ',"type":"t"', "payload"), inject_id=False)["events"][0]["payload"] == {}
    task = sent(raw("task", ',"task_id":"t","name":"n","status":"failed"', "input", "output"))["task"]
    assert task == {"id": "t", "name": "n", "status": "failed"}
    assert sent(raw("run.complete", "", "output")) == {"run_id": "p-r"}
    assert sent(raw("run.fail", ',"error_message":"e"', "error_detail")) == {"run_id": "p-r", "error_message": "e"}


def test_an_event_in_its_least_form():
    """Level, payload and time are always sent, as the SDK does; the time is that of admission."""
    assert sent(item("event", run_id="r", type="t")) == {
        "run_id": "p-r",
        "events": [{"type": "t", "level": "info", "payload": {"agentd_id": str(RECORD_ID)}, "occurred_at": ADMITTED}],
    }


def test_times_go_out_in_utc():
    """A time with an offset is the same moment in UTC."""
    given = item("event", run_id="r", type="t", occurred_at="2026-01-31T12:00:00.5+05:30")
    assert sent(given)["events"][0]["occurred_at"] == "2026-01-31T06:30:00.500000Z"


@pytest.mark.parametrize("raw", ["{}", "{ }", " { } ", '{"a":1}', ' {  "a" : 1 }', '{"a":"agentd_id"}', "\t{\n}"])
def test_the_id_is_the_first_key_of_the_payload(raw):
    """Promise 4: AgentOS keeps no key for events, so the record's id is the first payload key, the rest as it was sent."""
    payload = raw.replace("\\t", "\t").replace("\\n", "\n")
    given = item("event", raw=b'{"kind":"event","run_id":"r","type":"t","payload":' + payload.encode() + b"}")
    pairs = json.loads(body_of(given), object_pairs_hook=list)
    [(_, _), (_, [fields])] = pairs
    found = dict(fields)["payload"]
    assert found[0] == ("agentd_id", str(RECORD_ID))
    assert found[1:] == list(json.loads(payload).items())


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        ('{"agentd_id":"other"}', "{}"),
        ('{"a":1.50, "agentd_id":null,"b":[1, 2]}', '{"a":1.50,"b":[1, 2]}'),
        ('{"\\u0061gentd_id":"other","agentd_id":7}', "{}"),
        ('{"agentd\\u005fid":"other"}', "{}"),
        ('{"a":{"agentd_id":"inner"}}', '{"a":{"agentd_id":"inner"}}'),
    ],
)
def test_a_payloads_own_agentd_id_never_masks_ours(raw, rest):
    """Promise 4: of two keys of one name a reader takes the last: one that the agent put there goes, all else stays as sent."""
    given = item("event", raw=b'{"kind":"event","run_id":"r","type":"t","payload":' + raw.encode() + b"}")
    body = body_of(given)
    assert json.loads(body)["events"][0]["payload"] == {"agentd_id": str(RECORD_ID), **json.loads(rest)}
    assert body.count(b"other") == 0
    assert rest.removeprefix("{").encode() in body
    unchanged = body_of(given, inject_id=False)
    assert raw.encode() in unchanged


def test_the_id_may_be_turned_off():
    """Promise 4: `inject_id = false` sends the payload as it was."""
    given = item("event", raw=b'{"kind":"event","run_id":"r","type":"t","payload":{ "a" : 1.50 }}')
    assert b'"payload":{ "a" : 1.50 }' in body_of(given, inject_id=False)


def test_a_span_is_an_event_with_span_fields():
    """A span goes as one event: its name is the type, its start the time, and only what is set is sent."""
    assert sent(item("span", run_id="r", span_id="s", name="classify"))["events"] == [
        {
            "type": "classify",
            "level": "info",
            "payload": {"agentd_id": str(RECORD_ID)},
            "occurred_at": ADMITTED,
            "span_id": "s",
        }
    ]
    whole = item(
        "span", run_id="r", span_id="s", name="classify", span_kind="llm", parent_span_id="up", duration_ms=0, level="error",
        started_at="2026-01-01T00:00:01Z", ended_at="2026-01-01T00:00:02Z", payload={"a": 1},
    )  # fmt: skip
    assert sent(whole, inject_id=False)["events"] == [
        {
            "type": "classify", "level": "error", "payload": {"a": 1}, "occurred_at": "2026-01-01T00:00:01Z", "span_id": "s",
            "parent_span_id": "up", "kind": "llm", "started_at": "2026-01-01T00:00:01Z", "ended_at": "2026-01-01T00:00:02Z",
            "duration_ms": 0,
        }
    ]  # fmt: skip


def test_events_and_spans_share_a_batch_in_order():
    """A batch of one run holds events and spans in the order in which they were admitted."""
    both = sent(
        item("event", run_id="r", type="a"),
        item("span", run_id="r", span_id="s", name="b"),
        item("event", run_id="r", type="c"),
    )
    assert [one["type"] for one in both["events"]] == ["a", "b", "c"]


def test_tasks():
    """A task goes alone with its own id; input and output are free JSON, sent as they are."""
    assert sent(item("task", run_id="r", task_id="t", name="n", status="running", input=[1])) == {
        "run_id": "p-r", "task": {"id": "t", "name": "n", "status": "running", "input": [1]},
    }  # fmt: skip
    assert sent(item("task", run_id="r", task_id="t", name="n", status="failed", output={"a": 1}, error_message="")) == {
        "run_id": "p-r", "task": {"id": "t", "name": "n", "status": "failed", "output": {"a": 1}, "error_message": ""},
    }  # fmt: skip


def test_a_completion_has_usage_at_the_top():
    """Token counts stand beside the run's id, each only if given."""
    assert sent(item("run.complete", run_id="r", output="done", usage={"input_tokens": 0, "cache_read_tokens": 7})) == {
        "run_id": "p-r", "output": "done", "input_tokens": 0, "cache_read_tokens": 7,
    }  # fmt: skip
    assert sent(item("run.complete", run_id="r")) == {"run_id": "p-r"}


@pytest.mark.parametrize("length", [3999, 4000, 4001, 60_000])
def test_a_failures_message_is_cut_at_4000(length):
    """The platform takes 4,000 characters, counted as characters and not as bytes."""
    assert sent(item("run.fail", run_id="r", error_message="é" * length)) == {
        "run_id": "p-r", "error_message": "é" * min(length, 4000),
    }  # fmt: skip


@pytest.mark.parametrize("length", [999, 1000, 1001])
def test_a_reason_to_cancel_is_cut_at_1000(length):
    """The platform takes 1,000 characters; without a reason there is none."""
    assert sent(item("run.cancel", run_id="r", reason="x" * length)) == {
        "run_id": "p-r",
        "reason": "x" * min(length, 1000),
    }
    assert sent(item("run.cancel", run_id="r")) == {"run_id": "p-r"}


@pytest.mark.parametrize("kind", ["event", "task", "run.complete"])
def test_without_a_run_there_is_no_request(kind):
    """What belongs to a run that is dead can't be said to AgentOS."""
    more = {"event": {"type": "t"}, "task": {"task_id": "t", "name": "n", "status": "running"}, "run.complete": {}}[
        kind
    ]
    with pytest.raises(Unencodable, match="run is unknown"):
        sent(item(kind, run_id="r", **more), known={})


def test_references():
    """Everything needs its run; a start needs its parent if it can have it, and nothing else."""
    assert AGENTOS.references(item("event", run_id="a:b", type="t")) == (Reference("run", "a:b"),)
    assert AGENTOS.references(item("run.start", run_id="r")) == ()
    assert AGENTOS.references(item("run.start", run_id="r", parent_run_id="up")) == (
        Reference("run", "up", optional=True),
    )
    assert AGENTOS.introduces == {"run.start"}


# -- answers ---------------------------------------------------------------------------------------------------------------

OK = b'{"data":{},"error":null}'
START = item("run.start", run_id="r")
EVENT = item("event", run_id="r", type="t")
TASK = item("task", run_id="r", task_id="t", name="n", status="running")
ENDS = [
    item("run.complete", run_id="r"),
    item("run.fail", run_id="r", error_message="e"),
    item("run.cancel", run_id="r"),
]


def verdict(status, body=b"", given=EVENT, *, maybe_taken=False, ended=False, **headers):
    answer = Response(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())
    return AGENTOS.classify(AGENTOS.calls[given.kind], [given], answer, Attempt(0.0, maybe_taken, ended))


def error(code, message="words"):
    return {"data": None, "error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    "body", [OK, b"", b" \n", b'{"data":null,"error":null}', b'{"data":[1]}', b'{"error":null,"more":1}']
)
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_its_envelope_or_nothing_is_a_success(status, body):
    """2xx with AgentOS's envelope, or without a body, is delivered."""
    assert verdict(status, body) == Delivered()


@pytest.mark.parametrize(
    "body", [b"<html>welcome</html>", b"ok", b"{}", b'{"status":"ok"}', b"[]", b"null", b'{"data":']
)
def test_a_success_of_somebody_else_is_none(body):
    """2xx without AgentOS's envelope is a wrong base_url or a proxy's page: nothing is taken for delivered, all is kept."""
    found = verdict(200, body)
    assert isinstance(found, Retry)
    assert found.scope is Scope.DESTINATION
    assert "base_url" in found.reason


def test_an_answer_too_long_to_be_read_whole_is_a_success():
    """A 2xx envelope of which only the first 64 KiB are read must not be asked for again for ever."""
    long = (b'{"data":{"events":["' + b"x" * ANSWER_BYTES)[:ANSWER_BYTES]
    assert verdict(200, long) == Delivered()
    assert isinstance(verdict(200, b"<" + b"x" * ANSWER_BYTES), Retry)


def test_a_start_teaches_the_platforms_id():
    """The answer to run/start names the run; every later call goes under that name."""
    found = verdict(200, {"data": {"run_id": "p-1"}, "error": None}, START)
    assert found == Delivered((Learned("run", "r", "p-1"),))


@pytest.mark.parametrize("data", [None, {}, {"run_id": None}, {"run_id": ""}, {"run_id": 5}, [], "x", {"id": "p"}])
def test_a_start_without_an_id_is_asked_again(data):
    """A start whose answer names no run is repeated, which is safe by its `external_run_id`; it is never taken for done."""
    found = verdict(200, {"data": data, "error": None}, START)
    assert isinstance(found, Retry)
    assert "run_id" in found.reason
    assert isinstance(verdict(204, b"", START), Retry)


@pytest.mark.parametrize("given", [TASK, *ENDS], ids=lambda given: given.kind)
def test_a_conflict_that_answers_our_own_repeat_is_delivered(given):
    """Promise 5: 409 to a repeat of what may have been taken is a success; to a first try it is a refusal."""
    assert verdict(409, error("CONFLICT"), given, maybe_taken=True) == Delivered()
    assert verdict(409, error("CONFLICT"), given) == Reject("409 CONFLICT: words")


@pytest.mark.parametrize("given", [TASK, *ENDS], ids=lambda given: given.kind)
def test_a_conflict_after_the_runs_end_is_no_answer_to_a_repeat(given):
    """Promise 5: the run had ended before: its 409 says so, whatever became of an earlier try."""
    assert verdict(409, error("CONFLICT"), given, maybe_taken=True, ended=True) == Reject("409 CONFLICT: words")


@pytest.mark.parametrize("kind", ["event", "span"])
def test_events_have_nothing_to_conflict_with_but_an_ended_run(kind):
    """Promise 5: AgentOS keeps no key for events, so that 409 is never "I have these": they are not booked as delivered."""
    fields = {"type": "t"} if kind == "event" else {"span_id": "s", "name": "n"}
    given = item(kind, run_id="r", **fields)
    assert verdict(409, error("CONFLICT"), given, maybe_taken=True) == Reject("409 CONFLICT: words")


def test_a_conflict_about_a_start_names_no_run():
    """Without a name for the run its records could never be sent: a refused start is a refusal, also to a repeat."""
    assert verdict(409, error("CONFLICT"), START, maybe_taken=True) == Reject("409 CONFLICT: words")


@pytest.mark.parametrize("body", [b"", b"<html>nginx</html>", b'{"detail":"Not Found"}', b"{}"])
def test_404_without_the_envelope_is_another_server(body):
    """A 404 that AgentOS did not write pauses the destination: a wrong base_url must not bury a queue."""
    found = verdict(404, body)
    assert isinstance(found, Pause)
    assert found.scope is Scope.DESTINATION
    assert "base_url" in found.reason


def test_404_in_the_envelope_is_about_the_run():
    """AgentOS's own 404 says that it has no such run: that is this record's end, not the destination's."""
    assert verdict(404, error("NOT_FOUND")) == Reject("404 NOT_FOUND: words")


@pytest.mark.parametrize("status", [400, 422])
def test_a_validation_error_splits(status):
    """One bad event refuses the whole batch, and nothing of it is taken: halves are safe."""
    assert verdict(status, error("VALIDATION_ERROR")) == Split(f"{status} VALIDATION_ERROR: words")


@pytest.mark.parametrize(
    ("code", "expected"), [("UNAUTHENTICATED", Pause), ("PAYMENT_REQUIRED", Pause), ("RATE_LIMITED", Retry)]
)
@pytest.mark.parametrize("status", [200, 400, 403, 500])
def test_some_codes_count_under_any_status(code, expected, status):
    """The SDK takes these codes for what they say whatever the status is: the destination waits, no record dies of it."""
    found = verdict(status, error(code))
    assert isinstance(found, expected)
    assert found.scope is Scope.DESTINATION


def test_an_error_under_200_is_a_refusal():
    """Success and an error at once is no success."""
    assert verdict(200, error("INTERNAL")) == Reject("200 INTERNAL: words")


@pytest.mark.parametrize("status", [405, 301, 307, 100])
def test_what_agentos_never_says_pauses(status):
    """Redirects and wrong methods come from somebody else."""
    assert isinstance(verdict(status, b""), Pause)


def test_reasons_are_bounded_and_stable():
    """A reason names status, code and message, at most 500 characters, so that the same refusals can be counted."""
    assert len(verdict(400, error("X", "y" * 5000)).reason) == 500
    assert verdict(400, error("", "")).reason == "400"
    assert verdict(500, b"garbage").reason == "500"
    assert len(verdict(302, b"", location="https://x/" + "y" * 5000).reason) < 300


@pytest.mark.parametrize(("sent_", "scope"), [(False, Scope.DESTINATION), (True, Scope.LANE)])
def test_a_lost_answer_is_tried_again(sent_, scope):
    """All of AgentOS's ingest calls may be repeated: same task id and bytes, `external_run_id`, or an id in the payload."""
    found = AGENTOS.classify(AGENTOS.calls["task"], [EVENT], Lost("gone", sent=sent_), Attempt(0.0))
    assert found == Retry("gone", None, scope)
