"""The state folder: ours alone, one daemon at a time, with room kept back for the day when the disk is full.

<directory>/            0700, owned by us, no symlink
    lock                flock held while a daemon lives; its pid inside
    ballast             16 MiB that are given back to the file system when it is full, so that deleting works
    spool/              diskcache's folder
    quarantine/<time>/  what was damaged, set aside whole
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

from agentd.errors import AlreadyRunning, StateError

# 1 MiB is enough on tmpfs, not on ext4 with a 4 MiB write-ahead log: measured, 16 MiB always was.
BALLAST_BYTES = 16 * 2**20
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
        self.refill_ballast()

    def close(self) -> None:
        """Give the lock back; the file stays, since removing it would let two daemons lock two files of one name."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    def free_bytes(self) -> int:
        """What an unprivileged process may still write."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def quarantine(self, stamp: str) -> Path:
        """A new folder to set damaged things aside in."""
        place = self.path / "quarantine" / stamp
        for attempt in range(1000):
            candidate = place if attempt == 0 else place.with_name(f"{stamp}-{attempt}")
            with contextlib.suppress(FileExistsError):
                candidate.mkdir(parents=True, mode=0o700)
                return candidate
        raise StateError(f"{place}: can't find a free name")

    def set_spool_aside(self, stamp: str) -> Path:
        """Move the whole store away; the daemon begins a new one. Returns where it is now."""
        place = self.quarantine(stamp)
        shutil.move(self.spool, place / "spool")
        sync_names(place)
        return place

    def release_ballast(self) -> bool:
        """Give the reserved room back to the file system; False if it was given already."""
        try:
            (self.path / "ballast").unlink()
        except FileNotFoundError:
            return False
        return True

    def refill_ballast(self) -> bool:
        """Reserve the room again if there is plenty. True when the ballast is in place."""
        ballast = self.path / "ballast"
        if ballast.exists() and ballast.stat().st_size == BALLAST_BYTES:
            return True
        if self.free_bytes() < FLOOR_BYTES + 2 * BALLAST_BYTES:
            return False
        try:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:
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
        info = self.path.lstat()
        if stat.S_ISLNK(info.st_mode):
            raise StateError(f"state folder {self.path} is a symbolic link: give the real folder")
        if not stat.S_ISDIR(info.st_mode):
            raise StateError(f"state folder {self.path} is no folder")
        if info.st_uid != os.geteuid():
            raise StateError(f"state folder {self.path} belongs to uid {info.st_uid}, not to us (uid {os.geteuid()})")
        if info.st_mode & 0o022:
            raise StateError(
                f"state folder {self.path} can be written by others (mode {stat.S_IMODE(info.st_mode):04o}): chmod 700 it"
            )
        if info.st_mode & 0o055:
            self.path.chmod(0o700)

    def _take_lock(self) -> int:
        path = self.path / "lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
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
