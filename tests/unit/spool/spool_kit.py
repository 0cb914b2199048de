"""What the spool's tests share: records to store, rows as the store would hold them, and a spool over memory."""

from concurrent.futures import Executor, Future
from itertools import count

from agentd.queued import Entry, Seal, Source
from agentd.records import LossClass
from agentd.spool import segments
from agentd.spool.directory import Segment
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import open_spool
from agentd.testing import MemoryStore

SOURCE = Source("billing", 1000, 42, "frames")
DAY_US = 86_400 * 10**6


def entry(number, lane="run:a", loss=LossClass.KEEP, body=b"{}", kind="event", admitted_us=None):
    record_id = number.to_bytes(16, "big")
    return Entry(number, record_id, lane, kind, loss, SOURCE, number * 10 if admitted_us is None else admitted_us, body)


def segment(key, entries):
    """The queue's view of a row with these records, which know their places from now on."""
    for index, each in enumerate(entries):
        each.segment, each.index = key, index
    return Segment(key, segments.encode("cloud", entries).directory)


def seal_of(entries, destination="cloud", **facts):
    first, last = entries[0].number, entries[-1].number
    return Seal(
        0,
        destination,
        entries[0].lane,
        first,
        last,
        len(entries),
        (),
        facts.pop("key", f"k{first}"),
        1,
        b"s" * 32,
        "events",
        **facts,
    )


class Immediate(Executor):
    """Runs a job when it is given."""

    def submit(self, job, /, *arguments, **named):
        future = Future()
        try:
            future.set_result(job(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


def limits(**changes):
    facts = {
        "quotas": {"cloud": 10**6, "local": 10**6},
        "max_bytes": 2 * 10**6,
        "dead_bytes": 10**6,
        "window_bytes": 10**6,
        "directory_bytes": 10**6,
        "seen_ids": 10,
    }
    return Limits(**(facts | changes))


class Harness:
    """Opens spools over one state folder and one store, as a daemon that is started again does."""

    def __init__(self, folder):
        self.folder = folder / "state"
        self.store = MemoryStore()
        self.clock = count(1_000_000)
        self.identities = {"cloud": "agentos", "local": "agentos"}
        self.spool = None

    async def open(self, *, start=True, journal=None, **changes):
        self.spool = await open_spool(
            self.folder,
            sync="full",
            limits=limits(**changes),
            identities=self.identities,
            journal=Journal(200 * DAY_US, 10**9) if journal is None else journal,
            now_us=lambda: next(self.clock),
            opener=lambda *_: self.store,
            thread=Immediate(),
            retry_s=0,
        )
        if start:
            self.spool.start()
        return self.spool

    async def crash(self, **changes):
        """The daemon dies and is started again: what was committed is all that is left."""
        await self.kill()
        self.store = self.store.crash()
        return await self.open(**changes)

    async def kill(self):
        committer = self.spool._committer
        if committer._task is not None:
            committer._task.cancel()
        await self.spool._loader.close()
        await self.spool._storage.close()
        self.spool.folder.close()

    def records(self, count, destination="cloud", **facts):
        return [entry(self.spool.number(destination), **facts) for _ in range(count)]

    async def put(self, count=1, destination="cloud", **facts):
        """Records that are on disk."""
        made = self.records(count, destination, **facts)
        await self.spool.append({destination: made})
        return made

    async def filled(self, destination="cloud"):
        """The window is read as far as there is room."""
        self.spool.fill(destination)
        await self.spool._loader._tasks[destination]
        return self.spool.queues[destination]

    def balanced(self):
        return all(self.spool.books.queued(name) == queue.live for name, queue in self.spool.queues.items())
