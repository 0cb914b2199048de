"""What the gate room's tests share: a keeper over a real spool in memory, a scripted platform, and time that only passes when all wait.

`WarpLoop` never sleeps: when nothing is left to do it moves its clock to the next timer. So deadlines, polls and pauses are
tested at their real lengths, in no time and with no race.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import selectors
import tempfile
from concurrent.futures import Executor, Future
from pathlib import Path

import msgspec

from agentd.delivery.backoff import Backoff
from agentd.exchange import Lost, Request, Response, Unencodable
from agentd.gate.breaker import Breaker
from agentd.gate.desk import Desk
from agentd.gate.keeper import Keeper
from agentd.gating import Ruling, Traits, Word
from agentd.intake import Grant, Peer
from agentd.intake.admit import Limits as AdmitLimits
from agentd.queued import DEAD, KNOWN, Ref
from agentd.spool import journal as journals
from agentd.spool.gates import GateShelf
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.spool.tables import Table
from agentd.testing import MemoryStore

EPOCH_S = 1_767_225_600  # 2026-01-01
DAY_S = 86_400.0
ME = Peer(1000, 1000, 42)
OTHER = Peer(1001, 1001, 43)
ROOT = Peer(0, 0, 1)


class _Warp(selectors.DefaultSelector):
    now = 1000.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        if not found:
            self.now += max(timeout, 0)
        return found


class WarpLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._warp = _Warp()
        super().__init__(self._warp)

    def time(self):
        return self._warp.now


async def elapse(seconds):
    """So much time passes on the loop's own clock, and none for whoever waits for the test."""
    await asyncio.sleep(seconds)


def warped(test):
    """Run an async test on a `WarpLoop`."""

    @functools.wraps(test)
    def run(*arguments, **named):
        with asyncio.Runner(debug=True, loop_factory=WarpLoop) as runner:
            return runner.run(test(*arguments, **named))

    run.__signature__ = inspect.signature(test)
    del run.__wrapped__  # it is no coroutine any more
    return run


class Immediate(Executor):
    """Runs a job when it is given."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


# -- the platform ------------------------------------------------------------------------------------------------------


def says(word="allow", status=200, platform_id="p-1", **facts):
    """An answer of the scripted platform; see `ScriptedGate.rule`."""
    body = {"word": word, "id": platform_id, **facts}
    return Response(status, {}, json.dumps(body).encode())


def late(seconds, answer):
    """The answer, after a while."""
    return seconds, answer


HANGS = late(10**9, None)
CUT = Lost("connection closed before the answer", sent=True)
DOWN = Lost("no connection to platform:443: Connection refused", sent=False)


class ScriptedGate:
    """Says what the answer's JSON says: `word`, `id`, `final`, `acted`, `again_s`."""

    def __init__(self, **traits):
        self.traits = Traits(**({"call": "act", "introduces": "action", "id_field": "action_id"} | traits))
        self.needs = ()

    def references(self, question):
        return self.needs

    def ask(self, question, context):
        if b'"unfit"' in b"".join(map(bytes, question.request.values())):
            raise Unencodable("$.request.what: unfit")
        run = context.resolve("run", question.run_id) if question.run_id else None
        sent = {"run": run, "agent": context.agent(question.agent), "request": question.request}
        return Request("/act", msgspec.json.encode(sent))

    def rule(self, question, answer, attempt):
        if isinstance(answer, Lost):
            return Ruling(Word.UNAVAILABLE, answer.reason, acted=answer.sent)
        said = json.loads(answer.body)
        refused = answer.status in (401, 402, 403, 429)
        return Ruling(
            Word(said["word"]), said.get("reason", f"status {answer.status}"), said["id"], said.get("final", True),
            said.get("acted", not refused), said.get("again_s"),
        )  # fmt: skip

    def follow(self, question, platform_id, context):
        return Request(f"/act/{platform_id}", b"", method="GET")

    def rule_followed(self, question, answer, attempt):
        if isinstance(answer, Lost) or answer.status >= 400:
            return Ruling(Word.PENDING, "not heard", final=False)
        return self.rule(question, answer, attempt)


class GuardedGate(ScriptedGate):
    """The same behind a kill switch."""

    def guard(self):
        return Request("/switch", b"", method="GET")

    def rule_guard(self, answer, attempt):
        if isinstance(answer, Lost):
            return Ruling(Word.UNAVAILABLE, f"kill switch: {answer.reason}", acted=False)
        said = json.loads(answer.body)
        return None if said["word"] == "allow" else Ruling(Word(said["word"]), "kill switch", acted=False)


class ScriptedWay:
    """Each request takes the next step of the script, then `then` for all that follow: an answer, or `late(seconds, answer)`."""

    def __init__(self, *script, then=None):
        self.script = list(script)
        self.then = says() if then is None else then
        self.sent = []
        self.unreachable = False

    async def send(self, request, headers, *, timeout_s=None, limit=0):
        self.sent.append((request, dict(headers), timeout_s))
        step = self.script.pop(0) if self.script else self.then
        seconds, answer = step if isinstance(step, tuple) else (0.0, step)
        if timeout_s is not None and seconds >= timeout_s:
            await asyncio.sleep(timeout_s)
            return Lost("no answer in time", sent=True)
        await asyncio.sleep(seconds)
        self.unreachable = isinstance(answer, Lost) and not answer.sent
        return answer

    @property
    def paths(self):
        return [request.path for request, _, _ in self.sent]


class PlainPlatform:
    name = "scripted"

    def headers(self, sending):
        return {"authorization": sending.api_key, "idempotency-key": sending.idempotency_key}


# -- the room ----------------------------------------------------------------------------------------------------------


class Room:
    """A keeper and all that it needs. `crash` ends everything as kill -9 does and starts again over what was committed."""

    def __init__(self, folder, *, gates=None, way=None, ways=None, **settings):
        self.folder = folder
        self.gates = gates or {"act": ScriptedGate()}
        self.ways = ways or {"cloud": way or ScriptedWay()}
        self.settings = settings
        self.store = MemoryStore()
        self.identity = "scripted"
        self.events = []
        self.keeper = self.spool = None

    @property
    def way(self):
        return self.ways["cloud"]

    def wall_us(self):
        return round((EPOCH_S + asyncio.get_running_loop().time()) * 1e6)

    async def open(self, *, start=True):
        loop = asyncio.get_running_loop()
        limits = Limits(dict.fromkeys(self.ways, 10**7), 2**30, 10**6, 10**6, 10**6, 10)
        self.spool = await open_spool(
            self.folder, sync="full", limits=limits, identities=dict.fromkeys(self.ways, "scripted"),
            journal=Journal(10**15, 10**9), now_us=self.wall_us, opener=lambda *_: self.store, thread=Immediate(),
        )  # fmt: skip
        self.spool.start()
        options = {
            "reference_wait_s": 2.0, "remember_s": DAY_S, "follow_s": DAY_S, "open_bytes": 2**24, "index_bytes": 2**24,
            "trusted_uids": {0}, **{k: v for k, v in self.settings.items() if k not in DESK},
        }  # fmt: skip
        desk = {k: v for k, v in self.settings.items() if k in DESK}
        self.keeper = Keeper(
            [
                Desk(name, PlainPlatform(), self.gates, way, Breaker(Backoff(1.0, 60.0)), "secret", identity=self.identity, **desk)
                for name, way in self.ways.items()
            ],
            GateShelf(self.spool, self.settings.get("redactor")),
            AdmitLimits(2**20, 64),
            announce=lambda gate, payload: self.events.append((gate.run_id, payload)),
            clock=loop.time,
            now_us=self.wall_us,
            share=lambda: 1.0,
            **options,
        )  # fmt: skip
        if start:
            await self.keeper.start()
        return self

    async def kill(self):
        tasks = [flow.task for flow in self.keeper._register.flows.values() if flow.task is not None]
        tasks.append(self.spool._committer._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.spool._loader.close()
        await self.spool._storage.close()
        self.spool.folder.close()

    async def crash(self):
        await self.kill()
        self.store = self.store.crash()
        return await self.open()

    async def ask(self, gate="act", request=None, *, peer=ME, grant=None, **fields):
        body = {"gate": gate, "request": {"what": "x"} if request is None else request, **fields}
        shown = await self.keeper.ask(json.dumps(body).encode(), peer, grant or Grant())
        return json.loads(msgspec.json.encode(shown))

    def begin(self, *arguments, **named):
        """The same, under way."""
        return asyncio.create_task(self.ask(*arguments, **named))

    async def look(self, gate_id, wait_s=0.0, viewer=ME, *, admin=False):
        return await self.keeper.look(gate_id, wait_s, viewer, admin=admin)

    async def resolve(self, gate_id, verdict, **more):
        return await self.keeper.resolve(gate_id, json.dumps({"verdict": verdict, **more}).encode(), ROOT)

    def row(self, gate_id):
        """What the disk says of a gate."""
        from agentd.spool.gaterows import decode
        from agentd.spool.store import row_of

        found = [decode(row_of(key), value) for key, value in self.store.rows(Table.GATE)]
        return next((gate for gate in found if gate.gate_id == gate_id), None)

    def notes(self, gate_id=None):
        """The journal's entries of a gate: (state, cause)."""
        return [(note.state.value, note.cause) for note in self.journal(gate_id)]

    def journal(self, gate_id=None):
        """The same whole."""
        rows = [note for _, value in self.store.rows(Table.JOURNAL) for note in journals.decode(value)]
        return [note for note in rows if gate_id is None or note.lane == f"gate:{gate_id}"]

    def ref(self, local_id, kind="action", destination="cloud"):
        return self.spool.refs.get(destination, kind, local_id)

    def run(self, run_id="r", state="introduced", agent="", uid=1000, platform_id=None):
        """A run that was begun."""
        self.spool.refs.put(Ref("cloud", "run", run_id, agent, uid, 1, state, platform_id, lane=f"run:{run_id}"))

    def named(self, run_id="r", platform_id="p-run"):
        """The platform has named a run."""
        self.spool.refs.learn("cloud", "run", run_id, platform_id, self.wall_us())
        self.spool.tell_named()


DESK = {"default_agent", "takes_agent", "takes_events", "open_mode", "agent_of", "options"}


@contextlib.asynccontextmanager
async def opened(**settings):
    """A room for one test."""
    with tempfile.TemporaryDirectory() as folder:
        room = await Room(Path(folder) / "state", **settings).open()
        try:
            yield room
        finally:
            await room.kill()


__all__ = ["CUT", "DEAD", "DOWN", "HANGS", "KNOWN", "ME", "OTHER", "ROOT", "late", "opened", "says", "warped"]
