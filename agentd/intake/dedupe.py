"""The last ids that were seen, so that a client without a stream may repeat a record and have it stored once. Pure.

An id counts within one peer uid; what was sent under it is kept as a digest, so that the same id with other content is
told apart. The window is everybody's; when it is full the oldest id of the user goes who has most in it, so that nobody's flood of
ids makes the others' be forgotten. `to` is no content: callers hand over the record without it. A record that all who take it have is one row; one
that named its destinations, or found room at some of them only, is remembered per destination: its row is followed by one
for each of these, so that the rest can be sent again, narrowed or as it was, and nothing is stored twice. The window is
bounded by the number of ids; its rows go to disk with the records themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b

from msgspec import Struct

_ID = 16
_UID = 4
DIGEST = 8
_KEY = _UID + _ID
_ROW = _KEY + DIGEST
_PLACE = bytes(DIGEST)  # in place of a digest: the row names a destination (hashed, `_ID` bytes) of the row before it


class Seen(StrEnum):
    NEW = "new"
    SAME = "same"
    PART = "part"  # the same content, known per destination
    OTHER = "other"


class Part(Struct, frozen=True):
    """Destinations that an id was remembered for."""

    rows: bytes  # what keeps it on disk
    key: bytes
    added: tuple[bytes, ...]  # of these, hashed, what was not known before


class Window:
    """Ids by uid and (uid, id), oldest first. A value is a digest, and behind it the destinations that have the record."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._users: dict[bytes, dict[bytes, bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _get(self, key: bytes) -> bytes | None:
        values = self._users.get(key[:_UID])
        return None if values is None else values.get(key)

    def look(self, uid: int, record_id: bytes, content: bytes) -> Seen:
        """Whether this id was seen, and with this content. Changes nothing."""
        known = self._get(_key(uid, record_id))
        if known is None:
            return Seen.NEW
        if len(known) > DIGEST:
            return Seen.PART if known[:DIGEST] == _part_digest(content) else Seen.OTHER
        return Seen.SAME if known == digest(content) else Seen.OTHER

    def has(self, uid: int, record_id: bytes, destination: str) -> bool:
        """Whether an id that is known in part is known for this destination."""
        return _place(destination) in _places(self._get(_key(uid, record_id)) or b"")

    def knows(self, uid: int, record_id: bytes) -> bool:
        """Whether this id was seen, whatever its content."""
        return self._get(_key(uid, record_id)) is not None

    def add(self, uid: int, record_id: bytes, content: bytes) -> bytes:
        """Remember it for all destinations; gives the bytes that keep it on disk."""
        key, value = _key(uid, record_id), digest(content)
        self._put(key, value)
        return key + value

    def add_part(self, uid: int, record_id: bytes, content: bytes, destinations: Iterable[str]) -> Part:
        """Remember it for these destinations too. All of them get a row again: rows that belong together go together."""
        key = _key(uid, record_id)
        known = self._get(key) or b""
        before = _places(known) if known else ()
        added = tuple([place for place in map(_place, destinations) if place not in before])
        known = known or _part_digest(content)
        self._put(key, known + b"".join(added))
        rows = [key + known[:DIGEST], *(key[:_UID] + place + _PLACE for place in (*before, *added))]
        return Part(b"".join(rows), key, added)

    def forget(self, rows: bytes) -> None:
        """These were not kept after all: a refused record uses up no id."""
        for key, _ in _rows(rows):
            self._pop(key)

    def forget_part(self, part: Part) -> None:
        """These destinations have not got it after all; what others have stays known."""
        known = self._get(part.key) or b""
        left = [place for place in _places(known) if place not in part.added]
        if left:
            self._users[part.key[:_UID]][part.key] = known[:DIGEST] + b"".join(left)
        else:
            self._pop(part.key)

    def restore(self, rows: bytes) -> None:
        """Take over what the disk holds, oldest first."""
        latest = b""
        for key, value in _rows(rows):
            if value == _PLACE:
                if self._get(latest) is not None:
                    self._users[latest[:_UID]][latest] += key[_UID:]
            else:
                latest = key
                self._put(key, value)

    def _put(self, key: bytes, value: bytes) -> None:
        self._pop(key)  # what is remembered again is the newest, on disk as well
        self._users.setdefault(key[:_UID], {})[key] = value
        self._count += 1
        while self._count > self._size:
            largest: dict[bytes, bytes] = max(self._users.values(), key=lambda values: len(values))  # noqa: PLW0108 - mypy
            self._pop(next(iter(largest)))

    def _pop(self, key: bytes) -> None:
        values = self._users.get(key[:_UID])
        if values is not None and values.pop(key, None) is not None:
            self._count -= 1
            if not values:
                del self._users[key[:_UID]]


def digest(content: bytes) -> bytes:
    """64 bits are plenty to tell a repeat from a mistake; this is no defence against a forger, who may choose a new id."""
    return blake2b(content, digest_size=DIGEST).digest()


def _part_digest(content: bytes) -> bytes:
    """Another one, so that a row that has lost those behind it is never taken for a whole record's."""
    return blake2b(content, digest_size=DIGEST, person=b"part").digest()


def count(rows: bytes) -> int:
    """How many ids these bytes hold."""
    if _PLACE not in rows:
        return len(rows) // _ROW
    return sum(value != _PLACE for _, value in _rows(rows))


def holders(rows: bytes, record_id: bytes) -> list[int]:
    """The uids from which a record of this id was taken, by rows as they are kept on disk."""
    found = (key for key, value in _rows(rows) if key[_UID:] == record_id and value != _PLACE)
    return list(dict.fromkeys(int.from_bytes(key[:_UID], "big") for key in found))


def _key(uid: int, record_id: bytes) -> bytes:
    return (uid & 0xFFFFFFFF).to_bytes(_UID, "big") + record_id


@lru_cache(1024)
def _place(destination: str) -> bytes:
    return blake2b(destination.encode(), digest_size=_ID).digest()


def _places(value: bytes) -> tuple[bytes, ...]:
    return tuple([value[start : start + _ID] for start in range(DIGEST, len(value), _ID)])


def _rows(rows: bytes) -> Iterable[tuple[bytes, bytes]]:
    for start in range(0, len(rows) - _ROW + 1, _ROW):
        yield rows[start : start + _KEY], rows[start + _KEY : start + _ROW]
