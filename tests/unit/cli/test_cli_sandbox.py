"""`agentd sandbox`: a real process on a real port, until it is told to go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner

from agentd.cli import main


@pytest.fixture
def start():
    """Start `agentd sandbox` on a free port with these words; ended, if the test has not done so."""
    started = []

    def begin(*words):
        child = subprocess.Popen(
            [sys.executable, "-m", "agentd", "sandbox", "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def _document(child):
    text = ""
    for line in child.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(child.stderr.read())


def _post(environment, path):
    request = urllib.request.Request(
        environment["AGENTOS_BASE_URL"] + path,
        data=json.dumps({"agent_id": environment["AGENTOS_AGENT_ID"]}).encode(),
        headers={"Authorization": f"Bearer {environment['AGENTOS_API_KEY']}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_go(start, number):
    """The printed environment is all that a client needs; SIGINT and SIGTERM end it with 0 and without a word."""
    child = start("--json")
    document = _document(child)
    assert _post(document["environment"], "/api/ingest/v1/run/start")["data"]["run_id"]
    with urllib.request.urlopen(document["page"], timeout=10) as page:
        assert page.status == 200
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (0, "", "")


def test_faults_and_switches_are_in_force(start):
    """`--fault` and `--set` reach the sandbox."""
    child = start("--json", "--fault", "status=503,count=1", "--set", "agentos.late_events=409", "--seed", "7")
    document = _document(child)
    with pytest.raises(urllib.error.HTTPError, match="503") as refused:
        _post(document["environment"], "/api/ingest/v1/run/start")
    refused.value.close()
    assert _post(document["environment"], "/api/ingest/v1/run/start")["data"]["run_id"]
    with urllib.request.urlopen(f"{document['url']}/_sandbox/switches", timeout=10) as answer:
        assert json.load(answer)["agentos"]["late_events"] == "409"
    with urllib.request.urlopen(f"{document['url']}/_sandbox/state", timeout=10) as answer:
        assert json.load(answer)["seed"] == 7


def test_lines_to_paste(start):
    """For people: where to look, and export lines for a shell."""
    child = start()
    lines = [child.stdout.readline() for _ in range(2)]
    assert "/_sandbox/ shows what it has received" in lines[0]
    while not lines[-1].startswith("export ASCEND_AGENT_ID="):
        lines.append(child.stdout.readline())
        assert lines[-1].startswith("export ")
    exported = [line.partition("=")[0] for line in lines[2:]]
    for platform, url in (("AEGIS", "AEGIS_API_URL"), ("AGENTOS", "AGENTOS_BASE_URL"), ("ASCEND", "ASCEND_API_URL")):
        first = exported.index(f"export {url}")
        assert exported[first + 1 : first + 3] == [f"export {platform}_API_KEY", f"export {platform}_AGENT_ID"]


def test_a_port_that_is_taken(start):
    """One line names the port, exit 1."""
    port = _document(start("--json"))["url"].rpartition(":")[2]
    result = CliRunner().invoke(main, ["sandbox", "--port", port])
    assert (result.exit_code, result.output) == (1, f"agentd: 127.0.0.1:{port}: Address already in use\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fault", "nonsense"], "expected a fault such as"),
        (["--set", "nonsense"], "expected a switch such as"),
        (["--set", "agentos.no_such=1"], "no switch 'no_such'"),
    ],
)
def test_words_that_make_no_sense_are_usage_errors(words, message):
    """A fault or switch that can't be read ends with 2 before anything is bound."""
    result = CliRunner().invoke(main, ["sandbox", *words])
    assert result.exit_code == 2
    assert message in result.output
