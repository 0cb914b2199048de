"""`agentd tail`: a record as a line, what is asked of the daemon, and what of a record's text reaches a terminal."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentd.cli import main, terminal
from agentd.cli import tail as tail_verb
from agentd.cli.ask import Daemon
from agentd.cli.tail_screen import line


def document(kind, record, **fields):
    return {
        "admitted_at": "2026-11-22T07:12:45.123456Z", "destinations": ["cloud"], "kind": kind, "id": "i", "lane": "run:r", "agent": "",
        "uid": 0, "bytes": 2, "record": {"kind": kind, "run_id": "r", **record}, **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (document("event", {"type": "hello", "payload": {"n": 1}}), 'cloud run:r  event hello {"n":1}'),
        (document("event", {"type": "x", "level": "warn"}, agent="billing"), "cloud run:r (billing)  event x warn"),
        (document("run.start", {"input": {"a": "ü"}}, destinations=["a", "b"]), 'a,b run:r  run.start {"a":"ü"}'),
        (document("run.fail", {"error_message": "no such file"}), "cloud run:r  run.fail no such file"),
        (document("task", {"task_id": "t", "name": "parse", "status": "failed"}), "cloud run:r  task parse failed t"),
        (
            document("decision", {"decision_id": "d", "context": "c", "chosen": "a"}, lane="agent:billing", agent="billing"),
            'cloud agent:billing  decision d {"context":"c","chosen":"a"}',
        ),
    ],
)  # fmt: skip
def test_a_record_is_a_line(shown, words):
    """When, where to, whose, what: what is said once is not said twice."""
    assert line(shown) == f"07:12:45.123 {words}"


def test_what_was_missed_is_a_line():
    """How many; and that it may be fewer where they were not looked at."""
    assert line({"not_shown": 120, "exact": True}) == "… 120 records not shown"
    assert line({"not_shown": 1, "exact": False}) == "… up to 1 record not shown"


def test_a_line_is_cut_for_a_terminal():
    """Nothing wraps; for a file it is whole."""
    long = document("event", {"type": "x", "payload": "y" * 300})
    assert len(line(long, 80)) == 80
    assert line(long, 80).endswith("…")
    assert len(line(long)) > 300


def test_a_records_text_gives_no_orders():
    """Names and payloads are their sender's."""
    shown = line(document("event", {"type": "\x1b[2J", "payload": "\x9b1m\u202e"}, lane="run:\x07", agent="\x1b"))
    assert r"\x1b[2J" in shown
    assert shown.isprintable()


@pytest.fixture
def ask(monkeypatch):
    """A daemon that has these lines to say."""
    asked = []

    def ask(lines, *options):
        def said(_self, path, **query):
            asked.append((path, {name: value for name, value in query.items() if value is not None}))
            yield from lines

        monkeypatch.setattr(Daemon, "lines", said)
        return CliRunner().invoke(main, ["tail", "--socket", "/nowhere", *options]), asked[-1]

    return ask


LINES = [
    json.dumps(one).encode() for one in (document("event", {"type": "\u009bhello"}), {"not_shown": 2, "exact": True})
]


def test_lines_until_the_daemon_ends(ask):
    """One each, and the end is said and is no success."""
    done, asked = ask(LINES)
    assert done.stdout.splitlines() == [r"07:12:45.123 cloud run:r  event \x9bhello", "… 2 records not shown"]
    assert (done.stderr, done.exit_code) == ("agentd: the daemon has ended\n", 1)
    assert asked == ("/v1/tail", {})


def test_what_is_asked_for(ask):
    """Each option is a part of the question."""
    options = [
        "--kind",
        "event",
        "--kind",
        "task",
        "--agent",
        "a",
        "--run",
        "r",
        "--destination",
        "d",
        "--level",
        "warn",
        "-n",
        "5",
    ]
    assert ask([], *options)[1][1] == {
        "kind": ("event", "task"), "agent": "a", "run": "r", "destination": "d", "level": "warn", "last": 5,
    }  # fmt: skip


def test_json_is_a_document_a_line(ask):
    """As the daemon said it."""
    assert ask(LINES, "--json")[0].stdout.encode().splitlines() == LINES


def test_json_on_a_terminal_gives_no_orders(ask, monkeypatch):
    """What could be one is escaped, and it is the same document."""
    monkeypatch.setattr(tail_verb, "is_live", lambda: True)
    raw = '{"record":{"type":"\u009b2J"}}'.encode()
    shown = ask([raw], "--json")[0].stdout
    assert shown.strip().isascii()
    assert json.loads(shown) == json.loads(raw)


def test_levels_have_their_colours(monkeypatch):
    """Errors and failures are red, warnings and gaps yellow; cut before they are painted."""
    monkeypatch.setattr(terminal, "is_live", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert line(document("event", {"type": "x", "level": "error"})).startswith("\x1b[31m")
    assert line(document("run.fail", {"error_message": "x"})).startswith("\x1b[31m")
    assert line({"not_shown": 1}).startswith("\x1b[33m")
    assert "\x1b" not in line(document("event", {"type": "x"}))
    assert line(document("event", {"type": "x" * 200, "level": "warn"}), 80).endswith("…\x1b[0m")
