"""Bad input on the live socket costs nothing else: after each piece of it a good client gets its answers and the books balance."""

import contextlib
import json
import resource
import socket
import struct
import time

import pytest
from harness import Frames, Lines, http_call

from agentd.intake.listen import BACKLOG

DEEP = 10_000


def _deep(depth=DEEP):
    return b'{"kind":"event","run_id":"r","type":"x","payload":' + b"[" * depth + b"]" * depth + b"}"


def _good_client(world, daemon, connect=Frames):
    """Whoever behaves is served, and the books add up."""
    with connect(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.events_of("r", 3)) == {}
    daemon.balanced()


@pytest.fixture
def daemon(world):
    daemon = world.daemon(intake={"frame_timeout": "500ms", "max_frame_bytes": "4MiB"})
    with Frames(daemon) as client:
        client.deliver(world.ledger, [world.ledger.start("r")])
    return daemon


MALFORMED = {
    "no JSON": b'{"kind": "event", "run_id": }',
    "NaN": b'{"kind":"event","run_id":"r","type":"x","payload":{"n":NaN}}',
    "invalid UTF-8": b'{"kind":"event","run_id":"r","type":"\xff\xfe","payload":{}}',
    "invalid UTF-8 in a payload": b'{"kind":"event","run_id":"r","type":"x","payload":{"t":"\xc3("}}',
    "two documents": b'{"kind":"event","run_id":"r","type":"x"} {"kind":"event"}',
    "a wrong envelope": b'{"seq": "seven", "records": []}',
}


def test_what_is_no_message_is_answered_and_costs_only_itself(world, daemon):
    """Section 1: what can't be parsed is answered `{"error": …}`; a line connection goes on, a frame connection ends."""
    for what, data in MALFORMED.items():
        with Lines(daemon) as client:
            client.send(data)
            assert set(client.receive()) == {"error"}, what
            assert client.deliver(world.ledger, world.ledger.events_of("r", 1)) == {}, what
        with Frames(daemon) as client:
            client.send(data)
            assert "error" in client.receive(), what
            if what != "a wrong envelope":  # that one is JSON: what follows it can be trusted
                assert client.receive() is None, what
        _good_client(world, daemon)
    assert daemon.status()["intake"]["refused"]["malformed"] == 2 * len(MALFORMED)


BAD_RECORDS = {
    "an unknown kind": (b'{"kind":"evnt","run_id":"r"}', "evnt"),
    "no kind": (b'{"run_id":"r"}', "kind"),
    "a wrong level": (b'{"kind":"event","run_id":"r","type":"x","level":"loud"}', "$.level"),
    "an unknown field": (b'{"kind":"event","run_id":"r","type":"x","levle":"info"}', "levle"),
    "no type": (b'{"kind":"event","run_id":"r"}', "type"),
    "a number beyond bounds": (b'{"kind":"span","run_id":"r","span_id":"s","name":"n","duration_ms":1e400}', "$"),
    "no record": (b"17", "$"),
    "a null": (b"null", "$"),
    "too large": (b'{"kind":"event","run_id":"r","type":"x","payload":"' + b"x" * 2**20 + b'"}', "max_record_bytes"),
    "too deep": (_deep(65), "max_depth"),
    "far too deep": (_deep(), "deep"),
}


@pytest.mark.parametrize("connect", [Frames, Lines])
def test_one_bad_record_never_costs_its_neighbours(world, daemon, connect):
    """Section 1: of an envelope, only the bad record is refused, with its place and the reason."""
    for seq, (what, (data, word)) in enumerate(BAD_RECORDS.items(), 1):
        good = world.ledger.events_of("r", 2)
        parts = b",".join([json.dumps(good[0]).encode(), data, json.dumps(good[1]).encode()])
        with connect(daemon) as client:
            client.send(b'{"seq":%d,"records":[%b]}' % (seq, parts))
            answer = client.receive()
            assert answer.get("accepted") == 2, (what, answer)
            ((index, error),) = [(item["index"], item["error"]) for item in answer["rejected"]]
            assert index == 1, what
            assert word in error, (what, error)
            world.ledger.took(good)
            assert client.deliver(world.ledger, world.ledger.events_of("r", 1)) == {}, what
        with connect(daemon) as client:  # and in silence, without an envelope
            good = world.ledger.events_of("r", 2)
            client.send(b"[%b]" % b",".join([json.dumps(good[0]).encode(), data, json.dumps(good[1]).encode()]))
            world.ledger.took(good)
            assert client.deliver(world.ledger, world.ledger.events_of("r", 1)) == {}, what
        _good_client(world, daemon, connect)


def test_http_takes_the_good_ones_too(world, daemon):
    """Section 5: 202 with the refusals if any was taken, 422 if none, 400 for what is no JSON."""
    good = world.ledger.event("r")
    for what, (data, _) in BAD_RECORDS.items():
        status, answer = http_call(daemon.socket, "POST", "/v1/records", data)
        assert status in (400, 422), (what, status, answer)
        assert set(answer["error"]) == {"code", "message"}, what
    body = b"[" + json.dumps(good).encode() + b"," + _deep() + b"]"
    status, answer = http_call(daemon.socket, "POST", "/v1/records", body)
    assert (status, answer["accepted"], len(answer["rejected"])) == (202, 1, 1)
    world.ledger.took([good])
    for request in (b"GET / FOO\r\n\r\n", b"POST /v1/records HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"A\x00\r\n\r\n"):
        with Frames(daemon) as client:
            client.raw(request)
            assert client.socket.recv(4096).startswith(b"HTTP/1.")
    assert http_call(daemon.socket, "GET", "/nonsense")[0] == 404
    assert http_call(daemon.socket, "POST", "/v1/records", b"{" + b" " * 5 * 2**20)[0] == 413
    _good_client(world, daemon)


def test_frames_and_lines_above_the_limit_end_the_connection(world, daemon):
    """Section 1: a frame or line above max_frame_bytes is answered before it is there, and costs this connection only."""
    with Frames(daemon) as client:
        client.raw(struct.pack(">I", 4 * 2**20 + 1))
        assert "max_frame_bytes" in client.receive()["error"]
        assert client.is_closed()
    with Frames(daemon) as client:
        client.raw(struct.pack(">I", 0))
        assert "error" in client.receive()
        assert client.is_closed()
    with Lines(daemon) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.raw(b"{" + b" " * 5 * 2**20)
        assert "max_frame_bytes" in client.receive()["error"]
    with Lines(daemon) as client:
        client.raw(b"\x16\x03\x01")  # TLS
        assert "first byte 0x16" in client.receive()["error"]
        assert client.is_closed()
    _good_client(world, daemon)


def test_who_sends_half_or_nothing_is_sent_away(world, daemon):
    """Half a frame, half a line, half a request and a silent connection end after frame_timeout; nobody else notices."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(kind(daemon)) for kind in (Frames, Lines, Lines, Frames)]
        half_frame, half_line, silent, half_request = connections
        half_frame.raw(struct.pack(">I", 100) + b'{"kind"')
        half_line.raw(b'{"kind"')
        half_request.raw(b"POST /v1/records HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        _good_client(world, daemon)
        assert "frame_timeout" in half_frame.receive()["error"]
        assert half_frame.is_closed()
        assert "frame_timeout" in half_line.receive()["error"]
        assert "frame_timeout" in silent.receive()["error"]
        assert b" 408 " in half_request.socket.recv(4096).splitlines()[0]
    assert 0.4 < time.monotonic() - begun < 5
    with Frames(daemon) as client:  # the end comes in the middle
        client.raw(struct.pack(">I", 100) + b'{"kind"')
        client.half_close()
        assert "error" in client.receive()
    _good_client(world, daemon)


def test_a_thousand_connections_at_once_are_all_served(world, daemon):
    """A storm of connections, each with a record, costs none of them; a good client meanwhile gets its answers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        clients = [stack.enter_context(Frames(daemon)) for _ in range(min(1000, BACKLOG))]
        _good_client(world, daemon)
        records = [[world.ledger.start(f"storm-{number}")] for number in range(len(clients))]
        for client, record in zip(clients, records, strict=True):
            client.send({"seq": 1, "records": record})
        for client, record in zip(clients, records, strict=True):
            assert client.receive() == {"seq": 1, "accepted": 1}
            world.ledger.took(record)
    _good_client(world, daemon)


def test_a_record_that_the_platform_refuses_dies_alone(world):
    """Promise 5: of 50 records the one that the platform answers with 400 becomes a dead letter with that answer; the others arrive."""
    daemon = world.daemon()
    world.platform.refuse("poison", 400)
    records = [*world.ledger.events_of("r", 24), world.ledger.event("r", word="poison")]
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r"), *records]) == {}
        assert client.deliver(world.ledger, world.ledger.events_of("r", 25)) == {}
    books = daemon.drained()
    assert (books["delivered"], books["dead"], books["causes"]["dead"]) == (50, 1, {"rejected": 1})
    listed = world.cli("--config", str(daemon.config), "dead-letters", "list", "--json")
    assert listed.returncode == 0
    (letter,) = json.loads(listed.stdout)
    assert letter["record"]["payload"]["word"] == "poison"
    assert (letter["status"], letter["cause"], letter["kind"]) == (400, "rejected", "event")
    assert "no poison here" in letter["answer"]
    assert "no poison here" in letter["reason"]
    shown = world.cli("--config", str(daemon.config), "dead-letters", "list")
    assert letter["id"] in shown.stdout
    assert "no poison here" in shown.stdout
    daemon.kill()
    daemon.start()
    assert [each["id"] for each in daemon.dead_letters()] == [letter["id"]]
    assert daemon.balanced()["dead"] == 1


def test_a_client_that_reads_no_answers_is_let_go(world, daemon):
    """A client that sends and never reads its answers is cut off after frame_timeout, and holds up nobody."""
    with Frames(daemon) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(10)
        bad = b'{"kind":"event","run_id":"r","type":"x","level":"' + b"x" * 200 + b'"}'
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            for seq in range(200_000):
                client.send(b'{"seq":%d,"records":[%b]}' % (seq, b",".join([bad] * 20)))
    _good_client(world, daemon)
    assert daemon.status()["intake"]["refused"]["slow_reader"] >= 1
