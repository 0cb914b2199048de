"""The storage thread's jobs: run in order, and counted, so that somebody sees whether it gets on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentd.spool.storage import Storage
from agentd.spool.store import Put, Store
from agentd.vitals import Pace, Vital


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_a_job_that_is_asked_for_is_under_way_until_it_has_ended(thread):
    """Idle, busy, idle again; `more` is work that nobody has asked for yet."""
    storage, gate = Storage(None, thread), threading.Event()
    assert storage.vital() == Vital(0, busy=False)
    assert storage.vital(more=True) == Vital(0, busy=True)
    job = asyncio.create_task(storage.run(lambda _store: gate.wait()))
    await asyncio.sleep(0)
    assert storage.vital() == Vital(0, busy=True)
    gate.set()
    assert await job is True
    assert storage.vital() == Vital(1, busy=False)


async def test_a_job_goes_on_whose_asker_was_cancelled(thread):
    """It keeps the thread busy all the same; one that had not begun never runs, and is no work any more."""
    storage, gate, ran = Storage(None, thread), threading.Event(), []
    begun = asyncio.create_task(storage.run(lambda _store: gate.wait()))
    waiting = asyncio.create_task(storage.run(ran.append))
    await asyncio.sleep(0)
    for task in (begun, waiting):
        task.cancel()
    await asyncio.gather(begun, waiting, return_exceptions=True)
    assert storage.vital().busy
    gate.set()
    await storage.run(lambda _store: None)
    assert (storage.vital().busy, ran) == (False, [])


async def test_a_job_that_fails_has_ended(thread):
    """An error is an end like another."""
    with pytest.raises(ZeroDivisionError):
        await (storage := Storage(None, thread)).run(lambda _store: 1 // 0)
    assert storage.vital() == Vital(1, busy=False)


async def test_a_long_job_is_seen_to_get_on(thread):
    """What the store steps within one job counts like jobs that end."""
    pace, gate = Pace(), threading.Event()
    storage = Storage(None, thread, pace)
    job = asyncio.create_task(storage.run(lambda _store: gate.wait()))
    await asyncio.sleep(0)
    pace.step()
    assert storage.vital() == Vital(1, busy=True)
    gate.set()
    await job


def test_a_store_steps_through_long_work(tmp_path, monkeypatch):
    """SQLite's own work is a sign of life: an integrity check of a large database at the start, a scan of a table."""
    monkeypatch.setattr("agentd.spool.store._PACE_INSTRUCTIONS", 100)
    pace = Pace()
    store = Store(tmp_path / "spool", "full", pace=pace)
    store.commit([Put(1 << 48 | row, b"x") for row in range(500)], ())
    written = pace.steps
    assert len(list(store.tags(1))) == 500
    scanned = pace.steps
    store.close()
    Store(tmp_path / "spool", "full", pace=pace).close()
    assert 0 < written < scanned < pace.steps
