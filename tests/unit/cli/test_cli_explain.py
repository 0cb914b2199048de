"""`agentd explain`: what would become of records, said by the daemon's own code, with nothing sent, opened or written."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.explain import ranges, read
from agentd.errors import RecordError, UsageError

CONFIG = """
[batch]
max_events = 3
[destinations.agentos]
platform = "agentos"
agent_id = "6adea1a6-2973-5c67-a1ed-967b60bcbdf0"
api_key = { env = "NOT_SET" }
[destinations.log]
platform = "decisionos"
base_url = "http://127.0.0.1:4400/decisionos/"
agents = { "billing-*" = "agent-7" }
api_key = { file = "/nowhere/key" }
[destinations.decidefyi]
platform = "decidefyi"
api_key = { env = "NOT_SET" }
[destinations.ascend]
platform = "ascend"
agent_id = "bot"
api_key = { env = "NOT_SET" }
signing_secret = { credential = "nowhere" }
[destinations.aegis]
platform = "aegis"
api_key = { env = "NOT_SET" }
"""
START = {"kind": "run.start", "run_id": "r"}
DECISION = {"kind": "decision", "context": "Route", "decision_id": "d", "agent_id": "billing-1"}
SNAPSHOT = {"kind": "snapshot", "decision_id": "d", "snapshot": {"a": 1}}


def event(**fields):
    return {"kind": "event", "run_id": "r", "type": "hello", **fields}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`agentd explain -` with records on standard input, in an empty folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AGENTD_SOCKET", "AGENTD_CONFIG", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "agentd.toml"
    path.write_text(CONFIG)

    def invoke(records, *arguments, config=None):
        if config is not None:
            path.write_text(config)
        data = records if isinstance(records, bytes | str) else json.dumps(records)
        return CliRunner().invoke(main, ["--config", str(path), "explain", "-", *arguments], data)

    return invoke


@pytest.fixture
def told(run):
    """What `--json` says of records."""

    def ask(records):
        done = run(records, "--json")
        assert done.exit_code in {0, 1}, done.output
        return json.loads(done.stdout)

    return ask


def requests(document, destination):
    """(path, records, decoded body) of a destination's requests."""
    outlook = document["destinations"][destination]
    base = outlook["base_url"].rstrip("/")
    return [(r["url"].removeprefix(base), r["records"], json.loads(r["body"])) for r in outlook["requests"]]


def unsent(document, destination):
    return [(one["record"], one["cause"]) for one in document["destinations"][destination]["unsent"]]


def test_a_verdict_that_no_daemon_gave_is_named_in_vain(told):
    """§4: a record that names a gate which no platform knows is dead, cause `gate_unavailable`, here as in the daemon."""
    document = told([{"kind": "action.completed", "action_id": "no-gate:1"}])
    assert unsent(document, "ascend") == [(1, "gate_unavailable")]
    assert requests(document, "ascend") == []


# -- where records go -------------------------------------------------------------------------------------------------------


def test_it_says_where_each_record_goes(told):
    """Each record is shown with its destinations by the configuration: kind, agent and `to`."""
    found = told([START, DECISION, {"kind": "heartbeat"}, event(to="agentos")])["records"]
    assert [(one["kind"], one["to"]) for one in found] == [
        ("run.start", ["agentos"]), ("decision", ["log"]), ("heartbeat", ["ascend"]), ("event", ["agentos"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (event(level="loud"), "$.level: expected one of debug, info, warn, error"),
        ({"kind": "run.begin"}, "$.kind: expected one of run.start"),
        (DECISION | {"agent_id": "north"}, "$.agent_id: no destination takes decision of agent 'north'"),
        (event(to="nowhere"), "$.to: no destination 'nowhere'; configured: aegis, agentos"),
        (event(payload={"a": "x" * 2**20}), "above intake.max_record_bytes"),
    ],
)
def test_it_says_what_would_be_refused_and_why(told, record, why):
    """A refusal is the daemon's own, in its words, and costs the record's neighbours nothing."""
    document = told([START, record])
    assert why in document["records"][1]["refused"]
    assert [path for path, *_ in requests(document, "agentos")] == ["/api/ingest/v1/run/start"]


def test_a_run_of_another_agent_is_refused(told):
    """A reference belongs to the agent that introduced it, also among the records of one file."""
    document = told([START | {"agent_id": "a"}, event(agent_id="b")])
    assert document["records"][1]["refused"] == "$.run_id: belongs to agent 'a'"


def test_a_repeat_is_told_apart(told, run):
    """A record that comes again under its id is accepted and stored once; other content under it is refused."""
    first = event(id="11111111-1111-4111-8111-111111111111")
    document = told([START, first, first, first | {"type": "other"}])
    assert document["records"][2] == {"record": 3, "kind": "event", "repeats": True}
    assert "was used for other content" in document["records"][3]["refused"]
    assert "seen before" in run([first, first]).stdout


# -- requests ---------------------------------------------------------------------------------------------------------------


def test_requests_come_in_order_and_in_batches(told):
    """Batches are those of the configuration; what is sent alone sends what is before it, and run.start goes first."""
    document = told([event(), START, *(event() for _ in range(4)), {"kind": "run.complete", "run_id": "r"}])
    assert [(path.rpartition("/")[2], records) for path, records, _ in requests(document, "agentos")] == [
        ("start", [2]), ("events", [1, 3, 4]), ("events", [5, 6]), ("complete", [7])
    ]  # fmt: skip


def test_ids_that_are_not_known_yet_are_placeholders(told):
    """What the platform will name is shown as such, also where the record that needs it came first."""
    document = told([SNAPSHOT | {"agent_id": "billing-1"}, DECISION, START, event()])
    (_, made, sent), (_, later, snapshot) = requests(document, "log")
    assert (made, later) == ([2], [1])
    assert (sent["agentId"], snapshot["decisionId"]) == ("agent-7", "<decision d>")
    assert requests(document, "agentos")[1][2]["run_id"] == "<run r>"


def test_an_id_that_nobody_introduces_goes_as_it_is_after_a_wait(told):
    """A decision of the platform's own is used as it is once `reference_wait` is over."""
    document = told({"kind": "execution", "decision_id": "dec_1", "execution_status": "executed"})
    (request,) = document["destinations"]["decidefyi"]["requests"]
    assert request["url"] == "https://www.decide.fyi/api/decision/dec_1/execution"
    assert request["after_s"] == pytest.approx(2.0)


def test_requests_carry_their_headers_and_no_secret(told):
    """Headers are those of delivery; keys are masked, and so is what is made with them. No secret is even read."""
    document = told([DECISION, {"kind": "heartbeat"}])
    (decision,), (heartbeat,) = (document["destinations"][name]["requests"] for name in ("log", "ascend"))
    assert decision["method"] == "POST"
    assert decision["url"] == "http://127.0.0.1:4400/decisionos/api/public/v1/decisions"
    assert decision["headers"]["authorization"] == "Bearer ***"
    assert decision["headers"]["idempotency-key"] == json.loads(decision["body"])["requestId"]
    assert decision["headers"]["content-type"] == "application/json"
    assert heartbeat["headers"]["x-api-key"] == "***"
    assert heartbeat["headers"]["x-signature"] == "***"


def test_what_no_platform_can_be_told_is_named(told):
    """A record that the adapter can't say is dead alone, what it would have introduced is dead with it, a stale one is shed."""
    blank = [DECISION | {"context": " "}, SNAPSHOT, DECISION | {"decision_id": "e"}]
    outcome = {"kind": "outcome", "decision_id": "..", "outcome_status": "ok"}
    beats = [{"kind": "heartbeat", "status": str(n)} for n in range(3)]
    document = told([*blank, outcome, *beats])
    assert unsent(document, "log") == [(1, "unencodable"), (2, "introducer_dead")]
    assert unsent(document, "decidefyi") == [(4, "unencodable")]
    assert unsent(document, "ascend") == [(5, "stale"), (6, "stale")]
    assert [records for _, records, _ in requests(document, "log")] == [[3]]
    assert [records for _, records, _ in requests(document, "ascend")] == [[7]]


def test_runs_that_are_each_others_parents_do_not_hang_it(told):
    """Two runs that name one another are both sent: the second reference is left out after the wait, as by the daemon."""
    both = [START | {"parent_run_id": "s"}, {"kind": "run.start", "run_id": "s", "parent_run_id": "r"}]
    assert {records[0] for _, records, _ in requests(told(both), "agentos")} == {1, 2}


# -- input and output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([START, event()]),
        json.dumps({"seq": 1, "records": [START, event()]}),
        json.dumps([START, event()], indent=2),
        f"{json.dumps(START)}\n\n{json.dumps(event())}\n",
        f"\n{json.dumps([START])}\r\n{json.dumps(event())}",
    ],
)
def test_records_come_as_one_an_array_or_lines(text):
    """JSON, also over many lines, an array, an envelope or NDJSON: the same records."""
    assert [type(item).__name__ for item in read(text.encode())] == ["RunStart", "Event"]


def test_a_bad_line_costs_itself():
    """A line that is no JSON is refused with its number; the others are read."""
    good, bad, last = read(f"{json.dumps(START)}\n{{oops\n{json.dumps(event())}".encode())
    assert isinstance(bad, RecordError)
    assert str(bad).startswith("line 2: ")
    assert not isinstance(good, RecordError)
    assert not isinstance(last, RecordError)


@pytest.mark.parametrize("text", [b"", b" \n", b"nonsense", b'{\n"kind": oops\n}', b'{"hello": 1}', b"\xff\n\xff"])
def test_what_holds_no_record_is_a_usage_error(run, text):
    """A file without a single record ends with one line on standard error and exit code 2."""
    with pytest.raises(UsageError):
        read(text)
    done = run(text)
    assert (done.exit_code, done.stdout) == (2, "")


def test_the_exit_code_says_whether_all_would_arrive(run):
    """0 if everything would be sent, 1 if anything would be refused or dead; a heartbeat that is replaced is no loss."""
    assert run([START, event()]).exit_code == 0
    assert run([{"kind": "heartbeat"}, {"kind": "heartbeat"}]).exit_code == 0
    assert run([START, event(level="loud")]).exit_code == 1
    assert run([DECISION | {"context": ""}]).exit_code == 1


def test_it_reads_well(run):
    """People get the records' fates and the requests, one destination after the other."""
    lines = run([START, event(), event(), event(level="loud")]).stdout.splitlines()
    assert lines[:2] == ["record 1  run.start  to agentos", "record 2  event      to agentos"]
    assert lines[3].startswith("record 4             refused: $.level")
    assert "agentos: 2 requests to agentos at https://agentos-ai.dev" in lines
    assert "  POST https://agentos-ai.dev/api/ingest/v1/events   (records 2-3)" in lines
    assert "aegis: 0 requests to aegis at https://api.aegis-os.com" in lines


def test_numbers_are_told_in_ranges():
    """Records that follow one another are told as a range."""
    assert ranges([2, 3, 4, 7, 9, 10]) == "2-4, 7, 9-10"


def test_a_configuration_that_would_not_run_is_an_error(run):
    """Without a destination, with an unknown platform or without a key it is exit code 78, as for the daemon."""
    for config in ("[batch]", '[destinations.x]\nplatform = "nonesuch"', '[destinations.x]\nplatform = "agentos"'):
        assert run(START, config=config).exit_code == 78


def test_nothing_is_opened_or_sent(run, monkeypatch, tmp_path):
    """No socket, no event loop, no file but the configuration: the state folder is not even made."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("it reached for the world")

    monkeypatch.setattr("agentd.daemon.open_spool", refuse)  # loads the daemon, whose libraries want their sockets
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(asyncio, "run", refuse)
    assert run([START, DECISION, SNAPSHOT]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["agentd.toml"]


def test_it_is_a_verb_of_the_command_line(tmp_path):
    """`agentd explain FILE` works from a shell, with the platforms' own variables as configuration."""
    file = tmp_path / "records.ndjson"
    file.write_text(json.dumps(START))
    env = {"AGENTOS_API_KEY": "very-secret", "HOME": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "explain", str(file)],
        capture_output=True, text=True, env=env, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is not sent: unencodable: run.start names no agent_id" in done.stdout
    assert "very-secret" not in done.stdout + done.stderr
