"""The HTTP dialect of the socket: every endpoint of the intake over a real Unix socket, with a sink and a daemon to command."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import tempfile
from uuid import UUID

import aiohttp
import pytest

from agentd.errors import RecordError
from agentd.intake import Grant, Peer
from agentd.intake.letters import Selection, add_letters
from agentd.intake.queues import Busy
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.sections import Config, Intake, Listen
from agentd.wire import Ack, Rejected

EVENT = {"kind": "event", "run_id": "r1", "type": "step"}
BAD = EVENT | {"level": "loud"}
JSON = {"Content-Type": "application/json"}
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
NDJSON = {"Content-Type": "application/x-ndjson"}
ME = Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())


class FakeSink:
    """Stores at once, unless `patient`; refuses what is no record, and everything with `full`."""

    def __init__(self):
        self.full = False
        self.patient = False
        self.broken = False
        self.taken = []
        self.futures = []
        self.refused = []
        self.kept = []
        self.called = asyncio.Event()

    def hello(self, hello, peer):
        raise AssertionError("HTTP has no hello")

    def submit(self, message, peer, *, stream, origin, hold):
        if self.broken:
            raise ZeroDivisionError("a secret of ours")
        self.taken.append((message, peer, stream, origin, hold))
        bad = [Rejected(i, str(item)) for i, item in enumerate(message.items) if isinstance(item, RecordError)]
        good = [Rejected(i, "spool full") for i, item in enumerate(message.items) if not isinstance(item, RecordError)]
        rejected = sorted(bad + good, key=lambda one: one.index) if self.full else bad
        future = asyncio.get_running_loop().create_future()
        self.futures.append((future, Ack(-1, len(message.items) - len(rejected), rejected)))
        if not self.patient:
            self.finish()
        self.called.set()
        return future

    def finish(self):
        for future, ack in self.futures:
            if not future.done():
                future.set_result(ack)

    def refuse(self, cause, detail, peer):
        self.refused.append((cause, detail, peer))

    def keep(self, raw, reason, peer, origin, kind=""):
        if raw:
            self.kept.append((raw, reason, peer, origin))


class FakeControl:
    """A daemon that is as the test sets it."""

    def __init__(self):
        self.sick = None
        self.busy = None
        self.admin = True
        self.letters = [{"id": "x"}]
        self.calls = []

    def status(self):
        return {"agentd": "0.1.0", "state": "running"}

    def unhealthy(self):
        return self.sick

    def unready(self):
        return self.busy

    def metrics(self):
        return b"agentd_up 1\n", "text/plain; version=0.0.4; charset=utf-8"

    async def flush(self, until, timeout_s):
        self.calls.append((until, timeout_s))
        return {"flushed": True, "until": until}

    async def run(self, run_id, **_):
        return {"run_id": run_id} if run_id == "known/r 1" else None

    async def listing(self, chosen, viewer, **asked):
        self.calls.append((chosen, viewer, asked))
        if isinstance(self.letters, Exception):
            raise self.letters
        return self.letters

    async def replay(self, chosen, admin, *, force):
        self.calls.append((chosen, admin, force))
        return {"replayed": 1, "left": {}}

    async def purge(self, chosen, admin, reason):
        self.calls.append((chosen, admin, reason))
        return {"purged": 1}

    def may_decide(self, peer):
        return self.is_admin(peer)

    def is_admin(self, peer):
        assert peer == ME
        return self.admin


class House:
    """A server's path, and a client that asks there."""

    def __init__(self, folder, sink, control):
        self.folder = folder
        self.path = path = f"{folder}/s"
        self.sink = sink
        self.control = control
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), base_url="http://agentd")

    async def call(self, method, path, **options):
        """Status, headers and decoded body; every answer is JSON but for the metrics."""
        async with self.session.request(method, path, **options) as answer:
            body = await answer.read()
            assert answer.headers["Server"] == "agentd"
            is_json = answer.content_type == "application/json"
            return answer.status, answer.headers, json.loads(body) if is_json and body else body.decode()

    async def post(self, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call("POST", "/v1/records", data=data, headers=headers or JSON)


async def start(**intake):
    folder = tempfile.mkdtemp(prefix="ad-")
    sink, control = FakeSink(), FakeControl()
    config = Config(listen=Listen(socket=f"{folder}/s"), intake=Intake(**intake))
    app = build_app(sink, control, config)
    add_letters(app, control, control)
    server = Server(config, sink, app)
    await server.start()
    return server, House(folder, sink, control)


async def end(server, house):
    await house.session.close()
    house.sink.finish()
    await server.aclose(1.0)
    shutil.rmtree(house.folder)


@pytest.fixture
async def house():
    server, house = await start()
    yield house
    await end(server, house)


@pytest.fixture
async def hasty():
    """A house with small limits."""
    server, house = await start(frame_timeout=0.05, max_frame_bytes=2048)
    yield house
    await end(server, house)


async def talk(path, *parts, half_close=False):
    """Send the parts and read to the end, without any HTTP library."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, path)
        for part in parts:
            await loop.sock_sendall(sock, part)
            await asyncio.sleep(0)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := await loop.sock_recv(sock, 65536):
            answer += data
        return answer


def error_of(answer):
    status, _, body = answer
    assert set(body["error"]) == {"code", "message"}
    return status, body["error"]["code"]


# Records


@pytest.mark.parametrize("body", [EVENT, [EVENT], {"seq": 9, "records": [EVENT]}])
async def test_record_array_or_envelope_is_taken(house, body):
    """One record, an array, or an envelope whose seq comes back: 202 once it is stored."""
    status, _, answer = await house.post(body)
    assert status == 202
    assert answer == ({"seq": 9} if "seq" in body else {}) | {"accepted": 1, "rejected": []}
    _, peer, stream, origin, hold = house.sink.taken[0]
    assert (peer, stream, origin, hold) == (ME, None, "http", False)


async def test_answer_comes_after_the_disk(house):
    """The answer is not given before the sink says that every record is stored."""
    house.sink.patient = True
    call = asyncio.ensure_future(house.post(EVENT))
    await house.sink.called.wait()
    assert (await house.call("GET", "/healthz"))[0] == 200
    assert not call.done()
    house.sink.finish()
    assert (await call)[0] == 202


@pytest.mark.parametrize("headers", [NDJSON, {"Content-Type": "application/x-www-form-urlencoded"}, JSON])
async def test_one_record_a_line(house, headers):
    """Records on lines are taken, by content type or because the first line is JSON by itself."""
    lines = b"\r\n".join(json.dumps(record).encode() for record in (EVENT, EVENT)) + b"\n\n"
    status, _, answer = await house.post(lines, **headers)
    assert (status, answer["accepted"]) == (202, 2)


async def test_pretty_printed_json_is_one_document(house):
    """Newlines inside a JSON document do not make it lines."""
    status, _, answer = await house.post(json.dumps([EVENT, EVENT], indent=1).encode())
    assert (status, answer["accepted"]) == (202, 2)


async def test_indices_count_over_the_whole_body(house):
    """In lines the index counts records from the body's first, arrays and unreadable lines included."""
    lines = b"\n".join([json.dumps([EVENT, BAD]).encode(), b"{nonsense", json.dumps(BAD).encode(), b"[]"])
    status, _, answer = await house.post(lines, **NDJSON)
    assert (status, answer["accepted"]) == (202, 1)
    assert [one["index"] for one in answer["rejected"]] == [1, 2, 3]
    assert "malformed" in answer["rejected"][1]["error"]


async def test_part_of_the_records_is_taken(house):
    """One bad record never costs its neighbours: 202, and the refused one by index and reason."""
    status, _, answer = await house.post([EVENT, BAD, EVENT])
    assert (status, answer["accepted"], answer["rejected"][0]["index"]) == (202, 2, 1)


async def test_no_records_are_no_error(house):
    """An empty list is taken: nothing was asked, nothing is missing."""
    assert (await house.post([]))[0::2] == (202, {"accepted": 0, "rejected": []})


async def test_none_taken_is_422(house):
    """When no record was taken the status says so, with the reason and the list."""
    status, _, answer = await house.post([BAD, BAD])
    assert (status, answer["accepted"], len(answer["rejected"])) == (422, 0, 2)
    assert answer["error"]["code"] == "refused"
    assert "$.level" in answer["error"]["message"]


async def test_full_queue_is_503(house):
    """Refused only because of a full queue: 503 with Retry-After; with another reason among them 422."""
    house.sink.full = True
    status, headers, answer = await house.post([EVENT, EVENT])
    assert (status, headers["Retry-After"], answer["error"]["code"]) == (503, "1", "spool_full")
    assert len(answer["rejected"]) == 2
    status, headers, _ = await house.post([EVENT, BAD])
    assert (status, "Retry-After" in headers) == (422, False)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1,", b"nonsense", b'{"kind":"event"', b'{"seq":1}', b'{"hello":1}', b"\xff", b"x\ny\n"]
)
@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_what_is_no_json_is_400(house, body, headers):
    """A body of which nothing can be read is 400 in the one form that errors have, and counted."""
    if headers is NDJSON and body == b"":
        assert (await house.post(body, **headers))[0] == 202  # no lines are an empty list
        return
    assert error_of(await house.post(body, **headers)) == (400, "malformed")
    assert [cause for cause, *_ in house.sink.refused] == ["malformed"]
    assert house.sink.taken == []


async def test_body_above_the_limit_is_413(hasty):
    """A body above intake.max_frame_bytes is 413 whether its length is said or not; one at the limit is taken."""
    body = json.dumps(EVENT).encode()
    assert (await hasty.post(body + b" " * (2048 - len(body))))[0] == 202
    assert error_of(await hasty.post(body + b" " * (2049 - len(body)))) == (413, "too_large")

    async def chunks():
        for _ in range(3):
            yield b" " * 1024

    answer = await hasty.call("POST", "/v1/records", data=chunks(), headers=JSON)
    assert error_of(answer) == (413, "too_large")
    assert [cause for cause, *_ in hasty.sink.refused] == ["oversized", "oversized"]


async def test_compressed_body_is_measured_unpacked(hasty):
    """gzip is taken, and the limit counts what it unpacks to."""
    small, bomb = gzip.compress(json.dumps(EVENT).encode()), gzip.compress(b" " * 10**6)
    assert (await hasty.post(small, **JSON, **{"Content-Encoding": "gzip"}))[0] == 202
    assert error_of(await hasty.post(bomb, **JSON, **{"Content-Encoding": "gzip"})) == (413, "too_large")


async def test_chunks_and_keep_alive_work(house):
    """What HTTP/1.1 clients do works: a chunked body, and many requests on one connection."""
    body = json.dumps(EVENT).encode()
    chunked = b"POST /v1/records HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"5\r\n" + body[:5] + b"\r\n" + b"%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = await talk(house.path, chunked[:3], chunked[3:60], chunked[60:], chunked + last)
    assert answer.count(b"HTTP/1.1 202 ") == 2
    assert answer.count(b"HTTP/1.1 200 ") == 1


async def test_request_is_answered_after_the_peer_ended_its_half(house):
    """`printf 'GET …' | nc -UN` gets its answer, and then the end."""
    answer = await talk(house.path, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", half_close=True)
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_idle_connection_that_ends_is_let_go(house):
    """A client that closes between two requests leaves nothing behind."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, house.path)
        await loop.sock_sendall(sock, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await loop.sock_recv(sock, 65536)
        sock.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(sock, 65536) == b""


async def test_half_a_body_is_408(hasty):
    """A body whose rest does not come is ended after intake.frame_timeout, and counted."""
    answer = await talk(hasty.path, b"POST /v1/records HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in answer
    assert [cause for cause, *_ in hasty.sink.refused] == ["half_message"]


async def test_reader_of_half_an_answer_is_cut_off(hasty):
    """A large answer that nobody goes on reading is given up after intake.frame_timeout, and counted."""
    hasty.control.letters = ["x" * 2**22]
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, hasty.path)
        await loop.sock_sendall(sock, b"GET /v1/dead-letters HTTP/1.1\r\nHost: a\r\n\r\n")
        while not hasty.sink.refused:
            await talk(hasty.path, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert [cause for cause, *_ in hasty.sink.refused] == ["slow_reader"]


async def test_slow_answer_is_no_half_request(hasty):
    """The time that storing takes is ours: a request that has come in whole is never ended for it."""
    hasty.sink.patient = True
    call = asyncio.ensure_future(hasty.post(EVENT))
    await hasty.sink.called.wait()
    assert b"408" in await talk(hasty.path, b"GET /hea")  # somebody else's term began later and has run out
    hasty.sink.finish()
    assert (await call)[0] == 202


async def test_what_is_no_http_is_an_error_in_our_form(house):
    """Bytes that only begin like HTTP are answered 400, as JSON, without the parser's name or version."""
    answer = await talk(house.path, b"GET / HTTP/1.1\r\nbroken header\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert b"Server: agentd\r\n" in head + b"\r\n"
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert [cause for cause, *_ in house.sink.refused] == ["malformed"]


async def test_request_under_way_is_answered_while_the_server_closes():
    """A server that closes ends idle HTTP connections at once and answers the requests under way."""
    server, house = await start()
    house.sink.patient = True
    await house.call("GET", "/healthz")  # leaves an idle connection
    call = asyncio.ensure_future(house.post(EVENT))
    await house.sink.called.wait()
    closing = asyncio.ensure_future(server.aclose(30.0))
    while server.connections > 1:
        await asyncio.sleep(0)
    assert not closing.done()
    house.sink.finish()
    assert (await call)[0] == 202
    await closing
    await end(server, house)


# The rest


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_and_readiness(house, path):
    """200 with status ok; 503 with status and reason when the daemon is stuck, or can't take records."""
    assert (await house.call("GET", path))[0::2] == (200, {"status": "ok"})
    house.control.sick = house.control.busy = "the storage thread is stuck"
    status, _, body = await house.call("GET", path)
    assert (status, body["reason"]) == (503, "the storage thread is stuck")
    assert body["status"] in {"unhealthy", "unready"}


async def test_metrics_and_status(house):
    """The daemon's metrics with their own content type, and its status as JSON."""
    status, headers, body = await house.call("GET", "/metrics")
    assert (status, body) == (200, "agentd_up 1\n")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert (await house.call("GET", "/v1/status"))[2] == {"agentd": "0.1.0", "state": "running"}


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", ("delivered", 5.0)),
        ("?until=stored&timeout=0.25", ("stored", 0.25)),
        ("?timeout=250ms", ("delivered", 0.25)),
        ("?timeout=0", ("delivered", 0.0)),
    ],
)
async def test_flush(house, query, asked):
    """Flush waits for what is asked, by default until delivered and for 5 s."""
    status, _, body = await house.call("POST", f"/v1/flush{query}")
    assert (status, body["until"], house.control.calls) == (200, asked[0], [asked])


@pytest.mark.parametrize("query", ["until=gone", "until=", "timeout=soon", "timeout=-1", "timeout=nan", "timeout=inf"])
async def test_flush_that_makes_no_sense_is_400(house, query):
    """A wrong `until` or `timeout` is an error and flushes nothing."""
    assert error_of(await house.call("POST", f"/v1/flush?{query}")) == (400, "bad_request")
    assert house.control.calls == []


async def test_flush_is_for_admins(house):
    """Who is neither the daemon's uid nor root nor in security.admin_uids gets 403, and nothing is flushed."""
    house.control.admin = False
    assert error_of(await house.call("POST", "/v1/flush")) == (403, "forbidden")
    assert house.control.calls == []


async def test_run(house):
    """What is known of a run, whatever characters its id has; 404 for one of which nothing is known."""
    assert (await house.call("GET", "/v1/runs/known%2Fr%201"))[0::2] == (200, {"run_id": "known/r 1"})
    assert error_of(await house.call("GET", "/v1/runs/other")) == (404, "not_found")


async def test_dead_letters_are_asked_for_with_who_asks(house):
    """The filters, and who asks, go to the daemon: what may be seen is decided there."""
    house.control.admin = False
    assert (await house.call("GET", "/v1/dead-letters"))[2] == [{"id": "x"}]
    await house.call("GET", "/v1/dead-letters?limit=3&destination=agentos&run=r1&cause=rejected")
    await house.call("GET", f"/v1/dead-letters?id={ID}&id={ID.upper()}&older=7d&after=17")
    nobody = {"admin": False, "grant": Grant()}
    assert house.control.calls == [
        (Selection(), ME, nobody | {"limit": 100, "after": None}),
        (Selection(frozenset(), "agentos", "r1", "rejected"), ME, nobody | {"limit": 3, "after": None}),
        (Selection(frozenset([UUID(ID).bytes]), older_s=604_800.0), ME, nobody | {"limit": 100, "after": 17}),
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("id=17", "id: expected a record's id, a UUID such as"),
        ("cause=rejeted", "cause: expected one of rejected, too_large, "),
        ("older=soon", "older: expected a number with a unit"),
        ("after=-1", "after: expected 0 to "),
        ("destinaton=x", "'destinaton': no such parameter; expected id, destination, run, cause, older, limit, after"),
    ],
)
async def test_a_question_about_letters_that_makes_no_sense_is_400(house, query, said):
    """What is misspelt is not ignored: the answer would be to another question."""
    answer = await house.call("GET", f"/v1/dead-letters?{query}")
    assert error_of(answer) == (400, "bad_request")
    assert answer[2]["error"]["message"].startswith(said)
    assert house.control.calls == []


async def test_too_many_who_look_at_letters_are_told_to_come_again(house):
    """One question is answered at a time, off the event loop; 503 with `Retry-After` for more than a few."""
    house.control.letters = Busy("ask again later")
    status, headers, body = await house.call("GET", "/v1/dead-letters")
    assert (status, headers["Retry-After"], body["error"]["code"]) == (503, "5", "busy")


async def test_letters_are_replayed_as_they_were_chosen(house):
    """By ids, destination, run, cause and age, or all of them in so many words; by force only if that is said."""
    body = {"ids": [ID], "destination": "d", "run": "r", "cause": "rejected", "older_than": "90s", "force": True}
    assert (await house.call("POST", "/v1/dead-letters/replay", json=body))[2] == {"replayed": 1, "left": {}}
    await house.call("POST", "/v1/dead-letters/replay", json={"all": True})
    assert house.control.calls == [
        (Selection(frozenset([UUID(ID).bytes]), "d", "r", "rejected", 90.0), ME, True),
        (Selection(), ME, False),
    ]


async def test_letters_are_purged_for_a_reason(house):
    """Which the journal will keep, on one line."""
    body = {"run": "r", "reason": " a test,\n ticket 17 "}
    assert (await house.call("POST", "/v1/dead-letters/purge", json=body))[2] == {"purged": 1}
    assert house.control.calls == [(Selection(run="r"), ME, "a test, ticket 17")]


@pytest.mark.parametrize("verb", ["replay", "purge"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "an empty choice: say ids, destination, run, cause or older_than, or "),
        ({"ids": []}, "an empty choice"),
        ({"all": False}, "an empty choice"),
        ({"all": True, "run": "r"}, "$.all: goes with none of ids"),
        ({"idz": [ID]}, "$.idz: unknown field"),
        ({"ids": ["17"]}, "$.ids: expected a record's id"),
        ({"ids": ID}, "$.ids: expected"),
        ({"cause": "x"}, "cause: expected one of rejected"),
        ({"older_than": "soon"}, "$.older_than: expected a number with a unit"),
        ({"older_than": -1}, "$.older_than: expected a duration between"),
        (b"{", "the body is no JSON"),
        (b"[]", "$: expected"),
    ],
)
async def test_a_choice_of_letters_that_makes_no_sense_is_400(house, verb, body, said):
    """Nothing is replayed or purged by an oversight, and the field is named."""
    why = {"reason": "why"} if verb == "purge" else {}
    data = body if isinstance(body, bytes) else json.dumps(body | why).encode()
    answer = await house.call("POST", f"/v1/dead-letters/{verb}", data=data)
    assert error_of(answer) == (400, "bad_request")
    assert answer[2]["error"]["message"].startswith(said)
    assert house.control.calls == []


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("purge", {"all": True}),
        ("purge", {"all": True, "reason": " "}),
        ("purge", {"all": True, "reason": "x" * 1001}),
        ("purge", {"all": True, "reason": "x", "force": True}),
        ("replay", {"all": True, "reason": "x"}),
    ],
)
async def test_a_purge_has_a_reason_and_a_replay_has_none(house, verb, body):
    """What belongs to the one is an unknown field of the other."""
    answer = await house.call("POST", f"/v1/dead-letters/{verb}", json=body)
    assert error_of(answer) == (400, "bad_request")
    assert house.control.calls == []


@pytest.mark.parametrize("verb", ["replay", "purge"])
async def test_letters_are_moved_by_who_may_decide_alone(house, verb):
    """403 before anything of the body is read."""
    house.control.admin = False
    assert error_of(await house.call("POST", f"/v1/dead-letters/{verb}", data=b"{")) == (403, "forbidden")
    assert house.control.calls == []


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1001", "99999999999999999999", "1e2", "0" * 17 + "15000"])
async def test_limit_that_makes_no_sense_is_400(house, limit):
    """A wrong limit is an error."""
    assert error_of(await house.call("GET", f"/v1/dead-letters?limit={limit}")) == (400, "bad_request")


async def test_unknown_path_is_404(house):
    """An unknown path is 404 in the one form that errors have."""
    assert error_of(await house.call("GET", "/v1/nothing")) == (404, "not_found")


async def test_wrong_method_is_405(house):
    """A wrong method is 405 and says which are right."""
    answer = await house.call("GET", "/v1/records")
    assert error_of(answer) == (405, "method_not_allowed")
    assert answer[1]["Allow"] == "POST"


async def test_fault_of_ours_is_500_without_its_inside(house, caplog):
    """An unexpected exception is 500 with a log line, and nothing of it in the body."""
    house.sink.broken = True
    answer = await house.post(EVENT)
    assert error_of(answer) == (500, "internal")
    assert "secret" not in json.dumps(answer[2])
    assert "a secret of ours" in caplog.text
