"""One socket, its dialects and its limits: a real Unix socket and a real server in front of a sink that a test commands."""

# ruff: noqa: ASYNC240 - a look at a file in /tmp holds up nobody's event loop
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from agentd.errors import AlreadyRunning, RecordError, StateError, WireError
from agentd.intake import Peer, Waiting
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.sections import Config, Intake, Listen
from agentd.wire import MAX_UNANSWERED, Ack, Rejected, frame, hello_answer

EVENT = {"kind": "event", "run_id": "r1", "type": "step"}
RECORD = json.dumps(EVENT).encode()
ME = Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())


def envelope(seq, *records):
    return json.dumps({"seq": seq, "records": list(records or (EVENT,))}).encode()


class FakeSink:
    """Keeps what it is handed; answers at once, or, with `patient`, when the test says so."""

    def __init__(self):
        self.patient = False
        self.full = False  # messages wait for room in a queue
        self.taken = []
        self.futures = []
        self.refused = []
        self.kept = []
        self.hellos = []
        self.owners = []
        self._changed = asyncio.Event()

    @property
    def causes(self):
        return [cause for cause, _, _ in self.refused]

    @property
    def records(self):
        return sum(len(message.items) for message, *_ in self.taken)

    async def until(self, check):
        while not check():
            self._changed.clear()
            await self._changed.wait()

    def hello(self, hello, peer):
        if hello.stream == "bad":
            raise WireError("$.stream: expected a UUID")
        self.hellos.append((hello, peer))
        return hello_answer("0.1.0", 2**20, 41)

    def claim(self, hello, peer, transport):
        self.owners.append((hello, peer, transport.get_extra_info("socket").fileno()))
        return Peer(peer.uid, peer.gid, peer.pid, process="mine")

    def submit(self, message, peer, *, stream, origin, hold):
        future = Waiting() if self.full else asyncio.get_running_loop().create_future()
        self.taken.append((message, peer, stream, origin, hold))
        self.futures.append(future)
        if not self.patient:
            self.finish(len(self.futures) - 1)
        self._changed.set()
        return future

    def finish(self, index):
        message = self.taken[index][0]
        bad = [Rejected(i, str(item)) for i, item in enumerate(message.items) if isinstance(item, RecordError)]
        seq = -1 if message.seq is None else message.seq
        if not self.futures[index].done():
            self.futures[index].set_result(Ack(seq, len(message.items) - len(bad), bad))

    def finish_all(self):
        self.patient = False
        for index in range(len(self.futures)):
            self.finish(index)

    def refuse(self, cause, detail, peer):
        self.refused.append((cause, detail, peer))
        self._changed.set()

    def keep(self, raw, reason, peer, origin, kind=""):
        if raw:
            self.kept.append((raw, reason, peer, origin))


class FakeControl:
    def unhealthy(self):
        return None


class Client:
    """A peer with a socket of its own, as plain as a shell's."""

    def __init__(self, sock):
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.rest = b""

    async def send(self, data):
        await self.loop.sock_sendall(self.sock, data)

    async def more(self):
        data = await self.loop.sock_recv(self.sock, 65536)
        self.rest += data
        return bool(data)

    async def line(self):
        while b"\n" not in self.rest and await self.more():
            pass
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    async def frame(self):
        while len(self.rest) < 4 or len(self.rest) < 4 + int.from_bytes(self.rest[:4], "big"):
            assert await self.more(), "the connection ended before the frame did"
        end = 4 + int.from_bytes(self.rest[:4], "big")
        message, self.rest = self.rest[4:end], self.rest[end:]
        return json.loads(message)

    async def to_end(self):
        """Everything until the server closes."""
        with contextlib.suppress(ConnectionResetError):  # closed with bytes of ours unread
            while await self.more():
                pass
        return self.rest

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)


class House:
    """A server with its sink, and clients that are closed with it."""

    def __init__(self, folder):
        self.path = f"{folder}/s"
        self.sink = FakeSink()
        self.servers = []
        self.clients = []

    def make(self, *, path=None, mode="0660", group=None, **intake):
        config = Config(listen=Listen(socket=path or self.path, mode=mode, group=group), intake=Intake(**intake))
        return Server(config, self.sink, build_app(self.sink, FakeControl(), config))

    async def start(self, **options):
        server = self.make(**options)
        await server.start()
        self.servers.append(server)
        return server

    def files(self):
        return sorted(file.name for file in Path(self.path).parent.iterdir())

    async def client(self, path=None):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        client = Client(sock)
        self.clients.append(client)
        await client.loop.sock_connect(sock, path or self.path)
        return client

    async def close(self):
        for client in self.clients:
            client.sock.close()
        self.sink.finish_all()
        for server in self.servers:
            await server.aclose(1.0)


@pytest.fixture
async def house():
    folder = tempfile.mkdtemp(prefix="ad-")  # short: a socket's path has 107 bytes at most
    house = House(folder)
    yield house
    await house.close()
    shutil.rmtree(folder)


# Dialects


async def test_three_dialects_share_one_socket(house):
    """Frames, lines and HTTP are told apart by the first byte, on one and the same path, and answered in kind."""
    await house.start()
    frames, lines, http = [await house.client() for _ in range(3)]
    await frames.send(frame(envelope(1)))
    await lines.send(envelope(2) + b"\n")
    await http.send(b"GET /healthz HTTP/1.1\r\nHost: agentd\r\nConnection: close\r\n\r\n")
    assert await frames.frame() == {"seq": 1, "accepted": 1}
    assert await lines.line() == {"seq": 2, "accepted": 1}
    answer = await http.to_end()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"status":"ok"}')
    assert [origin for *_, origin, _ in house.sink.taken] == ["frames", "lines"]


@pytest.mark.parametrize("first", [b"x", b"\x01", b"9", b"\xff", b'"'])
async def test_another_first_byte_gets_one_error_line_and_the_end(house, first):
    """A first byte that chooses no dialect is answered by one line that says so, then the connection ends."""
    await house.start()
    client = await house.client()
    await client.send(first)
    error = json.loads(await client.to_end())
    assert f"0x{first[0]:02x}" in error["error"]
    assert house.sink.causes == ["no_dialect"]


@pytest.mark.parametrize(
    "message", [b"\n  " + envelope(1) + b"\n", envelope(1) + b"\r\n", b"\n\n\r\n" + envelope(1) + b"\n"]
)
async def test_white_space_around_lines_means_nothing(house, message):
    """White space chooses lines too; blank lines and the CR of CR LF are no messages."""
    await house.start()
    client = await house.client()
    await client.send(message)
    assert await client.line() == {"seq": 1, "accepted": 1}
    assert house.sink.refused == []


async def test_last_line_needs_no_newline(house):
    """`printf '…' | nc -UN agentd.sock` works: the end of input ends the last line, and the answer still comes."""
    await house.start()
    client = await house.client()
    await client.send(envelope(1) + b"\n" + envelope(2))
    client.half_close()
    assert [json.loads(line) for line in (await client.to_end()).splitlines()] == [
        {"seq": 1, "accepted": 1},
        {"seq": 2, "accepted": 1},
    ]


async def test_message_may_come_byte_by_byte(house):
    """However a message is cut on its way, it is the same message."""
    await house.start()
    client = await house.client()
    for byte in frame(envelope(1)) + frame(envelope(2)):
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert [(await client.frame())["seq"] for _ in range(2)] == [1, 2]


async def test_peer_is_who_the_kernel_says(house):
    """Every message reaches the sink with the uid, gid and pid of the process that connected."""
    await house.start()
    client = await house.client()
    await client.send(RECORD + b"\n" + envelope(1) + b"\n")
    await client.line()
    assert [peer for _, peer, *_ in house.sink.taken] == [ME, ME]


# Messages and answers


async def test_one_bad_record_never_costs_its_neighbours(house):
    """A refused record is named by its index, and those beside it are accepted."""
    await house.start()
    client = await house.client()
    await client.send(frame(envelope(7, EVENT, EVENT | {"level": "loud"}, EVENT)))
    answer = await client.frame()
    assert (answer["seq"], answer["accepted"]) == (7, 2)
    assert answer["rejected"][0]["index"] == 1
    assert "$.level: expected one of debug, info, warn, error" in answer["rejected"][0]["error"]


@pytest.mark.parametrize("message", [RECORD, b"[" + RECORD + b"," + RECORD + b"]"])
async def test_message_without_seq_gets_no_answer(house, message):
    """A record or an array is accepted in silence and may be held; an envelope is answered and is not."""
    await house.start()
    client = await house.client()
    await client.send(frame(message) + frame(envelope(1)))
    assert await client.frame() == {"seq": 1, "accepted": 1}
    assert [hold for *_, hold in house.sink.taken] == [True, False]
    assert client.rest == b""


async def test_pipelined_envelopes_are_answered_as_they_complete(house):
    """Answers come in the order in which envelopes are stored, not in that in which they were sent."""
    await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(b"".join(frame(envelope(seq)) for seq in (1, 2, 3)))
    await house.sink.until(lambda: len(house.sink.taken) == 3)
    for index in (2, 0, 1):
        house.sink.finish(index)
    assert [(await client.frame())["seq"] for _ in range(3)] == [3, 1, 2]


async def test_hello_is_answered_and_its_stream_goes_with_the_messages(house):
    """A connection may begin with a hello; what follows it belongs to its stream."""
    await house.start()
    client = await house.client()
    await client.send(frame(b'{"hello": 1, "stream": "s-1", "lost": {"event": 2}, "from_the_future": true}'))
    answer = await client.frame()
    assert (answer["hello"], answer["contract"], answer["last_seq"]) == (1, 1, 41)
    await client.send(frame(envelope(42)))
    await client.frame()
    assert house.sink.hellos[0][0].lost == {"event": 2}
    assert house.sink.taken[0][2] == "s-1"


async def test_a_hello_that_owns_runs_is_claimed_once(house):
    """What follows comes from the process that the sink has found at the other end; the hello is answered first."""
    await house.start()
    client = await house.client()
    await client.send(frame(b'{"hello": 1, "owns_runs": true}') + frame(envelope(1)) + frame(envelope(2)))
    assert (await client.frame())["hello"] == 1
    await client.frame()
    await client.frame()
    [(hello, peer, fileno)] = house.sink.owners
    assert (hello.owns_runs, peer) == (True, ME)
    assert fileno >= 0
    assert [peer.process for _, peer, *_ in house.sink.taken] == ["mine", "mine"]


@pytest.mark.parametrize(
    "hello", [frame(b'{"hello": 1}') + frame(RECORD), b'{"hello": 1, "owns_runs": true}\n' + RECORD + b"\n"]
)
async def test_other_connections_own_no_runs(house, hello):
    """A hello that does not say so, and lines, whatever they say: shells come and go."""
    await house.start()
    client = await house.client()
    await client.send(hello)
    await house.sink.until(lambda: house.sink.taken)
    assert house.sink.owners == []
    assert house.sink.taken[0][1] == ME


async def test_hello_comes_first_or_never(house):
    """A hello after another message is an error; the connection goes on without it."""
    await house.start()
    client = await house.client()
    await client.send(frame(envelope(1)) + frame(b'{"hello": 1, "stream": "s-1"}') + frame(envelope(2)))
    assert (await client.frame())["seq"] == 1
    assert "first message" in (await client.frame())["error"]
    assert (await client.frame())["seq"] == 2
    assert [stream for _, _, stream, *_ in house.sink.taken] == [None, None]


async def test_hello_that_the_sink_refuses_names_no_stream(house):
    """A malformed stream id is answered as an error, and nothing is filed under it."""
    await house.start()
    client = await house.client()
    await client.send(b'{"hello": 1, "stream": "bad"}\n' + envelope(1) + b"\n")
    assert await client.line() == {"error": "$.stream: expected a UUID"}
    assert await client.line() == {"seq": 1, "accepted": 1}
    assert house.sink.taken[0][2] is None


async def test_bad_line_keeps_the_connection_open(house):
    """What is no JSON is answered by an error line; the next line is read as if nothing had been."""
    await house.start()
    client = await house.client()
    await client.send(b"{nonsense\n" + envelope(1) + b"\n")
    assert set(await client.line()) == {"error"}
    assert await client.line() == {"seq": 1, "accepted": 1}
    assert house.sink.causes == ["malformed"]


@pytest.mark.parametrize("send", [lambda one: one + b"\n", frame])
async def test_a_record_that_no_parser_reads_is_evidence(house, send):
    """Alone in its message, so that the message is refused with it: it is handed to be kept as it was sent, and nonsense is not."""
    await house.start()
    client = await house.client()
    half_pair = b'{"kind":"decision","context":"\\ud800"}'
    await client.send(send(half_pair))
    answer = await (client.line() if send(b"x")[-1:] == b"\n" else client.frame())
    dialect = "lines" if send(b"x")[-1:] == b"\n" else "frames"
    assert house.sink.kept == [(half_pair, answer["error"], house.sink.refused[0][2], dialect)]
    await client.send(send(b'{"kind":"decision"'))
    await (client.line() if dialect == "lines" else client.frame())
    assert len(house.sink.kept) == 1


async def test_bad_json_in_a_frame_ends_the_connection_after_what_is_due(house):
    """JSON that is broken off means that the stream can't be trusted: an error, the answers still due, and the end."""
    await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(frame(envelope(1)) + frame(b'{"seq": 2, "records": [') + frame(envelope(3)))
    assert set(await client.frame()) == {"error"}
    house.sink.finish_all()
    assert await client.frame() == {"seq": 1, "accepted": 1}
    assert await client.to_end() == b""
    assert len(house.sink.taken) == 1


async def test_envelope_of_the_wrong_shape_is_answered_with_its_seq(house):
    """JSON of the wrong shape is an error that carries the seq, so that its sender knows which; frames stay open."""
    await house.start()
    client = await house.client()
    await client.send(frame(b'{"seq": 5, "records": {}}') + frame(envelope(6)))
    answer = await client.frame()
    assert answer["seq"] == 5
    assert "error" in answer
    assert await client.frame() == {"seq": 6, "accepted": 1}


async def test_failure_of_the_sink_is_an_error_answer(house):
    """If storing fails for a reason of ours, the client is told that nothing is known to be stored."""
    await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(frame(envelope(1)) + frame(envelope(2)) + frame(RECORD))
    await house.sink.until(lambda: len(house.sink.taken) == 3)
    house.sink.futures[0].set_exception(OSError("disk"))
    house.sink.futures[1].cancel()
    house.sink.futures[2].set_exception(StateError("the spool is closed"))
    for seq in (1, 2):
        answer = await client.frame()
        assert answer["seq"] == seq
        assert "disk" not in answer["error"]
    assert await client.frame() == {"error": "the spool is closed"}


async def test_failure_to_submit_costs_one_message(house, monkeypatch):
    """A fault of ours while a message is submitted is answered; the connection and the next message live on."""
    await house.start()
    submit = house.sink.submit

    def fail(*args, **kwargs):
        monkeypatch.setattr(house.sink, "submit", submit)
        raise ZeroDivisionError

    monkeypatch.setattr(house.sink, "submit", fail)
    client = await house.client()
    await client.send(frame(envelope(1)) + frame(envelope(2)))
    assert "internal error" in (await client.frame())["error"]
    assert await client.frame() == {"seq": 2, "accepted": 1}


# Limits


@pytest.mark.parametrize(("extra", "taken"), [(-1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("dialect", ["frames", "lines"])
async def test_message_may_have_max_frame_bytes_and_no_more(house, dialect, extra, taken):
    """At intake.max_frame_bytes a message is taken, one byte above it is refused by name and the connection ends."""
    await house.start(max_frame_bytes=2048)
    message = json.dumps({"seq": 1, "records": [EVENT | {"payload": "x"}]}).encode()
    message = message.replace(b'"x"', b'"' + b"x" * (2048 + extra - len(message) + 1) + b'"')
    assert len(message) == 2048 + extra
    client = await house.client()
    header = len(message).to_bytes(4, "big") if dialect == "frames" else b""
    await client.send(header + message + (b"" if header else b"\n"))
    client.half_close()
    answer = await client.to_end()
    assert len(house.sink.taken) == taken
    assert (b"intake.max_frame_bytes" in answer) is not bool(taken)
    assert house.sink.causes == ([] if taken else ["oversized"])


async def test_oversized_frame_is_refused_on_its_header(house):
    """A length above the limit ends the connection before anything of the frame is read or kept."""
    await house.start(max_frame_bytes=2048)
    client = await house.client()
    await client.send((2049).to_bytes(4, "big"))
    assert "2049" in (await client.frame())["error"]
    assert await client.to_end() == b""


async def test_frame_of_no_bytes_ends_the_connection(house):
    """A frame of length 0 is an error, and the connection ends."""
    await house.start()
    client = await house.client()
    await client.send(frame(envelope(1)) + bytes(4))
    assert (await client.frame())["seq"] == 1
    assert "frame of 0 bytes" in (await client.frame())["error"]
    assert await client.to_end() == b""


async def test_line_without_end_is_refused(house):
    """A line that grows beyond the limit is refused before its end is seen."""
    await house.start(max_frame_bytes=1024)
    client = await house.client()
    await client.send(b"[" + b" " * 1024)
    assert "line of more than 1024 bytes" in json.loads(await client.to_end())["error"]


@pytest.mark.parametrize("sent", [b"\x00", frame(envelope(1))[:-1], b'{"kind"', b"GET /healthz HTT"])
async def test_half_a_message_is_not_waited_for_for_ever(house, sent):
    """Half a frame, half a line or half an HTTP head is ended with an error after intake.frame_timeout, and counted."""
    await house.start(frame_timeout=0.05)
    client = await house.client()
    await client.send(sent)
    assert b"did not come within intake.frame_timeout" in await client.to_end()
    assert house.sink.causes == ["half_message"]


async def test_connection_that_sends_nothing_is_ended(house):
    """A connection without a first byte is ended with an error after intake.frame_timeout, and counted."""
    await house.start(frame_timeout=0.05)
    client = await house.client()
    assert "nothing was sent" in json.loads(await client.to_end())["error"]
    assert house.sink.causes == ["silent"]


async def test_idle_connection_lives_on(house):
    """Between messages a connection may rest for longer than intake.frame_timeout."""
    await house.start(frame_timeout=0.05)
    idle, silent = await house.client(), await house.client()
    await idle.send(frame(envelope(1)))
    await idle.frame()
    await silent.to_end()  # its term began with the first message's end or later
    later = await house.client()
    await later.to_end()
    await idle.send(frame(envelope(2)))
    assert await idle.frame() == {"seq": 2, "accepted": 1}


@pytest.mark.parametrize("sent", [frame(envelope(1)) + b"\x00\x00", frame(envelope(1)) + frame(envelope(2))[:-1]])
async def test_connection_that_ends_within_a_frame_is_counted(house, sent):
    """An end in the middle of a frame is no silent loss: what was whole is answered, the half is refused and counted."""
    await house.start()
    client = await house.client()
    await client.send(sent)
    client.half_close()
    answers = [await client.frame(), await client.frame()]
    assert {"seq": 1, "accepted": 1} in answers
    assert any("ended within a message" in answer.get("error", "") for answer in answers)
    assert await client.to_end() == b""
    assert house.sink.causes == ["half_message"]


async def test_connections_above_the_limit_get_one_line(house):
    """Above intake.max_connections a connection is told so and ended; the others are served, and room is used again."""
    server = await house.start(max_connections=2)
    first, second = await house.client(), await house.client()
    await first.send(envelope(1) + b"\n")
    await first.line()
    third = await house.client()
    assert json.loads(await third.to_end()) == {"error": "too many connections (intake.max_connections = 2)"}
    assert house.sink.causes == ["too_many_connections"]
    await second.send(envelope(2) + b"\n")
    assert await second.line() == {"seq": 2, "accepted": 1}
    first.half_close()
    await first.to_end()
    fourth = await house.client()
    await fourth.send(envelope(4) + b"\n")
    assert await fourth.line() == {"seq": 4, "accepted": 1}
    assert server.connections == 2


async def test_a_thousand_connections_at_once(house):
    """A thousand agents that connect in the same moment are all served."""
    server = await house.start()
    clients = await asyncio.gather(*(house.client() for _ in range(1000)))
    await asyncio.gather(*(client.send(envelope(seq) + b"\n") for seq, client in enumerate(clients)))
    answers = await asyncio.gather(*(client.line() for client in clients))
    assert answers == [{"seq": seq, "accepted": 1} for seq in range(1000)]
    assert server.connections == 1000
    assert house.sink.refused == []


# Backpressure


async def test_sender_blocks_while_too_much_is_under_way(house):
    """Above intake.max_pending_bytes a connection is not read: its sender's write blocks, until half of it is done."""
    await house.start(max_pending_bytes=100_000)
    house.sink.patient = True
    client = await house.client()
    message = frame(b"[" + b",".join([RECORD] * 200) + b"]")
    count = 4 * 2**20 // len(message)
    sending = asyncio.ensure_future(client.send(message * count))
    await house.sink.until(lambda: len(house.sink.taken) * len(message) > 100_000)
    taken = len(house.sink.taken)
    other = await house.client()  # its whole conversation gives the blocked one many turns to send more
    for seq in range(20):
        await other.send(frame(envelope(seq)))
    await house.sink.until(lambda: len(house.sink.taken) == taken + 20)
    assert not sending.done()
    house.sink.finish_all()
    await sending
    await house.sink.until(lambda: len(house.sink.taken) == count + 20)


async def test_what_was_read_of_a_connection_that_is_gone_is_submitted(house):
    """Also what could not be yet, because its user had too much under way: and then nothing of it keeps his others from being read."""
    await house.start(max_pending_bytes=1000)
    house.sink.patient = True
    flood = await house.client()
    large = frame(b"[" + b",".join([RECORD] * 100) + b"]")
    await flood.send(large * 2)
    await house.sink.until(lambda: len(house.sink.taken) == 1)
    gone = [await house.client() for _ in range(3)]
    for client in gone:
        await client.send(large * 2)  # each is too much again, for all of them
    probe = await house.client()
    await probe.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await probe.to_end()  # by now it has been read
    assert len(house.sink.taken) == 1
    for client in gone:
        client.sock.close()
    while len(house.sink.taken) < 8:
        house.sink.finish_all()
        await asyncio.sleep(0.01)
    later = await house.client()
    await later.send(frame(envelope(1)))
    await house.sink.until(lambda: len(house.sink.taken) == 9)


async def test_held_message_stops_its_connection_alone(house):
    """Messages that wait for room in a full queue stop the connection that sent them, however many bytes, and no other."""
    await house.start(max_pending_bytes=50_000)
    house.sink.patient = house.sink.full = True
    holder = await house.client()
    await holder.send(frame(b"[" + b",".join([RECORD] * 2000) + b"]") + frame(RECORD))
    await house.sink.until(lambda: len(house.sink.taken) == 1)
    house.sink.full = False
    other = await house.client()
    for seq in range(1, 40):
        await other.send(frame(envelope(seq)))
        await house.sink.until(lambda seq=seq: len(house.sink.taken) == seq + 1)
        house.sink.finish(seq)
        assert (await other.frame())["seq"] == seq
    assert house.sink.records == 2000 + 39
    house.sink.finish(0)
    await house.sink.until(lambda: house.sink.records == 2001 + 39)


async def test_connection_whose_message_waits_for_room_is_not_read(house):
    """However small it is: behind a message that waits for room in a queue nothing of its connection is read, elsewhere all is."""
    await house.start()
    house.sink.patient = True
    house.sink.full = True
    holder = await house.client()
    await holder.send(frame(RECORD))
    await house.sink.until(lambda: len(house.sink.taken) == 1)
    house.sink.full = False
    for _ in range(20):
        await holder.send(frame(RECORD))
    other = await house.client()
    for seq in range(1, 40):
        await other.send(frame(envelope(seq)))
        await house.sink.until(lambda seq=seq: len(house.sink.taken) == seq + 1)
        house.sink.finish(seq)
        assert (await other.frame())["seq"] == seq
    house.sink.finish(0)
    await house.sink.until(lambda: len(house.sink.taken) == 1 + 39 + 20)


async def test_pipelined_messages_stop_at_the_one_that_waits(house):
    """What came in one piece with a message that waits for room is handed on when that is done, in order."""
    await house.start()
    house.sink.patient = True
    house.sink.full = True
    client = await house.client()
    await client.send(frame(RECORD) * 10)
    for count in range(1, 11):
        await house.sink.until(lambda count=count: len(house.sink.taken) == count)
        await asyncio.sleep(0)
        assert len(house.sink.taken) == count
        house.sink.finish(count - 1)


async def test_more_than_64_unanswered_envelopes_wait(house):
    """The 65th unanswered envelope of a connection is read only when answers have gone out; it is no error."""
    await house.start()
    house.sink.patient = True
    client, other = await house.client(), await house.client()
    await client.send(b"".join(frame(envelope(seq)) for seq in range(200)))
    await house.sink.until(lambda: len(house.sink.taken) == MAX_UNANSWERED)
    for seq in range(10):
        await other.send(frame(envelope(1000 + seq)))
        await house.sink.until(lambda seq=seq: len(house.sink.taken) == MAX_UNANSWERED + seq + 1)
    house.sink.finish_all()
    assert [(await client.frame())["seq"] for _ in range(200)] == list(range(200))


async def test_reader_of_no_answers_is_cut_off(house):
    """Who sends and never reads the answers is not read any more, is ended after intake.frame_timeout, and counted."""
    server = await house.start(frame_timeout=0.05)
    client = await house.client()
    bad = frame(b'{"seq":1,"records":[' + b",".join([b"{}"] * 500) + b"]}")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await client.send(bad * 2000)
    assert house.sink.causes == ["slow_reader"]
    assert server.connections == 0


async def test_answers_come_after_the_peer_ended_its_half(house):
    """After the end of input what is under way is still answered, and only then the connection ends."""
    await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(envelope(1) + b"\n" + RECORD)
    client.half_close()
    await house.sink.until(lambda: len(house.sink.taken) == 2)
    house.sink.finish(0)
    assert await client.line() == {"seq": 1, "accepted": 1}
    ending = asyncio.ensure_future(client.to_end())
    other = await house.client()
    await other.send(b"x")
    await other.to_end()
    assert not ending.done(), "a record that is held is not stored yet: its sender waits"
    house.sink.finish(1)
    assert await ending == b""


async def test_refusals_that_fill_more_than_a_frame_are_still_answered(house):
    """An answer that would be no frame any more is replaced by an error that carries the seq."""
    await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(frame(envelope(3)))
    await house.sink.until(lambda: house.sink.futures)
    house.sink.futures[0].set_result(Ack(3, 0, [Rejected(0, "x" * 2**24)]))
    answer = await client.frame()
    assert answer["seq"] == 3
    assert "does not fit" in answer["error"]


# The end


async def test_closing_waits_for_what_is_under_way(house):
    """A server that closes takes nothing more, lets what is under way be stored, answers it, and leaves no socket."""
    server = await house.start()
    house.sink.patient = True
    client, idle = await house.client(), await house.client()
    await idle.send(RECORD + b"\n")
    await house.sink.until(lambda: len(house.sink.taken) == 1)
    house.sink.finish(0)
    await client.send(frame(envelope(1)))
    await house.sink.until(lambda: len(house.sink.taken) == 2)
    closing = asyncio.ensure_future(server.aclose(30.0))
    assert await idle.to_end() == b""
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await house.client()
    assert not closing.done()
    house.sink.finish_all()
    assert await client.frame() == {"seq": 1, "accepted": 1}
    assert await client.to_end() == b""
    await closing
    assert not Path(house.path).exists()


async def test_closing_does_not_wait_for_ever(house):
    """What is not stored within the timeout is given up, and its connection is cut."""
    server = await house.start()
    house.sink.patient = True
    client = await house.client()
    await client.send(frame(envelope(1)))
    await house.sink.until(lambda: len(house.sink.taken) == 1)
    await server.aclose(0.01)
    assert await client.to_end() == b""
    assert server.connections == 0


# The path


async def test_live_socket_is_never_stolen(house):
    """A live socket is never stolen: a second daemon ends with a clear error and the first still answers."""
    await house.start()
    with pytest.raises(AlreadyRunning, match=rf"{house.path}.*pid {os.getpid()}"):
        await house.make().start()
    client = await house.client()
    await client.send(envelope(1) + b"\n")
    assert await client.line() == {"seq": 1, "accepted": 1}


async def test_socket_that_somebody_else_answers_is_not_stolen(house):
    """A socket without our lock that is answered, as systemd holds one for us, is left to who holds it."""
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(house.path)
        holder.listen()
        with pytest.raises(AlreadyRunning, match="another program"):
            await house.make().start()
        assert Path(house.path).is_socket()


async def test_stale_socket_is_replaced(house):
    """The socket of a daemon that was killed is in nobody's way: the lock decides, not the file."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(house.path)
    Path(f"{house.path}.lock").write_text("4194304\n")
    await house.start()
    client = await house.client()
    await client.send(envelope(1) + b"\n")
    assert await client.line() == {"seq": 1, "accepted": 1}


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_what_is_no_socket_is_left_alone(house, kind):
    """A file, a folder or a link at the path is somebody's: an error, and it is not touched."""
    path = Path(house.path)
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    with pytest.raises(StateError, match="no socket"):
        await house.make().start()
    assert path.is_symlink() or path.exists()
    assert kind != "file" or path.read_text() == "precious"


async def test_path_that_is_too_long_is_named(house):
    """A path above 107 bytes is an error that says its length and the limit, before anything is made."""
    path = f"{house.path}/{'x' * 107}"
    with pytest.raises(StateError, match=rf"at most 107 bytes, this one has {len(path)}"):
        await house.make(path=path).start()
    assert house.files() == []


async def test_next_daemon_may_have_the_path(house):
    """After an orderly end the path is free at once."""
    for _ in range(2):
        server = await house.start()
        client = await house.client()
        await client.send(envelope(1) + b"\n")
        await client.line()
        await server.aclose(1.0)


async def test_socket_that_was_replaced_is_not_unlinked(house):
    """At its end a daemon unlinks its own socket only: what somebody put in its place stays."""
    server = await house.start()
    Path(house.path).unlink()
    Path(house.path).write_text("not mine")
    await server.aclose(1.0)
    assert Path(house.path).read_text() == "not mine"


async def test_open_sockets_are_taken_over(house):
    """Listening sockets that were passed in are served as they are; no lock is taken and nothing is unlinked."""
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(house.path)
    passed.listen()
    server = house.make(path="/nowhere/to/be/made")
    await server.start(sockets=[passed])
    house.servers.append(server)
    client = await house.client()
    await client.send(envelope(1) + b"\n")
    assert await client.line() == {"seq": 1, "accepted": 1}
    await server.aclose(1.0)
    assert house.files() == ["s"]
