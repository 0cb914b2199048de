"""Sequences of reloads under load against plain lists: destinations come, go and change, keys rotate, platforms fail.

The model is what was acknowledged: a list of events for each run at each destination. Whatever happened, each platform holds its
runs in order and whole in the end, each batch always had the same bytes under its key, and the books balance.
"""

import asyncio
import contextlib
import json
import tempfile
from collections import defaultdict
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.ageing import Clocks
from agentd.errors import ConfigError
from agentd.exchange import Lost, Response
from agentd.fleet import Fleet
from agentd.identity import Uuid7
from agentd.intake import Peer
from agentd.intake.access import Access
from agentd.intake.admit import Admission
from agentd.intake.dedupe import Window
from agentd.reloading import Fresh, Parts, Reloader, admit_limits, table_of, told
from agentd.sections import Batch, Config, Destination, Duration, Loaded, RetryConfig, Secret
from agentd.spool.dead import DeadLetters
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.notices import Notices
from agentd.spool.recovery import open_spool
from agentd.spool.shelf import SpoolShelf
from agentd.targets import targets_of
from agentd.testing import MemoryStore
from agentd.wire import decode_record

NAMES = ("a", "b", "c")
ME = Peer(1000, 1000, 7)
RUNS = ("r", "s")


@pytest.fixture(autouse=True, scope="module")
def own_log():
    """A reload sets up the log of its process, which here is the test's."""
    with patch("agentd.reloading.set_up"):
        yield


class Immediate(Executor):
    """Runs a job when it is given."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class Platforms:
    """Every destination's platform, as the one way out sees them: what it took, by run, and what it takes as a key."""

    def __init__(self):
        self.keys = dict.fromkeys(NAMES, 0)  # the version that is accepted
        self.trouble = dict.fromkeys(NAMES, "")
        self.events = defaultdict(list)  # (name, run) → numbers
        self.bodies = {}  # (name, key) → body
        self.taken = set()  # (name, key)
        self.wrong = []
        self.gate = asyncio.Event()  # closed: requests wait
        self.gate.set()
        self.under_way = []  # keys

    async def post(self, reach, request, headers, timeout_s, limit):
        del timeout_s, limit
        name, version = reach.base_url[-1], int(headers["authorization"].rpartition("-")[2])
        key = (name, headers["idempotency-key"])
        if self.bodies.setdefault(key, request.body) != request.body:
            self.wrong.append(f"{key} has other bytes")
        if key in self.under_way:
            self.wrong.append(f"{key} was sent while it was under way")
        self.under_way.append(key)
        try:
            await asyncio.sleep(0.0005)
            await self.gate.wait()
        finally:
            self.under_way.remove(key)
        trouble = self.trouble[name]
        if version != self.keys[name]:
            return self._answer(401, {})
        if trouble == "down":
            return Lost("no connection", sent=False)
        if trouble == "failing":
            return self._answer(503, {})
        body = json.loads(request.body)
        run = body.get("external_run_id") or body["run_id"].removeprefix("p-")
        if key not in self.taken:
            self.taken.add(key)
            self.events[name, run] += [event["payload"]["n"] for event in body.get("events", [])]
        return Lost("cut", sent=True) if trouble == "cut" else self._answer(200, {"run_id": f"p-{run}"})

    def _answer(self, status, data):
        error = None if status == 200 else {"code": "NO", "message": "no"}
        return Response(status, {}, json.dumps({"data": data, "error": error}).encode())


class House:
    """A spool, its couriers and an admission, by a configuration that `reload` exchanges."""

    def __init__(self, folder):
        self.folder = folder
        self.platforms = Platforms()
        self.env = {f"KEY_{name}": "key-0" for name in NAMES}
        self.config = config_of({name: {} for name in NAMES})
        self.store = MemoryStore()
        self.acknowledged = defaultdict(list)
        self.begun = set()
        self.number = 0

    async def open(self):
        self.targets = targets_of(self.config, self.env)
        limits = Limits(dict.fromkeys(self.targets, 2**24), 2**30, 2**20, 2**24, 2**20, 100)
        clocks = Clocks()
        self.spool = await open_spool(
            self.folder, sync="full", limits=limits, journal=Journal(10**15, 10**9), now_us=clocks.now_us,
            identities={name: target.identity for name, target in self.targets.items()},
            opener=lambda *_: self.store, thread=Immediate(),
        )  # fmt: skip
        self.spool.start()
        letters = DeadLetters(self.spool)
        notices = Notices(self.spool, told(self.targets), Uuid7(), clocks.now_us)
        self.fleet = Fleet(self.spool, self.platforms, letters, notices, clocks, lambda _task: None)
        self.fleet.open(self.targets)
        self.fleet.start()
        table = table_of(self.targets)
        self.admission = Admission(table, SpoolShelf(self.spool), Window(100), admit_limits(self.config), Uuid7(), {0})
        ignored = SimpleNamespace(follow=lambda *_, **__: None)
        control = SimpleNamespace(
            follow=lambda _: None, queues=SimpleNamespace(undropped=contextlib.AsyncExitStack),
            reloads=SimpleNamespace(done=lambda: None, refused=lambda _: None),
        )  # fmt: skip
        parts = Parts(
            self.spool, SimpleNamespace(admission=self.admission), self.fleet, ignored, notices, ignored, ignored,
            Access(), lambda _names: None, control,
        )  # fmt: skip
        fresh = Fresh(Loaded(self.config, None), self.targets, [])
        self.reloader = Reloader(parts, fresh, lambda: Loaded(self.config, None), self.env, lambda _: None)
        return self

    async def close(self):
        await self.reloader.close()
        await self.fleet.close()
        await self.spool.close()

    async def crash(self):
        """kill -9, and a start by what is configured."""
        await self.reloader.close()
        await self.fleet.close()
        self.spool._committer._task.cancel()
        await asyncio.gather(self.spool._committer._task, return_exceptions=True)
        await self.spool._loader.close()
        await self.spool._storage.close()
        self.spool.folder.close()
        self.store = self.store.crash()
        await self.open()

    async def emit(self, name, run, count):
        """Events of a run of the destination's own agent, its start before them; those that were stored count."""
        records = [] if (name, run) in self.begun else [{"kind": "run.start", "run_id": f"{name}{run}"}]
        for _ in range(count):
            self.number += 1
            event = {"kind": "event", "run_id": f"{name}{run}", "type": "t", "payload": {"n": self.number}}
            records.append(event)
        items = [
            (index, decode_record(msgspec.json.encode({**record, "agent_id": name})))
            for index, record in enumerate(records)
        ]
        now_us = self.spool.ledger.now_us()
        outcome = self.admission.admit(items, ME, "test", now_us)
        known = name in self.fleet.targets
        assert bool(outcome.copies) is known, outcome.rejected
        if known:
            await self.spool.append(outcome.copies, introduced=outcome.introduced)
            self.begun.add((name, run))
            self.acknowledged[name, f"{name}{run}"] += [r["payload"]["n"] for r in records if r["kind"] == "event"]

    async def reload(self, places, at_once=1):
        """Another configuration; `at_once` ask for it together."""
        before, self.config = self.config, config_of(places)
        tasks = [asyncio.create_task(self.reloader.reload()) for _ in range(at_once)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [one for one in found if isinstance(one, BaseException)]
        if refused:
            assert all(isinstance(one, ConfigError) for one in refused), refused
            self.config = before
        assert set(self.fleet.couriers) == set(self.fleet.targets) == set(self.config.destinations)
        return not refused

    async def drained(self):
        """All destinations are back, all platforms well, all keys those that are accepted: then nothing is left."""
        for name in NAMES:
            self.platforms.trouble[name] = ""
            self.env[f"KEY_{name}"] = f"key-{self.platforms.keys[name]}"
        assert await self.reload({name: {} for name in NAMES})
        self.fleet.flush()
        async with asyncio.timeout(20):
            while any(self.spool.queues[name].live or self.spool.committing(name) for name in NAMES):
                await asyncio.sleep(0.002)


def config_of(places):
    """`places`: the destinations that there are, each with what is special of it."""
    destinations = {
        name: Destination(
            "agentos",
            more.pop("base_url", f"http://127.0.0.1:1/{name}"),
            "agent",
            {name: "agent"},
            api_key=Secret(env=f"KEY_{name}"),
            **more,
        )
        for name, more in ((name, dict(more)) for name, more in places.items())
    }
    retry = RetryConfig(Duration(0.001), Duration(0.005))
    return Config(destinations=destinations, retry=retry, batch=Batch(max_events=5, max_interval=Duration(0.002)))


_places = st.dictionaries(
    st.sampled_from(NAMES),
    st.fixed_dictionaries(
        {
            "max_in_flight": st.integers(1, 2),
            "inject_id": st.booleans(),
            "timeout": st.sampled_from([Duration(5), Duration(9)]),
            "batch": st.sampled_from([None, Batch(max_events=2), Batch(max_events=9, max_interval=Duration(0.001))]),
        }
    ),
    min_size=1,
)
_emit = st.tuples(st.just("emit"), st.sampled_from(NAMES), st.sampled_from(RUNS), st.integers(1, 12))
_reload = st.tuples(st.just("reload"), _places, st.integers(1, 3))
_steps = st.lists(
    st.one_of(
        _emit,
        _reload,
        _emit,
        _reload,
        st.tuples(st.just("rotate"), st.sampled_from(NAMES), st.booleans()),
        st.tuples(st.just("trouble"), st.sampled_from(NAMES), st.sampled_from(["", "down", "failing", "cut"])),
        st.tuples(st.just("time"), st.sampled_from([0.0, 0.001, 0.005])),
        st.tuples(st.just("crash")),
    ),
    min_size=10,
    max_size=40,
)


async def _play(folder, steps):
    house = await House(folder).open()
    try:
        for step in steps:
            match step:
                case ("emit", name, run, count):
                    await house.emit(name, run, count)
                case ("reload", places, at_once):
                    assert await house.reload(places, at_once)
                case ("rotate", name, told_first):
                    house.platforms.keys[name] += 1
                    if told_first:
                        house.env[f"KEY_{name}"] = f"key-{house.platforms.keys[name]}"
                case ("trouble", name, trouble):
                    house.platforms.trouble[name] = trouble
                case ("time", seconds):
                    await asyncio.sleep(seconds)
                case ("crash",):
                    await house.crash()
        await house.drained()
    finally:
        await house.close()
    assert house.platforms.wrong == []
    for (name, run), numbers in house.acknowledged.items():
        assert house.platforms.events[name, run] == numbers, (name, run)
    assert sum(map(len, house.platforms.events.values())) == sum(map(len, house.acknowledged.values()))
    for name in NAMES:
        books = house.spool.books
        assert books.queued(name) == 0
        assert books.total(name, "dead") == books.total(name, "shed") == 0


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_that_is_back_finds_what_waits_in_every_lane(tmp_path):
    """Lanes that had no turn before their destination was removed have one when it is back, without anything new in them."""
    house = await House(tmp_path / "state").open()
    house.platforms.trouble["a"] = "down"
    await house.emit("a", "r", 3)
    await house.emit("a", "s", 3)
    await _until(lambda: house.fleet.couriers["a"].circuit.health.value == "waiting")
    await house.reload({"b": {}})
    await _until(lambda: not house.fleet.is_leaving("a"))
    house.platforms.trouble["a"] = ""
    await house.reload({"a": {}, "b": {}})
    await _until(lambda: house.spool.queues["a"].live == 0)
    await house.close()
    assert {run: numbers for (_, run), numbers in house.platforms.events.items()} == {"ar": [1, 2, 3], "as": [4, 5, 6]}


async def test_one_that_is_put_back_at_once_waits_for_its_last_answer(tmp_path):
    """A request that was under way when its destination was removed is not sent a second time beside itself."""
    house = await House(tmp_path / "state").open()
    house.platforms.gate.clear()
    await house.emit("a", "r", 3)
    await _until(lambda: house.platforms.under_way)
    await house.reload({"b": {}})
    assert house.fleet.is_leaving("a")
    back = asyncio.create_task(house.reload({"a": {}, "b": {}}))
    await asyncio.sleep(0.05)
    assert "a" not in house.fleet.couriers
    house.platforms.gate.set()
    assert await back
    await _until(lambda: house.spool.queues["a"].live == 0)
    await house.close()
    assert (house.platforms.wrong, house.platforms.events["a", "ar"]) == ([], [1, 2, 3])


async def test_who_asks_while_one_is_read_shares_the_next(tmp_path):
    """A hundred who ask at once cost two readings: the one that is under way, and one that has read what all of them wrote."""
    house = await House(tmp_path / "state").open()
    read, reads = house.reloader._read, []
    house.reloader._read = lambda: reads.append(1) or read()
    first = asyncio.create_task(house.reloader.reload())
    await _until(lambda: reads)
    house.config = config_of({"a": {"max_in_flight": 2}, "b": {}, "c": {}})
    found = await asyncio.gather(*(house.reloader.reload() for _ in range(100)))
    await first
    assert len(reads) == 2
    assert all(one["changed"] == {"a": ("max_in_flight",)} for one in found)
    await house.close()


async def test_one_that_moves_while_nothing_waits_forgets_what_the_old_one_was_called(tmp_path):
    """Another platform under the name: references of the old one mean nothing there, so that a run has to begin anew."""
    house = await House(tmp_path / "state").open()
    await house.emit("a", "r", 1)
    await _until(lambda: house.spool.queues["a"].live == 0 and house.spool.refs.get("a", "run", "ar").platform_id)
    assert await house.reload({"a": {"base_url": "http://127.0.0.1:1/c"}, "b": {}})
    assert house.spool.refs.get("a", "run", "ar") is None
    assert "/c for" in house.spool.meta.identities["a"]
    house.begun.clear()
    house.platforms.keys["c"] = 0
    await house.emit("a", "r", 2)
    await _until(lambda: house.spool.queues["a"].live == 0)
    await house.close()
    assert house.platforms.events["c", "ar"] == [2, 3]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_steps)
def test_whatever_is_reloaded_nothing_is_lost_or_doubled(steps):
    """Promises 1, 2, 4 and 8 over any sequence of reloads, rotations, failures and crashes."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder) / "state", steps))
