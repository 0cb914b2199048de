"""The reaper: ends runs whose agent process is gone, by a `run.fail` in the name of whoever began them.

    reaper = Reaper(shelf, table, 30.0, 2048)
    sink = SpoolSink(…, runs=reaper)
    await reaper.start(sink)      # what was watched before the restart is watched again
    reaper.tick()                 # about once a second
    reaper.stop(); reaper.close()

Who owns what is decided by `orphans`, who lives by `pidfds`. The end of a run is admitted like any record and so is counted,
routed and kept like one; what finds no room comes again with a later tick, and after a restart it is decided anew.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace

from agentd.intake import OwnerRows, Peer, Sink
from agentd.intake.admit import FULL
from agentd.intake.orphans import MESSAGE, ORIGIN, Change, Kept, Orphans, Owner, Process, Run, decode
from agentd.intake.pidfds import Pidfds, here, identity, open_again, peer_pidfd
from agentd.intake.routing import Table
from agentd.queued import DEAD, Entry, Ref
from agentd.records import LossClass, RunFail
from agentd.units import rfc3339
from agentd.wire import Ack, Hello, Message, encode

log = logging.getLogger("agentd.intake")

_MOST_A_TICK = 1000  # ends of runs, of one process: 10 ms of the event loop
_END_BYTES = 1024  # of a run.fail of ours, at most: its run's name may have 256 characters
_SETTLE_EVERY_TICKS = 60
_LOG_EVERY_S = 10.0
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Store(Protocol):
    """What the reaper asks of the spool."""

    def owners(self, kind: str, local_id: str) -> Sequence[Ref]: ...
    def room_for(self, destination: str, size: int, loss: LossClass) -> bool: ...
    def new_owner_row(self) -> int: ...
    def owner_row(self, row: int, value: bytes) -> Any:
        """The row for an append."""
        ...

    def keep_owners(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Write rows with the next commit that has room."""
        ...

    def drop_owners(self, rows: Sequence[int]) -> None: ...
    async def stored_owners(self) -> list[tuple[int, bytes | None]]:
        """(row, value) of a start; None for a row that is damaged."""
        ...

    def withdraw(self, destination: str, lane: str, record_id: bytes) -> bool:
        """Take a record out of the queue again; False where it may have been sent, or is not in memory."""
        ...


class Reaper:
    """See the module, and `agentd.intake.Runs`."""

    def __init__(
        self,
        store: Store,
        table: Table,
        grace_s: float,
        max_files: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """`table` says who takes the end of a run; `max_files` bounds the pidfds."""
        self.ended = 0  # runs, since the start
        self._store = store
        self._table = table
        self._clock = clock
        self._now_us = now_us
        self._orphans = Orphans(grace_s, store.new_owner_row, self._takes)
        self._pidfds = Pidfds(self._gone, max_files)
        self._unwatched: set[Process] = set()  # that own runs, and have no pidfd so far
        self._known: WeakValueDictionary[tuple[str, int, int | str], Process] = WeakValueDictionary()
        self._boot, self._pid_space = here()
        self._sink: Sink | None = None
        self._stopped = False
        self._ticks = 0
        self._logged = float("-inf")

    def __repr__(self) -> str:
        return f"<Reaper {self._orphans!r}, {len(self._pidfds)} pidfds>"

    def status(self) -> dict[str, int]:
        """See `agentd.intake.Runs`."""
        return {"watched": len(self._orphans), "orphans_ended": self.ended}

    def _takes(self, destination: str, agent: str) -> bool:
        return self._table.takes(destination, "run.fail", agent)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> None:
        """Take over the rows of the last start. Ends of runs go into `sink`."""
        self._sink = sink
        found: dict[tuple[Owner, int], Process] = {}
        over: list[int] = []
        for row, value in await self._store.stored_owners():
            kept = _read(value)
            if kept is None:
                over.append(row)
                continue
            owner = kept.owner
            process = found.setdefault(_whose(owner, row), Process(owner))
            process.gone_us = process.gone_us or kept.gone_us
            self._orphans.restore(row, kept, process)
        self._store.drop_owners(over)
        for process in found.values():
            self._find_again(process)

    def _find_again(self, process: Process) -> None:
        """A process of before the restart: watched again, gone, or not to be known until it says hello again."""
        owner = process.owner
        if process.gone_us or (owner.boot and self._boot and owner.boot != self._boot):
            self._gone(process)
            return
        self._remember(process)
        if owner.pid_space != self._pid_space:
            return
        self._hold(process, lambda: self._pidfds.hold(process, open_again(owner)))

    def follow(self, table: Table, grace_s: float) -> None:
        """By these from now on; who is gone already keeps the time that he was given."""
        self._table = table
        self._orphans.grace_s = grace_s

    def stop(self) -> None:
        """Declare nobody an orphan from now on: it is decided again after the next start."""
        self._stopped = True

    def close(self) -> None:
        self._stopped = True
        self._pidfds.close()

    # -- agentd.intake.Runs --------------------------------------------------------------------------------------------

    def claim(self, hello: Hello, peer: Peer, transport: asyncio.Transport) -> Peer:
        """The peer as the owner of the runs that it starts; as it was where nothing can be known of its process."""
        sock = transport.get_extra_info("socket")
        owner = Owner(self._boot, self._pid_space, peer.pid, 0, 0, peer.uid, hello.stream or "")
        try:
            pidfd = peer_pidfd(sock, peer.pid)
        except ProcessLookupError:  # it has said all that it will ever say
            process = Process(owner)
            self._gone(process)
            return replace(peer, process=process)
        except OSError as error:
            self._complain(None, error)
            return peer
        try:
            found = identity(pidfd, peer.pid)
        except OSError as error:  # no descriptor left to look with
            os.close(pidfd)
            self._complain(None, error)
            return peer
        process = self._process(replace(owner, start=found.start, inode=found.inode))
        self._pidfds.connect(process, transport)
        self._hold(process, lambda: self._pidfds.hold(process, pidfd))
        return replace(peer, process=process)

    def admitted(
        self, copies: Mapping[str, Sequence[Entry]], introduced: Sequence[Ref], process: Process | None
    ) -> OwnerRows | None:
        """See `agentd.intake.Runs`."""
        change = self._orphans.admitted(copies, introduced, process, self._clock())
        if change is None:
            return None
        if process is not None and process.runs and process not in self._pidfds:
            self._hold(process, lambda: self._pidfds.reopen(process))
        return OwnerRows(
            [self._store.owner_row(row, value) for row, value in change.rows()], partial(self._on_disk, change)
        )

    def _on_disk(self, change: Change, done: asyncio.Future[None]) -> None:
        if done.cancelled():
            return
        if done.exception() is not None:
            self._store.keep_owners(self._orphans.undone(change))
            return
        over, late = self._orphans.kept(change)
        self._store.drop_owners(over)
        for one in late:
            taken_back = self._store.withdraw(one.destination, one.lane, one.record_id)
            log.info(
                "%s: %s was ended by its agent after all: our end of it %s", one.destination, one.lane,
                "is taken back" if taken_back else "is on its way already",
                extra={"action": "orphan_taken_back" if taken_back else "orphan_late", "destination": one.destination},
            )  # fmt: skip

    # -- processes -----------------------------------------------------------------------------------------------------

    def _process(self, owner: Owner) -> Process:
        """The process as it is known already, by what can't be another's; where nothing can be read, by its stream."""
        for key in _keys(owner):
            process = self._known.get(key)
            if process is None or process.gone_us:
                continue  # who is gone says no hello: it is another one, after a reboot that is hidden
            known = process.owner
            if key[0] != "stream" or not (known.start or known.inode or owner.start or owner.inode):
                process.owner = owner
                self._remember(process)
                return process
        process = Process(owner)
        self._remember(process)
        return process

    def _remember(self, process: Process) -> None:
        for key in _keys(process.owner):
            self._known[key] = process

    def _hold(self, process: Process, how: Callable[[], None]) -> None:
        try:
            how()
        except ProcessLookupError:
            self._gone(process)
        except OSError as error:
            self._complain(process, error)
        else:
            self._unwatched.discard(process)

    def _complain(self, process: Process | None, error: OSError) -> None:
        """Nobody will hear of this process's end; where descriptors were lacking it is watched as soon as there is one."""
        if process is not None and error.errno in _PASSING:
            self._unwatched.add(process)
        if self._clock() - self._logged >= _LOG_EVERY_S:
            self._logged = self._clock()
            log.warning(
                "runs of an agent process are not watched: %s", error.strerror or error, extra={"action": "unwatched"}
            )

    def _gone(self, process: Process) -> None:
        """It has ended, or had before we looked."""
        self._pidfds.release(process)
        self._unwatched.discard(process)
        self._store.keep_owners(self._orphans.gone(process, self._clock(), self._now_us()))

    # -- orphans -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """End what is due, and tidy up; about once a second."""
        if self._stopped:
            return
        self._ticks += 1
        self._pidfds.trim()
        self._unwatched = {process for process in self._unwatched if process.runs}
        for process in list(self._unwatched):
            self._hold(process, partial(self._pidfds.reopen, process))
        if self._ticks % _SETTLE_EVERY_TICKS == 0:
            self._settle()
        for process, runs in self._orphans.due(self._clock()).items():
            if not self._pidfds.has_more(process):
                self._end(process, runs[:_MOST_A_TICK])

    def end_all(self) -> None:
        """End at once whatever a dead process has left: agentd ends for good, and nobody can take it over any more."""
        for process in self._pidfds:
            if self._pidfds.has_ended(process):
                self._gone(process)
        for process, runs in self._orphans.left_behind().items():
            self._end(process, runs)

    def _settle(self) -> None:
        """Watch no run of which nothing is known any more, see what was replayed, and forget those whose end is delivered."""
        for run in self._orphans:
            self._check(run)
        self._orphans.settle(lambda name, lane: not self._open_at(lane.partition(":")[2]).get(name))

    def _open_at(self, run_id: str) -> dict[str, bool]:
        """The destinations where a run of that name has not ended, and whether it can be: not while its start is a dead letter."""
        refs = self._store.owners("run", run_id)
        return {ref.destination: ref.state != DEAD for ref in refs if not ref.ended and ref.local_id == run_id}

    def _check(self, run: Run) -> list[str]:
        """Close it where nothing is left to be ended. Returns where it can be ended now."""
        known = self._open_at(run.run_id)
        over = set(run.open_at) - known.keys()
        if over:
            rows, dropped = self._orphans.close(run, over)
            self._store.keep_owners(rows)
            self._store.drop_owners(dropped)
        living = [name for name in run.open_at if known[name]]
        run.is_resting = not living
        return living

    def _end(self, process: Process, runs: Sequence[Run]) -> None:
        """Hand in the ends of these runs, as far as there is room for them."""
        batches: dict[int, list[tuple[Run, RunFail]]] = {}
        for run in runs:
            living = self._check(run)
            if not living:
                continue
            taking = [name for name in living if self._takes(name, run.agent)]
            if not taking:
                self._orphans.forget(run)  # its destinations are not configured now: a later start may see it otherwise
                continue
            to = [name for name in taking if self._store.room_for(name, _END_BYTES, LossClass.KEEP)]
            if to:
                batches.setdefault(run.uid, []).append((run, _failure(run, to)))
        for uid, batch in batches.items():
            self._submit(Peer(uid, -1, process.owner.pid), batch)

    def _submit(self, peer: Peer, batch: list[tuple[Run, RunFail]]) -> None:
        assert self._sink is not None  # noqa: S101 - there are no runs before the start
        for run, _ in batch:
            run.is_asked = True
        message = Message(None, [record for _, record in batch])
        future = self._sink.submit(message, peer, stream=None, origin=ORIGIN, hold=False)
        future.add_done_callback(partial(self._answered, [run for run, _ in batch]))

    def _answered(self, runs: Sequence[Run], done: asyncio.Future[Ack]) -> None:
        if done.cancelled():
            return
        refused = {rejected.index: rejected.error for rejected in done.result().rejected}
        for index, run in enumerate(runs):
            run.is_asked = False
            reason = refused.get(index)
            if reason is None:
                self.ended += 1
                self._say(run)
            elif reason != FULL:  # for want of room it comes again with the next tick
                log.warning(
                    "run %s: its agent process ended, and it can't be ended: %s", run.run_id, reason,
                    extra={"action": "orphan_refused", "run": run.run_id},
                )  # fmt: skip
                self._orphans.forget(run)

    def _say(self, run: Run) -> None:
        owner = run.process.owner
        log.warning(
            "run %s: its agent process (pid %d) has ended: failed", run.run_id, owner.pid,
            extra={"action": "orphan_ended", "run": run.run_id, "pid": owner.pid},
        )  # fmt: skip


def _failure(run: Run, to: list[str]) -> RunFail:
    """`noticed_at` is when agentd saw that the process had ended: at once, or at the start after it."""
    detail = {"noticed_at": rfc3339(run.process.gone_us / 1e6)}
    return RunFail(
        run_id=run.run_id, error_message=MESSAGE, error_detail=msgspec.Raw(encode(detail)), to=to,
        agent_id=run.agent or None,
    )  # fmt: skip


def _whose(owner: Owner, row: int) -> tuple[Owner, int]:
    """What is the same for the rows of one process: several of its clients have streams of their own."""
    if owner.start or owner.inode:
        return replace(owner, stream=""), 0
    return (owner, 0) if owner.stream else (owner, row)  # of which nothing is known is nobody else


def _keys(owner: Owner) -> list[tuple[str, int, int | str]]:
    """By what a process is known, the best first."""
    keys: list[tuple[str, int, int | str]] = []
    if owner.inode:
        keys.append(("inode", owner.inode, 0))
    if owner.pid > 0 and owner.start:
        keys.append(("pid", owner.pid, owner.start))
    if owner.stream:
        keys.append(("stream", owner.uid, owner.stream))
    return keys


def _read(value: bytes | None) -> Kept | None:
    """A row's run, None where there is none to watch."""
    try:
        if value is not None:
            return decode(value)
    except msgspec.MsgspecError:
        pass
    log.error("the row of a run is damaged: it is not watched any more", extra={"action": "quarantine"})
    return None
