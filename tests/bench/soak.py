"""Twenty minutes of everything at once: five destinations, every fault of the sandbox, kill -9 at random times.

    python tests/bench/soak.py --minutes 20 --rate 5000

Events of runs that come and go to AgentOS, decisions and snapshots to Decision OS, questions to decide.fyi, ASCEND and AegisOS and
what became of them. Every few seconds memory, file descriptors and disk are noted; at the end the platforms are held
against what was acknowledged, and `agentd audit` against the disk. Prints JSON. The sandbox keeps every event in memory:
about 1 kB each.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import click
from load import AGENT, Daemon, _free_port, _get, _receive, _send, _wait_for

WINDOW = 32
FRAME = 100
RUNS = 10  # alive at a time
RUN_FRAMES = 60  # frames that a run lives for
FAULTS = (
    "latency=1ms..5ms",
    "status=503,rate=0.02",
    "status=429,retry_after=1s,rate=0.0005",
    "cut,rate=0.01",
    "hang,rate=0.0002",
    "down=3s,rate=0.0001",
)


class Agent(threading.Thread):
    """Speaks frames with acks at a steady rate; repeats what got no answer under the same seq."""

    def __init__(self, path: Path, rate: int, seconds: float) -> None:
        super().__init__(name="agent")
        self._path = path
        self._rate = rate
        self._seconds = seconds
        self._sent: dict[int, bytes] = {}
        self._seqs = itertools.count(1)
        self._runs = itertools.count()
        self._lives: list[list[Any]] = []
        self.stream = f"soak-{os.getpid()}"
        self.acked = 0
        self.refused: Counter[str] = Counter()
        self.reconnects = 0
        self.events: dict[str, int] = {}
        self.decisions = 0
        self.late_s = 0.0

    def run(self) -> None:
        begun = time.monotonic()
        self._frames = self._make()
        link: socket.socket | None = None
        made = 0
        while True:
            now = time.monotonic() - begun
            due = min(now, self._seconds) * self._rate / FRAME
            if now > self._seconds and not self._sent and made >= due:
                break
            try:
                link = link or self._connect()
                if made < due and len(self._sent) < WINDOW:
                    seq = next(self._seqs)
                    data = json.dumps({"seq": seq, "records": next(self._frames)}, separators=(",", ":")).encode()
                    self._sent[seq] = data
                    made += 1
                    _send(link, data)
                    self.late_s = max(self.late_s, now - made * FRAME / self._rate)
                elif self._sent:
                    self._hear(json.loads(_receive(link)))
                else:
                    time.sleep(0.001)
            except (OSError, EOFError):
                self.reconnects += 1
                link = None
                time.sleep(0.05)
        if link is not None:
            self._finish(link)

    def _connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self._path))
        _send(link, json.dumps({"hello": 1, "stream": self.stream}).encode())
        _receive(link)
        for seq in sorted(self._sent):
            _send(link, self._sent[seq])
        return link

    def _hear(self, answer: dict[str, Any]) -> None:
        del self._sent[answer["seq"]]
        self.acked += answer["accepted"]
        for refusal in answer.get("rejected", ()):
            self.refused[refusal["error"]] += 1

    def _make(self) -> Any:
        """Frames of one run each: its start, events, a decision with its snapshot now and then, its end, one event after it."""
        text = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz ", k=60))
        while True:
            while len(self._lives) < RUNS:
                number = next(self._runs)
                self._lives.append([f"run-{number}", 0, 0])
            for life in list(self._lives):
                name, frames, events = life
                records: list[dict[str, Any]] = []
                if frames == 0:
                    records.append({"kind": "run.start", "run_id": name})
                if frames % 10 == 5:
                    decision = f"{name}-{frames}"
                    records += [
                        {"kind": "decision", "context": "which", "decision_id": decision, "run_id": name, "agent_id": "soak", "create_agent_if_missing": True},
                        {"kind": "snapshot", "decision_id": decision, "snapshot": {"n": frames}},
                    ]  # fmt: skip
                    self.decisions += 1
                last = frames == RUN_FRAMES - 1
                while len(records) < FRAME - 2 * last:
                    records.append(
                        {"kind": "event", "run_id": name, "type": "step", "payload": {"n": events, "text": text}}
                    )
                    events += 1
                if last:
                    records += [{"kind": "run.complete", "run_id": name}]
                    self._lives.remove(life)
                life[1], life[2] = frames + 1, events
                self.events[name] = events
                yield records

    def _finish(self, link: socket.socket) -> None:
        """End the runs that are open."""
        ends = [{"kind": "run.complete", "run_id": name} for name, frames, _ in self._lives if frames]
        with link:
            _send(link, json.dumps({"seq": next(self._seqs), "records": ends}).encode())
            self.acked += json.loads(_receive(link))["accepted"]


class Asker(threading.Thread):
    """Asks before it acts, with a key of its own each time, and says what became of it."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(name="asker")
        self._path = path
        self._until = time.monotonic() + seconds
        self.verdicts: Counter[str] = Counter()
        self.reported = 0

    def run(self) -> None:
        rules = {"mode": "rulebook", "rulebook": {"id": "rb", "rules": []}, "context": {"inputs": {"n": 1}}}
        for number in itertools.count():
            if time.monotonic() > self._until:
                return
            gate, request, kind = (
                ("action", {"action_type": "transaction", "resource": "stripe"}, "action.completed"),
                ("intent", {"amount": 5, "currency": "USD", "reason": "paper"}, ""),
                ("decide", rules, "outcome"),
            )[number % 3]
            heard = self._post("/v1/gate", {"gate": gate, "request": request, "key": f"k{number}", "deadline": 5})
            self.verdicts[f"{gate}:{heard.get('verdict', 'no answer')}"] += 1
            if heard.get("proceed") and kind == "action.completed":
                self._report({"kind": kind, "action_id": heard["id"], "result": {"n": number}})
            elif heard.get("proceed") and kind:
                self._report({"kind": kind, "decision_id": heard["id"], "outcome_status": "succeeded"})
            time.sleep(0.2)

    def _report(self, record: dict[str, Any]) -> None:
        self.reported += self._post("/v1/records", record).get("accepted", 0)

    def _post(self, path: str, document: Any) -> dict[str, Any]:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.settimeout(30)
            link.connect(str(self._path))
            connection = http.client.HTTPConnection("localhost")
            connection.sock = link
            connection.request("POST", path, json.dumps(document), {"Connection": "close"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        else:
            return answer
        finally:
            link.close()


class Watcher(threading.Thread):
    """Notes how the daemon fares every five seconds."""

    def __init__(self, daemon: Daemon, state: Path) -> None:
        super().__init__(name="watcher", daemon=True)
        self._daemon = daemon
        self._state = state
        self.samples: list[dict[str, Any]] = []
        self.begun = time.monotonic()

    def run(self) -> None:
        while True:
            time.sleep(5)
            process = self._daemon.process
            try:
                assert process is not None
                proc = Path(f"/proc/{process.pid}")
                rss = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS:"))
                books = self._daemon.status()["destinations"]
                self.samples.append({
                    "at_s": round(time.monotonic() - self.begun),
                    "rss_mib": round(int(rss.split()[1]) / 1024, 1),
                    "descriptors": len(list((proc / "fd").iterdir())),
                    "spool_mib": round(sum(f.stat().st_size for f in self._state.rglob("*") if f.is_file() and f.name != "ballast") / 2**20, 1),
                    "queued": sum(there["queued"] for there in books.values()),
                })  # fmt: skip
            except (OSError, ValueError, StopIteration, AssertionError, json.JSONDecodeError):
                continue  # it is just being killed


def configuration(url: str) -> str:
    """Five destinations; what would be found at the platforms' own addresses is the sandbox's."""
    agents = {
        "agentos": AGENT,
        "ascend": "6adea1a6-2973-5c67-a1ed-967b60bcbdf0",
        "aegis": "6adea1a6-2973-5c67-a1ed-967b60bcbdf0",
    }
    lines = ["[runs]", 'keep = "1h"', "[retry]", 'max = "5s"']
    for name in ("decisionos", "decidefyi", "ascend", "aegis"):
        agent = f'agent_id = "{agents[name]}"\n' if name in agents else ""
        lines.append(
            f'[destinations.{name}]\nplatform = "{name}"\nbase_url = "{url}/{name}"\n{agent}api_key = {{ env = "KEY" }}\ntimeout = "5s"'
        )
    return "\n".join(lines)


@click.command()
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--rate", default=5000, show_default=True, help="records a second")
@click.option("--kill-every", default=40.0, show_default=True, help="seconds between two kill -9, on average")
def main(minutes: float, rate: int, kill_every: float) -> None:
    """Run it and print what came of it as JSON."""
    with tempfile.TemporaryDirectory(prefix="agentd-soak-") as folder:
        print(json.dumps(soak(Path(folder), minutes * 60, rate, kill_every), indent=1))


def soak(place: Path, seconds: float, rate: int, kill_every: float) -> dict[str, Any]:
    """See the module."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    faults = [option for fault in FAULTS for option in ("--fault", fault)]
    sandbox = subprocess.Popen(
        [sys.executable, "-m", "agentd", "sandbox", "--port", str(port), "--seed", "7", *faults],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    daemon = Daemon(place, f"{url}/agentos", configuration(url))
    try:
        _wait_for(lambda: bool(_get(f"{url}/_sandbox/state")))
        daemon.start()
        _wait_for(daemon.socket.exists)
        return _judge(daemon, url, place, *_drive(daemon, place, seconds, rate, kill_every))
    finally:
        if daemon.process is not None and daemon.process.returncode is None:
            daemon.stop(signal.SIGKILL)
        sandbox.terminate()
        sandbox.wait()


def _drive(
    daemon: Daemon, place: Path, seconds: float, rate: int, kill_every: float
) -> tuple[Agent, Asker, Watcher, int, float]:
    agent, asker = Agent(daemon.socket, rate, seconds), Asker(daemon.socket, seconds)
    watcher = Watcher(daemon, place / "state")
    begun = time.monotonic()
    for thread in (agent, asker, watcher):
        thread.start()
    rng = random.Random(11)
    kills = 0
    while time.monotonic() - begun < seconds:
        time.sleep(min(rng.expovariate(1 / kill_every), max(0.1, seconds - (time.monotonic() - begun))))
        if time.monotonic() - begun < seconds:
            daemon.stop(signal.SIGKILL)
            kills += 1
            daemon.start()
    agent.join()
    asker.join()
    return agent, asker, watcher, kills, time.monotonic() - begun


def _judge(
    daemon: Daemon, url: str, place: Path, agent: Agent, asker: Asker, watcher: Watcher, kills: int, spent: float
) -> dict[str, Any]:
    _lift_faults(url)
    _wait_for(lambda: all(not there["queued"] for there in daemon.status()["destinations"].values()), 900)
    books = daemon.status()["destinations"]
    code = daemon.stop()
    audit = subprocess.run(
        [sys.executable, "-m", "agentd", "--config", str(daemon.config), "audit", "--json"],
        env={**os.environ, "KEY": "aos_agent_load"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    state = _get(f"{url}/_sandbox/state")
    samples = watcher.samples
    steady = samples[len(samples) // 10 :] or samples
    third = max(1, len(steady) // 3)
    return {
        "minutes": round(spent / 60, 1), "records acknowledged": agent.acked, "refused": dict(agent.refused), "kills": kills,
        "reconnects": agent.reconnects, "latest frame s": round(agent.late_s, 2),
        "verdicts": dict(sorted(asker.verdicts.items())), "reported": asker.reported, "exit": code,
        "books": {name: {k: there[k] for k in ("admitted", "delivered", "queued", "dead", "shed", "purged", "quarantined", "requests", "retries", "causes", "balanced")} for name, there in books.items()},
        "audit": {"exit": audit.returncode, "says": audit.stdout[-2000:] if audit.returncode else "balanced", "stderr": audit.stderr[-500:]},
        "runs": _runs(url, agent),
        "decisions": {"acknowledged": agent.decisions, "in the ledger": state["faces"]["decisionos"]["runs"], "details": state["faces"]["decisionos"]["details"]},
        "faults": state["faults"], "keys": state["keys"],
        "samples": samples[:: max(1, len(samples) // 24)],
        "rss MiB, first and last third": [round(sum(s["rss_mib"] for s in part) / len(part), 1) for part in (steady[:third], steady[-third:])],
        "descriptors": [min(s["descriptors"] for s in steady), max(s["descriptors"] for s in steady)],
        "spool MiB, largest": max(s["spool_mib"] for s in steady), "queued, most": max(s["queued"] for s in steady),
        "daemon CPU s": round(daemon.cpu_s, 1), "daemon peak MiB": round(daemon.peak_kib / 1024, 1),
    }  # fmt: skip


def _lift_faults(url: str) -> None:
    request = urllib.request.Request(f"{url}/_sandbox/faults", method="DELETE")
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
        else:
            return


def _runs(url: str, agent: Agent) -> dict[str, Any]:
    """Each run at the platform against what was sent of it."""
    found: Counter[str] = Counter()
    for name, events in agent.events.items():
        first: dict[str, int] = {}
        offset = 0
        while True:
            run = _get(f"{url}/_sandbox/runs/{name}?limit=5000&offset={offset}")
            for event in run["events"]:
                key = event["payload"].get("agentd_id", "")
                found["stored twice by the platform"] += key in first
                if "n" in event["payload"]:
                    first.setdefault(key, event["payload"]["n"])
            offset += 5000
            if len(run["events"]) < 5000:
                break
        numbers = list(first.values())
        found["missing"] += events - len(set(numbers))
        found["out of order"] += sum(1 for a, b in itertools.pairwise(numbers) if b <= a)
        found[f"runs {run['status']}"] += 1
        found["events"] += len(numbers)
    return dict(found)


if __name__ == "__main__":
    main()
