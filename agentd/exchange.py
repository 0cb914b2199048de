"""Requests, answers and the adapter between them: what delivery, platforms and the HTTP client say to one another.

An adapter turns records into requests and answers into verdicts. It does no I/O and reads no clock; it never sees a socket,
and nothing above it sees a status code.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from agentd.errors import AgentdError, ConfigError
from agentd.outcomes import Cause, Verdict

ANSWER_BYTES = 64 * 1024  # of an answer to a record; what is longer is cut
GATE_ANSWER_BYTES = 2**20  # of an answer to a gate; what is longer is cut and then no JSON


class Item(Protocol):
    """A queued record as an adapter sees it."""

    @property
    def record_id(self) -> bytes: ...
    @property
    def kind(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def admitted_us(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def agent(self) -> str: ...


class Call(Struct, frozen=True):
    """One of the platform's calls."""

    name: str
    path: str
    batch: bool = False  # takes several records of one lane; otherwise one, sent at once and with what is before it
    repeat: bool = True  # may be sent again when its answer was lost
    strict_key: bool = False  # the platform refuses another body under the same key: the sealed body itself is kept
    newest_only: bool = False  # an older record of the lane is worthless once there is a newer one: heartbeats


class Request(Struct, frozen=True):
    path: str
    body: bytes
    headers: Mapping[str, str] = {}
    method: str = "POST"


class Response(Struct, frozen=True):
    """An answer; header names are lower case, the body is cut at 64 KiB, that of an answer to a gate at 1 MiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Struct, frozen=True):
    """No answer. `sent` is False only when the request certainly never reached the platform."""

    reason: str
    sent: bool
    late: bool = False  # the connection stood, and its time was over: whoever is there has too much to do


def told_at(answer: Response | Lost, now_s: float) -> float:
    """When the answer was made, by its `Date` (RFC 9110 §6.6.1); by our clock, which may be wrong, where it has none.

    Moments that an answer names (`Retry-After` as a date, the reset of a quota) are of the clock that it was made by.
    """
    if isinstance(answer, Lost):
        return now_s
    try:
        said = email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return now_s


def is_overload(answer: Response | Lost) -> bool:
    """Whether the platform has too much to do: it says so (429, RFC 6585 §4; 503, RFC 9110 §15.6.4), or nothing in time."""
    return answer.late if isinstance(answer, Lost) else answer.status in {429, 503}


class Attempt(Struct, frozen=True):
    """In which light an answer is to be read."""

    now_s: float  # Unix time, by the platform's own clock where its answer says it: see `told_at`
    maybe_taken: bool = False  # an earlier try of these bytes may have been taken
    ended: bool = False  # the run (or what the lane is about) had its end delivered before this
    agent_id: str = ""  # the platform's id of the agent that asked, where a gate's decision is read; empty: not known


class Reference(NamedTuple):
    """An id that the platform has to know before the record can be sent. An optional one may be left out instead."""

    kind: str
    local_id: str
    optional: bool = False


class Context(Struct, frozen=True):
    """What an adapter may ask while it encodes."""

    agent: Callable[[str], str]  # the platform's id for a local agent name
    resolve: Callable[
        [str, str], str | None
    ]  # the platform's id for (kind, local id); None where an optional one is dead
    inject_id: bool = True
    options: Mapping[str, str] = {}  # `[destinations.NAME.options]`: which of a platform's variants to speak
    stamp: Mapping[str, Any] = {}  # `[identity]`, for a body that has room for it


class Sending(Struct, frozen=True):
    """What the headers of one try may depend on; unlike the body they may differ from try to try."""

    api_key: str
    idempotency_key: str
    now_s: float  # Unix time
    body: bytes = b""
    signing_secret: str | None = None
    environment: str = ""  # `identity.environment`, fit for a header

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"<Sending {self.idempotency_key}>"


class Unencodable(AgentdError):  # noqa: N818 - a state of the record
    """The record can't be expressed for this platform. `cause` is what it is dead of."""

    cause = Cause.UNENCODABLE

    def __init__(self, message: str, index: int = 0) -> None:
        """`index` is the record's place in the batch, below 0: all of it."""
        super().__init__(message)
        self.index = index


class Platform(Protocol):
    """An adapter."""

    name: str
    default_base_url: str
    encoder_version: int
    calls: Mapping[str, Call]  # kind → call; its keys are the kinds that the platform takes
    introduces: frozenset[str]  # kinds whose answer names an id
    options: Mapping[str, tuple[str, ...]]  # what `[destinations.NAME.options]` may say, the default first

    def headers(self, sending: Sending) -> dict[str, str]:
        """Authentication and idempotency, for every request."""
        ...

    def references(self, item: Item) -> Sequence[Reference]:
        """The ids that have to be known before this record; for a batch its first record speaks for all."""
        ...

    def encode(self, call: Call, items: Sequence[Item], context: Context) -> Request:
        """The request, the same bytes for the same records and references. Raises Unencodable."""
        ...

    def classify(self, call: Call, items: Sequence[Item], answer: Response | Lost, attempt: Attempt) -> Verdict:
        """What the answer means."""
        ...


class Usage(Struct, frozen=True):
    """What one answer says of a cap that its platform has on what is sent."""

    spent: int = 0  # of the cap, by this request
    passed: bool = False  # a call that the cap is for went through: it is not reached, or not any more
    left: int | None = None  # where the answer says so
    reached: bool = False
    resets_in_s: float | None = None  # where it is reached and the answer says until when


class Metered(Protocol):
    """An adapter whose platform tells something of a cap."""

    cap: str  # what it is called, for people: "decide.fyi's monthly cap"

    def usage(self, request: Request, answer: Response, now_s: float) -> Usage:
        """What this answer says of it; `now_s` is Unix time by the platform's clock."""
        ...


def check_options(platform: Platform, options: Mapping[str, str]) -> None:
    """Whether the platform has these variants. Raises ConfigError that lists those that it has."""
    for option, value in options.items():
        if value not in platform.options.get(option, ()):
            known = "; ".join(f"{key} = {' | '.join(words)}" for key, words in platform.options.items())
            raise ConfigError(f"options: {option} = {value!r}: {platform.name} knows {known or 'none'}")


class Transport(Protocol):
    """The way out to one destination."""

    async def send(self, request: Request, headers: Mapping[str, str]) -> Response | Lost:
        """One request, one answer or the reason why there is none. Never raises for what the network does."""
        ...
