"""Agents that die: the real daemon and the real client library in processes that are killed, forked, hidden and started again.

That nothing happens to a run is shown beside another one, the control, whose agent is killed later: once that one is ended
the first would have been as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness import AGENT, KEY, Daemon, Frames, Lines, clean_environment, http_call, wait_for

GRACE = {"orphan_grace": "200ms"}
MESSAGE = "agent process ended"
SCRIPT = """
import json, os, sys
from agentd import Client

client = Client()
runs = {}
print("up", flush=True)
for line in sys.stdin:
    verb, name, *rest = line.split()
    if verb == "start":
        runs[name] = client.start_run(run_id=name)
    elif verb == "emit":
        for number in range(int(rest[0]), int(rest[1])):
            runs[name].emit("tool.returned", {"run": name, "n": number})
    elif verb == "complete":
        runs[name].complete()
    elif verb == "fork":
        pid = os.fork()
        if pid:
            os._exit(0)
    elif verb == "leave":
        sys.exit(int(name))
    assert client.flush(15)
    print(os.getpid(), flush=True)
"""


class Agent:
    """A process with a client, told line by line what to do; each line is on disk when `say` returns."""

    def __init__(self, world, socket):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=clean_environment(world.folder, AGENTD_SOCKET=socket), cwd=world.folder,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self.process.pid
        self._numbers = {}
        self._ledger = world.ledger
        assert self.process.stdout.readline() == "up\n"
        world.on_exit(self.close)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())

    def start(self, run):
        self.say(f"start {run}")
        self._ledger.took([self._ledger.start(run)])

    def emit(self, run, count):
        records = self._ledger.events_of(run, count)
        numbers = [record["payload"]["n"] for record in records]
        self.say(f"emit {run} {numbers[0]} {numbers[-1] + 1}")
        self._ledger.took(records)

    def complete(self, run):
        self.say(f"complete {run}")
        self._ledger.took([self._ledger.end(run)])

    def fork(self):
        """The process is its own child from now on; the parent has ended."""
        self.say("fork -")
        assert self.process.wait(20) == 0

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        if self.pid == self.process.pid:
            self.process.wait(20)

    def leave(self, code):
        """An exit as of any program."""
        self.process.stdin.write(f"leave {code}\n")
        self.process.stdin.flush()
        assert self.process.wait(20) == code

    def close(self):
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()


def status_of(world, run):
    found = world.platform.run(run)
    return None if found is None else found["status"]


def wait_until_failed(world, run):
    """Ended by agentd, with its reason; the ledger expects it."""
    wait_for(lambda: status_of(world, run) == "failed", 20, lambda: (run, world.platform.run(run)))
    assert world.platform.run(run)["error_message"] == MESSAGE
    world.ledger.took([world.ledger.end(run, "run.fail")])


class Control:
    """Another agent with an open run, killed after whatever is to show no effect."""

    def __init__(self, world, daemon):
        self._world = world
        self._agent = Agent(world, daemon.socket)
        self._agent.start("control")

    def pass_by(self):
        self._agent.kill()
        wait_until_failed(self._world, "control")


# -- who dies --------------------------------------------------------------------------------------------------------------


def test_a_killed_agents_run_is_failed(world):
    """kill -9 of an agent with an open run: the platform has it failed, with the reason, behind all that was said before."""
    daemon = world.daemon(runs=GRACE)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.emit("r", 250)
    assert daemon.status()["intake"]["runs"] == {"watched": 1, "orphans_ended": 0}
    agent.kill()
    wait_until_failed(world, "r")
    assert world.platform.run("r")["terminals"] == ["fail"]
    assert set(world.platform.run("r")["error_detail"]) == {"noticed_at"}
    [line] = daemon.entries("orphan_ended")
    assert (line["run"], line["pid"]) == ("r", agent.process.pid)
    assert daemon.status()["intake"]["runs"] == {"watched": 0, "orphans_ended": 1}
    assert daemon.balanced()["admitted"] == 252


def test_an_agent_that_leaves_a_run_open_at_its_exit_is_no_better(world):
    """An ordinary exit ends a process as well: what it has not ended is failed, what it has is as it said."""
    daemon = world.daemon(runs=GRACE)
    agent = Agent(world, daemon.socket)
    for run in ("open", "done"):
        agent.start(run)
    agent.complete("done")
    agent.leave(3)
    wait_until_failed(world, "open")
    assert world.platform.run("done")["terminals"] == ["complete"]


def test_an_agent_that_has_ended_its_runs_leaves_nothing(world):
    """After an ordinary end nothing is added to what it said, and nothing of it is watched."""
    daemon = world.daemon(runs=GRACE)
    control = Control(world, daemon)
    agent = Agent(world, daemon.socket)
    for number in range(20):
        agent.start(f"r{number}")
        agent.complete(f"r{number}")
    agent.leave(0)
    assert daemon.status()["intake"]["runs"] == {"watched": 1, "orphans_ended": 0}
    control.pass_by()
    assert [world.platform.run(f"r{number}")["terminals"] for number in range(20)] == [["complete"]] * 20


def test_who_is_silent_lives(world):
    """A stopped process, and one that has lost its connection, still have their runs."""
    daemon = world.daemon(runs=GRACE)
    control = Control(world, daemon)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    os.kill(agent.pid, signal.SIGSTOP)
    control.pass_by()
    assert status_of(world, "r") == "running"
    os.kill(agent.pid, signal.SIGCONT)
    agent.complete("r")


def test_lines_http_and_plain_frames_are_never_watched(world):
    """Only a hello that says `owns_runs` binds a run to its process: shells, curl and SDKs come and go."""
    daemon = world.daemon(runs=GRACE)
    ledger = world.ledger
    control = Control(world, daemon)
    with Lines(daemon) as lines:
        lines.hello()  # it says owns_runs; a shell's end says nothing all the same
        assert lines.deliver(ledger, [ledger.start("lines")]) == {}
    with Frames(daemon) as frames:
        assert frames.deliver(ledger, [ledger.start("frames")]) == {}
    script = f"from harness import Frames; c = Frames({daemon.socket!r}); c.send({{'hello': 1}}); c.receive(); c.ask([{{'kind': 'run.start', 'run_id': 'quiet'}}])"
    done = world.python(script, PYTHONPATH=str(Path(__file__).parent), AGENTD_SOCKET=daemon.socket)
    assert done.returncode == 0, done.stderr
    ledger.took([ledger.start("quiet")])
    body = json.dumps({"kind": "run.start", "run_id": "http"}).encode()
    assert http_call(daemon.socket, "POST", "/v1/records", body, **{"Content-Type": "application/json"})[0] == 202
    ledger.took([ledger.start("http")])
    assert world.cli("emit", "run.start", "run_id=shell", AGENTD_SOCKET=daemon.socket).returncode == 0
    ledger.took([ledger.start("shell")])
    assert daemon.status()["intake"]["runs"]["watched"] == 1
    control.pass_by()
    assert {status_of(world, run) for run in ("lines", "frames", "quiet", "http", "shell")} == {"running"}


# -- who has it ------------------------------------------------------------------------------------------------------------


def test_a_child_that_goes_on_with_a_run_owns_it(world):
    """After a fork the child writes and the parent dies: the run stays open, until the child dies too."""
    daemon = world.daemon(runs=GRACE)
    control = Control(world, daemon)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.emit("r", 5)
    parent = agent.pid
    agent.fork()
    assert agent.pid != parent
    agent.emit("r", 5)
    control.pass_by()
    assert status_of(world, "r") == "running"
    agent.emit("r", 5)
    agent.kill()
    wait_until_failed(world, "r")
    assert len(world.platform.run("r")["events"]) == 15


def test_a_child_that_says_nothing_does_not_own_it(world):
    """Who has not written to a run has not taken it over."""
    daemon = world.daemon(runs=GRACE)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.fork()
    wait_until_failed(world, "r")


# -- a real end ------------------------------------------------------------------------------------------------------------


def test_a_real_end_within_the_grace_wins(world):
    """Somebody ends the dead agent's run by hand: that is its end, and the only one."""
    daemon = world.daemon(runs={"orphan_grace": "3s"})
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.kill()
    end = world.ledger.end("r", "run.cancel", reason="by hand")
    assert http_call(daemon.socket, "POST", "/v1/records", json.dumps(end).encode())[0] == 202
    world.ledger.took([end])
    wait_for(lambda: status_of(world, "r") == "cancelled", 10, lambda: world.platform.run("r"))
    assert daemon.status()["intake"]["runs"] == {"watched": 0, "orphans_ended": 0}


def test_a_real_end_takes_ours_back_while_it_waits(world):
    """The platform is away, our own end waits in the queue: the real one takes its place, and ours is booked as shed."""
    daemon = world.daemon(runs=GRACE)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.emit("r", 10)
    wait_for(lambda: daemon.drained()["delivered"] == 11, 10, daemon.books)
    world.platform.down()
    other = Agent(world, daemon.socket)
    other.start("other")  # what finds the platform away first is sealed: this, and not our end
    wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
    agent.kill()
    wait_for(lambda: daemon.entries("orphan_ended"), 10, daemon.tail)
    end = world.ledger.end("r")
    assert http_call(daemon.socket, "POST", "/v1/records", json.dumps(end).encode())[0] == 202
    wait_for(lambda: daemon.entries("orphan_taken_back"), 10, daemon.tail)
    world.platform.up()
    wait_for(lambda: status_of(world, "r") == "completed", 20, lambda: world.platform.run("r"))
    world.ledger.took([end])
    assert world.platform.run("r")["terminals"] == ["complete"]
    assert daemon.balanced()["causes"] == {"shed": {"stale": 1}}
    other.complete("other")


# -- agentd itself ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_living_agent_is_watched_again_after_a_restart(world, end):
    """kill -9 or SIGTERM of the daemon: the agent's run is open still, whether it says something or not, and ends with it."""
    daemon = world.daemon(runs=GRACE)
    agents = {run: Agent(world, daemon.socket) for run in ("silent", "talks")}
    for run, agent in agents.items():
        agent.start(run)
    getattr(daemon, end)()
    daemon.start()
    agents["talks"].emit("talks", 3)
    control = Control(world, daemon)
    control.pass_by()
    assert {status_of(world, run) for run in agents} == {"running"}
    for run, agent in agents.items():
        agent.kill()
        wait_until_failed(world, run)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_an_agent_that_died_meanwhile_is_found_out(world, end):
    """The daemon was down when its agent died: the grace begins with the start, and then the run is failed."""
    daemon = world.daemon(runs=GRACE)
    agent = Agent(world, daemon.socket)
    agent.start("r")
    agent.emit("r", 5)
    getattr(daemon, end)()
    agent.kill()
    daemon.start()
    wait_until_failed(world, "r")


def test_while_the_daemon_stops_nobody_is_an_orphan(world):
    """An agent that dies during the drain is judged after the next start, where it may have come back."""
    daemon = world.daemon(runs=GRACE, shutdown={"drain_timeout": "3s"})
    agent = Agent(world, daemon.socket)
    agent.start("r")
    wait_for(lambda: daemon.drained()["delivered"] == 1, 10, daemon.books)
    world.platform.faults("latency=2500ms")
    agent.emit("r", 3)  # under way for two seconds, so that the drain takes as long
    daemon.signal(signal.SIGTERM)
    wait_for(lambda: daemon.entries("stopping"), 10, daemon.tail)
    agent.kill()
    assert daemon.wait() == 0
    world.platform.faults()
    assert daemon.entries("orphan_ended") == []
    assert status_of(world, "r") == "running"
    daemon.start()
    wait_until_failed(world, "r")


# -- beside a command ------------------------------------------------------------------------------------------------------


DIE = """
import os, signal
from agentd import Client
client = Client()
run = client.start_run(run_id="r")
run.emit("x", {"run": "r", "n": 0})
assert client.flush(10)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_sidecars_command_that_dies_leaves_no_open_run(world):
    """The sidecar ends with its command: what that has left open is failed at once, and everything is delivered."""
    env = clean_environment(
        world.folder, AGENTOS_API_KEY=KEY, AGENTOS_AGENT_ID=AGENT, AGENTOS_BASE_URL=f"{world.platform.url}/agentos",
        AGENTD_SPOOL__DIRECTORY=str(world.folder / "state"), TMPDIR=str(world.folder),
    )  # fmt: skip
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "sidecar", "--", sys.executable, "-c", DIE],
        env=env, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.splitlines()[-1] == "agentd: everything was delivered"
    assert time.monotonic() - begun < 20  # the grace is 30 s here
    world.ledger.took([world.ledger.start("r"), world.ledger.event("r")])
    wait_until_failed(world, "r")


# -- another pid namespace -------------------------------------------------------------------------------------------------


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")


class Hidden(Daemon):
    """A daemon in a pid namespace of its own, below unshare(1): agents out here are not to be seen from there."""

    options = ()

    def spawn(self):
        daemon = [sys.executable, "-m", "agentd", "--config", str(self.config), "run"]
        command = [*UNSHARE, *self.options, "sh", "-c", f'exec "$@" >>{self.log} 2>&1', "-", *daemon]
        environment = clean_environment(self.folder, KEY=KEY)
        self.process = subprocess.Popen(command, env=environment, cwd=self.folder, stderr=subprocess.DEVNULL)

    def signal(self, number):
        """To the daemon itself; unshare ends as that does."""
        [pid] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(pid), number)

    def kill(self):
        self.kills += 1
        self.signal(signal.SIGKILL)
        self.wait()


def can_unshare():
    with suppress(FileNotFoundError):
        return subprocess.run([*UNSHARE, "--mount-proc", "true"], capture_output=True, check=False).returncode == 0
    return False


@pytest.mark.parametrize("proc", ["own", "foreign"])
def test_an_agent_that_is_hidden_by_a_pid_namespace_is_watched_all_the_same(world, proc):
    """Its pid reads as 0, the kernel's own handle works: also over a restart, once its client has come back."""
    if not can_unshare():
        pytest.skip("needs root and unshare(1) for a pid namespace")
    daemon = Hidden(world.folder, "d", world.platform.url, {"runs": GRACE})
    daemon.options = ("--mount-proc",) if proc == "own" else ()
    world.daemons.append(daemon)
    daemon.start()
    agent = Agent(world, daemon.socket)
    agent.start("r")
    assert daemon.status()["intake"]["runs"]["watched"] == 1
    agent.kill()
    wait_until_failed(world, "r")
    assert daemon.entries("orphan_ended")[0]["pid"] == 0
    agent = Agent(world, daemon.socket)
    agent.start("later")
    daemon.kill()
    daemon.start()
    wait_for(lambda: daemon.status()["intake"]["connections"] == 2, 10, daemon.tail)  # we who ask, and the agent
    agent.kill()
    wait_until_failed(world, "later")
