"""The machine that the tests of the service share: agentd installed as users do, a sandbox beside it, two people on it.

alice's agents may hand in records, bob's may not. Each test begins with the units as `agentd install-service` writes them, the
service stopped and its state empty; at its end the books have to balance.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from booted_kit import AGENTD, NotPossible, machine, wait_for

REQUIRED = "AGENTD_TEST_SYSTEMD"  # "required": what can't be tested fails
AGENT = "6adea1a6-2973-5c67-a1ed-967b60bcbdf0"
KEY = "aos_agent_of_the_booted_machine"
SANDBOX = "http://localhost:4400"
CONFIG = f"""\
[retry]
initial = "50ms"
max = "500ms"

[runs]
orphan_grace = "1s"

[destinations.agentos]
platform = "agentos"
base_url = "{SANDBOX}/agentos"
agent_id = "{AGENT}"
api_key = {{ credential = "agentos" }}
"""
_RESET = f"""\
systemctl stop agentd.socket agentd.service
rm -rf /tmp/agents-may-end /var/lib/agentd /etc/systemd/system/agentd.*.d
systemctl daemon-reload
systemctl reset-failed
systemctl start agentd.socket
curl -sS -o /dev/null -X POST {SANDBOX}/_sandbox/reset
curl -sS -o /dev/null -X DELETE {SANDBOX}/_sandbox/faults
journalctl --quiet --rotate
journalctl --quiet --vacuum-time=1s
"""
_SANDBOX_UNIT = f"[Service]\nDynamicUser=yes\nExecStart={AGENTD} sandbox\n"
_AGENT = '''\
"""An agent: begins a run, emits numbered events at a steady rate, ends it, and says what became of them."""
import itertools, json, os, sys, time
from agentd import Client

name, count, pause_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = Client()
with client.start_run(run_id=name) as run:
    print("begun", flush=True)
    for number in itertools.count():
        if number >= count and ("--go-on" not in sys.argv or os.path.exists("/tmp/agents-may-end")):
            break
        run.emit("step", {"n": number})
        time.sleep(pause_s)
    if "--die" in sys.argv:
        client.flush(timeout=10, until="stored")
        print("stored", flush=True)
        time.sleep(3600)
client.flush(timeout=30, until="stored")
print(json.dumps({"dropped": client.dropped, "emitted": number}))
client.close()
'''


def pytest_collection_modifyitems(items):
    """A machine may have to be made for the first test: half a minute on a busy host."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(180))


def cannot(why):
    """Skip, or fail where the run promised that nothing is skipped."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, and {why}")
    pytest.skip(str(why))


def _prepare(root):
    """Install as README says it."""
    root.run("rm", "-rf", "/etc/agentd", "/var/lib/agentd")
    root.write("/etc/agentd/agentd.toml", CONFIG)
    root.write("/etc/agentd/credentials/agentos", f"{KEY}\n", 0o600)
    root.run(AGENTD, "install-service")
    root.run("systemd-sysusers")
    root.run("useradd", "--create-home", "--groups", "agentd", "alice")
    root.run("useradd", "--create-home", "bob")
    root.write("/etc/systemd/system/agentd-sandbox.service", _SANDBOX_UNIT)
    root.write("/opt/agent.py", _AGENT)


@pytest.fixture(scope="session")
def booted_systemd(tmp_path_factory, worker_id):
    """A systemd that has booted, with all that it takes to start agentd."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with contextlib.ExitStack() as stack:
        try:
            booted = stack.enter_context(machine(tmp_path_factory.mktemp("machine"), shared, _prepare))
        except NotPossible as why:
            cannot(why)
        booted.systemctl("start", "agentd-sandbox")
        wait_for(lambda: booted.run("curl", "-sf", f"{SANDBOX}/_sandbox/state", check=False).returncode == 0)
        yield booted


class Host:
    """What a test does to the machine."""

    def __init__(self, booted):
        self.booted = booted
        self.run, self.systemctl, self.drop_in = booted.run, booted.systemctl, booted.drop_in
        self.property, self.journal, self.path = booted.property, booted.journal, booted.path

    def reset(self):
        """As it was after the installation."""
        self.configure(CONFIG)
        self.booted.write("/etc/agentd/credentials/agentos", f"{KEY}\n", 0o600)
        self.run("sh", "-ec", _RESET)

    def configure(self, text):
        self.booted.write("/etc/agentd/agentd.toml", text)

    def emit(self, *words, user="alice", check=True):
        """A record from a shell."""
        return self.run(AGENTD, "emit", *words, user=user, check=check)

    def agent(self, name, count, pause_s=0.0, *more, user="alice"):
        """An agent of its own, under way."""
        leader = str(self.booted.leader)
        command = [
            "nsenter",
            "-t",
            leader,
            "-a",
            "runuser",
            "-u",
            user,
            "--",
            "/opt/agentd/bin/python",
            "/opt/agent.py",
        ]
        return subprocess.Popen(
            [*command, name, str(count), str(pause_s), *more], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )  # fmt: skip

    def told(self, run):
        """The numbers of a run's events at the platform, in order, and its state; None for a run that it does not know."""
        document = self.booted.run("curl", "-sS", f"{SANDBOX}/_sandbox/runs/{run}?limit=100000").stdout
        found = json.loads(document)
        if "events" not in found:
            return None
        return [event["payload"]["n"] for event in found["events"] if "n" in event["payload"]], found["status"]

    def faults(self, *specs):
        self.booted.http(f"{SANDBOX}/_sandbox/faults", "-X", "PUT", "-d", json.dumps(list(specs)))

    def status(self):
        return json.loads(self.run(AGENTD, "status", "--json", check=False).stdout)

    def wait_for_state(self, state, within_s=20.0):
        """Wait until the service is there."""
        wait_for(
            lambda: self.property("ActiveState") == state,
            within_s,
            lambda: f"{self.property('ActiveState')}, not {state}",
        )


@pytest.fixture
def host(booted_systemd, request):
    """The machine, and nothing of other tests. Afterwards the service stops in order and its books balance."""
    host = Host(booted_systemd)
    host.reset()
    failed = request.session.testsfailed
    yield host
    if request.session.testsfailed > failed:
        print(host.journal(lines=200))  # noqa: T201 - pytest shows it with the failure
        return
    host.systemctl("stop", "agentd.socket", "agentd.service")
    if Path(host.path("/var/lib/agentd/spool")).exists():
        audit = host.run(AGENTD, "audit", check=False)
        assert audit.returncode == 0, audit.stdout + audit.stderr
