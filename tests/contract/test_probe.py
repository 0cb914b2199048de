"""`listen.probe` over a real port: three paths, two methods, small limits, and an answer also while the event loop hangs."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from agentd.errors import AlreadyRunning, ConfigError, StateError
from agentd.intake import probe
from agentd.intake.probe import Answer, ProbeListener, read_head

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"


class Daemon:
    def __init__(self):
        self.ill = None
        self.away = None
        self.error = None
        self.scrapes = 0

    def unhealthy(self):
        return self.ill

    def unready(self):
        return self.away

    def metrics(self):
        self.scrapes += 1
        if self.error is not None:
            raise self.error
        return b"agentd_x 1\n", "text/plain; version=0.0.4"


@pytest.fixture
def daemon():
    return Daemon()


@pytest.fixture
async def port(daemon):
    async with ProbeListener("127.0.0.1:0", daemon, timeout_s=1.0) as listener:
        yield int(listener.url.rpartition(":")[2])


def say(port, request, within_s=10.0):
    """Send it and read to the end: (status, headers, body)."""
    with socket.create_connection(("127.0.0.1", port), within_s) as sock:
        sock.sendall(request)
        data = b""
        while part := sock.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def is_ended(sock):
    """Whether the other side has ended it by now."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def ask(port, request):
    return await asyncio.to_thread(say, port, request if b" HTTP/" in request else GET % request)


async def test_health_readiness_and_metrics(port, daemon):
    """200 and `ok`, or 503 with the reason; the metrics as they are."""
    assert await ask(port, b"/healthz") == (200, {
        "Server": "agentd", "Content-Type": "application/json", "Content-Length": "16", "Cache-Control": "no-store", "Connection": "close",
    }, b'{"status": "ok"}')  # fmt: skip
    assert (await ask(port, b"/readyz?verbose=1"))[0] == 200
    daemon.ill, daemon.away = "the storage thread has ended nothing for 31 s", "draining"
    status, _, body = await ask(port, b"/healthz")
    assert (status, json.loads(body)) == (503, {"status": "unhealthy", "reason": daemon.ill})
    status, _, body = await ask(port, b"/readyz")
    assert (status, json.loads(body)) == (503, {"status": "unready", "reason": "draining"})
    status, headers, body = await ask(port, b"/metrics")
    assert (status, headers["Content-Type"], body) == (200, "text/plain; version=0.0.4", b"agentd_x 1\n")


async def test_head_is_get_without_a_body(port):
    """HEAD has the same status and length."""
    status, headers, body = await ask(port, b"HEAD /healthz HTTP/1.0\r\n\r\n")
    assert (status, headers["Content-Length"], body) == (200, "16", b"")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", 404), (b"GET /v1/status HTTP/1.1", 404), (b"POST /v1/records HTTP/1.1", 404), (b"GET /healthz/ HTTP/1.1", 404),
        (b"GET /HEALTHZ HTTP/1.1", 404), (b"GET /%68ealthz HTTP/1.1", 404), (b"GET /v1/../healthz HTTP/1.1", 404), (b"GET //healthz HTTP/1.1", 404),
        (b"POST /healthz HTTP/1.1", 405), (b"PUT /metrics HTTP/1.1", 405), (b"OPTIONS /readyz HTTP/1.1", 405), (b"DELETE /readyz HTTP/1.1", 405),
        (b"GET http://x/healthz HTTP/1.1", 400), (b"GET * HTTP/1.1", 400), (b"CONNECT x:443 HTTP/1.1", 400), (b"get /healthz HTTP/1.1", 400),
        (b"GET /healthz", 400), (b"GET  /healthz HTTP/1.1", 400), (b"GET /healthz HTTP/2", 400), (b"PRI * HTTP/2.0", 400), (b"\x16\x03\x01\x02", 400),
        (b"GET /health\x00z HTTP/1.1", 400), (b"GET /healthz\n HTTP/1.1", 400), (b"", 400),
    ],
)  # fmt: skip
async def test_nothing_else_is_answered(port, daemon, request_line, status):
    """Whatever is asked in another way gets an error, and nobody is asked."""
    got, headers, body = await asyncio.to_thread(say, port, request_line + b"\r\nHost: x\r\n\r\n")
    assert (got, set(json.loads(body))) == (status, {"error"})
    assert headers.get("Allow") == ("GET, HEAD" if status == 405 else None)
    assert daemon.scrapes == 0


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 431)])
async def test_a_head_has_a_limit(port, more, status):
    """At the limit, and one byte above it."""
    line = b"GET /healthz HTTP/1.1\r\nX: "
    filled = line + b"x" * (probe.MAX_HEAD_BYTES - len(line) + more) + b"\r\n\r\n"
    assert (await asyncio.to_thread(say, port, filled))[0] == status


def test_half_a_head_is_waited_for():
    """Until it is whole, or too long."""
    assert read_head(b"") is None
    assert read_head(b"GET /healthz HTTP/1.1\r\n") is None
    assert read_head(GET % b"/readyz") == ("GET", "/readyz")
    assert isinstance(read_head(b"x" * (probe.MAX_HEAD_BYTES + 1)), Answer)


async def test_a_second_request_is_not_answered(port):
    """Every answer is the last of its connection."""
    assert (await ask(port, GET % b"/healthz" + GET % b"/metrics"))[2] == b'{"status": "ok"}'


async def test_who_says_nothing_is_let_go(port):
    """A slow loris has its time and no more."""
    begun = time.monotonic()

    def loris():
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(b"GET /hea")
            try:
                return sock.recv(1)
            except ConnectionResetError:
                return b""

    assert await asyncio.to_thread(loris) == b""
    assert time.monotonic() - begun < 8


async def test_a_crowd_does_not_keep_the_kubelet_out(port):
    """Of 200 who connect and say nothing the oldest go, and whoever asks is answered."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(200)]
        for _ in range(5):
            assert (await ask(port, b"/healthz"))[0] == 200
        assert sum(map(is_ended, crowd)) >= 200 - probe.MAX_CONNECTIONS


async def test_a_flood_of_scrapes_is_one(port, daemon, monkeypatch):
    """Who asks within a second of another shares what that one got; who comes later gets a new one."""
    monkeypatch.setattr(probe, "FRESH_S", 60.0)
    with ThreadPoolExecutor(20) as pool:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(*(loop.run_in_executor(pool, say, port, GET % b"/metrics") for _ in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert (await ask(port, b"/metrics"))[0] == 200
    assert daemon.scrapes == 1
    monkeypatch.setattr(probe, "FRESH_S", 0.0)
    await ask(port, b"/metrics")
    assert daemon.scrapes == 2


async def test_while_the_event_loop_hangs_somebody_says_so(port, daemon):
    """Health is answered by another thread; the metrics, which the loop alone can count, are 503 after their time."""
    daemon.ill = "the event loop has not gone round for 42 s"
    with ThreadPoolExecutor(2) as pool:
        health = pool.submit(say, port, GET % b"/healthz")
        metrics = pool.submit(say, port, GET % b"/metrics")
        (status, _, body), (scraped, _, said) = health.result(20), metrics.result(20)  # this blocks the loop
    assert (status, json.loads(body)["reason"]) == (503, daemon.ill)
    assert (scraped, json.loads(said)["error"]["message"]) == (503, "the event loop does not answer")


async def test_metrics_that_are_not_there_yet(port, daemon):
    """While the daemon starts there is a sentence instead."""
    daemon.error = StateError("agentd is starting")
    status, _, body = await ask(port, b"/metrics")
    assert (status, json.loads(body)["error"]["message"]) == (503, "agentd is starting")


async def test_without_an_address_nothing_listens(daemon):
    """It is off by default: no thread, no port."""
    async with ProbeListener(None, daemon) as listener:
        assert listener.url is None
        assert listener._thread is None


async def test_a_port_that_is_taken_is_an_error(port, daemon):
    """Named by its key, like any other place that is taken."""
    with pytest.raises(AlreadyRunning, match=r"\[listen\] probe: 127.0.0.1:\d+: another program is listening here"):
        await ProbeListener(f"127.0.0.1:{port}", daemon).__aenter__()
    with pytest.raises(StateError, match=r"\[listen\] probe: 192.0.2.1:1"):
        await ProbeListener("192.0.2.1:1", daemon).__aenter__()
    with pytest.raises(ConfigError, match=r"\[listen\] probe"):
        await ProbeListener("here:1", daemon).__aenter__()
