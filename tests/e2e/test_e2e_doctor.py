"""`agentd doctor` and `agentd diagnose` on real daemons: what they find, what they leave alone, and what they must not carry out."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import tarfile
from pathlib import Path

import pytest
from harness import KEY, Frames, wait_for

FACES = ("agentos", "decisionos")
AGENT_NAME = "payroll-of-alice"
RUN = "invoice-4711-of-miller"
LEDGER_KEY = "opaque-ledger-key-7Q"
PLANTED = {
    "key of the environment": KEY,
    "key in a file": LEDGER_KEY,
    "variable of the shell": "opaque-shell-secret-8W",
    "password of a proxy": "opaque-proxy-word-9E",
    "token of a client": "opaque-local-token-3R",
    "anthropic key in a record": "sk-ant-api03-" + "Zq9" * 31 + "AA",
    "opaque value in a record": "opaque-payload-5T",
    "opaque value in a log line": "opaque-log-6Y",
    "jwt in a log line": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
}  # fmt: skip


def doctor(world, daemon=None, *more, **environment):
    """Its findings by check, and its exit status."""
    config = () if daemon is None else ("--config", str(daemon.config))
    done = world.cli(*config, "doctor", "--json", *more, KEY=KEY, **environment)
    findings = {}
    for finding in json.loads(done.stdout):
        findings.setdefault(finding["check"], []).append(finding)
    return findings, done.returncode


def state(daemon, name):
    return daemon.status()["destinations"][name]["state"]


def files_of(folder):
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_nothing_is_set_up(world):
    """No daemon, no configuration: it says so, what to do, and that nothing fails."""
    findings, status = doctor(world, None, AGENTD_SOCKET="")
    assert status == 0
    assert findings["configuration"][0]["level"] == findings["socket"][0]["level"] == "warn"
    assert findings["versions"][0]["level"] == "ok"
    screen = world.cli("doctor").stdout
    assert "do:      agentd init writes a configuration" in screen
    assert screen.splitlines()[-1].startswith("nothing fails, 2 to look at")


def test_a_configuration_that_is_wrong(world):
    """What `agentd check` finds fails here too."""
    path = world.folder / "agentd.toml"
    path.write_text('[destinations.x]\nplatform = "agentos"\napi_key = { env = "NOT_SET" }\n')
    findings, status = doctor(world)
    assert status == 1
    assert any("NOT_SET is not set" in finding["what"] for finding in findings["configuration"])
    path.write_text("[lissten]\n")
    findings, status = doctor(world)
    assert (status, findings["configuration"][0]["level"]) == (1, "fail")
    assert "did you mean 'listen'?" in findings["configuration"][0]["what"]


def troubled(world, **more):
    """A daemon with one destination down and one out of quota."""
    sections = {
        "destinations.ledger": {
            "platform": "decisionos", "base_url": f"{world.platform.url}/decisionos", "agent_id": "6adea1a6-2973-5c67-a1ed-967b60bcbdf0", "api_key": {"env": "KEY2"},
        },
    }  # fmt: skip
    daemon = world.daemon(
        start=False,
        destination={"base_url": "http://127.0.0.1:9/agentos"} | more.pop("destination", {}),
        **sections | more,
    )
    daemon.environment = {"KEY2": "dos_live_key"}
    world.platform.faults("status=402,face=decisionos")
    return daemon


def test_one_is_down_and_one_is_out_of_quota(world):
    """Both are named with cause and cure; the rest is well."""
    daemon = troubled(world)
    daemon.expected = {"paused"}
    daemon.start()
    emit = ("--config", str(daemon.config), "emit")
    assert world.cli(*emit, "run.start", "run_id=r").returncode == 0
    assert world.cli(*emit, "decision", "context=Route it", "chosen=eng").returncode == 0
    wait_for(lambda: state(daemon, "agentos") == "waiting" and state(daemon, "ledger") == "paused", 10)
    findings, status = doctor(world, daemon, KEY2="dos_live_key")
    assert status == 1
    assert findings["agentos"][0]["what"] == "no connection to 127.0.0.1:9"
    assert findings["agentos"][0]["cause"] == "Connection refused"
    assert findings["agentos queue"][0]["level"] == "warn"
    assert {"daemon", "socket", "state", "disk", "files", "books", "ledger"} <= set(findings)
    assert {findings[check][0]["level"] for check in ("daemon", "socket", "state", "books")} == {"ok"}
    assert findings["ledger queue"][0]["level"] == "fail"
    assert (
        "billing page" in findings["ledger queue"][0]["cure"] or "raise the plan" in findings["ledger queue"][0]["cure"]
    )
    offline, _ = doctor(world, daemon, "--offline")
    assert "ledger" not in offline
    world.platform.faults()
    wait_for(lambda: daemon.status()["destinations"]["ledger"]["delivered"] == 1, 15)
    daemon.stop()
    world.daemons.remove(daemon)  # what it still holds is for nobody


def test_after_a_kill_the_disk_is_read(world):
    """A stale socket, what waits, by reads alone; not a byte of the state folder changes; a key that is refused is told apart."""
    daemon, ledger = world.daemon(), world.ledger
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.start("r"), *ledger.events_of("r", 5)]) == {}
    daemon.kill()
    world.platform.up()
    before, asked = files_of(daemon.state), len(world.platform.requests())
    findings, status = doctor(world, daemon)
    assert files_of(daemon.state) == before
    assert [request.method for request in world.platform.requests()[: len(world.platform.requests()) - asked]] == [
        "GET"
    ]
    assert status == 1
    assert "is stale" in findings["socket"][0]["what"]
    assert "6 wait" in findings["agentos queue"][0]["what"]
    assert findings["agentos"][0]["level"] == findings["clock"][0]["level"] == "ok"
    world.platform.faults("status=401")
    findings, status = doctor(world, daemon)
    assert (findings["agentos"][0]["what"], status) == ("the platform refuses the key", 1)
    world.platform.faults()
    daemon.start()
    findings, status = doctor(world, daemon)
    assert status == 0, findings
    with Frames(daemon) as client:
        assert client.deliver(ledger, [ledger.end("r")]) == {}


def test_a_daemon_that_hangs(world):
    """A stopped process takes connections and says nothing: that is told within seconds."""
    daemon = world.daemon()
    daemon.signal(signal.SIGSTOP)
    try:
        findings, status = doctor(world, daemon)
    finally:
        daemon.signal(signal.SIGCONT)
    assert (status, findings["socket"][0]["cause"]) == (1, "it hangs, or this host is overloaded")


def test_a_damaged_spool(world):
    """What a start would mend is told before the start."""
    daemon, ledger = world.daemon(), world.ledger
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.whole_run("r", 5)) == {}
    wait_for(lambda: daemon.status()["destinations"]["agentos"]["queued"] == 0, 10)
    daemon.stop()
    world.daemons.remove(daemon)  # its books went with its disk
    database = daemon.state / "spool" / "cache.db"
    database.write_bytes(b"\0" * 8192)
    findings, status = doctor(world, daemon)
    assert (status, findings["spool"][0]["level"]) == (1, "fail")
    assert database.read_bytes() == b"\0" * 8192


# -- the bundle ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(world):
    """A daemon with secrets in all the places where somebody might put some."""
    key = world.folder / "ledger.key"
    key.write_text(LEDGER_KEY)
    key.chmod(0o600)
    token = world.folder / "token"
    token.write_text(PLANTED["token of a client"])
    token.chmod(0o600)
    proxy = world.folder / "proxy"
    proxy.write_text(f"http://ann:{PLANTED['password of a proxy']}@127.0.0.1:9")
    proxy.chmod(0o600)
    daemon = troubled(
        world,
        destination={
            "agents": {AGENT_NAME: "0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a11", "*": "0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a12"},
            "agent_id": None,
            "proxy": "direct",
        },
        redact={"patterns": [], "keys": []},
    )
    daemon._sections["destinations.agentos"].pop("agent_id")
    daemon.configure(**{
        "destinations.agentos": {"base_url": f"{world.platform.url}/agentos"},
        "destinations.ledger": {"api_key": {"file": str(key)}, "base_url": "https://ledger.invalid", "proxy": {"file": str(proxy)}},
    })  # fmt: skip
    with daemon.config.open("a") as file:
        file.write(f'\n[[security.tokens]]\ntoken = {{ file = "{token}" }}\nagent_ids = ["{AGENT_NAME}"]\n')
    daemon.expected = {"paused"}
    daemon.start()
    return daemon


def members(path):
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: (member, archive.extractfile(member).read())
            for member in archive.getmembers()
        }


def test_a_bundle_without_secrets(world, planted):
    """Secrets of environment, configuration, records, log and key files: none is in the bundle, in any form; nor names, ids or contents."""
    ledger = world.ledger
    payload = {"api_key": PLANTED["anthropic key in a record"], "note": PLANTED["opaque value in a record"]}
    records = [ledger.start(RUN), ledger.event(RUN, payload=payload), ledger.end(RUN)]
    with Frames(planted) as client:
        assert client.deliver(ledger, [record | {"agent_id": AGENT_NAME} for record in records]) == {}
    wait_for(lambda: planted.status()["destinations"]["agentos"]["delivered"] == 3, 15)
    log = world.folder / "copy.log"
    log.write_text(
        planted.log.read_text()
        + json.dumps(
            {
                "message": f"refused: got '{PLANTED['opaque value in a log line']}'",
                "lane": f"run:{RUN}",
                "level": "warning",
            }
        )
        + f"\n2026-11-22 run:{RUN} of {AGENT_NAME}: agent-of-bob {PLANTED['jwt in a log line']} {KEY}\n"
    )
    readable = [
        PLANTED[place]
        for place in ("key in a file", "variable of the shell", "password of a proxy", "token of a client")
    ]
    basic = base64.b64encode(f"ann:{PLANTED['password of a proxy']}".encode()).decode()
    with log.open("a") as file:  # as a careless library would write them
        file.write(json.dumps({"message": f"sent {' '.join(readable)} {basic}", "headers": {"x": readable[0]}}) + "\n")
        file.write(f"sent {' '.join(readable)} as {basic} and {readable[0].encode().hex()}\n")
    environment = {"KEY": KEY, "MY_API_TOKEN": PLANTED["variable of the shell"], "AGENTOS_AGENT_ID": "agent-of-bob"}
    path = world.folder / "bundle.tar.gz"
    arguments = ("--config", str(planted.config), "diagnose", "--log", str(log))
    dry = world.cli(*arguments, "--dry-run", **environment)
    assert (dry.returncode, path.exists()) == (0, False)
    assert "nothing was written" in dry.stderr
    assert not list(world.folder.glob("agentd-diagnose*"))
    done = world.cli(*arguments, "-o", str(path), **environment)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.geteuid()
    held = members(path)
    assert set(held) == {
        "README.txt", "platform.json", "versions.json", "variables.json", "config.json", "status.json", "health.json", "metrics.prom",
        "queue.json", "log.txt", "doctor.json", "audit.json",
    }  # fmt: skip
    whole = b"\n".join(data for _, data in held.values())
    for place, secret in PLANTED.items():
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), secret.encode().hex().encode()):
            assert form not in whole, place
    assert b"ann:" not in whole
    assert basic.encode() not in whole
    for name in (AGENT_NAME, "agent-of-bob", RUN, "0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a11"):
        assert name.encode() not in whole, name
    assert all(member.mode == 0o600 and member.isfile() for member, _ in held.values())
    assert json.loads(held["status.json"][1])["destinations"]["agentos"]["delivered"] == 3
    assert json.loads(held["audit.json"][1])["balanced"] is True
    assert json.loads(held["config.json"][1])["destinations"]["agentos"]["api_key"]["env"] == "KEY"
    assert "MY_API_TOKEN" not in held["variables.json"][1].decode()
    assert b"agentd_build_info" in held["metrics.prom"][1]
    assert {finding["check"] for finding in json.loads(held["doctor.json"][1])} >= {"versions", "socket", "books"}
    for name in set(held) - {"README.txt"}:
        assert name in done.stdout


def test_names_when_they_are_wanted_and_files_that_are_there(world, planted):
    """`--with-names` leaves names and still no secret; a file that exists is not overwritten; a leak-proof name is a default."""
    path = world.folder / "b.tar.gz"
    arguments = ("--config", str(planted.config), "diagnose", "--no-audit", "--offline", "--log", str(planted.log))
    assert world.cli(*arguments, "--with-names", "-o", str(path), KEY=KEY).returncode == 0
    whole = b"\n".join(data for _, data in members(path).values())
    assert AGENT_NAME.encode() in whole
    assert not any(secret.encode() in whole for secret in PLANTED.values())
    again = world.cli(*arguments, "-o", str(path), KEY=KEY)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    done = world.cli(*arguments, "--json", KEY=KEY)
    document = json.loads(done.stdout)
    assert (world.folder / document["file"]).exists()
    assert "audit.json" not in {member["name"] for member in document["contents"]}


def test_a_bundle_of_a_daemon_that_is_gone(world):
    """Without a daemon and without a configuration there is still something to send."""
    done = world.cli("diagnose", "-o", "b.tar.gz", "--offline")
    assert done.returncode == 0, done.stderr
    held = members(world.folder / "b.tar.gz")
    assert "no daemon" in json.loads(held["status.json"][1])["error"]
    assert Path("/proc/version").exists()
    assert json.loads(held["platform.json"][1])["system"] == "Linux"
