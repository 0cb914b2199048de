"""What goes to a terminal: our colours, and nothing that others have written as an order to it."""

import click
import pytest

from agentd.cli import terminal


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[32mdelivered\x1b[0m as p-1", "\x1b[32mdelivered\x1b[0m as p-1"),
        ("run \x1b[2J\x1b[8m\x1b]0;x\x07", r"run \x1b[2J\x1b[8m\x1b]0;x\x07"),
        ("a\nb\tc\x9b1m\u202e", r"a\nb\tc\x9b1m\u202e"),
        ("Fälle – 例", "Fälle – 例"),
    ],
)
def test_a_line_gives_no_orders_but_colours(monkeypatch, line, shown):
    """One line stays one line, and what moves a cursor, hides or turns text around is spelt out."""
    told = []
    monkeypatch.setattr(click, "echo", told.append)
    terminal.echo_lines([line])
    assert told == [shown]
