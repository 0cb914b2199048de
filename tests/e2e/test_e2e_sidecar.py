"""`agentd sidecar` and `agentd dev` with a real command: environment, signals, exit status, what remains and who takes it over."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import AGENT, audit_disk, clean_environment

from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool

AGENTD = (sys.executable, "-m", "agentd")
SAY_ENVIRONMENT = "import json,os; print(json.dumps(dict(os.environ)))"
EMIT = """
import sys
from agentd import Client
with Client() as client:
    with client.start_run(input={"n": 1}, external_run_id=sys.argv[1]) as run:
        run.emit("said", {"by": sys.argv[1]})
    assert client.flush(5)
"""


@pytest.fixture
def env(world):
    """One platform's own variables, as a user would set them, and a state folder of the test's."""
    found = clean_environment(
        world.folder, AGENTOS_API_KEY="aos_agent_end_to_end", AGENTOS_AGENT_ID=AGENT,
        AGENTOS_BASE_URL=f"{world.platform.url}/agentos", AGENTD_SPOOL__DIRECTORY=str(world.folder / "state"),
        AGENTD_SHUTDOWN__DRAIN_TIMEOUT="3s", TMPDIR=str(world.folder),
    )  # fmt: skip
    found.pop("AGENTD_SOCKET", None)
    return found


@pytest.fixture(autouse=True)
def _books(world, caplog):
    """Promise 8: whatever a sidecar was told is delivered, queued or dead in the books of its folder, and the disk agrees."""
    yield
    for folder in sorted((world.folder / "state").glob("sidecars/*-*")):
        audit_disk(folder)  # before recovery opens it, which would mend
        books, live = asyncio.run(_found(folder))
        assert {name: admitted - ended for name, (admitted, ended) in books.items()} == live
    assert [record.getMessage() for record in caplog.records if record.name.startswith("agentd.spool")] == []


async def _found(folder):
    """(admitted, ended) and what is queued, by destination; a damaged folder would be repaired aloud, and is refused here."""
    limits = Limits({}, 2**30, 2**30, 2**20, 2**20, 10)
    spool = await open_spool(
        folder,
        sync="full",
        limits=limits,
        identities={},
        journal=Journal(10**15, 10**9),
        now_us=lambda: time.time_ns() // 1000,
    )
    try:
        lines = list(spool.books.lines())
        assert not [line for line in lines if line.state == "quarantined"]
        books = {
            name: (
                sum(line.records for line in lines if (line.destination, line.state) == (name, "admitted")),
                sum(line.records for line in lines if line.destination == name and line.state != "admitted"),
            )
            for name in spool.queues
        }
        return books, {name: queue.live for name, queue in spool.queues.items()}
    finally:
        spool.start()
        await spool.close()


def sidecar(env, *command, options=(), verb="sidecar", within_s=40):
    return subprocess.run(
        [*AGENTD, verb, *options, "--", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def python(*arguments):
    return (sys.executable, "-c", *arguments)


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def wait_for_output(process, what):
    """The line of a process's standard error that holds `what`."""
    for line in process.stderr:
        if what in line:
            return line.strip()
    raise AssertionError(f"{what!r} was never said")


@contextmanager
def begun(env, *command, verb="sidecar", options=()):
    """A sidecar under way; at the end its whole process group is gone."""
    process = subprocess.Popen(
        [*AGENTD, verb, *options, "--", *command], env=env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_all_it_takes_is_a_key(world, env):
    """Section 7: AGENTOS_API_KEY=… agentd sidecar -- python my_agent.py delivers what the agent said."""
    done = sidecar(env, *python(EMIT, "r-1"))
    assert (done.returncode, last_line(done)) == (0, "agentd: everything was delivered"), done.stderr
    run = world.platform.run("r-1")
    assert (run["status"], [event["type"] for event in run["events"]]) == ("completed", ["said"])


def test_the_command_holds_no_platform_key(env):
    """Section 7: the platforms' keys are out of its environment, their variables point at agentd, and the local token opens it."""
    script = """
import json, os, urllib.request
env = dict(os.environ)
key = {"Authorization": "Bearer " + env["AGENTD_TOKEN"]}
answer = urllib.request.urlopen(urllib.request.Request(env["AGENTD_HTTP"] + "/v1/status", headers=key))
print(json.dumps({"env": env, "status": json.load(answer)}))
"""
    done = sidecar(env, *python(script))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "aos_agent_end_to_end" not in json.dumps(said["env"])
    assert said["env"]["AGENTOS_API_KEY"] == said["env"]["AGENTD_TOKEN"]
    assert said["env"]["AGENTOS_BASE_URL"] == said["env"]["AGENTD_HTTP"] + "/agentos"
    assert said["status"]["socket"] == said["env"]["AGENTD_SOCKET"]


def test_nothing_else_of_the_command_is_changed(env):
    """A sidecar leaves umask, limits, standard input, working directory and arguments as they were."""
    script = "import json,os,resource,sys; m=os.umask(0); print(json.dumps([m, resource.getrlimit(resource.RLIMIT_NOFILE), os.getcwd(), sys.argv[1:], sys.stdin.read()]))"
    before = subprocess.run(
        python(script, "a b", "--x"), env=env, input="in", capture_output=True, text=True, check=True
    )
    after = subprocess.run(
        [*AGENTD, "sidecar", "--", *python(script, "a b", "--x")],
        env=env,
        input="in",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(after.stdout) == json.loads(before.stdout)


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_status_passes_through(env, script, code):
    """Section 7: the command's status is ours, 128 + n for one that a signal ended."""
    assert sidecar(env, *python(script)).returncode == code


def test_a_command_that_cannot_be_started(env):
    """As in a shell: 127 for one that is not found, 126 for one that can't be run; and no daemon is left behind."""
    assert sidecar(env, "/nowhere/at-all").returncode == 127
    assert sidecar(env, "/etc/passwd").returncode == 126


def test_signals_pass_through(env):
    """Section 7: SIGTERM to the sidecar reaches the command, which ends in its own way, and its last words are delivered."""
    script = """
import signal, sys, time
from agentd import Client
client = Client()
run = client.start_run(external_run_id="r-term")
def end(number, frame):
    run.cancel("told to stop"); client.close(); sys.exit(5)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True: time.sleep(0.05)
"""
    with begun(env, *python(script)) as process:
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 5, err
        assert err.strip().endswith("agentd: everything was delivered")


def test_what_remains_is_said_and_taken_over(world, env):
    """Section 7: with the platform away the last line says how many, why and where; the next sidecar adopts and delivers them."""
    world.platform.down()
    slow = env | {"AGENTD_SHUTDOWN__DRAIN_TIMEOUT": "500ms"}
    done = sidecar(slow, *python(EMIT, "r-left"), options=["--require-delivered"])
    assert done.returncode == 75
    assert last_line(done).startswith(f"agentd: 3 records remain in {world.folder}/state/sidecars/")
    assert "no connection" in last_line(done)
    world.platform.up()
    done = sidecar(env, "true", options=["--require-delivered"])
    assert (done.returncode, last_line(done)) == (0, "agentd: everything was delivered"), done.stderr
    assert world.platform.run("r-left")["status"] == "completed"


def test_a_killed_sidecar_leaves_everything_to_the_next(world, env):
    """Promise 1: kill -9 of the sidecar loses nothing that was acknowledged."""
    world.platform.down()
    with begun(
        env, *python(EMIT + "\nprint('stored', flush=True)\nimport time; time.sleep(60)", "r-killed")
    ) as process:
        assert process.stdout.readline().strip() == "stored"
        process.kill()
        process.wait()
    world.platform.up()
    assert last_line(sidecar(env, "true")) == "agentd: everything was delivered"
    assert world.platform.run("r-killed")["status"] == "completed"


def test_two_at_a_time(world, env):
    """Two sidecars of the same destinations run beside one another, each with a folder of its own."""
    with begun(env, *python(EMIT + "\nprint('stored', flush=True)\nimport sys; sys.stdin.read()", "r-a")) as first:
        assert first.stdout.readline().strip() == "stored"
        assert sidecar(env, *python(EMIT, "r-b")).returncode == 0
    assert {path.name[-2:] for path in (world.folder / "state/sidecars").iterdir()} == {"-1", "-2"}
    assert world.platform.run("r-b")["status"] == "completed"


def test_what_two_at_a_time_left_is_all_delivered(world, env):
    """Section 7: the next sidecar delivers what several before it have left, and 0 from --require-delivered means all of it."""
    world.platform.down()
    slow = env | {"AGENTD_SHUTDOWN__DRAIN_TIMEOUT": "300ms"}
    with begun(slow, *python(EMIT + "\nprint('stored', flush=True)\nimport sys; sys.stdin.read()", "r-a")) as first:
        assert first.stdout.readline().strip() == "stored"
        assert "records remain" in last_line(sidecar(slow, *python(EMIT, "r-b")))
        first.stdin.close()
        first.wait(timeout=20)
    world.platform.up()
    done = sidecar(env, "true", options=["--require-delivered"])
    assert (done.returncode, last_line(done)) == (0, "agentd: everything was delivered"), done.stderr
    assert [world.platform.run(run)["status"] for run in ("r-a", "r-b")] == ["completed", "completed"]


def test_no_agent_decides_for_itself_in_a_sidecar(env):
    """Section 5: the command has the sidecar's own uid, and may all the same not say what became of its own gate."""
    script = """
import json, os, socket
def ask(path, body):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ["AGENTD_SOCKET"])
        data = json.dumps(body).encode()
        link.sendall(b"POST %s HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % (path.encode(), len(data)) + data)
        return b"".join(iter(lambda: link.recv(65536), b""))
print(ask("/v1/gates/01a200b4-25a3-7482-b9d1-9890c20cada0/resolve", {"verdict": "allow"}).split()[1].decode())
print(ask("/agentos/api/v1/approvals/1/decide", {"decision": "approve"}).split()[1].decode())
"""
    with_admin = env | {
        "AGENTD_DESTINATIONS__AGENTOS__PASSTHROUGH": "admin",
        "AGENTD_DESTINATIONS__AGENTOS__PLATFORM": "agentos",
    }
    with_admin |= {"AGENTD_DESTINATIONS__AGENTOS__API_KEY__ENV": "AGENTOS_API_KEY"}
    done = sidecar(with_admin, *python(script))
    assert done.stdout.split() == ["403", "403"], done.stderr


def test_a_joined_command_holds_no_platform_key_either(world, env):
    """Section 7: the platforms' keys are taken out also where another daemon is joined."""
    daemon = world.daemon()
    done = sidecar(env | {"AGENTD_SOCKET": str(daemon.socket)}, *python(SAY_ENVIRONMENT))
    assert "AGENTOS_API_KEY" not in json.loads(done.stdout)
    assert "AGENTOS_API_KEY taken out" in done.stderr


def test_the_status_passes_through_without_anybody_to_read(env):
    """Section 7: nobody has to read the last line; the exit status is the command's all the same."""
    with Path("/dev/full").open("w") as full:
        code = subprocess.run(
            [*AGENTD, "sidecar", "--", *python("raise SystemExit(5)")], env=env, stderr=full, check=False
        ).returncode
    assert code == 5


def test_dev_says_when_its_port_is_taken(env):
    """A port in use is one line that says what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = sidecar(env, "true", verb="dev", options=["--port", str(taken.getsockname()[1])])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("say --port 0 for a free one")
    assert "Traceback" not in done.stderr


def test_it_joins_the_daemon_that_it_is_told_of(world, env):
    """Section 7: it joins another daemon only if AGENTD_SOCKET was set; where nobody answers there it does not start the command."""
    daemon = world.daemon()
    done = sidecar(env | {"AGENTD_SOCKET": str(daemon.socket)}, *python(EMIT, "r-joined"))
    assert done.returncode == 0, done.stderr
    assert daemon.drained()["delivered"] == 3
    assert not (world.folder / "state/sidecars").exists()
    gone = sidecar(env | {"AGENTD_SOCKET": str(world.folder / "nobody.sock")}, "touch", str(world.folder / "begun"))
    assert gone.returncode == 1
    assert "AGENTD_SOCKET is set" in gone.stderr
    assert not (world.folder / "begun").exists()


def test_without_a_destination_it_says_what_to_set(env):
    """Section 7: with no destination at all it says what to set, and does not start the command."""
    bare = {name: value for name, value in env.items() if not name.startswith("AGENTOS_")}
    done = sidecar(bare, "echo", "never")
    assert (done.returncode, done.stdout) == (78, "")
    assert "AGENTOS_API_KEY" in done.stderr


def test_dev_needs_no_key_and_shows_a_page(env):
    """Section 6: `agentd dev -- python my_agent.py` shows an agent's runs and decisions at one URL without any key."""
    bare = {name: value for name, value in env.items() if not name.startswith(("AGENTOS_", "AGENTD_SPOOL"))}
    script = EMIT + "\nclient = Client(agent_id='billing'); client.log_decision('Route', chosen='a'); client.close()"
    with begun(bare, *python(script, "r-dev"), verb="dev", options=["--port", "0", "--stay"]) as process:
        page = wait_for_output(process, "shows what the platforms receive").split()[2]
        wait_for_output(process, "stays until Ctrl-C")
        with urllib.request.urlopen(page + "runs", timeout=5) as answer:
            rows = json.load(answer)
        assert {(row["face"], row.get("status")) for row in rows if row["face"] == "agentos"} == {
            ("agentos", "completed")
        }
        assert [row["face"] for row in rows].count("decisionos") == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_dev_passes_the_status_through(env):
    """Where nobody sits at a terminal `agentd dev` ends with its command, and with its status."""
    assert sidecar(env, *python("raise SystemExit(4)"), verb="dev", options=["--port", "0"]).returncode == 4


# -- as process 1, without an init -----------------------------------------------------------------------------------------


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@contextmanager
def begun_as_first(env, *command):
    """A sidecar that is process 1 of a pid namespace, as in a container; its pid out here, and unshare(1), which ends as it does."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and unshare(1) for a pid namespace")
    process = subprocess.Popen(
        [*UNSHARE, *AGENTD, "sidecar", "--", *command], env=env, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def first_of(process):
    """The pid out here of process 1 in there."""
    [pid] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(pid)


def test_as_process_1_it_reaps_what_others_leave(world, env):
    """In a container without an init: orphans that die don't stay as zombies, the command's own status is not lost among them."""
    script = """
import os, sys, time
from agentd import Client
with Client() as client, client.start_run(external_run_id="r-first") as run:
    run.emit("said", {"parent": os.getppid()})
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)  # an orphan by now, or as soon as its parent has ended
        os._exit(0)
for _ in range(20):
    os.wait()
def orphans():
    stats = [open(f"/proc/{name}/stat").read().rpartition(")")[2].split() for name in os.listdir("/proc") if name.isdigit()]
    return [stat for stat in stats if stat[1] == "1" and stat[0] == "Z"]
deadline = time.monotonic() + 15
while orphans() and time.monotonic() < deadline:
    time.sleep(0.02)
print(os.getppid(), len(orphans()), flush=True)
sys.exit(7)
"""
    with begun_as_first(env, *python(script)) as process:
        out, err = process.communicate(timeout=40)
    assert (out.split(), process.returncode) == (["1", "0"], 7), err
    assert err.strip().endswith("agentd: everything was delivered")
    assert world.platform.run("r-first")["status"] == "completed"


def test_as_process_1_it_hands_signals_on(world, env):
    """The kernel gives process 1 no signal without a handler: SIGTERM reaches the command, whose last words are delivered."""
    script = """
import signal, sys, time
from agentd import Client
client = Client()
run = client.start_run(external_run_id="r-first")
def end(number, frame):
    run.cancel("told to stop"); client.close(); sys.exit(5)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True: time.sleep(0.05)
"""
    with begun_as_first(env, *python(script)) as process:
        assert process.stdout.readline().strip() == "ready"
        os.kill(first_of(process), signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 5, err
    assert world.platform.run("r-first")["status"] == "cancelled"


def test_as_process_1_it_says_how_the_command_died(env):
    """128 + n for a command that signal n ended, although process 1 itself can't end by it."""
    with begun_as_first(env, *python("import os; os.kill(os.getpid(), 9)")) as process:
        _, err = process.communicate(timeout=40)
    assert process.returncode == 137, err
