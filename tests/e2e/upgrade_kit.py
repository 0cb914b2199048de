"""A spool as an older agentd left it, and the platform as that agentd knew it: made by `tests/data/make_spool.py`, opened by the tests.

The archive holds the state folder (without `lock` and `ballast`), and beside it `platform.json`: what the platforms had taken by
then, each request with the ids that it was given, so that a fresh sandbox can be brought to the very same state; and `told.json`:
what clients had been told. A queue belongs to its platform's address, so both sides use the same one: an address of its own below
127.0.0.0/8, a port below the ephemeral ones.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import tarfile
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

from harness import AGENT, Daemon, Frames, Ledger, Platform, World, http_call, wait_for
from multidict import CIMultiDict

from agentd.sandbox import Call
from agentd.sandbox.faults import Decision

HOST, PORT = "127.83.14.41", 14417
FACES = ("agentos", "decisionos", "aegis")
EVENTS = "/api/ingest/v1/events"
SPEND = {"amount": 5, "currency": "USD", "reason": "office supplies"}
STREAM = "6f1ed002-ab5d-4c3f-8f0e-0d9f3f3a7c11"
ASKED_ONCE = "5f0c7a52-2df4-4c6e-9a3c-1f2b3c4d5e6f"  # an id of a client's own
_LEDGERS = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))  # the agent that the sandbox's Decision OS knows
_KEPT_HEADERS = ("authorization", "x-api-key", "content-type", "idempotency-key", "x-idempotency-key")
_LEFT_OUT = ("lock", "ballast")


def world(**options: Any) -> World:
    """The platforms at the address that the spool's identities name. Another test that holds it is waited for."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return World(FACES, host=HOST, port=PORT, **options)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def daemon_of(world: World, **sections: Any) -> Daemon:
    """The daemon that the spool was made with, and those that open it. Age is no matter here: an archive grows old."""
    url = world.platform.url
    destinations = {
        f"destinations.{name}": {
            "platform": name, "base_url": f"{url}/{name}", "api_key": {"env": "KEY"},
            "agent_id": _LEDGERS if name == "decisionos" else AGENT,
        }
        for name in FACES
    }  # fmt: skip
    return world.daemon(
        start=False, batch={"max_events": 10}, intake={"reference_wait": "300ms"}, shutdown={"drain_timeout": "500ms"},
        gate={"remember": "36500d", "follow": "36500d"}, journal={"retention": "36500d"}, **(destinations | sections),
    )  # fmt: skip


# -- the platform's memory ---------------------------------------------------------------------------------------------


def watch(platform: Platform) -> list[dict[str, Any]]:
    """Note from now on what the platforms take, with the ids that each request was given."""
    taken: list[dict[str, Any]] = []
    ids: list[str] = []
    real, emulation = uuid.uuid4, platform.sandbox._emulation

    def uuid4() -> uuid.UUID:
        made = real()
        if threading.current_thread().name == "sandbox":
            ids.append(str(made))
        return made

    def answer(face: Any, call: Call, decision: Decision) -> Any:
        ids.clear()
        said = type(emulation).answer(emulation, face, call, decision)
        if call.method == "POST" and said.status < 300:
            headers = {name: call.headers[name] for name in _KEPT_HEADERS if name in call.headers}
            taken.append({
                "face": face.name, "path": call.path, "query": call.query, "headers": headers,
                "body": base64.b64encode(call.body).decode(), "ids": list(ids),
            })  # fmt: skip
        return said

    emulation.answer = answer  # type: ignore[method-assign]
    uuid.uuid4 = uuid4  # type: ignore[assignment]  # for the rest of the process: only `make_spool` does this
    return taken


def replay(platform: Platform, taken: list[dict[str, Any]]) -> None:
    """Bring a fresh sandbox to where the noted one was."""

    def all_of_it() -> None:
        emulation = platform.sandbox._emulation
        for one in taken:
            given = deque(one["ids"])
            with mock.patch("uuid.uuid4", lambda given=given: uuid.UUID(given.popleft())):
                call = Call(
                    "POST", one["path"], CIMultiDict(one["headers"]), base64.b64decode(one["body"]), one["query"],
                    emulation.wall(),
                )  # fmt: skip
                assert emulation.answer(emulation.faces[one["face"]], call, Decision()).status < 300
            assert not given

    platform.ask(all_of_it)


# -- what is in it -----------------------------------------------------------------------------------------------------


def fill(world: World, daemon: Daemon) -> dict[str, Any]:
    """Something of every table, and a batch that the platform took without the daemon's hearing of it. Returns what was told."""
    ledger = world.ledger
    told: dict[str, Any] = {"uid": daemon.status()["uid"]}
    world.platform.ask(lambda: world.platform.sandbox.throw("aegis.decision_delay=0s"))
    world.platform.refuse('"bad":true', 400)
    world.platform.refuse('"external_run_id":"refused"', 422)
    with Frames(daemon) as client:
        client.hello(STREAM)
        told["stream"] = _stream(client, ledger)
        _delivered(daemon, ledger, client)
    told["asked_once"] = _asked_once(daemon, ledger)
    told["gates"] = _gates(world, daemon)
    _away(world, daemon, ledger)
    told["letters"] = daemon.dead_letters()
    told["books"] = {name: daemon.balanced(name) for name in FACES}
    told["runs"] = {
        "starts": sorted(ledger.starts), "ends": ledger.ends, "events": {run: sorted(n) for run, n in ledger.events.items()}
    }  # fmt: skip
    told["lost"] = _last_batch(world)
    return told


def _stream(client: Frames, ledger: Ledger) -> list[dict[str, Any]]:
    """Envelopes with their answers; the last has a refused record in it."""
    told = []
    for seq in (1, 2, 3):
        records = [ledger.start("known"), *ledger.events_of("known", 5)] if seq == 1 else ledger.events_of("known", 5)
        if seq == 3:
            records.insert(1, {"kind": "event", "run_id": "known"})
        client.send({"seq": seq, "records": records})
        answer = client.receive()
        refused = {item["index"] for item in answer.get("rejected", ())}
        ledger.took(record for index, record in enumerate(records) if index not in refused)
        told.append({"envelope": {"seq": seq, "records": records}, "answer": answer})
    return told


def _delivered(daemon: Daemon, ledger: Ledger, client: Frames) -> None:
    """What is over by the end: a run, a decision, two dead letters and what died with one of them."""
    bad = {"kind": "event", "run_id": "known", "type": "tool.returned", "payload": {"bad": True}}
    seq = itertools.count(4)
    for records in (
        ledger.whole_run("over", 3),
        [bad],
        [{"kind": "run.start", "run_id": "refused"}, {"kind": "run.complete", "run_id": "refused"}],
        [{"kind": "decision", "decision_id": "d-known", "context": "before", "chosen": "x"}],
    ):
        client.send({"seq": next(seq), "records": records})
        answer = client.receive()
        assert answer["accepted"] == len(records), answer
        if records[0].get("run_id") == "over":
            ledger.took(records)
    assert daemon.drained()["causes"]["dead"] == {"introducer_dead": 1, "rejected": 2}
    assert daemon.drained(destination="decisionos")["delivered"] == 1


def _asked_once(daemon: Daemon, ledger: Ledger) -> dict[str, Any]:
    """A record under an id of the client's own, told without a stream."""
    record = {**ledger.event("known"), "id": ASKED_ONCE}
    assert http_call(daemon.socket, "POST", "/v1/records", json.dumps(record).encode())[0] == 202
    ledger.took([record])
    daemon.drained()
    return record


def _gates(world: World, daemon: Daemon) -> dict[str, Any]:
    """One with its last word, and one that is pending."""
    gates = {}
    for name, delay in (("final", "0s"), ("pending", "1h")):
        world.platform.ask(lambda delay=delay: world.platform.sandbox.throw(f"aegis.decision_delay={delay}"))
        question = {"gate": "intent", "request": SPEND, "key": f"k-{name}", "deadline": 0.7}
        status, gates[name] = http_call(daemon.socket, "POST", "/v1/gate", json.dumps(question).encode())
        assert status == 200, gates
    assert (gates["final"]["verdict"], gates["pending"]["verdict"]) == ("allow", "pending")
    return gates


def _away(world: World, daemon: Daemon, ledger: Ledger) -> None:
    """The platform takes a batch, goes away before it says so, and everything after that stays here."""
    stored = world.platform.state().events
    world.platform.faults(f"latency=30s,path={EVENTS}")
    with Frames(daemon) as client:
        assert client.deliver(ledger, ledger.events_of("known", 10)) == {}
        wait_for(lambda: world.platform.state().events == stored + 10)
        world.platform.down()
        wait_for(lambda: daemon.books()["state"] == "waiting", 10, daemon.books)
        assert client.deliver(ledger, [*ledger.events_of("known", 15), ledger.end("known")]) == {}
        for run in ("a", "b"):
            assert client.deliver(ledger, [ledger.start(run)]) == {}
            for level in ("info", "debug", "warn"):
                assert client.deliver(ledger, ledger.events_of(run, 7, level=level)) == {}
            assert client.deliver(ledger, [ledger.end(run, "run.fail", error_message="no paper")]) == {}
        decisions = [
            {"kind": "snapshot", "decision_id": "d-known", "snapshot": {"of": "known"}},
            {"kind": "decision", "decision_id": "d-queued", "context": "while it was away", "chosen": "y"},
            {"kind": "snapshot", "decision_id": "d-queued", "snapshot": {"of": "queued"}},
        ]
        assert client.ask(decisions)["accepted"] == 3
    wait_for(lambda: daemon.books("decisionos")["state"] == "waiting", 10, lambda: daemon.books("decisionos"))


def _last_batch(world: World) -> dict[str, Any]:
    """The batch whose answer was lost, as the platform saw it."""
    line = next(line for line in world.platform.requests() if line.path.endswith(EVENTS) and line.size)
    return {"key": line.idempotency_key, "sha256": line.sha256}


# -- packing and unpacking -----------------------------------------------------------------------------------------------


def pack(state: Path, archive: Path, taken: list[dict[str, Any]], told: dict[str, Any]) -> None:
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(state, "state", filter=lambda info: None if Path(info.name).name in _LEFT_OUT else info)
        for name, document in (("platform.json", taken), ("told.json", told)):
            path = state.with_name(name)
            path.write_text(json.dumps(document))
            tar.add(path, name)


def unpack(archive: Path, folder: Path) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """(state folder, what the platform took, what was told)."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    state = folder / "state"
    state.chmod(0o700)
    for path in state.rglob("*"):
        with contextlib.suppress(OSError):
            path.chmod(0o700 if path.is_dir() else 0o600)
    return state, json.loads((folder / "platform.json").read_text()), json.loads((folder / "told.json").read_text())
