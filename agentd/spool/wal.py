"""SQLite's write-ahead log, read without SQLite, so that damage to it shows before SQLite passes over it in silence.

SQLite reads frames until the first that does not check out, forgets the rest, and resets the log. But each frame's checksum
goes on from the one that the frame before it carries, so that frames behind a damaged one can still be checked. And the index
beside the log (`-shm`) says how many frames were committed: it is written after the log was synced, so that a log that
has fewer of them has lost what was acknowledged. Sources: https://www.sqlite.org/fileformat2.html section 4,
https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct, field

from agentd.spool.pages import known_size

HEADER, FRAME = 32, 24
_MAGIC = (0x377F0682, 0x377F0683)  # checksums over little-endian, big-endian words
_OLDER = 2**20  # generations back that a frame is known as an older one: each reset counts the first salt up by one
MAX_PAGES = 2**24  # 64 GiB at 4 KiB: what says more is no database of ours
_INDEX = 48  # bytes of one of the two copies of the index's header
_VERSION = 3007000


class Read(NamedTuple):
    """What can be said of a log."""

    page_size: int  # 0 where nothing says it
    pages: dict[int, int]  # page → where in the log its newest committed content is
    page_count: int  # of the database after the last commit; 0 without one
    frames: int  # committed, as far as is known
    seen: int  # committed, and SQLite will read them
    lost: int  # committed, and damaged or cut off
    unread: int  # frames of this log behind its last commit that don't check out, or are missing: a power failure, or damage

    @property
    def is_damaged(self) -> bool:
        """Whether something that was committed is lost, or would be if SQLite opened it."""
        return self.frames > self.seen


class _Index(NamedTuple):
    """The header of `-shm`."""

    big_endian: bool
    page_size: int
    frames: int
    salt: bytes
    copied: int  # frames that a checkpoint has copied into the database


class _Head(NamedTuple):
    """What the log's own header says; `seed` is the checksum that the first frame's goes on from, None where it is not known."""

    big_endian: bool
    page_size: int
    salt: bytes
    seed: bytes | None


class _State(IntEnum):
    WHOLE = 0
    BROKEN = 1
    OLD = 2  # of an earlier generation of the log: what lies behind the end of this one
    ALIEN = 3


class _Frame(NamedTuple):
    state: _State
    page: int = 0
    commit: int = 0  # pages of the database, for the last frame of a transaction


class _Frames(Struct):
    """What a pass over the log gathers; frames are numbered from 1."""

    commits: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    last: int = 0  # frame of this log, whole or broken

    def committed(self, index: _Index | None, *, synced: bool) -> int:
        """The number of the last frame that was committed for certain.

        Without the index a hole proves nothing within the very last one: it was torn when the power failed, and nobody had an answer for
        it. But a transaction is begun when the one before it is synced. Where commits are not synced nothing is proven: the
        kernel may have written the index back before the frames that it speaks of.
        """
        first = self.broken[0] if self.broken else self.last + 1
        seen = max((n for n in self.commits if n < first), default=0)
        if not synced:
            return seen
        if index is not None:
            return max(seen, index.frames)
        behind = [n for n in self.commits if n > first]
        if len(behind) > 1 or (behind and self.last > behind[0]):
            return behind[-1]
        return seen


def read_log(read: Callable[[int, int], bytes], size: int, index: bytes, *, synced: bool = True) -> Read:
    """Look at a log of `size` bytes; `read(offset, length)` gives its bytes, `index` is the beginning of `-shm`.

    `synced` says that each commit was synced before the next one began.
    """
    beside = _read_index(index)
    own = _read_header(read(0, HEADER))
    head = own
    if head is None and beside is not None:
        head = _Head(beside.big_endian, beside.page_size, beside.salt, None)
    head = head or _guess(read)
    if head is None:
        return Read(0, {}, 0, 0, 0, 0, 0)
    if beside is not None and (beside.salt, beside.page_size) != (head.salt, head.page_size):
        beside = None  # of another generation: it proves nothing
    frames = _Frames()
    found: list[tuple[int, _Frame]] = []
    for number, frame in _frames(read, size, head):
        if frame.state is _State.WHOLE:
            found.append((number, frame))
            frames.last = number
            if frame.commit:
                frames.commits.append(number)
        elif frame.state is not _State.OLD:
            frames.broken.append(number)
            frames.last = number if frame.state is _State.BROKEN else frames.last
    committed = frames.committed(beside, synced=synced)
    return _summary(found, frames, beside, committed, head.page_size, headless=own is None, synced=synced)


def _summary(
    found: list[tuple[int, _Frame]],
    frames: _Frames,
    beside: _Index | None,
    committed: int,
    page_size: int,
    *,
    headless: bool,
    synced: bool,
) -> Read:
    copied = 0 if beside is None else min(beside.copied, committed)
    first_gap = next((n for n, (number, _) in enumerate(found, 1) if n != number), len(found) + 1)
    seen = 0 if headless else max((n for n in frames.commits if n < first_gap), default=0)
    # A page of which a later version was copied into the database and is lost here is newer there than here.
    newer_from = copied if frames.last < copied else max((n for n in frames.broken if n <= copied), default=0)
    whole = [(number, frame) for number, frame in found if number <= committed]
    pages = {
        frame.page: HEADER + (number - 1) * (FRAME + page_size) + FRAME
        for number, frame in whole
        if number > newer_from and 0 < frame.page <= MAX_PAGES
    }
    page_count = next((frame.commit for _, frame in reversed(whole) if frame.commit), 0)
    # What lies behind was never committed.
    told = beside is not None and (beside.frames == seen or (synced and beside.frames > seen))
    unread = 0 if told else sum(number > max(seen, committed) for number in frames.broken)
    if beside is not None and not synced:
        unread = max(unread, beside.frames - max(seen, beside.copied))
    if committed == copied:  # all of it is in the database: whatever became of the log costs nothing
        return Read(page_size, pages, page_count, 0, 0, 0, unread)
    return Read(page_size, pages, page_count, committed, seen, committed - len(whole), unread)


def _frames(read: Callable[[int, int], bytes], size: int, head: _Head) -> Iterator[tuple[int, _Frame]]:
    """Every place of a frame, numbered from 1, and what is in it."""
    step = FRAME + head.page_size
    for number in range(1, max(0, size - HEADER) // step + 1):
        data = read(HEADER + (number - 1) * step, step)
        if len(data) < step:
            return
        yield number, _frame(data, head)
        head = head._replace(seed=data[16:24])


def _frame(data: bytes, head: _Head) -> _Frame:
    own = data[8:16]
    if own != head.salt:
        older = int.from_bytes(head.salt[:4], "big") - int.from_bytes(own[:4], "big") & 0xFFFFFFFF
        return _Frame(_State.OLD if 0 < older < _OLDER or not any(data[:FRAME]) else _State.ALIEN)
    if head.seed is None:
        return _Frame(_State.BROKEN)
    computed = checksum(data[:8], head.seed, big_endian=head.big_endian)
    if checksum(data[FRAME:], computed, big_endian=head.big_endian) != data[16:24]:
        return _Frame(_State.BROKEN)
    page, commit = struct.unpack(">II", data[:8])
    return _Frame(_State.WHOLE, page, commit)


def checksum(data: bytes, seed: bytes, *, big_endian: bool) -> bytes:
    """SQLite's checksum over 8-byte steps, going on from `seed` (section 4.2)."""
    first, second = struct.unpack(">II", seed)
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + two + first & 0xFFFFFFFF
    return struct.pack(">II", first, second)


def _read_header(header: bytes) -> _Head | None:
    """None for a header that is damaged."""
    if len(header) < HEADER:
        return None
    magic, version, size = struct.unpack(">III", header[:12])
    page_size = known_size(size)
    if magic not in _MAGIC or version != _VERSION or page_size is None:
        return None
    big_endian = magic == _MAGIC[1]
    if checksum(header[:24], bytes(8), big_endian=big_endian) != header[24:]:
        return None
    return _Head(big_endian, page_size, header[16:24], header[24:])


def _read_index(data: bytes) -> _Index | None:
    """The index's header in the machine's own byte order, None if its two copies or its checksum say that it is none."""
    if len(data) < 2 * _INDEX + 4 or data[:_INDEX] != data[_INDEX : 2 * _INDEX]:
        return None
    version, _, _, ready, big_endian, size, frames = struct.unpack_from("=IIIBBHI", data)
    words = struct.unpack_from("=10I", data)
    first = second = 0
    for one, two in zip(words[::2], words[1::2], strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + two + first & 0xFFFFFFFF
    page_size = known_size(size & 0xFE00 | (size & 1) << 16)
    if version != _VERSION or not ready or (first, second) != struct.unpack_from("=II", data, 40) or page_size is None:
        return None
    (copied,) = struct.unpack_from("=I", data, 2 * _INDEX)
    return _Index(bool(big_endian), page_size, frames, data[32:40], copied)


def _guess(read: Callable[[int, int], bytes]) -> _Head | None:
    """A log whose header is damaged and that has no index: what its first frames say, if they check out. Ours have 4 KiB pages."""
    page_size = 4096
    step = FRAME + page_size
    for number in range(1, 64):
        before, data = (read(HEADER + n * step, step) for n in (number - 1, number))
        if len(data) < step:
            return None
        for big_endian in (False, True):
            head = _Head(big_endian, page_size, data[8:16], before[16:24])
            if any(head.salt) and _frame(data, head).state is _State.WHOLE:
                return head._replace(seed=None)
    return None
