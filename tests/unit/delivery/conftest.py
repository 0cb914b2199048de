"""A courier between a queue in memory and a platform that answers by a script, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from agentd import platforms
from agentd.delivery.backoff import Backoff
from agentd.delivery.batcher import Limits
from agentd.delivery.courier import Courier
from agentd.delivery.settings import Settings
from agentd.records import Record
from agentd.testing import FakeClock, MemoryOutbox, ScriptedTransport, answer

decode_record = msgspec.json.Decoder(Record).decode


def record(kind, **fields):
    return decode_record(msgspec.json.encode({"kind": kind, **fields}))


class Rig:
    """The courier under test; `share` is what the random number will be."""

    def __init__(self, *, platform=None, outbox=None, transport=None, clock=None, share=1.0, **settings):
        self.clock = clock or FakeClock()
        self.outbox = outbox or MemoryOutbox()
        self.transport = transport or ScriptedTransport()
        self.share = share
        limits = Limits(settings.pop("max_events", 50), 2**20, 500_000, settings.pop("max_request_events", 50))
        self.settings = Settings(
            name="cloud", api_key="aos_agent_secret", limits=limits,
            max_in_flight=settings.pop("max_in_flight", 8), backoff=Backoff(0.25, 60.0),
            reference_wait_us=2_000_000, agent_of=settings.pop("agent_of", lambda local: local or "agent-1"), **settings,
        )  # fmt: skip
        self.courier = Courier(
            self.settings, platform or platforms.load("agentos"), self.outbox, self.transport,
            clock=self.clock, now_us=self.clock.now_us, share=lambda: self.share,
        )  # fmt: skip
        self.task = None

    def put(self, kind, *, quiet=False, **fields):
        entry = self.outbox.put(record(kind, **fields), now_us=self.clock.now_us())
        if not quiet:
            self.courier.touch({entry.lane})
        return entry

    def events(self, count, run="r", **fields):
        """Events of a run that the platform knows already; a batch of them is due when 50 are there or a flush comes."""
        self.outbox.know("run", run, f"p-{run}")
        return [self.put("event", run_id=run, type=f"t{n}", **fields) for n in range(count)]

    def start(self):
        self.task = asyncio.create_task(self.courier.run())

    async def idle(self, turns=40):
        """Let everything happen that needs no time to pass."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def until(self, condition, turns=200_000):
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it did not come to pass")

    async def advance(self, seconds):
        self.clock.advance(seconds)
        self.courier.touch(set())  # what the loop's own timer would do
        await self.idle()

    async def advance_until(self, condition, step_s=1.0, at_most=10_000):
        for _ in range(at_most):
            if condition():
                return
            await self.advance(step_s)
        raise AssertionError("it did not come to pass")

    async def flush(self):
        self.courier.flush()
        await self.idle()

    async def stop(self):
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    @property
    def health(self):
        return self.courier.circuit.health.value

    @property
    def paths(self):
        return [sent.path.removeprefix("/api/ingest/v1/") for sent in self.transport.requests]

    @property
    def types(self):
        """The event types of each request."""
        return [[e["type"] for e in sent.json().get("events", [])] for sent in self.transport.requests]


@pytest.fixture
async def make_rig():
    made = []

    def make(*script, then=None, **settings):
        rig = Rig(transport=ScriptedTransport(*script, then=then), **settings)
        made.append(rig)
        rig.start()
        return rig

    yield make
    for rig in made:
        await rig.stop()


@pytest.fixture
def make_record():
    return record


@pytest.fixture
def rig_class():
    return Rig


@pytest.fixture
def started():
    """The answer to run/start."""
    return answer(200, {"data": {"run_id": "p-1"}, "error": None})
