"""Opening the store: one that is damaged as a whole is rebuilt from what is whole of it, and a full disk gets its reserve.

Runs in the storage thread. Damage never keeps a daemon from starting, with one exception: while the disk has no room for the new
store beside the old one, nothing is changed and nothing is given up; the error says how much room it takes.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentd.errors import SpoolDamaged, StateError
from agentd.spool.folder import Folder
from agentd.spool.newer import refuse_newer
from agentd.spool.rebuild import Lost, Rebuilt, needed_bytes, rebuild, salvage_of
from agentd.spool.salvage import Salvage
from agentd.spool.store import DiskFull, Rows
from agentd.units import format_size
from agentd.vitals import Pace

log = logging.getLogger("agentd.spool")

# for the log and its index, which SQLite removes at each end in order; without room for that it says "disk I/O error" alone
_START_BYTES = 2**20
_TOLD = 20  # lost rows that have a line of their own in the log


def open_store(
    folder: Folder, opener: Callable[[Path], Rows], *, synced: bool, stamp: str, pace: Pace | None = None
) -> tuple[Rows, Rebuilt | None]:
    """The open store, and what became of a damaged one where it was rebuilt. `synced`: each of its commits was synced.

    `stamp` names the damaged one's place in the quarantine, `pace` is stepped while it is read. Raises StateError.
    """
    read = partial(salvage_of, synced=synced, pace=pace)
    try:
        place = folder.finish_swap(stamp)
    except OSError as error:
        raise StateError(f"{folder.path}: what a start before has salvaged can't take its place: {error}") from error
    if place is not None:
        log.error("a damaged spool was set aside in %s", place, extra={"action": "quarantine"})
    refuse_newer(folder.spool)
    rebuilt = Rebuilt(counted=False) if folder.is_unmended else None
    for _ in range(3):
        try:
            return opener(folder.spool), rebuilt
        except SpoolDamaged as error:
            rebuilt = _replace(folder, error, opener, read, stamp=stamp)
        except (DiskFull, StateError) as error:
            if isinstance(error, StateError) and folder.free_bytes() >= _START_BYTES:
                raise
            if not folder.release_ballast():
                room = f"the disk is full, and a start takes about {format_size(_START_BYTES)} of it"
                raise StateError(f"{folder.spool}: {room} ({error})") from error
            log.error("disk full at start (%s): reserve given back", error, extra={"action": "disk_full"})
    raise StateError(f"{folder.spool}: can't be opened")


def _replace(
    folder: Folder,
    error: SpoolDamaged,
    opener: Callable[[Path], Rows],
    read: Callable[[Path], Salvage],
    *,
    stamp: str,
) -> Rebuilt:
    """Build a new store beside the damaged one, then let it take its place."""
    log.warning("spool damaged: %s; looking for what is whole of it", error, extra={"action": "salvage"})
    made = Rebuilt()
    try:
        with read(folder.spool) as source:
            _survey(source)
            needed = needed_bytes(source)
            _find_room(folder, error, needed)
            try:
                _fill(folder, source, opener, made)
            except DiskFull as full:
                folder.begin_salvage()  # gives back what was taken
                raise _no_room(folder, error, needed) from full
        place = folder.quarantine(stamp)
        log.error(
            "spool damaged: %s; set aside in %s, beginning a new one: %s", error, place, made,
            extra={"action": "quarantine"},
        )  # fmt: skip
        _tell(made.lost)
        folder.swap(place)
    except (sqlite3.Error, OSError) as failure:
        raise StateError(f"the spool is damaged ({error}), and can't be made anew: {failure}") from failure
    return made


def _survey(source: Salvage) -> None:
    try:
        source.survey()
    except Exception:  # a defect of ours must not keep the daemon from starting: what was found until then is taken
        log.exception("looking through the damaged spool failed", extra={"action": "defect"})


def _find_room(folder: Folder, error: SpoolDamaged, needed: int) -> None:
    if folder.free_bytes() < needed and folder.release_ballast():
        log.error("little room to save what is whole: reserve given back", extra={"action": "disk_full"})
    if folder.free_bytes() < needed:
        raise _no_room(folder, error, needed)


def _no_room(folder: Folder, error: SpoolDamaged, needed: int) -> StateError:
    return StateError(
        f"the spool is damaged ({error}), and what is whole of it needs {needed} bytes of room beside it, {folder.free_bytes()} are "
        f"free in {folder.path}: make room and start again; nothing was changed"
    )


def _fill(folder: Folder, source: Salvage, opener: Callable[[Path], Rows], made: Rebuilt) -> None:
    store = opener(folder.begin_salvage())
    try:
        rebuild(source, store, made)
    finally:
        store.close()


def _tell(lost: list[Lost]) -> None:
    """Which records were in rows that are lost, as far as the rows still say so."""
    known = [each for each in lost if each.directory is not None]
    for each in known[:_TOLD]:
        held = each.directory
        assert held is not None  # noqa: S101 - those alone
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(held.kinds.items()))
        log.error(
            "%s: %s: of the records %d-%d (%s) those that had not ended are lost",
            held.destination, each.reason, held.first, held.last, kinds,
            extra={"action": "quarantine", "destination": held.destination},
        )  # fmt: skip
    if len(known) > _TOLD:
        log.error("and %d more such rows", len(known) - _TOLD, extra={"action": "quarantine"})
