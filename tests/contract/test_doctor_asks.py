"""Doctor's probes on real things: sockets, folders, names, ports, certificates, and what a platform says of the key and the time."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from outward_kit import NAME, Authority, Front, server_context, threaded

from agentd.doctor import asking, looking
from agentd.sections import Config, Destination, Secret

KEY = "aos_agent_key"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")


@contextmanager
def platform(status=200, date=None, body=b"{}"):
    """A server that answers everything the same, with the time that it is told."""
    seen = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.command, self.path, self.headers.get("Authorization") or self.headers.get("X-API-Key")))
            self.send_response_only(status)
            self.send_header("Date", date or self.date_time_string())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(base_url, env=None, **destination):
    config = Config(
        destinations={"x": Destination("agentos", base_url, api_key=Secret(env="K"), agent_id="a", **destination)}
    )
    return asking.hops(config, {"K": KEY} if env is None else env)[0]


def test_a_platform_that_takes_the_key():
    """One read with the key, never a write; the clock is compared with its Date."""
    with platform() as (port, seen):
        hop = ask(f"http://127.0.0.1:{port}")
    assert (hop.key_found, hop.status, hop.clock_ahead_s) == ("taken", 200, 0.0)
    assert hop.addresses == ("127.0.0.1",)
    assert [method for method, _, _ in seen] == ["GET"]
    assert KEY in (seen[0][2] or "")


@pytest.mark.parametrize(("status", "found"), [(401, "refused"), (402, "taken"), (503, "away"), (302, "unclear")])
def test_what_a_platform_says_of_the_key(status, found):
    """The status is kept beside what it means."""
    with platform(status) as (port, _):
        hop = ask(f"http://127.0.0.1:{port}")
    assert (hop.key_found, hop.status) == (found, status)


def test_a_clock_that_is_wrong():
    """A Date a year away is told in seconds."""
    with platform(date="Sun, 06 Nov 1994 08:49:37 GMT") as (port, _):
        assert ask(f"http://127.0.0.1:{port}").clock_ahead_s > 10**8


def test_nobody_there():
    """A port that is closed, a name that is none, a key that is not set: the first that fails ends the way."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        hop = ask(f"http://127.0.0.1:{sock.getsockname()[1]}")
    assert (hop.tcp_error, hop.key_found) == ("Connection refused", "")
    assert ask(f"https://nobody.{NAME}").dns_error
    assert "variable K is not set" in ask("http://127.0.0.1:9", env={}).unreadable


def test_the_proxy_is_asked_and_not_the_platform():
    """With a proxy in the environment it is the proxy's name and port that count, and where it was set is told."""
    hop = ask(f"https://{NAME}", env={"K": KEY, "https_proxy": "http://user:word@127.0.0.1:9"})
    assert (hop.proxy, hop.proxy_source, hop.tcp_error) == ("http://127.0.0.1:9", "https_proxy", "Connection refused")
    assert "word" not in repr(hop)


@needs_openssl
def test_certificates(tmp_path):
    """An unknown issuer, a wrong name, and a right one with the days that it has left."""
    authority = Authority(tmp_path / "ca")
    with platform() as (port, _):
        front = Front(server_context(authority.issue("localhost")), port)
        other = Front(server_context(authority.issue(NAME)), port)
        with threaded(front, other):
            ca_file = str(authority.ca_file)
            assert "unknown issuer" in ask(f"https://localhost:{front.port}").tls_error
            assert "another name" in ask(f"https://localhost:{other.port}", ca_file=ca_file).tls_error
            hop = ask(f"https://localhost:{front.port}", ca_file=ca_file)
    assert (hop.tls_error, hop.key_found) == ("", "taken")
    assert 0 < hop.certificate_days < 3
    assert hop.issuer


# -- this host -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place():
    """A path that is short enough for a socket."""
    folder = Path(f"/tmp/ad-{os.getpid()}-{threading.get_ident() % 10**6}")
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def test_what_lies_at_the_sockets_place(place):
    """Nothing, a file, a stale socket, and one that answers."""
    path = place / "s"
    assert looking.socket(str(path)).answer == "missing"
    path.write_text("")
    assert (looking.socket(str(path)).kind, looking.socket(str(path)).answer) == ("file", "refused")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert (looking.socket(str(path)).kind, looking.socket(str(path)).answer) == ("socket", "refused")
        sock.listen(1)
        assert looking.socket(str(path)).answer == "answers"
        assert (looking.socket(str(path)).uid, looking.socket(str(path)).mode & 0o777) == (
            os.getuid(),
            path.stat().st_mode & 0o777,
        )
    assert looking.socket(str(path)).answer == "refused"


def test_a_state_folder(place):
    """Not there, there, and with something in quarantine; nothing in it changes."""
    assert not looking.folder(place / "state", None).exists
    (place / "quarantine" / "segment").mkdir(parents=True)
    (place / "quarantine" / "empty").mkdir()
    (place / "quarantine" / "segment" / "1").write_text("x")
    before = sorted(place.rglob("*"))
    seen = looking.folder(place, 42)
    assert (seen.uid, seen.mode & 0o777, seen.quarantined, seen.holder) == (os.getuid(), 0o700, {"segment": 1}, 42)
    assert sorted(place.rglob("*")) == before


def test_disk_files_and_software(place):
    """What the kernel and the installation say, without a doubt about it."""
    disk = looking.disk(place / "not" / "yet")
    assert disk is not None
    assert (disk.path, disk.read_only) == (str(place), False)
    assert 0 < disk.free_bytes <= disk.total_bytes
    files = looking.files(os.getpid())
    assert files.daemon_open > 3
    assert files.daemon_limit <= files.hard
    software = looking.software()
    assert {"aiohttp", "msgspec", "diskcache"} <= set(software.packages)
    assert "pytest" not in software.wanted
    assert looking.user().uid == os.geteuid()


def test_an_unrelated_agentd_beside_ours(tmp_path, monkeypatch):
    """PyPI's distribution of that name is found by its metadata."""
    info = tmp_path / "agentd-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agentd\nVersion: 0.3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert looking.software().others == (str(tmp_path),)
