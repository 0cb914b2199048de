"""What one `emit()` costs the agent, in microseconds: as fast as it goes, and at 1,000 a second.

Against a daemon that answers, one that never reads, and none at all. The daemon here is a thread of the same process that
answers every envelope unseen, so it competes for the interpreter lock: a daemon in a process of its own (--apart) does not.

Run: python tests/bench/emit_cost.py [--events 20000] [--apart]
"""

import contextlib
import json
import multiprocessing
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from agentd import Client
from agentd.client.api import BaseClient
from agentd.wire import hello_answer

PAYLOAD = {"step": "fetch-data", "rows": 42, "ok": True, "text": "x" * 200, "id": "INV-001"}
PACE_S = 0.001


def answer(connection: socket.socket, *, stall: bool) -> None:
    stream = connection.makefile("rb")
    while (head := stream.read(4)) and len(head) == 4:
        data = stream.read(struct.unpack(">I", head)[0])
        if data.startswith(b'{"hello"'):
            reply = json.dumps(hello_answer("0.1.0", 2**24 - 1, 0)).encode()
        elif stall:
            time.sleep(3600)
            return
        else:
            reply = b'{"seq":%b,"accepted":1}' % data[7 : data.index(b",")]
        connection.sendall(struct.pack(">I", len(reply)) + reply)


def serve(listener: socket.socket, *, stall: bool) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), kwargs={"stall": stall}, daemon=True).start()


@contextlib.contextmanager
def daemon(path: Path, *, stall: bool, apart: bool) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        if apart:
            child = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), kwargs={"stall": stall})
            child.start()
            yield
            child.kill()
            child.join()
        else:
            threading.Thread(target=serve, args=(listener,), kwargs={"stall": stall}, daemon=True).start()
            yield


def measure(client: BaseClient, events: int, pace_s: float) -> list[float]:
    run = client.start_run()
    clock = time.perf_counter_ns
    costs = []
    due = time.perf_counter()
    for _ in range(events):
        began = clock()
        run.emit("step.completed", PAYLOAD)
        costs.append((clock() - began) / 1000)
        if pace_s:
            due += pace_s
            time.sleep(max(0.0, due - time.perf_counter()))
    return sorted(costs)


def row(name: str, how: str, costs: list[float], client: Client) -> None:
    stats = client.stats()
    p50, p99, p999 = (costs[int(len(costs) * share)] for share in (0.5, 0.99, 0.999))
    click.echo(f"{name:10} {how:8} {p50:8.1f} {p99:8.1f} {p999:9.1f}   accepted {stats.accepted}, lost {stats.lost}")


@click.command()
@click.option("--events", default=20_000, show_default=True)
@click.option("--apart", is_flag=True, help="The daemon in a process of its own.")
def main(events: int, apart: bool) -> None:  # noqa: FBT001 - click's way
    """Print p50, p99 and p99.9 of emit() in microseconds."""
    click.echo(f"{'daemon':10} {'emits':8} {'p50':>8} {'p99':>8} {'p99.9':>9}")
    for name in ("running", "stalled", "missing"):
        for how, pace_s in (("tight", 0.0), ("1,000/s", PACE_S)):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                path = Path(folder, "a.sock")
                if name != "missing":
                    stack.enter_context(daemon(path, stall=name == "stalled", apart=apart))
                client = Client(socket=str(path), exit_timeout=0)
                measure(client, 100, 0)
                costs = measure(client, events if not pace_s else min(events, 5000), pace_s)
                client.flush(2 if name == "running" else 0.01)
                row(name, how, costs, client)
                client.close(0)


if __name__ == "__main__":
    main()
