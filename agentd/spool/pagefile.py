"""A spool's database and its write-ahead log as numbered pages: the thin reader below `salvage`.

Read page by page, never whole: a database may be larger than memory. No link is followed, nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from agentd.spool import pages as fmt
from agentd.spool.wal import MAX_PAGES, Read, read_log
from agentd.vitals import Pace

_SIZES = (4096, 512, 1024, 2048, 8192, 16384, 32768, 65536)  # ours are the first, SQLite's default
_SAMPLE_BYTES = 8 * 2**20  # that are looked at to find out how large pages are


def look_at_log(folder: Path, *, synced: bool = True) -> Read:
    """The state of the write-ahead log in a spool's folder, before SQLite opens it. `synced`: each commit was."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(File(folder / "cache.db-wal"))
        index = stack.enter_context(File(folder / "cache.db-shm"))
        return read_log(log.read, log.size, index.read(0, 256), synced=synced)


class File:
    """A file that is read in pieces; one that does not exist is empty. No link is followed."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self.size = 0
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        return b"" if self._descriptor < 0 else os.pread(self._descriptor, length, offset)


class PageFile:
    """The newest version of every page: the log's, else the database's."""

    def __init__(self, folder: Path, *, synced: bool = True, pace: Pace | None = None) -> None:
        """`pace` is stepped with each page that is read."""
        self._pace = pace or Pace()
        self.log = look_at_log(folder, synced=synced)
        self._database = File(folder / "cache.db")
        self._wal = File(folder / "cache.db-wal")
        self.size = self.log.page_size if self.log.pages else self._page_size()
        stored = -(-self._database.size // self.size)
        self.count = max(stored, self.log.page_count, max(self.log.pages, default=0))
        if self.log.page_count and not self.log.is_damaged:
            self.count = self.log.page_count
        self.count = min(self.count, MAX_PAGES)

    def close(self) -> None:
        self._database.__exit__()
        self._wal.__exit__()

    def __getitem__(self, number: int) -> bytes:
        """A page, filled with zeros where the file ends within it; empty for one that there is not."""
        self._pace.step()
        if not 1 <= number <= self.count:
            return b""
        place = self.log.pages.get(number)
        if place is not None:
            return self._wal.read(place, self.size)
        data = self._database.read((number - 1) * self.size, self.size)
        return data + bytes(self.size - len(data)) if data else b""

    def start(self, number: int) -> int:
        """Where the page's b-tree header begins."""
        return fmt.FILE_HEADER if number == 1 else 0

    def kind(self, number: int) -> int:
        """The page's type, 0 for none that makes sense."""
        return fmt.kind(self[number], self.start(number))

    def _page_size(self) -> int:
        """The size at which the most pages make sense; of equals the one that the header names."""

        def sensible(size: int) -> int:
            sample = range(size, min(self._database.size, _SAMPLE_BYTES), size)
            return sum(fmt.is_sensible(self._database.read(at, size)) for at in sample)

        said = fmt.page_size(self._database.read(0, fmt.FILE_HEADER)) or _SIZES[0]
        return max(said, *_SIZES, key=sensible)


class Marks:
    """A bit for each page."""

    def __init__(self, count: int) -> None:
        self._bits = bytearray(count // 8 + 1)

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] & 1 << (number & 7))

    def add(self, number: int) -> None:
        self._bits[number >> 3] |= 1 << (number & 7)
