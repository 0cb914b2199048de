"""Who owns which run, and whose owner is gone. Pure: admitted records, deaths and `now` go in, decisions come out.

A run is watched from its `run.start` on a connection that owns runs, at each destination that took it, until its terminal
record is admitted there, whoever sent it. Its owner is the last owning process that wrote anything to it. When a process is
gone its runs have `grace_s` left: for a record of another owning process, which takes them over, or for a terminal one.

Each watched run has a row on disk, which goes there with the record that made it so (`Change.rows`). An empty row says that
the terminal record is in; it is dropped with a later commit. What the disk refuses is undone here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from agentd.queued import Entry, Ref
from agentd.records import RUN_ENDS

ORIGIN = "agentd"  # of the records that end orphans
MESSAGE = "agent process ended"


class Owner(Struct, frozen=True, array_like=True):
    """A process, so that it is known again after a restart of agentd. What could not be read is 0 or empty."""

    boot: str  # /proc/sys/kernel/random/boot_id: pids and times of another boot say nothing
    pid_space: int  # of agentd, for the same reason (inode of /proc/self/ns/pid)
    pid: int  # as agentd sees it; 0 in a pid namespace that is hidden from it
    start: int  # clock ticks between boot and its start, field 22 of /proc/PID/stat (proc_pid_stat(5))
    inode: int  # of its pidfd, which no other process has in this boot (pidfs, Linux 6.9)
    uid: int
    stream: str  # of its hello


class Process:
    """A process that owns runs. All of its connections have the same object, and its runs hold it."""

    __slots__ = ("__weakref__", "gone_us", "owner", "runs")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.gone_us = 0  # when it was seen to be gone; 0: it was not
        self.runs: dict[Run, None] = {}

    def __repr__(self) -> str:
        return f"<Process {self.owner.pid}{' gone' if self.gone_us else ''} {len(self.runs)} runs>"


class Run(Struct, eq=False):
    """A run that is watched."""

    row: int
    lane: str
    uid: int  # whose it is, and which agent's, as its reference has it
    agent: str
    process: Process
    open_at: list[str]
    closing: list[str] = field(default_factory=list)  # destinations whose terminal record is on its way to the disk
    is_stored: bool = False
    is_asked: bool = False  # our own end of it is on its way
    is_resting: bool = False  # its start is a dead letter wherever it is open: nothing to end, unless that is replayed

    @property
    def run_id(self) -> str:
        return self.lane.partition(":")[2]


class Kept(Struct, frozen=True, array_like=True):
    """The row of a run."""

    lane: str
    uid: int
    agent: str
    open_at: list[str]
    owner: Owner
    gone_us: int = 0


class Late(NamedTuple):
    """A record of ours that ended a run, and is to be taken back: the run's own end has come after all."""

    destination: str
    lane: str
    record_id: bytes


class Change(Struct):
    """What a message changes. It holds as soon as it was admitted, and is kept or undone when the disk has spoken."""

    begun: list[tuple[Run, str]] = field(default_factory=list)
    closed: list[tuple[Run, str]] = field(default_factory=list)
    ended: list[Late] = field(default_factory=list)  # by us
    late: list[Late] = field(default_factory=list)
    touched: dict[Run, None] = field(default_factory=dict)

    def rows(self) -> list[tuple[int, bytes]]:
        """What goes to disk with the message."""
        written = [run for run in self.touched if run.open_at or run.is_stored]
        for run in written:
            run.is_stored = True
        return [(run.row, encode(run)) for run in written]


class Orphans:
    """Every run that is watched. Times are monotonic seconds unless they say otherwise."""

    def __init__(
        self, grace_s: float, new_row: Callable[[], int], takes: Callable[[str, str], bool] = lambda _name, _agent: True
    ) -> None:
        """`takes(destination, agent)` says whether the end of a run can be sent there at all."""
        self.grace_s = grace_s
        self._new_row = new_row
        self._takes = takes
        self._runs: dict[str, tuple[Run, ...]] = {}  # by lane; two users may have runs of one name at two destinations
        self._gone: dict[Process, float] = {}  # with the time when what it has left is due
        self._ended: dict[str, dict[str, bytes]] = {}  # by us: lane → destination → record id

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter([run for runs in self._runs.values() for run in runs])

    def __repr__(self) -> str:
        return f"<Orphans {len(self)} runs watched, {len(self._gone)} processes gone>"

    # -- what comes in -----------------------------------------------------------------------------------------------

    def restore(self, row: int, kept: Kept, process: Process) -> None:
        """Take over a row of a start."""
        run = Run(row, kept.lane, kept.uid, kept.agent, process, list(kept.open_at), is_stored=True)
        self._add(run)

    def admitted(
        self,
        copies: Mapping[str, Sequence[Entry]],
        introduced: Sequence[Ref],
        process: Process | None,
        now: float,
    ) -> Change | None:
        """Records on their way to disk; `process` None: their connection owns no runs. None if that changes nothing."""
        begins = introduced if process is not None else ()
        if not (self._runs or self._ended or begins):
            return None
        change = Change()
        if process is not None:
            for ref in begins:
                if ref.kind == "run" and self._takes(ref.destination, ref.agent):
                    self._begin(ref, process, change, now)
            for destination, entries in copies.items():
                self._write(destination, entries, process, change, now)
        for destination, entries in copies.items():
            for entry in [entry for entry in entries if entry.kind in RUN_ENDS]:
                self._close(entry, destination, change)
        return change if change.touched or change.late else None

    def _begin(self, ref: Ref, process: Process, change: Change, now: float) -> None:
        known = [run for run in self._runs.get(ref.lane, ()) if (run.uid, run.agent) == (ref.uid, ref.agent)]
        run = known[0] if known else Run(self._new_row(), ref.lane, ref.uid, ref.agent, process, [])
        if not known:
            self._add(run)
        run.is_resting = False
        if ref.destination not in run.open_at:
            run.open_at.append(ref.destination)
            change.begun.append((run, ref.destination))
            change.touched[run] = None
        self._hand_over(run, process, change, now)

    def _write(self, destination: str, entries: Sequence[Entry], process: Process, change: Change, now: float) -> None:
        runs = self._runs
        for lane in {entry.lane for entry in entries}:
            for run in runs.get(lane, ()):
                if run.process is process and not process.gone_us:
                    continue
                if destination in run.open_at or any(
                    entry.lane == lane and (entry.source.uid, entry.source.agent) == (run.uid, run.agent)
                    for entry in entries
                ):
                    self._hand_over(run, process, change, now)

    def _hand_over(self, run: Run, process: Process, change: Change, now: float) -> None:
        """The process has written to the run. What a dead one has left behind is read now: its time begins anew."""
        if run.process is not process:
            del run.process.runs[run]
            run.process = process
            process.runs[run] = None
            change.touched[run] = None
        if process.gone_us:
            self._gone[process] = now + self.grace_s

    def _close(self, entry: Entry, destination: str, change: Change) -> None:
        ended = self._ended.get(entry.lane, {})
        is_ours = entry.source.origin == ORIGIN
        if not is_ours and destination in ended:
            change.late.append(Late(destination, entry.lane, ended[destination]))
        for run in self._runs.get(entry.lane, ()):
            if _take(run.open_at, destination):
                run.closing.append(destination)
                change.closed.append((run, destination))
                change.touched[run] = None
                if is_ours:
                    change.ended.append(Late(destination, entry.lane, entry.record_id))
                    self._ended.setdefault(entry.lane, {})[destination] = entry.record_id

    # -- what the disk says ------------------------------------------------------------------------------------------

    def kept(self, change: Change) -> tuple[list[int], list[Late]]:
        """It is on disk. Returns rows that are not needed any more, and records of ours that are to be taken back."""
        for run, destination in change.closed:
            _take(run.closing, destination)
        late = [one for one in change.late if self._ended.get(one.lane, {}).pop(one.destination, b"") == one.record_id]
        self._tidy(change.late)
        return self._let_go(change.touched), late

    def undone(self, change: Change) -> list[tuple[int, bytes]]:
        """The disk had no room for it. Returns rows that are to be written as they are now."""
        for run, destination in change.closed:
            if _take(run.closing, destination):
                run.open_at.append(destination)
        for run, destination in change.begun:
            if not _take(run.open_at, destination):
                _take(run.closing, destination)
        for one in change.ended:
            self._ended.get(one.lane, {}).pop(one.destination, None)
        self._tidy(change.ended)
        self._let_go(change.touched)
        return [(run.row, encode(run)) for run in change.touched if run.open_at]

    def _tidy(self, changed: Iterable[Late]) -> None:
        for one in changed:
            if not self._ended.get(one.lane, True):
                del self._ended[one.lane]

    def _let_go(self, touched: Iterable[Run]) -> list[int]:
        over = [run for run in touched if not (run.open_at or run.closing)]
        for run in over:
            self.forget(run)
        return [run.row for run in over if run.is_stored]

    # -- the end -----------------------------------------------------------------------------------------------------

    def gone(self, process: Process, now: float, now_us: int) -> list[tuple[int, bytes]]:
        """The process has ended. Returns the rows that say so."""
        process.gone_us = process.gone_us or now_us
        if process.runs:
            self._gone[process] = now + self.grace_s
        return [(run.row, encode(run)) for run in process.runs if run.open_at]

    def due(self, now: float) -> dict[Process, list[Run]]:
        """Runs whose time is over, by their owner: still open, not resting, and not asked to end already."""
        self._gone = {process: at for process, at in self._gone.items() if process.runs}
        found = {process: _open(process) for process, at in self._gone.items() if at <= now}
        return {process: runs for process, runs in found.items() if runs}

    def left_behind(self) -> dict[Process, list[Run]]:
        """The same, whatever time they have left."""
        return {process: runs for process in self._gone if (runs := _open(process))}

    def close(self, run: Run, destinations: Iterable[str]) -> tuple[list[tuple[int, bytes]], list[int]]:
        """There is nothing to be ended at these. Returns the row as it is now, or that it is not needed any more."""
        run.open_at = [name for name in run.open_at if name not in destinations]
        if run.open_at:
            return [(run.row, encode(run))], []
        return [], self._let_go([run])

    def forget(self, run: Run) -> None:
        """Watch it no more; its row stays as it is."""
        left = tuple(other for other in self._runs.get(run.lane, ()) if other is not run)
        if left:
            self._runs[run.lane] = left
        else:
            self._runs.pop(run.lane, None)
        run.process.runs.pop(run, None)

    def settle(self, is_over: Callable[[str, str], bool]) -> None:
        """Forget ends of ours that are out: `is_over(destination, lane)`."""
        for lane, ended in list(self._ended.items()):
            left = {name: record_id for name, record_id in ended.items() if not is_over(name, lane)}
            if left:
                self._ended[lane] = left
            else:
                del self._ended[lane]

    def _add(self, run: Run) -> None:
        self._runs[run.lane] = (*self._runs.get(run.lane, ()), run)
        run.process.runs[run] = None


def _open(process: Process) -> list[Run]:
    return [run for run in process.runs if run.open_at and not (run.is_asked or run.is_resting)]


def _take(names: list[str], name: str) -> bool:
    """Take it out, if it is there."""
    if name not in names:
        return False
    names.remove(name)
    return True


def encode(run: Run) -> bytes:
    """Its row; empty once its end is in."""
    if not run.open_at:
        return b""
    process = run.process
    return msgspec.msgpack.encode(Kept(run.lane, run.uid, run.agent, run.open_at, process.owner, process.gone_us))


def decode(value: bytes) -> Kept | None:
    """None for the row of a run that has ended. Raises msgspec.MsgspecError."""
    try:
        return msgspec.msgpack.decode(value, type=Kept) if value else None
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
