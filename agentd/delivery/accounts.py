"""What a courier writes down: counts of its requests, and why records are dead."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from agentd.delivery.lanes import Lane
from agentd.exchange import Lost, Response
from agentd.identity import text_of
from agentd.outcomes import Cause
from agentd.queued import Death, Entry, Seal

_ANSWER_CHARS = 2048


class Counts(Struct):
    """What status and metrics show."""

    requests: int = 0
    retries: int = 0
    records: int = 0
    latency_s: float = 0.0


def about(
    destination: str, action: str, lane: Lane | None = None, seal: Seal | None = None, entries: Sequence[Entry] = ()
) -> dict[str, object]:
    """What a line of the log is about: `batch` is the key that the platform sees, `record_id` stands where it is one record alone."""
    fields: dict[str, object] = {"action": action, "destination": destination}
    if lane is not None:
        fields["lane"] = lane.key
    if seal is not None:
        fields["batch"] = seal.key
    if len(entries) == 1:
        fields["record_id"] = text_of(entries[0].record_id)
    return fields


def size_of(entries: Sequence[Entry]) -> int:
    return sum(len(entry.body) for entry in entries)


def death_of(cause: Cause, reason: str, lane: Lane, seal: Seal, answer: Response | Lost | None) -> Death:
    """Why a batch's records are dead, with the platform's answer where there was one."""
    status = answer.status if isinstance(answer, Response) else None
    text = answer.body.decode(errors="replace")[:_ANSWER_CHARS] if isinstance(answer, Response) else ""
    return Death(cause, reason, lane.failures + 1, status, text, seal.key, tuple(lane.history))
