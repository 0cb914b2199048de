"""Looking into a spool without changing it: what a daemon would find there at its start, from the same code.

Works on a stopped daemon's folder and beside a running one, which goes on meanwhile. Where none runs nothing keeps one from
starting: what was read then is of no one moment, and is not given out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agentd.errors import SpoolDamaged, StateError
from agentd.spool.folder import Folder
from agentd.spool.journal import Journal
from agentd.spool.ledger import Ledger, Limits
from agentd.spool.readonly import ReadOnlyStore, become_owner
from agentd.spool.recovery import Survey

_UNBOUNDED = 2**62


class Look(NamedTuple):
    """What the disk says at one moment, and the rows themselves."""

    ledger: Ledger
    store: ReadOnlyStore


@contextmanager
def look(directory: Path, now_us: int) -> Iterator[Look]:
    """The spool in a state folder, only read. Raises StateError, SpoolDamaged.

    `ledger.books` are those that a daemon would go on with; those on disk, right or wrong, are `ledger.meta.books`.
    """
    with open_rows(directory) as store:
        limits = Limits({}, _UNBOUNDED, _UNBOUNDED, 1, _UNBOUNDED, 1)
        ledger = Ledger(Folder(directory), limits, Journal(_UNBOUNDED, _UNBOUNDED), lambda: now_us)
        Survey(ledger, store, sets_aside=False).run({})
        yield Look(ledger, store)


@contextmanager
def open_rows(directory: Path) -> Iterator[ReadOnlyStore]:
    """The rows alone, of one moment. Raises StateError, also where a daemon was started meanwhile; SpoolDamaged."""
    become_owner(directory)
    folder = Folder(directory).spool
    before, was_running = _files(folder), running_pid(directory) is not None
    store = ReadOnlyStore(folder)
    try:
        yield store
        error = None
    except SpoolDamaged as damage:  # perhaps only because it was written to meanwhile
        error = damage
    finally:
        store.close()
    changed = _files(folder) != before or (running_pid(directory) is not None) != was_running
    if changed and (store.alone or not was_running):
        raise StateError(f"{directory}: a daemon was started while it was read: try again") from error
    if error is not None:
        raise error


def _files(folder: Path) -> list[tuple[int, ...]]:
    """By which one sees that somebody has written."""
    found: list[tuple[int, ...]] = []
    for name in ("cache.db", "cache.db-wal"):
        try:
            info = (folder / name).stat()
        except OSError:
            continue
        found.append((info.st_ino, info.st_size, info.st_mtime_ns))
    return found


def running_pid(directory: Path) -> int | None:
    """The process that holds the folder's lock, as the kernel says (proc_locks(5)); None if nobody does. Takes no lock itself."""
    try:
        lock = (directory / "lock").stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if "FLOCK" in fields and int(fields[-3].rpartition(":")[2]) == lock.st_ino and "->" not in fields:
            return int(fields[-4])
    return None
