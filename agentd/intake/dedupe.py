"""The last ids that were seen, so that a client without a stream may repeat a record and have it stored once. Pure.

An id counts within one peer uid; what was sent under it is kept as a digest, so that the same id with other content is
told apart. The window is bounded by number; its rows go to disk with the records themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from hashlib import blake2b

_ID = 16
_UID = 4
_DIGEST = 8
_ROW = _UID + _ID + _DIGEST


class Seen(StrEnum):
    NEW = "new"
    SAME = "same"
    OTHER = "other"


class Window:
    """Ids by (uid, id), oldest first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._digests: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def look(self, uid: int, record_id: bytes, content: bytes) -> Seen:
        """Whether this id was seen, and with this content. Changes nothing."""
        known = self._digests.get(_key(uid, record_id))
        if known is None:
            return Seen.NEW
        return Seen.SAME if known == digest(content) else Seen.OTHER

    def add(self, uid: int, record_id: bytes, content: bytes) -> bytes:
        """Remember it; gives the bytes that keep it on disk."""
        key, value = _key(uid, record_id), digest(content)
        self._digests[key] = value
        while len(self._digests) > self._size:
            del self._digests[next(iter(self._digests))]
        return key + value

    def forget(self, rows: bytes) -> None:
        """These were not kept after all: a refused record uses up no id."""
        for key, _ in _rows(rows):
            self._digests.pop(key, None)

    def restore(self, rows: bytes) -> None:
        """Take over what the disk holds, oldest first."""
        for key, value in _rows(rows):
            self._digests[key] = value
        while len(self._digests) > self._size:
            del self._digests[next(iter(self._digests))]


def digest(content: bytes) -> bytes:
    """64 bits are plenty to tell a repeat from a mistake; this is no defence against a forger, who may choose a new id."""
    return blake2b(content, digest_size=_DIGEST).digest()


def count(rows: bytes) -> int:
    """How many ids these bytes hold."""
    return len(rows) // _ROW


def _key(uid: int, record_id: bytes) -> bytes:
    return (uid & 0xFFFFFFFF).to_bytes(_UID, "big") + record_id


def _rows(rows: bytes) -> Iterable[tuple[bytes, bytes]]:
    for start in range(0, len(rows) - _ROW + 1, _ROW):
        yield rows[start : start + _UID + _ID], rows[start + _UID + _ID : start + _ROW]
