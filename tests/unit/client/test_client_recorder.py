"""The pytest plugin: no client of a test session speaks to a daemon, and a test sees what its code emitted."""

import subprocess
import sys

TESTS = """
    from agentd import Client

    client = Client(agent_id="made while tests are collected")

    def test_a(agentd_recorder):
        assert client.disabled
        with client.start_run(input={"n": 1}) as run:
            run.emit("a.b", {"x": 1})
            run.emit("c")
            run.start_task("t").complete()
            client.log_decision("d", chosen="x")
            run.complete({"out": 2})
        assert [event["type"] for event in agentd_recorder.events()] == ["a.b", "c"]
        assert agentd_recorder.events("a.b")[0]["payload"] == {"x": 1}
        assert agentd_recorder.decisions[0]["chosen"] == "x"
        run, = agentd_recorder.runs
        assert (run["status"], run["input"], run["output"]) == ("completed", {"n": 1}, {"out": 2})
        assert (len(run["events"]), len(run["tasks"]), len(run["decisions"])) == (2, 2, 1)
        assert len(agentd_recorder.records) == 7
        agentd_recorder.clear()
        assert agentd_recorder.records == agentd_recorder.runs == []

    def test_b(agentd_recorder):
        assert agentd_recorder.records == []
        client.start_run()
        assert agentd_recorder.runs[0]["status"] == "running"

    def test_c():
        client.start_run()

    def test_d(agentd_live):
        live = Client(socket="/nonexistent")
        assert not live.disabled
        live.close(0)
"""
LIVE = """
    from agentd import Client

    def test_live(agentd_recorder):
        client = Client(socket="/nonexistent", exit_timeout=0)
        assert not client.disabled
        client.start_run()
        assert client.stats().emitted == len(agentd_recorder.records) == 1
        client.close()
"""
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:asyncio")


def test_a_session_records_and_sends_nothing(pytester):
    """`agentd_recorder` hands a test what its code emitted, through clients made earlier as well, and each test begins anew."""
    pytester.makepyfile(TESTS)
    pytester.runpytest(*OPTIONS).assert_outcomes(passed=4)


def test_live_clients_on_the_command_line(pytester):
    """`--agentd-live` leaves clients as they are, and the recorder still listens."""
    pytester.makepyfile(LIVE)
    pytester.runpytest(*OPTIONS).assert_outcomes(failed=1)
    pytester.runpytest(*OPTIONS, "--agentd-live").assert_outcomes(passed=1)


def test_live_clients_by_the_ini_key(pytester):
    """`agentd_live = true` does the same for a whole project."""
    pytester.makepyfile(LIVE)
    pytester.makeini("[pytest]\nagentd_live = true\n")
    pytester.runpytest(*OPTIONS).assert_outcomes(passed=1)


def test_the_plugin_loads_no_client():
    """Test suites that never use agentd pay for two small modules."""
    code = "import sys, agentd.client.recorder; print(sorted(m for m in sys.modules if m.startswith(('agentd', 'msgspec'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "['agentd', 'agentd.client', 'agentd.client.mode', 'agentd.client.recorder']"
