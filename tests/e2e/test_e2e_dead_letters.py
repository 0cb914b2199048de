"""Dead letters of the real daemon: listed, shown, replayed, exported and purged by the command line, also when it does not run."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import sys
import uuid

import pytest
from harness import AGENT, Frames, Lines, clean_environment, http_call, wait_for

from agentd.spool import journal as journals
from agentd.spool.look import look
from agentd.spool.tables import Table

FACES = ("agentos", "decisionos")
START = "/api/ingest/v1/run/start"
MALLORY = 65534
DECIDER = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the agent that the emulated workspace has
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def daemon_of(world, **sections):
    """A destination each for runs and for decisions."""
    agentos = {"base_url": f"{world.platform.url}/agentos"}
    decisionos = {
        "platform": "decisionos", "base_url": f"{world.platform.url}/decisionos", "agent_id": DECIDER, "api_key": {"env": "KEY"},
    }  # fmt: skip
    return world.daemon(**{"destination": agentos, "destinations.decisionos": decisionos} | sections)


def verb(world, daemon, *arguments, code=0):
    """`agentd dead-letters …`: its standard output."""
    done = world.cli("--config", str(daemon.config), "dead-letters", *arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


def listed(world, daemon, *filters):
    return json.loads(verb(world, daemon, "list", "--json", "--limit", "1000", *filters))


def dead_run(world, daemon, run, events=5):
    """A run whose start the platform refuses, and all of it is dead; the ids in their order."""
    world.platform.refuse(f'"external_run_id":"{run}"', 400)
    records = [record | {"id": str(uuid.uuid4())} for record in world.ledger.whole_run(run, events)]
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, records) == {}
    daemon.drained()
    return [record["id"] for record in records]


def posts(world, path):
    """(key, status) of each request to a path, the oldest first."""
    found = [(line.idempotency_key, line.status) for line in world.platform.requests() if line.path == path]
    return found[::-1]


def notes_of(daemon):
    """The journal of a daemon, running or not."""
    with look(daemon.state, 0) as found:
        return [note for _, value in found.store.rows(Table.JOURNAL) for note in journals.decode(value)]


# -- replay ------------------------------------------------------------------------------------------------------------------


def test_a_mended_platform_gets_the_whole_run(world):
    """Section 2: a refused run.start carries its run with it and replays with it: same ids, same key, the old order."""
    daemon = daemon_of(world)
    ids = dead_run(world, daemon, "r")
    assert [letter["id"] for letter in reversed(listed(world, daemon))] == ids
    assert {letter["cause"] for letter in listed(world, daemon)} == {"rejected", "introducer_dead"}
    shown = verb(world, daemon, "show", ids[0])
    assert ("carries      6 others" in shown, "400" in shown, f'"id": "{ids[0]}"' in shown) == (True, True, True)
    assert verb(world, daemon, "replay", ids[1], code=1).splitlines() == [
        "0 dead letters replayed",
        "1 left: the run.start or decision that it needs is dead: replay that one, and it will come along",
    ]
    world.platform.forgive()
    assert verb(world, daemon, "replay", ids[0]) == "7 dead letters replayed\n"
    books = daemon.drained()
    assert (books["delivered"], books["dead"], books["purged"]) == (7, 0, 0)
    run = world.platform.run("r")
    assert [event["payload"]["agentd_id"] for event in run["events"]] == ids[1:6]
    assert run["status"] == "completed"
    assert posts(world, START) == [(ids[0], 400), (ids[0], 200)]
    assert listed(world, daemon) == []


def test_a_replay_is_on_record_and_outlives_a_kill(world):
    """Promises 1 and 9: what was replayed is queued after a kill -9, and the journal says who asked for it."""
    daemon = daemon_of(world)
    ids = dead_run(world, daemon, "r", events=20)
    world.platform.down()
    assert verb(world, daemon, "replay", "--run", "r") == "22 dead letters replayed\n"
    daemon.kill()
    daemon.start()
    assert daemon.balanced()["queued"] == 22
    assert daemon.balanced()["dead"] == 0
    world.platform.forgive()
    world.platform.up()
    assert daemon.drained()["delivered"] == 22
    steps = [(str(n.state), n.cause, n.by) for n in notes_of(daemon) if str(uuid.UUID(bytes=n.record_id)) == ids[0]]
    assert steps == [
        ("queued", "", -1),
        ("dead", "rejected", -1),
        ("queued", "replayed", os.getuid()),
        ("delivered", "", -1),
    ]


def test_an_unknown_outcome_needs_force(world):
    """Promise 5: what may have acted is replayed by `--force` alone, under the same key, so that the platform holds it once."""
    daemon = daemon_of(world)
    world.platform.ask(lambda: world.platform.sandbox.throw("decisionos.replayed_status=409"))
    world.platform.faults("cut,face=decisionos,count=1")
    decision = {"kind": "decision", "id": str(uuid.uuid4()), "decision_id": "d", "context": "c"}
    snapshot = {"kind": "snapshot", "decision_id": "d", "snapshot": {"n": 1}}
    with Frames(daemon) as client:
        assert client.ask([decision, snapshot])["accepted"] == 2
    assert daemon.drained(destination="decisionos")["causes"]["dead"] == {"outcome_unknown": 1, "introducer_dead": 1}
    out = verb(world, daemon, "replay", "--all", code=1).splitlines()
    assert out[0] == "0 dead letters replayed"
    assert "1 left: the platform may have acted on it already: look there first, then say --force" in out
    world.platform.ask(lambda: world.platform.sandbox.throw("decisionos.replayed_status=200"))
    assert verb(world, daemon, "replay", decision["id"], "--force") == "2 dead letters replayed\n"
    assert daemon.drained(destination="decisionos")["delivered"] == 2
    face = world.platform.faces["decisionos"]
    rows = world.platform.ask(lambda: [face.run(row["id"]) for row in face.runs(10)])
    assert [row["sent"]["requestId"] for row in rows] == [decision["id"]]


def test_replayed_from_afar_nothing_is_missed(world):
    """HTTP says the same: 400 for a choice of nothing, and JSON for what became of it."""
    daemon = daemon_of(world)
    ids = dead_run(world, daemon, "r", events=2)
    status, answer = http_call(daemon.socket, "POST", "/v1/dead-letters/replay", b"{}")
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    world.platform.forgive()
    body = json.dumps({"ids": [ids[0]]}).encode()
    assert http_call(daemon.socket, "POST", "/v1/dead-letters/replay", body) == (200, {"replayed": 4, "left": {}})
    assert daemon.drained()["delivered"] == 4


# -- purge -------------------------------------------------------------------------------------------------------------------


def test_a_purge_leaves_its_trail(world):
    """Promise 9: who, when, why and the digest of each stay in the journal; the books say purged."""
    daemon = daemon_of(world)
    decisions = [{"kind": "decision", "id": str(uuid.uuid4()), "context": f"c{n}"} for n in range(3)]
    world.platform.faults("status=400,face=decisionos")
    with Frames(daemon) as client:
        assert client.ask(decisions)["accepted"] == 3
    daemon.drained(destination="decisionos")
    exported = [json.loads(line) for line in verb(world, daemon, "export").splitlines()]
    assert [letter["record"] for letter in exported] == decisions
    assert verb(world, daemon, "purge", "--all", code=2) == ""
    assert verb(world, daemon, "purge", decisions[0]["id"], "--reason", "ticket 17") == "1 dead letter purged\n"
    assert (
        verb(world, daemon, "purge", "--cause", "rejected", "--reason", "the rest of it") == "2 dead letters purged\n"
    )
    assert daemon.balanced("decisionos")["causes"] == {"purged": {"dropped": 3}}
    daemon.kill()
    daemon.start()
    assert daemon.balanced("decisionos")["purged"] == 3
    trail = [note for note in notes_of(daemon) if note.state == "purged"]
    assert [(note.by, note.reason) for note in trail] == [
        (os.getuid(), "ticket 17"),
        *[(os.getuid(), "the rest of it")] * 2,
    ]
    assert [note.sha256.hex() for note in trail] == [letter["sha256"] for letter in exported]
    assert listed(world, daemon) == []


def test_a_full_room_pauses_and_room_ends_the_pause(world):
    """Promise 5: full dead letters pause the destination, everything is kept; after a purge it goes on by itself, and at once."""
    daemon = daemon_of(world, dead_letters={"max_bytes": "4KiB"}, batch={"max_events": 1})
    daemon.expected = {"paused"}
    world.platform.faults("status=400,face=decisionos")
    decisions = [{"kind": "decision", "id": str(uuid.uuid4()), "context": "x" * 500} for _ in range(10)]
    with Frames(daemon) as client:
        assert client.ask(decisions)["accepted"] == 10
    books = wait_for(lambda: (b := daemon.books("decisionos"))["state"] == "paused" and b, 10)
    assert "the dead letters are full" in books["reason"]
    assert books["dead"] + books["queued"] == 10
    assert 0 < books["dead"] < 10
    dead = books["dead"]
    while dead < 10:
        assert "purged" in verb(world, daemon, "purge", "--destination", "decisionos", "--reason", "room")
        purged = daemon.books("decisionos")["purged"]
        wait_for(
            lambda at=purged: (
                daemon.books("decisionos")["dead"] + at > at
                and (daemon.books("decisionos")["state"] == "paused" or not daemon.books("decisionos")["queued"])
            ),
            8,  # the probe alone would come after 30 s
            lambda: daemon.books("decisionos"),
        )
        dead = daemon.books("decisionos")["dead"] + purged
    assert daemon.drained(destination="decisionos")["state"] == "ok"


# -- refused as invalid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["frames", "lines", "http"])
def test_an_invalid_decision_is_kept(world, way):
    """Promise 8: refused to its sender as ever, kept as it was sent once, shown, judged anew, and left where nothing has changed."""
    daemon = daemon_of(world)
    bad = {"kind": "decision", "contxt": "c", "parameters": {"amount": 1}}
    said = "$.contxt: unknown field of decision; did you mean context?"
    for _ in range(3):
        if way == "http":
            status, answer = http_call(daemon.socket, "POST", "/v1/records", json.dumps(bad).encode())
            assert status == 422
        else:
            with (Frames if way == "frames" else Lines)(daemon) as client:
                answer = client.ask([bad])
        assert [refused["error"] for refused in answer["rejected"]] == [said]
        (letter,) = listed(world, daemon)  # on disk by then, and once
    assert (letter["cause"], letter["destination"], letter["record"], letter["origin"]) == ("invalid", None, bad, way)
    assert (letter["reason"], letter["uid"]) == (said, os.getuid())
    daemon.kill()
    daemon.start()
    assert listed(world, daemon) == [letter]
    assert f"reason       {said}" in verb(world, daemon, "show", letter["id"])
    assert verb(world, daemon, "replay", "--all", code=1).splitlines() == [
        "0 dead letters replayed",
        f"1 left: refused again: {said}",
    ]
    assert listed(world, daemon, "--cause", "invalid") == [letter]
    assert daemon.status()["dead_letters"]["invalid"] == 1
    assert verb(world, daemon, "purge", letter["id"], "--reason", "seen") == "1 dead letter purged\n"
    assert daemon.status()["balanced"]


def test_an_invalid_record_that_is_right_by_now_is_taken(world):
    """After a change of the configuration, or an upgrade: it is admitted as its sender's, and its events find their run."""
    daemon = daemon_of(world, intake={"max_record_bytes": "1KiB", "reference_wait": "200ms"})
    start = world.ledger.start("r", input={"text": "x" * 2000})
    status, _ = http_call(daemon.socket, "POST", "/v1/records", json.dumps(start).encode())
    assert status == 422
    (letter,) = listed(world, daemon, "--run", "r")
    assert (letter["kind"], letter["bytes"], "(the first 1024 of" in letter["reason"]) == ("run.start", 1024, True)
    assert daemon.stop() == 0
    daemon.configure(intake={"max_record_bytes": "1MiB"})
    daemon.start()
    assert "refused again" in verb(world, daemon, "replay", "--all", code=1)  # what was cut off is gone
    deep = world.ledger.start("deep", input={"a": [[[[[1]]]]]})
    daemon.stop()
    daemon.configure(intake={"max_depth": 4})
    daemon.start()
    with Frames(daemon) as client:
        assert "nested deeper" in client.ask([deep])["rejected"][0]["error"]
    daemon.stop()
    daemon.configure(intake={"max_depth": 64})
    daemon.start()
    assert verb(world, daemon, "replay", "--run", "deep") == "1 dead letter replayed\n"
    assert daemon.drained()["delivered"] == 1
    assert world.platform.run("deep")["input"] == {"a": [[[[[1]]]]]}
    assert [one["id"] for one in listed(world, daemon)] == [letter["id"]]
    assert daemon.status()["balanced"]


# -- a daemon that does not run --------------------------------------------------------------------------------------------------


def bytes_of(daemon):
    """The digest of each file of the database."""
    files = (daemon.state / "spool").iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_stopped_daemons_letters_can_be_read(world):
    """Section 6: list, show and export say the same as the running one did, and change no byte."""
    daemon = daemon_of(world)
    ids = dead_run(world, daemon, "r")
    with Frames(daemon) as client:
        client.ask([{"kind": "decision", "contxt": 1.50}])
    asked = [
        ("list", "--json"),
        ("list", "--run", "r", "--cause", "rejected"),
        ("show", ids[0]),
        ("show", ids[0], "--json"),
        ("export",),
    ]
    running = [verb(world, daemon, *arguments) for arguments in asked]
    assert daemon.stop() == 0
    before = bytes_of(daemon)
    for arguments, said in zip(asked, running, strict=True):
        done = world.cli("--config", str(daemon.config), "dead-letters", *arguments)
        assert (done.returncode, done.stdout) == (0, said)
        assert str(daemon.state) in done.stderr
    assert bytes_of(daemon) == before
    for arguments in (("replay", "--all"), ("purge", "--all", "--reason", "x")):
        done = world.cli("--config", str(daemon.config), "dead-letters", *arguments)
        assert (done.returncode, "no daemon at" in done.stderr) == (1, True)
    assert bytes_of(daemon) == before
    daemon.start()  # for the audit, which asks it


def test_a_killed_daemons_letters_can_be_read(world):
    """With what its log holds, which nobody has tidied away."""
    daemon = daemon_of(world)
    ids = dead_run(world, daemon, "r")
    daemon.kill()
    assert [letter["id"] for letter in reversed(listed(world, daemon))] == ids
    exported = verb(world, daemon, "export", "-o", str(world.folder / "letters"))
    assert exported == ""
    lines = (world.folder / "letters").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    daemon.start()


def test_an_export_can_be_handed_in_again(world):
    """`record` is what POST /v1/records takes: elsewhere, or here once the letters are purged."""
    daemon = daemon_of(world)
    decisions = [{"kind": "decision", "context": f"c{n}", "parameters": {"x": 1.5}} for n in range(3)]
    world.platform.faults("status=400,face=decisionos")
    with Frames(daemon) as client:
        client.ask(decisions)
    daemon.drained(destination="decisionos")
    records = [json.loads(line)["record"] for line in verb(world, daemon, "export").splitlines()]
    verb(world, daemon, "purge", "--all", "--reason", "handed in again")
    world.platform.faults()
    body = "\n".join(map(json.dumps, records)).encode()
    assert http_call(daemon.socket, "POST", "/v1/records", body, **{"Content-Type": "application/x-ndjson"})[0] == 202
    assert daemon.drained(destination="decisionos")["delivered"] == 3


# -- who may -------------------------------------------------------------------------------------------------------------------


def ask_as(uid, path, method, target, body=None):
    """A request over the Unix socket of somebody whom the kernel calls that."""
    link = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        link.connect(path)
    finally:
        os.seteuid(0)
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = link
    with link:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@root_only
def test_others_see_that_there_are_letters_and_no_more(world):
    """Contents, answers and reasons are for admins and for the uid that sent the record; moving them is for admins."""
    daemon = daemon_of(world, listen={"mode": "0666"})
    world.folder.chmod(0o711)
    dead_run(world, daemon, "r", events=1)
    status, _ = ask_as(MALLORY, daemon.socket, "POST", "/v1/records", b'{"kind":"decision","mine":1}')
    assert status == 422
    status, seen = ask_as(MALLORY, daemon.socket, "GET", "/v1/dead-letters")
    assert (status, len(seen)) == (200, 4)
    own = [letter for letter in seen if "record" in letter]
    assert [letter["record"] for letter in own] == [{"kind": "decision", "mine": 1}]
    assert not any({"answer", "reason", "history", "key"} & set(letter) for letter in seen if letter not in own)
    for verb_ in ("replay", "purge"):
        body = json.dumps({"all": True} | ({"reason": "x"} if verb_ == "purge" else {})).encode()
        status, answer = ask_as(MALLORY, daemon.socket, "POST", f"/v1/dead-letters/{verb_}", body)
        assert (status, answer["error"]["code"]) == (403, "forbidden")
    assert len(listed(world, daemon)) == 4
    world.platform.forgive()
    verb(world, daemon, "replay", "--destination", "agentos")


@root_only
def test_a_replay_gives_nobody_more_than_he_had(world):
    """A stranger's refused record is judged as the stranger's, whoever has it judged."""
    daemon = daemon_of(world, listen={"mode": "0666"}, intake={"max_depth": 4, "reference_wait": "200ms"})
    world.folder.chmod(0o711)
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, [world.ledger.start("r")]) == {}
    deep = json.dumps(
        {"kind": "task", "run_id": "r", "task_id": "t", "name": "n", "status": "running", "input": [[[[[1]]]]]}
    ).encode()
    assert ask_as(MALLORY, daemon.socket, "POST", "/v1/records", deep)[0] == 422
    daemon.drained()
    daemon.stop()
    daemon.configure(intake={"max_depth": 64})
    daemon.start()
    said = verb(world, daemon, "replay", "--all", code=1)
    assert "refused again: $.run_id: belongs to another user" in said
    assert world.platform.run("r")["tasks"] == []


def test_a_sidecars_command_moves_nothing(world):
    """It runs under the daemon's own uid, and may look; what is dead is not its to replay or to purge."""
    words = [
        "import json, os, socket, subprocess, sys",
        "link = socket.socket(socket.AF_UNIX)",
        "link.connect(os.environ['AGENTD_SOCKET'])",
        """link.sendall(b'{"seq":1,"records":[{"kind":"decision","contxt":1}]}' + bytes([10]))""",
        "assert b'unknown field' in link.recv(4096)",
        "run = lambda *a: subprocess.run([sys.executable, '-m', 'agentd', *a], capture_output=True, text=True)",
        "for a in (['list', '--json'], ['replay', '--all'], ['purge', '--all', '--reason', 'x']):",
        "    done = run('dead-letters', *a)",
        "    print(json.dumps([done.returncode, done.stdout, done.stderr]))",
    ]
    environment = {
        "AGENTOS_API_KEY": "aos_x", "AGENTOS_AGENT_ID": AGENT, "AGENTOS_BASE_URL": f"{world.platform.url}/agentos",
        "DECISION_OS_API_KEY": "x", "DECISION_OS_AGENT_ID": AGENT, "XDG_STATE_HOME": str(world.folder / "side"),
    }  # fmt: skip
    done = world.cli("sidecar", "--", sys.executable, "-c", "\n".join(words), **environment)
    assert done.returncode == 0, done.stderr
    looked, replayed, purged = map(json.loads, done.stdout.splitlines())
    assert (looked[0], [letter["cause"] for letter in json.loads(looked[1])]) == (0, ["invalid"])
    assert (replayed[0], "within a sidecar for nobody" in replayed[2]) == (1, True)
    assert (purged[0], "within a sidecar for nobody" in purged[2]) == (1, True)
    assert clean_environment(world.folder)["HOME"] == str(world.folder)
