"""`agentd check --online` against the sandbox: a key that is taken, one that is refused, and nobody there."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading

import pytest
from click.testing import CliRunner

from agentd import platforms
from agentd.cli import main
from agentd.sandbox import Sandbox, face_names

KEY = "key-that-is-right-0001"
WRONG = "key-that-is-wrong-0002"


class There:
    """All platforms on a thread with a loop of its own; `KEY` alone is taken."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.sandbox = Sandbox(face_names(), api_keys=[KEY])
        self.run(self.sandbox.start())

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def requests(self):
        async def look():
            return list(self.sandbox.requests())

        return self.run(look())

    def close(self):
        self.run(self.sandbox.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()


@pytest.fixture
def there():
    found = There()
    yield found
    found.close()


def config(tmp_path, urls):
    lines = [f'[listen]\nsocket = "{tmp_path}/s.sock"\n[spool]\ndirectory = "{tmp_path}/state"\nmax_bytes = "10MiB"\n']
    lines += [
        f'[destinations.{name}]\nplatform = "{name}"\nbase_url = "{url}"\nagent_id = "a"\napi_key = {{ env = "{key}" }}\n'
        for name, (url, key) in urls.items()
    ]
    path = tmp_path / "agentd.toml"
    path.write_text("\n".join(lines))
    return path


def check(path, *options):
    """Exit code, and the findings of each destination."""
    env = {"RIGHT": KEY, "WRONG": WRONG, "HOME": str(path.parent), "PATH": os.environ["PATH"]}
    done = CliRunner().invoke(main, ["--config", str(path), "check", *options, "--json"], env=env)
    assert KEY not in done.output
    assert WRONG not in done.output
    return done.exit_code, [tuple(one.values()) for one in json.loads(done.stdout)]


def of(findings, name):
    return [(level, text) for level, about, text in findings if about == f"[destinations.{name}]"]


@pytest.mark.parametrize("name", platforms.names())
def test_each_platform_says_whether_it_takes_a_key(there, tmp_path, name):
    """The right key is taken, another is refused; where it came from is said, itself never; one read, and nothing is written."""
    url = there.sandbox.url_for(name)
    code, findings = check(config(tmp_path, {name: (url, "RIGHT")}), "--online")
    assert code == 0, findings
    assert ("ok", "api_key from env RIGHT") in of(findings, name)
    assert "takes the key" in of(findings, name)[-1][1]
    code, findings = check(config(tmp_path, {name: (url, "WRONG")}), "--online")
    assert code == 78
    level, text = of(findings, name)[-1]
    assert level == "error"
    assert "the platform refuses the key" in text
    assert [(line.method, line.status == 401) for line in there.requests()] == [("GET", True), ("GET", False)]


def test_nobody_there_is_no_refused_key(tmp_path):
    """Without a network the key may be right: a warning, exit 1, and the reason is the connection's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, findings = check(config(tmp_path, {"agentos": (url, "RIGHT")}), "--online")
    assert code == 1
    level, text = of(findings, "agentos")[-1]
    assert level == "warning"
    assert "can't be reached" in text


def test_one_refused_key_hides_no_other_answer(there, tmp_path):
    """Every destination is asked, and each has its line."""
    urls = {name: (there.sandbox.url_for(name), "WRONG" if name == "ascend" else "RIGHT") for name in platforms.names()}
    code, findings = check(config(tmp_path, urls), "--online")
    assert code == 78
    last = {name: of(findings, name)[-1][0] for name in urls}
    assert last == {name: "error" if name == "ascend" else "ok" for name in urls}


def test_without_online_nobody_is_asked(there, tmp_path):
    """`check` alone needs no network."""
    code, _ = check(config(tmp_path, {"agentos": (there.sandbox.url_for("agentos"), "WRONG")}))
    assert (code, there.requests()) == (0, [])
