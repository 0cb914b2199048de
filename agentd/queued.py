"""A record once it is admitted, and what goes with it: where it came from, its batch's seal, its references, its death.

Spool, intake and delivery share these; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from agentd.outcomes import Cause
from agentd.records import LossClass


class Source(Struct, frozen=True, array_like=True):
    """Where a record came from; shared by all records of a frame."""

    agent: str  # the host's own name for the agent, resolved at admission
    uid: int
    pid: int
    origin: str  # frames, lines, http, agentd
    redaction: int = 0  # version of the redaction rules that it went through, 0 for none


class Entry(Struct):
    """One admitted record of one destination."""

    number: int
    record_id: bytes
    lane: str
    kind: str
    loss: LossClass
    source: Source
    admitted_us: int
    body: bytes
    segment: int = 0  # key of the row that holds it, 0 until committed
    index: int = 0  # place in that row
    redactions: Mapping[str, int] | None = None  # at its admission, by rule; kept in the journal

    @property
    def agent(self) -> str:
        """The local name of the agent that it was admitted for."""
        return self.source.agent


class Seal(Struct, array_like=True):
    """A sealed batch. Its records are the lane's from `first` to `last` but for `exceptions`."""

    seq: int
    destination: str
    lane: str
    first: int
    last: int
    count: int
    exceptions: tuple[int, ...]
    key: str
    encoder: int
    sha256: bytes
    call: str
    tried: bool = False  # it may have reached the platform: what is answered to a repeat is read in that light
    body: bytes | None = None  # kept for calls under a strict key, which refuse a changed payload
    row: int = 0
    path: str = ""  # kept with the body: it may hold an id that is known by another name since


INTRODUCED, KNOWN, DEAD = "introduced", "known", "dead"
GATE_LANE = "gate:"  # begins the lane of a reference that a gate introduced; the gate's id follows
NO_GATE = "no-gate:"  # begins the id of a verdict that a client had to make up, since no agentd gave it one


class Ref(Struct, array_like=True):
    """One reference. `number` is its introducer's in the destination's queue."""

    destination: str
    kind: str
    local_id: str
    agent: str
    uid: int
    number: int
    state: str = INTRODUCED
    platform_id: str | None = None
    touched_us: int = 0
    ended: bool = False
    row: int = 0
    delivered: int = 0  # records; reaches the disk within a second, so that a kill may leave it a little low
    lane: str = ""  # its introducer's: a decision made within a run stands in the run's lane


def made_up(destination: str, kind: str, local_id: str) -> Ref | None:
    """The reference of an id that a client made up because it reached no agentd: dead, and never a platform's own. None for others."""
    return Ref(destination, kind, local_id, "", -1, 0, DEAD, lane=GATE_LANE) if local_id.startswith(NO_GATE) else None


def is_anothers(ref: Ref, whose: Ref | Source) -> bool:
    """Whether it is another user's, or of another agent where both are named; unnamed is the destination's own agent."""
    return ref.uid != whose.uid or bool(ref.agent and whose.agent and ref.agent != whose.agent)


class Try(Struct, frozen=True, array_like=True):
    """One try of a batch that came to nothing. `status` is the platform's, None where there was no answer."""

    at_us: int
    status: int | None
    reason: str


class Allowed(Struct, frozen=True, array_like=True):
    """What somebody who came with a local token was allowed then: agents (names or globs) and destinations; None: all of them."""

    agent_ids: tuple[str, ...] | None
    destinations: tuple[str, ...] | None


class Refused(Struct):
    """A decision or lifecycle record that was refused at intake as invalid. `body` is as it was sent, but for its length."""

    kind: str
    record_id: bytes
    lane: str  # of its run, "" where it names none that can be read
    body: bytes
    source: Source
    reason: str
    allowed: Allowed | None = None  # of who came with a local token; None: over the Unix socket
    redactions: dict[str, int] = {}  # by rule, what was taken out of it


class Death(Struct):
    """Why a batch's records are buried. `history` holds its last tries, the oldest first."""

    cause: Cause
    reason: str
    tries: int = 0
    status: int | None = None
    answer: str = ""
    key: str = ""
    history: tuple[Try, ...] = ()
