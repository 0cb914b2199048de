"""Standing in for ASCEND: the unmodified SDK, with both of its retry layers, talks to the stand-in over a socket."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ascend
import pytest
import requests
from ascend.constants import API_ENDPOINTS, DEFAULT_TIMEOUT
from sdk_kit import NOW_US, answer, called, find_door, handed, shown

from agentd import platforms
from agentd.errors import RecordError
from agentd.exchange import Context
from agentd.queued import Entry, Source
from agentd.records import kind_of, lane_of, loss_class
from agentd.standin import Does, Why
from agentd.wire import encode

ASCEND = platforms.load("ascend")
STAND_IN = ASCEND.stand_in
SUBMIT, BEAT = "/api/v1/actions/submit", "/api/agents/health/heartbeat"
COMPLETE, FAIL = "/api/agent-action/act_1/complete", "/api/agent-action/act_1/fail"


class Listener(ThreadingHTTPServer):
    """Answers each call as the stand-in does: telemetry is kept, everything else is refused as ordered."""

    def __init__(self):
        self.records = []
        self.calls = 0
        self.why = Why.UNREACHABLE
        super().__init__(("127.0.0.1", 0), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, method, path, body):
        self.calls += 1
        door = find_door(STAND_IN, method, path.partition("?")[0])
        if door is None or door[0].does is not Does.RECORD:
            return STAND_IN.refusal(self.why, "nobody knows whether it was submitted: do not repeat it")
        records, done = handed(STAND_IN, method, path, body)
        self.records += records
        return done.reply

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        reply = self.server.answer(self.command, self.path, body)
        self.send_response(reply.status)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST  # noqa: N815 - the name that the standard library calls

    def log_message(self, *arguments):
        pass


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def client(listener, monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: None)  # the waits of the inner layer
    monkeypatch.setattr("ascend.client.time.sleep", lambda _seconds: None)
    client = ascend.AscendClient(
        api_key="local", agent_id="billing", api_url=f"http://127.0.0.1:{listener.server_port}"
    )
    yield client
    client.close()


def sent(record, **options):
    entry = Entry(
        1, bytes(16), lane_of(record, "billing"), kind_of(record), loss_class(record), Source("billing", 0, 0, "test"),
        NOW_US, encode(record),
    )  # fmt: skip
    context = Context(lambda local: f"id-of-{local}", lambda _kind, local: local, options=options)
    return json.loads(ASCEND.encode(ASCEND.calls[entry.kind], [entry], context).body)


# -- what became of actions ------------------------------------------------------------------------------------------------------


def test_a_completion_is_taken_at_once(client, listener):
    """The SDK hears that it is logged, and not that it has to keep it itself."""
    said = client.log_action_completed("act_1", {"refund": 12}, duration_ms=80)
    (record,) = listener.records
    assert shown(record) | {"occurred_at": ""} == {
        "kind": "action.completed", "action_id": "act_1", "result": {"refund": 12}, "duration_ms": 80, "occurred_at": "",
    }  # fmt: skip
    assert (said["action_id"], said["status"]) == ("act_1", "completed")
    assert "logged_locally" not in said
    assert record.occurred_at is not None


@pytest.mark.parametrize("error", ["no money", {"code": "E1", "message": "no money"}])
def test_a_failure_is_taken_at_once(client, listener, error):
    """Its error is a text or an object."""
    said = client.log_action_failed("act_1", error)
    assert (said["status"], shown(listener.records[0])["error"]) == ("failed", error)


def test_a_failure_of_which_nothing_is_known_is_one_all_the_same():
    """That it failed counts more than why."""
    (record,), _ = handed(STAND_IN, "POST", FAIL, {"status": "failed", "error": None})
    assert sent(record)["error"] == "unknown"


@pytest.mark.parametrize(("shown_id", "path"), [(7, "7"), ("7", "7"), ("act_1", "act_1"), ("a/b", "a%2Fb")])
def test_an_id_comes_back_in_the_form_in_which_it_came(shown_id, path):
    """Numbers and texts are both ids of ASCEND's."""
    (record,), done = handed(STAND_IN, "POST", f"/api/agent-action/{path}/complete", {"action_id": shown_id})
    assert record.action_id == str(shown_id)
    assert answer(done.reply)["action_id"] == shown_id


def test_the_older_server_s_routes_are_understood():
    """They name the action in the path alone."""
    (record,), done = handed(STAND_IN, "POST", "/api/sdk/action/7/failed", {"error": "no"})
    assert (kind_of(record), record.action_id) == ("action.failed", "7")
    assert answer(done.reply) == {"action_id": "7", "status": "failed", "logged_at": "2026-01-01T00:00:00.000000Z"}


def test_what_agentd_does_not_know_is_carried_through():
    """Also a duration with a fraction, and an error beside a completion."""
    body = {
        "action_id": "act_1",
        "status": "completed",
        "duration_ms": 1.5,
        "error": "late",
        "cost": {"usd": 1},
        "gone": None,
    }
    (record,), _ = handed(STAND_IN, "POST", COMPLETE, body)
    assert shown(record)["extra"] == {"duration_ms": 1.5, "error": "late", "cost": {"usd": 1}}
    assert sent(record) | {"completed_at": ""} == {
        "action_id": "act_1", "status": "completed", "completed_at": "", "duration_ms": 1.5, "error": "late", "cost": {"usd": 1},
    }  # fmt: skip


def test_the_same_bytes_are_the_same_record():
    """ASCEND has no idempotency field: the inner retry layer repeats bytes, and bytes are what a repeat is known by."""
    one, two = (
        handed(STAND_IN, "POST", COMPLETE, {"action_id": "act_1", "completed_at": "2026-01-01T00:00:00"}) for _ in "12"
    )
    assert one[0] == two[0]
    assert (one[1].key, one[0][0].occurred_at.isoformat()) == ("", "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETE, {"action_id": "act_2"}, r"^\$\.action_id: 'act_2' is not the action of the path"),
        (COMPLETE, {"action_id": "act_1", "status": "failed"}, r"^\$\.status: expected completed, got 'failed'"),
        (COMPLETE, {"completed_at": "noon"}, r"^\$\.completed_at: expected an ISO 8601"),
        (COMPLETE, {"duration_ms": -1}, r"^\$\.duration_ms: "),
        (COMPLETE, {"duration_ms": "1"}, r"^\$\.duration_ms: "),
        (COMPLETE, b"[]", r"^\$: expected an object"),
        (BEAT, {"agent_id": 3}, r"^\$\.agent_id: "),
        (BEAT, {"status": 3}, r"^\$\.status: "),
        (f"{BEAT}/batch", b"{}", r"^\$: expected an array of heartbeats"),
        (f"{BEAT}/batch", b"[{}, 3]", r"^\$\[1\]: expected an object"),
    ],
)
def test_what_is_wrong_is_named(path, body, message):
    """A refusal speaks of the member that was sent."""
    with pytest.raises(RecordError, match=message):
        handed(STAND_IN, "POST", path, body)


# -- heartbeats ------------------------------------------------------------------------------------------------------------------


def test_a_heartbeat_keeps_its_metrics_and_says_whose_it_is(client, listener):
    """Flat metrics become the record's; the SDK's version and time stand beside them and win over ours."""
    client.heartbeat(response_time_ms=12, error_rate=0.5)
    (record,) = listener.records
    assert (record.agent_id, shown(record)["metrics"]) == ("billing", {"response_time_ms": 12, "error_rate": 0.5})
    body = sent(record)
    assert (body["sdk_version"], body["timestamp"]) == ("2.7.1", shown(record)["extra"]["timestamp"])
    assert (body["agent_id"], body["response_time_ms"], body["metrics"]["error_rate"]) == ("id-of-billing", 12, 0.5)


def test_a_heartbeat_of_ours_says_what_we_are():
    """Without an SDK's word the version and the time are our own."""
    (record,), _ = handed(STAND_IN, "POST", BEAT, {"agent_id": "billing", "status": "ok", "sdk_version": None})
    assert sent(record) == {
        "agent_id": "id-of-billing", "sdk_version": "agentd/1", "timestamp": "2026-01-01T00:00:00Z", "status": "ok",
    }  # fmt: skip


def test_a_batch_of_heartbeats_is_taken_whole():
    """Nested and flat metrics are one, and every beat has its answer."""
    beats = [{"agent_id": "a", "metrics": {"requests_count": 1}, "error_rate": 0}, {"agent_id": "b"}]
    records, done = handed(STAND_IN, "POST", f"{BEAT}/batch", beats)
    assert [record.agent_id for record in records] == ["a", "b"]
    assert shown(records[0])["metrics"] == {"requests_count": 1, "error_rate": 0}
    assert answer(done.reply)["processed"] == 2
    assert [result["agent_id"] for result in answer(done.reply)["results"]] == ["a", "b"]


# -- gates, reads, control plane ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SUBMIT, "/api/v1/mcp/actions/submit"])
def test_a_submission_is_a_gate(path):
    """Actions and MCP tool calls wait for leave; the agent stands beside what is asked."""
    call = called(STAND_IN, "POST", path, {"agent_id": "a", "action_type": "query", "context": {"x": 1}})
    assert STAND_IN.asks(call) == "action"
    asked = STAND_IN.asked(call)
    assert (asked.agent, asked.run_id, sorted(asked.request)) == ("a", None, ["action_type", "context"])


def test_the_sdk_hears_before_it_would_repeat():
    """Its inner layer repeats what takes longer than DEFAULT_TIMEOUT; a second is left for the verdict's way to the disk."""
    gates = [door for door in STAND_IN.doors if door.does is Does.GATE]
    assert {door.limit_s for door in gates} == {DEFAULT_TIMEOUT - 1.0}


# What of the SDK's endpoints is what; all that is not here is read.
WRITES = {
    "submit_action": ("POST", Does.GATE), "action_complete": ("POST", Does.RECORD), "action_fail": ("POST", Does.RECORD),
    "heartbeat": ("POST", Does.RECORD), "evaluate_policy": ("POST", Does.READ), "output_filter_scan": ("POST", Does.READ),
    "agent_command_ack": ("POST", Does.READ), "register_agent": ("POST", Does.ADMIN), "deregister_agent": ("DELETE", Does.ADMIN),
    "agent_update": ("PUT", Does.ADMIN), "webhooks_list": ("GET", Does.ADMIN), "webhooks_configure": ("POST", Does.ADMIN),
    "webhooks_update": ("PUT", Does.ADMIN), "webhooks_delete": ("DELETE", Does.ADMIN), "webhooks_test": ("POST", Does.ADMIN),
    "mcp_server_activate": ("POST", Does.ADMIN), "mcp_server_deactivate": ("POST", Does.ADMIN), "mcp_scan": ("POST", Does.ADMIN),
    "mcp_scan_network": ("POST", Does.ADMIN), "kill_switch_trigger": ("POST", Does.ADMIN),
    "kill_switch_release": ("POST", Does.ADMIN), "topology_register": ("POST", Does.ADMIN),
    "topology_mcp_register": ("POST", Does.ADMIN), "cascade_kill": ("POST", Does.ADMIN),
}  # fmt: skip
UNUSED = {"supply_chain_component", "supply_chain_agent_dependencies"}  # the SDK has the paths and no call for them


@pytest.mark.parametrize("name", sorted(set(API_ENDPOINTS) - UNUSED))
def test_every_endpoint_of_the_sdk_has_its_place(name):
    """Whatever the SDK can call is telemetry, a gate, a read or control plane."""
    method, does = WRITES.get(name, ("GET", Does.READ))
    path = API_ENDPOINTS[name].replace("{", "").replace("}", "")
    found = find_door(STAND_IN, method, path)
    assert found is not None, f"{method} {path}"
    assert found[0].does is does


@pytest.mark.parametrize(
    "path", ["/api/v1/actions/1/approve", "/api/v1/actions/1/reject", "/api/governance/workflows/1/approve"]
)
def test_nobody_approves_his_own_action(path):
    """Approvals are control plane."""
    assert find_door(STAND_IN, "POST", path)[0].does is Does.ADMIN


# -- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_mode", ["closed", "open"])
@pytest.mark.parametrize("why", [Why.OUTCOME_UNKNOWN, Why.UNREACHABLE, Why.INTERNAL])
def test_a_submission_that_may_have_acted_is_made_once(client, listener, why, fail_mode):
    """Neither retry layer repeats it, the SDK's own error says so, and fail_mode "open" does not let the action pass."""
    client.fail_mode = ascend.FailMode(fail_mode)
    listener.why = why
    with pytest.raises(ascend.AuthorizationError, match="do not repeat it"):
        client.evaluate_action("query", "db")
    assert listener.calls == 1


@pytest.mark.parametrize(
    ("why", "error", "calls"),
    [
        (Why.MALFORMED, ascend.ValidationError, 1),
        (Why.UNAUTHENTICATED, ascend.AuthenticationError, 1),
        (Why.FORBIDDEN, ascend.AuthorizationError, 1),
        (Why.NOT_FOUND, requests.HTTPError, 1),
        (Why.CONFLICT, requests.HTTPError, 1),
        (Why.TOO_LARGE, requests.HTTPError, 1),
        (Why.NO_ANSWER, requests.exceptions.RetryError, 4),
        (Why.SPOOL_FULL, requests.exceptions.RetryError, 4),
    ],
)
def test_the_sdk_raises_what_it_raises_at_ascend(client, listener, why, error, calls):
    """Where it has an exception of its own it is that; what was not taken may be asked again, and is."""
    listener.why = why
    with pytest.raises(error):
        client.get_action_status("act_1")
    assert listener.calls == calls


def test_registration_is_refused_in_words(client, listener):
    """`register()` is control plane: the SDK's AuthorizationError shows the reason, once."""
    listener.why = Why.FORBIDDEN
    with pytest.raises(ascend.AuthorizationError, match="do not repeat it"):
        client.register()
    assert listener.calls == 1


def test_a_refusal_is_no_denial():
    """A `detail` that is an object could be read as the platform's "governance" denial: it is text."""
    body = answer(STAND_IN.refusal(Why.OUTCOME_UNKNOWN, "governance violation"))
    assert body == {"detail": "governance violation", "error_code": "OUTCOME_UNKNOWN", "status": 403}
