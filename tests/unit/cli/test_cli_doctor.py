"""What `agentd doctor` prints: what was looked at, why and what to do, and how it stands in one line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.doctor import screen
from agentd.doctor import examination
from agentd.doctor.findings import fail, ok, warn


def test_a_screen():
    """Aligned, with cause and cure below what they are about."""
    findings = [
        ok("disk", "free"),
        warn("dead letters", "3", "refused", "list them"),
        fail("socket", "gone", "stale", "start it"),
    ]
    assert list(screen(findings)) == [
        "ok    disk          free",
        "warn  dead letters  3",
        "                    because: refused",
        "                    do:      list them",
        "fail  socket        gone",
        "                    because: stale",
        "                    do:      start it",
        "",
        "1 to mend, 1 to look at, 1 fine",
    ]


@pytest.mark.parametrize(
    ("findings", "last"),
    [([ok("a", "b")], "all is well: 1 looked at"), ([warn("a", "b", "c", "d")], "nothing fails, 1 to look at, 0 fine")],
)
def test_how_it_stands(findings, last):
    """The last line is the whole."""
    assert list(screen(findings))[-1] == last


@pytest.mark.parametrize(
    ("finding", "status"), [(ok("a", "b"), 0), (warn("a", "b", "c", "d"), 0), (fail("a", "b", "c", "d"), 1)]
)
def test_the_exit_status_is_for_scripts(monkeypatch, tmp_path, finding, status):
    """1 if something fails; `--json` is an array."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examination, "examine", lambda *_, **__: [finding])
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == status
    assert [one["level"] for one in json.loads(done.stdout)] == [finding.level]
