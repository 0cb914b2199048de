"""Verbs that read a daemon's books where none runs: from the folder that it left, and without changing anything in it."""

import fcntl
import json
import os

import pytest
from click.testing import CliRunner
from stopped_kit import GATE, NOW, StoppedDaemon

from agentd.cli import main
from agentd.spool.store import key_of
from agentd.spool.tables import Table
from agentd.units import rfc3339

EVENT, TASK = "00000000-0000-0000-0000-000000000002", "00000000-0000-0000-0000-000000000003"


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A folder with a bit of everything; whatever a test does, nothing in it changes."""
    monkeypatch.delenv("AGENTD_SOCKET", raising=False)
    made = StoppedDaemon(tmp_path).fill()
    before = made.contents()
    yield made
    if not getattr(made, "lied", False):
        assert made.contents() == before


def run(stopped, *arguments, code=0):
    done = CliRunner().invoke(main, ["--config", str(stopped.config), *arguments])
    assert done.exit_code == code, done.output
    return done


def said(stopped):
    return f"agentd: no daemon at {stopped.socket}: reading {stopped.state}, which a stopped one left\n"


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_says_what_the_disk_knows(stopped):
    """Books, queue, oldest record, dead letters, bytes and free space; a line and the exit code say that it is the disk that speaks."""
    done = run(stopped, "status", "--json", code=1)
    assert done.stderr == said(stopped)
    status = json.loads(done.stdout)
    assert (status["state"], status["pid"], status["uptime_s"], status["balanced"]) == ("stopped", None, None, True)
    cloud = status["destinations"]["cloud"]
    assert {name: cloud[name] for name in ("state", "admitted", "queued", "delivered", "dead", "causes", "gates")} == {
        "state": "stopped", "admitted": 3, "queued": 1, "delivered": 1, "dead": 1, "causes": {"dead": {"rejected": 1}},
        "gates": {"open": 1},
    }  # fmt: skip
    assert cloud["queued_bytes"] > 0
    assert cloud["oldest_age_s"] > 0
    assert (status["dead_letters"]["records"], status["spool"]["segments"]) == (1, 2)
    assert status["spool"]["disk_free_bytes"] > 0
    assert status["intake"]["lost_before_intake"] == {"buffer_full:event": 3}


def test_status_names_destinations_of_the_configuration_and_of_the_queue(stopped):
    """One that was configured since has nothing yet; one that was taken out keeps its queue."""
    destinations = json.loads(run(stopped, "status", "--json", code=1).stdout)["destinations"]
    assert list(destinations) == ["cloud", "fresh", "old"]
    assert (destinations["fresh"]["admitted"], destinations["fresh"]["balanced"]) == (0, True)
    assert (destinations["old"]["state"], destinations["old"]["queued"]) == ("removed", 1)


def test_status_for_people(stopped):
    """The same screen, without what only a daemon that runs has."""
    lines = run(stopped, "status", code=1).stdout.splitlines()
    assert lines[0].endswith("  stopped")
    assert "  lost    before intake, by what clients say: buffer_full:event 3" in lines
    assert not any(line.startswith("  memory") for line in lines)
    assert "    gates: 1 open" in lines
    assert lines[-1].startswith("books balance")


def test_status_does_not_mend_the_books(stopped):
    """What a start would put right is shown as it is."""
    stopped.lied = True
    (key,) = (
        key
        for (key,) in stopped.sql("SELECT key FROM Cache WHERE key >= ? ORDER BY key LIMIT 1", key_of(Table.SEGMENT, 0))
    )
    stopped.sql("DELETE FROM Cache WHERE key = ?", key)
    status = json.loads(run(stopped, "status", "--json", code=1).stdout)
    assert (status["balanced"], status["destinations"]["cloud"]["balanced"]) == (False, False)
    assert run(stopped, "status", code=1).stdout.splitlines()[-1] == "books do NOT balance: cloud"


def test_a_daemon_that_uses_the_folder_and_does_not_answer(stopped):
    """It is named: whoever reads the answer should know that somebody writes there."""
    with (stopped.state / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(stopped, "status", "--json", code=1)
    assert f"which the one with pid {os.getpid()} uses" in done.stderr
    status = json.loads(done.stdout)
    assert (status["state"], status["pid"]) == ("not answering", os.getpid())


def test_where_nothing_was_ever_kept(tmp_path):
    """No daemon and no spool: the usual sentence, and no folder is made."""
    nothing = StoppedDaemon(tmp_path)
    done = run(nothing, "status", code=1)
    assert done.output == f"agentd: no daemon at {nothing.socket}: start one with 'agentd run'\n"
    nothing.state.mkdir()
    run(nothing, "status", code=1)
    assert list(nothing.state.iterdir()) == []


# -- where -------------------------------------------------------------------------------------------------------------


def test_where_on_a_stopped_daemon(stopped):
    """The same document as `GET /v1/records/{id}`, with what a lane waits for as far as the disk says it."""
    done = run(stopped, "where", EVENT, "--json")
    assert done.stderr == said(stopped)
    document = json.loads(done.stdout)
    (there,) = document["records"][0]["destinations"]
    assert (document["is"], there["state"], there["number"], there["waits"]["for"]) == (
        ["record"],
        "queued",
        2,
        "daemon",
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("r", ["r: run", "run r at cloud: known, there p-1; 1 delivered, 1 queued, 1 dead"]),
        ("p-1", ["p-1: run by the platform's id"]),
        ("start-key", ["start-key: idempotency key"]),
        (
            TASK,
            [": rejected: 400 no (letter 1, key task-key, 2 tries)", "queued (entry 2)", "dead: rejected (entry 4)"],
        ),
        ("pay-7", ["pay-7: key of a gate", f"gate {GATE}: decide at cloud: pending"]),
        (GATE, [f"{GATE}: gate", "cloud: open "]),
    ],
)
def test_where_for_people(stopped, asked, expected):
    """What the name is, what it is called at the platform, and each record with its story."""
    text = run(stopped, "where", asked).stdout
    for words in expected:
        assert words in text


def test_where_nothing_is_known(stopped):
    """Exit status 1, how far the journal goes back, and that delivered telemetry leaves no entry."""
    done = run(stopped, "where", "nonsense", code=1)
    assert f"nothing is known of 'nonsense': the journal goes back to {rfc3339(NOW / 1e6)[:19]}" in done.stderr
    assert "leave no entry of their own" in done.stderr


# -- gates -------------------------------------------------------------------------------------------------------------


def test_gates_on_a_stopped_daemon(stopped):
    """Those on record, and one of them with its question."""
    listed = json.loads(run(stopped, "gates", "list", "--json").stdout)
    assert [gate["gate_id"] for gate in listed] == [GATE]
    assert json.loads(run(stopped, "gates", "list", "--state", "final", "--json").stdout) == []
    assert "pending" in run(stopped, "gates", "list", "--state", "open").stdout
    shown = json.loads(run(stopped, "gates", "show", GATE, "--json").stdout)
    assert shown["request"] == {"amount": 5}
    done = run(stopped, "gates", "show", "nonesuch", code=1)
    assert "agentd: no gate 'nonesuch' is on record" in done.stderr


def test_a_damaged_gate_is_shown_by_its_tag(stopped):
    """Of one whose row can't be read its key is known, and that it may have acted."""
    stopped.lied = True
    stopped.sql("UPDATE Cache SET value = x'00' WHERE key = ?", key_of(Table.GATE, 1))
    (gate,) = json.loads(run(stopped, "gates", "list", "--json").stdout)
    assert (gate["key"], gate["verdict"], gate["acted"]) == ("pay-7", "unavailable", True)


def test_resolving_needs_a_daemon(stopped):
    """Nothing is written where none runs."""
    done = run(stopped, "gates", "resolve", GATE, "allow", code=1)
    assert "start one with 'agentd run'" in done.stderr
