"""What a reload changes of an open spool: queues that come, change hands, and share the room anew."""

import asyncio

import pytest
from spool_kit import seal_of

from agentd.queued import Ref
from agentd.spool.adopting import adopt, resize, waiting


def room(spool, **quotas):
    resize(spool, quotas=quotas, max_bytes=10**6, dead_bytes=500)


async def test_a_new_destination_has_a_queue_that_takes_records(harness):
    """From the reload on it is a queue as any other, also for the next start."""
    spool = await harness.open()
    adopt(spool, {"cloud": "agentos", "fresh": "ascend"})
    room(spool, cloud=10**5, fresh=10**5)
    await harness.put(3, "fresh")
    assert (spool.queues["fresh"].live, waiting(spool, "fresh")) == (3, 3)
    harness.identities = {"cloud": "agentos", "fresh": "ascend"}
    spool = await harness.crash()
    assert (spool.queues["fresh"].live, spool.meta.identities["fresh"]) == (3, "ascend")
    assert harness.balanced()


async def test_records_of_the_commit_under_way_wait_too(harness):
    """A destination whose records are just being written does not change hands."""
    spool = await harness.open()
    future = spool.append({"cloud": harness.records(2)})
    assert waiting(spool, "cloud") in (0, 2)  # not yet taken, or taken
    await future
    assert waiting(spool, "cloud") == 2
    assert waiting(spool, "nonesuch") == 0


async def test_an_empty_queue_that_changes_hands_forgets(harness):
    """What the old platform called things means nothing to the new one; a start later says the same."""
    spool = await harness.open()
    [one] = await harness.put(1)
    seal = seal_of([one])
    await spool.seal(seal)
    await spool.settle(seal, [one])
    spool.refs.put(Ref("cloud", "run", "r", "", 0, 1, "known", "p-1"))
    spool.refs.put(Ref("local", "run", "r", "", 0, 1, "known", "p-2"))
    adopt(spool, {"cloud": "elsewhere", "local": "agentos"})
    await spool.barrier()
    assert spool.refs.get("cloud", "run", "r") is None
    assert spool.refs.get("local", "run", "r").platform_id == "p-2"
    harness.identities = {"cloud": "elsewhere", "local": "agentos"}
    spool = await harness.crash()
    assert spool.refs.get("cloud", "run", "r") is None
    assert spool.seals.all() == []


async def test_a_queue_with_records_never_changes_hands(harness):
    """Whoever decides has seen to that; here it would be a defect."""
    spool = await harness.open()
    await harness.put(1)
    with pytest.raises(AssertionError):
        adopt(spool, {"cloud": "elsewhere"})


async def test_room_is_shared_anew(harness):
    """Quotas, the dead letters' room and the memory of each follow; a removed one's quota is nothing, its records stay."""
    spool = await harness.open()
    await harness.put(5, "local")
    before = spool.queues["cloud"].window_limit
    room(spool, cloud=777)
    assert spool.queues["cloud"].window_limit == 2 * before
    assert (spool.limits.quotas, spool.limits.dead_bytes) == ({"cloud": 777}, 500)
    assert not spool.dead_room(501)
    assert (spool.fits("cloud", 700), spool.fits("cloud", 800), spool.fits("local", 1)) == (True, False, False)
    assert spool.queues["local"].live == 5


async def test_more_room_wakes_whoever_waits_for_it(harness):
    """A client that was refused for a full queue tries again when the reload has made it larger."""

    spool = await harness.open()
    waiter = asyncio.create_task(spool.wait_for_room())
    await asyncio.sleep(0)
    room(spool, cloud=10**5)
    await asyncio.wait_for(waiter, 1)
