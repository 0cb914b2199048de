"""The one way out against real servers: whatever they do, there is an answer, or the reason why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import socket
import ssl
import subprocess

import msgspec
import pytest
from aiohttp import web

from agentd.exchange import ANSWER_BYTES, Lost, Request, Response, Transport
from agentd.http import Http, Way
from agentd.reach import Reach

KEY = "aos_agent_very_secret"
HEADERS = {"authorization": f"Bearer {KEY}", "idempotency-key": "k-1"}
REQUEST = Request("/api/ingest/v1/events", b'{"run_id":"r"}')


@pytest.fixture
async def http():
    async with Http() as session:
        yield session


@pytest.fixture
async def serve():
    """A server of aiohttp's whose one handler answers every path; gives the base URL and the requests that came."""
    runners = []

    async def start(handler, **options):
        came = []

        async def note(request):
            came.append(
                (
                    request.method,
                    request.path,
                    {name.lower(): value for name, value in request.headers.items()},
                    await request.read(),
                )
            )
            return await handler(request)

        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", note)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, **options)
        await site.start()
        runners.append(runner)
        return f"127.0.0.1:{runner.addresses[0][1]}", came

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def speak():
    """A server that reads a request and then says these bytes, or nothing, and closes."""
    servers = []

    async def start(said, *, read=True):
        async def talk(reader, writer):
            with contextlib.suppress(ConnectionError):
                if read:
                    await reader.readuntil(b"\r\n\r\n")
                writer.write(said)
                await writer.drain()
                writer.close()
                await writer.wait_closed()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def send(http, url, request=REQUEST, timeout_s=5.0):
    way = Way(http, Reach(url, timeout_s=timeout_s))
    transport: Transport = way
    found = await transport.send(request, HEADERS)
    if isinstance(found, Lost):
        assert KEY not in found.reason
        assert len(found.reason) <= 300
        msgspec.json.encode(found.reason)
    return found


async def ok(_request):
    return web.json_response({"data": {}, "error": None})


async def test_a_request_goes_out_as_it_was_given(http, serve):
    """Method, path, body, key and idempotency key arrive as the adapter made them; headers come back in lower case."""
    host, came = await serve(ok)
    found = await send(http, f"http://{host}/prefix/")
    assert isinstance(found, Response)
    assert (found.status, msgspec.json.decode(found.body)) == (200, {"data": {}, "error": None})
    assert found.headers["content-type"].startswith("application/json")
    [(method, path, headers, body)] = came
    assert (method, path, body) == ("POST", "/prefix/api/ingest/v1/events", REQUEST.body)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["idempotency-key"] == "k-1"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("agentd/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(http, serve, status):
    """A redirected POST would become a GET and its 200 a silent loss; a key must not go to another host."""
    host, came = await serve(lambda _r: answer_with(status, location="http://127.0.0.1:1/"))
    found = await send(http, f"http://{host}")
    assert isinstance(found, Response)
    assert (found.status, found.headers["location"]) == (status, "http://127.0.0.1:1/")
    assert len(came) == 1


async def answer_with(status, body=b"", **headers):
    return web.Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 404, 409, 413, 422, 429, 500, 503])
async def test_every_status_is_an_answer(http, serve, status):
    """No status raises: what it means is the adapter's affair."""
    host, _ = await serve(lambda _r: answer_with(status, b"" if status == 204 else b"words", retry_after="3"))
    found = await send(http, f"http://{host}")
    assert isinstance(found, Response)
    assert (found.status, found.headers["retry-after"]) == (status, "3")


@pytest.mark.parametrize("size", [ANSWER_BYTES - 1, ANSWER_BYTES, ANSWER_BYTES + 1, 2 * 2**20])
async def test_an_answer_is_read_up_to_64_kib(http, serve, size):
    """A platform can't fill our memory: 64 KiB of an answer are read, whatever it sends, and the next request works."""
    host, came = await serve(lambda _r: answer_with(200, b"x" * size))
    for _ in range(2):
        found = await send(http, f"http://{host}")
        assert isinstance(found, Response)
        assert found.body == b"x" * min(size, ANSWER_BYTES)
    assert len(came) == 2


async def test_a_compressed_answer_is_bounded_when_unpacked(http, serve):
    """A bomb of 64 MiB in 64 KiB is read as 64 KiB."""
    bomb = gzip.compress(bytes(2**26))
    host, _ = await serve(lambda _r: answer_with(200, bomb, content_encoding="gzip"))
    found = await send(http, f"http://{host}")
    assert isinstance(found, Response)
    assert len(found.body) == ANSWER_BYTES


async def test_no_cookie_is_kept(http, serve):
    """What one answer sets does not travel with the next request."""
    host, came = await serve(lambda _r: answer_with(200, set_cookie="session=1"))
    await send(http, f"http://{host}")
    await send(http, f"http://{host}")
    assert not any("cookie" in name for name in came[1][2])


async def test_a_refused_connection_sent_nothing(http):
    """`sent=False`: nobody was there, so any call may be made again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = await send(http, url)
    assert isinstance(found, Lost)
    assert found.sent is False
    assert "Connect" in found.reason
    assert found == await send(http, url)  # the same words each time, so that repeats can be counted as one


async def test_a_name_that_is_none_sent_nothing(http):
    """A host that can't be resolved was not reached."""
    found = await send(http, "https://no-such-host.invalid")
    assert isinstance(found, Lost)
    assert found.sent is False


async def test_a_server_that_closes_after_reading_may_have_acted(http, speak):
    """`sent=True`: the request was read, and nobody knows what became of it."""
    found = await send(http, await speak(b""))
    assert found == Lost("connection closed before the answer", sent=True)


async def test_an_answer_that_ends_in_the_middle_is_none(http, speak):
    """A body shorter than its length says is no answer to rely on."""
    found = await send(http, await speak(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"))
    assert isinstance(found, Lost)
    assert found.sent is True


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", b"\x00\xff" * 50,
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no-http", "status", "header", "bytes", "gzip", "length", "chunk"],
)  # fmt: skip
async def test_what_is_no_http_is_no_answer(http, speak, said):
    """A peer that speaks no HTTP, or broken HTTP, may have acted, and never raises."""
    found = await send(http, await speak(said))
    assert isinstance(found, Lost)
    assert found.sent is True


async def test_header_values_can_be_written_down(http, speak):
    """A header need not be UTF-8; what we keep of it can be logged and put into JSON."""
    found = await send(http, await speak(b"HTTP/1.1 302 Found\r\nlocation: /\xff\xfe\r\ncontent-length: 0\r\n\r\n"))
    assert isinstance(found, Response)
    msgspec.json.encode(dict(found.headers))


async def test_a_server_that_does_not_answer_runs_into_the_time_limit(http, serve):
    """Nobody waits longer than the destination's `timeout`; the request may have been taken."""
    wait = asyncio.Event()

    async def silent(_request):
        await wait.wait()
        return web.Response()

    host, _ = await serve(silent)
    found = await send(http, f"http://{host}", timeout_s=0.05)
    assert found == Lost("no answer in time", sent=True, late=True)
    wait.set()


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost that nobody vouches for."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
async def test_a_certificate_that_nobody_vouches_for_sent_nothing(http, serve, certificate):
    """TLS that can't be verified is a connection that never came to be; the key was not shown to that server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    host, came = await serve(ok, ssl_context=context)
    found = await send(http, f"https://{host}")
    assert isinstance(found, Lost)
    assert found.sent is False
    assert "certificate" in found.reason.lower()
    assert came == []


async def test_plain_text_where_tls_is_expected_sent_nothing(http, speak):
    """A server that speaks no TLS got no request."""
    url = await speak(b"HTTP/1.1 400 Bad Request\r\n\r\n", read=False)
    found = await send(http, url.replace("http://", "https://"))
    assert isinstance(found, Lost)
    assert found.sent is False


async def test_a_request_may_have_headers_of_its_own(http, serve):
    """What an adapter adds for one request goes with it, over the common ones."""
    host, came = await serve(ok)
    await send(http, f"http://{host}", Request("/x", b"{}", {"x-one": "1", "idempotency-key": "k-2"}))
    assert (came[0][2]["x-one"], came[0][2]["idempotency-key"]) == ("1", "k-2")


async def test_no_repr_shows_a_key(http):
    """A way out has no key in it, and says none."""
    assert KEY not in f"{http!r} {Way(http, Reach('https://x', timeout_s=1.0))!r}"


async def test_a_gate_has_a_time_limit_of_its_own(http, serve):
    """A gate's deadline replaces the destination's timeout; what hangs longer is an answer that was lost."""
    came = asyncio.Event()

    async def hang(_):
        came.set()
        await asyncio.Event().wait()

    address, _ = await serve(hang)
    way = Way(http, Reach(f"http://{address}", timeout_s=60.0))
    assert await way.send(REQUEST, HEADERS, timeout_s=0.2) == Lost("no answer in time", sent=True, late=True)
    assert came.is_set()
    assert not way.unreachable


async def test_a_gates_answer_may_be_long(http, serve):
    """64 KiB is enough for a record's answer, not for a decision with its evidence."""

    async def long(_):
        return web.Response(body=b"x" * 300_000)

    address, _ = await serve(long)
    way = Way(http, Reach(f"http://{address}", timeout_s=10.0))
    assert len((await way.send(REQUEST, HEADERS)).body) == ANSWER_BYTES
    assert len((await way.send(REQUEST, HEADERS, limit=2**20)).body) == 300_000
    assert len((await way.send(REQUEST, HEADERS, limit=1000)).body) == 1000


async def test_whether_a_platform_is_there_is_known_from_the_last_try(http, serve):
    """No connection is told from every other end: fail_mode "open" covers that alone."""

    async def refuse(_):
        return web.Response(status=500)

    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))
    with contextlib.closing(nobody):
        away = Way(http, Reach(f"http://127.0.0.1:{nobody.getsockname()[1]}", timeout_s=5.0))
        assert not away.unreachable
        answer = await away.send(REQUEST, HEADERS, timeout_s=0.5)
        assert (answer.sent, away.unreachable) == (False, True)
    address, _ = await serve(refuse)
    there = Way(http, Reach(f"http://{address}", timeout_s=5.0))
    assert (await there.send(REQUEST, HEADERS)).status == 500
    assert not there.unreachable


async def test_a_key_that_comes_back_is_taken_out(http, serve):
    """An answer that echoes the request, whole or in pieces: neither body nor headers hand the key on."""
    key = "aos_ws_0123456789"

    async def echo(request):
        said = request.headers["Authorization"]
        response = web.StreamResponse(headers={"X-Request-Id": said, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (b"data: ", said[:12].encode(), said[12:].encode(), b"\n\n", key[:5].encode()):
            await response.write(part)
            await asyncio.sleep(0)
        return response

    url, _ = await serve(echo)
    headers = {"authorization": f"Bearer {key}"}
    answer = await http.post(Reach(f"http://{url}"), REQUEST, headers, 5.0)
    assert (answer.body, answer.headers["x-request-id"]) == (b"data: Bearer ***\n\naos_w", "Bearer ***")
    async with http.open(Reach(f"http://{url}"), REQUEST, headers, 5.0, streams=True) as opened:
        body = b"".join([part async for part in opened.parts()])
    assert (body, opened.headers["x-request-id"]) == (answer.body, "Bearer ***")


async def test_a_large_body_goes_out_whole(http, serve):
    """Above a MiB it goes in pieces, with its length; the loop is not held up by one write."""
    host, came = await serve(ok)
    body = b"x" * (2**20 + 1)
    found = await send(http, f"http://{host}", Request("/v1/intents", body))
    assert found.status == 200
    ((_, _, headers, sent),) = came
    assert (sent == body, headers["content-length"], headers["content-type"]) == (
        True,
        str(len(body)),
        "application/json",
    )
