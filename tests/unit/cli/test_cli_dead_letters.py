"""`agentd dead-letters`: what is shown of letters, what is asked of the daemon, and what the exit status says."""

from __future__ import annotations

import json
from uuid import UUID

import msgspec
import pytest
from click.testing import CliRunner

from agentd.cli import dead_letters as verb
from agentd.cli import main, stopped
from agentd.cli.ask import NoDaemon
from agentd.cli.letters_screen import left_lines, letter_lines, list_lines

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
LETTER = {
    "letter": 17, "id": ID, "destination": "agentos", "kind": "run.start", "agent": "billing", "lane": "run:r", "cause": "rejected",
    "admitted_at": "2026-01-31T12:00:00.000000Z", "died_at": "2026-01-31T12:00:01.000000Z", "tries": 2, "status": 400, "bytes": 45,
    "reason": "400 VALIDATION: no", "uid": 1000, "pid": 9, "origin": "frames", "key": ID, "sha256": "ab" * 32,
    "history": [
        {"at": "2026-01-31T12:00:00.500000Z", "status": None, "reason": "no connection"},
        {"at": "2026-01-31T12:00:01.000000Z", "status": 400, "reason": "400 VALIDATION: no"},
    ],
    "answer": '{"error":{"code":"VALIDATION"}}', "carries": 3, "record": {"kind": "run.start", "run_id": "r", "input": {"ä": 1.5}},
}  # fmt: skip
THEIRS = {name: LETTER[name] for name in list(LETTER)[:12] if name not in ("id", "agent", "lane")} | {"letter": 18}
REFUSED = LETTER | {
    "letter": 19, "destination": None, "lane": None, "cause": "invalid", "tries": 0, "status": None, "key": None, "history": [],
    "answer": "", "carries": 0, "record": None, "text": '{"kind":"decision",\n\x1b[2J',
}  # fmt: skip


class Daemon:
    """Answers with what it is given, a page at a time, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def get(self, path, **query):
        self.asked.append((path, {name: value for name, value in query.items() if value is not None}))
        return self.answers.pop(0)

    def read(self, path, **query):
        return msgspec.json.encode(self.get(path, **query))

    def post(self, path, *, body, timeout_s):
        self.asked.append((path, json.loads(body)))
        return self.answers.pop(0)


@pytest.fixture
def run(monkeypatch):
    def run(answers, *arguments, code=0):
        daemon = Daemon(*answers)
        for module in (verb, stopped):
            monkeypatch.setattr(module, "daemon", lambda *_: daemon)
        done = CliRunner().invoke(main, ["dead-letters", *arguments])
        assert done.exit_code == code, done.output
        return done, daemon.asked

    return run


# -- list and show -----------------------------------------------------------------------------------------------------------


def test_list_asks_for_what_is_wanted(run):
    """Each filter goes to the daemon, ages in seconds; what is not said is not asked for."""
    done, asked = run([[]], "list")
    assert (done.output, asked) == ("no dead letters\n", [("/v1/dead-letters", {"limit": 100})])
    _, asked = run(
        [[]], "list", "--destination", "d", "--run", "r", "--cause", "invalid", "--older", "7d", "--limit", "5"
    )
    wanted = {"destination": "d", "run": "r", "cause": "invalid", "older": 604_800.0, "limit": 5}
    assert asked == [("/v1/dead-letters", wanted)]


def test_list_shows_each_with_what_was_said_of_it():
    """One that is another's is shown as that; one that was refused at intake has neither destination nor tries."""
    head, *lines = list_lines([LETTER, THEIRS, REFUSED])
    assert head.split() == ["id", "destination", "kind", "lane", "cause", "died"]
    assert lines[0].split() == [ID, "agentos", "run.start", "run:r", "rejected", "2026-01-31T12:00:01"]
    assert lines[1] == "    400 VALIDATION: no (after 2 tries)"
    assert lines[2].split() == ["–", "agentos", "run.start", "–", "rejected", "2026-01-31T12:00:01"]
    assert lines[3] == "    (another user's)"
    assert lines[4].split()[1:5] == ["–", "run.start", "–", "invalid"]
    assert lines[5] == "    400 VALIDATION: no"


def test_json_is_an_array(run):
    """As the daemon gave it."""
    assert json.loads(run([[LETTER]], "list", "--json")[0].output) == [LETTER]
    assert json.loads(run([[LETTER]], "show", ID, "--json")[0].output) == [LETTER]


def test_show_has_all_of_it(run):
    """Facts, tries with their times, the platform's answer, the record, and what has died with it."""
    done, asked = run([[LETTER]], "show", ID)
    assert asked == [("/v1/dead-letters", {"id": ID, "limit": 1000})]
    assert (
        done.output
        == f"""\
dead letter {ID}
  destination  agentos
  kind         run.start
  agent        billing
  lane         run:r
  cause        rejected
  reason       400 VALIDATION: no
  status       400
  tries        2
  admitted_at  2026-01-31T12:00:00.000000Z
  died_at      2026-01-31T12:00:01.000000Z
  key          {ID}
  bytes        45
  sha256       {"ab" * 32}
  uid          1000
  pid          9
  origin       frames
  carries      3 others, which a replay brings along
  tries
    2026-01-31T12:00:00.500Z  no connection
    2026-01-31T12:00:01.000Z  400 VALIDATION: no
  answer
    {{
      "error": {{
        "code": "VALIDATION"
      }}
    }}
  record
    {{
      "kind": "run.start",
      "run_id": "r",
      "input": {{
        "ä": 1.5
      }}
    }}
"""
    )


def test_what_is_no_json_is_shown_as_text_and_orders_no_terminal():
    """A record that was refused may hold anything, and so may a platform's answer."""
    lines = letter_lines([REFUSED | {"answer": "\x1b]0;x\x07 no JSON"}])
    assert lines[-5:] == [
        "  answer",
        "    \\x1b]0;x\\x07 no JSON",
        "  record",
        '    {"kind":"decision",',
        "    \\x1b[2J",
    ]


def test_a_name_or_a_reason_orders_no_terminal(run):
    """A run goes by what its client called it, and a reason may be what a platform said."""
    hostile = LETTER | {"lane": "run:\x1b[2J\n", "reason": "400 \x9b1m", "agent": "\x1b]0;x\x07"}
    assert "run:\\x1b[2J\\n" in run([[hostile]], "list")[0].output
    for verb_ in (["list"], ["show", ID]):
        done, _ = run([[hostile]], *verb_)
        assert all(char.isprintable() or char == "\n" for char in done.output)


def test_several_are_shown_one_after_the_other():
    """A record that is dead at two destinations; of another user's there is not much to say."""
    lines = letter_lines([LETTER | {"destination": "one"}, THEIRS])
    assert lines.count(f"dead letter {ID}") == lines.count("dead letter") == 1
    assert "" in lines
    assert lines[-1] == "  another user's: only its sender and admins see what is in it"


def test_show_of_nothing_is_an_error(run):
    """With the id that was asked for; one that is none is a wrong usage."""
    done, _ = run([[]], "show", ID, code=1)
    assert done.output == f"agentd: no dead letter has the id {ID}\n"
    done, asked = run([], "show", "17", code=2)
    assert ("'17': expected a record's id" in done.output, asked) == (True, [])


# -- export ------------------------------------------------------------------------------------------------------------------


def test_export_writes_all_of_them(run):
    """Page by page, the oldest first, a line each; those of others are left out and counted."""
    second = LETTER | {"letter": 20, "id": str(UUID(int=1))}
    done, asked = run([[LETTER, THEIRS], [second], []], "export", "--cause", "rejected")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [LETTER, second]
    assert done.stderr == "agentd: 2 dead letters written; 1 letter of other users left out\n"
    assert [query["after"] for _, query in asked] == [0, 18, 20]
    assert asked[0] == ("/v1/dead-letters", {"cause": "rejected", "limit": 1000, "after": 0})


def test_export_keeps_every_byte_of_a_record(run, monkeypatch):
    """`1.50` is not `1.5` to a digest."""
    answers = [b'[{"letter":1,"record":{"a": 1.50}}]', b"[]"]
    monkeypatch.setattr(Daemon, "read", lambda *_, **__: answers.pop(0))
    assert run([], "export")[0].stdout == '{"letter":1,"record":{"a": 1.50}}\n'


def test_export_goes_on_where_a_daemon_has_stopped(run, monkeypatch):
    """What it gave is written once; the rest comes out of its folder."""
    second = LETTER | {"letter": 20, "id": str(UUID(int=1))}

    def read(daemon, path, **query):
        daemon.get(path, **query)
        if len(daemon.asked) > 1:
            raise NoDaemon("no daemon at x: start one")
        return msgspec.json.encode([LETTER])

    monkeypatch.setattr(Daemon, "read", read)
    monkeypatch.setattr(stopped, "_look", lambda _nobody, look_at: look_at(None, None))
    monkeypatch.setattr(verb, "_in_folder", lambda _look, _folder, asked: [second] if asked["after"] == 17 else [])
    done, _ = run([None, None], "export")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [LETTER, second]
    assert done.stderr == "agentd: 2 dead letters written\n"


def test_export_writes_over_no_file(run, tmp_path):
    """A new file is its owner's alone."""
    path = tmp_path / "letters.ndjson"
    run([[LETTER], []], "export", "-o", str(path))
    assert json.loads(path.read_text()) == LETTER
    assert path.stat().st_mode & 0o777 == 0o600
    done, asked = run([], "export", "-o", str(path), code=2)
    assert (done.output, asked) == (f"agentd: {path} exists, and is not written over\n", [])
    done, _ = run([], "export", "-o", str(tmp_path / "none" / "x"), code=1)
    assert "No such file or directory" in done.output


# -- replay and purge --------------------------------------------------------------------------------------------------------


def test_replay_says_what_became_of_them(run):
    """Exit 0 if all went; what is left is told in words, and exit 1."""
    done, asked = run([{"replayed": 4, "left": {}}], "replay", ID)
    assert done.output == "4 dead letters replayed\n"
    assert asked == [("/v1/dead-letters/replay", {"ids": [ID], "force": False})]
    left = {"outcome_unknown": 1, "introducer_dead": 1200, "$.level: expected one of debug, info": 1}
    done, asked = run([{"replayed": 1, "left": left}], "replay", "--run", "r", "--older", "90s", "--force", code=1)
    assert asked == [("/v1/dead-letters/replay", {"run": "r", "older_than": 90.0, "force": True})]
    assert done.output.splitlines() == [
        "1 dead letter replayed",
        "1,200 left: the run.start or decision that they need is dead: replay that one, and they will come along",
        "1 left: refused again: $.level: expected one of debug, info",
        "1 left: the platform may have acted on it already: look there first, then say --force",
    ]


@pytest.mark.parametrize(
    "reason",
    ["outcome_unknown", "introducer_dead", "gate_unavailable", "foreign_reference", "no_destination", "spool_full", "spool full", "damaged",
     "invalid"],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 2])
def test_every_reason_has_its_words(reason, count):
    """A sentence, in the singular or the plural, and not the word that programs read."""
    (line,) = left_lines({reason: count})
    assert line.startswith(f"{count} left: ")
    assert "{" not in line
    assert reason not in line.partition(": ")[2].replace("spool_full", "")


@pytest.mark.parametrize(("left", "code"), [({}, 0), ({"damaged": 1}, 1)])
def test_json_has_the_same_exit_status(run, left, code):
    """One document on standard output."""
    answer = {"replayed": 1, "left": left}
    assert json.loads(run([answer], "replay", "--all", "--json", code=code)[0].stdout) == answer


def test_an_unknown_id_is_no_success(run):
    """Nothing was replayed or purged: whoever asked for one is told so. A filter that meets nothing is satisfied."""
    nothing = {"replayed": 0, "left": {}}
    assert "no dead letter has that id" in run([nothing], "replay", ID, code=1)[0].stderr
    assert run([nothing], "replay", "--run", "r")[0].output == "0 dead letters replayed\n"
    assert "no dead letter has such an id" in run([{"purged": 0}], "purge", ID, "--reason", "x", code=1)[0].stderr
    assert run([{"purged": 0}], "purge", "--all", "--reason", "x")[0].output == "0 dead letters purged\n"


def test_purge_says_why(run):
    """The reason goes along; without one, or with a blank one, nothing is asked."""
    done, asked = run([{"purged": 2}], "purge", "--cause", "rejected", "--reason", "ticket 17")
    assert done.output == "2 dead letters purged\n"
    assert asked == [("/v1/dead-letters/purge", {"cause": "rejected", "reason": "ticket 17"})]
    assert json.loads(run([{"purged": 2}], "purge", "--all", "--reason", "x", "--json")[0].output) == {"purged": 2}
    assert run([], "purge", "--all", code=2)[1] == []
    assert run([], "purge", "--all", "--reason", " ", code=2)[1] == []


@pytest.mark.parametrize("words", [["replay"], ["purge", "--reason", "x"]])
@pytest.mark.parametrize(
    "choice", [[], ["--all", ID], ["--all", "--run", "r"], ["17"], ["--cause", "bad"], ["--older", "soon"]]
)
def test_nothing_is_moved_by_an_oversight(run, words, choice):
    """No choice, all and some at once, an id that is none: usage, before the daemon hears of it."""
    assert run([], *words, *choice, code=2)[1] == []
