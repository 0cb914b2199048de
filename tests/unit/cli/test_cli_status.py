"""`agentd status` for people: what is drawn from the daemon's answer."""

from __future__ import annotations

import pytest

from agentd.cli import terminal
from agentd.cli.status import read_status, screen
from agentd.errors import StateError

LEAST = {"agentd": "0.1.0", "pid": 1, "state": "running", "uptime_s": 5.0}


def _status(**there):
    return read_status(LEAST | {"destinations": {"agentos": {"platform": "agentos", "state": "ok", **there}}})


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
    assert screen(_status(admitted=10, delivered=6))[-1].endswith("quarantined + 4 being written")


def test_an_answer_that_is_no_status():
    """Something else that answers is an error with a sentence, not a traceback."""
    with pytest.raises(StateError, match="no status of agentd"):
        read_status({"hello": 1})


def test_a_destination_that_was_taken_out_of_the_configuration():
    """Its queue is kept, and shown without platform and address."""
    there = {"platform": None, "base_url": None, "state": "removed", "admitted": 1, "queued": 1}
    assert any(line.startswith("old ") for line in screen(read_status(LEAST | {"destinations": {"old": there}})))


def test_what_clients_lost_is_shown():
    """Losses that clients have reported stand beside what was accepted."""
    status = read_status(LEAST | {"intake": {"accepted": 1, "lost_before_intake": {"buffer_full": 2}}})
    assert "lost before intake: buffer_full 2" in screen(status)[4]


def test_gates_are_shown_where_there_were_any():
    """How gates were answered, and whether their circuit is open; nothing where nobody asked."""
    gates = {"open": 1, "allow": 3, "deny": 0, "circuit": "open", "reason": "5 in a row"}
    there = {"platform": "ascend", "state": "ok", "gates": gates}
    lines = screen(read_status(LEAST | {"destinations": {"ascend": there}}))
    assert "    gates: 1 open, 3 allow, circuit open: 5 in a row" in lines
    quiet = {"platform": "ascend", "state": "ok", "gates": {"open": 0, "circuit": "closed"}}
    assert not any("gates" in line for line in screen(read_status(LEAST | {"destinations": {"ascend": quiet}})))


def test_books_that_the_daemon_doubts():
    """If the daemon says that something is wrong, the screen does not hide it."""
    assert screen(read_status(LEAST | {"balanced": False}))[-1] == "books do NOT balance"


def test_rare_ends_get_a_column_only_when_they_occur():
    """Purged and quarantined are shown when there are any."""
    assert "purged" not in screen(_status())[7]
    assert "purged" in screen(_status(admitted=1, purged=1))[7]


def test_no_destinations():
    """A daemon without destinations is shown as that."""
    assert "no destinations" in screen(read_status(LEAST))


def test_fields_of_a_newer_daemon_are_let_pass():
    """An older command line reads a newer daemon's answer."""
    assert read_status(LEAST | {"more": 1}).pid == 1


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


def test_a_coloured_state_keeps_the_columns(monkeypatch):
    """Colours are put in after the columns are aligned."""
    _on_a_terminal(monkeypatch)
    row = screen(_status(admitted=1, delivered=1))[8]
    assert (
        row.replace("\x1b[32m", "").replace("\x1b[0m", "")
        == "agentos      ok            1       0          1     0     0       –"
    )
    assert "\x1b[32mok\x1b[0m" in row
