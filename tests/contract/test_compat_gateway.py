"""`/{destination}/…` over a real socket, with a platform that notes what comes: what passes, what goes out, what comes back."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import tempfile

import aiohttp
import pytest
from aiohttp import web

from agentd import platforms
from agentd.ageing import Clocks
from agentd.compat.build import build_gateway
from agentd.errors import RecordError
from agentd.exchange import Lost
from agentd.gate.keeper import Passed
from agentd.http import Http
from agentd.intake import GateRefusal
from agentd.intake.access import Access
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.queued import KNOWN, Ref
from agentd.reach import Reach
from agentd.redact.build import no_redactor
from agentd.sections import Config, Destination, Intake, Listen, Security
from agentd.testing import FakeClock
from agentd.wire import Ack, Rejected, encode

KEY = "aos_agent_the_platforms_own"
TOKENS = ["local-token-of-all-agents", "local-token-of-billing-alone", "local-token-of-another-place"]
START = "/agentos/api/ingest/v1/run/start"
EVENTS = "/agentos/api/ingest/v1/events"
RUNS_GET = "/agentos/api/v1/rpc/runs_get"
INVOKE = "/agentos/api/v1/agents/billing/invoke"
HUMAN = "/agentos/api/ingest/v1/human-input/request"
UID = os.getuid()


class FakeSink:
    """Stores at once and remembers ids; `full` and `refuse_with` turn records away."""

    def __init__(self):
        self.records = []
        self.ids = {}
        self.full = 0
        self.refuse_with = None
        self.faults = []
        self.kept = []

    def submit(self, message, peer, *, stream, origin, hold):
        assert (stream, origin, hold) == (None, "sdk", False)
        assert not any(isinstance(item, RecordError) for item in message.items)
        rejected = []
        for index, record in enumerate(message.items):
            if record.id.bytes in self.ids:
                if self.ids[record.id.bytes] != encode(record):
                    rejected.append(Rejected(index, f"$.id: {record.id} was used for other content"))
                continue
            if self.refuse_with:
                rejected.append(Rejected(index, self.refuse_with))
            elif self.full:
                self.full -= 1
                rejected.append(Rejected(index, "spool full"))
            else:
                self.ids[record.id.bytes] = encode(record)
                self.records.append((record, peer))
        future = asyncio.get_running_loop().create_future()
        future.set_result(Ack(-1, len(message.items) - len(rejected), rejected))
        return future

    def refuse(self, cause, detail, peer):
        self.faults.append((str(cause), detail))

    def keep(self, raw, reason, peer, origin, kind=""):
        self.kept.append((raw, reason, origin, kind))

    def knows(self, uid, record_id):
        return record_id in self.ids


class FakeKeeper:
    """A gate room that sends through the way it is given, and notes what is on its record."""

    def __init__(self):
        self.redactor = no_redactor()
        self.asked = []
        self.heard = []  # gates whose answer has gone out
        self.unsent = None
        self.refusal = None

    async def pass_on(self, destination, gate, asked, request, peer, *, deadline_s, way, owed=b""):
        if self.refusal is not None:
            raise self.refusal
        if self.unsent:
            return Passed(None, None, {"reason": self.unsent})
        headers = {"authorization": f"Bearer {KEY}", "idempotency-key": "gate-1"}
        answer = await way.send(request, headers, timeout_s=deadline_s, limit=10)
        self.asked.append((destination, gate, asked, answer))
        return Passed(answer, None, {"reason": "said so"})

    def told(self, gate):
        self.heard.append(gate)


class Refs:
    def __init__(self):
        self.known = {}

    def add(self, local_id, platform_id, uid=UID, agent="billing"):
        self.known["run", local_id] = Ref("agentos", "run", local_id, agent, uid, 1, KNOWN, platform_id)

    @property
    def refs(self):
        return self

    def get(self, destination, kind, local_id):
        return self.known.get((kind, local_id))

    def named(self, destination, kind, platform_id):
        return [ref for (of, _), ref in self.known.items() if (of, ref.platform_id) == (kind, platform_id)]

    async def wait_for_names(self):
        await asyncio.Event().wait()


class Site:
    """A destination as the composition root has it."""

    def __init__(self, name, url, **settings):
        self.name = name
        self.destination = Destination(platform=name, agent_id="billing", **settings)
        self.platform = platforms.load(name)
        self.reach = Reach(url)
        self.api_key = KEY
        self.signing_secret = None

    def agent_of(self, local):
        return {"billing": "P-BILLING"}.get(local, local)


class House:
    """agentd's HTTP side with the gateway in it, the platform behind it, and a client."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="cg-", dir="/tmp")
        self.sink = FakeSink()
        self.keeper = FakeKeeper()
        self.refs = Refs()
        self.admins = {UID}
        self.came = []
        self.clock = FakeClock()
        self.answer = lambda _request: web.json_response({"data": {"ok": True}, "error": None})

    async def start(self, **settings):
        await self._serve_platform()
        listen = Listen(socket=f"{self.folder}/s", http="127.0.0.1:0")
        config = Config(
            listen=listen,
            intake=Intake(max_frame_bytes=4096),
            security=Security(tokens=[_rule(), _rule(agent_ids=["billing"]), _rule(destinations=["elsewhere"])]),
            destinations={name: Destination(platform=name) for name in ("agentos", "aegis", "decisionos")},
        )
        self.http = await Http().__aenter__()
        gateway = build_gateway(
            {name: Site(name, self.url, **settings) for name in config.destinations},
            config,
            spool=self.refs,
            sink=self.sink,
            keeper=self.keeper,
            http=self.http,
            is_admin=lambda peer: peer.local and peer.uid in self.admins,
            clocks=Clocks(self.clock.now_us, self.clock),
        )
        app = build_app(self.sink, None, config, Access(config.security, TOKENS))
        gateway.add_to(app)
        self.stands = list(gateway._stands.values())
        self.server = Server(config, self.sink, app)
        await self.server.start()
        self.session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(listen.socket), base_url="http://agentd")
        return self

    async def _serve_platform(self):
        async def note(request):
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.came.append((request.method, request.raw_path, headers, await request.read()))
            answer = self.answer(request)
            return await answer if asyncio.iscoroutine(answer) else answer

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", note)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def post(self, path, body=None, method="POST", **options):
        """Status, headers and body, which is JSON in AgentOS's envelope or in ours."""
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        async with self.session.request(method, path, data=data, allow_redirects=False, **options) as answer:
            raw = await answer.read()
            return answer.status, answer.headers, json.loads(raw) if raw else None

    async def raw(self, target, body=b"{}"):
        """One POST with this request target, as it is; its status and body."""
        reader, writer = await asyncio.open_unix_connection(f"{self.folder}/s")
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(data.split()[1]), data.partition(b"\r\n\r\n")[2]

    async def stop(self):
        await self.session.close()
        await self.server.aclose(1)
        await self.http.__aexit__(None, None, None)
        await self.runner.cleanup()
        shutil.rmtree(self.folder)


def _rule(**facts):
    from agentd.sections import Secret, TokenRule

    return TokenRule(token=Secret(env="TOKEN"), **facts)


@pytest.fixture
async def house():
    house = House()
    yield await house.start()
    await house.stop()


@pytest.fixture
async def open_house():
    house = House()
    yield await house.start(passthrough="admin")
    await house.stop()


# -- telemetry ---------------------------------------------------------------------------------------------------------


async def start(house, external="ext-1", **more):
    return await house.post(START, {"agent_id": "billing", "input": {}, "external_run_id": external, **more})


async def test_telemetry_is_answered_from_here(house):
    """A start is stored with its destination and answered in AgentOS's envelope; the platform is not asked."""
    status, headers, body = await start(house)
    (record, peer) = house.sink.records[0]
    assert (status, headers["Content-Type"], body["error"]) == (200, "application/json", None)
    assert body["data"]["run_id"] == record.run_id
    assert (record.to, record.agent_id, record.external_run_id, peer.uid) == (["agentos"], "billing", "ext-1", UID)
    assert house.came == []


async def test_the_sdks_own_key_gives_the_same_id_and_one_record(house):
    """Twice with one `external_run_id`, whatever else it says; another one is another run."""
    first, again = (await start(house))[2], (await start(house, input={"other": 1}))[2]
    other, agents = (await start(house, "ext-2"))[2], (await start(house, agent_id="sales"))[2]
    ids = [answer["data"]["run_id"] for answer in (first, again, other, agents)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == len(house.sink.records) == 3


async def test_a_repeated_body_is_known(house):
    """The same bytes within ten minutes are one batch; one more byte is another."""
    body = {"run_id": "r", "events": [{"type": "a", "occurred_at": "2026-01-01T00:00:00Z"}, {"type": "b"}]}
    for _ in range(3):
        assert (await house.post(EVENTS, body))[::2] == (200, {"data": {"accepted": 2}, "error": None})
        house.clock.advance(200)
    assert len(house.sink.records) == 2
    await house.post(EVENTS, body | {"events": [{"type": "c"}]})
    assert len(house.sink.records) == 3


@pytest.mark.parametrize("jump_s", [366 * 86_400, -366 * 86_400, -1_767_225_600, 2_303_596_800])
async def test_a_repeated_body_is_known_whatever_the_clock_says(house, jump_s):
    """The ten minutes are those that went by: a wall clock that is set in between makes no second batch, and no lasting one."""
    body = {"run_id": "r", "events": [{"type": "a"}, {"type": "b"}]}
    for seconds, jump in ((0, jump_s), (30, -jump_s), (200, jump_s), (300, 0)):
        house.clock.advance(seconds)
        assert (await house.post(EVENTS, body))[0] == 200
        house.clock.set_wall(jump)
    assert len(house.sink.records) == 2
    house.clock.advance(700)
    await house.post(EVENTS, body)
    assert len(house.sink.records) == 4


async def test_a_start_without_a_key_is_known_by_its_body(house):
    """The same id within ten minutes, another one later."""
    ids = []
    for minutes in (0, 9, 20):
        house.clock.advance(minutes * 60)
        ids.append((await house.post(START, {"agent_id": "billing"}))[2]["data"]["run_id"])
    assert ids[0] == ids[1] != ids[2]
    assert [record.run_id for record, _ in house.sink.records] == [ids[0], ids[2]]


async def test_a_full_spool_is_a_status_that_the_sdk_repeats(house):
    """429 with Retry-After; the repeat stores what was missing, and only that."""
    house.sink.full = 1
    body = {"run_id": "r", "events": [{"type": "a"}, {"type": "b"}]}
    status, headers, answer = await house.post(EVENTS, body)
    assert (status, headers["Retry-After"], answer["error"]["code"]) == (429, "1", "RATE_LIMITED")
    assert (await house.post(EVENTS, body))[0] == 200
    assert sorted(record.type for record, _ in house.sink.records) == ["a", "b"]


async def test_a_refused_record_is_the_platforms_400(house):
    """What agentd doesn't take is said in the envelope, and the SDK's exception is its own."""
    house.sink.refuse_with = "$.to: agentos does not take event of agent 'x'"
    status, _, answer = await house.post(EVENTS, {"run_id": "r", "events": [{"type": "a"}]})
    assert (status, answer["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert answer["error"]["message"] == "agentos does not take event of agent 'x'"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[1]", "$: expected a JSON object"),
        (b'{"run_id":', "$: no JSON: Input data was truncated"),
        (b'{"run_id":"r","events":[{"type":"\xff"}]}', "$: invalid UTF-8 at byte 32"),
        (b"", "$.run_id: required"),
        (b'{"events":[]}', "$.run_id: required"),
        (b'{"run_id":"r","events":[{"type":"a"},{"level":"info"}]}', "$.events[1].type: required field is missing"),
    ],
)
async def test_a_bad_body_is_named(house, body, said):
    """Nothing of the call is stored, and the answer names the field in the SDK's words."""
    status, _, answer = await house.post(EVENTS, body)
    assert (status, answer["error"]["code"], house.sink.records) == (400, "VALIDATION_ERROR", [])
    assert said.split(":")[0] in answer["error"]["message"]
    assert answer["data"] is None


async def test_a_refused_record_of_an_sdks_is_evidence(house):
    """What is no record is handed to be kept, as a record as far as it could be made one, else as the SDK has sent it."""
    body = {"run_id": "r" * 300, "error_message": "e"}
    status, _, answer = await house.post("/agentos/api/ingest/v1/run/fail", body)
    assert status == 400
    await house.post("/agentos/api/ingest/v1/run/fail", b'{"run_id":7}')
    (raw, reason, origin, kind), as_sent = house.sink.kept
    assert json.loads(raw) == {"kind": "run.fail", **body}
    assert (reason, origin, kind) == (answer["error"]["message"], "sdk", "run.fail")
    assert (as_sent[0], as_sent[3]) == (b'{"run_id":7}', "run.fail")


async def test_half_a_surrogate_costs_nothing(house):
    """`json.dumps` writes what no other parser takes: it becomes U+FFFD, and its batch is stored."""
    body = json.dumps({"run_id": "r", "events": [{"type": "a", "payload": {"t": "\ud800 \\ud800 \U0001f600"}}]})
    assert (await house.post(EVENTS, body.encode()))[0] == 200
    assert json.loads(bytes(house.sink.records[0][0].payload)) == {"t": "\ufffd \\ud800 \U0001f600"}


async def test_a_body_that_is_too_large_is_413(house):
    """In the platform's envelope, whether it says its length or not."""
    large = json.dumps({"run_id": "r", "events": [{"type": "x" * 5000}]}).encode()
    assert (await house.post(EVENTS, large))[2]["error"]["code"] == "PAYLOAD_TOO_LARGE"

    async def pieces():
        yield large

    async with house.session.post(EVENTS, data=pieces()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_packed_body_is_read(house):
    """What an SDK's HTTP client has compressed."""
    body = gzip.compress(json.dumps({"run_id": "r", "events": [{"type": "a"}]}).encode())
    assert (await house.post(EVENTS, body, headers={"Content-Encoding": "gzip"}))[0] == 200


async def test_anothers_run_takes_nothing(house):
    """Another user's run is not found, for telemetry as for everything else."""
    house.refs.add("theirs", "P-1", uid=UID + 1)
    house.admins = set()
    for path, body in (
        (EVENTS, {"run_id": "theirs", "events": [{"type": "a"}]}),
        ("/agentos/api/ingest/v1/run/complete", {"run_id": "theirs"}),
        ("/agentos/api/ingest/v1/tasks", {"run_id": "theirs", "task": {"id": "t", "name": "n", "status": "running"}}),
        (RUNS_GET, {"run_id": "theirs"}),
        (HUMAN, {"run_id": "theirs", "prompt": "p"}),
        (INVOKE, {"parent_run_id": "theirs"}),
    ):
        status, _, answer = await house.post(path, body)
        assert (status, answer["error"]["code"]) == (404, "NOT_FOUND"), path
    assert (house.sink.records, house.came, house.keeper.asked) == ([], [], [])


# -- reads -------------------------------------------------------------------------------------------------------------


async def test_a_read_passes_with_the_platforms_key(house):
    """Local ids are the platform's on the way out; the caller's token and cookies stay here; the answer comes as it is."""
    house.refs.add("r", "P-RUN")
    house.answer = lambda _request: web.Response(
        status=418, body=b'{"data":  {"id":1}}', content_type="application/json",
        headers={"Set-Cookie": "a=b", "X-Request-Id": "q", "Retry-After": "7", "Location": "http://x"},
    )  # fmt: skip
    sent = {"Authorization": "Bearer local", "Cookie": "c=d", "User-Agent": "sdk/1", "X-Forwarded-For": "1.2.3.4"}
    data = b'{"run_id":"r", "n": 1.50}'
    async with house.session.post(RUNS_GET + "?a=b%20c", data=data, headers=sent) as answer:
        assert (answer.status, await answer.read()) == (418, b'{"data":  {"id":1}}')
        assert (answer.headers["X-Request-Id"], answer.headers["Retry-After"]) == ("q", "7")
        assert not {"Set-Cookie", "Location"} & set(answer.headers)
    method, path, headers, body = house.came[0]
    assert (method, path, body) == ("POST", "/api/v1/rpc/runs_get?a=b+c", b'{"run_id":"P-RUN","n":1.50}')
    assert (headers["authorization"], headers["user-agent"]) == (f"Bearer {KEY}", "sdk/1")
    assert not {"cookie", "x-forwarded-for", "idempotency-key"} & set(headers)


async def test_a_large_answer_passes_piece_by_piece(house):
    """16 MiB and more, whole and untouched."""
    large = os.urandom(17 * 2**20)
    house.answer = lambda _request: web.Response(body=large, content_type="application/octet-stream")
    async with house.session.post(RUNS_GET, data=b"{}") as answer:
        assert await answer.read() == large


async def test_a_packed_answer_is_unpacked(house):
    """No header says that it is packed when it isn't any more."""

    def packed(_request):
        return web.Response(body=gzip.compress(b'{"data":1}'), headers={"Content-Encoding": "gzip"})

    house.answer = packed
    status, headers, body = await house.post(RUNS_GET, {})
    assert (status, body, "Content-Encoding" in headers) == (200, {"data": 1}, False)


async def test_a_redirect_leads_nowhere(house):
    """Neither followed nor handed on: an SDK that followed it would show another host what it knows."""
    house.answer = lambda _request: web.Response(status=307, headers={"Location": "http://elsewhere/x"})
    status, headers, body = await house.post(RUNS_GET, {})
    assert (status, body["error"]["code"], "Location" in headers) == (503, "UNAVAILABLE", False)


async def test_a_platform_that_is_down(house):
    """A read says so in the envelope; telemetry goes on."""
    await house.runner.cleanup()
    status, _, body = await house.post(RUNS_GET, {})
    assert (status, body["error"]["code"]) == (503, "UNAVAILABLE")
    assert (await start(house))[0] == 200


async def test_an_answer_that_breaks_off(house):
    """Before it has begun: 504. In the middle: the connection ends as the platform's did, and nobody takes half for whole."""

    async def cut(request):
        response = web.StreamResponse()
        await response.prepare(request)
        if house.came[-1][3] == b'{"long":1}':
            await response.write(bytes(100_000))
        request.transport.abort()
        return response

    house.answer = cut
    status, _, body = await house.post(RUNS_GET, {})
    assert (status, body["error"]["code"]) == (504, "GATEWAY_TIMEOUT")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with house.session.post(RUNS_GET, data=b'{"long":1}') as answer:
            await answer.read()


# -- gates -------------------------------------------------------------------------------------------------------------


async def test_a_gate_passes_through_the_gate_room(house):
    """The question is on record with the run's agent; the platform's own bytes come back."""
    house.refs.add("r", "P-RUN")
    house.answer = lambda _request: web.Response(
        status=202, body=b'{"data": {"request_id":"q"}}', content_type="application/json", headers={"X-Request-Id": "z"}
    )
    status, headers, body = await house.post(HUMAN, {"run_id": "r", "prompt": "sure?"})
    assert (status, headers["X-Request-Id"], body) == (202, "z", {"data": {"request_id": "q"}})
    _, gate, asked, _ = house.keeper.asked[0]
    assert (gate, asked.agent, asked.run_id, set(asked.request)) == (
        "human_input",
        "billing",
        "r",
        {"run_id", "prompt"},
    )
    _, path, headers, sent = house.came[0]
    assert (path, json.loads(sent)["run_id"]) == ("/api/ingest/v1/human-input/request", "P-RUN")
    assert (headers["authorization"], headers["idempotency-key"]) == (f"Bearer {KEY}", "gate-1")


async def test_asking_for_the_answer_again_is_no_new_gate(house):
    """A question that has its request_id is only looked at."""
    assert (await house.post(HUMAN, {"run_id": "p-1", "prompt": "sure?", "request_id": "q"}))[0] == 200
    assert (len(house.came), house.keeper.asked) == (1, [])


async def test_an_invoke_names_a_local_agent(house):
    """The agents table, in the path."""
    assert (await house.post(INVOKE, {"input": {}}))[0] == 200
    assert house.came[0][1] == "/api/v1/agents/P-BILLING/invoke"
    assert house.keeper.asked[0][2].agent == "billing"


@pytest.mark.parametrize(
    ("unsent", "status", "code"),
    [("circuit open: no connection; nothing was sent", 503, "UNAVAILABLE")],
)
async def test_a_gate_that_was_not_sent(house, unsent, status, code):
    """It may be asked again."""
    house.keeper.unsent = unsent
    got, _, body = await house.post(INVOKE, {})
    assert (got, body["error"]) == (status, {"code": code, "message": unsent})


async def test_a_gate_whose_outcome_is_unknown_is_not_repeated(house):
    """424, which no SDK and no retry layer takes for a transient error."""
    house.answer = lambda request: request.transport.abort() or web.Response()
    status, _, body = await house.post(INVOKE, {})
    assert (status, body["error"]["code"]) == (424, "OUTCOME_UNKNOWN")
    assert isinstance(house.keeper.asked[0][3], Lost)
    assert len(house.came) == 1


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (GateRefusal(422, "foreign_reference", "x"), 404),
        (GateRefusal(422, "malformed", "x"), 400),
        (GateRefusal(503, "draining", "x"), 503),
    ],
)
async def test_what_the_gate_room_refuses(house, refusal, status):
    """In the platform's envelope."""
    house.keeper.refusal = refusal
    assert (await house.post(INVOKE, {}))[0] == status


async def test_a_long_answer_of_a_gate_comes_whole(house):
    """An agent's output has no limit of 64 KiB."""
    large = json.dumps({"data": {"run_id": "x", "output": "y" * 300_000}}).encode()
    house.answer = lambda _request: web.Response(body=large, content_type="application/json")
    async with house.session.post(INVOKE, data=b"{}") as answer:
        assert await answer.read() == large


async def test_the_same_bytes_of_a_caller_who_hung_up_ask_nothing_anew(house):
    """A retry layer below an SDK gives up and sends again: it gets the answer to the first question."""
    answered = asyncio.Event()

    async def slow(_request):
        await answered.wait()
        return web.json_response({"data": {"run_id": "x"}, "error": None})

    house.answer = slow
    first = asyncio.create_task(house.session.post(INVOKE, data=b'{"input":{}}'))
    while not house.came:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    while not all(connection.ended for connection in house.server._open):
        await asyncio.sleep(0)
    again = asyncio.create_task(house.post(INVOKE, b'{"input":{}}'))
    answered.set()
    assert (await again)[0] == 200
    assert (len(house.came), len(house.keeper.asked)) == (1, 1)
    assert (await house.post(INVOKE, b'{"input":{}}'))[0] == 200
    assert len(house.keeper.asked) == 2


async def test_a_stream_passes_event_by_event(house):
    """Each event is there before the next one is sent, and the verdict is that of the whole stream."""
    heard, said = asyncio.Event(), []

    async def stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"start","run_id":"P"}\n\n')
        await heard.wait()
        await response.write(b'data: {"type":"done","run_id":"P","duration_ms":5}\n\n')
        return response

    house.answer = stream
    async with house.session.post(INVOKE, data=b'{"stream":true}') as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        said.append(await answer.content.readany())
        assert house.keeper.asked == []
        heard.set()
        said.append(await answer.content.read())
    assert [json.loads(part[5:])["type"] for part in said] == ["start", "done"]
    ruled = house.keeper.asked[0][3]
    assert (ruled.status, json.loads(ruled.body)["data"]["run_id"]) == (200, "P")


async def test_a_stream_that_breaks_off_ends_the_connection(house):
    """Half a stream is no whole one, for the SDK as for the record."""

    async def stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"start","run_id":"P"}\n\n')
        request.transport.abort()
        return response

    house.answer = stream
    with pytest.raises(aiohttp.ClientPayloadError):
        async with house.session.post(INVOKE, data=b"{}") as answer:
            await answer.read()
    assert isinstance(house.keeper.asked[0][3], Lost)


async def test_a_stream_whose_listener_goes_is_read_to_its_end(house):
    """The hosted agent runs whether somebody listens or not: what became of it goes on record."""
    gone, over = asyncio.Event(), asyncio.Event()

    async def stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"start","run_id":"P"}\n\n')
        await gone.wait()
        for _ in range(50):
            await response.write(b'data: {"type":"chunk","text":"' + b"x" * 2000 + b'"}\n\n')
        await response.write(b'data: {"type":"done","run_id":"P"}\n\n')
        over.set()
        return response

    house.answer = stream
    answer = await house.session.post(INVOKE, data=b"{}")
    await answer.content.readany()
    answer.close()
    gone.set()
    await over.wait()
    while not house.keeper.asked:
        await asyncio.sleep(0)
    assert house.keeper.asked[0][3].status == 200


# -- the closed doors --------------------------------------------------------------------------------------------------

CONTROL = [
    "/agentos/api/v1/rpc/approvals_decide",
    "/agentos/api/v1/rpc/agents_delete",
    "/agentos/api/v1/rpc/api_keys_create",
    "/agentos/api/v1/rpc/api_keys_list",
    "/agentos/api/v1/rpc/runs_cancel",
    "/agentos/api/v1/rpc/something_new",
    "/agentos/api/v1/approvals/a-1/decide",
    "/agentos/api/v1/runs/r/reply",
    "/agentos/api/v1/runs/r/human-input",
]


@pytest.mark.parametrize("path", CONTROL)
async def test_nobody_approves_his_own_action_through_us(house, path):
    """The control plane is closed, for the daemon's own uid too, unless the operator has opened it."""
    status, _, body = await house.post(path, {"decision": "approved"})
    assert (status, body["error"]["code"], house.came) == (403, "FORBIDDEN", [])


@pytest.mark.parametrize("path", CONTROL)
async def test_an_opened_control_plane_is_for_admins_on_the_socket(open_house, path):
    """Not over TCP, whoever holds a token, and not for another uid on the socket."""
    assert (await open_house.post(path, {"decision": "approved"}))[0] == 200
    assert len(open_house.came) == 1
    headers = {"Authorization": f"Bearer {TOKENS[0]}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(open_house.server.http_url + path, data=b"{}", headers=headers) as answer,
    ):
        assert answer.status == 403
    open_house.admins = set()
    assert (await open_house.post(path, {}))[0] == 403
    assert len(open_house.came) == 1


NO_DOOR = [
    "/aegis/v1/approvals/a-1/respond",
    "/aegis/v1/approvals",
    "/aegis/v1/agents/a-1",
    "/aegis/v1/intents/int_1/approve",
    "/decisionos/api/public/v1/agents",
    "/decisionos/api/public/v1/agents/a-1",
    "/decisionos/api/public/v1/policies",
    "/agentos/api/v2/anything",
]


@pytest.mark.parametrize("path", NO_DOOR)
async def test_a_write_without_a_door_is_refused_as_control_plane(open_house, path):
    """403 in the platform's envelope, for admins too, since nobody knows what it does; to read what is not there is 404."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        status, _, body = await open_house.post(path, {"decision": "approved"}, method)
        told = body["error"] if isinstance(body["error"], str) else body["error"]["message"]
        assert (status, "passes no" in told, "control plane" in told) == (403, True, True), (method, body)
    if not path.endswith(("/agents", "/agents/a-1")) or path.startswith("/aegis"):
        assert (await open_house.post(path, method="GET"))[0] == 404
    assert open_house.came == []


HOSTILE = [
    "/agentos/api/v1/rpc/../rpc/approvals_decide",
    "/agentos/api/v1/rpc/%2e%2e/rpc/approvals_decide",
    "/agentos/api/v1/rpc/runs_get/..%2fapprovals_decide",
    "/agentos/api/v1/rpc/runs_get%2f..%2fapprovals_decide",
    "/agentos/api/v1/rpc/runs_get%5c..%5capprovals_decide",
    "/agentos/api/v1/rpc/runs_get\\..\\approvals_decide",
    "/agentos/api/v1/rpc//runs_get",
    "/agentos//api/v1/rpc/runs_get",
    "/agentos/api/v1/rpc/runs_get/",
    "/agentos/api/v1/agents/../../v1/rpc/agents_delete/invoke",
    "/agentos/api/v1/agents/%252e%252e/invoke",
    "/agentos/api/v1/agents/a%00b/invoke",
    "/agentos/api/v1/agents/" + "a" * 300 + "/invoke",
    "/agentos/api/v1/agents/" + "a" * 5000 + "/invoke",
    "/agentos/../agentos/api/v1/rpc/runs_get",
    "http://elsewhere.example/agentos/api/v1/rpc/runs_get",
    "//elsewhere.example/agentos/api/v1/rpc/runs_get",
    "/agentos/http://elsewhere.example/",
    "/agentos",
    "/agentos/",
    "/nonesuch/api/v1/rpc/runs_get",
    "/v1/api/v1/rpc/runs_get",
]


@pytest.mark.parametrize("target", HOSTILE)
async def test_no_path_climbs(house, target):
    """Refused with a JSON error, as no path or as a write without a door; nothing reaches the platform or any other host."""
    status, body = await house.raw(target)
    assert status in {400, 403, 404}, body
    assert json.loads(body)["error"]["message"]
    assert (house.came, house.keeper.asked, house.sink.records) == ([], [], [])


async def test_an_id_can_not_change_the_path(house):
    """Whatever an id says, it is quoted where it is put into a path."""
    await house.post("/agentos/api/v1/agents/x%20y;z%3Fa=b%23c/invoke", {})
    assert house.came == []  # an id has no '#' in it
    await house.post("/agentos/api/v1/agents/x%20y;z%3Fa=b/invoke", {})
    assert house.came[0][1] == "/api/v1/agents/x%20y%3Bz%3Fa%3Db/invoke"


# -- who calls ---------------------------------------------------------------------------------------------------------


async def over_tcp(house, path, body, token=None):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(house.server.http_url + path, data=json.dumps(body), headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.json()


async def test_over_tcp_a_local_token_is_needed(house):
    """Without one 401 in the platform's envelope, from which its SDK raises its own error."""
    for token in (None, "wrong", KEY):
        status, headers, body = await over_tcp(house, EVENTS, {"run_id": "r", "events": []}, token)
        assert (status, body["error"]["code"], body["data"]) == (401, "UNAUTHENTICATED", None)
        assert "WWW-Authenticate" in headers
    assert (await over_tcp(house, EVENTS, {"run_id": "r", "events": [{"type": "a"}]}, TOKENS[0]))[0] == 200
    assert house.sink.records[0][1].token == 0


async def test_a_token_is_bound_to_its_agents(house):
    """It begins no run of another agent, reads none, and asks nothing in its name."""
    body = {"agent_id": "sales", "input": {}, "external_run_id": "e"}
    status, _, answer = await over_tcp(house, START, body, TOKENS[1])
    assert (status, answer["error"]["code"]) == (403, "FORBIDDEN")
    assert (await over_tcp(house, START, body | {"agent_id": "billing"}, TOKENS[1]))[0] == 200
    house.refs.add("of-sales", "P-2", agent="sales")
    assert (await over_tcp(house, RUNS_GET, {"run_id": "of-sales"}, TOKENS[1]))[0] == 404
    assert (await over_tcp(house, EVENTS, {"run_id": "of-sales", "events": [{"type": "a"}]}, TOKENS[1]))[0] == 404
    assert (await over_tcp(house, INVOKE.replace("billing", "sales"), {}, TOKENS[1]))[0] == 403
    assert len(house.sink.records) == 1


async def test_a_token_is_bound_to_its_destinations(house):
    """One that is for another destination may not come in here."""
    status, _, body = await over_tcp(house, RUNS_GET, {}, TOKENS[2])
    assert (status, body["error"]["code"], house.came) == (403, "FORBIDDEN", [])


async def test_the_platforms_key_is_never_shown(house):
    """Neither in answers nor in errors nor in what objects say of themselves."""
    seen = [str(await house.post(path, {})) for path in (START, RUNS_GET, INVOKE, *CONTROL)]
    seen += [repr(house.stands), str(house.stands), f"{house.stands[0]}"]
    assert not any(KEY in text for text in seen)
