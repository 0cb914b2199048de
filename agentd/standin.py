"""Standing in for a platform towards its unmodified SDK: what `compat` asks of an adapter. Data and pure functions.

An adapter's `StandIn` lists the calls that may pass, as doors; whatever no door names is refused. Telemetry becomes records
and is answered from here; gates and reads go on to the platform with local ids replaced, and come back as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Raw, Struct


class Does(StrEnum):
    """What becomes of a call."""

    RECORD = "record"  # admitted like a client's records, answered once they are on disk
    GATE = "gate"  # asked at once, on the record before and after, answered in the platform's own words
    READ = "read"  # passed on; nothing of it is kept
    ADMIN = "admin"  # control plane: for an admin uid on the Unix socket, with passthrough = "admin"


class Door(Struct, frozen=True):
    """One call. `path` is below the base URL; a segment `{name}` takes one segment of the call's path, decoded."""

    method: str
    path: str
    does: Does
    gate: str = ""  # the gate's name; a RECORD door may have one too, for calls that ask (see `StandIn.asks`)
    streams: bool = False  # its answer may be an event stream, which is passed on piece by piece


class Called(Struct, frozen=True):
    """An SDK's call."""

    door: Door
    segments: Mapping[str, str]  # of the path, by their names in the door's
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    members: Mapping[str, Raw]  # of the body where it is a JSON object
    now_us: int


class Reply(Struct, frozen=True):
    """An answer in the platform's envelope."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Handed(Struct, frozen=True):
    """What a telemetry call has become: records as a client would send them (no `id`, no `to`), and the answer."""

    records: Sequence[Mapping[str, Any]]
    reply: Reply


class Asked(Struct, frozen=True):
    """What a gate's call asks, for the record; the bytes that go out are the SDK's own."""

    agent: str  # the local name, empty: the destination's
    run_id: str | None
    request: Mapping[str, Raw]


class StandIn(Protocol):
    """What an adapter knows of its platform's SDK."""

    doors: Sequence[Door]
    names: Mapping[str, str]  # segment, query parameter or body member → kind of id (run, decision, action, agent, …)

    def asks(self, called: Called) -> str | None:
        """The name of the gate that this call is, None if it is telemetry or a read."""
        ...

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        """The records of a telemetry call. Raises RecordError in the SDK's own field names.

        `make_id(word)` gives a UUID text, the same for the same caller, destination and word: ids that agentd hands out come
        from it, with the SDK's idempotency field as the word, so that asking twice gives the same id, also after a restart.
        """
        ...

    def asked(self, called: Called) -> Asked:
        """What a gate's call asks. Raises RecordError."""
        ...

    def refusal(self, status: int, code: str, message: str) -> Reply:
        """An error in the platform's envelope, so that its SDK raises its own exception."""
        ...
