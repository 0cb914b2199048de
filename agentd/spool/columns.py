"""A segment's columns without its records' bodies: enough to count, choose and name records (see `segments` for the format)."""

from __future__ import annotations

from array import array

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.queued import Source
from agentd.records import LossClass
from agentd.spool import segments
from agentd.spool.checked import UNREADABLE


class _Stored(Struct, array_like=True):
    """The body of a row but for its last field, the records' bodies, which the decoder passes over."""

    destination: str
    loss: LossClass
    numbers: bytes
    ids: bytes
    lanes: list[str]
    lane_of: bytes
    kinds: list[str]
    kind_of: bytes
    sources: list[Source]
    source_of: bytes
    admitted: bytes
    lengths: bytes


class Columns(Struct):
    """One value a record in each array; `lane_of`, `kind_of` and `source_of` are places in the lists beside them."""

    destination: str
    loss: LossClass
    lanes: list[str]
    kinds: list[str]
    sources: list[Source]
    ids: bytes
    numbers: array[int]
    lane_of: array[int]
    kind_of: array[int]
    source_of: array[int]
    admitted: array[int]
    lengths: array[int]

    def id_of(self, index: int) -> bytes:
        return self.ids[16 * index : 16 * index + 16]


def read(key: int, value: bytes) -> Columns:
    """The columns of a row. Raises SpoolDamaged, naming what is wrong."""
    view = segments.check(key, value)
    try:
        stored = msgspec.msgpack.decode(view, type=_Stored)
        columns = Columns(
            stored.destination, stored.loss, stored.lanes, stored.kinds, stored.sources, stored.ids,
            _array("Q", stored.numbers), _array("I", stored.lane_of), _array("H", stored.kind_of),
            _array("I", stored.source_of), _array("Q", stored.admitted), _array("I", stored.lengths),
        )  # fmt: skip
    except (ValueError, *UNREADABLE) as error:
        raise SpoolDamaged(f"segment {key:#x}: {error}") from error
    count = len(columns.numbers)
    others = (columns.lane_of, columns.kind_of, columns.source_of, columns.admitted, columns.lengths)
    if any(len(column) != count for column in others) or len(columns.ids) != 16 * count:
        raise SpoolDamaged(f"segment {key:#x}: its columns differ in length")
    return columns


def _array(code: str, data: bytes) -> array[int]:
    values: array[int] = array(code)
    values.frombytes(data)
    return values
