"""ascend-ai-sdk 2.7.1, unmodified, through agentd: with its two retry layers, its timeouts and its circuit breaker."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from ascend import AscendClient, AuthorizationError, Decision, FailMode, KillSwitchError, ValidationError
from harness import http_call, wait_for
from sdk_world import NARROW, TOKEN, Standing

FACES = ("agentos", "ascend")
SUBMIT = "/api/v1/actions/submit"
MCP = "/api/v1/mcp/actions/submit"


@pytest.fixture
def standing(world):
    return Standing(world, "ascend", agents={"billing": "billing-bot", "payroll": "payroll-bot"})


@pytest.fixture
def client(standing):
    with AscendClient(api_key=TOKEN, agent_id="billing", agent_name="Billing", api_url=standing.url) as client:
        yield client


def posts(standing):
    return len(standing.calls("POST", SUBMIT))


def row(standing, action_id):
    return next(row for row in standing.rows() if row["id"] == action_id)


# -- all of it -------------------------------------------------------------------------------------------------------------------


def test_from_leave_to_completion(standing, client):
    """Asked, allowed, carried out, logged: the platform knows the agent by its own name, the SDK by ours."""
    decision = client.evaluate_action("query", "invoices", parameters={"limit": 3}, tool_name="sql", description="read")
    assert decision.decision is Decision.ALLOWED
    assert decision.execution_allowed
    assert client.get_action_status(decision.action_id).decision is Decision.ALLOWED
    assert client.get_action_details(decision.action_id).agent_id == "billing-bot"
    said = client.log_action_completed(decision.action_id, {"rows": 3}, duration_ms=7)
    assert (said["action_id"], said["status"]) == (decision.action_id, "completed")
    failed = client.evaluate_action("query", "payroll")
    assert client.log_action_failed(failed.action_id, {"code": "E1", "message": "no"})["status"] == "failed"
    client.heartbeat(response_time_ms=12, error_rate=0.0, requests_count=9)
    assert standing.drained()["delivered"] == 3
    assert [row(standing, one.action_id)["completions"] for one in (decision, failed)] == [1, 1]
    assert [one["action_id"] for one in client.list_actions()["actions"]] == [failed.action_id, decision.action_id]
    assert client.get_agent_status().agent_id == "billing-bot"
    assert posts(standing) == 2


def test_what_an_agent_may_read(standing, client):
    """Connection, commands, dry run, audit log, kill switch: passed on to the platform and back."""
    assert client.test_connection().connected
    assert client.get_pending_commands() == []
    policy = client.evaluate_policy("database.read", "invoices", risk_score=12.5, context={"environment": "production"})
    assert (policy.decision, policy.violations) == ("approved", [])
    assert client.query_audit_log().total is not None
    client.start_kill_switch_polling(interval_seconds=3600)
    assert not client.is_blocked()
    assert client._kill_switch_failure_count == 0


@pytest.mark.parametrize(
    ("decision", "heard", "allowed"), [("approved", Decision.ALLOWED, True), ("denied", Decision.DENIED, False)]
)
def test_an_mcp_tool_call_is_asked(standing, client, decision, heard, allowed):
    """Its own path and answer, on record like any action; the SDK names no agent there, so it is the one of the token."""
    standing.throw(decision=decision)
    assert client.evaluate_mcp_action("files", "filesystem", "read_file", "/tmp/x").decision is heard
    with AscendClient(api_key=NARROW, agent_id="billing", agent_name="B", api_url=standing.url) as narrow:
        told = narrow.evaluate_mcp_action("files", "filesystem", "list", "/tmp", parameters={"limit": 3})
        assert told.decision is heard
        if allowed:
            narrow.log_action_completed(told.action_id, {"rows": 3})
            assert standing.drained()["delivered"] == 1
            assert row(standing, told.action_id)["completions"] == 1
    named = {"mcp_server": "files", "namespace": "n", "verb": "v", "resource": "r", "agent_id": "payroll"}
    client._request("POST", MCP, data=named)
    gates = http_call(standing.daemon.socket, "GET", "/v1/gates?state=all")[1]
    verdict = "allow" if allowed else "deny"
    assert sorted((gate["agent_id"], gate["verdict"]) for gate in gates) == [
        (agent, verdict) for agent in ("", "billing", "payroll")
    ]
    assert [one["agent_id"] for one in standing.rows()] == ["payroll-bot", None, None]


def test_an_mcp_tool_call_that_is_parked(standing, client):
    """Pending is no leave, and agentd hears of the approval without the SDK."""
    standing.throw(decision="pending")
    told = client.evaluate_mcp_action("files", "filesystem", "write_file", "/tmp/x")
    assert told.decision is Decision.PENDING
    standing.world.platform.ask(
        lambda: standing.world.platform.sandbox._emulation.act("ascend", told.action_id, "approve")
    )
    assert client.wait_for_decision(told.action_id, timeout=10, poll_interval=0.05).decision is Decision.ALLOWED


def test_many_at_once(standing, client):
    """`evaluate_actions` asks in parallel: each is a gate of its own, and none is asked twice."""
    wishes = [{"action_type": "query", "resource": f"table-{number}"} for number in range(12)]
    result = client.evaluate_actions(wishes)
    assert (result.succeeded, result.failed, posts(standing)) == (12, 0, 12)
    assert len({one.decision.action_id for one in result.results}) == 12


def test_an_id_that_is_a_number_stays_one(standing, client):
    """Older servers count their actions: approval is read by number, completion told by it."""
    standing.throw(id_type="int", response_shape="C")
    decision = client.evaluate_action("query", "invoices")
    assert decision.action_id == "1"
    assert client.check_approval("1")["approved"]
    client.log_action_completed("1", {"rows": 1})
    assert standing.drained()["delivered"] == 1
    assert row(standing, "1")["completions"] == 1


# -- denied, pending ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("governance", ["off", "on"])
def test_a_denial_is_the_platform_s(standing, client, governance):
    """In a decision or as a 403 of governance: the SDK reads the platform's own words."""
    standing.throw(decision="denied", governance_403=governance)
    decision = client.evaluate_action("transaction", "bank")
    assert (decision.decision, decision.execution_allowed, posts(standing)) == (Decision.DENIED, False, 1)


def test_what_is_pending_is_waited_for(standing, client):
    """Parked, approved by a person, heard by the SDK's own waiting, and logged."""
    standing.throw(decision="pending")
    parked = client.evaluate_action("transaction", "bank", wait_for_decision=False)
    assert parked.decision is Decision.PENDING
    standing.world.platform.ask(
        lambda: standing.world.platform.sandbox._emulation.act("ascend", parked.action_id, "approve")
    )
    decision = client.wait_for_decision(parked.action_id, timeout=10, poll_interval=0.05)
    assert decision.decision is Decision.ALLOWED
    client.log_action_completed(parked.action_id)
    assert standing.drained()["delivered"] == 1
    assert posts(standing) == 1


# -- without the platform ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_mode", ["closed", "open"])
def test_a_platform_that_is_down_lets_nothing_pass(standing, client, fail_mode):
    """Nothing was sent: one call, the SDK's own error at once, and its fail_mode "open" lets no action pass either."""
    client.fail_mode = FailMode(fail_mode)
    standing.world.platform.down()
    begun = time.monotonic()
    with pytest.raises(AuthorizationError, match="nothing was sent"):
        client.evaluate_action("transaction", "bank")
    assert time.monotonic() - begun < 4
    standing.world.platform.up()
    assert standing.rows() == []


def test_what_became_of_an_action_outlives_platform_and_daemon(standing, client):
    """Allowed; then the platform goes, the daemon is killed, and comes back: completion and heartbeat arrive all the same."""
    decision = client.evaluate_action("query", "invoices")
    standing.world.platform.down()
    assert "logged_locally" not in client.log_action_completed(decision.action_id, {"rows": 1})
    standing.daemon.kill()
    standing.daemon.start()
    other = client.log_action_failed(decision.action_id, "and then it was undone")
    client.heartbeat(error_rate=0.5)
    assert "logged_locally" not in other
    standing.world.platform.up()
    assert standing.drained()["delivered"] == 3
    assert row(standing, decision.action_id)["completions"] == 2


def test_an_unknown_outcome_is_asked_once(standing, client):
    """The platform took the action and the answer was lost: 16 submissions are possible with this SDK, one is made."""
    standing.world.platform.faults(f"cut,face=ascend,path={SUBMIT}")
    with pytest.raises(AuthorizationError, match="may have acted"):
        client.evaluate_action("transaction", "bank")
    standing.world.platform.faults()
    assert (posts(standing), len(standing.rows())) == (1, 1)


def test_an_sdk_that_gives_up_waiting_asks_once(standing, client):
    """Its own timeout is shorter than the platform's answer: what its retry layers repeat joins what was asked first."""
    client.timeout = 0.3
    standing.world.platform.faults(f"latency=1s,face=ascend,path={SUBMIT}")
    decision = client.evaluate_action("query", "invoices")
    standing.world.platform.faults()
    assert (decision.decision, posts(standing), len(standing.rows())) == (Decision.ALLOWED, 1, 1)


@pytest.mark.slow
def test_a_platform_that_hangs_is_asked_once(standing, client):
    """The SDK waits five seconds and then repeats: before that it hears that nothing is known."""
    standing.world.platform.faults(f"hang,face=ascend,path={SUBMIT}")
    begun = time.monotonic()
    with pytest.raises(AuthorizationError, match="do not repeat it"):
        client.evaluate_action("transaction", "bank")
    assert time.monotonic() - begun < 5
    standing.world.platform.faults()
    assert posts(standing) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "latency=30s"])
def test_a_daemon_that_is_killed_before_it_answers_asks_once(standing, client, fault):
    """kill -9 between the submission and its answer: the SDK's layers ask the next daemon, which knows that it was sent."""
    standing.world.platform.faults(f"{fault},face=ascend,path={SUBMIT}")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.evaluate_action, "transaction", "bank")
        wait_for(lambda: posts(standing))
        standing.daemon.kill()
        standing.daemon.start()
        with pytest.raises(AuthorizationError, match="do not repeat it"):
            asking.result(60)
    standing.world.platform.faults()
    assert posts(standing) == 1
    assert len(standing.daemon.entries("gate_repeated")) == 1
    assert client.evaluate_action("transaction", "bank").action_id, "who asks anew after that is answered anew"
    assert posts(standing) == 2


def test_what_was_heard_before_a_kill_is_over(standing, client):
    """The same wish after kill -9 is another action, since the first had its answer."""
    first = client.evaluate_action("query", "invoices")
    client.log_action_completed(first.action_id)  # is on disk when it returns, and so is that the answer was heard
    standing.daemon.kill()
    standing.daemon.start()
    assert client.evaluate_action("query", "invoices").action_id != first.action_id
    assert (posts(standing), standing.daemon.entries("gate_repeated")) == (2, [])


# -- refused -----------------------------------------------------------------------------------------------------------------------


def test_the_control_plane_is_closed(standing, client):
    """Agents, kill switch, webhooks: the SDK's own error says by what."""
    for call in (
        client.register,
        client.deregister,
        lambda: client.trigger_kill_switch(1, "because I can do so"),
        lambda: client.configure_webhook("https://example.com/hook", ["action.denied"]),
    ):
        with pytest.raises(AuthorizationError, match="passthrough"):
            call()
    assert standing.rows() == []


def test_a_token_speaks_for_its_agents_alone(standing, client):
    """Another agent's name is refused, and its actions do not exist for it."""
    client.agent_id = "payroll"
    paid = client.evaluate_action("query", "salaries")
    with AscendClient(api_key=NARROW, agent_id="payroll", agent_name="P", api_url=standing.url) as stranger:
        with pytest.raises(AuthorizationError, match="payroll"):
            stranger.evaluate_action("query", "salaries")
        assert stranger.log_action_completed(paid.action_id)["logged_locally"]
        with pytest.raises(requests.HTTPError, match="404"):
            stranger.get_action_status(paid.action_id)
    assert posts(standing) == 1
    assert standing.drained()["delivered"] == 0


def test_a_thrown_kill_switch_stops_the_agent(standing, client):
    """The switch is the platform's; the SDK polls it through agentd and refuses before it asks."""
    standing.world.platform.ask(
        lambda: standing.world.platform.sandbox._emulation.act("ascend", "kill-switch", "trigger")
    )
    client.start_kill_switch_polling(interval_seconds=3600)
    wait_for(client.is_blocked, 5)
    with pytest.raises(KillSwitchError):
        client.evaluate_action("query", "invoices")
    client.stop_kill_switch_polling()
    assert posts(standing) == 0


def test_what_the_platform_refuses_is_its_own_word(standing, client):
    """A type that it does not know is a ValidationError, as without agentd."""
    with pytest.raises(ValidationError):
        client.evaluate_action("no such type", "invoices")
    assert standing.rows() == []
