"""What a disk may hold when the power goes: every file operation of a real daemon, recorded, and any moment of it made again.

    recording = Recording("full")          # compiles powerloss.c, which writes down what the daemon does to its state folder
    recording.daemon.start()               # traffic, photographs, kills
    cuts = Cuts(recording)
    cuts.advance(cuts.of(position))        # to the moment when the log was so long
    with cuts.rebuilt(Torn(seed)) as disk: # one of the states that the disk may be in
        look(disk / STATE, "full")         # what a start finds there

The model, which promises no more than POSIX does and so less than any file system in use keeps:

- A file's bytes and size last once fsync or fdatasync of that file has returned. Of what was written since, each sector (512
  bytes, or a page of 4 KiB) holds any of the contents that it had in the meantime, whatever became of its neighbours: writes are
  lost, torn and reordered. A sector that never lasted may hold zeros or rubbish, and the size is any that the file had. Within
  a sector nothing tears, and bytes beside a write keep: what SQLite calls powersafe overwrite (https://sqlite.org/psow.html).
- A name in a folder lasts once the folder itself was synced, whatever was synced in it (fsync(2): "does not necessarily ensure
  that the entry in the directory containing the file has also reached disk"). Until then it may be there, missing, or still
  mean the file that it meant before. ext4, xfs and btrfs keep more: there fsync of a new file brings its name along.
- Nothing else lasts: neither close nor sync_file_range, nor time. What is mapped shared (SQLite's -shm) may hold anything that it
  has held since it was synced, newer than all else included: the kernel writes it back when it likes.

So do ALICE, for what each file system may leave of a program's calls (Pillai et al., OSDI '14, "All File Systems Are Not Created
Equal"), SQLite's own tests (src/test6.c: on a crash unsynced writes are done, left out or filled with random bytes), and
dm-log-writes of the kernel a layer lower. That the disk keeps what it says it has synced is taken for granted.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import hashlib
import json
import logging
import mmap
import os
import random
import shutil
import struct
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias
from unittest import mock

from harness import AGENT, Daemon, Ledger, Watched, World, http_call

from agentd.queued import Seal
from agentd.sandbox import Answer, Call, Face
from agentd.spool import letters, segments
from agentd.spool.gaterows import Brief
from agentd.spool.journal import Journal
from agentd.spool.ledger import Limits
from agentd.spool.recovery import Sync, open_spool
from agentd.spool.store import Rows
from agentd.spool.tables import Table

SOURCE = Path(__file__).with_name("powerloss.c")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
STATE = "var/lib"  # the daemon's folder on the disk: it makes both parts of it

# -- the log -----------------------------------------------------------------------------------------------------------


class Op(IntEnum):
    """As in powerloss.c."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    ALLOCATE = 4
    SYNC = 5
    UNLINK = 6
    MKDIR = 7
    MMAP = 8
    CLOSE = 9
    MAPPED = 10
    UNMODELLED = 11


class Entry(NamedTuple):
    """One operation. `path` is what it was done to, `end` how long the log was when its caller went on."""

    op: Op
    pid: int
    fd: int
    flags: int
    offset: int
    size: int
    path: str
    data: bytes
    end: int


_HEAD = struct.Struct("<Iiiiqq II")


def read_log(path: Path) -> list[Entry]:
    """All of it."""
    log = path.read_bytes()
    entries = []
    names: dict[tuple[int, int], str] = {}
    place = 0
    while place < len(log):
        op, pid, fd, flags, offset, size, path_size, data_size = _HEAD.unpack_from(log, place)
        middle = place + _HEAD.size + path_size
        name = log[place + _HEAD.size : middle].decode()
        if op == Op.OPEN:
            names[pid, fd] = name
        place = middle + data_size
        name = name or names.get((pid, fd), "")
        entries.append(Entry(Op(op), pid, fd, flags, offset, size, name, log[middle:place], place))
    return entries


# -- the disk ----------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What a call did to a file: `data` from `offset` on, None for a cut there; `size` is the file's afterwards."""

    offset: int
    data: bytes | None
    size: int


class File:
    """What of a file lasts, and what was done to it since."""

    def __init__(self) -> None:
        self.kept = bytearray()  # without the zeros at its end that nobody wrote
        self.kept_size = 0
        self.size = 0
        self.changes: list[Change] = []
        self.mapped: list[bytes] = []  # how it began, one time after the other, if it is mapped

    def change(self, offset: int, data: bytes | None, size: int) -> None:
        self.size = size
        self.changes.append(Change(offset, data, size))

    def sync(self) -> None:
        for change in self.changes:
            _put(self.kept, change.offset, change.data)
        self.kept_size = self.size
        self.changes = []
        del self.mapped[:-1]


class Folder:
    """Its names: those that last, those that are seen, and what each has meant since the last sync."""

    def __init__(self) -> None:
        self.kept: dict[str, Node] = {}
        self.seen: dict[str, Node] = {}
        self.history: dict[str, list[Node | None]] = {}

    def change(self, name: str, node: Node | None) -> None:
        self.history.setdefault(name, []).append(node)
        if node is None:
            del self.seen[name]
        else:
            self.seen[name] = node

    def sync(self) -> None:
        self.kept = dict(self.seen)
        self.history = {}


Node: TypeAlias = File | Folder


def _put(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
    elif data:
        if len(content) < offset:
            content += bytes(offset - len(content))
        content[offset : offset + len(data)] = data


class Disk:
    """A disk with a file system that does what it must and no more; `apply` takes the log's entries in their order."""

    def __init__(self) -> None:
        self.root = Folder()
        self._open: dict[tuple[int, int], Node] = {}

    def apply(self, entry: Entry) -> None:
        """Raises AssertionError for what the model does not know."""
        match entry.op:
            case Op.OPEN:
                self._open[entry.pid, entry.fd] = self._opened(entry)
            case Op.CLOSE:
                del self._open[entry.pid, entry.fd]
            case Op.MKDIR:
                self._parent(entry.path).change(_name(entry.path), Folder())
            case Op.UNLINK:
                self._parent(entry.path).change(_name(entry.path), None)
            case Op.SYNC:
                self._open[entry.pid, entry.fd].sync()
            case Op.UNMODELLED:
                raise AssertionError(f"the daemon called {entry.path}, which the model of the disk does not know")
            case _:
                self._to_file(entry)

    def _to_file(self, entry: Entry) -> None:
        file = self._open[entry.pid, entry.fd]
        assert isinstance(file, File)
        match entry.op:
            case Op.WRITE:
                file.change(entry.offset, entry.data, max(file.size, entry.offset + len(entry.data)))
            case Op.TRUNCATE:
                file.change(entry.size, None, entry.size)
            case Op.ALLOCATE:
                file.change(0, b"", max(file.size, entry.offset + entry.size))
            case _:
                assert entry.op in (Op.MMAP, Op.MAPPED)
                if entry.op is Op.MAPPED or entry.flags & mmap.MAP_SHARED:
                    file.mapped.append(entry.data)

    def _opened(self, entry: Entry) -> Node:
        node = self.find(entry.path)
        if node is None:
            assert entry.flags & os.O_CREAT, f"{entry.path} was opened and is not there"
            node = File()
            self._parent(entry.path).change(_name(entry.path), node)
        elif entry.flags & os.O_TRUNC and isinstance(node, File):
            node.change(0, None, 0)
        return node

    def find(self, path: str) -> Node | None:
        """What a path means to a running program."""
        node: Node | None = self.root
        for name in filter(None, path.split("/")):
            node = node.seen.get(name) if isinstance(node, Folder) else None
        return node

    def _parent(self, path: str) -> Folder:
        node = self.find(path.rpartition("/")[0])
        assert isinstance(node, Folder), f"{path}: its folder is not there"
        return node

    def mapped(self) -> set[str]:
        """The paths of files that somebody writes to without a call."""
        return {path for path, node in _walk(self.root) if isinstance(node, File) and node.mapped}

    def rebuild(self, place: Path, fate: Fate) -> None:
        """Make what may be left of it, in a new folder."""
        _rebuild(self.root, place, fate)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _walk(folder: Folder, path: str = "") -> Iterator[tuple[str, Node]]:
    for name, node in folder.seen.items():
        yield path + name, node
        if isinstance(node, Folder):
            yield from _walk(node, f"{path}{name}/")


def _rebuild(folder: Folder, place: Path, fate: Fate) -> None:
    place.mkdir(mode=0o700)
    for name, node in fate.names(folder).items():
        if isinstance(node, Folder):
            _rebuild(node, place / name, fate)
            continue
        content, size = fate.content(node)
        with (place / name).open("wb") as file:
            file.write(content[:size])
            file.truncate(size)


# -- what becomes of what was not synced -------------------------------------------------------------------------------


class Fate:
    """Nothing that was not synced is left; but what is mapped the kernel has written back, unasked and before all else."""

    def names(self, folder: Folder) -> dict[str, Node]:
        return folder.kept

    def content(self, file: File) -> tuple[bytes | bytearray, int]:
        if file.mapped:
            return file.mapped[-1], file.size
        return file.kept, file.kept_size

    def __repr__(self) -> str:
        return "nothing unsynced left"


class Everything(Fate):
    """All of it is left, as if only the program had died."""

    def names(self, folder: Folder) -> dict[str, Node]:
        return folder.seen

    def content(self, file: File) -> tuple[bytes | bytearray, int]:
        if file.mapped:
            return file.mapped[-1], file.size
        content = bytearray(file.kept)
        for change in file.changes:
            _put(content, change.offset, change.data)
        return content, file.size

    def __repr__(self) -> str:
        return "everything left"


class Torn(Fate):
    """Some of it, by sector and name, as a die falls."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._die = random.Random(seed)
        self.sector = self._die.choice((512, 4096))
        self._luck = self._die.choice((0.1, 0.5, 0.9, 0.99))  # of a sector to be as it was seen last

    def __repr__(self) -> str:
        return f"torn by seed {self._seed} in sectors of {self.sector}"

    def names(self, folder: Folder) -> dict[str, Node]:
        names: dict[str, Node | None] = dict(folder.kept)
        for name, meanings in folder.history.items():
            names[name] = self._one_of([names.get(name), *meanings])
        return {name: node for name, node in names.items() if node is not None}

    def content(self, file: File) -> tuple[bytes | bytearray, int]:
        if file.mapped:
            rubbish = self._die.randbytes(file.size)
            return self._one_of([rubbish, *(begin + rubbish[len(begin) :] for begin in file.mapped)]), file.size
        content = bytearray(file.kept)
        for place, versions in self._sectors(file).items():
            left = versions[: self._one_of(range(len(versions) + 1))]
            if not left and place >= file.kept_size and self._die.random() < 0.5:
                left = [(place, self._die.randbytes(self.sector))]
            for offset, data in left:
                _put(content, offset, data)
        return content, self._one_of([file.kept_size, *(change.size for change in file.changes)])

    def _one_of(self, versions: Any) -> Any:
        """The last one if it is lucky, any one otherwise."""
        return versions[-1] if self._die.random() < self._luck else self._die.choice(versions)

    def _sectors(self, file: File) -> dict[int, list[tuple[int, bytes]]]:
        """Where each sector begins that was written to since the last sync, and the writes to it."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        end = file.kept_size
        for offset, written, size in file.changes:
            data = bytes(max(0, end - offset)) if written is None else written  # beyond a cut there are zeros
            begin, behind = offset, offset + len(data)
            while begin < behind:
                place = begin - begin % self.sector
                part = min(behind, place + self.sector)
                found.setdefault(place, []).append((begin, data[begin - offset : part - offset]))
                begin = part
            end = max(end, size)
        return found


# -- the daemon under the layer ----------------------------------------------------------------------------------------

Name: TypeAlias = tuple[str, str, int]  # kind, run, which of its events


def name_of(record: dict[str, Any]) -> Name:
    """How a record of the ledger's is told from all others, on whatever way it is met."""
    return record["kind"], record["run_id"], record["payload"]["n"] if record["kind"] == "event" else -1


def compiled(folder: Path) -> Path:
    """The layer. Raises CalledProcessError, whose stderr says why."""
    assert COMPILER is not None
    made = folder / "powerloss.so"
    command = [COMPILER, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", str(made), str(SOURCE), "-pthread"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return made


class Recorded(Daemon):
    """A daemon under the layer: what it does below `root` is in the log before it goes on."""

    layer: Path
    root: Path
    record: Path

    def spawn(self) -> None:
        """Start the process and wait for nothing."""
        variables = {
            "LD_PRELOAD": str(self.layer),
            "POWERLOSS_ROOT": str(self.root),
            "POWERLOSS_LOG": str(self.record),
        }
        with mock.patch.dict(os.environ, variables):
            super().spawn()

    def start(self) -> Self:
        """Start it and wait until it takes records."""
        before = self.record.stat().st_size
        super().start()
        assert self.record.stat().st_size > before, f"the layer is not below the daemon:\n{self.tail()}"
        return self

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Between two of its file operations; gives the log's length."""
        lock = os.open(self.record, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.record.stat().st_size
        finally:
            os.close(lock)

    def kill(self) -> None:
        """kill -9, and no operation is cut from its entry in the log."""
        with self.held():
            super().kill()


class Acked(NamedTuple):
    """Records whose acknowledgement was read when the log had this length: what it stands on is in that much of the log."""

    position: int
    names: list[Name]


class Request(NamedTuple):
    """A request that reached the platform when the log had this length."""

    position: int
    key: str
    sha256: bytes
    names: tuple[Name, ...]
    status: int


class NotedLedger(Ledger):
    """A ledger that notes how long the log was when an answer came; and all that was ever made."""

    def __init__(self, record: Path) -> None:
        super().__init__()
        self._record = record
        self.acked: list[Acked] = []
        self.made: dict[Name, dict[str, Any]] = {}

    def took(self, records: Iterable[dict[str, Any]]) -> None:
        """These were acknowledged: the log is measured after that, so that the cut which owes them is never too early."""
        records = list(records)
        self.acked.append(Acked(self._record.stat().st_size, [name_of(record) for record in records]))
        super().took(records)

    def start(self, run: str, **fields: Any) -> dict[str, Any]:
        return self._made(super().start(run, **fields))

    def event(self, run: str, **options: Any) -> dict[str, Any]:
        return self._made(super().event(run, **options))

    def end(self, run: str, kind: str = "run.complete", **fields: Any) -> dict[str, Any]:
        return self._made(super().end(run, kind, **fields))

    def _made(self, record: dict[str, Any]) -> dict[str, Any]:
        self.made[name_of(record)] = record
        return record

    def at(self, position: int) -> Ledger:
        """What the ledger of a world would say in which the power went when the log had this length."""
        ledger = Ledger()
        owed = {name for acked in self.acked if acked.position <= position for name in acked.names}
        ledger.took(record for name, record in self.made.items() if name in owed)
        ledger.maybe(record for name, record in self.made.items() if name not in owed)
        return ledger


class NotedPlatform(Watched):
    """AgentOS, with a note of what came when."""

    def __init__(self, face: Face, record: Path) -> None:
        super().__init__(face)
        self._record = record
        self.noted: list[Request] = []
        self._runs: dict[str, str] = {}  # the platform's id → the agent's

    def answer(self, call: Call) -> Answer:
        position = self._record.stat().st_size
        answer = super().answer(call)
        body = json.loads(call.body)
        what = call.path.rpartition("/")[2]
        if what == "start" and answer.status < 300:
            self._runs[json.loads(answer.body)["data"]["run_id"]] = body["external_run_id"]
        key = self.face.idempotency_key(call)
        digest = hashlib.sha256(call.body).digest()
        self.noted.append(Request(position, key, digest, tuple(self._names(what, body)), answer.status))
        return answer

    def _names(self, what: str, body: dict[str, Any]) -> list[Name]:
        if what == "events":
            return [("event", event["payload"]["run"], event["payload"]["n"]) for event in body["events"]]
        if what == "start":
            return [("run.start", body["external_run_id"], -1)]
        return [(f"run.{what}", self._runs[body["run_id"]], -1)]


class NotedTreasury(Watched):
    """AegisOS, with a note of which intent came when; each is told by its amount."""

    def __init__(self, face: Face, record: Path) -> None:
        super().__init__(face)
        self._record = record
        self.noted: list[tuple[int, float]] = []

    def answer(self, call: Call) -> Answer:
        if call.method == "POST" and call.path == "/v1/intents":
            self.noted.append((self._record.stat().st_size, json.loads(call.body)["amount"]))
        return super().answer(call)


class Asked(NamedTuple):
    """A gate whose answer was read when the log had this length."""

    position: int
    amount: float
    answer: dict[str, Any]


class Photo(NamedTuple):
    """The platforms as they were when the log had this length."""

    position: int
    platforms: Any


def _memory() -> Path | None:
    """A file system in memory that has room: each look at a disk syncs some forty times."""
    place = Path("/dev/shm")
    return place if os.access(place, os.W_OK) and shutil.disk_usage(place).free > 2**28 else None


class Recording:
    """A world whose daemon runs on a disk that will lose its power. `close` leaves nothing behind."""

    def __init__(self, sync: Sync) -> None:
        self.sync = sync
        self.photos: list[Photo] = []
        self.asked: list[Asked] = []
        self.requests: list[Request] = []
        self.intents: list[tuple[int, float]] = []
        self.world = world = World(("agentos", "aegis"))
        self.root = world.folder / "disk"
        self.root.mkdir()
        self.log = world.folder / "disk.log"
        self.log.touch()
        self.ledger = world.ledger = NotedLedger(self.log)
        faces = world.platform.faces
        self.platform = NotedPlatform(faces["agentos"].face, self.log)
        self.treasury = NotedTreasury(faces["aegis"].face, self.log)
        faces |= {"agentos": self.platform, "aegis": self.treasury}
        world.platform.watched = self.platform
        self._emulation = world.platform.sandbox._emulation
        self._emulation.faces.update(faces)  # type: ignore[arg-type]  # all that they lack is asked of the faces
        self.fast = world.folder
        if memory := _memory():
            self.fast = Path(tempfile.mkdtemp(prefix="ae-", dir=memory))
            world.on_exit(lambda: shutil.rmtree(self.fast))
        self.layer = compiled(world.folder)
        self.daemon = self._daemon(Recorded, "d", self.root)
        self._cuts = 0

    def _daemon(self, kind: type[Daemon], name: str, disk: Path) -> Any:
        url = self.world.platform.url
        aegis = {"platform": "aegis", "base_url": f"{url}/aegis", "agent_id": AGENT, "api_key": {"env": "KEY"}}
        sections = {
            "spool": {"directory": str(disk / STATE), "sync": self.sync},
            "batch": {"max_events": 20, "max_interval": "50ms"},
            "destinations.aegis": aegis,
        }
        daemon = kind(self.world.folder, name, url, sections)
        if isinstance(daemon, Recorded):
            daemon.layer, daemon.root, daemon.record = self.layer, self.root, self.log
        self.world.daemons.append(daemon)
        return daemon

    def end(self) -> None:
        """The story is told: what comes to the platforms from now on is not part of it."""
        self.requests = list(self.platform.noted)
        self.intents = list(self.treasury.noted)

    def close(self) -> None:
        self.world.close()

    def ask(self, daemon: Daemon, amount: float) -> dict[str, Any]:
        """Leave to spend; each amount is a question with a key of its own."""
        request = {"amount": amount, "currency": "USD", "reason": "office supplies"}
        question = {"gate": "intent", "request": request, "key": f"spend-{amount}"}
        status, answer = http_call(daemon.socket, "POST", "/v1/gate", json.dumps(question).encode())
        assert status == 200, answer
        return answer

    def spend(self, amount: float) -> None:
        """Ask, and note how long the log was when the answer came."""
        answer = self.ask(self.daemon, amount)
        self.asked.append(Asked(self.log.stat().st_size, amount, answer))

    # -- moments -------------------------------------------------------------------------------------------------------

    def photograph(self) -> None:
        """Remember this moment, of the disk and of the platforms."""
        watched = (self.platform, self.treasury)

        def copied() -> Any:
            return copy.deepcopy(([(one.face, one.keys_of, one.taken) for one in watched], self._emulation._books))

        with self.daemon.held() as position:
            self.photos.append(Photo(position, self.world.platform.ask(copied)))

    def restart(self, photo: Photo, disk: Path) -> Daemon:
        """The real daemon on what the disk kept, and the platforms as they were."""

        def put_back() -> None:
            faces, self._emulation._books = copy.deepcopy(photo.platforms)
            self.platform.face, self.platform.keys_of, self.platform.taken = faces[0]
            self.treasury.face, self.treasury.keys_of, self.treasury.taken = faces[1]

        self.world.platform.ask(put_back)
        self.world.ledger = self.ledger.at(photo.position)
        self._cuts += 1
        return self._daemon(Daemon, f"cut{self._cuts}", disk).start()


# -- what a start finds ------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a spool holds when it has been opened."""

    live: list[Name]  # in the order of their numbers
    dead: set[Name]
    seals: dict[str, Seal]  # by key
    gates: dict[str | None, Brief]  # by key
    errors: list[str]  # what the log says at level error
    adds_up: bool


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


_LIMITS = Limits(
    quotas={"agentos": 2**30},
    max_bytes=2**30,
    dead_bytes=2**27,
    window_bytes=2**24,
    directory_bytes=2**23,
    seen_ids=65536,
)


def look(state: Path, sync: Sync) -> Found:
    """Open the spool as a daemon that starts does, read all of it, and close it without a commit."""
    logger, ear = logging.getLogger("agentd.spool"), _Ear()
    logger.addHandler(ear)
    propagated, logger.propagate = logger.propagate, False
    try:
        return asyncio.run(_look(state, sync, ear.said))
    finally:
        logger.removeHandler(ear)
        logger.propagate = propagated


async def _look(state: Path, sync: Sync, errors: list[str]) -> Found:
    spool = await open_spool(
        state, sync=sync, limits=_LIMITS, identities={}, journal=Journal(10**15, 10**9), now_us=lambda: 1
    )
    try:
        live, dead = await spool._storage.run(_read, spool.queues)
        seals = {seal.key: seal for seal in spool.seals.all()}
        adds_up = all(spool.books.queued(name) == queue.live for name, queue in spool.queues.items())
    finally:
        await spool._loader.close()
        await spool._storage.close()
        spool.folder.close()
    gates = {stored.brief.key: stored.brief for stored in spool.ledger.gates}
    return Found(live, dead, seals, gates, errors, adds_up)


def _read(store: Rows, queues: dict[str, Any]) -> tuple[list[Name], set[Name]]:
    live: dict[int, Name] = {}
    for queue in queues.values():
        for key, segment in queue.segments.items():
            for index, entry in enumerate(segments.decode(key, store.read(key) or b"")[1]):
                if not segment.has_ended(index):
                    live[entry.number] = name_of(json.loads(entry.body))
    dead = {name_of(json.loads(letters.decode(value).body)) for _, value in store.rows(Table.DEAD)}
    return [name for _, name in sorted(live.items())], dead


class Cuts:
    """Goes through a recording and makes the disk of each cut in turn. A cut is how many operations came before it."""

    def __init__(self, recording: Recording) -> None:
        self.entries = read_log(recording.log)
        self.positions = [0, *(entry.end for entry in self.entries)]  # the log's length at each cut
        self.disk = Disk()
        self._folder = recording.fast
        self._applied = 0

    def of(self, position: int) -> int:
        """The first cut at which the log is that long."""
        return bisect_left(self.positions, position)

    def before(self, op: Op, name: str) -> list[int]:
        """The cuts that come just before such an operation."""
        return [cut for cut, entry in enumerate(self.entries) if entry.op is op and entry.path.endswith(name)]

    def advance(self, cut: int) -> None:
        """On to this cut; they come in rising order."""
        assert self._applied <= cut
        for entry in self.entries[self._applied : cut]:
            self.disk.apply(entry)
        self._applied = cut

    @contextlib.contextmanager
    def rebuilt(self, fate: Fate, folder: Path | None = None) -> Iterator[Path]:
        """The disk after the cut, in memory or in this folder; it is removed in the end."""
        place = (folder or self._folder) / "cut"
        self.disk.rebuild(place, fate)
        try:
            yield place
        finally:
            shutil.rmtree(place)
