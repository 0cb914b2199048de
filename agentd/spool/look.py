"""Looking into a spool without changing it: what a daemon would find there at its start, from the same code.

Works on a stopped daemon's folder and beside a running one, which goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
    """The spool in a state folder, only read. Raises StateError, SpoolDamaged."""
    become_owner(directory)
    folder = Folder(directory)
    store = ReadOnlyStore(folder.spool)
    try:
        limits = Limits({}, _UNBOUNDED, _UNBOUNDED, 1, _UNBOUNDED, 1)
        ledger = Ledger(folder, limits, Journal(_UNBOUNDED, _UNBOUNDED), lambda: now_us)
        Survey(ledger, store, sets_aside=False).run({})
        yield Look(ledger, store)
    finally:
        store.close()


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
