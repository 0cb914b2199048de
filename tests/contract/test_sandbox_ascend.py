"""The sandbox as ASCEND, over real sockets: as a client meets it, and as agentd's own adapter does, each written for itself."""

from __future__ import annotations

import json
import time
from uuid import UUID

import aiohttp
import msgspec
import pytest

from agentd import platforms
from agentd.exchange import Attempt, Context, Lost, Sending, Unencodable
from agentd.http import Http
from agentd.outcomes import Delivered, Pause, Reject, Retry, Scope, Split
from agentd.queued import Entry, Source
from agentd.reach import Reach
from agentd.records import Record, kind_of, lane_of, loss_class
from agentd.sandbox import Sandbox
from agentd.wire import encode

ASCEND = platforms.load("ascend")
SUBMISSION = {"agent_id": "bot", "agent_name": "Bot", "action_type": "query", "resource": "orders"}
REVIEW = SUBMISSION | {"require_approval": True}
JWT = {"Authorization": "Bearer head.claims.signature"}
LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
decode_record = msgspec.json.Decoder(Record).decode


class Platform:
    """A client that speaks to one sandbox as an SDK would, and agentd's adapter beside it."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession, http: Http) -> None:
        self.sandbox = sandbox
        self.session = session
        self.http = http

    async def ask(self, method, path, body=None, headers=None):
        """Status, headers and decoded body of one call."""
        headers = {"X-API-Key": "owkai_live_test"} if headers is None else headers
        async with self.session.request(method, self.sandbox.url + path, json=body, headers=headers) as answer:
            return answer.status, answer.headers, json.loads(await answer.text())

    async def submit(self, body=SUBMISSION):
        """The id of a new action as text, as one keeps it."""
        status, _, said = await self.ask("POST", "/api/v1/actions/submit", body)
        assert status == 200, said
        return str(said["action_id"])

    async def deliver(self, kind, *, key="key", options=None, secret=None, maybe_taken=False, **fields):
        """What agentd's adapter makes of one record, of this sandbox's answer to it."""
        record = decode_record(json.dumps({"kind": kind, **fields}).encode())
        source = Source("bot", 0, 0, "test")
        item = Entry(
            1, UUID(int=1).bytes, lane_of(record, "bot"), kind_of(record), loss_class(record), source,
            1_767_225_600_000_000, encode(record),
        )  # fmt: skip
        call = ASCEND.calls[kind]
        context = Context(lambda local: local, lambda _kind, local: local, True, options or {})
        request = ASCEND.encode(call, [item], context)
        headers = ASCEND.headers(Sending("owkai_live_test", key, time.time(), request.body, secret))
        answer = await self.http.post(Reach(self.sandbox.url), request, headers, 5.0)
        return ASCEND.classify(call, [item], answer, Attempt(time.time(), maybe_taken)), answer

    def log(self, action_id):
        return [line["what"] for line in self.sandbox.run(action_id)["events"]]

    def details(self):
        return self.sandbox.state().faces["ascend"]["details"]


@pytest.fixture
async def platform():
    async with Sandbox(["ascend"]) as sandbox, aiohttp.ClientSession() as session, Http() as http:
        yield Platform(sandbox, session, http)


# -- a client -----------------------------------------------------------------------------------------------------------------


async def test_without_a_key(platform):
    """ASCEND: a call without X-API-Key and without a bearer is 401, and nothing is done."""
    status, _, said = await platform.ask("POST", "/api/v1/actions/submit", SUBMISSION, headers={})
    assert (status, said["error_code"]) == (401, "INVALID_API_KEY")
    assert platform.sandbox.state().runs == 0


async def test_known_keys_only():
    """With keys given, the sandbox takes those in either header and refuses every other."""
    async with Sandbox(["ascend"], api_keys=["right"]) as sandbox, aiohttp.ClientSession() as session, Http() as http:
        platform = Platform(sandbox, session, http)
        for headers, expected in (
            ({"X-API-Key": "right"}, 200), ({"Authorization": "Bearer right"}, 200), ({"X-API-Key": "wrong"}, 401),
        ):  # fmt: skip
            assert (await platform.ask("GET", "/api/v1/actions", headers=headers))[0] == expected


async def test_submit_poll_approve_complete(platform):
    """The whole way of an action: asked for, pending, approved by a person at the sandbox, carried out."""
    action_id = await platform.submit(REVIEW)
    status = f"/api/v1/actions/{action_id}/status"
    assert (await platform.ask("GET", status))[2]["decision"] == "pending"
    assert (await platform.ask("POST", f"/_sandbox/act/ascend/{action_id}/approve"))[0] == 200
    assert (await platform.ask("GET", status))[2]["decision"] == "approved"
    body = {"action_id": action_id, "status": "completed", "completed_at": "2026-01-01T00:00:00Z"}
    assert (await platform.ask("POST", f"/api/agent-action/{action_id}/complete", body))[0] == 200
    assert platform.log(action_id) == ["submitted", "approved", "completed"]


async def test_a_user_may_approve_and_a_key_may_not(platform):
    """ASCEND: approval wants a user's token."""
    action_id = await platform.submit(REVIEW)
    path = f"/api/v1/actions/{action_id}/approve"
    assert (await platform.ask("POST", path))[0] == 401
    assert (await platform.ask("POST", path, headers=JWT))[2]["decision"] == "approved"


async def test_a_lost_answer_leaves_an_action_behind(platform):
    """Fault cut: the submission is committed and its answer lost; a repeat is a second action."""
    platform.sandbox.faults.add("cut,count=1")
    with pytest.raises(LOST):
        await platform.submit()
    await platform.submit()
    assert platform.details()["actions"] == 2


@pytest.mark.parametrize("envelope", ["enveloped", "flat", "fastapi"])
async def test_injected_faults_speak_its_envelope(platform, envelope):
    """A fault of status answers in the envelope that is in force."""
    platform.sandbox.throw(f"ascend.error_envelope={envelope}")
    platform.sandbox.faults.add("status=503,count=1")
    status, _, said = await platform.ask("GET", "/api/v1/actions")
    assert status == 503
    assert (
        set(said) >= {"enveloped": {"error", "meta"}, "flat": {"detail", "error_code"}, "fastapi": {"detail"}}[envelope]
    )


async def test_switches_by_http(platform):
    """Every switch can be thrown over HTTP while the sandbox runs."""
    wanted = {
        "required_fields": "minimal", "response_shape": "C", "id_type": "int", "completion_routes": "both", "list_shape": "array",
        "governance_403": "on", "decision": "denied", "decision_delay": "2s", "error_envelope": "enveloped", "signature": "check",
        "unregistered": "accept", "per_minute": "100", "rate_headers": "reset", "heartbeat_metrics": "both",
    }  # fmt: skip
    status, _, said = await platform.ask(
        "PUT", "/_sandbox/switches", {f"ascend.{name}": way for name, way in wanted.items()}
    )
    assert status == 200
    shown = {name: str(said["ascend"][name]) for name in wanted}
    assert shown == wanted | {"decision_delay": "2.0"}
    status, _, said = await platform.ask("POST", "/api/v1/actions/submit", {"agent_id": "bot", "action_type": "query"})
    assert (status, set(said)) == (403, {"detail"})


async def test_beside_another_platform():
    """ASCEND is found by its own paths and below its own name when it shares a sandbox."""
    async with Sandbox(["agentos", "ascend"]) as sandbox, aiohttp.ClientSession() as session:
        for url in (sandbox.url, sandbox.url_for("ascend")):
            async with session.post(
                f"{url}/api/v1/actions/submit", json=SUBMISSION, headers={"X-API-Key": "k"}
            ) as answer:
                assert answer.status == 200
        assert sandbox.state().faces["ascend"]["runs"] == 2


# -- agentd's adapter ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("id_type", "route"), [("string", "sdk"), ("int", "sdk"), ("int", "server")])
async def test_completions_arrive(platform, id_type, route):
    """A completion and a failure reach their action by either route, the id written as the platform gave it."""
    platform.sandbox.throw(f"ascend.id_type={id_type}")
    platform.sandbox.throw(f"ascend.completion_routes={route}")
    action_id = await platform.submit()
    options = {"completion_route": route}
    verdicts = [
        (await platform.deliver("action.completed", action_id=action_id, result={"rows": 3}, options=options))[0],
        (await platform.deliver("action.failed", action_id=action_id, error={"code": 1}, options=options))[0],
    ]
    assert verdicts == [Delivered(), Delivered()]
    assert platform.log(action_id) == ["submitted", "completed", "failed"]
    assert platform.sandbox.run(action_id)["events"][1]["said"]["result"] == {"rows": 3}


async def test_an_odd_id_reaches_no_other_path(platform):
    """An id with a slash and dots stays one segment on the way: the platform says that it has no such action."""
    verdict, _ = await platform.deliver("action.completed", action_id="../v1/x?y#z")
    assert isinstance(verdict, Reject)
    assert verdict.reason.startswith("404 ACTION_NOT_FOUND: Action ../v1/x?y#z not found")


async def test_what_is_no_number_is_never_sent(platform):
    """Nothing leaves for the older route with an id that is no number."""
    platform.sandbox.throw("ascend.completion_routes=server")
    with pytest.raises(Unencodable):
        await platform.deliver("action.completed", action_id="act_7", options={"completion_route": "server"})
    assert platform.sandbox.requests() == []


@pytest.mark.parametrize(("there", "asked"), [("server", "sdk"), ("sdk", "server")])
async def test_the_wrong_route_pauses_and_buries_nothing(platform, there, asked):
    """A platform without the chosen route is the operator's to mend: the destination pauses and says what to look at."""
    platform.sandbox.throw(f"ascend.completion_routes={there}")
    verdict, _ = await platform.deliver("action.completed", action_id="7", options={"completion_route": asked})
    assert isinstance(verdict, Pause)
    assert (verdict.scope, "completion_route" in verdict.reason) == (Scope.DESTINATION, True)


async def test_a_repeat_after_a_lost_answer(platform):
    """Promise 4: after a lost answer the same bytes go again under the same key, and cost one more log entry."""
    action_id = await platform.submit()
    platform.sandbox.faults.add("cut,count=1")
    verdict, answer = await platform.deliver("action.completed", action_id=action_id, key="k1")
    assert isinstance(answer, Lost)
    assert isinstance(verdict, Retry)
    assert (await platform.deliver("action.completed", action_id=action_id, key="k1", maybe_taken=True))[
        0
    ] == Delivered()
    repeat = platform.sandbox.repeats(2)["k1"]
    assert (repeat.count, repeat.same_body) == (2, True)
    assert (platform.log(action_id), platform.sandbox.state().duplicates) == (
        ["submitted", "completed", "completed"],
        1,
    )


@pytest.mark.parametrize("read", ["nested", "flat", "both"])
async def test_the_union_of_metrics_is_read_by_every_server(platform, read):
    """Whichever metrics the server reads, the default form has them."""
    platform.sandbox.throw(f"ascend.heartbeat_metrics={read}")
    verdict, _ = await platform.deliver("heartbeat", status="ok", metrics={"error_rate": 0.25, "requests_count": 4})
    assert verdict == Delivered()
    assert platform.sandbox.run("agent:bot")["metrics"] == {"error_rate": 0.25, "requests_count": 4}


async def test_a_heartbeat_that_is_not_taken(platform):
    """200 with success false is no delivery: tried again until it is taken or there is a newer one."""
    platform.sandbox.throw("ascend.unregistered=refuse")
    assert (await platform.deliver("heartbeat"))[0] == Retry("200: agent bot not found")
    await platform.ask("POST", "/api/registry/agents", {"agent_id": "bot", "display_name": "Bot"})
    assert (await platform.deliver("heartbeat"))[0] == Delivered()


async def test_signed_requests_are_taken(platform):
    """The signature is right for a server that makes it from the body by itself, and wrong with another secret."""
    action_id = await platform.submit()
    platform.sandbox.throw("ascend.signature=require")
    fields = {"action_id": action_id, "result": {"ü": [1.50, True, None, "\u2028"], "a": {"z": 1, "b": 2}}}
    assert (await platform.deliver("action.completed", secret="sandbox", **fields))[0] == Delivered()
    for secret in ("other", None):
        assert isinstance((await platform.deliver("action.completed", secret=secret, **fields))[0], Pause)


@pytest.mark.parametrize("envelope", ["enveloped", "flat", "fastapi"])
@pytest.mark.parametrize(
    ("status", "verdict", "scope"),
    [
        (400, Split, None), (401, Pause, "destination"), (403, Pause, "lane"), (404, Reject, None), (422, Split, None),
        (429, Retry, "destination"), (500, Retry, "lane"), (503, Retry, "lane"),
    ],
)  # fmt: skip
async def test_every_envelope_is_understood(platform, envelope, status, verdict, scope):
    """Promise 5: a failure means the same in each of the platform's envelopes, and its words reach the reason."""
    platform.sandbox.throw(f"ascend.error_envelope={envelope}")
    platform.sandbox.faults.add(f"status={status}")
    found, _ = await platform.deliver("action.completed", action_id="7")
    assert isinstance(found, verdict)
    assert scope is None or found.scope == scope
    assert "injected by the sandbox" in found.reason


@pytest.mark.parametrize("headers", ["both", "reset"])
async def test_the_rate_limits_reset_is_heard(platform, headers):
    """A reset in Unix seconds is a wait of at most the window, with Retry-After beside it or alone."""
    platform.sandbox.throw(f"ascend.rate_headers={headers}")
    platform.sandbox.throw("ascend.per_minute=1")
    while True:  # the window may turn between two calls
        verdict, _ = await platform.deliver("heartbeat")
        if verdict != Delivered():
            break
    assert isinstance(verdict, Retry)
    assert verdict.scope is Scope.DESTINATION
    assert verdict.after_s is not None
    assert 0 <= verdict.after_s <= 61
