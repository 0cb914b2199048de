"""decision-os-sdk 0.2.1, unmodified, through agentd: `base_url` and a local token are all that an agent changes."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from decision_os import (
    AsyncDecisionOS,
    AuthenticationError,
    DecisionOS,
    DecisionOSError,
    NotFoundError,
    PermissionDeniedError,
    PlanLimitError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from sdk_world import NARROW, SANDBOX_AGENT, TOKEN, Standing

FACES = ("agentos", "decisionos")
DECISIONS, SNAPSHOTS = "/api/public/v1/decisions", "/api/public/v1/snapshots"


@pytest.fixture
def standing(world):
    return Standing(world, "decisionos", agents={"billing": SANDBOX_AGENT})


@pytest.fixture
def dos(standing):
    with DecisionOS(api_key=TOKEN, agent_id="billing", base_url=standing.url) as client:
        yield client


def over_socket(client, path):
    """The same client, its transport on the Unix socket; the SDK takes none, so that it is put in its place."""
    headers = dict(client._http.headers)
    if isinstance(client, DecisionOS):
        client._http.close()
        client._http = httpx.Client(transport=httpx.HTTPTransport(uds=path), headers=headers)
    else:
        client._http = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), headers=headers)
    return client


# -- all of it -------------------------------------------------------------------------------------------------------------------


def use_it_all(dos):
    """Every call of the documentation page, as an agent would make it; what came back."""
    logged = dos.log_decision(
        "Route this ticket", options=["eng", {"key": "billing", "probability": 0.1}], chosen="eng", confidence=0.91,
        constraints=["no PII"], assumptions=["it is a bug"], model="gpt-4o", parameters={"temperature": 0},
        tool_calls=[{"name": "search"}], tokens_input=10, cost_usd=0.01, latency_ms=12, run_id="thread-7",
    )  # fmt: skip
    snapshot = dos.capture_snapshot(
        logged.decision_id, {"prompt": "p", "response": "eng"}, model_usage={"input_tokens": 10}, timings={"latency_ms": 12},
        eval_score=0.9, eval_pass=True, captured_at="2026-01-01T00:00:00",
    )  # fmt: skip
    evaluated = dos.log_decision("Refund 40 EUR?", chosen="yes", run_policy_eval=True)
    return logged, snapshot, evaluated


def test_every_call_of_the_documentation(standing, dos):
    """Logged decisions and snapshots are answered from here, an evaluation by the platform; reads take either's ids."""
    logged, snapshot, evaluated = use_it_all(dos)
    assert (logged.status, logged.content_hash, evaluated.policy_eval.ok) == ("logged", None, True)
    assert evaluated.decision_id.startswith("dec_")
    assert snapshot.snapshot_id
    later = dos.capture_snapshot(evaluated.decision_id, {"prompt": "p"})
    assert later.snapshot_id != snapshot.snapshot_id
    found = dos.get_decision(logged.decision_id)
    assert (found["context"], found["agentId"], found["runId"]) == ("Route this ticket", SANDBOX_AGENT, "thread-7")
    assert dos.get_decision(found["id"]) == found
    standing.drained()
    listed = dos.list_decisions(agent_id="billing", limit=10)["items"]
    assert {one["id"] for one in listed} == {found["id"], evaluated.decision_id}
    assert [one["id"] for one in dos.list_agents()["items"]] == [SANDBOX_AGENT]
    assert dos.get_agent("billing")["id"] == SANDBOX_AGENT
    usage = dos.get_workspace_usage()["usage"]
    assert (usage["decision_count"], usage["snapshot_count"], usage["policy_eval_count"]) == (2, 2, 1)


async def test_every_call_of_the_async_client_over_the_unix_socket(standing):
    """The same from an event loop, without token or port: on the socket the kernel says who calls."""
    daemon = standing.daemon
    async with over_socket(
        AsyncDecisionOS(api_key="none", agent_id="billing", base_url="http://localhost/decisionos"), daemon.socket
    ) as dos:
        logged = await dos.log_decision("Route", chosen="eng")
        await dos.capture_snapshot(logged.decision_id, {"prompt": "p"})
        evaluated = await dos.log_decision("Refund?", run_policy_eval=True)
        found = await dos.get_decision(logged.decision_id)
        assert found["chosenOptionKey"] == "eng"
        await asyncio.to_thread(standing.drained)
        listed = (await dos.list_decisions(agent_id="billing"))["items"]
        assert {one["id"] for one in listed} == {found["id"], evaluated.decision_id}
        assert (await dos.get_agent("billing"))["id"] == SANDBOX_AGENT
        assert len((await dos.list_agents())["items"]) == 1
        assert (await dos.get_workspace_usage())["usage"]["snapshot_count"] == 1


def test_the_sync_client_over_the_unix_socket(standing):
    """No port is needed where the transport can be chosen."""
    with over_socket(
        DecisionOS(api_key="none", agent_id="billing", base_url="http://x/decisionos"), standing.daemon.socket
    ) as dos:
        assert dos.log_decision("Route").status == "logged"
    assert standing.drained()["delivered"] == 1


# -- without the platform ----------------------------------------------------------------------------------------------------------


def test_decisions_are_logged_while_the_platform_is_down(standing, dos):
    """Promise 1: what the SDK was told is logged arrives, once and in order, when the platform is back."""
    standing.world.platform.down()
    begun = time.monotonic()
    logged = [dos.log_decision(f"Decide {number}") for number in range(5)]
    dos.capture_snapshot(logged[0].decision_id, {"prompt": "p"})
    assert time.monotonic() - begun < 3
    standing.world.platform.up()
    assert standing.drained()["delivered"] == 6
    contexts = [dos.get_decision(one.decision_id)["context"] for one in logged]
    assert contexts == [f"Decide {number}" for number in range(5)]
    assert len(standing.rows()) == 5


def test_a_decision_survives_kill_9(standing, dos):
    """Between a decision and its snapshot the daemon is killed: the id that the SDK was given stays good, also for reads."""
    standing.world.platform.down()
    logged = dos.log_decision("Route", request_id="once")
    standing.daemon.kill()
    standing.daemon.start()
    dos.capture_snapshot(logged.decision_id, {"prompt": "p"})
    assert dos.log_decision("Route", request_id="once").decision_id == logged.decision_id
    standing.world.platform.up()
    assert standing.drained()["delivered"] == 2
    (row,) = standing.rows()
    assert dos.get_decision(logged.decision_id)["id"] == row["id"]


def test_the_same_request_id_is_the_same_decision(standing, dos):
    """The SDK's own idempotency field counts, whatever else a repeat says.."""
    first = dos.log_decision("Route", request_id="r-1")
    again = dos.log_decision("Route, once more", request_id="r-1")
    other = dos.log_decision("Route", request_id="r-2")
    snapshots = {dos.capture_snapshot(first.decision_id, {}, request_id="s-1").snapshot_id for _ in "12"}
    assert first.decision_id == again.decision_id != other.decision_id
    assert len(snapshots) == 1
    assert standing.drained()["delivered"] == 3
    assert sorted(row["context"] for row in standing.rows()) == ["Route", "Route"]


# -- errors ------------------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_raises_the_sdk_s_own_errors(standing, dos):
    """Field, token, agent, id: each is the exception that the SDK has for it, in a sentence that helps."""
    with pytest.raises(ValidationError, match=r"\$\.tokensInput: expected integer"):
        dos.log_decision("Route", tokens_input="many")
    with pytest.raises(NotFoundError):
        dos.get_decision("dec_nowhere")
    with pytest.raises(PermissionDeniedError, match="passes no DELETE"):
        dos._request("DELETE", f"{DECISIONS}/dec_1")
    with (
        DecisionOS(api_key="wrong", agent_id="billing", base_url=standing.url) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.log_decision("Route")
    with DecisionOS(api_key=NARROW, agent_id="billing", base_url=standing.url) as narrow:
        assert narrow.log_decision("Route").decision_id
        with pytest.raises(PermissionDeniedError, match="payroll"):
            narrow.log_decision("Route", agent_id="payroll")
    assert standing.drained()["delivered"] == 1


def test_the_platform_s_own_refusals_come_through(standing, dos):
    """A used-up quota, a rate limit and its time are the platform's words to whoever waits for it."""
    standing.throw(monthly_decisions=1)
    assert dos.log_decision("One", run_policy_eval=True).policy_eval.ok
    with pytest.raises(PlanLimitError):
        dos.log_decision("Two", run_policy_eval=True, request_id="two")
    standing.throw(monthly_decisions=2)
    assert dos.log_decision("Two", run_policy_eval=True, request_id="two").policy_eval.ok
    standing.world.platform.faults("retry_after=7s,face=decisionos")
    with pytest.raises(RateLimitError) as caught:
        dos.list_agents()
    assert caught.value.retry_after == "7"
    standing.world.platform.faults()


def test_an_evaluation_needs_the_platform(standing, dos):
    """Down: the SDK's ServerError, nothing was sent; a logged decision goes on meanwhile."""
    standing.world.platform.down()
    with pytest.raises(ServerError, match="503"):
        dos.log_decision("Refund?", run_policy_eval=True)
    with pytest.raises(ServerError, match="503"):
        dos.get_workspace_usage()
    assert dos.log_decision("Route").status == "logged"
    standing.world.platform.up()
    assert standing.drained()["delivered"] == 1
    assert len(standing.rows()) == 1


def test_an_evaluation_whose_answer_is_lost_is_not_repeated(standing, dos):
    """The platform decided and the connection broke: one request, and an error that the SDK does not repeat."""
    standing.world.platform.faults("cut,face=decisionos,count=1")
    with pytest.raises(DecisionOSError, match="may have acted") as caught:
        dos.log_decision("Refund?", run_policy_eval=True, request_id="once")
    assert caught.value.status_code == 424
    assert len(standing.calls("POST", DECISIONS)) == 1
    assert dos.log_decision("Refund?", run_policy_eval=True, request_id="once").policy_eval.ok
    assert len(standing.rows()) == 1
