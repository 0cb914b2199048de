"""The log: one line an entry, whatever is in it."""

from __future__ import annotations

import ast
import json
import logging
import os
import tempfile
from pathlib import Path

import pytest

from agentd import logs
from agentd.logs import BURST, KIND_BURST, WINDOW_S, Repeats, set_up


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


class Lines:
    """What is written of a log whose clock only the test moves."""

    def __init__(self):
        self.now = 1000.0
        self.written = []
        self.repeats = Repeats(self.written.append, lambda: self.now)

    def say(self, text, *arguments, level=logging.WARNING, **fields):
        record = logging.LogRecord("agentd.x", level, __file__, 1, text, arguments, None)
        vars(record).update(fields)
        if self.repeats.filter(record):
            self.written.append(record)

    @property
    def texts(self):
        return [record.getMessage() for record in self.written]


def test_what_is_said_again_and_again_is_counted():
    """Ten lines of one text a minute, then one line that says how many more there were, with the fields of the last."""
    lines = Lines()
    for number in range(52):
        lines.say("%s: no", "cloud", action="waiting", destination="cloud", batch=f"key-{number}")
        lines.now += 0.5
    assert lines.texts == ["cloud: no"] * BURST
    lines.now += WINDOW_S
    lines.repeats.tick()
    assert lines.texts[BURST:] == ["… repeated 42 times in 86 s: cloud: no"]
    last = lines.written[-1]
    assert (last.action, last.destination, last.batch, last.repeated) == ("waiting", "cloud", "key-51", 42)
    lines.say("%s: no", "cloud")
    assert lines.texts[-1] == "cloud: no"


def test_the_next_line_of_whatever_kind_ends_a_window():
    """Nobody has to tick: what was left out is told before what comes next."""
    lines = Lines()
    for _ in range(BURST + 1):
        lines.say("again")
    lines.now += WINDOW_S
    lines.say("other")
    assert lines.texts[BURST:] == ["… repeated 1 times in 60 s: again", "other"]


def test_lines_that_differ_in_what_they_name_have_a_bound_too():
    """A thousand dead records are 200 lines and a count, and other kinds of lines are written beside them."""
    lines = Lines()
    for number in range(1000):
        lines.say("record %d is dead", number)
    lines.say("something else")
    assert len(lines.written) == KIND_BURST + 1
    lines.repeats.close()
    assert lines.texts[-1] == "… repeated 800 times in 0 s: record 999 is dead"


def test_who_looks_for_a_fault_sees_every_line():
    """At level debug nothing is left out."""
    lines = Lines()
    for _ in range(50):
        lines.say("again", level=logging.DEBUG)
    assert len(lines.written) == 50


def test_memory_for_repeats_is_bounded():
    """Texts come from outside: the oldest is closed, with its count, when there are too many."""
    lines = Lines()
    for _ in range(BURST + 5):
        lines.say("the first")
    for number in range(5000):
        lines.say(f"kind {number}: %d", number)
    assert len(lines.repeats._texts) <= 1000
    assert "… repeated 5 times in 0 s: the first" in lines.texts


def test_what_was_left_out_is_told_at_the_end(lines):
    """The daemon's last act is to say how often what was."""
    read = lines("info", "json")
    for _ in range(15):
        logging.getLogger("agentd.x").error("again", extra={"action": "again"})
    logs.flush()
    found = [json.loads(line) for line in read()]
    assert len(found) == BURST + 1
    assert (found[-1]["message"], found[-1]["repeated"], found[-1]["action"]) == (
        "… repeated 5 times in 0 s: again", 5, "again",
    )  # fmt: skip


def test_json_goes_into_the_journal_and_text_elsewhere():
    """systemd says which file its journal is (systemd.exec(5), JOURNAL_STREAM); another one that is open is not it."""
    with tempfile.TemporaryFile() as file:
        found = os.fstat(file.fileno())
        stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert logs.form_for("auto", stream, file.fileno()) == "json"
        assert logs.form_for("auto", {"JOURNAL_STREAM": "1:2"}, file.fileno()) == "text"
        assert logs.form_for("auto", {}, file.fileno()) == "text"
        assert logs.form_for("text", stream, file.fileno()) == "text"
        assert logs.form_for("json", {}, file.fileno()) == "json"
    assert logs.form_for("auto", stream, 10**6) == "text"


@pytest.mark.parametrize(("configured", "quiet"), [("info", "info"), ("error", "error"), ("debug", "info")])
def test_the_signal_turns_debug_on_and_off(lines, configured, quiet):
    """SIGUSR1 twice is as it was, and what is at debug already can be silenced."""
    read = lines(configured, "json")
    own = logging.getLogger("agentd")
    for _ in range(2):
        logs.toggle_debug()
    assert logging.getLevelName(own.level).lower() == (configured if configured != "debug" else "debug")
    logs.toggle_debug()
    assert logging.getLevelName(own.level).lower() == ("debug" if configured != "debug" else quiet)
    assert all(json.loads(line)["action"] == "log_level" for line in read())


_CALLS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def _calls_of_a_log(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS:
            of = node.func.value
            if isinstance(of, ast.Name) and of.id in {"log", "_log", "own"}:
                yield node


def test_every_line_of_the_daemon_has_an_action():
    """Who searches the log finds by a stable word; the client's lines are the agent's log's, and sentences."""
    package = Path(logs.__file__).parent
    silent = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        for call in _calls_of_a_log(path) if not place.startswith(("client/", "sandbox/")) else ():
            [extra] = [word.value for word in call.keywords if word.arg == "extra"] or [None]
            named = isinstance(extra, ast.Dict) and any(getattr(key, "value", None) == "action" for key in extra.keys)
            if (
                not named
                and "about" not in ast.unparse(extra or ast.Constant(""))
                and ast.unparse(extra or ast.Constant("")) != "told"
            ):
                silent.append(f"{place}:{call.lineno}")
    assert silent == []
