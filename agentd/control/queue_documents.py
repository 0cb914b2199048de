"""What is said of a queue, as JSON objects: lanes, records, receipts, and a destination's figures. No I/O.

A running daemon and the command line over a stopped one's folder say it in the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw

from agentd.delivery.flow import Rates, drain
from agentd.delivery.waits import Waits, Why
from agentd.identity import text_of
from agentd.queued import DEAD, GATE_LANE, INTRODUCED, Entry
from agentd.records import REFERENCE_FIELDS, LossClass
from agentd.spool.census import Census, LaneCount, Peeked, Place
from agentd.spool.drop import Dropped
from agentd.spool.journal import Note
from agentd.spool.ledger import Ledger
from agentd.spool.receipts import Receipts
from agentd.units import rfc3339

Ages = Callable[[int], int]  # how many microseconds ago a stamp was


def time_of(stamp_us: int) -> str:
    return rfc3339(stamp_us / 1e6)


def age_s(stamp_us: int, ages: Ages) -> float:
    return round(max(0, ages(stamp_us)) / 1e6, 3)


# -- lanes -------------------------------------------------------------------------------------------------------------


def lanes_document(found: Census, lanes: list[dict[str, Any]], queued: dict[str, int]) -> dict[str, Any]:
    """The list with what was counted altogether. `queued` are all records that wait, by destination, whoever sent them."""
    return {
        "lanes": lanes,
        "matched": {"lanes": found.lanes_met, "records": found.records, "bytes": found.bytes},
        "exact": found.exact,
        "damaged_segments": found.damaged,
        "destinations": {name: {"queued": count} for name, count in queued.items()},
    }


def lane_document(lane: LaneCount, ages: Ages, waiting: Waits, *, parked: bool, sealed: int) -> dict[str, Any]:
    return {
        "destination": lane.destination,
        "lane": lane.lane,
        "records": lane.records,
        "bytes": lane.bytes,
        "kinds": lane.kinds,
        "loss": lane.losses,
        "oldest": _place(lane.oldest, ages),
        "head": _place(lane.head, ages),
        "newest": {"number": lane.newest_number, "admitted_at": time_of(lane.newest_us)},
        "waits": {
            "for": waiting.why.value,
            "reason": waiting.reason or None,
            "next_try_in_s": None if waiting.next_s is None else round(waiting.next_s, 3),
            "failures": waiting.failures,
        },
        "parked": parked,
        "sealed": sealed,
    }


def _place(place: Place, ages: Ages) -> dict[str, Any]:
    return {
        "number": place.number,
        "id": text_of(place.record_id),
        "kind": place.kind,
        "admitted_at": time_of(place.admitted_us),
        "age_s": age_s(place.admitted_us, ages),
    }


def waits_at_rest(ledger: Ledger, destination: str, lane: str, kind: str) -> Waits:
    """What a lane of a stopped daemon's queue waits for, as far as the disk says it; `kind` is its head's."""
    seals = ledger.seals.of_lane(destination, lane)
    if seals:
        return Waits(Why.SEAL, f"a batch of {seals[0].count} that may have been sent goes again as it was")
    of, _, local_id = lane.partition(":")
    needed = REFERENCE_FIELDS.get(kind)
    if needed is None or needed[0] != of:
        return Waits(Why.DAEMON)
    ref = ledger.refs.find(destination, of, local_id)
    if ref is None:
        return Waits(
            Why.REFERENCE, f"nothing has introduced {of} {local_id}: taken as the platform's own after a while"
        )
    if ref.state == DEAD:
        what = "names a gate that no platform knows" if ref.lane.startswith(GATE_LANE) else "was refused for good"
        return Waits(Why.REFERENCE, f"{of} {local_id} {what}: what names it will be dead")
    if ref.state == INTRODUCED and (ref.lane or lane) != lane:
        return Waits(Why.REFERENCE, f"waits for {of} {local_id}, which {ref.lane} introduces")
    return Waits(Why.DAEMON)


# -- records -----------------------------------------------------------------------------------------------------------


def records_document(found: Peeked, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {"records": records, "cut": found.cut, "damaged_segments": found.damaged}


def record_document(destination: str, entry: Entry, ages: Ages, *, whole: bool) -> dict[str, Any]:
    """Whole with its contents and whose it is. Of others' records not even the lane is told: runs go by it."""
    facts: dict[str, Any] = {
        "destination": destination,
        "number": entry.number,
        "kind": entry.kind,
        "bytes": len(entry.body),
        "admitted_at": time_of(entry.admitted_us),
        "age_s": age_s(entry.admitted_us, ages),
    }
    if whole:
        facts |= {
            "id": text_of(entry.record_id),
            "lane": entry.lane,
            "agent": entry.source.agent,
            "uid": entry.source.uid,
            "loss": entry.loss.value,
            "record": Raw(entry.body),  # spliced: it was checked when it came in
        }
    return facts


# -- receipts ----------------------------------------------------------------------------------------------------------


def receipts_document(found: Receipts) -> dict[str, Any]:
    return {
        "receipts": [receipt_document(note) for note in found.notes],
        "complete": found.complete,
        "damaged_rows": found.damaged,
    }


def receipt_document(note: Note) -> dict[str, Any]:
    """That a record was delivered. What the platform calls it is known of records that introduce something there."""
    return {
        "id": text_of(note.record_id),
        "kind": note.kind,
        "destination": note.destination,
        "agent": note.agent,
        "run": note.run or None,
        "platform_id": note.platform_id or None,
        "key": note.key,
        "tries": note.tries,
        "admitted_at": time_of(note.admitted_us),
        "delivered_at": time_of(note.at_us),
        "sha256": note.sha256.hex(),
    }


# -- a destination -----------------------------------------------------------------------------------------------------


def flow_document(queued: int, rates: Rates | None) -> dict[str, Any]:
    """How fast it fills and empties; null where that is not known."""
    word, eta_s = drain(queued, rates)
    return {
        "admitted_per_s": None if rates is None else round(rates.admitted, 3),
        "delivered_per_s": None if rates is None else round(rates.delivered, 3),
        "drain": word.value,
        "eta_s": None if eta_s is None else round(eta_s, 1),
    }


def destination_document(ledger: Ledger, name: str, ages: Ages, rates: Rates | None, quota: int) -> dict[str, Any]:
    """What the ledger knows of a destination's queue; ages are to the precision of a segment."""
    queue = ledger.queues[name]
    oldest_us = queue.oldest_us(ages)
    return {
        "taken_for": ledger.meta.identities.get(name),
        "queued": queue.live,
        "bytes": queue.stored_bytes,
        "max_bytes": quota,
        "oldest_age_s": None if oldest_us is None else round(oldest_us / 1e6, 3),
        "kinds": ledger.books.queued_kinds(name),
        "bytes_by_loss": {loss.value: queue.index.class_bytes[loss] for loss in LossClass},
        "segments": len(queue.segments),
        "sealed": sum(len(ledger.seals.of_lane(name, lane)) for lane in ledger.seals.lanes(name)),
        **flow_document(queue.live, rates),
    }


def stats_document(
    destinations: dict[str, dict[str, Any]], *, at_us: int, running: bool, **more: int
) -> dict[str, Any]:
    """All destinations, and what they come to together; `more` are figures of the whole spool (`disk_figures`)."""
    ages = [facts["oldest_age_s"] for facts in destinations.values() if facts["oldest_age_s"] is not None]
    sums = {name: sum(facts[name] for facts in destinations.values()) for name in ("queued", "bytes", "segments")}
    return {
        "at": time_of(at_us),
        "running": running,
        "destinations": destinations,
        "total": {**sums, "oldest_age_s": max(ages, default=None), **more},
    }


def dropped_document(destination: str, dropped: Dropped) -> dict[str, Any]:
    """`tried` is how many of them had been sent before without an answer that settled them: the platform may have those."""
    return {
        "destination": destination,
        "dropped": dropped.records,
        "kinds": dict(sorted(dropped.kinds.items())),
        "tried": dropped.tried,
    }
