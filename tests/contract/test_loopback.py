"""The loopback listener: real TCP connections to a real server, in front of a sink that a test commands. HTTP alone, with a token."""

# ruff: noqa: ASYNC240 - a look at a file in /tmp holds up nobody's event loop
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from aiohttp import web

from agentd.errors import AlreadyRunning, StateError
from agentd.intake import NO_TOKEN, Grant, Peer
from agentd.intake.access import Access
from agentd.intake.answers import Unauthorized
from agentd.intake.door import grant_of, peer_of_request
from agentd.intake.letters import add_letters
from agentd.intake.routes import build_app
from agentd.intake.server import Server
from agentd.sections import Config, Destination, Intake, Listen, Secret, Security, TokenRule
from agentd.wire import Ack, frame

EVENT = b'{"kind":"event","run_id":"r1","type":"step"}'
BILLING, ANY = "billing-" * 4, "any-" * 8
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's connection")


class FakeSink:
    def __init__(self):
        self.taken = []
        self.refused = []

    def keep(self, raw, reason, peer, origin, kind=""):
        """Nothing here is evidence."""

    def submit(self, message, peer, *, stream, origin, hold):
        self.taken.append((message, peer, origin))
        future = asyncio.get_running_loop().create_future()
        future.set_result(Ack(-1, len(message.items)))
        return future

    def refuse(self, cause, detail, peer):
        self.refused.append((cause, peer))


class FakeControl:
    """Anybody on the Unix socket is an admin here; nobody over TCP, as in the real one."""

    def __init__(self):
        self.flushed = 0
        self.asked = []

    def status(self):
        return {"state": "running"}

    def unhealthy(self):
        return None

    def unready(self):
        return None

    def metrics(self):
        return b"agentd_up 1\n", "text/plain"

    async def flush(self, until, timeout_s):
        self.flushed += 1
        return {}

    async def run(self, run_id, **_):
        return {"run_id": run_id}

    async def listing(self, chosen, viewer, **asked):
        self.asked.append(asked)
        return []

    def may_decide(self, peer):
        return self.is_admin(peer)

    def is_admin(self, peer):
        return peer.local


class Answer:
    """What came back, to the connection's end."""

    def __init__(self, data):
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/") else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}

    @property
    def code(self):
        error = json.loads(self.body)["error"]
        assert set(error) == {"code", "message"}
        return error["code"]


class House:
    """A server on a free port of loopback, and on a Unix socket beside it."""

    def __init__(self, folder):
        self.folder = folder
        self.sink = FakeSink()
        self.control = FakeControl()
        self.servers = []
        self.asked = []

    async def start(self, http="127.0.0.1:0", **intake):
        security = Security(tokens=[TokenRule(Secret(env="B"), ["billing"], ["cloud"]), TokenRule(Secret(env="A"))])
        config = Config(
            listen=Listen(socket=f"{self.folder}/s{len(self.servers)}", http=http),
            intake=Intake(**intake),
            security=security,
            destinations={"cloud": Destination("agentos")},
        )
        app = build_app(self.sink, self.control, config, Access(security, [BILLING, ANY]))
        add_letters(app, self.control, self.control)
        app.router.add_route("*", "/cloud/{tail:.*}", self._stand_in)
        server = Server(config, self.sink, app)
        await server.start()
        self.servers.append(server)
        self.host, _, port = server.http_url.removeprefix("http://").rpartition(":")
        self.port = int(port)
        return server

    async def _stand_in(self, request):
        """As a platform's stand-in does it: the refusal in an envelope of its own."""
        try:
            self.asked.append((request.raw_path, peer_of_request(request), grant_of(request)))
        except Unauthorized:
            return web.json_response({"detail": "your key is wrong"}, status=401)
        return web.json_response({"ok": True})

    async def connect(self, uid=None):
        """A connection; with `uid` it is that user's, as the kernel sees it."""
        if uid is not None:
            assert _setfsuid(uid) == os.geteuid()
        try:
            sock = socket.socket(socket.AF_INET6 if "[" in self.host else socket.AF_INET)
        finally:
            _setfsuid(os.geteuid())
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host.strip("[]"), self.port))
        return sock

    async def raw(self, *parts, uid=None):
        """Send the parts, read to the end: without any HTTP library, that would tidy up what is sent."""
        loop = asyncio.get_running_loop()
        with await self.connect(uid) as sock:
            for part in parts:
                await loop.sock_sendall(sock, part)
                await asyncio.sleep(0)
            data = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := await loop.sock_recv(sock, 65536):
                    data += chunk
        return Answer(data)

    async def ask(self, target="/v1/status", method="GET", body=b"", uid=None, **headers):
        """A request as it is written here; `Host` and the token are right unless they are given (None: left out)."""
        lines = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {ANY}"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines |= {"Connection": "close", "Content-Length": str(len(body))}
        head = [
            f"{method} {target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in lines.items() if value is not None),
        ]
        return await self.raw("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body, uid=uid)

    async def post(self, **options):
        return await self.ask("/v1/records", "POST", EVENT, **options)


def _setfsuid(uid):
    """The calling thread's uid for what it makes from now on (setfsuid(2)); gives the one before."""
    return ctypes.CDLL(None).setfsuid(uid)


@pytest.fixture
async def house():
    folder = tempfile.mkdtemp(prefix="ad-")
    house = House(folder)
    yield house
    for server in house.servers:
        await server.aclose(1.0)
    shutil.rmtree(folder)


# Tokens


@pytest.mark.parametrize(
    "shown",
    [
        {"Authorization": f"Bearer {ANY}"},
        {"Authorization": f"bearer  {ANY}"},
        {"Authorization": None, "X_API_Key": ANY},
        {"Authorization": None, "x_api_key": ANY},
        {"Authorization": "Bearer of-a-platform", "X_API_Key": ANY},
        {"Authorization": f"Bearer {ANY}", "X_API_Key": "of-a-platform"},
    ],
)
async def test_a_token_lets_in(house, shown):
    """As a bearer or as X-API-Key, whatever else an SDK sends beside it."""
    await house.start()
    answer = await house.post(**shown)
    assert (answer.status, json.loads(answer.body)) == (202, {"accepted": 1, "rejected": []})
    [(_, peer, origin)] = house.sink.taken
    assert (peer, origin) == (Peer(os.getuid(), -1, 0, token=1), "http")
    assert not peer.local


@pytest.mark.parametrize(
    "shown",
    [
        {"Authorization": None},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {ANY}x"},
        {"Authorization": f"Bearer {ANY[:-1]}"},
        {"Authorization": ANY},
        {"Authorization": f"Basic {ANY}"},
        {"Authorization": f"Token {ANY}"},
        {"Authorization": None, "X_API_Key": "wrong"},
        {"Authorization": None, "X_API_Key": f"Bearer {ANY}"},
        {"Authorization": None, "X_Api_Token": ANY},
        {"Authorization": None, "Cookie": f"token={ANY}"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
async def test_without_a_token_of_ours_it_is_401(house, shown):
    """No token, a wrong one, the right one in the wrong place: one and the same answer, and nothing is taken."""
    await house.start()
    answer = await house.post(**shown)
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="agentd"'
    assert answer.headers["server"] == "agentd"
    assert answer.body == (await house.post(Authorization=None)).body
    assert house.sink.taken == []
    assert house.sink.refused[0] == ("unauthorized", Peer(-1, -1, 0, token=NO_TOKEN))


async def test_a_token_in_the_query_is_none(house):
    """A token in a URL would end in logs: it is not looked at."""
    await house.start()
    assert (await house.ask(f"/v1/status?token={ANY}&api_key={ANY}", Authorization=None)).status == 401


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/status"), ("GET", "/readyz"), ("GET", "/v1/runs/r"), ("GET", "/v1/dead-letters"), ("POST", "/v1/flush"),
        ("POST", "/v1/records"), ("DELETE", "/v1/records"), ("GET", "/"), ("GET", "/v1/nothing"), ("GET", "/other/x"),
        ("GET", "/healthz/"), ("GET", "/healthz/x"), ("GET", "/%68ealthz"), ("GET", "/healthz;x"), ("GET", "/HEALTHZ"),
        ("POST", "/healthz/../v1/records"), ("OPTIONS", "/v1/records"), ("BREW", "/v1/records"),
    ],
)  # fmt: skip
async def test_every_call_needs_a_token(house, method, target):
    """What there is, and what there isn't, is told to the holders of tokens only."""
    await house.start()
    answer = await house.ask(target, method, Authorization=None)
    assert answer.status == (400 if ".." in target or method == "BREW" else 401)
    assert house.sink.taken == []
    assert house.control.flushed == 0


@pytest.mark.parametrize("target", ["/healthz", "/metrics", "/healthz?x=1"])
async def test_health_and_metrics_need_none(house, target):
    """A supervisor and a scraper need no secret; Host and Origin are looked at all the same."""
    await house.start()
    assert (await house.ask(target, Authorization=None)).status == 200
    assert (await house.ask(target, Authorization=None, Host="evil.example")).status == 403
    assert (await house.ask(target, Authorization=None, Origin="https://evil.example")).status == 403


async def test_over_the_unix_socket_no_token_is_asked_for(house):
    """There the kernel says who asks, and what headers say changes nothing."""
    await house.start()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, f"{house.folder}/s0")
        head = b"POST /v1/flush HTTP/1.1\r\nHost: whatever\r\nAuthorization: Bearer wrong\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(sock, head)
        assert (await loop.sock_recv(sock, 65536)).startswith(b"HTTP/1.1 200 ")
    assert house.control.flushed == 1


# What the holder of a token may do


async def test_nobody_over_tcp_is_an_admin(house):
    """Flush is 403 for every token, with root's uid too."""
    await house.start()
    answer = await house.ask("/v1/flush", "POST")
    assert (answer.status, answer.code, house.control.flushed) == (403, "forbidden", 0)


async def test_dead_letters_are_shown_within_a_tokens_grant(house):
    """What may be seen of them is decided with what the token allows; replaying and purging are nobody's here."""
    await house.start()
    await house.ask("/v1/dead-letters", Authorization=f"Bearer {BILLING}")
    await house.ask("/v1/dead-letters")
    assert [(asked["admin"], asked["grant"]) for asked in house.control.asked] == [
        (False, Grant(("billing",), frozenset({"cloud"}))),
        (False, Grant()),
    ]
    for verb in ("replay", "purge"):
        answer = await house.ask(f"/v1/dead-letters/{verb}", "POST")
        assert (answer.status, answer.code) == (403, "forbidden")


async def test_below_a_destination_its_handler_asks_for_the_token(house):
    """`/{destination}/…` answers in the platform's own envelope, and hears who asks and what that one may do."""
    await house.start()
    answer = await house.ask("/cloud/v1/events?x=1", Authorization=None)
    assert (answer.status, json.loads(answer.body)) == (401, {"detail": "your key is wrong"})
    assert (await house.ask("/cloud/v1/events?x=1", Authorization=f"Bearer {BILLING}")).status == 200
    peer = Peer(os.getuid(), -1, 0, token=0)
    assert house.asked == [("/cloud/v1/events?x=1", peer, Grant(("billing",), frozenset({"cloud"})))]


@pytest.mark.parametrize("target", ["/cloud", "/%63loud/x", "/clou/x", "/cloud%2fx", "/cloudy/x"])
async def test_what_is_no_destinations_path_is_ours(house, target):
    """A path that no destination's handler answers is 401 in our own form, however it is spelt."""
    await house.start()
    answer = await house.ask(target, Authorization=None)
    assert (answer.status, answer.code, house.asked) == (401, "unauthorized", [])


@needs_root
async def test_the_owner_of_a_connection_is_known(house):
    """A record belongs to the uid that connected, as the kernel's tables say, so that runs have one owner on either way in."""
    await house.start()
    await house.post(uid=NOBODY)
    await house.post()
    assert [peer.uid for _, peer, _ in house.sink.taken] == [NOBODY, 0]


@needs_root
async def test_the_owner_of_an_ipv6_connection_is_known(house):
    """The same for IPv6, which has a table of its own."""
    await _start_on_ipv6(house)
    await house.post(uid=NOBODY)
    assert house.sink.taken[0][1].uid == NOBODY


@needs_root
async def test_the_owner_is_known_behind_an_ipv6_socket_that_speaks_ipv4(house):
    """Java and others reach 127.0.0.1 from IPv6 sockets: their row is in the other table, under a mapped address."""
    await house.start()
    loop = asyncio.get_running_loop()
    try:
        _setfsuid(NOBODY)
        sock = socket.socket(socket.AF_INET6)
    except OSError:
        pytest.skip("there is no IPv6 here")
    finally:
        _setfsuid(0)
    with sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("::ffff:127.0.0.1", house.port))
        head = (
            f"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ANY}\r\nContent-Length: {len(EVENT)}\r\n\r\n"
        )
        await loop.sock_sendall(sock, head.encode() + EVENT)
        assert await loop.sock_recv(sock, 65536)
    assert house.sink.taken[0][1].uid == NOBODY


# Browsers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::1]"])
@pytest.mark.parametrize("port", [True, False])
async def test_hosts_that_are_this_machine(house, host, port):
    """The three names of loopback, with our port or without one."""
    await house.start()
    assert (await house.ask(Host=f"{host}:{house.port}" if port else host)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost:{port}0", "localhost.:{port}", "localhost.evil.example", "127.0.0.1.nip.io",
     "0.0.0.0:{port}", "127.0.0.2", "::1", "127.0.0.1:{port}@evil", "user@127.0.0.1", "", "127.0.0.1:", "127.0.0.1, evil", "[::1", "2130706433"],
)  # fmt: skip
async def test_other_hosts_are_403(house, host):
    """A name that somebody rebound to 127.0.0.1 gets nowhere, with a token either."""
    await house.start()
    answer = await house.post(Host=host.format(port=house.port))
    assert (answer.status, answer.code, house.sink.taken) == (403, "forbidden", [])


async def test_no_host_and_two_hosts_are_refused(house):
    """HTTP/1.0 without a Host is refused here, and two of them wherever they stand."""
    await house.start()
    assert (await house.raw(f"GET /healthz HTTP/1.0\r\nX-API-Key: {ANY}\r\n\r\n".encode())).status == 403
    own = f"Host: localhost:{house.port}\r\n"
    for first, second in ((own, "Host: evil.example\r\n"), ("Host: evil.example\r\n", own), (own, own)):
        answer = await house.raw(f"GET /healthz HTTP/1.1\r\n{first}{second}Connection: close\r\n\r\n".encode())
        assert answer.status in {400, 403}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Origin": "http://127.0.0.1:{port}, http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "Cross-Site"},
        {"Sec_Fetch_Site": "nonsense"},
    ],
)
async def test_other_peoples_pages_are_403(house, headers):
    """A page of another origin gets nothing, not even with a token that it found."""
    await house.start()
    answer = await house.post(**{name: value.format(port=house.port) for name, value in headers.items()})
    assert (answer.status, answer.code, house.sink.taken) == (403, "forbidden", [])
    assert [cause for cause, _ in house.sink.refused] == ["foreign_page"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://127.0.0.1:{port}"}, {"Origin": "http://LOCALHOST:{port}"}, {"Sec_Fetch_Site": "none"}, {"Sec_Fetch_Site": "same-origin"}],
)  # fmt: skip
async def test_our_own_origin_is_none_of_them(house, headers):
    """What a page of ours or an address typed in sends is let pass to the token."""
    await house.start()
    headers = {name: value.format(port=house.port) for name, value in headers.items()}
    assert (await house.ask(**headers)).status == 200
    assert (await house.ask(Authorization=None, **headers)).status == 401


@pytest.mark.parametrize("target", ["/v1/records", "/healthz", "/cloud/v1/events", "*"])
@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:{port}", None])
async def test_a_preflight_is_403(house, target, origin):
    """No preflight is answered, of whatever page, and no CORS header ever given."""
    await house.start()
    answer = await house.ask(
        target,
        "OPTIONS",
        Origin=origin and origin.format(port=house.port),
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization",
    )
    assert (answer.status, answer.code) == (403, "forbidden")
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Targets


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/v1/status", "http://127.0.0.1/v1/status", "HTTP://evil.example/healthz", "https://evil.example/", "//evil.example/v1/status", "//v1/status",
        "/../v1/status", "/v1/../v1/status", "/v1/./status", "/%2e%2e/v1/status", "/v1/%2E%2e/v1/status", "/v1/.%2e/status", "/v1/%2e/status", "/v1/status/..", "http:/cloud/x", "x/cloud/x", "http://cloud/x", "//cloud/x", "/v1/..;/status",
        "/cloud/../v1/status", "/cloud/%2e%2e/v1/status", "/cloud/..;/v1/status", "/v1/runs/..%5c..", "/v1\\status", "/\\evil.example", "/v1/%5cstatus", "/v1%5c..%5cx",
        "/v1/status%00", "/v1/%00/x", "/v1/status#x", "/v1/#/../status", "*", "evil.example", "evil.example:443", "/v1/status%0d%0aX:y", "/v1/\x7f",
    ],
)  # fmt: skip
@pytest.mark.parametrize("token", [True, False])
async def test_targets_that_lead_elsewhere(house, target, token):
    """A target that names another host or climbs is 400 or 404 as it stands, whatever a library would make of it."""
    await house.start()
    answer = await house.ask(target, **({} if token else {"Authorization": None}))
    if target.startswith("/cloud/"):  # its handler's to judge, on the very bytes that came
        assert answer.status == (200 if token else 401)
        assert [asked[0] for asked in house.asked] == [target] * token
    else:
        assert answer.status in {400, 404}
        assert house.asked == []


@pytest.mark.parametrize(
    "target", ["/v1/status?next=/../../etc", "/v1/status?u=http://evil.example/", "/v1/runs/%2e%2e%2e", "/v1/runs/a%2Fb", "/v1/runs/..a"]
)  # fmt: skip
async def test_targets_that_only_look_like_it(house, target):
    """Queries are text, and ids may hold dots and slashes."""
    await house.start()
    assert (await house.ask(target)).status == 200


async def test_a_tunnel_is_not_dug(house):
    """CONNECT, and an upgrade to another protocol, lead nowhere."""
    await house.start()
    host = f"Host: localhost:{house.port}\r\nX-API-Key: {ANY}\r\n"
    answer = await house.raw(f"CONNECT evil.example:443 HTTP/1.1\r\n{host}Connection: close\r\n\r\n".encode())
    assert answer.status == 400
    upgrade = f"GET /v1/status HTTP/1.1\r\n{host}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    last = f"GET /healthz HTTP/1.1\r\n{host}Connection: close\r\n\r\n"
    assert (await house.raw(upgrade.encode(), last.encode())).status == 200


async def test_each_request_of_a_connection_is_looked_at(house):
    """What one request was allowed, the next on the same connection is not."""
    await house.start()
    host = f"Host: localhost:{house.port}\r\n"
    first = f"GET /v1/status HTTP/1.1\r\n{host}X-API-Key: {ANY}\r\n\r\n"
    second = f"GET /v1/status HTTP/1.1\r\n{host}Connection: close\r\n\r\n"
    answer = await house.raw((first + second).encode())
    assert answer.status == 200
    assert b"HTTP/1.1 401 " in answer.body


# The connection


@pytest.mark.parametrize(
    "sent", [EVENT + b"\n", b"[" + EVENT + b"]\n", b" \n", frame(EVENT), b"\x16\x03\x01\x02\x00", b"x"]
)
async def test_other_dialects_get_one_error_and_the_end(house, sent):
    """Frames, lines and TLS are answered with one line that says what is spoken here, and nothing of them is taken."""
    await house.start()
    loop = asyncio.get_running_loop()
    with await house.connect() as sock:
        await loop.sock_sendall(sock, sent)
        data = b""
        while chunk := await loop.sock_recv(sock, 4096):
            data += chunk
    assert json.loads(data) == {"error": "HTTP alone is spoken here; frames and lines are for the Unix socket"}
    assert house.sink.taken == []
    [(cause, peer)] = house.sink.refused
    assert (cause, peer) == ("no_dialect", Peer(-1, -1, 0, token=NO_TOKEN))


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET /healthz HTT", b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %b\r\nContent-Length: 9\r\n\r\n{" % ANY.encode()],
)  # fmt: skip
async def test_a_slow_sender_is_ended(house, sent):
    """Half a head and half a body are ended with 408 after intake.frame_timeout, and counted; so is silence."""
    await house.start(frame_timeout=0.05)
    answer = await house.raw(sent)
    assert (answer.status, answer.code) == (408, "timeout")
    assert [cause for cause, _ in house.sink.refused] == ["half_message"]


async def test_a_silent_connection_is_ended(house):
    """As on the Unix socket."""
    server = await house.start(frame_timeout=0.05)
    await house.raw()
    assert [cause for cause, _ in house.sink.refused] == ["silent"]
    assert server.connections == 0


async def test_connections_above_the_limit_are_told_in_http(house):
    """Connections count together whichever way they came; one too many gets a 503 and the end."""
    await house.start(max_connections=2)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as local, await house.connect() as first:
        local.setblocking(False)
        await loop.sock_connect(local, f"{house.folder}/s0")
        await loop.sock_sendall(local, EVENT + b"\n")
        await loop.sock_sendall(first, f"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ANY}\r\n\r\n".encode())
        assert await loop.sock_recv(first, 4096)
        answer = await house.raw()
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert house.sink.refused == [("too_many_connections", Peer(-1, -1, 0, token=NO_TOKEN))]


@pytest.mark.parametrize("said", [b"", b"GET /hea", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_who_has_shown_no_token_makes_room(house, said):
    """Whoever holds connections without one, silent or not, locks nobody out: one of them ends."""
    server = await house.start(max_connections=2)
    loop = asyncio.get_running_loop()
    with await house.connect() as first, await house.connect() as second:
        for connected in (first, second):
            await loop.sock_sendall(connected, said)
        if said.endswith(b"\n"):
            assert await loop.sock_recv(first, 4096)
        assert (await house.ask("/readyz")).status == 200
        assert server.connections <= 2


async def test_a_body_above_the_limit_is_413(house):
    """The limit of a message holds here too."""
    await house.start(max_frame_bytes=1024)
    answer = await house.ask("/v1/records", "POST", EVENT + b" " * 1024)
    assert (answer.status, answer.code) == (413, "too_large")


async def test_ipv6(house):
    """`[::1]` is loopback as well."""
    server = await _start_on_ipv6(house)
    assert server.http_url == f"http://[::1]:{house.port}"
    assert (await house.ask(Host=f"[::1]:{house.port}")).status == 200
    assert (await house.ask(Host="[::2]")).status == 403


async def _start_on_ipv6(house):
    try:
        return await house.start("[::1]:0")
    except StateError:
        pytest.skip("there is no IPv6 here")


async def test_a_port_that_is_taken_is_named(house):
    """A port that somebody listens on is an error with its address, and the socket's path is free again."""
    await house.start()
    taken = f"127.0.0.1:{house.port}"
    with pytest.raises(AlreadyRunning, match=rf"\[listen\] http: {taken}: another program is listening here"):
        await house.start(taken)
    assert (await house.ask()).status == 200
    assert sorted(file.name for file in Path(house.folder).iterdir()) == ["s0", "s0.lock", "s1.lock"]


async def test_without_the_key_nothing_listens(house):
    """Off by default."""
    folder = house.folder
    config = Config(listen=Listen(socket=f"{folder}/t"))
    server = Server(config, house.sink, build_app(house.sink, house.control, config))
    await server.start()
    assert server.http_url is None
    await server.aclose(1.0)


async def test_the_port_is_free_after_the_end(house):
    """The next daemon may have the port at once, in spite of connections that the last one closed."""
    server = await house.start()
    assert (await house.ask()).status == 200
    await server.aclose(1.0)
    await house.start(f"127.0.0.1:{house.port}")
    assert (await house.ask()).status == 200
