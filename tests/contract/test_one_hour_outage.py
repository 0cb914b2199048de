"""One destination of five is away for an hour of simulated time: real intake, spool, couriers and adapters, emulated platforms.

No socket, no disk and no sleeping: the clock is the test's, the store is in memory, and a request is a call into the emulation.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from concurrent.futures import Executor, Future

import msgspec
import pytest
from multidict import CIMultiDict

from agentd.delivery.courier import Courier
from agentd.exchange import Lost, Response
from agentd.identity import Uuid7
from agentd.intake import Peer
from agentd.intake.admit import Admission
from agentd.intake.admit import Limits as AdmitLimits
from agentd.intake.dedupe import Window
from agentd.intake.routing import Table
from agentd.intake.sink import SpoolSink
from agentd.intake.streams import Streams
from agentd.records import Record
from agentd.sandbox import Call, Emulation
from agentd.sandbox.faults import Decision
from agentd.sections import Config, Destination, Secret
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.outbox import SpoolOutbox
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.targets import Target
from agentd.testing import FakeClock, MemoryStore
from agentd.wire import Message

FACES = ("agentos", "aegis", "ascend", "decidefyi", "decisionos")
AGENT = str(uuid.uuid5(uuid.NAMESPACE_URL, "agentd:sandbox"))
PEER = Peer(1000, 1000, 1)
HOUR_S, STEP_S = 3600, 20
decode_record = msgspec.json.Decoder(Record).decode
APPROVED = {"decision": "yes", "verdict": "APPROVED", "reason_code": "ALL", "action": "approve"}
RULEBOOK = {
    "schema_version": "rulebook_v1", "rulebook_id": "discounts", "version": "1",
    "input_schema": {"required": ["n"], "properties": {"n": {"type": "number"}}},
    "rules": [{"rule_id": "all", "condition": {"field": "n", "operator": "gte", "value": 0}, "outcome": APPROVED}],
    "default_outcome": APPROVED,
}  # fmt: skip


class Immediate(Executor):
    """Runs a job when it is given."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class World:
    """Intake, spool and five couriers on one clock, and the platforms that they deliver to."""

    def __init__(self, folder):
        self.clock = FakeClock()
        self.platforms = Emulation(FACES, wall=lambda: self.clock.now_us() / 1e6)
        self.away = set()
        self.tried = Counter()
        self.folder = folder
        destinations = {
            name: Destination(name, base_url=f"http://127.0.0.1:1/{name}", api_key=Secret(env="KEY"), agent_id=AGENT)
            for name in FACES
        }
        self.config = Config(destinations=destinations)
        self.targets = {name: Target(name, self.config, {"KEY": "k"}) for name in FACES}

    async def __aenter__(self):
        limits = Limits(
            quotas=dict.fromkeys(FACES, 2**26), max_bytes=2**29, dead_bytes=2**20,
            window_bytes=2**22, directory_bytes=2**20, seen_ids=1000,
        )  # fmt: skip
        self.spool = await open_spool(
            self.folder, sync="full", limits=limits, identities={n: t.identity for n, t in self.targets.items()},
            journal=Journal(10**15, 10**9), now_us=self.clock.now_us, opener=lambda *_: MemoryStore(), thread=Immediate(),
        )  # fmt: skip
        self.spool.start()
        window, shelf = Window(1000), SpoolShelf(self.spool)
        admission = Admission(
            Table(t.route() for t in self.targets.values()), shelf, window, AdmitLimits(2**20, 64), Uuid7(), ()
        )
        self.sink = SpoolSink(
            admission, shelf, window, Streams(), max_frame_bytes=2**20, now_us=self.clock.now_us, clock=self.clock
        )
        self.couriers = {}
        for name, target in self.targets.items():
            courier = Courier(
                target.settings(), target.platform, SpoolOutbox(self.spool, name), Way(self, name),
                clock=self.clock, now_us=self.clock.now_us, share=lambda: 0.5,
            )  # fmt: skip
            self.spool.listen(name, courier.touch)
            self.couriers[name] = courier
        self.tasks = [asyncio.create_task(courier.run()) for courier in self.couriers.values()]
        return self

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.sink.close()
        await self.spool.close()

    def ask(self, name, method, path, body=None, **headers):
        """What a platform answers."""
        data = b"" if body is None else msgspec.json.encode(body) if not isinstance(body, bytes) else body
        face = self.platforms.faces[name]
        headers = CIMultiDict(
            {"x-api-key": "k", "authorization": "Bearer k", "content-type": "application/json"}, **headers
        )
        call = Call(method, path, headers, data, "", self.clock.now_us() / 1e6)
        return self.platforms.answer(face, call, Decision())

    async def admit(self, *records):
        items = [decode_record(msgspec.json.encode(record)) for record in records]
        ack = self.sink.submit(Message(None, items), PEER, stream=None, origin="frames", hold=False)
        await self.settle(ack.done)
        assert (ack.result().accepted, ack.result().rejected) == (len(records), [])

    async def advance(self, seconds):
        """Time passes in small steps, as the couriers' own timers would see it."""
        for _ in range(seconds):
            self.clock.advance(1)
            for courier in self.couriers.values():
                courier.touch(set())
            await self.settle(lambda: False, 30)

    async def settle(self, condition, turns=500):
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0)

    def queued(self):
        return {name: queue.live for name, queue in self.spool.queues.items()}


class Way:
    """The way to one platform."""

    def __init__(self, world, name):
        self.world, self.name = world, name

    async def send(self, request, headers):
        self.world.tried[self.name] += 1
        await asyncio.sleep(0)
        if self.name in self.world.away:
            return Lost("no connection to 127.0.0.1:1: connection refused", sent=False)
        said = self.world.ask(self.name, request.method, request.path, request.body, **headers, **request.headers)
        return Response(said.status, {k.lower(): v for k, v in said.headers.items()}, said.body)


def of_a_moment(world, number):
    """What five platforms are told at one moment: a run, a decision with its snapshot, an execution, an action's end."""
    context = {"inputs": {"n": number}, "requested_action": "approve", "target_system": "crm"}
    decided = world.ask(
        "decidefyi", "POST", "/api/decide", {"mode": "rulebook", "rulebook": RULEBOOK, "context": context}
    )
    wish = {
        "agent_id": AGENT,
        "agent_name": "a",
        "action_type": "query",
        "resource": "r",
        "tool_name": "t",
        "description": "d",
    }
    leave = world.ask("ascend", "POST", "/api/v1/actions/submit", wish)
    made = msgspec.json.decode(decided.body)["decision_id"]
    action = str(msgspec.json.decode(leave.body)["action_id"])
    run = f"run-{number}"
    return [
        {"kind": "run.start", "run_id": run},
        *({"kind": "event", "run_id": run, "type": f"step.{step}", "payload": {"step": step}} for step in range(3)),
        {"kind": "run.complete", "run_id": run},
        {"kind": "decision", "decision_id": f"d-{number}", "context": f"c{number}", "chosen": "x"},
        {"kind": "snapshot", "decision_id": f"d-{number}", "snapshot": {"n": number}},
        {"kind": "execution", "decision_id": made, "execution_status": "executed"},
        {"kind": "action.completed", "action_id": action, "result": {"n": number}},
    ]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("gone", ["agentos", "decisionos"])
async def test_an_hour_without_one_of_five_platforms(tmp_path, gone):
    """Promises 1, 2, 8: the other four never notice, nothing is lost, and what waited goes in the order in which it was made."""
    moments = HOUR_S // STEP_S
    async with World(tmp_path / "state") as world:
        others = [name for name in FACES if name != gone]
        world.away.add(gone)
        worst = Counter()
        for number in range(moments):
            await world.admit(*of_a_moment(world, number))
            await world.advance(STEP_S)
            for name in others:
                assert world.couriers[name].status()[0] == "ok"
                worst[name] = max(worst[name], world.queued()[name])
        assert worst.total() == 0  # before the next moment everything was delivered, all the hour long
        waiting = world.queued()[gone]
        assert waiting == moments * {"agentos": 5, "decisionos": 2}[gone]
        assert 60 <= world.tried[gone] <= 130  # probes of at most a minute apart, jitter included, and no storm
        world.away.clear()
        for _ in range(120):  # seconds: the longest that a probe may still be away, and some
            await world.settle(
                lambda: not world.queued()[gone], 20_000 if world.couriers[gone].status()[0] == "ok" else 30
            )
            if not world.queued()[gone]:
                break
            await world.advance(1)
        assert world.queued() == dict.fromkeys(FACES, 0)
        _nothing_was_lost(world, moments)
        _in_order(world, moments)


def _nothing_was_lost(world, moments):
    state = world.platforms.state()
    assert (state.faces["agentos"]["runs"], state.faces["agentos"]["events"], state.duplicates) == (
        moments,
        moments * 3,
        0,
    )
    for name, per_moment in {"agentos": 5, "decisionos": 2, "decidefyi": 1, "ascend": 1}.items():
        books = {
            (line.kind, line.state): line.records for line in world.spool.books.lines() if line.destination == name
        }
        delivered = sum(count for (_, kind_state), count in books.items() if kind_state == "delivered")
        assert delivered == moments * per_moment
        assert {kind_state for _, kind_state in books} == {"admitted", "delivered"}


def _in_order(world, moments):
    runs = [world.platforms.run(f"run-{number}") for number in range(moments)]
    assert all(run["status"] == "completed" for run in runs)
    assert all([event["type"] for event in run["events"]] == ["step.0", "step.1", "step.2"] for run in runs)
    rows = [row["id"] for row in world.platforms.runs() if row["face"] == "decisionos"]
    ledger = sorted((world.platforms.run(row) for row in rows), key=lambda one: one["chain_index"])
    assert [one["sent"]["context"] for one in ledger] == [f"c{number}" for number in range(moments)]
