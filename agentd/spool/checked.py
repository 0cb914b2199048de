"""A checksum around a row's value, for every table whose rows carry none of their own. Pure.

    0xC1 crc32:u32le value          crc32 over the value

0xC1 is the one byte that no msgpack document has (https://github.com/msgpack/msgpack/blob/master/spec.md, "never used"), so that
a value which does not begin with it was written in format 1, without a checksum, and is taken as it is.
"""

from __future__ import annotations

import zlib

import msgspec

from agentd.errors import SpoolDamaged

# What decoding raises for bytes that nobody has checked, or somebody has planted: msgspec has no error of its own for texts that are
# no UTF-8, nor for what is nested without end.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_HEADER = 5


def pack(value: bytes) -> bytes:
    """The value with its checksum."""
    return b"\xc1" + zlib.crc32(value).to_bytes(4, "little") + value


def unpack(value: bytes) -> bytes:
    """The value alone. Raises SpoolDamaged for a wrong checksum."""
    if value[:1] != b"\xc1":
        return value
    inner = value[_HEADER:]
    if len(value) < _HEADER or zlib.crc32(inner) != int.from_bytes(value[1:_HEADER], "little"):
        raise SpoolDamaged("wrong checksum")
    return inner
