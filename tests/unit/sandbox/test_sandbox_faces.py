"""Faces: found by module name, and routed to by path."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest

import agentd.sandbox
from agentd.errors import UsageError
from agentd.sandbox import Answer, Call, Emulation, Face, Totals, face_names, load_face
from agentd.sandbox.faults import PASS, parse_fault
from agentd.sandbox.inspection import inspect


class ToySwitches(msgspec.Struct, frozen=True):
    polite: bool = True


class Toy:
    """A platform as unlike AgentOS as a face may be: another key header, another idempotency, bare errors, no events."""

    name = "toy"
    prefixes = ("/v1/", "/v2/")

    def __init__(self) -> None:
        self.switches: msgspec.Struct = ToySwitches()
        self.reset()

    def reset(self):
        self.intents = {}

    def presented_key(self, headers):
        return headers.get("X-API-Key", "")

    def idempotency_key(self, call):
        return msgspec.json.decode(call.body).get("requestId", "") if call.body else ""

    def answer(self, call):
        self.intents["intent 1"] = msgspec.json.decode(call.body)
        return Answer(202, b"{}")

    def refuse(self, status, message):
        return Answer(status, message.encode(), "text/plain")

    def totals(self):
        return Totals(runs=len(self.intents))

    def runs(self, limit=None, offset=0):
        return [{"id": key, "amount": intent["amount"]} for key, intent in self.intents.items()][offset:limit]

    def run(self, key, limit=None, offset=0):
        return {"id": key, **self.intents[key]} if key in self.intents else None


@pytest.mark.parametrize("name", face_names())
def test_every_module_that_is_no_equipment_is_a_platform(name):
    """The word in the configuration is the module's name, and each such module has a face of that name."""
    face = load_face(name)
    assert face.name == name
    assert all(prefix.startswith("/") for prefix in face.prefixes)
    assert face.totals().runs == 0


@pytest.mark.parametrize("name", ["", "server", "faults", "nosuch", "../agentos", "agentos.x", "_agentos_bodies", "os"])
def test_what_is_no_platform_is_refused(name):
    """An unknown name is refused with the list of those there are; nothing outside the folder can be loaded."""
    with pytest.raises(UsageError, match="agentos"):
        load_face(name)


def test_agentos_is_there():
    """The first platform."""
    assert "agentos" in face_names()


def test_a_text_is_no_list():
    """`faces="agentos"` and `api_keys="secret"` are mistakes: they would be read letter by letter."""
    for wrong in ({"faces": "agentos"}, {"api_keys": "secret"}, {"faces": ()}):
        with pytest.raises(UsageError):
            Emulation(**wrong)


def test_routing():
    """A path belongs to the face named by its first segment, else to the one that claims it, else to the first."""
    emulation = Emulation()
    face = emulation.faces["agentos"]
    assert emulation.route("/agentos/api/ingest/v1/events") == (face, "/api/ingest/v1/events")
    assert emulation.route("/api/ingest/v1/events") == (face, "/api/ingest/v1/events")
    assert emulation.route("/else/where") == (face, "/else/where")
    assert emulation.route("/") == (face, "/")


@pytest.fixture
def emulation(monkeypatch):
    monkeypatch.setattr("agentd.sandbox.emulation.load_face", lambda name: Toy() if name == "toy" else load_face(name))
    return Emulation(["agentos", "toy"])


def test_any_face_fits(emulation):
    """Routing, keys, faults, switches, books and pages work for a platform that has nothing in common with the first."""
    toy: Face
    toy, path = emulation.route("/v2/intents")
    assert (toy.name, path) == ("toy", "/v2/intents")
    body = b'{"requestId": "r", "amount": "<1>"}'
    call = Call("POST", path, {"X-API-Key": "k"}, body)
    assert emulation.answer(toy, Call("POST", path, {"Authorization": "Bearer k"}, body), PASS).status == 401
    emulation.faults.add(parse_fault("status=503,face=toy,count=1"))
    refused = emulation.answer(toy, call, emulation.faults.decide("toy", path))
    assert (refused.status, refused.content_type) == (503, "text/plain")
    assert emulation.answer(toy, call, PASS).status == 202
    assert emulation.repeats()["r"].count == 3
    emulation.throw("toy.polite=false")
    assert emulation.switches()["toy"] == {"polite": False}
    assert emulation.runs() == [{"face": "toy", "id": "intent 1", "amount": "<1>"}]
    assert emulation.run("intent 1")["requestId"] == "r"
    for page in ("/_sandbox/", "/_sandbox/view/toy/intent%201"):
        assert b"&lt;1&gt;" in inspect(emulation, "GET", page, "", b"").body


def test_runs_of_several_faces_are_listed_in_one(emulation):
    """Limit and offset run over the faces together."""
    agentos, path = emulation.route("/agentos/api/ingest/v1/run/start")
    body = b'{"agent_id": "6f1c8f0e-3f0b-4b52-9a34-1f0f6f2f7c11"}'
    for _ in range(2):
        emulation.answer(agentos, Call("POST", path, {"Authorization": "Bearer k"}, body), PASS)
    toy, path = emulation.route("/toy/x")
    emulation.answer(toy, Call("POST", path, {"X-API-Key": "k"}, b'{"amount": 1}'), PASS)
    faces = [[row["face"] for row in emulation.runs(2, offset)] for offset in range(4)]
    assert faces == [["agentos", "agentos"], ["agentos", "toy"], ["toy"], []]


def test_the_sandbox_shares_nothing_with_the_adapters():
    """An emulator made from the adapter would share its misunderstandings: only vocabulary is imported from outside."""
    folder = Path(agentd.sandbox.__file__).parent
    imported = {
        name
        for path in folder.glob("*.py")
        if path.name not in {"demo.py", "demo_governed.py"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    outside = {name for name in imported if name.startswith("agentd") and not name.startswith("agentd.sandbox")}
    assert outside <= {"agentd.errors", "agentd.units"}
