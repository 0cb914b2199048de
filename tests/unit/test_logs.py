"""The log: one line an entry, whatever is in it."""

from __future__ import annotations

import json
import logging

import pytest

from agentd.logs import set_up


@pytest.fixture
def lines(capsys):
    """Set the log up as the daemon does, and take it down again."""
    root, own = logging.getLogger(), logging.getLogger("agentd")
    before = (root.handlers[:], root.level, own.level)

    def start(level, form):
        set_up(level, form)

        def read():
            return capsys.readouterr().err.splitlines()

        return read

    yield start
    root.handlers[:], root.level = before[0], before[1]
    own.setLevel(before[2])


def test_text_is_one_line_with_time_and_level(lines):
    """A line for people: time in UTC, level, sentence; what a peer put into it cannot begin another line."""
    read = lines("info", "text")
    logging.getLogger("agentd.x").warning("refused: %s", "a\nERROR forged\rline", extra={"action": "refused"})
    [line] = read()
    assert line[10] == "T"
    assert line[20:].strip() == "WARNING refused: a\\nERROR forged\\rline"


def test_a_traceback_keeps_its_lines(lines):
    """A defect of ours is logged in full."""
    read = lines("info", "text")
    try:
        int("defect")
    except ValueError:
        logging.getLogger("agentd").exception("it broke")
    found = read()
    assert found[0].endswith("it broke")
    assert found[-1].startswith("ValueError: ")
    assert len(found) > 2


def test_json_is_one_document_a_line_with_a_stable_action(lines):
    """A line for machines: what is searched for is a field, and a value that is no JSON is written as text."""
    read = lines("info", "json")
    logging.getLogger("agentd.x").error("stop: %s", "a\nb", extra={"action": "paused", "place": {1}})
    [line] = map(json.loads, read())
    assert line["time"].endswith("Z")
    assert (line["level"], line["logger"], line["message"], line["action"], line["place"]) == (
        "error",
        "agentd.x",
        "stop: a\nb",
        "paused",
        "{1}",
    )
    assert set(line) == {"time", "level", "logger", "message", "action", "place"}


def test_json_holds_tracebacks(lines):
    """A traceback is a field of its entry and no lines of its own."""
    read = lines("info", "json")
    try:
        int("defect")
    except ValueError:
        logging.getLogger("agentd").exception("it broke")
    [line] = map(json.loads, read())
    assert "ValueError: " in line["traceback"]


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_the_level_is_ours_and_others_warn(lines, level, count):
    """`log.level` is agentd's own; of other libraries warnings are shown and no chatter."""
    read = lines(level, "text")
    for name in ("debug", "info", "warning"):
        getattr(logging.getLogger("agentd.x"), name)("ours")
    logging.getLogger("other").info("chatter")
    logging.getLogger("other").warning("theirs")
    found = read()
    assert sum("ours" in line for line in found) == count
    assert sum("theirs" in line for line in found) == 1
    assert not any("chatter" in line for line in found)
