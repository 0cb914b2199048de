"""A newer agentd opens what an older one left behind (promises 1, 4, 8), and nobody opens what is too new for him."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import upgrade_kit as kit
from harness import Frames, World, http_call

from agentd.spool import journal
from agentd.spool.store import key_of
from agentd.spool.tables import FORMAT, Table, decode_meta, encode_meta

DATA = Path(__file__).parent.parent / "data"
LEFT = ("stopped", "killed")
_META = key_of(Table.META, 0)


class Left:
    """An archive, unpacked where today's daemon looks for its state, and the platforms as they were."""

    def __init__(self, how: str) -> None:
        self.world = kit.world()
        state, taken, self.told = kit.unpack(DATA / f"spool-format-1-{how}.tar.xz", self.world.folder)
        self.daemon = kit.daemon_of(self.world)
        self.daemon.expected = {"paused"}
        shutil.move(state, self.daemon.state)
        self.world.platform.ask(lambda: self.world.platform.sandbox.throw("aegis.decision_delay=1h"))
        kit.replay(self.world.platform, taken)
        runs = self.told["runs"]
        self.world.ledger.starts |= set(runs["starts"])
        self.world.ledger.ends |= runs["ends"]
        self.world.ledger.events |= {run: set(numbers) for run, numbers in runs["events"].items()}
        self.world.doubles = True  # the batch that it took without being heard
        self.mine = os.geteuid() == self.told["uid"]  # keys, ids and streams belong to a uid


@pytest.fixture
def left(request):
    """Afterwards all is delivered, in order and under its old keys, or the log is shown."""
    left = Left(request.param)
    with contextlib.closing(left.world):
        try:
            yield left
            left.world.finish()
        except BaseException:
            print(left.daemon.tail(60))  # noqa: T201 - pytest shows it with the failure
            raise


@pytest.mark.parametrize("left", LEFT, indirect=True)
def test_everything_that_an_older_agentd_left_is_delivered(left):
    """Promises 1, 2, 4, 8: once, in order, what was tried under its old key with the same bytes, and the books go on."""
    world, daemon, told = left.world, left.daemon.start(), left.told
    for name, before in told["books"].items():
        books = daemon.drained(destination=name)
        ended = {end: books[end] for end in ("admitted", "delivered", "dead", "shed", "purged", "quarantined")}
        assert ended == {
            **{end: before[end] for end in ended},
            "delivered": before["delivered"] + before["queued"],
        }, name
    again = world.platform.repeats()[told["lost"]["key"]]
    assert (again.count, again.same_body) == (2, True)
    assert [event["payload"]["n"] for event in world.platform.run("a")["events"]] == list(range(21))
    decided = world.platform.state().faces["decisionos"]
    assert (decided["runs"], decided["events"]) == (2, 2)


@pytest.mark.parametrize("left", LEFT, indirect=True)
def test_what_was_said_and_answered_still_holds(left):
    """Promises 4, 8, §4: dead letters can be read, an id is known again, a key has its verdict, what is pending is followed."""
    world, daemon, told = left.world, left.daemon.start(), left.told
    found = {letter["id"]: letter for letter in daemon.dead_letters()}
    assert found.keys() == {letter["id"] for letter in told["letters"]}
    for letter in told["letters"]:
        assert {name: found[letter["id"]][name] for name in letter} == letter
    if left.mine:
        before = daemon.balanced()["admitted"]
        assert http_call(daemon.socket, "POST", "/v1/records", json.dumps(told["asked_once"]).encode())[0] == 202
        assert daemon.balanced()["admitted"] == before
        _gates_hold(world, daemon, told["gates"])


def _gates_hold(world: World, daemon, gates) -> None:
    def ask(name, **changed):
        question = {"gate": "intent", "request": kit.SPEND | changed, "key": f"k-{name}", "deadline": 0.7}
        return http_call(daemon.socket, "POST", "/v1/gate", json.dumps(question).encode())

    assert ask("final") == (200, gates["final"] | {"repeated": True})
    assert ask("final", amount=6)[0] == 409
    pending = gates["pending"]
    said = world.platform.ask(lambda: world.platform.sandbox._emulation.act("aegis", pending["platform_id"], "approve"))
    assert said.status == 200
    status, heard = http_call(daemon.socket, "GET", f"/v1/gates/{pending['gate_id']}?wait=20")
    assert (status, heard["verdict"], heard["final"]) == (200, "allow", True)
    assert len(world.platform.ask(world.platform.faces["aegis"].runs)) == 2


@pytest.mark.parametrize("left", LEFT, indirect=True)
def test_a_client_goes_on_with_its_stream(left):
    """§1: what was answered before the upgrade is answered from there, and nothing of it is stored twice."""
    if not left.mine:
        pytest.skip("a stream belongs to the uid that opened it, and these were root's")
    daemon = left.daemon.start()
    before = daemon.balanced()["admitted"]
    with Frames(daemon) as client:
        assert client.hello(kit.STREAM)["last_seq"] == 7
        for one in left.told["stream"]:
            client.send(one["envelope"])
            assert client.receive() == one["answer"]
    assert daemon.balanced()["admitted"] == before


@pytest.mark.parametrize("left", LEFT, indirect=True)
def test_the_journal_goes_on_without_a_gap(left):
    """Promise 9: entries of before and after an upgrade have one row of numbers, and a spool once opened is of today's format."""
    daemon = left.daemon.start()
    daemon.drained()
    daemon.kill()
    daemon.start()
    daemon.drained()
    assert daemon.stop() == 0
    with contextlib.closing(sqlite3.connect(daemon.state / "spool" / "cache.db")) as database:
        rows = "SELECT value FROM Cache WHERE key BETWEEN ? AND ? ORDER BY key"
        found = database.execute(rows, (key_of(Table.JOURNAL, 0), key_of(Table.JOURNAL, 2**40))).fetchall()
        (meta,) = database.execute("SELECT value FROM Cache WHERE key = ?", (_META,)).fetchone()
    numbers = [note.number for (value,) in found for note in journal.decode(value)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert (decode_meta(meta).format, decode_meta(meta).journal_number) == (FORMAT, len(numbers) + 1)


# -- too new -------------------------------------------------------------------------------------------------------------


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_spool_of_a_newer_agentd_is_not_touched(world):
    """Promise 1: exit code 1 and a sentence that says what to do; every byte stays as it was, and the newer one goes on with it."""
    daemon = world.daemon(shutdown={"drain_timeout": "100ms"})
    world.platform.down()
    with Frames(daemon) as client:
        assert client.deliver(world.ledger, world.ledger.whole_run("r", 20)) == {}
    assert daemon.stop() == 0
    database = daemon.state / "spool" / "cache.db"
    log = daemon.log.read_bytes()
    with _of_the_next_format(database):
        before = _digests(daemon.state)
        for _ in range(2):
            daemon.spawn()
            assert daemon.wait() == 1
            (said,) = daemon.log.read_bytes()[len(log) :].decode().splitlines()
            assert f"format {FORMAT + 1}, this agentd knows {FORMAT}" in said
            assert "start the newer agentd" in said
            assert _digests(daemon.state) == before
            daemon.log.write_bytes(log)
    world.platform.up()
    daemon.start()
    assert daemon.drained()["delivered"] == 22


@contextlib.contextmanager
def _of_the_next_format(path: Path):
    """The spool as a later agentd would have written it."""

    def write(value: bytes) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE Cache SET value = ? WHERE key = ?", (value, _META))
            database.commit()

    with contextlib.closing(sqlite3.connect(path)) as database:
        (value,) = database.execute("SELECT value FROM Cache WHERE key = ?", (_META,)).fetchone()
    meta = decode_meta(value)
    meta.format = FORMAT + 1
    write(encode_meta(meta))
    yield
    write(value)
