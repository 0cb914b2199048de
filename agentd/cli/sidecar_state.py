"""Where a sidecar keeps its records: a folder that outlives it, so that the next one of the same destinations takes over.

    <spool.directory>/sidecars/<what it is for>-<n>/      a state folder; `settled` in it says that it holds nothing to send

What it is for is a digest of the destinations with their platforms, addresses and agents: records are never handed to
another place than the one that they were taken for. Two sidecars at a time have two folders. None is ever deleted: its
journal is evidence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentd.errors import StateError

_SETTLED = "settled"
_MAX_FOLDERS = 1000  # sidecars of the same destinations at one time


def purpose(identities: Mapping[str, str]) -> str:
    """A short name of what the records of these destinations are for."""
    text = "\n".join(f"{name}={identity}" for name, identity in sorted(identities.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def choose(base: Path, identities: Mapping[str, str]) -> Path:
    """The folder to use: a free one that may still hold records, else any free one, else a new one. Raises StateError."""
    stem = purpose(identities)
    free = [folder for folder in _existing(base, stem) if _is_free(folder)]
    unsettled = [folder for folder in free if not (folder / _SETTLED).exists()]
    if unsettled or free:
        chosen = (unsettled or free)[0]
        with contextlib.suppress(FileNotFoundError):
            (chosen / _SETTLED).unlink()
        return chosen
    return _create(base, stem)


def waiting(base: Path, identities: Mapping[str, str]) -> list[Path]:
    """Free folders of the same purpose that may still hold records: sidecars that ran beside one another left them."""
    return [f for f in _existing(base, purpose(identities)) if not (f / _SETTLED).exists() and _is_free(f)]


def foreign(base: Path, identities: Mapping[str, str]) -> list[Path]:
    """Free folders of other purposes that may still hold records: for other destinations, or for these under another address."""
    if not base.is_dir():
        return []
    stem = purpose(identities) + "-"
    folders = sorted(folder for folder in base.iterdir() if folder.is_dir() and not folder.name.startswith(stem))
    return [folder for folder in folders if not (folder / _SETTLED).exists() and _is_free(folder)]


def settle(folder: Path) -> None:
    """It holds nothing that has to be sent: the next sidecar looks for another one first."""
    with contextlib.suppress(OSError):  # it is a hint alone
        (folder / _SETTLED).touch(mode=0o600)


def _existing(base: Path, stem: str) -> Iterator[Path]:
    for number in range(1, _MAX_FOLDERS):
        folder = base / f"{stem}-{number}"
        if not folder.is_dir():
            return
        yield folder


def _create(base: Path, stem: str) -> Path:
    for number in range(1, _MAX_FOLDERS):
        folder = base / f"{stem}-{number}"
        try:
            for place in (*reversed(base.parents), base):  # mkdir gives the parents that it makes another mode
                place.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise StateError(f"{folder}: {error.strerror}; set spool.directory to a folder of yours") from error
        return folder
    raise StateError(f"{base}: {_MAX_FOLDERS} sidecars run already")


def _is_free(folder: Path) -> bool:
    """Whether no daemon holds its lock; that one who takes it after us is told so by the lock itself."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
