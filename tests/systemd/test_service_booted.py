"""agentd as a service of a systemd that has really booted: socket, watchdog, restarts, credentials, sandboxing, stop and reload."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from booted_kit import AGENTD, wait_for
from conftest import CONFIG, KEY

SOCKET = "/run/agentd/agentd.sock"


def finished(agent, within_s=40):
    """What an agent has to say at its end."""
    output, _ = agent.communicate(timeout=within_s)
    assert agent.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def delivered(host, run, count, status="completed", within_s=20):
    """Wait until the platform holds a run as it was told: every event, in order.

    AgentOS stores a batch twice whose answer was lost (guarantee 4), so that what comes a second time is passed over.
    """

    def is_whole():
        told = host.told(run)
        return told is not None and (list(dict.fromkeys(told[0])), told[1]) == (list(range(count)), status)

    wait_for(is_whole, within_s, lambda: f"{run}: {host.told(run)}")


def test_it_starts_says_so_and_runs_as_its_own_user(host):
    """`systemctl start` returns once records are taken; the status line tells the queues; nobody else's user, no capability."""
    host.systemctl("start", "agentd")
    assert host.property("ActiveState") == "active"
    assert host.property("StatusText") == "takes records; 0 queued"
    main = host.property("MainPID")
    facts = dict(
        line.split(":\t") for line in host.run("cat", f"/proc/{main}/status").stdout.splitlines() if ":\t" in line
    )
    assert facts["Uid"].split()[0] == host.run("id", "-u", "agentd").stdout.strip()
    assert (facts["CapBnd"], facts["NoNewPrivs"], facts["Seccomp"]) == ("0" * 16, "1", "2")
    assert host.run("stat", "-c", "%a %U:%G", SOCKET).stdout.strip() == "660 root:agentd"
    assert host.status()["socket"] == SOCKET


def test_the_first_record_starts_it(host):
    """Promise 1, before there is a daemon: what is handed in while the service is down is taken by the one that starts for it."""
    assert host.property("ActiveState") == "inactive"
    assert finished(host.agent("early", 20))["dropped"] == 0
    delivered(host, "early", 20)
    refused = host.emit("run.start", "run_id=b", user="bob", check=False)
    assert (refused.returncode, "permission denied" in refused.stderr) == (1, True)


@pytest.mark.parametrize("point", ["seal.made", "commit.put"], ids=["event loop", "storage thread"])
def test_the_watchdog_ends_a_daemon_that_hangs(host, point):
    """Loop or storage thread stuck: killed, its threads' places in the log, started again; what was acknowledged arrives."""
    quick = "[Service]\nWatchdogSec=1500ms\nRestartSec=500ms\n"
    host.drop_in(f"{quick}Environment=AGENTD_HANG_AT={point}:2\n")
    agent = host.agent("stuck", 60, 0.02)
    wait_for(lambda: "AGENTD_HANG_AT" in host.journal(), 20)
    host.drop_in(quick)  # for the one that comes after
    assert finished(agent)["dropped"] == 0
    wait_for(lambda: int(host.property("NRestarts")) >= 1, 20)
    said = host.journal(lines=200)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said
    assert "crashpoints.py" in said
    delivered(host, "stuck", 60)


def test_a_daemon_that_is_idle_or_busy_is_left_alone(host):
    """The watchdog's measure is work that is not done: none to do is no reason, nor is much of it."""
    host.drop_in("[Service]\nWatchdogSec=1500ms\n")
    host.systemctl("start", "agentd")
    first = host.property("MainPID")
    begun = time.monotonic()
    host.faults("status=503,rate=0.3")
    agents = [host.agent(f"busy{number}", 2000, 0.0) for number in range(2)]
    for agent in agents:
        finished(agent)
    host.faults()
    for number in range(2):
        delivered(host, f"busy{number}", 2000)
    wait_for(lambda: time.monotonic() - begun > 4, 10)  # nearly three times what would have ended it
    assert (host.property("MainPID"), host.property("NRestarts")) == (first, "0")


def test_killed_at_will_it_comes_back_and_its_clients_notice_nothing(host):
    """Promise 1 under `kill -9`: the socket outlives the daemon, agents go on, every event arrives, in order."""
    host.drop_in("[Service]\nRestartSec=500ms\n")
    host.systemctl("start", "agentd")
    agents = [host.agent(f"served{number}", 200, 0.01, "--go-on") for number in range(2)]
    for _ in range(2):
        first = host.property("MainPID")
        taken = host.status()["intake"]["accepted"]
        wait_for(lambda taken=taken: host.status()["intake"]["accepted"] > taken + 20)
        host.systemctl("kill", "--signal=KILL", "agentd")
        wait_for(
            lambda first=first: (
                host.property("MainPID") not in (first, "0") and host.property("ActiveState") == "active"
            ),
            20,
        )
    host.booted.write("/tmp/agents-may-end", "")
    assert host.property("NRestarts") == "2"
    for number, agent in enumerate(agents):
        said = finished(agent)
        assert said["dropped"] == 0
        delivered(host, f"served{number}", said["emitted"], within_s=40)


def test_the_key_is_the_service_managers_to_give(host):
    """LoadCredential=: root's file, which agentd can't read, is what the platform sees; neither environment nor log has it."""
    host.drop_in("[Service]\nExecStartPre=/bin/sh -c '! cat /etc/agentd/credentials/agentos'\n")
    host.emit("run.start", "run_id=keyed")
    wait_for(lambda: host.told("keyed"))
    main = host.property("MainPID")
    assert "CREDENTIALS_DIRECTORY" in host.run("cat", f"/proc/{main}/environ").stdout
    for place in (host.run("cat", f"/proc/{main}/environ").stdout, host.journal(lines=1000), json.dumps(host.status())):
        assert KEY not in place
    host.systemctl("stop", "agentd")
    Path(host.path("/etc/agentd/credentials/agentos")).unlink()
    assert host.systemctl("start", "agentd", check=False) == ""
    assert host.property("ExecMainStatus") == "0"
    assert "status=243/CREDENTIALS" in host.journal()


PROBE = """\
import ctypes, errno, json, mmap, os, socket
found = {}
def attempt(name, what):
    try:
        what()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
attempt("etc", lambda: open("/etc/agentd/mine", "w"))
attempt("usr", lambda: open("/usr/mine", "w"))
attempt("own code", lambda: open("/opt/agentd/mine", "w"))
attempt("home", lambda: os.listdir("/home/alice"))
attempt("key file", lambda: open("/etc/agentd/credentials/agentos"))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("code in memory", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
attempt("others' processes", lambda: os.stat("/proc/1"))
attempt("chown", lambda: os.chown(os.environ["STATE_DIRECTORY"], 0, 0))
attempt("state", lambda: open(os.environ["STATE_DIRECTORY"] + "/probe", "w").write("x"))
attempt("tmp", lambda: open("/tmp/probe", "w").write("x"))
unshare = ctypes.CDLL(None, use_errno=True).unshare
found["namespace"] = "done" if unshare(0x10000000) == 0 else errno.errorcode[ctypes.get_errno()]
print("PROBE " + json.dumps(found))
"""


def test_it_can_write_to_its_state_and_nowhere_else(host):
    """The unit's sandbox, tried from within: read-only system, no homes, no foreign sockets, no new code, no namespaces."""
    host.booted.write("/opt/probe.py", PROBE)
    host.drop_in("[Service]\nExecStartPre=/opt/agentd/bin/python /opt/probe.py\n")
    host.systemctl("start", "agentd")
    line = next(line for line in host.journal(lines=200).splitlines() if line.startswith("PROBE "))
    found = json.loads(line.removeprefix("PROBE "))
    assert {name for name, outcome in found.items() if outcome == "done"} == {"state", "tmp"}, found
    assert (found["usr"], found["own code"]) == ("EROFS", "EROFS")
    assert not Path(host.path("/tmp/probe")).exists()


def test_a_stop_sends_what_is_queued_and_leaves_the_rest(host):
    """Promise 7 within TimeoutStopSec, which a longer drain extends: the result is success, and nothing is lost."""
    host.configure(CONFIG + '\n[shutdown]\ndrain_timeout = "3s"\n')
    host.drop_in("[Service]\nTimeoutStopSec=1\n")
    host.systemctl("start", "agentd")
    host.faults("latency=700ms")
    agents = [host.agent(f"late{number}", 600) for number in range(3)]
    for agent in agents:
        finished(agent)
    begun = time.monotonic()
    host.systemctl("stop", "agentd.socket", "agentd.service")
    took = time.monotonic() - begun
    assert 2 < took < 12, took
    assert (host.property("Result"), host.property("ExecMainStatus")) == ("success", "0")
    said = host.journal(lines=300)
    assert "stay on disk for the next start" in said
    host.faults()
    host.systemctl("start", "agentd.socket", "agentd.service")
    for number in range(3):
        delivered(host, f"late{number}", 600)


def test_a_reload_keeps_serving(host):
    """`systemctl reload` under load: one process, connections that stay, the new configuration in force; a wrong one changes nothing."""
    host.systemctl("start", "agentd")
    first = host.property("MainPID")
    agent = host.agent("reloaded", 300, 0.01)
    link = socket.socket(socket.AF_UNIX)
    with link:
        link.connect(host.path(SOCKET))
        link.settimeout(10)
        link.sendall(b'{"seq":1,"records":[]}\n')
        assert json.loads(link.recv(4096)) == {"seq": 1, "accepted": 0}
        host.configure(CONFIG + "\n[batch]\nmax_events = 7\n")
        host.systemctl("reload", "agentd")
        assert "batch.max_events" in host.journal()
        host.configure(CONFIG + '\n[batch]\nmax_events = "many"\n')
        assert host.run("systemctl", "reload", "agentd", check=False).returncode == 1
        assert "[batch] max_events: Expected `int`" in host.property("StatusText")
        host.configure(CONFIG)
        host.systemctl("kill", "--signal=HUP", "--kill-who=main", "agentd")
        wait_for(lambda: "not reloaded" not in host.property("StatusText"), 10, lambda: host.property("StatusText"))
        link.sendall(b'{"seq":2,"records":[]}\n')
        assert json.loads(link.recv(4096)) == {"seq": 2, "accepted": 0}
    assert finished(agent)["dropped"] == 0
    delivered(host, "reloaded", 300)
    assert (host.property("MainPID"), host.property("ActiveState"), host.property("NRestarts")) == (
        first,
        "active",
        "0",
    )


def test_a_wrong_configuration_is_said_and_taken_up_once_it_is_right(host):
    """A client that waits meanwhile makes no start after start of it, and is served in the end."""
    host.configure(CONFIG + "\n[batch]\nmax_evnts = 7\n")
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(host.path(SOCKET))
        link.settimeout(30)
        link.sendall(b'{"seq":1,"records":[{"kind":"run.start","run_id":"patient"}]}\n')
        begun = time.monotonic()
        wait_for(lambda: int(host.property("NRestarts")) >= 2)
        assert time.monotonic() - begun > 3, "RestartSec= lies between two starts, whoever waits"
        assert "'max_evnts' is unknown" in host.journal()
        host.configure(CONFIG)
        assert json.loads(link.recv(4096)) == {"seq": 1, "accepted": 1}
    assert host.property("ActiveState") == "active"


def test_an_agent_that_dies_is_noticed_over_a_restart(host):
    """Under the sandbox too: whose runs these are is known again after a restart, though other users' /proc is hidden."""
    agent = host.agent("dies", 3, 0.0, "--die")
    for expected in ("begun", "stored"):
        assert agent.stdout.readline().strip() == expected
    wait_for(lambda: host.told("dies") == ([0, 1, 2], "running"), 15, lambda: host.told("dies"))
    host.systemctl("restart", "agentd")
    host.run("pkill", "-KILL", "-u", "alice", "-f", "agent.py dies")
    agent.communicate(timeout=10)
    wait_for(lambda: host.told("dies") == ([0, 1, 2], "failed"), 15, lambda: host.told("dies"))


def test_a_start_that_hangs_is_ended(host):
    """TimeoutStartSec= counts where recovery makes no progress: no timer of ours puts it off."""
    host.drop_in(
        "[Service]\nTimeoutStartSec=3\nTimeoutStopSec=1\nRestart=no\nEnvironment=AGENTD_HANG_AT=recovery.opened\n"
    )
    begun = time.monotonic()
    host.systemctl("start", "agentd", check=False)
    assert host.property("Result") == "timeout"
    assert time.monotonic() - begun < 15
    assert "no progress" in host.journal()


def test_the_units_are_as_closed_as_they_can_be(host):
    """systemd's own judges: no finding by `verify`, an exposure of 1.4 or better by `security`."""
    units = [f"/etc/systemd/system/agentd.{kind}" for kind in ("service", "socket")]
    done = host.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert (done.stdout, done.stderr) == ("", "")
    host.run("systemd-analyze", "security", "--threshold=14", "--no-pager", "agentd.service")


def test_installing_again_changes_nothing_and_a_change_is_not_overwritten(host):
    """`agentd install-service` on the machine: idempotent; a file that somebody edited is shown and left."""
    assert host.run(AGENTD, "install-service").stdout.count("unchanged") == 3
    unit = Path(host.path("/etc/systemd/system/agentd.service"))
    before = unit.read_text()
    unit.write_text(before.replace("WatchdogSec=60", "WatchdogSec=5"))
    try:
        done = host.run(AGENTD, "install-service", check=False)
        assert (done.returncode, "-WatchdogSec=5" in done.stdout, "+WatchdogSec=60" in done.stdout) == (1, True, True)
        assert "WatchdogSec=5\n" in unit.read_text()
        host.run(AGENTD, "install-service", "--force")
        assert unit.read_text() == before
    finally:
        unit.write_text(before)


def test_a_users_own_manager_runs_it_too(host):
    """`install-service --user`: under systemd --user, with a socket of one's own, a key by LoadCredential=, and a reload."""
    uid = host.run("id", "-u", "alice").stdout.strip()
    runtime = f"/run/user/{uid}"
    host.booted.write(
        "/etc/systemd/system/alices.service",
        f"[Service]\nUser=alice\nType=notify\nDelegate=yes\nKillMode=mixed\nTimeoutStopSec=5\n"
        f"Environment=XDG_RUNTIME_DIR={runtime}\nExecStart=/lib/systemd/systemd --user --unit=basic.target\n",
    )
    host.run("install", "-d", "-m", "700", "-o", "alice", "-g", "alice", runtime)

    def own(script):
        environment = [f"XDG_RUNTIME_DIR={runtime}", "HOME=/home/alice", f"AGENTD={AGENTD}"]
        return host.run("env", *environment, "bash", "-euc", script, user="alice").stdout

    own(
        "mkdir -p ~/.config/agentd/credentials; cp /etc/agentd/agentd.toml ~/.config/agentd/;"
        f"(umask 077; echo {KEY} > ~/.config/agentd/credentials/agentos); $AGENTD install-service --user"
    )
    host.systemctl("daemon-reload")
    host.systemctl("start", "alices")
    try:
        own("systemctl --user start agentd.socket; $AGENTD emit run.start run_id=own")
        wait_for(lambda: host.told("own"))
        own("systemctl --user reload agentd")
        status = json.loads(own("$AGENTD status --json"))
        assert (status["socket"], status["uid"]) == (f"{runtime}/agentd/agentd.sock", int(uid))
        assert own("systemctl --user show -P ActiveState agentd").strip() == "active"
        assert own(f"stat -c %a {runtime}/agentd/agentd.sock").strip() == "600"
    finally:
        host.systemctl("stop", "alices")
