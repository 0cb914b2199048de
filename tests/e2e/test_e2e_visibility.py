"""Who sees what: every endpoint and every verb that reads, for the sender of a record, another user, an admin, root, holders of tokens.

Contents, ids, names of runs and agents are for the sender and for admins; everybody else sees counts. One daemon holds some of everything:
delivered, queued, dead, refused as invalid, a gate that waits. An endpoint or verb that is not in a table here fails the test that
counts them: whoever adds one says who may see what of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from harness import AGENT, KEY, World, clean_environment, wait_for
from strangers_kit import ADMIN, HOSTILE, OTHER, VICTIM, User, Verbs, ask, connect, note

import agentd
from agentd.cli import main as cli

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users")

SECRET = "what-only-the-sender-knows"
RUN = "run-that-nobody-else-knows"
EVENT, PROMPT = "0a8c6a0e-5d0c-4f57-9a3e-9f2d6c1b7e11", "may-the-victim-do-this"
BILLING = "billing-of-the-victim"
TOKEN = "a-token-of-the-hostile-users"
MARKS = {"content": SECRET, "prompt": PROMPT, "run": RUN, "record": EVENT, "agent": BILLING}

STRANGERS = ("other", "hostile", "token")


class Look(NamedTuple):
    """A way to look: the marks that the sender and admins find there. Strangers find none, but for what they asked with."""

    target: str
    marks: tuple[str, ...] = ()


# {platform}, {gate}, {letter} are filled in
ENDPOINTS = [
    Look("/healthz"),
    Look("/readyz"),
    Look("/metrics"),
    Look("/v1/status"),
    Look(f"/v1/runs/{RUN}", ("platform",)),
    Look("/v1/queue"),
    Look("/v1/queue?view=stats"),
    Look("/v1/queue?view=lanes", ("run",)),
    Look(f"/v1/queue?view=lanes&run={RUN}"),
    Look("/v1/queue?view=records", ("content", "run", "agent")),
    Look(f"/v1/queue?view=records&run={RUN}", ("content",)),
    Look(f"/v1/queue?view=records&agent={BILLING}", ("content",)),
    Look("/v1/queue?view=receipts", ("run", "platform")),
    Look("/v1/dead-letters", ("content", "agent")),
    Look("/v1/dead-letters?cause=invalid", ("content",)),
    Look("/v1/dead-letters?id={letter}", ("content",)),
    Look("/v1/dead-letters?run=nowhere-to-be-found", ("content",)),
    Look(f"/v1/records/{RUN}", ("platform", "agent")),
    Look("/v1/records/{platform}", ("run",)),
    Look(f"/v1/records/{EVENT}"),
    Look("/v1/records/{letter}", ("agent",)),
    Look("/v1/top", ("run",)),
    Look("/v1/tail?last=10", ("content", "agent")),
    Look(f"/v1/tail?last=10&run={RUN}", ("content",)),
    Look("/v1/gates", ("agent",)),
    Look("/v1/gates/{gate}", ("prompt",)),
    Look("/v1/gates/{gate}?wait=0", ("prompt",)),
]
# Endpoints that are asked to do something: who may is in test_e2e_strangers, test_e2e_hostile_agent and test_e2e_gates.
DOING = {
    "/v1/records", "/v1/flush", "/v1/gate", "/v1/gates/{gate_id}/resolve", "/v1/dead-letters/replay",
    "/v1/dead-letters/purge", "/v1/queue/drop", "/-/reload", "/{destination}/…",
}  # fmt: skip

VERBS = [
    Look("status"),
    Look("queue stats"),
    Look("queue list", ("run",)),
    Look("queue peek --raw", ("content",)),
    Look("queue receipts", ("platform",)),
    Look("dead-letters list", ("letter",)),
    Look("dead-letters show {letter}", ("content",)),
    Look("dead-letters export", ("content",)),
    Look("gates list", ("agent",)),
    Look("gates show {gate}", ("prompt",)),
    Look(f"where {RUN}", ("platform",)),
    Look(f"where {EVENT}"),
]
# Verbs that show no record that is queued, or do something: what they may is the endpoint's behind them, or the caller's own files'.
OTHER_VERBS = {
    "run", "sidecar", "dev", "check", "config", "emit", "explain", "flush", "audit", "install-service", "sandbox", "demo",
    "top", "tail",  # what /v1/top and /v1/tail say, live
    "completion", "reload", "init", "doctor", "diagnose", "bench",
    "queue drop", "dead-letters replay", "dead-letters purge", "gates resolve",
}  # fmt: skip


class Stage:
    """One daemon with some of everything of the victim's."""

    def __init__(self) -> None:
        self.world = World(("agentos",))
        self.world.folder.chmod(0o755)
        token = self.world.folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.daemon = self.world.daemon(
            listen={"mode": "0666", "http": "127.0.0.1:0"},
            security={"admin_uids": [ADMIN], "tokens": [{"token": {"file": str(token)}, "agent_ids": ["mallory"]}]},
            intake={"reference_wait": "50ms"},
            destination={"agents": {BILLING: AGENT, "mallory": str(uuid.uuid4())}},
        )
        port = int(self.daemon.status()["listen"]["http"].rpartition(":")[2])
        path = self.daemon.socket
        self.users = {
            "sender": User(path, VICTIM), "other": User(path, OTHER), "hostile": User(path, HOSTILE),
            "admin": User(path, ADMIN), "root": User(path, 0), "token": User(path, HOSTILE, port, TOKEN),
        }  # fmt: skip
        self.uids = {name: user.uid for name, user in self.users.items() if not user.token}
        self.ids: dict[str, str] = {}
        self._fill()
        self.verbs = Verbs(self.world.folder)

    def _fill(self) -> None:
        own = {"agent_id": BILLING}
        event = own | {"kind": "event", "run_id": RUN, "type": "t", "payload": {"text": SECRET}}
        with connect(self.daemon.socket, VICTIM) as link:
            started = [own | {"kind": "run.start", "run_id": RUN, "input": {"text": SECRET}}, event | {"id": EVENT}]
            assert ask(link, 1, started)["accepted"] == 2
            self.daemon.drained()
            lost = event | {"run_id": "nowhere-to-be-found", "id": (letter := str(uuid.uuid4()))}
            assert ask(link, 2, [lost])["accepted"] == 1
            wait_for(lambda: self.daemon.books()["dead"] == 1)
            assert ask(link, 3, [own | {"kind": "run.start", "run_id": 7, "input": {"text": SECRET}}])["accepted"] == 0
            self.world.platform.ask(
                lambda: self.world.platform.sandbox._emulation.throw_one("agentos", "human_input", "wait")
            )
            request = {"gate": "human_input", "run_id": RUN, "request": {"prompt": PROMPT}, "deadline": 0.2, **own}
            status, gate = self.users["sender"].document("POST", "/v1/gate", request)
            assert (status, gate["verdict"]) == (200, "pending"), gate
            self.daemon.drained()
            self.world.platform.down()
            assert ask(link, 4, [event] * 3)["accepted"] == 3
        _, run = self.users["root"].document("GET", f"/v1/runs/{RUN}")
        self.ids = {
            "platform": run["destinations"]["agentos"]["platform_id"],
            "gate": gate["gate_id"],
            "letter": letter,
        }

    def marks(self, asked: str, text: str) -> set[str]:
        """Which of the victim's things a text tells, but for what was asked with."""
        known = MARKS | {"platform": self.ids["platform"], "letter": self.ids["letter"], "gate": self.ids["gate"]}
        return {name for name, mark in known.items() if mark in text and mark not in asked}

    def close(self) -> None:
        self.verbs.close()
        self.world.close()


@pytest.fixture(scope="module")
def stage():
    with contextlib.closing(Stage()) as made:
        yield made


@pytest.mark.parametrize("look", ENDPOINTS, ids=lambda look: look.target)
def test_an_endpoint_shows_what_is_the_viewers(stage, look):
    """Sender, admins and root see it; another user, and a token's holder, see counts at most: no content, id, run, agent of another's."""
    target = look.target.format(**stage.ids)
    for name, user in stage.users.items():
        status, data, _ = user("GET", target)
        found = stage.marks(target, data.decode())
        if name in STRANGERS:
            assert found == set(), (name, status, data)
        else:
            assert status == 200, (name, data)
            assert set(look.marks) <= found, (name, found, data)
    told = f"sender and admins: {', '.join(look.marks)}" if look.marks else "nobody any record"
    note(f"GET {look.target}", f"{told}; others nothing of it")


@pytest.mark.parametrize("look", VERBS, ids=lambda look: look.target)
def test_a_verb_shows_what_is_the_users(stage, look):
    """As the endpoint behind it, and nothing in its errors."""
    argv = look.target.format(**stage.ids)
    for name, uid in stage.uids.items():
        code, said = stage.verbs(uid, *argv.split(), AGENTD_SOCKET=stage.daemon.socket, COLUMNS="400")
        found = stage.marks(argv, said)
        if name in STRANGERS:
            assert found == set(), (name, code, said)
        else:
            assert set(look.marks) <= found, (name, code, said)
    told = f"sender and admins: {', '.join(look.marks)}" if look.marks else "nobody any record"
    note(f"agentd {look.target}", f"{told}; others nothing of it")


def test_nobody_learns_by_asking_with_another_users_id(stage):
    """An id of the victim's in a record of one's own is new, in a gate's key as well; the answers tell nothing of the victim's."""
    event = {"kind": "event", "run_id": "own", "type": "t", "payload": {}, "id": EVENT}
    for name in STRANGERS:
        own = {"agent_id": "mallory"}
        status, said, _ = stage.users[name](
            "POST", "/v1/records", [event | own, event | own | {"run_id": RUN, "id": None}]
        )
        assert stage.marks(json.dumps([EVENT, RUN]), said.decode()) == set(), said
        assert status in (202, 422), said


def test_logs_and_metrics_name_no_content(stage):
    """Whatever was sent, refused and buried: the daemon's log holds ids and reasons, no content."""
    log = stage.daemon.log.read_text()
    assert SECRET not in log
    assert PROMPT not in log


def test_who_has_no_token_sees_nothing_over_tcp(stage):
    """But whether the daemon lives, and counts."""
    nobody = User("", 0, stage.users["token"].port, "x" * 20)
    for look in ENDPOINTS:
        target = look.target.format(**stage.ids)
        status, said, _ = nobody("GET", target)
        assert status == (200 if target in ("/healthz", "/metrics") else 401), target
        assert stage.marks(target, said.decode()) == set()


def test_every_endpoint_is_in_the_table():
    """One that is added says here who may see what of it."""
    known = {re.sub(r"\?.*", "", look.target) for look in ENDPOINTS} | DOING
    known = {re.sub(r"/v1/(runs|records|gates)/[^/]+$", r"/v1/\1/{}", target) for target in known}
    found = set()
    for path in Path(agentd.__path__[0]).rglob("*.py"):
        if "sandbox" not in path.parts:
            found |= set(re.findall(r'router\.add_(?:get|post|put|delete|route)\(\s*"(/[^"]+)"', path.read_text()))
    found = {re.sub(r"/v1/(runs|records|gates)/\{\w+\}$", r"/v1/\1/{}", target) for target in found}
    assert len(found) > 10
    assert found <= known, f"not in the table: {sorted(found - known)}"


def test_every_verb_is_in_the_table():
    """One that is added says here what it shows to whom."""
    known = (
        {" ".join(look.target.split()[:2]) for look in VERBS} | {look.target.split()[0] for look in VERBS} | OTHER_VERBS
    )
    found = set()
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        found |= {f"{name} {inner}" for inner in command.commands} if isinstance(command, click.Group) else {name}
    assert found <= known, f"not in the table: {sorted(found - known)}"


def test_users_without_a_number_here_are_not_one_user(world):
    """A daemon in a user namespace that knows root alone: all others appear as the overflow uid; none sees what another sent, nor is an admin."""
    if subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    world.folder.chmod(0o755)
    daemon = world.daemon(start=False, listen={"mode": "0666"}, security={"admin_uids": [65534]})
    command = ["unshare", "-Ur", sys.executable, "-m", "agentd", "--config", str(daemon.config), "run"]
    with daemon.log.open("ab") as log:
        process = subprocess.Popen(command, env=clean_environment(world.folder, KEY=KEY), stdout=log, stderr=log)
    try:
        wait_for(
            lambda: Path(daemon.socket).exists() and User(daemon.socket, 0)("GET", "/readyz")[0] == 200, 20, daemon.tail
        )
        started = {"kind": "run.start", "run_id": RUN, "input": {"text": SECRET}, "to": "agentos"}
        world.platform.down()
        with connect(daemon.socket, VICTIM) as link:
            assert ask(link, 1, [started])["accepted"] == 1
        shown = {uid: User(daemon.socket, uid)("GET", "/v1/queue?view=records")[1].decode() for uid in (OTHER, 0)}
        assert (SECRET in shown[OTHER], SECRET in shown[0]) == (False, True)
        assert User(daemon.socket, OTHER)("POST", "/v1/flush")[0] == 403
        checked = subprocess.run(
            ["unshare", "-Ur", sys.executable, "-m", "agentd", "--config", str(daemon.config), "check"],
            env=clean_environment(world.folder, KEY=KEY), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "appear as uid 65534" in checked.stdout
        assert "would be an admin" in checked.stdout
        note(
            "users that have no uid in the daemon's user namespace",
            "uid -1: they see no contents, and are no admins even where 65534 is; `check` warns",
        )
    finally:
        process.terminate()
        process.terminate()
        process.wait(20)
    world.platform.up()
    world.daemons.clear()
