"""`agentd status` for people and for scripts: what is drawn from the daemon's answer, and the exit code."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from screens_kit import AT_REST, CALM, LEAST, TROUBLED, drawn

from agentd.cli import main, terminal
from agentd.cli.ask import Daemon
from agentd.cli.health import exit_code, troubles
from agentd.cli.layout import bar, cut, length, rate, wrapped
from agentd.cli.status import read_status, screen
from agentd.errors import StateError


def _status(**there):
    return read_status(LEAST | {"destinations": {"agentos": {"platform": "agentos", "state": "ok", **there}}})


# -- the screen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "document", "width"),
    [("status-calm", CALM, 80), ("status-troubled", TROUBLED, 80), ("status-wide", TROUBLED, None), ("status-stopped", AT_REST, 80)],
)  # fmt: skip
def test_the_screen(name, document, width):
    """The screens as they are meant to look: what is wrong stands where it belongs, and nothing is wider than the terminal."""
    lines = screen(read_status(document), width)
    assert "\n".join(lines) + "\n" == drawn(name)
    assert width is None or max(map(length, lines)) <= width


def test_books_that_balance():
    """Every admitted record is somewhere."""
    lines = screen(_status(admitted=10, delivered=6, queued=1, dead=1, shed=1, purged=1))
    assert lines[-1].startswith("books balance")


def test_books_are_added_up_here_too():
    """More ends than beginnings can't be, whatever the daemon thinks of its books."""
    lines = screen(_status(admitted=10, delivered=11, balanced=True))
    assert lines[-1] == "books do NOT balance: agentos"


def test_records_on_their_way_to_the_disk_are_no_fault():
    """A record is admitted a moment before it is queued: that moment is named, not reported as a loss."""
    status = _status(admitted=10, delivered=6)
    assert screen(status)[-1] == "books balance: 10 admitted = 6 delivered + 0 queued + 0 dead + 4 being written"
    assert troubles(status) == []


def test_an_answer_that_is_no_status():
    """Something else that answers is an error with a sentence, not a traceback."""
    with pytest.raises(StateError, match="no status of agentd"):
        read_status({"hello": 1})


def test_gates_are_shown_where_there_were_any():
    """How gates were answered; nothing where nobody asked."""
    assert "    gates: 1 open, 3 allow" in screen(
        _status(gates={"open": 1, "allow": 3, "deny": 0, "circuit": "closed"})
    )
    assert not any("gates" in line for line in screen(_status(gates={"open": 0, "circuit": "closed"})))


def test_books_that_the_daemon_doubts():
    """If the daemon says that something is wrong, the screen does not hide it."""
    assert screen(read_status(LEAST | {"balanced": False}))[-1] == "books do NOT balance"


def test_rare_ends_are_named_only_when_they_occur():
    """Shed, purged and quarantined stand with their causes, where there are any."""
    assert "    1 admitted: 1 delivered" in screen(_status(admitted=1, delivered=1))
    lines = screen(_status(admitted=2, shed=2, causes={"shed": {"queue_full": 1, "stale": 1}}))
    assert "    2 admitted: 2 shed (queue_full 1, stale 1)" in lines


def test_a_forecast_without_trouble():
    """A cap that will be reached is said, and is no trouble yet."""
    status = _status(forecast="the cap is reached on the 24th at this rate", quota={"reached": False})
    assert "    the cap is reached on the 24th at this rate" in screen(status)
    assert troubles(status) == []


def test_no_destinations():
    """A daemon without destinations is shown as that."""
    assert "no destinations" in screen(read_status(LEAST))


def test_fields_of_a_newer_daemon_are_let_pass():
    """An older command line reads a newer daemon's answer."""
    assert read_status(LEAST | {"more": 1}).pid == 1


# -- health ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"stuck": "12 commits failed in a row"}, "stuck"),
        ({"spool": {"full": True}}, "disk_full"),
        ({"spool": {"quarantined_rows": 1}}, "quarantine"),
        ({"balanced": False}, "books"),
        ({"dead_letters": {"bytes": 80, "max_bytes": 100}}, "dead_letters"),
        ({"reloads": {"failed": 1, "last_error": "no"}}, "reload"),
        ({"state": "draining"}, "draining"),
        ({"destinations": {"a": {"state": "waiting"}}}, "waiting"),
        ({"destinations": {"a": {"state": "paused"}}}, "paused"),
        ({"destinations": {"a": {"state": "removed"}}}, "removed"),
        ({"destinations": {"a": {"state": "something new"}}}, "something new"),
        ({"destinations": {"a": {"state": "ok", "balanced": False}}}, "books"),
        ({"destinations": {"a": {"state": "ok", "admitted": 1, "delivered": 2}}}, "books"),
        ({"destinations": {"a": {"state": "ok", "queued": 1, "admitted": 1, "queued_bytes": 80, "max_bytes": 100}}}, "queue"),
        ({"destinations": {"a": {"state": "ok", "quota": {"reached": True}}}}, "quota"),
        ({"destinations": {"a": {"state": "ok", "gates": {"circuit": "open", "reason": "5 in a row"}}}}, "gates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_one_trouble_alone_is_enough(change, what):
    """Each reason by itself makes it 3, and is named."""
    status = read_status(LEAST | change)
    found = troubles(status)
    assert [one.what for one in found] == [what]
    assert found[0].reason
    assert exit_code(status, found) == 3


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dead_letters": {"records": 1, "bytes": 79, "max_bytes": 100}},
        {"intake": {"refused": {"invalid": 9}, "lost_before_intake": {"buffer_full": 2}}},
        {"reloads": {"done": 1, "failed": 1, "last_error": None}},
        {"destinations": {"a": {"state": "ok", "reason": "1 lanes wait: 503", "admitted": 1, "dead": 1}}},
    ],
)
def test_what_is_no_trouble(change):
    """Single records that ended badly are counted, and no reason to wake somebody."""
    status = read_status(LEAST | change)
    assert troubles(status) == []
    assert exit_code(status, []) == 0


@pytest.mark.parametrize("state", ["stopped", "not answering"])
def test_what_the_disk_says_is_no_daemon(state):
    """However good the books are: nobody takes records there."""
    status = read_status(AT_REST | {"state": state})
    assert exit_code(status, troubles(status)) == 1


@pytest.fixture
def ask(monkeypatch):
    """A daemon that answers with a document."""

    def ask(document, *options):
        monkeypatch.setattr(Daemon, "get", lambda *_, **__: document)
        return CliRunner().invoke(main, ["status", "--socket", "/nowhere", *options])

    return ask


@pytest.mark.parametrize(("document", "code"), [(CALM, 0), (TROUBLED, 3)])
def test_the_exit_code_and_its_reasons(ask, document, code):
    """0 or 3, the same with `--json`, which names the reasons."""
    assert ask(document).exit_code == code
    done = ask(document, "--json")
    assert done.exit_code == code
    said = json.loads(done.stdout)
    assert said["healthy"] is (code == 0)
    assert [one["what"] for one in said["degraded"]] == (
        ["stuck", "disk_full", "quarantine", "dead_letters", "reload", "waiting", "queue", "waiting", "quota", "gates", "removed"]
        if code else []
    )  # fmt: skip
    assert said["destinations"] == document["destinations"]


def test_what_a_platform_says_gives_no_orders(ask):
    """A reason is a platform's text: it moves no cursor."""
    there = {"state": "paused", "reason": "401 \x1b[2J\x1b]0;x\x07"}
    shown = ask(LEAST | {"destinations": {"a": there}}).stdout
    assert r"401 \x1b[2J\x1b]0;x\x07" in shown
    assert "\x1b" not in shown


# -- layout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "····"), (0.001, "····"), (0.01, "█···"), (0.5, "██··"), (0.99, "████"), (1.0, "████"), (7.0, "████")],
)
def test_a_bar(share, shown):
    """A hundredth is a cell, and more than all is no more than that."""
    assert bar(share, 4) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0.0"), (38.84, "38.8"), (99.99, "100.0"), (234.4, "234"), (9999, "9,999"), (120_400, "120k")],
)
def test_a_rate(value, shown):
    """In five places."""
    assert rate(value) == shown


def test_lines_are_parted_at_blanks():
    """A word that is longer than the line stays whole, indentation is kept, colours take no room."""
    assert list(wrapped("  ! one two three", 11)) == ["  ! one two", "    three"]
    assert list(wrapped("  " + "x" * 12 + " y", 8)) == ["  " + "x" * 12, "    y"]
    assert list(wrapped("\x1b[31mred\x1b[0m and", 7)) == ["\x1b[31mred\x1b[0m and"]
    assert cut("abcdef", 4) == "abc…"
    assert cut("abcd", 4) == "abcd"


# -- colours -----------------------------------------------------------------------------------------------------------


def _on_a_terminal(monkeypatch):
    """Called by the test itself: pytest puts its own stdout back between a fixture and the test."""
    monkeypatch.setattr(terminal.sys, "stdout", type("Tty", (), {"isatty": lambda _: True})())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_colours_are_for_terminals_only(monkeypatch):
    """A terminal gets colours; NO_COLOR, a dumb terminal and a pipe do not."""
    _on_a_terminal(monkeypatch)
    assert terminal.paint("ok", "green") == "\x1b[32mok\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("ok", "green") == "ok"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.paint("ok", "green") == "ok"


@contextmanager
def _plain(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        yield


def test_colours_change_no_column(monkeypatch):
    """They are put in after the columns are aligned and the lines are parted."""
    _on_a_terminal(monkeypatch)
    coloured = screen(read_status(TROUBLED), 80)
    with _plain(monkeypatch):
        plain = screen(read_status(TROUBLED), 80)
    assert any("\x1b[33mwaiting\x1b[0m" in line for line in coloured)
    assert list(map(length, coloured)) == list(map(len, plain))
