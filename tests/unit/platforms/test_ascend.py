"""ASCEND: the exact requests, and what its answers mean."""

from __future__ import annotations

import hashlib
import hmac
import json
from uuid import UUID

import msgspec
import pytest

from agentd import platforms
from agentd.errors import ConfigError
from agentd.exchange import ANSWER_BYTES, Attempt, Context, Lost, Reference, Response, Sending, Unencodable
from agentd.outcomes import Delivered, Pause, Reject, Retry, Scope, Split
from agentd.queued import Entry, Source
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.wire import encode

ASCEND = platforms.load("ascend")
RECORD_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
ADMITTED = "2026-01-01T00:00:00Z"
SERVER = {"completion_route": "server"}
decode_record = msgspec.json.Decoder(Record).decode


def item(kind, *, agent="billing", raw=None, **fields):
    record = decode_record(raw or json.dumps({"kind": kind, **fields}).encode())
    return Entry(
        1, RECORD_ID.bytes, lane_of(record, agent), kind_of(record), loss_class(record), Source(agent, 0, 0, "test"),
        1_767_225_600_000_000, encode(record),
    )  # fmt: skip


def completed(action_id="a", **fields):
    return item("action.completed", action_id=action_id, **fields)


def failed(error="boom", action_id="a", **fields):
    return item("action.failed", action_id=action_id, error=error, **fields)


def request(given, *, known=None, options=None):
    ids = {"a": "act_7"} if known is None else known
    asked = Context(
        lambda local: f"id-of-{local}" if local else "", lambda _kind, local: ids.get(local, local), True, options or {}
    )
    return ASCEND.encode(ASCEND.calls[given.kind], [given], asked)


def sent(given, **asked):
    return json.loads(request(given, **asked).body)


# -- requests --------------------------------------------------------------------------------------------------------------


def test_what_it_takes():
    """Completions, failures and heartbeats are telemetry; asking leave is not, and nothing here is named by an answer."""
    assert set(ASCEND.calls) == {"action.completed", "action.failed", "heartbeat"}
    assert ASCEND.introduces == frozenset()
    assert not any(call.batch or call.strict_key for call in ASCEND.calls.values())
    assert [kind for kind, call in ASCEND.calls.items() if call.newest_only] == ["heartbeat"]


def test_everything_may_be_repeated():
    """No key is known to ASCEND: a repeat is at most one more log entry, a record held back is an action without an end."""
    assert all(call.repeat for call in ASCEND.calls.values())


def test_headers():
    """Both forms of authentication as the SDK sends them; the correlation id is the same for each try of one delivery."""
    headers = ASCEND.headers(Sending("owkai_live_x", "k", 1_767_225_600.25))
    assert headers == {
        "x-api-key": "owkai_live_x",
        "authorization": "Bearer owkai_live_x",
        "idempotency-key": "k",
        "x-request-timestamp": "2026-01-01T00:00:00.250000Z",
        "x-correlation-id": "asc_" + hashlib.sha256(b"k").hexdigest()[:16],
    }
    again = ASCEND.headers(Sending("owkai_live_x", "k", 1_767_225_601.0))
    assert again["x-correlation-id"] == headers["x-correlation-id"]


def test_the_signature_is_over_sorted_json_and_not_over_the_wire():
    """`v1=` HMAC-SHA256 of the timestamp, a dot, and the body with sorted keys and Python's default separators."""
    body = '{"b":1.50,"a":{"ü":[1,2]}}'.encode()
    headers = ASCEND.headers(Sending("k", "i", 0.0, body, "secret"))
    text = '1970-01-01T00:00:00.000000Z.{"a": {"\\u00fc": [1, 2]}, "b": 1.5}'
    assert headers["x-signature"] == "v1=" + hmac.new(b"secret", text.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1' + b"0" * 5000 + b"}", b"[" * 100_000, b"\xff"])
def test_a_body_that_can_not_be_signed_is_sent_all_the_same(body):
    """What Python's json can't read a server in Python can't read either; making the headers never fails for it."""
    assert ASCEND.headers(Sending("k", "i", 0.0, body, "secret"))["x-signature"].startswith("v1=")


def test_no_secret_no_signature_and_no_secret_in_sight():
    """Without a secret there is no signature; with one, no text shows it."""
    assert "x-signature" not in ASCEND.headers(Sending("k", "i", 0.0, b"{}"))
    sending = Sending("k", "i", 0.0, b"{}", "s3cret")
    assert "s3cret" not in f"{ASCEND.headers(sending)} {sending!r}"


def test_a_completion():
    """The SDK's call: id in path and body, status, the time of admission where the record has none."""
    assert request(completed()).path == "/api/agent-action/act_7/complete"
    assert sent(completed()) == {"action_id": "act_7", "status": "completed", "completed_at": ADMITTED}
    given = completed(result={"rows": 3}, duration_ms=0, occurred_at="2026-01-31T12:00:00.5+05:30")
    assert sent(given) == {
        "action_id": "act_7", "status": "completed", "completed_at": "2026-01-31T06:30:00.500000Z", "result": {"rows": 3},
        "duration_ms": 0,
    }  # fmt: skip


@pytest.mark.parametrize("result", [0, False, "", [], {}, "x"])
def test_every_result_is_a_result(result):
    """What is falsy is a result too; null alone is none."""
    assert sent(completed(result=result))["result"] == result
    assert "result" not in sent(completed(result=None))


@pytest.mark.parametrize(
    ("error", "sdk", "server"),
    [
        ("boom", "boom", "boom"), ({"code": 5}, {"code": 5}, '{"code":5}'), (["a", 1], '["a",1]', '["a",1]'), (5, "5", "5"),
        (None, "unknown", "unknown"), ("", "", ""), (False, "false", "false"),
    ],
)  # fmt: skip
def test_an_error_takes_the_form_of_its_route(error, sdk, server):
    """The SDK's call takes a string or an object, the older one strings only: anything else goes as its text."""
    raw = json.dumps({"kind": "action.failed", "action_id": "a", "error": error}, separators=(",", ":")).encode()
    given = item("action.failed", raw=raw)
    assert request(given).path == "/api/agent-action/act_7/fail"
    assert sent(given) == {"action_id": "act_7", "status": "failed", "failed_at": ADMITTED, "error": sdk}
    assert sent(given, known={"a": "7"}, options=SERVER)["error"] == server


def test_the_older_route():
    """Option `completion_route = "server"`: the other paths, and the id in the path alone."""
    assert request(completed(), known={"a": "7"}, options=SERVER).path == "/api/sdk/action/7/completed"
    assert request(failed(), known={"a": "7"}, options=SERVER).path == "/api/sdk/action/7/failed"
    assert sent(completed(result=1), known={"a": "7"}, options=SERVER) == {
        "status": "completed", "completed_at": ADMITTED, "result": 1,
    }  # fmt: skip


@pytest.mark.parametrize("action_id", ["act_7", "7a", "-7", "7 ", "٧", "²", "7.0", "+7", "0x7", "fail_open_7"])
def test_what_is_no_number_never_goes_to_the_older_route(action_id):
    """The older route refuses ids that are not numeric: such a record is dead with the reason, and nothing is sent."""
    with pytest.raises(Unencodable, match=r"no number|none that ASCEND"):
        request(completed(), known={"a": action_id}, options=SERVER)
    with pytest.raises(Unencodable):
        request(failed(), known={"a": action_id}, options=SERVER)


@pytest.mark.parametrize("action_id", ["", "fail_open_1", ".", ".."])
def test_ids_that_no_server_gave_go_nowhere(action_id):
    """`fail_open_…` was let pass without asking, a denial has no id, and dots would address something else."""
    for options in ({}, SERVER):
        with pytest.raises(Unencodable, match="none that ASCEND gives"):
            request(completed(), known={"a": action_id}, options=options)


def test_an_id_can_not_leave_its_place_in_the_path():
    """Whatever characters an id has, it stays one segment of the path, and the body has it as it is."""
    given = request(completed(), known={"a": "x/../y?z#ü %2F"})
    assert given.path == "/api/agent-action/x%2F..%2Fy%3Fz%23%C3%BC%20%252F/complete"
    assert json.loads(given.body)["action_id"] == "x/../y?z#ü %2F"


def test_a_dead_action_has_no_completion():
    """What a dead introducer named can't be said."""
    with pytest.raises(Unencodable, match="unknown"):
        request(completed(), known={"a": None})


def test_references():
    """A completion waits for the gate that names its action; a heartbeat waits for nothing."""
    assert ASCEND.references(completed("a:b")) == (Reference("action", "a:b"),)
    assert ASCEND.references(failed()) == (Reference("action", "a"),)
    assert ASCEND.references(item("heartbeat")) == ()


BEAT = item("heartbeat", status="ok", metrics={"error_rate": 0.1, "requests_count": 5, "queue": 3, "gone": None})
OWN = {"agent_id": "id-of-billing", "sdk_version": "agentd/1", "timestamp": ADMITTED, "status": "ok"}


@pytest.mark.parametrize(
    ("form", "metrics"),
    [
        ("union", {"error_rate": 0.1, "requests_count": 5, "metrics": {"error_rate": 0.1, "requests_count": 5, "queue": 3}}),
        ("nested", {"metrics": {"error_rate": 0.1, "requests_count": 5, "queue": 3}}),
        ("flat", {"error_rate": 0.1, "requests_count": 5, "queue": 3}),
    ],
)  # fmt: skip
def test_a_heartbeats_metrics(form, metrics):
    """Flat as the SDK sends them, nested as the server's model reads them, or both, which is the default; nulls are left out."""
    assert request(BEAT).path == "/api/agents/health/heartbeat"
    assert sent(BEAT, options={"heartbeat_metrics": form}) == OWN | metrics
    assert sent(BEAT) == sent(BEAT, options={"heartbeat_metrics": "union"})


def test_a_heartbeat_in_its_least_form():
    """Without metrics there are none, and metrics never replace what names the agent."""
    assert sent(item("heartbeat")) == {name: OWN[name] for name in OWN if name != "status"}
    assert sent(item("heartbeat", metrics=5))["metrics"] == {"value": 5}
    spoofed = item("heartbeat", metrics={"agent_id": "other"})
    assert sent(spoofed, options={"heartbeat_metrics": "flat"})["agent_id"] == "id-of-billing"


def test_a_heartbeat_without_an_agent_can_not_be_said():
    """ASCEND demands the agent's id."""
    with pytest.raises(Unencodable, match="agent_id"):
        request(item("heartbeat", agent=""))


@pytest.mark.parametrize(("name", "given"), [("completion_route", completed()), ("heartbeat_metrics", BEAT)])
def test_a_wrong_option_costs_no_record(name, given):
    """An option that ASCEND does not know is the operator's mistake, not the record's: it says what there is."""
    with pytest.raises(ConfigError, match=f"options.{name} is 'else'; ascend knows {ASCEND.options[name][0]}"):
        request(given, options={name: "else"})


# -- answers ---------------------------------------------------------------------------------------------------------------

END = completed()


def verdict(status, body=b"", given=END, *, maybe_taken=False, now_s=0.0, headers=None):
    answer = Response(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    return ASCEND.classify(ASCEND.calls[given.kind], [given], answer, Attempt(now_s, maybe_taken))


ENVELOPES = {
    "enveloped": lambda code, text: {"status": "error", "error": {"code": code, "message": text, "details": {}}, "meta": {}},
    "flat": lambda code, text: {"detail": text, "error_code": code, "status": 1, "correlation_id": "asc_1"},
    "fastapi": lambda _code, text: {"detail": text},
}  # fmt: skip


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, Split), (422, Split), (404, Reject), (409, Reject), (410, Reject), (401, Pause), (402, Pause), (403, Pause),
        (429, Retry), (500, Retry), (503, Retry), (408, Retry), (413, Split), (405, Pause), (302, Pause),
    ],
)  # fmt: skip
def test_three_envelopes_mean_the_same(status, expected, envelope):
    """A status is read the same in each of the three envelopes, and the reason has what the envelope says."""
    found = verdict(status, ENVELOPES[envelope]("SOME_CODE", "some words"))
    assert isinstance(found, expected)
    assert found.reason.startswith(
        f"{status} SOME_CODE: some words" if envelope != "fastapi" else f"{status}: some words"
    )


@pytest.mark.parametrize(
    "body", [{}, {"action_id": 7, "status": "failed", "logged_at": "x"}, [1], "ok", 5, b"", b" \n", b"null"]
)
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_json_is_a_success(status, body):
    """No source fixes the answer to a completion: any JSON, or none, is taken."""
    assert verdict(status, body) == Delivered()


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"ok", b'{"status":', b"\xff"])
def test_a_page_is_no_success(body):
    """2xx without JSON is a wrong base_url or a proxy's page: nothing is taken for delivered, all is kept."""
    found = verdict(200, body)
    assert found == Retry("200 without JSON: is base_url right?", None, Scope.DESTINATION)


def test_an_answer_too_long_to_be_read_whole_is_a_success():
    """JSON of which only the first 64 KiB are read must not be asked for again for ever."""
    assert verdict(200, (b'{"a":"' + b"x" * ANSWER_BYTES)[:ANSWER_BYTES]) == Delivered()
    assert isinstance(verdict(200, b"<" + b"x" * ANSWER_BYTES), Retry)


def test_no_under_200_is_a_no():
    """An error envelope under 200 is a refusal; of a heartbeat it is tried again, until there is a newer one."""
    assert verdict(200, ENVELOPES["enveloped"]("X", "no")) == Reject("200 X: no")
    assert verdict(200, {"success": False, "error": "agent x not found"}) == Reject("200: agent x not found")
    assert verdict(200, {"success": False, "error": "agent x not found"}, BEAT) == Retry("200: agent x not found")
    assert verdict(200, {"success": True, "error": None}, BEAT) == Delivered()


@pytest.mark.parametrize("error", ["Governance policy violation", "governance_denied", "POLICY VIOLATION"])
def test_a_403_of_governance_is_a_denial(error):
    """`detail.error` with governance or violation is a decision about this record: dead with the detail, nothing pauses."""
    found = verdict(
        403, {"detail": {"error": error, "detail": "no such tool", "model_id": None, "correlation_id": "asc_1"}}
    )
    assert isinstance(found, Reject)
    assert error in found.reason
    assert "no such tool" in found.reason


@pytest.mark.parametrize(
    "body", [b"", b"<html>", {"detail": "governance"}, {"detail": {"error": "role"}}, {"detail": {"error": 5}}, {"error": "violation"}]
)  # fmt: skip
def test_any_other_403_pauses(body):
    """Every other 403 is about permission: the lane pauses, and nothing dies of it."""
    found = verdict(403, body)
    assert isinstance(found, Pause)
    assert found.scope is Scope.LANE


@pytest.mark.parametrize("envelope", ["enveloped", "flat"])
def test_a_locked_account_pauses_everything(envelope):
    """ACCOUNT_LOCKED is about the key, not about one action."""
    found = verdict(403, ENVELOPES[envelope]("ACCOUNT_LOCKED", "locked"))
    assert found == Pause(Scope.DESTINATION, "403 ACCOUNT_LOCKED: locked")


@pytest.mark.parametrize("code", ["INVALID_API_KEY", "EXPIRED_API_KEY", "REVOKED_API_KEY", "MFA_REQUIRED"])
def test_a_401_pauses_everything(code):
    """Promise 5: a key that does not work pauses the destination, and the reason names the code."""
    assert verdict(401, ENVELOPES["flat"](code, "no")) == Pause(Scope.DESTINATION, f"401 {code}: no")


@pytest.mark.parametrize("body", [b"", b"<html>nginx</html>", b"{}", b"[]", {"detail": "Not Found"}])
def test_a_404_of_a_path_is_not_about_the_action(body):
    """A route that is not there is a wrong base_url or a wrong completion_route, which must not bury a queue."""
    found = verdict(404, body)
    assert isinstance(found, Pause)
    assert found.scope is Scope.DESTINATION
    assert "base_url" in found.reason
    assert "completion_route" in found.reason


def test_a_404_about_the_action_ends_the_record():
    """ACTION_NOT_FOUND is this record's end, not the destination's."""
    assert verdict(404, ENVELOPES["flat"]("ACTION_NOT_FOUND", "gone")) == Reject("404 ACTION_NOT_FOUND: gone")


def test_a_conflict_that_answers_our_own_repeat_is_delivered():
    """Promise 5: 409 to a repeat of what may have been taken is a success; to a first try it is a refusal."""
    assert verdict(409, ENVELOPES["flat"]("INVALID_STATE", "ended"), maybe_taken=True) == Delivered()
    assert isinstance(verdict(409, ENVELOPES["flat"]("INVALID_STATE", "ended")), Reject)


@pytest.mark.parametrize(
    ("headers", "after_s"),
    [
        ({"retry-after": "7"}, 7.0), ({"retry-after": "7", "x-ratelimit-reset": "1090"}, 7.0), ({"x-ratelimit-reset": "1090"}, 90.0),
        ({"x-ratelimit-reset": "900"}, 0.0), ({"x-ratelimit-reset": "99999"}, 3600.0), ({"x-ratelimit-reset-after": "12"}, 12.0),
        ({"x-ratelimit-reset": "soon"}, None), ({"x-ratelimit-reset": "nan"}, None), ({"x-ratelimit-reset": "1e999"}, 3600.0),
        ({"retry-after": "", "x-ratelimit-reset-after": "x", "x-ratelimit-reset": "1001"}, 1.0), ({}, None),
    ],
)  # fmt: skip
def test_a_rate_limit_says_when(headers, after_s):
    """`Retry-After` first, then a reset header: Unix time in seconds, or seconds from now; an hour at the most."""
    found = verdict(429, ENVELOPES["flat"]("RATE_LIMIT_EXCEEDED", "slow down"), now_s=1000.0, headers=headers)
    assert found == Retry("429 RATE_LIMIT_EXCEEDED: slow down", after_s, Scope.DESTINATION)


def test_reasons_are_bounded_and_stable():
    """The same refusal gives the same words, without the ids that change from answer to answer, and never too many."""
    one, two = (
        verdict(500, {"detail": {"error": "boom", "correlation_id": f"asc_{n}", "processing_time_ms": n}})
        for n in (1, 2)
    )
    assert one == two == Retry('500: {"error":"boom"}')
    assert verdict(422, {"detail": [{"loc": ["body", "x"], "msg": "m", "type": "t"}]}).reason.startswith('422: [{"loc"')
    assert len(verdict(400, {"detail": "y" * 5000}).reason) == 500
    assert verdict(500, b"garbage").reason == "500"


@pytest.mark.parametrize("given", [END, failed(), BEAT])
def test_a_lost_answer_is_tried_again(given):
    """All three calls may be repeated; what was never sent waits for the destination."""
    call = ASCEND.calls[given.kind]
    assert ASCEND.classify(call, [given], Lost("gone", sent=True), Attempt(0.0)) == Retry("gone")
    unsent = ASCEND.classify(call, [given], Lost("gone", sent=False), Attempt(0.0))
    assert unsent == Retry("gone", None, Scope.DESTINATION)
