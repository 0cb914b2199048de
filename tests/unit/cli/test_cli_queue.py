"""`agentd queue`: what is asked of the daemon, what people read, and what has to be said before a queue is dropped."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentd.cli import main, stopped
from agentd.cli import queue as verb
from agentd.cli.ask import NoDaemon
from agentd.errors import ConfigError

CLOUD = {
    "platform": "agentos", "state": "waiting", "reason": "no connection", "retry_in_s": 12.0,
    "taken_for": "agentos at https://a.example for every agent", "queued": 1204, "bytes": 422_000, "max_bytes": 2**30,
    "oldest_age_s": 125.0, "kinds": {"event": 1190, "run.complete": 14}, "bytes_by_loss": {"keep": 1, "info": 2, "debug": 0},
    "segments": 4, "sealed": 3, "admitted_per_s": 3.14, "delivered_per_s": 0.0, "drain": "not draining", "eta_s": None,
    "lanes": {"known": 14, "waits": {"turn": 11, "backoff": 2, "reference": 1}, "parked": 2},
    "window_bytes": 200_000, "window_max_bytes": 2**23,
}  # fmt: skip
EMPTY = CLOUD | {
    "state": "ok", "reason": None, "retry_in_s": None, "queued": 0, "bytes": 0, "oldest_age_s": None, "drain": "empty",
    "eta_s": 0.0, "delivered_per_s": 120.4, "kinds": {},
}  # fmt: skip
STATS = {
    "at": "2026-11-22T03:52:18.963806Z", "running": True, "destinations": {"cloud": CLOUD, "local": EMPTY},
    "total": {
        "queued": 1204, "bytes": 422_000, "segments": 4, "oldest_age_s": 125.0, "max_bytes": 2**30,
        "database_bytes": 3 * 2**20, "disk_free_bytes": 2**36, "dead_letters": 2,
    },
}  # fmt: skip
PLACE = {
    "number": 12,
    "id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "kind": "event",
    "admitted_at": "2026-11-22T03:50:00.0Z",
    "age_s": 125.0,
}
LANE = {
    "destination": "cloud", "lane": "run:r1", "records": 21, "bytes": 1643, "kinds": {"event": 21}, "loss": {"info": 21},
    "oldest": PLACE, "head": PLACE, "newest": {"number": 33, "admitted_at": "2026-11-22T03:52:00.0Z"},
    "waits": {"for": "backoff", "reason": "503 Service Unavailable", "next_try_in_s": 4.0, "failures": 3},
    "parked": True, "sealed": 1,
}  # fmt: skip
AWAY = LANE | {
    "waits": {"for": "destination", "reason": "paused: 401 UNAUTHENTICATED: key", "next_try_in_s": 30.0, "failures": 0},
    "parked": False,
    "sealed": 0,
}
LANES = {
    "lanes": [LANE, AWAY], "matched": {"lanes": 3, "records": 64, "bytes": 4926}, "exact": True, "damaged_segments": 0,
    "destinations": {"cloud": {"queued": 64}},
}  # fmt: skip
HEADER = {
    "destination": "cloud",
    "number": 13,
    "kind": "event",
    "bytes": 40,
    "admitted_at": "2026-11-22T03:50:00.0Z",
    "age_s": 60.0,
}
RECORD = HEADER | {
    "id": "01890a5d-ac96-774b-bcce-b302099a8057", "lane": "run:r1", "agent": "billing", "uid": 1000, "loss": "info",
    "record": {"kind": "event", "run_id": "r1", "type": "t", "payload": {"text": "ä" * 300}},
}  # fmt: skip
RECEIPT = {
    "id": "01890a5d-ac96-774b-bcce-b302099a8057", "kind": "run.start", "destination": "cloud", "agent": "billing", "run": "r1",
    "platform_id": "p-1", "key": "01890a5d-ac96-774b-bcce-b302099a8057", "tries": 2, "admitted_at": "2026-11-22T03:50:00.000000Z",
    "delivered_at": "2026-11-22T03:50:01.000000Z", "sha256": "00",
}  # fmt: skip
DROPPED = {"destination": "cloud", "dropped": 1204, "kinds": {"event": 1190, "run.complete": 14}, "tried": 50}


class Daemon:
    """Answers by path, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def get(self, path, **query):
        self.asked.append((path, {name: value for name, value in query.items() if value is not None}))
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def post(self, path, *, body, timeout_s):
        self.asked.append((path, json.loads(body)))
        assert timeout_s > 60
        return DROPPED


@pytest.fixture
def run(monkeypatch):
    def run(answers, *arguments, code=0):
        daemon = Daemon(answers)
        monkeypatch.setattr(stopped, "daemon", lambda _socket, _timeout_s: daemon)
        monkeypatch.setattr(verb, "daemon", lambda _socket: daemon)
        done = CliRunner().invoke(main, ["queue", *arguments])
        assert done.exit_code == code, done.output
        return done, daemon.asked

    return run


def test_stats_on_one_screen(run):
    """A row a destination; below it why it waits, what of which kind, what its lanes wait for, and what it takes."""
    done, asked = run(STATS, "stats")
    assert asked == [("/v1/queue", {"view": "stats"})]
    assert done.output.splitlines() == [
        "destination  state    queued      bytes  of quota  oldest  in/s  out/s      empty in",
        "cloud        waiting   1,204  412.1 KiB      0.0%    2.1m   3.1    0.0  not draining",
        "    no connection; next try in 12s",
        "    1,190 event, 14 run.complete",
        "    14 lanes: 11 ready, 2 in backoff, 1 without an id they need, 2 parked on disk",
        "    4 segments, 3 sealed batches, 195.3 KiB of 8.0 MiB of memory",
        "local        ok            0        0 B      0.0%       –   3.1    120             –",
        "",
        "1,204 records queued, the oldest 2.1m old: 412.1 KiB of 1.0 GiB; 2 dead letters",
        "3.0 MiB on disk, 64.0 GiB free there",
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"drain": "draining", "eta_s": 90.0}, "1.5m"),
        ({"drain": "unknown", "delivered_per_s": None, "admitted_per_s": None}, "–      –         ?"),
        ({"max_bytes": 0}, "  –    2.1m"),
        ({"state": "removed"}, "removed"),
    ],
)
def test_what_is_not_known_is_no_number(run, facts, words):
    """The time to empty where it empties, a question mark where nothing is known, a dash where there is no quota."""
    done, _ = run(STATS | {"destinations": {"cloud": CLOUD | facts}}, "stats")
    assert words in done.output.splitlines()[1]


def test_stats_without_queues(run):
    """Not an empty table."""
    assert run(STATS | {"destinations": {}}, "stats")[0].output == "no queues\n"


def test_list_says_what_each_lane_waits_for(run):
    """Two lines a lane: how much and how old, and what has to come first; the filters go to the daemon."""
    done, asked = run(
        LANES, "list", "--destination", "cloud", "--run", "r1", "--agent", "billing", "--kind", "event", "--older", "5m",
        "--sort", "bytes", "--limit", "2",
    )  # fmt: skip
    assert asked == [
        ("/v1/queue", {
            "view": "lanes", "destination": "cloud", "run": "r1", "agent": "billing", "kind": "event", "older": 300.0,
            "sort": "bytes", "limit": 2,
        })
    ]  # fmt: skip
    assert done.output.splitlines() == [
        "destination  lane    records    bytes  oldest       head",
        "cloud        run:r1       21  1.6 KiB    2.1m  event #12",
        "    waits for its next try, after 3 failures, in 4s (parked on disk, 1 sealed): 503 Service Unavailable",
        "cloud        run:r1       21  1.6 KiB    2.1m  event #12",
        "    waits for the destination, in 30s: paused",
        "",
        "3 lanes, the first 2 shown: 64 records, 4.8 KiB",
    ]


def test_list_as_json_is_an_array(run):
    """`--json` prints the lanes as they came; that some were not counted on their own goes to standard error."""
    done, _ = run(LANES, "list", "--json")
    assert (json.loads(done.stdout), done.stderr) == ([LANE, AWAY], "")
    done, _ = run(LANES | {"exact": False}, "list", "--json")
    assert json.loads(done.stdout) == [LANE, AWAY]
    assert "more lanes than are counted at a time" in done.stderr


def test_list_of_nothing(run):
    """A sentence, not an empty table; damage is told."""
    nothing = LANES | {"lanes": [], "matched": {"lanes": 0, "records": 0, "bytes": 0}, "damaged_segments": 1}
    assert run(nothing, "list")[0].output.splitlines() == ["nothing of that is queued", "1 segment can't be read"]


def test_peek_shows_what_may_be_seen(run):
    """One's own records whole but for what is too long for a line; another user's only that there is one."""
    done, asked = run({"records": [RECORD, HEADER], "cut": True, "damaged_segments": 0}, "peek", "-n", "2")
    assert asked == [("/v1/queue", {"view": "records", "older": 0.0, "limit": 2})]
    lines = done.output.splitlines()
    assert lines[0] == "1m old  cloud  event #13  run:r1  01890a5d-ac96-774b-bcce-b302099a8057  uid 1000  40 B"
    assert lines[1].startswith('    {"kind":"event","run_id":"r1"')
    assert (len(lines[1]), lines[1][-1]) == (164, "…")
    assert lines[2] == "1m old  cloud  event #13  40 B  (another user's)"
    assert "more than fits one answer" in lines[3]


def test_peek_raw_is_what_emit_takes(run):
    """The records alone, one JSON document a line, whole; what may not be seen is left out, and it is said."""
    done, _ = run({"records": [RECORD, HEADER], "cut": False, "damaged_segments": 0}, "peek", "--raw")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [RECORD["record"]]
    assert done.stderr == "agentd: 1 records of other users are left out\n"


def test_receipts(run):
    """The newest first: when, what, its id here and there, under which key, after how many tries."""
    done, asked = run(
        {"receipts": [RECEIPT], "complete": False, "damaged_rows": 0}, "receipts", "--run", "r1", "--since", "1h"
    )
    assert asked == [("/v1/queue", {"view": "receipts", "run": "r1", "since": 3600.0, "limit": 20})]
    head, row = done.stdout.splitlines()
    assert head.split() == ["delivered", "destination", "kind", "id", "platform's", "id", "key", "tries"]
    assert row.split() == ["2026-11-22T03:50:01", "cloud", "run.start", RECEIPT["id"], "p-1", RECEIPT["key"], "2"]
    assert "goes further back than was searched" in done.stderr
    assert run({"receipts": [], "complete": True, "damaged_rows": 0}, "receipts")[0].output == "no receipts of that\n"


# -- drop --------------------------------------------------------------------------------------------------------------


def test_drop_says_what_went(run):
    """Destination and reason go to the daemon; the answer is told by kind, with what the platform may have."""
    done, asked = run(STATS, "drop", "cloud", "--reason", "moving house", "--yes")
    assert asked[-1] == ("/v1/queue/drop", {"destination": "cloud", "reason": "moving house"})
    assert done.output.splitlines() == [
        "1,204 records of cloud are dropped: 1,190 event, 14 run.complete",
        "50 of them had been sent without an answer: the platform may have those",
    ]
    done, _ = run(STATS, "drop", "cloud", "--reason", "x", "--yes", "--json")
    assert json.loads(done.stdout) == DROPPED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cloud"], "Missing option '--reason'"),
        (["--reason", "why"], "Missing argument 'DESTINATION'"),
        (["cloud", "--reason", "  ", "--yes"], "--reason: say why"),
        (["cloud", "--reason", "why"], "--yes: say it where nobody can be asked"),
    ],
)
def test_nothing_is_dropped_by_an_oversight(run, arguments, message):
    """A reason, and a yes where nobody can be asked: usage errors, and the daemon was asked for nothing but figures."""
    done, asked = run(STATS, "drop", *arguments, code=2)
    assert message in done.output
    assert all(path == "/v1/queue" for path, _ in asked)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_a_person_is_asked(run, monkeypatch, answer, code):
    """On a terminal: how many, and where they were to go; nothing but yes drops them."""
    asked = []
    monkeypatch.setattr(verb, "_can_ask", lambda: True)

    def confirm(question, **_):
        asked.append(question)
        if answer == "n":
            raise verb.click.Abort

    monkeypatch.setattr(verb.click, "confirm", confirm)
    _, calls = run(STATS, "drop", "cloud", "--reason", "why", code=code)
    assert asked == [
        "1,204 records wait for cloud (agentos at https://a.example for every agent): drop them all for good?"
    ]
    assert any(path == "/v1/queue/drop" for path, _ in calls) is (answer == "y")


# -- without a daemon --------------------------------------------------------------------------------------------------


def test_a_socket_that_was_named_is_asked_or_nobody_is(run):
    """--socket means that daemon: its absence is an error, not somebody else's folder."""
    done, _ = run(NoDaemon("no daemon at /x: start one with 'agentd run'"), "stats", "--socket", "/x", code=1)
    assert done.output == "agentd: no daemon at /x: start one with 'agentd run'\n"


def test_without_a_daemon_a_bad_configuration_is_one(run, monkeypatch):
    """The folder is the configuration's: if that is wrong, its error says so."""

    def load():
        raise ConfigError("[spool] directory: wrong")

    monkeypatch.setattr(stopped, "load_config", load)
    done, _ = run(NoDaemon("no daemon at /x: start one"), "stats", code=78)
    assert "[spool] directory: wrong" in done.output


def test_a_folder_that_was_never_there(run, monkeypatch, tmp_path):
    """No daemon, and none has ever been: there is nothing to look into."""
    monkeypatch.setenv("AGENTD_SPOOL__DIRECTORY", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    done, _ = run(NoDaemon("no daemon at /x: start one"), "stats", code=1)
    assert done.output == "agentd: no daemon at /x: start one\n"
