"""`agentd audit`: the table, the journal's end, and a finding for each contradiction."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from stopped_kit import StoppedDaemon

from agentd.cli import audit as verb
from agentd.cli import main
from agentd.spool.store import key_of
from agentd.spool.tables import Table


@pytest.fixture
def stopped(tmp_path):
    return StoppedDaemon(tmp_path).fill()


def run(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


def test_a_table_for_each_destination_and_kind(stopped):
    """Admitted and each of the six ends; causes; the journal's reach and newest digest; what clients lost; the verdict."""
    before = stopped.contents()
    lines = run("--config", stopped.config, "audit").stdout.splitlines()
    digest = json.loads(run("--config", stopped.config, "audit", "--json").stdout)["journal"]["digest"]
    assert lines == [
        f"{stopped.state}; as of commit 7",
        "destination  kind       admitted  delivered  queued  dead  purged  shed  quarantined",
        "cloud        event             1          0       1     0       0     0            0",
        "cloud        run.start         1          1       0     0       0     0            0",
        "cloud        task              1          0       0     1       0     0            0",
        "old          event             1          0       1     0       0     0            0",
        "  cloud: dead: rejected 1",
        lines[7],
        f"  newest digest sha256 {digest}",
        "gates on record: 1",
        "clients lost before intake: buffer_full:event 3",
        "the books balance",
    ]
    assert lines[7].startswith("journal: entries 1 to 5 since 2026-01-01T00:00:00Z, ")
    assert stopped.contents() == before


def test_another_folder_needs_no_configuration(stopped, tmp_path, monkeypatch):
    """`--directory` names a state folder: a copy, or one that nobody configures any more."""
    monkeypatch.chdir(tmp_path / "state")
    document = json.loads(run("audit", "--directory", stopped.state, "--json").stdout)
    assert (document["directory"], document["pid"], document["balanced"]) == (str(stopped.state), None, True)
    assert document["books"][0] == {
        "destination": "cloud", "kind": "event", "admitted": 1, "delivered": 0, "queued": 1, "dead": 0, "purged": 0,
        "shed": 0, "quarantined": 0,
    }  # fmt: skip


def test_each_contradiction_is_a_finding(stopped):
    """Exit status 1, and every finding says where and what."""
    stopped.sql("DELETE FROM Cache WHERE key = ?", key_of(Table.DEAD, 1))
    done = run("audit", "--directory", stopped.state, code=1)
    assert done.stdout.splitlines()[-3:] == [
        "error: books of cloud: task: 1 dead for rejected by the books, 0 letters",
        "error: books of cloud: task: 1 admitted, but 0 delivered + 0 queued + 0 dead + 0 purged + 0 shed + 0 quarantined = 0",
        "the books do NOT balance",
    ]
    document = json.loads(run("audit", "--directory", stopped.state, "--json", code=1).stdout)
    assert [finding["severity"] for finding in document["findings"]] == ["error", "error"]


def test_a_spool_without_anything(tmp_path):
    """A new one balances."""
    empty = StoppedDaemon(tmp_path)

    async def nothing():
        pass

    empty._fill = nothing
    empty.fill()
    done = run("audit", "--directory", tmp_path / "state", code=1)
    assert "No such file or directory" in done.stderr
    document = {
        "directory": "d", "pid": 7, "commits": 0, "balanced": True, "books": [], "causes": {}, "gates": 0, "findings": [],
        "journal": {"rows": 0}, "lost_before_intake": {},
    }  # fmt: skip
    assert verb.lines(document) == [
        "d, which the daemon with pid 7 uses; as of commit 0",
        "nothing was ever admitted",
        "journal: no entries",
        "the books balance",
    ]


def test_what_was_refused_at_intake_stands_beside(stopped):
    """It had no destination yet."""
    books = [dict.fromkeys(("admitted", "delivered", "queued", "dead", "purged", "shed", "quarantined"), 1)]
    books[0] |= {"destination": "", "kind": "decision"}
    document = json.loads(run("audit", "--directory", stopped.state, "--json").stdout)
    lines = verb.lines(document | {"books": books, "causes": {"": {"dead": {"invalid": 1}}}})
    assert lines[2].startswith("(intake)     decision")
    assert lines[3] == "  (intake): dead: invalid 1"


def test_what_takes_long_says_how_far_it_is(monkeypatch):
    """Silent at first; then each step is told."""
    times = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(verb.time, "monotonic", lambda: next(times))
    told = []
    tell = verb._slowly(told.append)
    tell("one")
    tell("two")
    assert told == ["two"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_elses_folder_is_refused_politely(stopped, tmp_path):
    """Neither root nor the owner: one line, and exit status 1."""
    shared = Path(tempfile.gettempdir())
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to(shared) and path != shared:
            path.chmod(0o755)
    script = (
        "import os, sys; from agentd.cli import main; import agentd.cli.audit, agentd.control.at_rest, agentd.spool.audit\n"
        "os.setgid(4711); os.setuid(4711)\n"
        f"main(['audit', '--directory', {str(stopped.state)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"agentd: state folder {stopped.state} belongs to uid 0, not to us (uid 4711)\n"
