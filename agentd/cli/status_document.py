"""The answer of `GET /v1/status` as types, for verbs that compute with it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from agentd.errors import StateError

ENDS = ("delivered", "queued", "dead", "purged", "shed", "quarantined")
AT_REST = ("stopped", "not answering")  # states of which the disk speaks, and no daemon


class SpoolStatus(Struct, frozen=True):
    directory: str = ""
    sync: str = ""
    bytes: int = 0
    max_bytes: int = 0
    disk_free_bytes: int = 0
    full: bool = False
    quarantined_rows: int = 0  # since the start


class IntakeStatus(Struct, frozen=True):
    connections: int = 0
    accepted: int = 0
    refused: dict[str, int] = {}
    held: int = 0
    lost_before_intake: dict[str, int] = {}


class GatesStatus(Struct, frozen=True):
    """How the gates of a destination were answered since the start, and how many are under way or followed."""

    open: int = 0
    allow: int = 0
    deny: int = 0
    review: int = 0
    pending: int = 0
    unavailable: int = 0
    circuit: str = "closed"
    reason: str | None = None

    def __str__(self) -> str:
        """What there is to say, or nothing."""
        words = ("open", "allow", "deny", "review", "pending", "unavailable")
        counts = [f"{getattr(self, word)} {word}" for word in words if getattr(self, word)]
        away = [] if self.circuit == "closed" else [f"circuit {self.circuit}: {self.reason}"]
        return ", ".join(counts + away)


class QuotaStatus(Struct, frozen=True):
    """The platform's cap on what is sent in a month."""

    reached: bool = False


class DestinationStatus(Struct, frozen=True):
    state: str
    reason: str | None = None
    retry_in_s: float | None = None
    admitted: int = 0
    queued: int = 0
    delivered: int = 0
    dead: int = 0
    shed: int = 0
    purged: int = 0
    quarantined: int = 0
    queued_bytes: int = 0
    max_bytes: int = 0
    oldest_age_s: float | None = None
    admitted_per_s: float | None = None
    delivered_per_s: float | None = None
    drain: str = "unknown"
    eta_s: float | None = None
    in_flight: int = 0
    concurrency: int = 0
    requests: int = 0
    retries: int = 0
    causes: dict[str, dict[str, int]] = {}
    quota: QuotaStatus | None = None
    forecast: str | None = None
    gates: GatesStatus | None = None
    balanced: bool = True

    @property
    def accounted(self) -> int:
        """What is known to have become of the admitted records (promise 8)."""
        return sum(getattr(self, end) for end in ENDS)

    @property
    def share(self) -> float | None:
        """How much of its quota its queue takes, 1.0 for all of it; None where there is none."""
        return self.queued_bytes / self.max_bytes if self.max_bytes else None


class LettersStatus(Struct, frozen=True):
    records: int = 0
    bytes: int = 0
    max_bytes: int = 0
    invalid: int = 0


class JournalStatus(Struct, frozen=True):
    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0


class MemoryStatus(Struct, frozen=True):
    rss_bytes: int = 0
    budget_bytes: int = 0
    window_bytes: int = 0


class RedactionStatus(Struct, frozen=True):
    mode: str = "off"
    keys: int = 0
    patterns: int = 0
    hits: dict[str, int] = {}


class ReloadStatus(Struct, frozen=True):
    done: int = 0
    failed: int = 0
    last_at: str | None = None
    last_error: str | None = None


class ListenStatus(Struct, frozen=True):
    http: str | None = None


class Status(Struct, frozen=True):
    """As far as this command line reads it; a newer daemon may say more."""

    agentd: str
    pid: int | None
    state: str
    socket: str = ""
    listen: ListenStatus = ListenStatus()
    config: str | None = None
    uptime_s: float | None = None
    stuck: str | None = None
    reloads: ReloadStatus = ReloadStatus()
    spool: SpoolStatus = SpoolStatus()
    intake: IntakeStatus = IntakeStatus()
    redaction: RedactionStatus = RedactionStatus()
    destinations: dict[str, DestinationStatus] = {}
    dead_letters: LettersStatus = LettersStatus()
    journal: JournalStatus = JournalStatus()
    memory: MemoryStatus = MemoryStatus()
    balanced: bool = True

    @property
    def unbalanced(self) -> list[str] | None:
        """The destinations whose books do not add up; empty where the daemon doubts and does not say which; None: all do.

        What is on its way to the disk is admitted and not yet queued: more ends than beginnings are a fault, fewer are none.
        """
        wrong = [
            name for name, there in self.destinations.items() if not there.balanced or there.admitted < there.accounted
        ]
        return wrong if wrong or not self.balanced else None


def read_status(document: Any) -> Status:
    """The answer as types. Raises StateError if it is none."""
    try:
        return msgspec.convert(document, Status)
    except msgspec.ValidationError as error:
        raise StateError(f"this is no status of agentd: {error}") from None
