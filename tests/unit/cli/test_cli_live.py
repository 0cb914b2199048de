"""A screen on a real terminal (a pty): keys, sizes, and that it is given back as it was, however the program ends."""

from __future__ import annotations

import signal

import pytest
from pty_kit import ENTER, LEAVE, OnTerminal

PROGRAM = """
from agentd.cli.live import Terminal
try:
    with Terminal() as terminal:
        key = "nothing"
        while key != "q":
            columns, lines = terminal.size
            terminal.draw([f"pressed {key}", f"{columns} x {lines}", *(["three"] if key == "3" else [])])
            key = terminal.wait(30.0)
            if key == "x":
                raise RuntimeError("boom")
            if key == "w":
                terminal.wait(0.01)
                key = "the time is over"
    print("after it")
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.fixture
def terminal():
    with OnTerminal("-c", PROGRAM) as made:
        made.until("pressed nothing")
        yield made


def test_it_begins_on_a_screen_of_its_own(terminal):
    """Keys come without Enter and are not shown; what was there before is not drawn over."""
    assert terminal.shown.startswith(ENTER)
    assert terminal.modes != terminal.modes_before
    assert terminal.frame == ["pressed nothing", "100 x 30"]


def test_a_key_is_told_as_it_is_pressed(terminal):
    """And a frame takes the place of the one before, also where that had more lines."""
    terminal.press("3")
    terminal.until("pressed 3")
    assert terminal.frame == ["pressed 3", "100 x 30", "three"]
    terminal.press("a")
    terminal.until("pressed a")
    assert terminal.frame == ["pressed a", "100 x 30"]
    terminal.press("w")
    terminal.until("pressed the time is over")


def test_an_arrow_is_no_letter(terminal):
    """What a key sends beside a letter is taken whole: no part of it is taken for another key."""
    terminal.press("\x1b[q")
    terminal.until(lambda: terminal.frame[0] == "pressed \x1b")
    terminal.press("q")
    assert terminal.code() == 0


def test_the_end_gives_it_back(terminal):
    """What is printed then stands on the screen of before."""
    terminal.press("q")
    assert terminal.code() == 0
    assert terminal.is_as_before()
    assert terminal.shown.rpartition(LEAVE)[2] == "after it\r\n"


def test_an_exception_gives_it_back(terminal):
    """The traceback can be read."""
    terminal.press("x")
    assert terminal.code() == 1
    assert terminal.is_as_before()
    assert "RuntimeError: boom" in terminal.shown.rpartition(LEAVE)[2]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_signal_gives_it_back(terminal, number, code):
    """Each that ends programs, with the exit code that shells know."""
    terminal.signal(number)
    assert terminal.code() == code
    assert terminal.is_as_before()


def test_ctrl_c_gives_it_back(terminal):
    """As it is typed."""
    terminal.press("\x03")
    assert terminal.code() == 130
    assert terminal.is_as_before()


def test_ctrl_z_gives_it_back_until_it_goes_on(terminal):
    """The shell has its terminal meanwhile; then the screen is drawn anew, and a second time works as well."""
    for _ in range(2):
        terminal.press("\x1a")
        terminal.stopped()
        terminal.until(terminal.is_as_before)
        shown = len(terminal.shown)
        terminal.resume()
        terminal.until(lambda shown=shown: ENTER in terminal.shown[shown:] and terminal.frame[0] == "pressed resized")
        assert terminal.modes != terminal.modes_before
    terminal.press("q")
    assert terminal.code() == 0
    assert terminal.is_as_before()


def test_another_size_is_told(terminal):
    """At once, and as often as it changes."""
    for columns, lines in ((80, 24), (200, 60), (20, 5)):
        terminal.resize(columns, lines)
        terminal.until(f"{columns} x {lines}")
        assert terminal.frame[0] == "pressed resized"
