"""What the end-to-end tests share: the real daemon as a child, a platform that can misbehave, clients, and the final audit.

    world = World()                            # a short folder below /tmp, and a sandbox on a thread of its own
    daemon = world.daemon(batch={"max_events": 10})
    ledger = world.ledger                      # makes records, remembers what was acknowledged
    with Frames(daemon) as client:
        client.deliver(ledger, [ledger.start("r"), ledger.event("r"), ledger.end("r")])
    world.finish()                             # waits until all is delivered, stops the daemon, audits

The audit: the sandbox holds what was acknowledged and nothing else, each run in order, every batch under one key with one
body, the books of the daemon add up, SIGTERM ends it with exit code 0, its log has no traceback, no defect and no error that the
test did not announce, and what it leaves on disk is audited as `agentd audit` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

import agentd
from agentd.sandbox import Answer, Call, Face, Sandbox
from agentd.spool import audit as audits
from agentd.spool.findings import Severity
from agentd.spool.look import open_rows

AGENT = "0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a11"
KEY = "aos_agent_end_to_end"
ENDS = ("delivered", "queued", "dead", "shed", "purged", "quarantined")
STATUS_AFTER = {"run.complete": "completed", "run.fail": "failed", "run.cancel": "cancelled"}
WINDOW = 8  # envelopes that a producer keeps under way
_PREFIXES = ("AGENTD_", "AGENTOS_", "DECISION_OS_", "DECIDE_", "ASCEND_", "OWKAI_", "AEGIS_")
_VARIABLES = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
_ID = re.compile(rb'"agentd_id":"([0-9a-f-]{36})"')
_REFUSED = (400, 404, 409, 413, 422)  # for good: the batch is split or dead
_QUESTIONS = (
    "/api/v1/actions/submit",
    "/v1/intents",
    "/api/decide",
    "/api/ingest/v1/human-input/",
)  # of gates alone: answered or not, asked once

T = TypeVar("T")


def wait_for(condition: Callable[[], T], within_s: float = 15.0, what: Callable[[], object] | str = "") -> T:
    """Look at a condition until it holds. OSErrors count as "not yet": a daemon may be on its way up."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s} s in vain: {what() if callable(what) else what}")
        time.sleep(0.02)


def others_must_read_agentd() -> None:
    """Skip where agentd's own files are closed to other users, whose processes load them."""
    here = Path(agentd.__file__).parent
    if closed := [path for path in (here, *here.parents) if not path.stat().st_mode & 0o001]:
        pytest.skip(f"other users can't enter {closed[0]}, below which agentd's own files are")


def clean_environment(folder: Path, **more: str) -> dict[str, str]:
    """Nothing of the host's agentd, and a home in the test's folder."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(_PREFIXES) and k not in _VARIABLES}
    return {**ours, "HOME": str(folder), "NO_COLOR": "1", **more}


# -- the platform ----------------------------------------------------------------------------------------------------


class Watched:
    """A sandbox's face with an eye on it: who sent which records under which key, and refusals by a word in the body."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.refusals: list[tuple[bytes, int]] = []
        self.keys_of: defaultdict[str, set[str]] = defaultdict(set)  # record id → keys under which it was stored
        self.taken: set[str] = set()  # keys of what was stored

    def __getattr__(self, name: str) -> Any:
        return getattr(self.face, name)

    @property
    def switches(self) -> Any:
        return self.face.switches

    @switches.setter
    def switches(self, switches: Any) -> None:
        self.face.switches = switches

    def answer(self, call: Call) -> Answer:
        answer = self._answer(call)
        key = self.face.idempotency_key(call)
        if answer.status < 300:
            self.taken.add(key)
            for record_id in _ID.findall(call.body):
                self.keys_of[record_id.decode()].add(key)
        return answer

    def _answer(self, call: Call) -> Answer:
        for word, status in self.refusals:
            if word in call.body:
                return self.face.refuse(status, f"no {word.decode()} here")
        return self.face.answer(call)


class Platform:
    """The sandbox on a thread with an event loop of its own, so that a test that blocks does not stop it."""

    def __init__(self, faces: Iterable[str] = ("agentos",), **options: Any) -> None:
        """`options` are the sandbox's own."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox")
        self._thread.start()
        self.sandbox = Sandbox(faces, keep_requests=5000, **options)
        self.faces = {name: Watched(face) for name, face in self.sandbox._emulation.faces.items()}
        self.sandbox._emulation.faces.update(self.faces)  # type: ignore[arg-type]  # all that they lack is asked of the faces
        self.watched = next(iter(self.faces.values()))
        self._run(self.sandbox.start())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def ask(self, question: Callable[[], T]) -> T:
        """Call it between two requests."""
        answer: Future[T] = Future()

        def look() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:  # noqa: BLE001 - for the thread that asked
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(look)
        return answer.result(20)

    @property
    def url(self) -> str:
        return self.sandbox.url

    def down(self) -> None:
        """Refuse connections from now on."""
        self._run(self.sandbox.down())

    def up(self) -> None:
        self._run(self.sandbox.up())

    def faults(self, *faults: str) -> None:
        """Exactly these faults; none lifts all."""
        self.ask(lambda: self.sandbox.faults.replace(*faults))

    def refuse(self, word: str, status: int) -> None:
        """Answer every request with `word` in its body with this status."""
        self.ask(lambda: self.watched.refusals.append((word.encode(), status)))

    def forgive(self) -> None:
        self.ask(self.watched.refusals.clear)

    def state(self) -> Any:
        return self.ask(self.sandbox.state)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """A run by the client's id or the platform's."""

        def look() -> dict[str, Any] | None:
            try:
                return self.sandbox.run(run_id)
            except KeyError:
                return None

        return self.ask(look)

    def runs(self) -> list[dict[str, Any]]:
        return self.ask(self.sandbox.runs)

    def requests(self) -> list[Any]:
        """The latest 5,000, newest first."""
        return self.ask(self.sandbox.requests)

    def repeats(self, at_least: int = 1) -> dict[str, Any]:
        return self.ask(lambda: self.sandbox.repeats(at_least))

    def close(self) -> None:
        """End the sandbox and its thread."""
        self._run(self.sandbox.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


# -- the daemon --------------------------------------------------------------------------------------------------------


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """Sections as TOML: JSON's scalars and arrays are TOML's, and inline tables need but other signs."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{ " + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in of.items()) + " }"
        if isinstance(of, list):
            return "[" + ", ".join(value(v) for v in of) + "]"
        return json.dumps(of)

    lines = []
    for name, body in sections.items():
        lines += [f"[{name}]", *(f"{key} = {value(of)}" for key, of in body.items()), ""]
    return "\n".join(lines)


class Daemon:
    """agentd as a child process: started, killed and started again at will, always on the same configuration."""

    def __init__(self, folder: Path, name: str, url: str, sections: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.name = name
        self.config = folder / f"{name}.toml"
        self.log = folder / f"{name}.log"
        destination = {
            "platform": "agentos",
            "base_url": url,
            "agent_id": AGENT,
            "api_key": {"env": "KEY"},
            **sections.pop("destination", {}),
        }
        # Waits that fit a test: a platform that is back is noticed within half a second
        self._sections: dict[str, dict[str, Any]] = {
            "listen": {"socket": str(folder / f"{name}.sock")},
            "spool": {"directory": str(folder / f"{name}.state")},
            "retry": {"initial": "20ms", "max": "500ms"},
            "log": {"format": "json"},
            "destinations.agentos": destination,
        }
        self.configure(**sections)
        self.socket = str(self._sections["listen"]["socket"])
        self.state = Path(self._sections["spool"]["directory"])
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}  # of the next start
        self.kills = 0
        self.peak_kib = 0
        self.expected: set[str] = set()  # actions of log lines of level error that this test provokes

    def __repr__(self) -> str:
        return f"<Daemon {self.name} pid {self.process.pid if self.process else None}>"

    def configure(self, **sections: dict[str, Any]) -> None:
        """Change the configuration file; the next start reads it."""
        for section, values in sections.items():
            self._sections[section] = self._sections.get(section, {}) | values
        self.config.write_text(toml(self._sections))

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def spawn(self) -> None:
        """Start the process and wait for nothing."""
        assert not self.running
        command = [sys.executable, "-W", "default", "-m", "agentd", "--config", str(self.config), "run"]
        environment = clean_environment(self.folder, KEY=KEY, **self.environment)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)

    def start(self) -> Self:
        """Start it and wait until it takes records."""
        self.spawn()
        wait_for(self._is_up, 20, lambda: f"{self} does not come up:\n{self.tail()}")
        return self

    def _is_up(self) -> bool:
        assert self._reap(os.WNOHANG) is None, f"{self} ended with {self._code()}:\n{self.tail()}"
        return http_call(self.socket, "GET", "/readyz")[0] == 200

    def signal(self, number: int) -> None:
        assert self.process is not None
        self._note_peak()
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.kills += 1
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stop(self, within_s: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within_s)

    def wait(self, within_s: float = 30.0) -> int:
        """Its exit code, once it has ended."""
        wait_for(lambda: self._reap(os.WNOHANG) is not None, within_s, lambda: f"{self} does not end:\n{self.tail()}")
        return self._code()

    def _code(self) -> int:
        assert self.process is not None
        assert self.process.returncode is not None
        return self.process.returncode

    def _note_peak(self) -> None:
        """The kernel's own figure. Not getrusage's: there a child begins with what its parent has at the fork."""
        assert self.process is not None
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("VmHWM:"))
            self.peak_kib = max(self.peak_kib, int(line.split()[1]))

    def _reap(self, options: int = 0) -> int | None:
        assert self.process is not None
        if self.process.returncode is None:
            pid, status = os.waitpid(self.process.pid, options)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode

    def destroy(self) -> None:
        """For a test that failed: nothing may be left."""
        if self.running:
            self.signal(signal.SIGKILL)
            self._reap()

    # -- what it says of itself

    def status(self) -> dict[str, Any]:
        status, document = http_call(self.socket, "GET", "/v1/status")
        assert status == 200
        return document

    def books(self, destination: str = "agentos") -> dict[str, Any]:
        """The destination's part of the status."""
        return self.status()["destinations"][destination]

    def balanced(self, destination: str = "agentos") -> dict[str, Any]:
        """The books, which add up. What a commit holds just now is admitted and not yet queued: it is waited for."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            assert status["balanced"], status
            books = status["destinations"][destination]
            return books if books["admitted"] == sum(books[end] for end in ENDS) else None

        return wait_for(look, 10, lambda: f"books do not add up: {self.books(destination)}")

    def drained(self, within_s: float = 30.0, destination: str = "agentos") -> dict[str, Any]:
        """The books, once nothing is queued any more."""

        def look() -> dict[str, Any] | None:
            books = self.books(destination)
            return books if books["queued"] == 0 and books["in_flight"] == 0 else None

        wait_for(look, within_s, lambda: f"still queued: {self.status()}\n{self.tail()}")
        return self.balanced(destination)

    def dead_letters(self) -> list[dict[str, Any]]:
        """All of them, with the records themselves."""
        status, letters = http_call(self.socket, "GET", "/v1/dead-letters?limit=1000")
        assert status == 200
        return letters

    def tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(text[-lines:])

    def entries(self, action: str = "") -> list[dict[str, Any]]:
        """The lines of its log, or those of one action."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if not action or line.get("action") == action]

    def faults_in_log(self) -> list[str]:
        """What should not be in the log of a daemon that is in good health."""
        bad = []
        for line in self.log.read_text(errors="replace").splitlines():
            if not line.startswith("{"):
                bad.append(line)  # Python's own words: a traceback, a warning
                continue
            entry = json.loads(line)
            severe = entry["level"] in ("error", "critical") and entry.get("action") not in self.expected
            if severe or "traceback" in entry or entry.get("action") == "defect":
                bad.append(line)
        return bad


def http_call(path: str, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """One request over the Unix socket: status and document."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.settimeout(30)
        link.connect(path)
        connection.sock = link
        connection.request(method, target, body, {"Connection": "close", **headers})
        answer = connection.getresponse()
        data = answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        link.close()
        connection.close()
    return answer.status, json.loads(data) if data[:1] in (b"{", b"[") else data


# -- what is sent ------------------------------------------------------------------------------------------------------


class Ledger:
    """Makes records and remembers which were acknowledged. An event's payload says which one of its run it is."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self.starts: set[str] = set()
        self.ends: dict[str, str] = {}
        self.events: defaultdict[str, set[int]] = defaultdict(set)
        self.unsure: set[tuple[str, int]] = set()  # sent where nobody answers: they may have arrived
        self._text = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz ", k=1000))

    def start(self, run: str, **fields: Any) -> dict[str, Any]:
        return {"kind": "run.start", "run_id": run, **fields}

    def event(self, run: str, *, size: int = 0, level: str = "info", **payload: Any) -> dict[str, Any]:
        """The run's next event, with `size` bytes of text."""
        number = next(self._numbers[run])
        text = {"text": (self._text * (size // 1000 + 1))[:size]} if size else {}
        body = {"run": run, "n": number, **payload, **text}
        return {"kind": "event", "run_id": run, "type": "tool.returned", "level": level, "payload": body}

    def events_of(self, run: str, count: int, **options: Any) -> list[dict[str, Any]]:
        return [self.event(run, **options) for _ in range(count)]

    def end(self, run: str, kind: str = "run.complete", **fields: Any) -> dict[str, Any]:
        return {"kind": kind, "run_id": run, **fields}

    def whole_run(self, run: str, events: int, **options: Any) -> list[dict[str, Any]]:
        """Start, events, end."""
        return [self.start(run), *self.events_of(run, events, **options), self.end(run)]

    def took(self, records: Iterable[dict[str, Any]]) -> None:
        """These were acknowledged."""
        for record in records:
            run = record.get("run_id", "")
            if record["kind"] == "run.start":
                self.starts.add(run)
            elif record["kind"] in STATUS_AFTER:
                self.ends.setdefault(run, STATUS_AFTER[record["kind"]])
            elif record["kind"] == "event":
                self.events[run].add(record["payload"]["n"])

    def maybe(self, records: Iterable[dict[str, Any]]) -> None:
        """These were sent, and no answer came."""
        self.unsure |= {(record["run_id"], record["payload"]["n"]) for record in records if record["kind"] == "event"}

    @property
    def runs(self) -> set[str]:
        return {*self.starts, *self.events, *self.ends}


class _Connection:
    """A connection to the daemon's socket."""

    def __init__(self, daemon: Daemon | str, timeout_s: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect(daemon if isinstance(daemon, str) else daemon.socket)
        except BaseException:
            self.socket.close()
            raise
        self._seqs = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, message: Any) -> None:
        raise NotImplementedError

    def receive(self) -> Any:
        """The next answer, None at the connection's end."""
        raise NotImplementedError

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def is_closed(self) -> bool:
        """Whether the daemon ends the connection without another word."""
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True

    def hello(self, stream: str | None = None) -> Any:
        self.send({"hello": 1, "owns_runs": True} | ({"stream": stream} if stream else {}))
        return self.receive()

    def ask(self, records: list[dict[str, Any]]) -> Any:
        """An envelope's answer."""
        seq = next(self._seqs)
        self.send({"seq": seq, "records": records})
        answer = self.receive()
        assert answer is not None
        assert answer.get("seq") == seq, answer
        return answer

    def deliver(self, ledger: Ledger, records: list[dict[str, Any]]) -> dict[int, str]:
        """Hand them in and note what was acknowledged; refusals by index."""
        answer = self.ask(records)
        refused = {item["index"]: item["error"] for item in answer.get("rejected", ())}
        assert answer["accepted"] + len(refused) == len(records), answer
        ledger.took(record for index, record in enumerate(records) if index not in refused)
        return refused


class Frames(_Connection):
    """The dialect of client libraries."""

    def send(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
        self.raw(struct.pack(">I", len(data)) + data)

    def receive(self) -> Any:
        head = self._exactly(4)
        return None if head is None else json.loads(self._exactly(struct.unpack(">I", head)[0]) or b"")

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                assert not data, "the connection ended within a frame"
                return None
            data += part
        return bytes(data)


class Lines(_Connection):
    """The dialect of shells: what `nc -UN` would do."""

    def __init__(self, daemon: Daemon | str, timeout_s: float = 20.0) -> None:
        super().__init__(daemon, timeout_s)
        self._file = self.socket.makefile("rb")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, message: Any) -> None:
        self.raw((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")

    def receive(self) -> Any:
        line = self._file.readline()
        return json.loads(line) if line else None


class Producer:
    """Sends envelopes over a stream, keeps some under way, and after a lost connection repeats what got no answer."""

    def __init__(
        self, daemon: Daemon, ledger: Ledger, records: list[dict[str, Any]], frame: int = 100, pause_s: float = 0.0
    ) -> None:
        self._daemon = daemon
        self._ledger = ledger
        self._pause_s = pause_s
        parts = [records[start : start + frame] for start in range(0, len(records), frame)]
        self._envelopes = [(part, {"seq": seq, "records": part}) for seq, part in enumerate(parts, 1)]
        self._stream = str(uuid.uuid4())
        self.acked = 0
        self.reconnects = 0
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="producer")
        self._future = self._pool.submit(self._run)

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def envelopes(self) -> int:
        return len(self._envelopes)

    def give_up(self) -> None:
        """For a test that failed: nothing may be left."""
        self._stopped = True

    def join(self, within_s: float = 60.0) -> Self:
        """Wait until every envelope is answered."""
        try:
            self._future.result(within_s)
        finally:
            self._stopped = True
            self._pool.shutdown(wait=True)
        return self

    def _run(self) -> None:
        while self.acked < len(self._envelopes) and not self._stopped:
            try:
                with Frames(self._daemon, 10) as connection:
                    self._talk(connection)
            except OSError:
                self.reconnects += 1
                time.sleep(0.02)

    def _talk(self, connection: Frames) -> None:
        connection.hello(self._stream)
        sent = self.acked
        while self.acked < len(self._envelopes) and not self._stopped:
            while sent < len(self._envelopes) and sent - self.acked < WINDOW:
                time.sleep(self._pause_s)
                connection.send(self._envelopes[sent][1])
                sent += 1
            answer = connection.receive()
            if answer is None:
                raise ConnectionError
            records, envelope = self._envelopes[self.acked]
            assert answer == {"seq": envelope["seq"], "accepted": len(records)}, answer
            self._ledger.took(records)
            self.acked += 1


def deal(ledger: Ledger, events: int, runs: int, size: int = 290) -> list[dict[str, Any]]:
    """Starts, events dealt round the runs, ends."""
    names = [f"run-{number}" for number in range(runs)]
    return [
        *(ledger.start(name) for name in names),
        *(ledger.event(names[number % runs], size=size) for number in range(events)),
        *(ledger.end(name) for name in names),
    ]


# -- all of it ---------------------------------------------------------------------------------------------------------


class World:
    """One test's surroundings."""

    def __init__(self, faces: Iterable[str] = ("agentos",), **options: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ae-", dir="/tmp"))
        self.platform = Platform(faces, **options)
        self.ledger = Ledger()
        self.daemons: list[Daemon] = []
        self.figures: dict[str, int] = {}  # what the audit at the end has counted
        self.doubles = False  # whether the platform may hold a batch twice: it took one of which we did not hear
        self._clean = contextlib.ExitStack()

    def daemon(self, name: str = "d", *, start: bool = True, **sections: dict[str, Any]) -> Daemon:
        """A daemon for this platform; `sections` are those of the configuration, `destination` is its only one's."""
        daemon = Daemon(self.folder, name, self.platform.url, dict(sections))
        self.daemons.append(daemon)
        return daemon.start() if start else daemon

    def cli(self, *arguments: str, within_s: float = 30.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """`agentd …`, to its end. It never shows a traceback, whatever was wrong."""
        done = subprocess.run(
            [sys.executable, "-m", "agentd", *arguments],
            env=clean_environment(self.folder, **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def python(self, script: str, within_s: float = 30.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """An agent in a process of its own."""
        return subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", script],
            env=clean_environment(self.folder, **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def on_exit(self, callback: Callable[[], object]) -> None:
        """For what the test has done to the machine; called when the daemons have ended."""
        self._clean.callback(callback)

    def finish(self) -> None:
        """All is delivered, all adds up, all end well. Raises AssertionError otherwise."""
        letters, shed = self._ends()
        audit(self.ledger, self.platform, letters, shed)
        self.figures = {
            "deaths": sum(daemon.kills for daemon in self.daemons),
            "acknowledged": sum(map(len, self.ledger.events.values()))
            + len(self.ledger.starts)
            + len(self.ledger.ends),
            "dead": len(letters),
            "shed": shed,
            "repeated_requests": sum(repeat.count - 1 for repeat in self.platform.repeats(2).values()),
        }
        state = self.platform.state()
        if not (self.doubles or state.faults.get("cut") or any(daemon.kills for daemon in self.daemons)):
            assert state.duplicates == 0

    def _ends(self) -> tuple[list[dict[str, Any]], int]:
        letters: list[dict[str, Any]] = []
        shed = 0
        for daemon in self.daemons:
            if daemon.running:
                assert http_call(daemon.socket, "POST", "/v1/flush?until=delivered&timeout=20")[0] == 200
                books = [daemon.drained(destination=name) for name in daemon.status()["destinations"]]
                letters += daemon.dead_letters()
                events = [of for of in books if of["platform"] == "agentos"]
                stale = sum(of["causes"].get("shed", {}).get("stale", 0) for of in events)  # agentd's own ends of runs
                shed += sum(of["shed"] for of in events) - stale
                assert daemon.stop() == 0, daemon.tail()
            if daemon.log.exists():
                assert daemon.faults_in_log() == []
            audit_disk(daemon.state)
        return letters, shed

    def close(self) -> None:
        """Leave nothing behind."""
        for daemon in self.daemons:
            daemon.destroy()
        self.platform.close()
        self._clean.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def audit_disk(state: Path) -> None:
    """Books, journal and records of a state folder that nobody uses, recomputed from the disk: nothing contradicts anything."""
    if (state / "spool" / "cache.db").exists():
        with open_rows(state) as store:
            found = audits.audit(store).findings
        wrong = [f"{each.where}: {each.what}" for each in found if each.severity is Severity.ERROR]
        assert not wrong, "\n".join(wrong)


def audit(ledger: Ledger, platform: Platform, letters: list[dict[str, Any]], shed: int) -> None:
    """The platform against what was acknowledged."""
    dead_events = {
        (letter["record"]["run_id"], letter["record"]["payload"]["n"])
        for letter in letters
        if letter["kind"] == "event" and "n" in letter["record"].get("payload", {})
    }
    dead_runs = Counter((letter["record"] or {}).get("run_id") for letter in letters if letter["kind"] != "event")
    missing: set[tuple[str, int]] = set()
    unsure = {(run, number) for run, number in ledger.unsure if number not in ledger.events[run]}
    for run in sorted(ledger.runs):
        found = platform.run(run)
        if found is None:
            assert run not in ledger.starts or dead_runs[run], f"{run} never began"
            missing |= {(run, number) for number in ledger.events[run]}
            continue
        numbers = list(dict.fromkeys(event["payload"]["n"] for event in found["events"] if "n" in event["payload"]))
        assert numbers == sorted(numbers), f"{run} is out of order: {numbers}"
        unknown = set(numbers) - ledger.events[run] - {number for name, number in ledger.unsure if name == run}
        assert not unknown, f"{run} holds what nobody was told is taken: {sorted(unknown)[:10]}"
        missing |= {(run, number) for number in ledger.events[run] - set(numbers)}
        unsure -= {(run, number) for number in numbers}
        if run in ledger.ends and not dead_runs[run]:
            assert found["status"] == ledger.ends[run], f"{run}: {found['status']}"
    lost = missing - dead_events
    told = f"{len(lost)} events are missing, {shed} were shed: {sorted(lost)[:10]}"
    assert len(lost) <= shed <= len(lost) + len(unsure), told  # what nobody knows to be taken may have been, and shed
    several = {record: keys for record, keys in platform.watched.keys_of.items() if len(keys) > 1}
    assert not several, f"batches were regrouped: {several}"
    repeats = platform.repeats()
    changed = [key for key, repeat in repeats.items() if not repeat.same_body]
    assert not changed, f"other bytes under the same key: {changed}"
    refused = {line.idempotency_key for line in platform.requests() if line.status in _REFUSED}
    taken = set().union(*(face.taken for face in platform.faces.values()))
    asked = {line.idempotency_key for line in platform.requests() if line.path.startswith(_QUESTIONS)}
    given_up = set(repeats) - taken - refused - asked
    assert not given_up, f"batches were tried and never came again: {given_up}"
