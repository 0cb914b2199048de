"""The way out through what other people put on it: proxies, private authorities, TLS old and new. Nothing on it is a stub."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import ssl

import pytest
from aiohttp import web
from outward_kit import NAME, Authority, ConnectProxy, Front, Outspoken, server_context

from agentd.exchange import Lost, Request, Response
from agentd.http import Http
from agentd.proxies import Proxy, parse
from agentd.reach import Reach
from agentd.testing import FakeClock
from agentd.trust import Trust

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")

KEY = "aos_agent_very_secret"
HEADERS = {"authorization": f"Bearer {KEY}"}
REQUEST = Request("/api/ingest/v1/events", b'{"run_id":"r"}')
PASSWORD = "p@ss/word-of-the-proxy"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue(NAME)


class Platform:
    """A plain server; what came, and over how many connections."""

    async def __aenter__(self):
        self.came = []
        self.peers = set()

        async def answer(request):
            self.came.append((request.path, dict(request.headers)))
            self.peers.add(request.transport.get_extra_info("peername"))
            await request.read()
            return web.json_response({"data": {}, "error": None})

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()


@contextlib.asynccontextmanager
async def world(context, *, clock=None, **proxy):
    """(http, platform, TLS in front of it, proxy that knows where it is)."""
    async with (
        Platform() as platform, Front(context, platform.port) as front,
        ConnectProxy({NAME: front.port}, **proxy) as gate, Http(clock or FakeClock()) as http,
    ):  # fmt: skip
        yield http, platform, front, gate


def through(gate, authority, *, user="", scheme="http", timeout_s=5.0, **trust):
    place = f"{scheme}://{user}{NAME if scheme == 'https' else '127.0.0.1'}:{gate.port}"
    files = Trust(ca_file=str(authority.ca_file), **trust)
    return Reach(f"https://{NAME}", timeout_s=timeout_s, proxy=parse(place, "test"), trust=files)


async def test_a_platform_is_reached_through_a_proxy(authority, certificate):
    """Name and TLS are the platform's own: the proxy is asked by name, and hears neither key nor path."""
    async with world(server_context(certificate)) as (http, platform, _front, gate):
        answer = await http.post(through(gate, authority), REQUEST, HEADERS, 5.0)
        assert (answer.status, [path for path, _ in platform.came]) == (200, [REQUEST.path])
        ((method, place, headers),) = gate.heard
        assert (method, place) == ("CONNECT", f"{NAME}:443")
        assert headers["user-agent"].startswith("agentd/")
        assert "authorization" not in headers
        assert "proxy-authorization" not in {name.lower() for name in platform.came[0][1]}


async def test_the_tunnel_is_used_again(authority, certificate):
    """Twenty requests, one CONNECT, one handshake, one connection."""
    async with world(server_context(certificate)) as (http, platform, front, gate):
        for _ in range(20):
            assert (await http.post(through(gate, authority), REQUEST, HEADERS, 5.0)).status == 200
        assert (len(platform.came), len(gate.heard), front.connections) == (20, 1, 1)


async def test_a_proxy_behind_tls(authority, certificate):
    """The proxy's own certificate is verified like a platform's, and the platform's TLS goes through its."""
    async with world(server_context(certificate), tls=server_context(certificate)) as (http, platform, _f, gate):
        reach = through(gate, authority, scheme="https")
        there = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", gate.port))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "getaddrinfo", lambda *_, **__: _now(there))
            assert (await http.post(reach, REQUEST, HEADERS, 5.0)).status == 200
            unknown = Reach(reach.base_url, proxy=reach.proxy)
            lost = await http.post(unknown, REQUEST, HEADERS, 5.0)
        assert len(platform.came) == 1
        assert (lost.sent, "unknown issuer" in lost.reason) == (False, True)


async def _now(value):
    return value


async def test_a_proxy_that_wants_a_password(authority, certificate):
    """The right one passes. Without, or with a wrong one, nothing was sent and the reason says which; the password is in no word."""
    encoded = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    async with world(server_context(certificate), credentials=f"Basic {encoded}") as (http, platform, _front, gate):
        right = through(gate, authority, user="ann:p%40ss%2Fword-of-the-proxy@")
        assert (await http.post(right, REQUEST, HEADERS, 5.0)).status == 200
        said = [f"{right!r} {right.proxy!r} {http!r}"]
        for user, word in (("", "wants a user and password (407"), ("ann:wrong-password@", "refuses our user (407")):
            lost = await http.post(through(gate, authority, user=user), REQUEST, HEADERS, 5.0)
            assert (lost.sent, word in lost.reason) == (False, True)
            said.append(lost.reason)
        assert len(platform.came) == 1
        assert not any(secret in text for text in said for secret in (PASSWORD, "p%40ss", encoded, "wrong-password"))


@pytest.mark.parametrize(
    ("refusal", "word"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "refuses to connect to platform.test:443 (403"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "does not reach platform.test:443 (502"),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", "does not reach platform.test:443 (504"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://login/\r\ncontent-length: 0\r\n\r\n", "refuses to connect"),
        (b"", "broke off"), (b"SSH-2.0-x\r\n\r\n", "broke off"),
    ],
    ids=["403", "502", "504", "login page", "closes", "no proxy"],
)  # fmt: skip
async def test_a_proxy_that_refuses_sent_nothing(authority, certificate, refusal, word):
    """Whatever a proxy says instead of a tunnel, the platform got nothing and any call may be made again; the reason names the proxy."""
    async with world(server_context(certificate), refusal=refusal) as (http, platform, _front, gate):
        lost = await http.post(through(gate, authority), REQUEST, HEADERS, 5.0)
        assert isinstance(lost, Lost)
        assert (lost.sent, lost.late, platform.came) == (False, False, [])
        assert word in lost.reason
        assert f"the proxy http://127.0.0.1:{gate.port}" in lost.reason


async def test_a_proxy_that_is_down_or_silent(authority, certificate):
    """No connection to the proxy is told from no connection to the platform; one that never answers is no lost answer."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = Reach(f"https://{NAME}", proxy=Proxy(f"http://127.0.0.1:{nobody.getsockname()[1]}"))
        async with Http() as http:
            lost = await http.post(away, REQUEST, HEADERS, 5.0)
        assert (lost.sent, lost.reason.startswith("no connection to the proxy http://127.0.0.1:")) == (False, True)
    async with world(server_context(certificate), silent=True) as (http, platform, _front, gate):
        lost = await http.post(through(gate, authority), REQUEST, HEADERS, 0.3)
        assert lost == Lost(f"no connection in time through the proxy http://127.0.0.1:{gate.port}", sent=False)
        assert (len(gate.heard), platform.came) == (1, [])


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def addressed(monkeypatch):
    """The name is this host, for whoever asks on the loop."""

    async def known(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    def at(name):
        assert name
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", known)

    return at


async def direct(http, front, *, name=NAME, trust=None):
    reach = Reach(f"https://{name}:{front.port}", trust=trust or Trust())
    return await http.post(reach, REQUEST, HEADERS, 5.0)


async def test_a_private_authority_is_trusted_by_its_file_alone(authority, certificate, addressed, tmp_path):
    """With its file the platform is reached; without, or with another's, the connection never comes to be, and the reason says what is missing."""
    addressed(NAME)
    trust = Trust(ca_file=str(authority.ca_file))
    other = Trust(ca_file=str(Authority(tmp_path, "another CA").ca_file))
    async with world(server_context(certificate)) as (http, platform, front, _gate):
        assert isinstance(await direct(http, front, trust=trust), Response)
        for wrong in (None, other):
            lost = await direct(http, front, trust=wrong)
            assert lost.reason == (
                f"no connection to {NAME}:{front.port}: its certificate is from an unknown issuer: a private CA is named by ca_file"
            )
            assert lost.sent is False
        assert len(platform.came) == 1


async def test_what_is_wrong_with_a_certificate_is_said(authority, addressed):
    """Expired, or for another name: neither is an answer, each has its words, and nothing was sent."""
    addressed(NAME)
    trust = Trust(ca_file=str(authority.ca_file))
    old = authority.issue(NAME, "old", days=-1)
    async with world(server_context(old)) as (http, platform, front, _gate):
        lost = await direct(http, front, trust=trust)
        assert (lost.sent, lost.reason) == (False, f"no connection to {NAME}:{front.port}: its certificate has expired")
        assert platform.came == []
    another = authority.issue("another.test", "another")
    async with world(server_context(another)) as (http, platform, front, _gate):
        lost = await direct(http, front, trust=trust)
        assert (lost.sent, "is for another name: is base_url right?" in lost.reason) == (False, True)
        assert platform.came == []


@pytest.mark.parametrize("files", [True, False], ids=["ca_file", "the system's issuers"])
async def test_tls_below_1_2_is_refused(authority, certificate, addressed, files):
    """A server that speaks no more than TLS 1.1 gets no request, and the reason says so."""
    addressed(NAME)
    trust = Trust(ca_file=str(authority.ca_file)) if files else Trust()
    with_old = server_context(certificate, newest=ssl.TLSVersion.TLSv1_1)
    with Outspoken(with_old) as platform:
        async with Http() as http:
            lost = await direct(http, platform, trust=trust)
        assert (lost.sent, platform.came) == (False, [])
        assert lost.reason.endswith("it speaks no TLS 1.2 or newer")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_is_shown(authority, certificate, addressed, newest):
    """A platform that wants one lets the right one in. Turned away, also after the request has left (TLS 1.3), nothing was taken."""
    addressed(NAME)
    cert, key = authority.issue("agentd", "client")
    asked = server_context(certificate, clients=authority.ca_file)
    asked.maximum_version = newest
    with Outspoken(asked) as platform:
        async with Http() as http:
            ours = Trust(str(authority.ca_file), str(cert), str(key))
            assert isinstance(await direct(http, platform, trust=ours), Response)
            lost = await direct(http, platform, trust=Trust(str(authority.ca_file)))
        assert (lost.sent, len(platform.came)) == (False, 1)
        assert ("client certificate" in lost.reason, "client_cert" in lost.reason) == (True, True)


async def test_a_handshake_that_is_cut_off(authority, certificate, addressed):
    """A server that hangs up instead of saying why is no connection either, and the reason says where it ended."""
    addressed(NAME)
    asked = server_context(certificate, clients=authority.ca_file)
    asked.maximum_version = ssl.TLSVersion.TLSv1_2
    async with world(asked) as (http, platform, front, _gate):
        lost = await direct(http, front, trust=Trust(str(authority.ca_file)))
        assert (lost.sent, platform.came) == (False, [])
        assert lost.reason == f"no connection to {NAME}:{front.port}: it hung up in the TLS handshake"


async def test_a_platform_that_speaks_no_tls(addressed):
    """Plain text where TLS is expected is said in these words."""
    addressed(NAME)
    async with Platform() as platform, Http() as http:
        lost = await direct(http, platform)
        assert (lost.sent, platform.came) == (False, [])
        assert lost.reason.endswith("it speaks no TLS")


# -- connections -------------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_not_for_ever(authority, certificate, addressed):
    """Twenty requests share one; after five minutes the next one is made anew, so that a platform that has moved is found."""
    addressed(NAME)
    clock = FakeClock()
    trust = Trust(ca_file=str(authority.ca_file))
    async with world(server_context(certificate), clock=clock) as (http, platform, front, _gate):
        for _ in range(20):
            assert isinstance(await direct(http, front, trust=trust), Response)
        assert (front.connections, len(platform.came)) == (1, 20)
        clock.advance(299)
        await direct(http, front, trust=trust)
        assert front.connections == 1
        clock.advance(2)
        await direct(http, front, trust=trust)
        await direct(http, front, trust=trust)
        assert front.connections == 2


async def test_what_is_under_way_ends_on_its_own_connection(authority, certificate, addressed):
    """A stream that outlives its connection's time is read to its end."""
    addressed(NAME)
    clock = FakeClock()
    trust = Trust(ca_file=str(authority.ca_file))
    async with world(server_context(certificate), clock=clock) as (http, _platform, front, _gate):
        reach = Reach(f"https://{NAME}:{front.port}", trust=trust)
        async with http.open(reach, REQUEST, HEADERS, 5.0) as opened:
            clock.advance(1000)
            assert isinstance(await direct(http, front, trust=trust), Response)
            assert b"".join([part async for part in opened.parts()]) == b'{"data": {}, "error": null}'
        assert http._retired == set()


async def test_a_platform_that_has_moved_is_found(monkeypatch):
    """An address where nobody is any more is not kept: the next try asks for it again."""
    async with Platform() as platform, Http() as http:
        asked = []

        async def told(host, port, **_):
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9 if len(asked) == 1 else platform.port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", told)
        reach = Reach(f"http://{NAME}:{platform.port}")
        lost = await http.post(reach, REQUEST, HEADERS, 5.0)
        assert (lost.sent, len(asked)) == (False, 1)
        assert (await http.post(reach, REQUEST, HEADERS, 5.0)).status == 200
        assert (await http.post(reach, REQUEST, HEADERS, 5.0)).status == 200
        assert len(asked) == 2  # and what answers is kept for a while


async def test_certificates_are_read_anew(authority, certificate, addressed, tmp_path):
    """A CA's file that was exchanged counts within minutes; one that can't be read then leaves what was known."""
    addressed(NAME)
    clock = FakeClock()
    file = tmp_path / "ca.pem"
    file.write_bytes(Authority(tmp_path / "other", "another CA").ca_file.read_bytes())
    trust = Trust(ca_file=str(file))
    async with world(server_context(certificate), clock=clock) as (http, _platform, front, _gate):
        assert isinstance(await direct(http, front, trust=trust), Lost)
        file.write_bytes(authority.ca_file.read_bytes())
        assert isinstance(await direct(http, front, trust=trust), Lost)
        clock.advance(301)
        assert isinstance(await direct(http, front, trust=trust), Response)
        file.write_bytes(b"nothing")
        clock.advance(301)
        assert isinstance(await direct(http, front, trust=trust), Response)


async def test_a_reload_reads_certificates_at_once(authority, certificate, addressed, tmp_path):
    """`renew` is what a reload says: the next request trusts the files as they are now, and what is under way goes on."""
    addressed(NAME)
    file = tmp_path / "ca.pem"
    file.write_bytes(Authority(tmp_path / "other", "another CA").ca_file.read_bytes())
    trust = Trust(ca_file=str(file))
    async with world(server_context(certificate)) as (http, _platform, front, _gate):
        assert isinstance(await direct(http, front, trust=trust), Lost)
        file.write_bytes(authority.ca_file.read_bytes())
        http.renew()
        assert isinstance(await direct(http, front, trust=trust), Response)
