"""Blocks of a disk that is running full, which database and write-ahead log own before they need them.

A ballast that is given back is room for everybody: a neighbour who fills the disk is quicker than we are. What is allocated behind
the end of our own files (`FALLOC_FL_KEEP_SIZE`, fallocate(2)) nobody else can have, and SQLite grows into it. That is enough to settle
and delete for as long as it takes: the log is begun anew after each checkpoint, at 1000 pages or soon after, and a checkpoint grows
the database by no more than that. SQLite cuts the database to its size at each one, so that it is done again after each commit.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

DATABASE_BYTES = 6 * 2**20  # 1000 pages, and what a large commit brings beyond them
LOG_BYTES = 10 * 2**20  # 1000 pages, and the largest commit of records behind them
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_BLOCK = 512  # st_blocks counts these, whatever the file system's are (stat(2))


class Ahead:
    """Of a store's folder. Every call from the storage thread, and `close` only after SQLite has let go of its files.

    A file that is closed loses the locks that its process has on it, whoever took them (fcntl(2)).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
        if self._fallocate is not None:
            self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def keep(self) -> None:
        """See to it that both files have what they need; where the disk or its file system can't, all is as it was."""
        database, log = self._open("cache.db"), self._open("cache.db-wal")
        if database is not None:
            info = os.fstat(database)
            if info.st_blocks * _BLOCK < info.st_size + DATABASE_BYTES // 2:
                self._allocate(database, info.st_size, DATABASE_BYTES)
        if log is not None and os.fstat(log).st_blocks * _BLOCK < LOG_BYTES:
            self._allocate(log, 0, LOG_BYTES)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _open(self, name: str) -> int | None:
        descriptor = self._files.get(name)
        if descriptor is None:
            try:
                descriptor = self._files[name] = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return None
        return descriptor

    def _allocate(self, descriptor: int, offset: int, size: int) -> None:
        if self._fallocate is not None:
            self._fallocate(descriptor, _KEEP_SIZE, offset, size)  # what it answers shows in the blocks next time
