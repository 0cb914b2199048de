"""The closed sets: what a platform's answer means, and why a record ended. No status code passes above an adapter."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct


class State(StrEnum):
    """Where a record is; promise 8 sums these up to `admitted`."""

    QUEUED = "queued"
    DELIVERED = "delivered"
    DEAD = "dead"
    PURGED = "purged"
    SHED = "shed"
    QUARANTINED = "quarantined"


class Cause(StrEnum):
    """Why a record was refused, shed, buried, purged or set aside. Stable names: metrics, books and clients read them."""

    # refused at intake (the client is told; nothing of ours holds the record, but for `invalid` evidence)
    INVALID = "invalid"  # not one of the kinds, a wrong field, too deep, too large, no UTF-8
    UNROUTED = "unrouted"  # no destination takes this kind, agent or name
    SPOOL_FULL = "spool_full"  # the destination's quota or the disk is full
    ID_CONFLICT = "id_conflict"  # the same id with other content
    FOREIGN_REFERENCE = "foreign_reference"  # another agent's run, decision or action
    FORBIDDEN_AGENT = "forbidden_agent"  # an agent that its sender may not speak for ([[security.peers]], tokens)
    FORBIDDEN_DESTINATION = "forbidden_destination"  # a destination that its sender may not use
    # shed from a full queue, oldest first
    QUEUE_FULL = "queue_full"
    # buried: a dead letter with the platform's answer
    REJECTED = "rejected"  # the platform refused this record for good
    TOO_LARGE = "too_large"  # 413 for one record alone
    RUN_ENDED = "run_ended"  # came after the run's end and was refused
    INTRODUCER_DEAD = "introducer_dead"  # the run.start or decision it needs was refused for good
    OUTCOME_UNKNOWN = "outcome_unknown"  # may have been taken and must not be repeated
    GATE_UNAVAILABLE = "gate_unavailable"  # names a gate that no platform knows
    UNENCODABLE = "unencodable"  # the adapter can't express it for this platform
    # by an operator
    DROPPED = "dropped"
    # set aside
    DAMAGED = "damaged"
    # replaced by a newer one of its kind
    STALE = "stale"  # a heartbeat: only the newest per agent counts; agentd's own end of a run that was ended after all
    DELIVERED = "delivered"  # no loss: the platform took it


_DEADLY = (
    Cause.REJECTED, Cause.TOO_LARGE, Cause.RUN_ENDED, Cause.INTRODUCER_DEAD, Cause.OUTCOME_UNKNOWN, Cause.GATE_UNAVAILABLE,
    Cause.FOREIGN_REFERENCE, Cause.UNENCODABLE, Cause.INVALID,
)  # fmt: skip
DEATHS = tuple(cause.value for cause in _DEADLY)  # what a dead letter's cause may be


class Scope(StrEnum):
    """How far a verdict reaches."""

    LANE = "lane"
    DESTINATION = "destination"


RECORD = "record"  # kind of what is learned of a record that introduces nothing: local_id is then the record's own


class Learned(Struct, frozen=True, gc=False):
    """The platform's id for a client-made one, from the answer to the introducing call; or what it calls a record of its own."""

    kind: str
    local_id: str
    platform_id: str


class Delivered(Struct, frozen=True, tag=True):
    """The platform has it. `learned` names what it called things."""

    learned: tuple[Learned, ...] = ()

    @property
    def introduces(self) -> bool:
        """Whether other records may have waited for a name of it."""
        return any(fact.kind != RECORD for fact in self.learned)


class Retry(Struct, frozen=True, tag=True):
    """Not taken, or taken and safe to repeat: the same bytes again after backoff, at the earliest after `after_s`.

    With `scope` DESTINATION every lane waits (no connection, rate limit of the key); with LANE this one alone.
    """

    reason: str
    after_s: float | None = None
    scope: Scope = Scope.LANE


class Pause(Struct, frozen=True, tag=True):
    """Sending makes no sense until somebody acts (key, plan, permission) or `until_s` (seconds from now) is over.

    Everything is kept; the head batch is sent again as a probe.
    """

    scope: Scope
    reason: str
    until_s: float | None = None


class Split(Struct, frozen=True, tag=True):
    """The whole batch was refused and nothing of it taken: its halves are new batches, a single record is dead."""

    reason: str
    cause: Cause = Cause.REJECTED


class Reject(Struct, frozen=True, tag=True):
    """Refused for good, all of it."""

    reason: str
    cause: Cause = Cause.REJECTED


class Unknown(Struct, frozen=True, tag=True):
    """It may have been taken and must not be repeated: dead letters, never replayed without `--force`."""

    reason: str


Verdict: TypeAlias = Delivered | Retry | Pause | Split | Reject | Unknown
