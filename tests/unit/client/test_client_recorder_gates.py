"""Gates in a test session: nothing scripted allows nothing, what is scripted is heard, and what was asked is kept."""

import asyncio
import json

import pytest

from agentd import AsyncClient, Client, GateDenied, GateKeyConflict, GateTimeout, current_run


@pytest.fixture
def client():
    return Client(agent_id="billing")


def test_nothing_scripted(client, agentd_recorder):
    """Unavailable, does not proceed, and the reason says what to write."""
    found = client.gate("decide", {})
    assert (found.verdict, found.proceed, found.disabled) == ("unavailable", False, True)
    assert "agentd_recorder.answer('decide', 'allow')" in found.reason
    assert agentd_recorder.gates[0].verdict == found
    assert Client(disabled=True).gate("decide", {}).allowed, "turned off in code still allows"


def test_without_the_fixture_too(client):
    """A test that never heard of the recorder gets the same."""
    assert client.gate("decide", {}).unavailable
    with pytest.raises(GateDenied, match="scripted"):
        client.request_human_input("?")


@pytest.mark.parametrize(
    ("word", "proceeds"),
    [("allow", True), ("deny", False), ("review", False), ("pending", False), ("unavailable", False)],
)
def test_each_word(client, agentd_recorder, word, proceeds):
    """The verdict is the scripted one, looks like the daemon's, and is not marked as disabled."""
    agentd_recorder.answer("decide", word, response={"verdict": "x"}, id="d-1", platform_id="dec_1", reason="because")
    found = client.gate("decide", {"n": 1}, to="fyi")
    assert (found.verdict, found.proceed, found.disabled) == (word, proceeds, False)
    assert (found.id, found.platform_id, found.reason, found.response) == ("d-1", "dec_1", "because", {"verdict": "x"})
    assert (found.gate, found.destination, found.final) == ("decide", "fyi", word != "pending")
    assert found.gate_id


def test_what_was_asked(client, agentd_recorder):
    """Name, request, key, run, agent, destination, deadline and verdict; `clear` forgets them."""
    agentd_recorder.answer("decide", "allow")
    with client.start_run(run_id="r-1"):
        found = client.gate("decide", {"rows": {1}}, key="k", to="fyi", deadline=3)
    (asked,) = agentd_recorder.gates
    assert asked == ("decide", {"rows": [1]}, "k", "r-1", found, "billing", "fyi", 3.0)
    assert asked.verdict is found
    agentd_recorder.clear()
    assert agentd_recorder.gates == []
    assert client.gate("decide", {})


def test_answers_in_a_row(client, agentd_recorder):
    """Those with `times` come first and in order; the one without stays, and the newer one replaces it."""
    agentd_recorder.answer("decide", "allow")
    agentd_recorder.answer("decide", "deny", times=2)
    agentd_recorder.answer("decide", "review", times=1)
    words = [client.gate("decide", {}).verdict for _ in range(5)]
    assert words == ["deny", "deny", "review", "allow", "allow"]
    agentd_recorder.answer("decide", "unavailable", fail_open=True)
    opened = client.gate("decide", {})
    assert opened.proceed
    assert opened.fail_open


def test_a_function_of_the_request(client, agentd_recorder):
    """It gives the word, a dict with more, or None for the next answer."""

    def judge(request):
        if request.get("amount", 0) > 100:
            return {"verdict": "deny", "reason": "over the limit"}
        return "review" if "amount" in request else None

    agentd_recorder.answer("*", "allow")
    agentd_recorder.answer("action", judge)
    found = [client.gate("action", request) for request in ({"amount": 500}, {"amount": 5}, {})]
    assert [verdict.verdict for verdict in found] == ["deny", "review", "allow"]
    assert found[0].reason == "over the limit"


def test_a_key_works_as_with_a_daemon(client, agentd_recorder):
    """The same request under it gets the recorded verdict, another one a conflict."""
    agentd_recorder.answer("action", "allow", times=1)
    agentd_recorder.answer("action", "deny")
    first = client.gate("action", {"n": 1}, key="k")
    again = client.gate("action", {"n": 1}, key="k")
    assert again.allowed
    assert again.repeated
    assert again.id == first.id
    assert client.gate("action", {"n": 1}).denied
    with pytest.raises(GateKeyConflict, match="used for another request"):
        client.gate("action", {"n": 2}, key="k")


def test_what_is_decided_later(client, agentd_recorder):
    """`then` is what a wait hears; without it nobody ever decides, and no time passes."""
    agentd_recorder.answer("intent", "pending", then="allow", times=1)
    agentd_recorder.answer("intent", "pending")
    decided = client.submit_intent(1, "EUR", "r")
    assert decided.pending
    assert client.wait_for_decision(decided).proceed
    assert client.wait(decided.gate_id).allowed
    open_one = client.submit_intent(1, "EUR", "r")
    with pytest.raises(GateTimeout):
        client.wait_for_decision(open_one, timeout=3600)
    assert client.wait(open_one.gate_id).pending
    assert client.wait("never-asked").unavailable


def test_a_persons_answer(client, agentd_recorder):
    """The text, nobody in time, and a cancelled question."""
    agentd_recorder.answer("human_input", "allow", response={"input": "go"}, times=1)
    agentd_recorder.answer("human_input", "pending", times=1)
    agentd_recorder.answer("human_input", "deny")
    assert client.request_human_input("Go?") == "go"
    with pytest.raises(TimeoutError):
        client.request_human_input("Go?")
    with pytest.raises(PermissionError):
        client.request_human_input("Go?")


@pytest.mark.parametrize(("timeout", "given", "deadline"), [(30, 30, 35), (0.2, 1, 5.2), (86_398, 86_398, 86_400)])
def test_a_persons_time_ends_before_the_deadline(client, agentd_recorder, timeout, given, deadline):
    """So that the platform's word that nobody replied comes in time; no deadline is longer than the daemon takes."""
    agentd_recorder.answer("human_input", "allow", response={"input": "go"})
    client.request_human_input("Go?", timeout=timeout)
    (asked,) = agentd_recorder.gates
    assert (asked.request["timeout_seconds"], asked.deadline) == (given, pytest.approx(deadline))
    with pytest.raises(ValueError, match="timeout"):
        client.request_human_input("Go?", timeout=-1)


def test_the_async_client(agentd_recorder):
    """The same script for both."""
    agentd_recorder.answer("action", "allow")

    async def work():
        async with AsyncClient() as client, client.start_run():
            assert await client.evaluate_action("a", "r")
            return await client.execute_if_authorized("a", "r", lambda: current_run().run_id)

    assert asyncio.run(work()) == agentd_recorder.gates[0].run_id
    assert [record["kind"] for record in agentd_recorder.of_kind("action.completed")] == ["action.completed"]


@pytest.mark.parametrize(
    ("gate", "verdict", "options", "words"),
    [
        ("decide", "permit", {}, "no verdict 'permit'"),
        ("decide", None, {}, "no verdict None"),
        ("decide", "allow", {"times": 0}, "times must be at least 1"),
        ("decide", "allow", {"verdcit": 1}, "unknown 'verdcit'"),
        ("decide", "allow", {"fail_open": True}, "'unavailable' alone"),
        ("decide", "pending", {"then": "permit"}, "no verdict 'permit'"),
    ],
)
def test_answers_that_no_gate_could_give(agentd_recorder, gate, verdict, options, words):
    """A mistake in a test is said where it is made."""
    with pytest.raises(ValueError, match=words):
        agentd_recorder.answer(gate, verdict, **options)


TESTS = """
    from agentd import Client, gated

    client = Client()

    @gated("action", action_type="query", resource="db")
    def act():
        return 1

    def test_scripted(agentd_recorder):
        agentd_recorder.answer("action", "allow")
        assert act() == 1
        assert agentd_recorder.gates[0].request == {"action_type": "query", "resource": "db"}

    def test_answers_end_with_their_test(agentd_recorder):
        assert client.gate("action", {}).unavailable
        assert len(agentd_recorder.gates) == 1

    def test_live(agentd_live, agentd_recorder, tmp_path):
        agentd_recorder.answer("action", "allow")
        found = Client(socket=str(tmp_path / "none")).gate("action", {"n": 1})
        assert found.unavailable and "agentd run" in found.reason
        assert agentd_recorder.gates[0].verdict is found
"""


def test_answers_end_with_their_test(pytester):
    """Each test has a script of its own; a live client asks the daemon, and the recorder hears of it all the same."""
    pytester.makepyfile(TESTS)
    pytester.runpytest("-p", "no:cacheprovider", "-p", "no:asyncio").assert_outcomes(passed=3)


def test_verdicts_show_what_they_are(client, agentd_recorder):
    """A verdict can be logged and encoded like any payload."""
    agentd_recorder.answer("decide", "allow", id="d-1")
    found = client.gate("decide", {})
    assert "verdict='allow'" in repr(found)
    with client.start_run() as run:
        run.emit("decided", found)
    payload = agentd_recorder.events("decided")[0]["payload"]
    assert json.loads(json.dumps(payload))["id"] == "d-1"
