"""The state folder: ours alone, one daemon at a time, with room kept back for the day when the disk is full.

<directory>/            0700, owned by us, no symlink
    lock                flock held while a daemon lives; its pid inside
    ballast             16 MiB that are given back to the file system when it is full, so that deleting works
    spool/              diskcache's folder
    salvage/            a new store that is being filled with what is whole of a damaged one
    salvaged/           the same, complete: it is about to take the place of spool/
    quarantine/<time>/  a damaged store, whole
    quarantine/<kind>/  copies of damaged rows of a table

What lies in it is 0700 and 0600 as well, and none of it a link or somebody else's: who could plant that could plant the rest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from agentd.errors import AlreadyRunning, StateError
from agentd.ownership import check_way, check_written

# 1 MiB is enough on tmpfs, not on ext4 with a 4 MiB write-ahead log: measured, 16 MiB always was.
BALLAST_BYTES = 16 * 2**20
_UNMENDED = "unmended"  # a file in a store that was made anew
FLOOR_BYTES = 32 * 2**20  # free space below which nothing is admitted: ballast and a commit must fit behind it


class Folder:
    """The state folder, locked. `open` checks and locks; `close` unlocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Create, check and lock it. Raises StateError, AlreadyRunning."""
        self._create()
        self._check()
        self._lock = self._take_lock()
        try:
            self._check_inside()
            self.refill_ballast()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back; the file stays, since removing it would let two daemons lock two files of one name."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def salvage(self) -> Path:
        return self.path / "salvage"

    def free_bytes(self) -> int:
        """What an unprivileged process may still write."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def quarantine(self, stamp: str) -> Path:
        """A new folder to set damaged things aside in."""
        place = self.path / "quarantine" / stamp
        place.parent.mkdir(mode=0o700, exist_ok=True)
        for attempt in range(1000):
            candidate = place if attempt == 0 else place.with_name(f"{stamp}-{attempt}")
            with contextlib.suppress(FileExistsError):
                candidate.mkdir(mode=0o700)
                return candidate
        raise StateError(f"{place}: can't find a free name")

    def keep(self, kind: str, name: str, content: bytes) -> Path:
        """Keep a copy of something damaged, on disk when it returns; the same copy is kept once. Raises OSError."""
        place = self.path / "quarantine" / kind
        for made in (place.parent, place):
            made.mkdir(mode=0o700, exist_ok=True)
        for attempt in range(1000):
            path = place / (name if attempt == 0 else f"{name}-{attempt}")
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                if path.read_bytes() == content:
                    return path
                continue
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            sync_names(place)
            return path
        raise FileExistsError(errno.EEXIST, "can't find a free name", str(place / name))

    def begin_salvage(self) -> Path:
        """Where to build a new store; what a start that was killed has left there goes."""
        if self.salvage.exists():
            shutil.rmtree(self.salvage)
        return self.salvage

    def swap(self, place: Path) -> None:
        """The store in salvage/ is complete: the damaged one goes to `place` in the quarantine, the new one takes its own.

        Each step is one rename, so that a kill at any moment leaves either the old store and nothing of the new one that counts,
        or what `finish_swap` goes on with.
        """
        (self.salvage / _UNMENDED).touch(mode=0o600)
        sync_names(self.salvage)
        self.salvage.rename(self.path / "salvaged")
        sync_names(self.path)
        self._swap(place)

    def finish_swap(self, stamp: str) -> Path | None:
        """Go on with what a start that was killed has begun. Returns where the damaged store is now if it was moved."""
        self.begin_salvage()
        if not (self.path / "salvaged").exists():
            return None
        place = self.quarantine(stamp) if self.spool.exists() else None
        self._swap(place)
        return place

    def _swap(self, place: Path | None) -> None:
        if place is not None:
            self.spool.rename(place / "spool")
            sync_names(place)
        (self.path / "salvaged").rename(self.spool)
        sync_names(self.path)

    @property
    def is_unmended(self) -> bool:
        """Whether the store was made anew, and what damage leaves behind in it may not have been put right yet."""
        return (self.spool / _UNMENDED).exists()

    def mended(self) -> None:
        """It has been, and that is on disk."""
        (self.spool / _UNMENDED).unlink(missing_ok=True)

    def release_ballast(self) -> bool:
        """Give the reserved room back to the file system; False if it was given already, or the disk lets nothing be removed."""
        try:
            (self.path / "ballast").unlink()
        except OSError:
            return False
        return True

    def refill_ballast(self) -> bool:
        """Reserve the room again if there is plenty. True when the ballast is in place."""
        ballast = self.path / "ballast"
        with contextlib.suppress(FileNotFoundError):
            if ballast.lstat().st_size == BALLAST_BYTES:
                return True
        if self.free_bytes() < FLOOR_BYTES + BALLAST_BYTES:
            return False
        try:
            ballast.unlink(missing_ok=True)
            descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # a disk that takes no change at all
                ballast.unlink(missing_ok=True)
            return False
        return True

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"state folder {self.path}: {error.strerror} (spool.directory or STATE_DIRECTORY says where)"
            ) from error

    def _check(self) -> None:
        check_way(self.path, os.geteuid(), "state folder")
        _check_own(self.path, stat.S_ISDIR, "state folder")

    def _check_inside(self) -> None:
        """Nothing of what is used here may be a link or another's, and nobody else may read it."""
        for name in ("lock", "ballast"):
            _check_own(self.path / name, stat.S_ISREG, "file", tightens=True)
        for name in ("quarantine", "salvage"):
            _check_own(self.path / name, stat.S_ISDIR, "folder", tightens=True)
        for folder in (self.spool, self.path / "salvaged"):
            _check_own(folder, stat.S_ISDIR, "folder")
            for name in ("cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal"):
                _check_own(folder / name, stat.S_ISREG, "file")

    def _take_lock(self) -> int:
        path = self.path / "lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        try:
            check_written(lock, path, os.geteuid())
        except StateError:
            os.close(lock)
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise StateError(f"{path}: {error.strerror}") from error
            raise AlreadyRunning(f"another agentd (pid {pid or 'unknown'}) uses the state folder {self.path}") from None
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, only the pid is not told
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return lock


def _check_own(path: Path, is_right: Callable[[int], bool], what: str, *, tightens: bool = False) -> None:
    """Raises StateError for what is not ours alone. `tightens` where what others might have written does not matter."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    what = f"{what} {path}"
    if stat.S_ISLNK(info.st_mode):
        raise StateError(f"{what} is a symbolic link: give the real one")
    if not is_right(info.st_mode):
        raise StateError(f"{what} is something else: take it away")
    if info.st_uid != os.geteuid():
        raise StateError(f"{what} belongs to uid {info.st_uid}, not to us (uid {os.geteuid()})")
    private = 0o700 if stat.S_ISDIR(info.st_mode) else 0o600
    if info.st_mode & 0o022 and not tightens:
        raise StateError(
            f"{what} can be written by others (mode {stat.S_IMODE(info.st_mode):04o}): chmod {private:o} it"
        )
    if info.st_mode & 0o077:
        path.chmod(private)


def sync_names(path: Path) -> None:
    """Make the names last that lead to what is in a folder; syncing a file need not bring its name along (fsync(2)).

    Upwards as far as the file system goes: which of these folders are new nobody knows, a start that died before this may have
    made them. SQLite syncs the store's own folder. Raises StateError.
    """
    path = path.resolve()
    device = path.stat().st_dev
    for folder in (path, *path.parents):
        try:
            if folder.stat().st_dev != device:
                return
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            return  # it is somebody else's, and so are those above
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that can't sync folders, as some in user space
                raise StateError(f"{folder}: can't be synced: {error.strerror}") from error
        finally:
            os.close(descriptor)
