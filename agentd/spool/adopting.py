"""What a reload changes of an open spool: which destinations it has queues for, whose they are, and how much each may hold.

A queue is never taken away: that of a destination which left the configuration keeps its records for whoever comes back under the
same name and identity. No I/O: what has to be on disk goes there with the next commit.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from agentd.spool.ledger import Limits
from agentd.spool.queue import Queue
from agentd.spool.spool import Spool


def waiting(spool: Spool, name: str) -> int:
    """Records that wait for a destination, configured or not; those of the commit under way among them."""
    queue = spool.queues.get(name)
    return 0 if queue is None else max(queue.live + spool.committing(name), spool.books.queued(name))


def adopt(spool: Spool, identities: Mapping[str, str]) -> None:
    """There are queues for these from now on. What an empty one remembers of another platform or account is forgotten."""
    ledger = spool.ledger
    for name, identity in identities.items():
        if ledger.meta.identities.get(name, identity) != identity:
            assert not waiting(spool, name), name  # noqa: S101 - `changes` refuses that
            for lane in ledger.seals.lanes(name):
                for seal in list(ledger.seals.of_lane(name, lane)):
                    spool.retire(seal)
            ledger.losses.forget_all(name)
            ledger.refs.forget(name)
        if name not in ledger.queues:
            ledger.queues[name] = Queue(name, 1, 1)  # `resize` says how large
    ledger.meta.identities = {**ledger.meta.identities, **identities}
    spool.wake()


def resize(spool: Spool, *, quotas: Mapping[str, int], max_bytes: int, dead_bytes: int) -> None:
    """Room for these destinations: on disk as they say, in memory in equal shares. What is there already stays."""
    limits = spool.ledger.limits = replace(
        spool.ledger.limits, quotas=dict(quotas), max_bytes=max_bytes, dead_bytes=dead_bytes
    )
    for queue in spool.queues.values():
        queue.window_limit, queue.index.limit = share_of(limits)
    spool.tell_room()


def share_of(limits: Limits) -> tuple[int, int]:
    """What one queue may take in memory: of its records, and of what is known of its segments."""
    share = max(1, len(limits.quotas))
    return limits.window_bytes // share, limits.directory_bytes // share
