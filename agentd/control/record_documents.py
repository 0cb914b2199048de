"""What is known of a record, run, decision, action or gate, as a JSON object: `agentd where` and `GET /v1/records/{id}`. No I/O.

Contents are not in it: what was sent is told by its digest. A running daemon and the command line over a stopped one's folder say
it in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from agentd.delivery.waits import Waits
from agentd.gate.answers import summary_of
from agentd.identity import text_of
from agentd.outcomes import State
from agentd.queued import Ref
from agentd.records import EVIDENCE
from agentd.spool.gaterows import GateRow
from agentd.spool.journal import Note
from agentd.spool.letters import Letter
from agentd.spool.trace import Trace, Traced, Waiting, id_of
from agentd.units import rfc3339

_GATE = "gate."
TELEMETRY = (
    "events and spans leave no entry of their own when they are delivered; what of a run was delivered is counted at its run "
    "(GET /v1/runs/{run_id})"
)
GONE = f"it was taken, and is neither queued nor dead any more: delivered, or shed from a full queue; {TELEMETRY}"

Own = Callable[[str, str, int], bool]  # destination, agent, uid: whether who asks may see it
Waiter = Callable[[Waiting], Waits | None]  # what a queued record waits for, None where nobody knows


def everything(_destination: str, _agent: str, _uid: int) -> bool:
    """For admins, and for who may read the folder itself."""
    return True


def document(
    found: Trace,
    own: Own,
    waits: Waiter,
    taken_from: Iterable[int] = (),
    shows_gate: Callable[[GateRow], bool] | None = None,
) -> dict[str, Any] | None:
    """All of it that may be seen; None if that is nothing.

    `taken_from`: the uids from which a record of that id was taken lately. `shows_gate` judges gates, which may belong to a token.
    """
    records = [shown for record in found.records if (shown := _record(record, own, waits)) is not None]
    references = [_reference(ref, found) for ref in found.references if own(ref.destination, ref.agent, ref.uid)]
    sees = shows_gate or (lambda gate: own(gate.destination, gate.source.agent, gate.source.uid))
    gates = [summary_of(gate) for gate in found.gates if sees(gate)]
    if not (records or references or gates):
        records = [_gone(found.asked, uid) for uid in taken_from]
    if not (records or references or gates):
        return None
    return {
        "id": found.asked,
        "is": _kinds(found, records, references, gates),
        "records": records,
        "more": found.more,
        "references": references,
        "gates": gates,
        "journal": {
            "first": found.first,
            "last": found.last,
            "since": _time(found.since_us),
            "damaged_rows": found.damaged,
        },
    }


def unknown(asked: str, since_us: int) -> str:
    """The sentence for what is not there, or not for who asks: nobody learns which."""
    reach = f"the journal goes back to {_time(since_us)}" if since_us else "the journal is empty"
    return f"nothing is known of {asked[:300]!r}: {reach}, and {TELEMETRY}"


def _time(us: int) -> str | None:
    return rfc3339(us / 1e6) if us else None


# -- a record ------------------------------------------------------------------------------------------------------------


def _record(record: Traced, own: Own, waits: Waiter) -> dict[str, Any] | None:
    """One record with its story at each destination; None where nothing of it may be seen."""
    places = [name for name in _places(record) if own(name, _agent(record, name), record.uid)]
    if not places:
        return None
    return {
        "id": text_of(record.record_id),
        **_facts(record),
        "uid": record.uid,
        "destinations": [_at(record, name, waits) for name in places],
    }


def _places(record: Traced) -> list[str]:
    names = [note.destination for note in record.notes]
    names += [waiting.destination for waiting in record.waiting]
    return list(dict.fromkeys([*names, *(letter.destination for _, letter in record.letters)]))


def _agent(record: Traced, name: str) -> str:
    """Whose it is at a destination."""
    for note in record.notes:
        if note.destination == name and note.record_id:
            return note.agent
    for waiting in record.waiting:
        if waiting.destination == name:
            return waiting.entry.source.agent
    return next((letter.source.agent for _, letter in record.letters if letter.destination == name), "")


def _facts(record: Traced) -> dict[str, Any]:
    """What the record is: as the journal has it, else as it lies in a queue or among the dead."""
    for note in record.notes:
        if note.record_id:
            return {
                "kind": note.kind,
                "agent": note.agent,
                "run": note.run or None,
                "occurred_at": _time(note.occurred_us),
                "received_at": _time(note.admitted_us),
                "sha256": note.sha256.hex(),
                "redacted": next((one.redactions for one in record.notes if one.redactions), {}),
            }
    stored = record.waiting[0].entry if record.waiting else record.letters[0][1]
    kind, _, name = stored.lane.partition(":")
    return {
        "kind": stored.kind,
        "agent": stored.source.agent,
        "run": name if kind == "run" else None,
        "occurred_at": None,
        "received_at": _time(stored.admitted_us),
        "sha256": record.sha256.hex(),
        "redacted": {},
    }


def _at(record: Traced, name: str, waits: Waiter) -> dict[str, Any]:
    """What became of it at a destination, and how."""
    notes = [note for note in record.notes if note.destination == name]
    waiting = next((waiting for waiting in record.waiting if waiting.destination == name), None)
    letter = next((pair for pair in record.letters if pair[1].destination == name), None)
    if waiting is not None:
        facts = _queued(waiting, waits(waiting))
    elif letter is not None:
        facts = _dead(*letter)
    else:
        facts = _ended(notes[-1])
    return {"destination": name or None, **facts, "history": [_step(note) for note in notes]}


def _queued(waiting: Waiting, why: Waits | None) -> dict[str, Any]:
    entry, seal = waiting.entry, waiting.seal
    return {
        "state": State.QUEUED.value,
        "at": _time(entry.admitted_us),
        "number": entry.number,
        "lane": entry.lane,
        "bytes": waiting.size,
        "key": seal.key if seal is not None else None,
        "batch": None if seal is None else seal.count,
        "waits": None
        if why is None
        else {
            "for": why.why.value,
            "reason": why.reason or None,
            "next_try_in_s": None if why.next_s is None else round(why.next_s, 3),
            "failures": why.failures,
        },
    }


def _dead(number: int, letter: Letter) -> dict[str, Any]:
    return {
        "state": State.DEAD.value,
        "at": _time(letter.died_us),
        "letter": number,
        "cause": letter.cause.value,
        "reason": letter.reason,
        "key": letter.key or None,
        "tries": letter.tries,
        "status": letter.status,
    }


def _ended(note: Note) -> dict[str, Any]:
    """By its last entry in the journal. Telemetry that was replayed has none of its delivery."""
    facts: dict[str, Any]
    if note.kind.startswith(_GATE):
        is_open = note.state is State.QUEUED
        facts = {"state": "open" if is_open else "answered", "step" if is_open else "verdict": note.cause}
        facts["proceed"] = note.proceed
    elif note.state is State.QUEUED and not note.destination:  # refused as invalid once; its destinations say the rest
        facts = {"state": "taken", "cause": note.cause or None}
    elif note.state is State.QUEUED and note.kind not in EVIDENCE:
        facts = {"state": "ended", "note": TELEMETRY}
    elif note.state is State.QUEUED:
        facts = {"state": "missing", "note": "the journal has it queued and the queue has not: run 'agentd audit'"}
    else:
        facts = {"state": note.state.value, "cause": note.cause or None}
    return facts | {
        "at": _time(note.at_us),
        "key": note.key or None,
        "platform_id": note.platform_id or None,
        "tries": note.tries,
        **_who(note),
    }


def _who(note: Note) -> dict[str, Any]:
    """Who had it done, where a person did."""
    return {"by": note.by, "reason": note.reason or None} if note.by >= 0 or note.reason else {}


def _step(note: Note) -> dict[str, Any]:
    facts: dict[str, Any] = {"entry": note.number, "at": _time(note.at_us), "state": note.state.value}
    if not note.record_id:
        facts["segment"] = {"records": note.count, "numbers": note.lane}  # one entry for all of a kind
    optional = {
        "cause": note.cause, "number": note.queue_number, "key": note.key, "platform_id": note.platform_id,
        "tries": note.tries, "fail_open": note.fail_open,
    }  # fmt: skip
    return facts | {name: value for name, value in optional.items() if value} | _who(note)


def _gone(asked: str, uid: int) -> dict[str, Any]:
    """Its id is within the dedupe window, and nothing else says anything of it."""
    return {"id": asked, "kind": None, "uid": uid, "destinations": [], "note": GONE}


# -- what it is called -------------------------------------------------------------------------------------------------------


def _reference(ref: Ref, found: Trace) -> dict[str, Any]:
    lane = found.lanes.get((ref.destination, f"{ref.kind}:{ref.local_id}"))
    return {
        "destination": ref.destination,
        "kind": ref.kind,
        "id": ref.local_id,
        "platform_id": ref.platform_id,
        "state": ref.state,
        "agent": ref.agent,
        "uid": ref.uid,
        "ended": ref.ended,
        "delivered": ref.delivered,
        "queued": lane.queued if lane is not None else 0,
        "dead": lane.dead if lane is not None else 0,
    }


def _kinds(
    found: Trace, records: list[dict[str, Any]], references: list[dict[str, Any]], gates: list[dict[str, Any]]
) -> list[str]:
    """What the name that was asked for is, in words."""
    asked = found.asked
    record_id = id_of(asked)
    named = None if record_id is None else text_of(record_id)
    words = [
        "gate" if str(record["kind"]).startswith(_GATE) else "record" for record in records if record["id"] == named
    ]
    words += [ref["kind"] for ref in references if ref["id"] == asked]
    words += [f"{ref['kind']} by the platform's id" for ref in references if asked == ref["platform_id"] != ref["id"]]
    words += ["gate" for gate in gates if gate["gate_id"] == asked]
    words += ["key of a gate" for gate in gates if gate["key"] == asked]
    words += ["answer of a gate" for gate in gates if asked in (gate["id"], gate["platform_id"])]
    shown = {(record["id"], record["uid"]) for record in records}
    for traced in found.records:
        if (text_of(traced.record_id), traced.uid) in shown:
            words += _names_in(traced, asked)
    if any(word.endswith("by the platform's id") for word in words):
        words = [word for word in words if word != "platform's id"]
    return list(dict.fromkeys(words))


def _names_in(record: Traced, asked: str) -> list[str]:
    words = []
    for note in record.notes:
        words += ["idempotency key"] if note.key == asked != text_of(record.record_id) else []
        words += ["platform's id"] if note.platform_id == asked else []
        words += ["run"] if note.run == asked else []
        words += [note.lane.partition(":")[0]] if note.lane.partition(":")[2] == asked else []
        words += ["decision"] if note.kind == "decision" and note.local_id == asked else []
    words += ["idempotency key" for waiting in record.waiting if waiting.seal is not None and waiting.seal.key == asked]
    lanes = [waiting.entry.lane for waiting in record.waiting] + [letter.lane for _, letter in record.letters]
    words += [lane.partition(":")[0] for lane in lanes if lane.partition(":")[2] == asked]
    return words
