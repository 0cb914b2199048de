"""What the tests of stand-ins share: a call as the engine would hand it on, ids as it would make them, and strict reading."""

from __future__ import annotations

import json
import uuid
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Raw

from agentd.records import Record
from agentd.standin import Called
from agentd.wire import encode

NOW_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
decode_record = msgspec.json.Decoder(Record).decode
decode_members = msgspec.json.Decoder(dict[str, Raw]).decode


def make_id(word):
    """A UUID for each word, the same for the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, word))


def find_door(stand_in, method, path):
    """The door and its segments; of two that fit the one with fewer names. None where the call does not pass."""
    parts = path.split("/")
    found = []
    for door in stand_in.doors:
        named = door.path.split("/")
        if door.method == method and len(named) == len(parts):
            pairs = list(zip(named, parts, strict=True))
            if all(part if name.startswith("{") else name == part for name, part in pairs):
                found.append((door, {name[1:-1]: unquote(part) for name, part in pairs if name.startswith("{")}))
    return min(found, key=lambda one: len(one[1]), default=None)


def called(stand_in, method, target, body=None, headers=None, now_us=NOW_US):
    """The call, which passes. `body` is JSON or bytes."""
    url = urlsplit(target)
    found = find_door(stand_in, method, url.path)
    assert found is not None, f"no door for {method} {target}"
    door, segments = found
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    members = decode_members(data) if data.lstrip().startswith(b"{") else {}
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    return Called(door, segments, parse_qsl(url.query), lower, data, members, now_us)


def handed(stand_in, method, target, body=None, headers=None, make_id=make_id):
    """What the call becomes: its records, read as the daemon reads them, and what was handed over."""
    handed = stand_in.hand_over(called(stand_in, method, target, body, headers), make_id)
    return [decode_record(encode(record)) for record in handed.records], handed


def shown(record):
    """A record as plain JSON, without what was not said."""
    return json.loads(encode(record))


def answer(reply):
    return json.loads(reply.body)
