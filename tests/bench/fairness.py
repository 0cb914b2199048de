"""How long a quiet user waits for "it is on disk" while another floods: ack latency of the quiet one, p50, p99 and the worst.

    python tests/bench/fairness.py                     each flood for 5 s, beside a daemon of its own
    python tests/bench/fairness.py --seconds 20 --sync normal

The quiet user sends one event every 20 ms on one connection and waits for its answer. The hostile user keeps as many envelopes of
100 events under way as he may, on each of his connections, or sends what the row says. Both are other uids than the daemon's, so
this has to run as root. The destination is not there: all is queued. All processes share the machine: the last column is what the
hostile user got through meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import click

QUIET, HOSTILE = 65533, 65534
EVERY_S = 0.02
_HTTP = b"POST /v1/records HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"


def frame(message: object) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def event(run: str, size: int = 300, level: str = "info") -> dict[str, object]:
    return {"kind": "event", "run_id": run, "type": "t", "level": level, "payload": {"text": "x" * size}}


def receive(sock: socket.socket) -> bytes:
    """One frame."""
    data = b""
    wanted = 4
    while len(data) < wanted:
        part = sock.recv(65536)
        if not part:
            raise EOFError
        data += part
        if wanted == 4 and len(data) >= 4:
            wanted = 4 + int.from_bytes(data[:4], "big")
    return data[4:]


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(path)
    return sock


def quiet(path: str, seconds: float) -> list[float]:
    """Seconds until each answer."""
    waits = []
    with connect(path) as sock:
        sock.sendall(frame({"hello": 1, "stream": str(uuid.uuid4())}))
        receive(sock)
        end, seq = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seq += 1
            begun = time.monotonic()
            sock.sendall(frame({"seq": seq, "records": [event("quiet")]}))
            answer = json.loads(receive(sock))
            waits.append(time.monotonic() - begun)
            if answer.get("accepted") != 1:
                raise SystemExit(f"the quiet user was refused: {answer}")
            time.sleep(max(0.0, EVERY_S - waits[-1]))
    return waits


# -- what the hostile user sends ---------------------------------------------------------------------------------------


def envelopes(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """Each connection with what it sends, over and over, by number."""
    for number in range(connections):
        records = json.dumps([event(f"flood-{number}")] * 100)
        sock = connect(path)
        sock.sendall(frame({"hello": 1, "stream": str(uuid.uuid4())}))
        receive(sock)

        def message(seq: int, records: str = records) -> bytes:
            data = f'{{"seq":{seq},"records":{records}}}'.encode()
            return len(data).to_bytes(4, "big") + data

        yield sock, message


def silent(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """Events for which no answer is asked, as fast as they are read."""
    data = frame([event("flood")] * 100)
    for _ in range(connections):
        yield connect(path), lambda _seq: data


def huge(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """Frames of almost 16 MiB, each of 19,000 events."""
    data = frame([event("flood", 700)] * 19_000)
    for _ in range(connections):
        yield connect(path), lambda _seq: data


def halves(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """The greater part of frames of 16 MiB, on all connections at once."""
    data = (2**24 - 1).to_bytes(4, "big") + b" " * (2**24 - 1000)
    for _ in range(connections):
        yield connect(path), lambda seq: data if seq == 1 else b""


def garbage(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """Lines that are no JSON."""
    data = b"{nonsense}\n" * 2000
    for _ in range(connections):
        yield connect(path), lambda _seq: data


def requests(connections: int, path: str) -> Iterator[tuple[socket.socket, Callable[[int], bytes]]]:
    """HTTP, the next request as soon as the last was sent."""
    body = json.dumps([event("flood")] * 10).encode()
    for _ in range(connections):
        yield connect(path), lambda _seq: _HTTP % (len(body), body)


class Flood(NamedTuple):
    name: str
    sends: Callable[[int, str], Iterator[tuple[socket.socket, Callable[[int], bytes]]]]
    connections: int


FLOODS = (
    Flood("100 events, acknowledged", envelopes, 1),
    Flood("100 events, acknowledged", envelopes, 64),
    Flood("100 events, acknowledged", envelopes, 1000),
    Flood("100 events, no answer asked", silent, 64),
    Flood("half frames of 16 MiB", halves, 1000),
    Flood("lines of garbage", garbage, 64),
    Flood("HTTP, 10 events", requests, 64),
    Flood("whole frames of 16 MiB", huge, 8),
)


def flood(path: str, kind: Flood) -> None:
    """Send until killed; never more than 60 envelopes ahead of the answers."""
    wait = selectors.DefaultSelector()
    state: dict[socket.socket, tuple[Callable[[int], bytes], list[int], bytearray]] = {}
    for sock, message in kind.sends(kind.connections, path):
        sock.setblocking(False)
        state[sock] = message, [0, 0], bytearray()
        wait.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    while True:
        for key, mask in wait.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            message, counts, left = state[sock]
            with contextlib.suppress(BlockingIOError):
                if mask & selectors.EVENT_READ and (data := sock.recv(65536)):
                    counts[1] += data.count(b'"seq":')
            with contextlib.suppress(BlockingIOError, OSError):
                if not left and (counts[0] - counts[1] < 60 or kind.sends is not envelopes):
                    counts[0] += 1
                    left += message(counts[0])
                if mask & selectors.EVENT_WRITE and left:
                    del left[: sock.send(memoryview(bytes(left[: 2**18])))]
            if not left and counts[0] - counts[1] >= 60 and kind.sends is envelopes:
                wait.modify(sock, selectors.EVENT_READ)
            elif key.events == selectors.EVENT_READ:
                wait.modify(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)


# -- the daemon, and the table -----------------------------------------------------------------------------------------


def status(path: str) -> dict[str, object]:
    with connect(path) as sock:
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def accepted(path: str) -> int:
    intake = status(path)["intake"]
    assert isinstance(intake, dict)
    return int(intake["accepted"])


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextlib.contextmanager
def daemon(folder: Path, sync: str) -> Iterator[tuple[str, int]]:
    folder.chmod(0o755)
    path = folder / "s.sock"
    config = folder / "agentd.toml"
    config.write_text(
        f'[listen]\nsocket = "{path}"\nmode = "0666"\n[spool]\ndirectory = "{folder}/state"\nsync = "{sync}"\n[log]\nlevel = "error"\n'
        '[destinations.agentos]\nplatform = "agentos"\nbase_url = "http://127.0.0.1:9"\nagent_id = "a"\napi_key = { env = "KEY" }\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "--config", str(config), "run"], env={**os.environ, "KEY": "k"}
    )
    try:
        while not path.exists():
            time.sleep(0.05)
        yield str(path), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        process.wait()


def as_user(uid: int, work: Callable[..., object], *args: object) -> tuple[BaseProcess, Connection]:
    """The work in a process of that user, forked: he may not read where Python lies. What it returns comes over the pipe."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def run() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        theirs.send(work(*args))

    process = fork.Process(target=run, daemon=True)
    process.start()
    theirs.close()
    return process, ours


def measure(path: str, seconds: float) -> list[float]:
    """As the quiet user."""
    process, pipe = as_user(QUIET, quiet, path, seconds)
    waits: list[float] = sorted(pipe.recv())
    process.join()
    return waits


def row(name: str, waits: list[float], rate: float, peak: float) -> str:
    p50, p99, worst = (waits[min(len(waits) - 1, int(len(waits) * part))] * 1e3 for part in (0.5, 0.99, 1.0))
    return f"{name:44} {p50:8.1f} {p99:8.1f} {worst:8.1f} {len(waits):7} {rate:11,.0f} {peak:9.0f}"


@click.command()
@click.option("--seconds", default=5.0, help="For each row.")
@click.option("--sync", type=click.Choice(["full", "normal"]), default="full")
@click.option("--only", default="", help="Rows whose name holds this.")
def main(seconds: float, sync: str, only: str) -> None:
    """Print the table."""
    if os.geteuid() != 0:
        raise SystemExit("only root can be two other users")
    print(
        f"{'the hostile user':44} {'p50 ms':>8} {'p99 ms':>8} {'worst':>8} {'answers':>7} {'his ev/s':>11} {'peak MiB':>9}"
    )
    for kind in (None, *FLOODS):
        if kind is None or only in kind.name:
            with (
                tempfile.TemporaryDirectory(prefix="agentd-fairness-") as place,
                daemon(Path(place), sync) as (path, pid),
            ):
                print(beside(kind, path, pid, seconds), flush=True)


def beside(kind: Flood | None, path: str, pid: int, seconds: float) -> str:
    """A row: the quiet user's waits while that flood goes on."""
    hostile = None if kind is None else as_user(HOSTILE, flood, path, kind)[0]
    time.sleep(1)
    before, begun = accepted(path), time.monotonic()
    waits = measure(path, seconds)
    rate = (accepted(path) - before - len(waits)) / (time.monotonic() - begun)
    if hostile is not None:
        hostile.kill()
        hostile.join()
    name = "(nobody)" if kind is None else f"{kind.name}, {kind.connections} connections"
    return row(name, waits, rate, peak_mib(pid))


if __name__ == "__main__":
    main()
