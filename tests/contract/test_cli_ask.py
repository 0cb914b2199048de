"""The command line's questions against a fake daemon: a real Unix socket that speaks real HTTP, with answers written by hand."""

from __future__ import annotations

import errno
import http.server
import json
import socket
import socketserver
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.ask import Daemon, NoDaemon, Refused
from agentd.errors import StateError

STATUS = {
    "agentd": "0.1.0",
    "contract": 1,
    "pid": 123,
    "uid": 0,
    "started_at": "2026-01-31T12:00:00Z",
    "uptime_s": 12.3,
    "socket": "/run/agentd/agentd.sock",
    "config": None,
    "state": "running",
    "spool": {
        "directory": "/var/lib/agentd",
        "sync": "full",
        "bytes": 2048,
        "max_bytes": 2**30,
        "segments": 1,
        "commits": 9,
        "disk_free_bytes": 2**35,
        "full": False,
    },
    "intake": {"connections": 2, "messages": 5, "accepted": 12, "refused": {"invalid": 1}, "shed_connections": 0},
    "destinations": {
        "agentos": {
            "platform": "agentos",
            "base_url": "http://127.0.0.1:4400",
            "state": "paused",
            "reason": "401 UNAUTHENTICATED",
            "retry_in_s": 2.5,
            "admitted": 12,
            "queued": 3,
            "delivered": 8,
            "dead": 1,
            "shed": 0,
            "purged": 0,
            "quarantined": 0,
            "queued_bytes": 900,
            "max_bytes": 2**30,
            "oldest_age_s": 12.0,
            "lanes": 1,
            "in_flight": 0,
            "requests": 4,
            "retries": 1,
            "causes": {"dead": {"rejected": 1}, "shed": {}},
            "balanced": True,
        }
    },
    "dead_letters": {"records": 1, "bytes": 300, "max_bytes": 2**27},
    "memory": {"rss_bytes": 50_000_000, "budget_bytes": 2**26, "window_bytes": 0},
    "balanced": True,
}
LETTER = {
    "id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "destination": "agentos",
    "kind": "event",
    "agent": "billing",
    "lane": "run:r1",
    "cause": "rejected",
    "reason": "the platform refused it",
    "admitted_at": "2026-01-31T12:00:00Z",
    "died_at": "2026-01-31T12:00:01Z",
    "tries": 1,
    "status": 400,
    "answer": "{}",
    "bytes": 300,
}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path):
        super().__init__(path, _Handler)
        self.answers = {}
        self.asked = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        status, document = self.server.answers.get(
            (self.command, self.path.partition("?")[0]),
            (404, {"error": {"code": "not_found", "message": "nothing there"}}),
        )
        sent = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = _answer  # noqa: N815 - http.server's names

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


@pytest.fixture
def fake(tmp_path):
    """A fake daemon at `fake.server_address`; `fake.answers[method, path] = status, document`."""
    with _Server(str(tmp_path / "agentd.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _agentd(fake, *words, **options):
    return CliRunner().invoke(main, [*words, "--socket", fake.server_address], **options)


def test_no_daemon_says_how_to_start_one(tmp_path):
    """Where nobody listens, one line names the place and the cure, and the exit code is 1."""
    path = tmp_path / "agentd.sock"
    result = CliRunner().invoke(main, ["status", "--socket", str(path)])
    assert (result.exit_code, result.output) == (1, f"agentd: no daemon at {path}: start one with 'agentd run'\n")


def test_a_stale_socket_is_no_daemon(tmp_path):
    """A socket file that nobody listens on any more is the same as none."""
    path = str(tmp_path / "agentd.sock")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
    with pytest.raises(NoDaemon):
        Daemon(path).get("/v1/status")


def test_a_forbidden_socket_says_what_forbids(monkeypatch):
    """Without permission the message names the settings that give it. (Root may open everything, so connect() is told to refuse.)"""

    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("agentd.cli.ask._UnixConnection.connect", refuse)
    with pytest.raises(StateError, match=r"\[listen\] mode and group"):
        Daemon("/a/b").get("/v1/status")


def test_a_silent_daemon_is_given_up_after_the_timeout(tmp_path):
    """A daemon that accepts and says nothing costs the timeout and no more."""
    path = str(tmp_path / "agentd.sock")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(path)
        there.listen()
        with pytest.raises(StateError, match="did not answer within 50ms"):
            Daemon(path, timeout_s=0.05).get("/v1/status")


def test_what_is_no_daemon_is_named_so(fake):
    """Something that answers without JSON is not taken for a daemon."""
    fake.answers["GET", "/v1/status"] = 200, b"hello"
    with pytest.raises(StateError, match="does not answer like a daemon"):
        Daemon(fake.server_address).get("/v1/status")


def test_a_path_too_long_for_a_socket_is_an_error_and_no_crash():
    """sockaddr_un has room for 107 bytes; more is a sentence, not a traceback."""
    with pytest.raises(StateError, match="path too long"):
        Daemon("/" + "x" * 200).get("/v1/status")


def test_an_error_of_the_daemon_keeps_status_and_code(fake):
    """The daemon's own error is shown in its words."""
    fake.answers["GET", "/v1/dead-letters"] = 403, {"error": {"code": "forbidden", "message": "not for uid 7"}}
    with pytest.raises(Refused, match="not for uid 7") as caught:
        Daemon(fake.server_address).get("/v1/dead-letters")
    assert (caught.value.status, caught.value.code) == (403, "forbidden")
    result = _agentd(fake, "dead-letters", "list")
    assert (result.exit_code, result.output) == (1, "agentd: not for uid 7\n")


def test_a_message_that_was_none_is_an_error(fake):
    """`{"error": "…"}`, as the dialects answer to what can't be parsed, is an error as well."""
    fake.answers["GET", "/v1/status"] = 400, {"error": "JSON is malformed"}
    with pytest.raises(Refused, match="JSON is malformed"):
        Daemon(fake.server_address).get("/v1/status")


def test_an_error_without_words_names_the_question(fake):
    """An error status without an envelope is still an error."""
    fake.answers["GET", "/v1/status"] = 500, []
    with pytest.raises(Refused, match="GET /v1/status: status 500"):
        Daemon(fake.server_address).get("/v1/status")


def test_status_as_json_is_the_daemons_document(fake):
    """`status --json` leaves nothing out, and adds whether somebody should look, and why."""
    fake.answers["GET", "/v1/status"] = 200, STATUS
    result = _agentd(fake, "status", "--json")
    reason = "paused: 401 UNAUTHENTICATED; next try in 2.5s"
    judged = {"healthy": False, "degraded": [{"what": "paused", "reason": reason, "destination": "agentos"}]}
    assert (result.exit_code, json.loads(result.output)) == (3, STATUS | judged)


def test_status_for_people(fake):
    """One screen: daemon, spool, intake, a row per destination with its reason, and whether the books balance."""
    fake.answers["GET", "/v1/status"] = 200, STATUS
    result = _agentd(fake, "status")
    assert result.exit_code == 3
    assert result.output.splitlines() == [
        "agentd 0.1.0  running  pid 123  up 12.3s  degraded",
        "  socket  /run/agentd/agentd.sock",
        "  config  none; from the environment",
        "  spool   /var/lib/agentd",
        "          2.0 KiB of 1.0 GiB, sync full, 32.0 GiB free on disk",
        "  intake  2 connections, 12 accepted, 1 refused (invalid 1)",
        "  memory  47.7 MiB, window 0 B of 64.0 MiB",
        "  letters 1 dead, 300 B of 128.0 MiB",
        "",
        "destination  state   queued  of quota         oldest  in/s  out/s  empty in",
        "agentos      paused       3  ··········   0%     12s     –      –         ?",
        "  ! paused: 401 UNAUTHENTICATED; next try in 2.5s",
        "    12 admitted: 8 delivered, 1 dead (rejected 1); 4 requests, 1 tried again",
        "",
        "books balance: 12 admitted = 8 delivered + 3 queued + 1 dead",
    ]


def test_flush_that_succeeds(fake):
    """Flush tells the daemon what to wait for and how long, and ends with 0."""
    fake.answers["POST", "/v1/flush"] = (
        200,
        {"flushed": True, "until": "stored", "left": {}, "waited_s": 0.4, "reason": None},
    )
    result = _agentd(fake, "flush", "--until", "stored", "--timeout", "2s")
    assert (result.exit_code, result.output) == (0, "everything is stored (400ms)\n")
    assert fake.asked == [("POST", "/v1/flush?until=stored&timeout=2.0", b"")]


def test_flush_that_fails_says_what_is_left_and_why(fake):
    """An unfinished flush ends with 1, and with --json the document is printed all the same."""
    answer = {
        "flushed": False,
        "until": "delivered",
        "left": {"agentos": 3, "b": 0},
        "waited_s": 10.0,
        "reason": "agentos: paused: 401",
    }
    fake.answers["POST", "/v1/flush"] = 200, answer
    result = _agentd(fake, "flush")
    assert result.exit_code == 1
    assert result.output == "agentd: not delivered after 10s: 3 at agentos left: agentos: paused: 401\n"
    result = _agentd(fake, "flush", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, answer)


def test_dead_letters_list(fake):
    """The filters go to the daemon; people get two lines a letter, --json an array."""
    fake.answers["GET", "/v1/dead-letters"] = 200, [LETTER]
    result = _agentd(fake, "dead-letters", "list", "--destination", "agentos", "--run", "r 1", "--limit", "5")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "id                                    destination  kind   lane    cause     died",
        "01890a5d-ac96-774b-bcce-b302099a8057  agentos      event  run:r1  rejected  2026-01-31T12:00:01",
        "    the platform refused it (after 1 try)",
    ]
    assert fake.asked[0][:2] == ("GET", "/v1/dead-letters?destination=agentos&run=r+1&limit=5")
    assert json.loads(_agentd(fake, "dead-letters", "list", "--json").output) == [LETTER]


def test_no_dead_letters(fake):
    """Nothing dead is said in words, and as an empty array."""
    fake.answers["GET", "/v1/dead-letters"] = 200, []
    assert _agentd(fake, "dead-letters", "list").output == "no dead letters\n"
    assert _agentd(fake, "dead-letters", "list", "--json").output == "[]\n"


def test_emit_sends_one_record_and_prints_the_answer(fake):
    """The record goes as one JSON object; taken means exit 0."""
    fake.answers["POST", "/v1/records"] = 202, {"accepted": 1}
    result = _agentd(fake, "emit", "event", "run_id=7", "type=step", "payload.rows=42")
    assert (result.exit_code, result.output) == (0, "accepted 1\n")
    ((method, path, body),) = fake.asked
    assert (method, path) == ("POST", "/v1/records")
    assert json.loads(body) == {"kind": "event", "run_id": "7", "type": "step", "payload": {"rows": 42}}


@pytest.mark.parametrize("enveloped", [True, False])
@pytest.mark.parametrize("status", [422, 503])
def test_emit_that_is_refused(fake, status, enveloped):
    """A refusal is the daemon's sentence on standard error, and exit 1; with --json the answer is printed too."""
    refused = {"accepted": 0, "rejected": [{"index": 0, "error": "$.level: expected one of debug, info, warn, error"}]}
    envelope = {"error": {"code": "refused", "message": "none of 1 records was taken"}} if enveloped else {}
    fake.answers["POST", "/v1/records"] = status, envelope | refused
    result = _agentd(fake, "emit", "event", "run_id=7", "type=step", "level=loud")
    assert (result.exit_code, result.output) == (1, "agentd: $.level: expected one of debug, info, warn, error\n")
    result = _agentd(fake, "emit", "event", "run_id=7", "type=step", "level=loud", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, refused)


def test_emit_from_standard_input(fake):
    """`-` sends every line; a refusal names the line."""
    fake.answers["POST", "/v1/records"] = (
        202,
        {"accepted": 1, "rejected": [{"index": 1, "error": "$.type: required in event"}]},
    )
    lines = b'{"kind":"event","run_id":"r","type":"t"}\n\n{"kind":"event","run_id":"r"}\n'
    result = _agentd(fake, "emit", "-", input=lines)
    assert result.exit_code == 1
    assert "accepted 1" in result.stdout
    assert "agentd: line 3: $.type: required in event" in result.output


def test_emit_from_standard_input_says_how_far_it_came(fake):
    """When the daemon refuses the message as a whole, the line from which on nothing was taken is named."""
    fake.answers["POST", "/v1/records"] = 413, {"error": {"code": "too_large", "message": "the body is too large"}}
    result = _agentd(fake, "emit", "-", input=b'{"kind":"heartbeat"}\n')
    assert (result.exit_code, result.output) == (
        1,
        "agentd: from line 1 on: the body is too large (0 accepted before)\n",
    )


def test_emit_from_standard_input_takes_no_pairs(fake):
    """Words beside `-` would be lost in silence; they are refused."""
    result = _agentd(fake, "emit", "-", "run_id=r", input=b"")
    assert result.exit_code == 2
    assert fake.asked == []


def test_values_that_look_like_options_are_values(fake):
    """`payload.delta=-5` and free text with dashes need no quoting tricks."""
    fake.answers["POST", "/v1/records"] = 202, {"accepted": 1}
    result = _agentd(fake, "emit", "event", "run_id=r", "type=t", "payload.delta=-5", "payload.flag=--x")
    assert result.exit_code == 0
    assert json.loads(fake.asked[0][2])["payload"] == {"delta": -5, "flag": "--x"}


def test_repr_names_the_socket():
    """A debugger sees which daemon is meant."""
    assert repr(Daemon("/a/b")) == "<Daemon at /a/b>"
    assert Path(Daemon("/a/b").socket) == Path("/a/b")
