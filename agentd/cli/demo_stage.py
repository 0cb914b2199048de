"""What the demonstration runs on: a temporary folder, a real daemon and the agents as children of ours, and the sandbox.

The folder holds all that a user may want to look at: `agentd.toml`, `platform.key`, `daemon.log`, `board.txt`, `state/`. Whatever was started is
ended by `close`, in reverse order, however the demonstration ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from agentd.cli.ask import Daemon, NoDaemon
from agentd.cli.sandbox import AGENT_ID
from agentd.cli.status import Status, read_status
from agentd.errors import StateError
from agentd.paths import MAX_SOCKET_PATH
from agentd.sandbox import Sandbox
from agentd.sandbox.demo import AGENT

API_KEY = "demo-key-of-the-sandbox"
_READY_S = 20.0  # for a cold start on a slow machine; it takes well under a second as a rule
_STOP_S = 15.0  # the configuration's drain_timeout, and some
_DEATH_S = 2.0  # from a closed socket to an exit code
_LOOK_S = 0.05  # between two looks at whether the daemon is up
_LOG_LINES = 12

_CONFIG = """\
# Written by `agentd demo`. Look around while it runs (or after `agentd demo --keep`):
#   agentd --config {folder}/agentd.toml status

[listen]
socket = "{folder}/agentd.sock"

[spool]
directory = "{folder}/state"

[batch]
max_events = 50
max_interval = "500ms"

[retry]
initial = "250ms"
max = "1s"                # 60s by default; the demonstration's outage is short
"""

# `agents`: our name for the agent, and the platform's. The emulated workspaces of these three know one agent.
_DESTINATION = """\

[destinations.{face}]
platform = "{face}"
base_url = "{url}"
api_key = {{ file = "{folder}/platform.key" }}
"""
_AGENTS = 'agents = {{ {agent} = "{agent_id}" }}\n'
FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
_WITH_AGENTS = frozenset({"agentos", "aegis", "decisionos"})


class Stage:
    """The folder and the processes. `sandbox` is the platform; `daemon` asks the daemon."""

    def __init__(self) -> None:
        self.folder = _folder()
        self.config = self.folder / "agentd.toml"
        self.log = self.folder / "daemon.log"
        self.daemon = Daemon(str(self.folder / "agentd.sock"))
        self.sandbox = Sandbox(FACES, api_keys=[API_KEY], switches=["aegis.park=true"])  # a person decides on spending
        self.keep_folder = False
        self._process: Process | None = None
        self._agents: Process | None = None

    async def open(self) -> None:
        """Sandbox, configuration, daemon: up when this returns. Raises StateError with the daemon's last words."""
        await self.sandbox.start()
        key = self.folder / "platform.key"
        key.touch(mode=0o600)
        key.write_text(API_KEY + "\n")
        self.config.write_text(_CONFIG.format(folder=self.folder) + "".join(map(self._destination, FACES)))
        await self._start_daemon()

    def _destination(self, face: str) -> str:
        text = _DESTINATION.format(face=face, url=self.sandbox.url_for(face), folder=self.folder)
        return text + (_AGENTS.format(agent=AGENT, agent_id=AGENT_ID) if face in _WITH_AGENTS else "")

    async def _start_daemon(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentd", "--config", str(self.config), "run"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for us: we end it in order
            )
        until = asyncio.get_running_loop().time() + _READY_S
        while not await self._is_up():
            if asyncio.get_running_loop().time() > until:
                raise StateError(f"the daemon did not answer within {_READY_S:.0f}s; {self._last_words()}")
            await asyncio.sleep(_LOOK_S)

    async def _is_up(self) -> bool:
        if self.daemon_pid is None:
            raise self._obituary()
        try:
            await self._ask()
        except NoDaemon:
            return False
        return True

    def _obituary(self) -> StateError:
        code = None if self._process is None else self._process.returncode
        return StateError(f"the daemon ended with exit code {code}; {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if self.log.exists() else []
        return f"its log {self.log} ends: {' / '.join(lines)}"

    @property
    def daemon_pid(self) -> int | None:
        """The daemon's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def status(self) -> Status:
        """What the daemon says of itself. Raises StateError with its last words if it has died."""
        try:
            return await self._ask()
        except NoDaemon as error:
            if self._process is None:
                raise
            try:
                async with asyncio.timeout(_DEATH_S):
                    await self._process.wait()
            except TimeoutError:
                raise error from None
            raise self._obituary() from error

    async def _ask(self) -> Status:
        return read_status(await asyncio.to_thread(self.daemon.get, "/v1/status"))

    async def flush(self, timeout_s: float) -> dict[str, Any]:
        """Wait until all is delivered, at most so long."""

        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self.daemon.post(
                "/v1/flush", timeout_s=timeout_s + self.daemon.timeout_s, until="delivered", timeout=timeout_s
            )
            return answer

        return await asyncio.to_thread(ask)

    async def run_agents(self, runs: int, pace_s: float) -> dict[str, Any]:
        """The agents, in a process of their own, from start to end: what each run did. Raises StateError."""
        self._agents = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd.sandbox.demo", "--runs", str(runs), "--pace", str(pace_s)),
            *("--board", str(self.folder / "board.txt")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=self._environment(),
            start_new_session=True,
        )
        out, err = await self._agents.communicate()
        if self._agents.returncode != 0:
            words = " / ".join(err.decode(errors="replace").strip().splitlines()[-_LOG_LINES:])
            raise StateError(f"the agents ended with exit code {self._agents.returncode}: {words}")
        document: dict[str, Any] = json.loads(out)
        return document

    def _environment(self) -> dict[str, str]:
        """Ours without what is set for other daemons."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        return env | {"AGENTD_SOCKET": self.daemon.socket, "AGENTD_REQUIRED": "1"}

    async def stop_daemon(self) -> int | None:
        """SIGTERM, and the exit code; a daemon that doesn't go is killed, which shows as -9."""
        return await _end(self._process)

    async def close(self) -> None:
        """End whatever still runs. The folder goes, unless `keep_folder` says that somebody should look at it."""
        await _end(self._agents)
        await self.stop_daemon()
        await self.sandbox.stop()
        if not self.keep_folder:
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


async def _end(process: Process | None) -> int | None:
    if process is None:
        return None
    for number, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, None)):
        if process.returncode is None:
            _signal(process, number)
        try:
            async with asyncio.timeout(patience_s):
                return await process.wait()
        except TimeoutError:
            continue
    return process.returncode


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        return


def _folder() -> Path:
    """Ours alone (mkdtemp's 0700), with a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="agentd-demo-"))
    if len(os.fsencode(folder / "agentd.sock")) <= MAX_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="agentd-demo-", dir="/tmp"))
