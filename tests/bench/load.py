"""A load through the real daemon into the sandbox: rate, CPU, memory, and whether all is there, in order, none twice.

    python tests/bench/load.py --events 200000 --runs 50 --frame 100
    python tests/bench/load.py --faults            10 % 503, 5 % 429 with Retry-After: 1, 5 % of the answers cut off
    python tests/bench/load.py --kills 20          kill -9 the daemon that often, restart it each time

The producer speaks frames with acks, keeps 8 envelopes under way and repeats what got no answer under the same `seq`.
Producer and sandbox share the machine with the daemon: the figures are those of the three together.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import click

AGENT = "0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a11"
WINDOW = 8
FAULTS = ("status=503,rate=0.1", "status=429,retry_after=1s,rate=0.05", "cut,rate=0.05")


class Daemon:
    """agentd as a child process, killed and started again at will."""

    def __init__(self, folder: Path, url: str, extra: str = "") -> None:
        self.folder = folder
        self.socket = folder / "s.sock"
        self.cpu_s = 0.0
        self.peak_kib = 0
        self.config = folder / "agentd.toml"
        self.config.write_text(
            f'[listen]\nsocket = "{self.socket}"\n[spool]\ndirectory = "{folder}/state"\n[log]\nlevel = "error"\n{extra}\n'
            f'[destinations.agentos]\nplatform = "agentos"\nbase_url = "{url}"\nagent_id = "{AGENT}"\napi_key = {{ env = "KEY" }}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentd", "--config", str(self.config), "run"],
            env={**os.environ, "KEY": "aos_agent_load"},
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and reap it, adding up what it used."""
        assert self.process is not None
        # not getrusage's ru_maxrss: there a child begins with what its parent has at the fork
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        self.peak_kib = max([self.peak_kib, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        self.process.send_signal(number)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s += usage.ru_utime + usage.ru_stime
        return self.process.returncode

    def status(self) -> dict[str, Any]:
        """GET /v1/status over the socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.socket))
            sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        status: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return status


class Producer:
    """Sends envelopes over a stream and keeps what got no answer."""

    def __init__(self, path: Path, envelopes: list[bytes]) -> None:
        self.path = path
        self.envelopes = envelopes
        self.acked = 0
        self.reconnects = 0
        self.refused = 0
        self.stream = f"load-{os.getpid()}-{random.randrange(10**9)}"

    def run(self) -> None:
        """Until every envelope is answered; reconnects for as long as it takes."""
        while self.acked < len(self.envelopes):
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(self.path))
                    self._talk(sock)
            except (OSError, EOFError):
                self.reconnects += 1
                time.sleep(0.02)

    def _talk(self, sock: socket.socket) -> None:
        _send(sock, json.dumps({"hello": 1, "stream": self.stream, "owns_runs": False}).encode())
        _receive(sock)
        sent = self.acked
        while self.acked < len(self.envelopes):
            while sent < len(self.envelopes) and sent - self.acked < WINDOW:
                _send(sock, self.envelopes[sent])
                sent += 1
            answer = json.loads(_receive(sock))
            if "seq" not in answer or "error" in answer:
                raise SystemExit(f"refused: {answer}")
            self.refused += len(answer.get("rejected", ()))
            assert answer["seq"] == self.acked + 1, answer
            self.acked += 1


def _send(sock: socket.socket, message: bytes) -> None:
    sock.sendall(struct.pack(">I", len(message)) + message)


def _receive(sock: socket.socket) -> bytes:
    size = struct.unpack(">I", _exactly(sock, 4))[0]
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def envelopes_of(events: int, runs: int, frame: int) -> list[bytes]:
    """Starts, events of about 400 bytes dealt round the runs in blocks, ends; as envelopes of `frame` records."""
    records = [{"kind": "run.start", "run_id": f"run-{run}", "input": {"n": run}} for run in range(runs)]
    text = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz ", k=290))
    counts = [0] * runs
    for number in range(events):
        run = number % runs
        payload = {"step": counts[run], "text": text}
        counts[run] += 1
        records.append({"kind": "event", "run_id": f"run-{run}", "type": "tool.returned", "payload": payload})
    records += [
        {"kind": "run.complete", "run_id": f"run-{run}", "output": {"events": counts[run]}} for run in range(runs)
    ]
    parts = (records[start : start + frame] for start in range(0, len(records), frame))
    return [
        json.dumps({"seq": seq, "records": part}, separators=(",", ":")).encode() for seq, part in enumerate(parts, 1)
    ]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def judge(url: str, events: int, runs: int) -> dict[str, Any]:
    """What the sandbox holds against what was sent."""
    missing = doubled = disordered = 0
    status: dict[str, int] = {}
    for run in range(runs):
        expected = len(range(run, events, runs))
        found = _get(f"{url}/_sandbox/runs/run-{run}")
        status[found["status"]] = status.get(found["status"], 0) + 1
        first: dict[str, int] = {}
        for event in found["events"]:
            key = event["payload"]["agentd_id"]
            doubled += key in first
            first.setdefault(key, event["payload"]["step"])
        steps = list(first.values())
        missing += expected - len(set(steps))
        disordered += sum(1 for a, b in itertools.pairwise(steps) if b != a + 1)
    repeats = _get(f"{url}/_sandbox/repeats?min=2")
    keys = repeats if isinstance(repeats, dict) else {}
    changed = [
        key
        for key, facts in keys.get("keys", keys).items()
        if isinstance(facts, dict) and not facts.get("same_body", True)
    ]
    return {
        "runs": status, "missing": missing, "stored twice by the platform": doubled, "out of order": disordered,
        "repeated keys": len(keys.get("keys", keys)), "repeats with other bytes": len(changed),
    }  # fmt: skip


@click.command()
@click.option("--events", default=200_000, show_default=True)
@click.option("--runs", default=50, show_default=True)
@click.option("--frame", default=100, show_default=True, help="records in an envelope")
@click.option("--faults", is_flag=True, help="let the sandbox fail as in the head of this file")
@click.option("--kills", default=0, help="kill -9 the daemon so often while it works")
@click.option("--request", default=50, show_default=True, help="batch.max_events")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="where to put the spool; default: a temporary folder",
)
def main(events: int, runs: int, frame: int, *, faults: bool, kills: int, request: int, folder: Path | None) -> None:
    """Run one load and print what came of it as JSON."""
    with tempfile.TemporaryDirectory(prefix="agentd-load-", dir=folder) as place:
        print(
            json.dumps(_load(Path(place), events, runs, frame, faults=faults, kills=kills, request=request), indent=2)
        )


def _load(place: Path, events: int, runs: int, frame: int, *, faults: bool, kills: int, request: int) -> dict[str, Any]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    options = [option for fault in (FAULTS if faults else ()) for option in ("--fault", fault)]
    command = [sys.executable, "-m", "agentd", "sandbox", "--port", str(port), "--seed", "7", *options]
    sandbox = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    daemon = Daemon(place, url, f"[batch]\nmax_events = {request}")
    try:
        _wait_for(lambda: bool(_get(f"{url}/_sandbox/state")))
        daemon.start()
        _wait_for(daemon.socket.exists)
        return _measure(daemon, url, events, runs, frame, kills)
    finally:
        if daemon.process is not None and daemon.process.returncode is None:
            daemon.stop(signal.SIGKILL)
        sandbox.terminate()
        sandbox.wait()


def _measure(daemon: Daemon, url: str, events: int, runs: int, frame: int, kills: int) -> dict[str, Any]:
    producer = Producer(daemon.socket, envelopes_of(events, runs, frame))
    total = events + 2 * runs
    thread = threading.Thread(target=producer.run)
    begun = time.monotonic()
    thread.start()
    killed = 0
    rng = random.Random(11)
    while killed < kills:
        time.sleep(rng.uniform(0.1, 0.6))
        daemon.stop(signal.SIGKILL)
        killed += 1
        daemon.start()
        _wait_for(daemon.socket.exists)
    thread.join()
    acked_s = time.monotonic() - begun
    _wait_for(lambda: _delivered(daemon) >= total, 900)
    done_s = time.monotonic() - begun
    books = daemon.status()["destinations"]["agentos"]
    code = daemon.stop()
    return {
        "records": total, "acknowledged": producer.acked, "refused": producer.refused, "reconnects": producer.reconnects, "kills": killed,
        "acknowledged per s": round(total / acked_s), "delivered per s": round(total / done_s), "seconds": round(done_s, 2),
        "daemon CPU s": round(daemon.cpu_s, 2), "daemon peak MiB": round(daemon.peak_kib / 1024, 1), "exit": code,
        "requests": books["requests"], "retries": books["retries"], "balanced": books["balanced"],
        "admitted": books["admitted"], "delivered": books["delivered"], "dead": books["dead"], "shed": books["shed"],
        **judge(url, events, runs),
        "producer CPU s": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 2),
    }  # fmt: skip


def _delivered(daemon: Daemon) -> int:
    try:
        facts = daemon.status()["destinations"]["agentos"]
    except (OSError, ValueError):
        return -1
    return int(facts["delivered"] + facts["dead"] + facts["shed"]) if facts["queued"] == 0 else -1


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("waited too long")


if __name__ == "__main__":
    main()
