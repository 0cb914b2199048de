"""Standing in for a platform towards its unmodified SDK: what `compat` asks of an adapter. Data and pure functions.

An adapter's `StandIn` lists the calls that may pass, as doors; whatever no door names is refused. Telemetry becomes records
and is answered from here; gates and reads go on to the platform with local ids replaced, and come back as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from msgspec import Raw, Struct

from agentd.exchange import Lost, Response


class Does(StrEnum):
    """What becomes of a call."""

    RECORD = "record"  # admitted like a client's records, answered once they are on disk
    GATE = "gate"  # asked at once, on the record before and after, answered in the platform's own words
    READ = "read"  # passed on; nothing of it is kept
    ADMIN = "admin"  # control plane: for an admin uid on the Unix socket, with passthrough = "admin"


class Door(Struct, frozen=True):
    """One call. `path` is below the base URL; a segment `{name}` takes one segment of the call's path, decoded.

    Of two doors that a call fits, the one with fewer `{name}` counts.
    """

    method: str
    path: str
    does: Does
    gate: str = ""  # the gate's name; a RECORD door may have one too, for calls that ask (see `StandIn.asks`)
    streams: bool = False  # its answer may be an event stream, which is passed on piece by piece
    array: bool = False  # of telemetry: its body is a JSON array, which has no members
    patience_s: float = 0.0  # how long its SDK waits, where that is more than the destination's `timeout`
    limit_s: float | None = None  # of a gate: by then its SDK has to hear something, or it would repeat it
    kind: str = ""  # of telemetry: that of the record which becomes of it


class Called(Struct, frozen=True):
    """An SDK's call."""

    door: Door
    segments: Mapping[str, str]  # of the path, by their names in the door's
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    members: Mapping[str, Raw]  # of the body, which is a JSON object; none where there is no body
    now_us: int


class Why(StrEnum):
    """Why agentd itself turns a call away. The stand-in knows which status its SDK takes rightly."""

    MALFORMED = "malformed"  # not what the platform or agentd takes; the message names the field
    UNAUTHENTICATED = "unauthenticated"  # no local token that agentd knows
    FORBIDDEN = "forbidden"  # not for this caller: control plane, another's agent or destination
    NOT_FOUND = "not_found"  # no door, no such id, or another's
    CONFLICT = "conflict"  # other content under a key that was used before
    TOO_LARGE = "too_large"  # the body
    SPOOL_FULL = "spool_full"  # not stored for want of room: a status that the SDK may repeat; with Retry-After
    UNREACHABLE = "unreachable"  # the platform can't be asked, and nothing was sent: a repeat does no harm
    NO_ANSWER = "no_answer"  # of a read: it was sent and not answered, a repeat does no harm
    OUTCOME_UNKNOWN = "outcome_unknown"  # of a gate: it may have acted; a status that the SDK does NOT repeat
    INTERNAL = "internal"  # a defect of ours


# The usual statuses; a stand-in says `STATUSES | {Why.OUTCOME_UNKNOWN: 409}` where its SDK wants others.
STATUSES: dict[Why, int] = {
    Why.MALFORMED: 400,
    Why.UNAUTHENTICATED: 401,
    Why.FORBIDDEN: 403,
    Why.NOT_FOUND: 404,
    Why.CONFLICT: 409,
    Why.TOO_LARGE: 413,
    Why.SPOOL_FULL: 503,
    Why.UNREACHABLE: 503,
    Why.NO_ANSWER: 504,
    Why.OUTCOME_UNKNOWN: 424,
    Why.INTERNAL: 500,
}


class Reply(Struct, frozen=True):
    """An answer in the platform's envelope. `content-type: application/json` is meant where `headers` names none."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Handed(Struct, frozen=True):
    """What a telemetry call has become: records as a client would send them (no `id`, no `to`), and the answer.

    Times that the call doesn't name are left out (admission stamps them): the same body has to give the same records, since
    a repeat is known by them. Members that agentd has no field for go into the record's `extra` (a JSON object, which
    adapters merge into the request, own members first).

    `key` is the SDK's own idempotency field (request_id, external_run_id): a second call under it gets `reply` again and
    stores nothing, whatever else it says, unless the platform refuses that (`conflicts`). Without a key a repeat is the same
    body by the same caller within ten minutes.
    """

    records: Sequence[Mapping[str, Any]]  # values may be msgspec.Raw
    reply: Reply
    key: str = ""
    conflicts: bool = False  # other content under the key is refused
    left_out: Sequence[str] = ()  # members that could not be carried through; they are logged


class Asked(Struct, frozen=True):
    """What a gate's call asks, for the record; the bytes that go out are the SDK's own, but for local ids."""

    agent: str  # the local name, empty: the destination's
    run_id: str | None
    request: Mapping[str, Raw]


class StandIn(Protocol):
    """What an adapter knows of its platform's SDK; hung on it as `stand_in`."""

    @property
    def doors(self) -> Sequence[Door]: ...
    @property
    def names(self) -> Mapping[str, str]:
        """What of gates and reads holds an id: path segment, query parameter or top-level body member → run, decision, agent, …."""
        ...

    @property
    def headers(self) -> frozenset[str]:
        """Request headers of the SDK, in lower case, that go on to the platform beside content-type, accept and user-agent.

        Never the key's: `Platform.headers` puts ours in.
        """
        ...

    def asks(self, called: Called) -> str | None:
        """The name of the gate that this call is, None if it is telemetry or a read."""
        ...

    def hand_over(self, called: Called, make_id: Callable[[str], str]) -> Handed:
        """The records of a telemetry call. Raises RecordError in the SDK's own field names (`$.confidence: …`).

        `make_id(word)` gives a UUID text, the same for the same caller, destination and word: ids that agentd hands out come
        from it, with the SDK's idempotency field as the word, so that asking twice gives the same id, also after a restart.
        `make_id("")` is this call's own: the same for a repeat of its body within ten minutes, another after that.
        """
        ...

    def asked(self, called: Called) -> Asked:
        """What a gate's call asks. Raises RecordError."""
        ...

    def refusal(self, why: Why, message: str) -> Reply:
        """An error in the platform's envelope, so that its SDK raises its own exception."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A stand-in some of whose doors stream."""

    def streams(self, called: Called) -> bool:
        """Whether the call asks for an event stream."""
        ...

    def whole(self, answer: Response) -> Response | Lost:
        """What an event stream that came to its end would have been in one piece, for the gate to rule on.

        `answer.body` holds the stream's last 256 KiB.
        """
        ...
