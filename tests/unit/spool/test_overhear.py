"""Whoever watches records come: what he is shown, when, and that he is no danger to them."""

from __future__ import annotations

import pytest
from spool_kit import Harness


@pytest.fixture
async def house(tmp_path):
    made = Harness(tmp_path)
    await made.open()
    yield made
    await made.kill()


async def test_records_are_shown_once_they_are_on_disk(house):
    """Each message with its destinations, and nothing any more when nobody watches."""
    shown = []
    house.spool.ledger.overhear(lambda copies: shown.append((dict(copies), house.spool.queues["cloud"].live)))
    made = await house.put(2)
    assert shown == [({"cloud": made}, 2)]
    house.spool.ledger.overhear(None)
    await house.put()
    assert len(shown) == 1


async def test_what_is_no_record_is_not_shown(house):
    """Rows of the spool's own are nobody's news."""
    shown = []
    house.spool.ledger.overhear(shown.append)
    await house.spool.barrier()
    assert shown == []


async def test_one_who_fails_is_not_asked_again(house, caplog):
    """The commit that he failed at is as good as any, the next ones too; the log has it."""
    asked = []

    def fail(copies):
        asked.append(copies)
        raise RuntimeError("boom")

    house.spool.ledger.overhear(fail)
    await house.put()
    await house.put()
    assert len(asked) == 1
    assert house.spool.queues["cloud"].live == 2
    assert [record.action for record in caplog.records] == ["defect"]
