"""The real daemon as a child that was handed a socket and a NOTIFY_SOCKET: no root and no systemd needed for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from booted_kit import wait_for

CONFIG = """\
[log]
format = "json"

[shutdown]
drain_timeout = "1s"

[destinations.agentos]
platform = "agentos"
base_url = "http://127.0.0.1:9/agentos"
agent_id = "6adea1a6-2973-5c67-a1ed-967b60bcbdf0"
api_key = { env = "KEY" }
"""
OURS = (
    "AGENTD_",
    "AGENTOS_",
    "DECISION_OS_",
    "DECIDE_",
    "ASCEND_",
    "OWKAI_",
    "AEGIS_",
    "XDG_",
    "LISTEN_",
    "WATCHDOG_",
    "NOTIFY_",
)


class Child:
    """A daemon and the manager's two ends: the socket that it listens on, and the one that it hears news by."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "agentd.toml").write_text(CONFIG)
        self.news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.news.bind(str(self.folder / "notify"))
        self.news.settimeout(20)
        self.path = str(self.folder / "passed.sock")
        self.process = None

    def environment(self, **more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        state = {"AGENTD_SPOOL__DIRECTORY": str(self.folder / "state"), "KEY": "k", "HOME": str(self.folder)}
        return kept | state | {"NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "1000000"} | more

    @property
    def command(self):
        return [sys.executable, "-m", "agentd", "--config", str(self.folder / "agentd.toml"), "run"]

    def start(self, command, environment, **options):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, **options
            )

    def hear(self, *wanted):
        """The news up to the first one that has all of these."""
        found = []
        while not found or not set(wanted) <= set(found[-1]):
            found.append(self.news.recv(8192).decode().split("\n"))
        return found

    def falls_silent(self, for_s, within_s):
        """Whether a time comes in which nobody is fed."""
        deadline = time.monotonic() + within_s
        self.news.settimeout(for_s)
        try:
            while time.monotonic() < deadline:
                self.news.recv(8192)
        except TimeoutError:
            return True
        return False

    def ask(self, seq):
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(self.path)
            link.sendall(b'{"seq":%d,"records":[{"kind":"run.start","run_id":"r%d"}]}\n' % (seq, seq))
            return json.loads(link.recv(4096))

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.news.close()


@pytest.fixture
def child():
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        child = Child(folder)
        yield child
        child.close()


def test_it_lives_by_the_protocols_from_start_to_end(child):
    """A socket that was passed stays as it is; READY, WATCHDOG, RELOADING, STOPPING and EXTEND come when they should."""
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(child.path)
        os.chmod(child.path, 0o640)  # noqa: PTH101 - beside bind and stat
        passed.listen()
        before = os.stat(child.path)  # noqa: PTH116
        script = f'export LISTEN_PID=$$; exec "$@" 3<&{passed.fileno()}'
        environment = child.environment(LISTEN_FDS="1", LISTEN_FDNAMES="agentd.socket")
        child.start(["bash", "-c", script, "_", *child.command], environment, pass_fds=[passed.fileno()])
        assert child.ask(1) == {"seq": 1, "accepted": 1}  # connected before it was there
        *_, ready = child.hear("READY=1")
        assert ready[1].startswith("STATUS=takes records; ")
        child.hear("WATCHDOG=1")
        child.hear("WATCHDOG=1")
        child.process.send_signal(signal.SIGHUP)
        *_, reloading = child.hear("RELOADING=1")
        assert reloading[1].startswith("MONOTONIC_USEC=")
        child.hear("READY=1")
        assert child.ask(2) == {"seq": 2, "accepted": 1}
        child.process.send_signal(signal.SIGTERM)
        child.hear("STOPPING=1")
        child.hear("EXTEND_TIMEOUT_USEC=20000000")
        assert child.process.wait(20) == 0
        after = os.stat(child.path)  # noqa: PTH116
        assert (after.st_ino, after.st_mode, after.st_ctime_ns) == (before.st_ino, before.st_mode, before.st_ctime_ns)
        assert not Path(f"{child.path}.lock").exists()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(child.path)  # the manager listens on


def test_a_shell_between_is_said(child):
    """The variables are meant for another process: no guess whose socket it is."""
    child.start(child.command, child.environment(LISTEN_FDS="1", LISTEN_PID="1"))
    assert child.process.wait(20) == 78
    assert "start agentd itself in ExecStart=" in (child.folder / "log").read_text()


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not here")
def test_systemds_own_tool_starts_it(child):
    """systemd-socket-activate: the first connection starts the daemon, which answers on it."""
    settings = [f"--setenv={name}={value}" for name, value in child.environment().items()]
    tool = ["systemd-socket-activate", f"--listen={child.path}", "--fdname=agentd.socket", *settings]
    child.start([*tool, *child.command], child.environment())
    wait_for(Path(child.path).exists)
    assert child.ask(1) == {"seq": 1, "accepted": 1}
    child.hear("READY=1")
    child.process.terminate()
    child.hear("STOPPING=1")
    assert child.process.wait(20) == 0
    assert Path(child.path).exists()


@pytest.mark.parametrize("point", ["seal.made", "commit.put"], ids=["event loop", "storage thread"])
def test_a_daemon_that_hangs_is_silent(child, point):
    """No timer feeds the watchdog: loop or storage thread stuck, and the feeding ends."""
    child.path = str(child.folder / "own.sock")
    child.start(child.command, child.environment(AGENTD_HANG_AT=point, AGENTD_SOCKET=child.path))
    child.hear("READY=1")
    child.hear("WATCHDOG=1")
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(child.path)
        link.sendall(b'{"kind":"run.start","run_id":"r"}\n')
        assert child.falls_silent(2.5, 10), "fed every 0.5 s, and five times that without it would be"
    child.process.send_signal(signal.SIGABRT)  # as the watchdog does
    assert child.process.wait(20) == -signal.SIGABRT
    said = (child.folder / "log").read_text()
    assert "Fatal Python error: Aborted" in said
    assert ("crashpoints.py" in said, "reached" in said) == (True, True)
    assert ("no progress" in said) is (point == "commit.put")
