"""What can be said of a daemon that does not run, from the folder that it left: its status, and the gates on record.

The documents are those of the HTTP dialect as far as the disk knows them; what only a running daemon knows is null or left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from agentd import __version__
from agentd.errors import SpoolDamaged
from agentd.gate.answers import facts_of, summary_of
from agentd.intake import streams
from agentd.outcomes import State
from agentd.sections import Loaded
from agentd.spool.books import Books
from agentd.spool.checked import unpack
from agentd.spool.gaterows import GateRow, Step, Stored, decode, of_brief
from agentd.spool.look import Look
from agentd.spool.queue import Queue
from agentd.spool.store import Rows, key_of
from agentd.spool.tables import Table
from agentd.wire import CONTRACT


def status_at_rest(look: Look, loaded: Loaded, pid: int | None, now_us: int) -> dict[str, Any]:
    """As `GET /v1/status`. `pid` is that of a daemon which uses the folder and does not answer, None if none does."""
    config, ledger = loaded.config, look.ledger
    books = Books()
    books.restore(ledger.meta.books)  # as they are on disk; the ledger's are those that a start would mend
    kept = {name for name, queue in ledger.queues.items() if queue.live}
    names = [*config.destinations, *sorted(kept - set(config.destinations))]
    destinations = {name: _destination(look, loaded, books, name, now_us) for name in names}
    return {
        "agentd": __version__,
        "contract": CONTRACT,
        "pid": pid,
        "uid": ledger.folder.path.stat().st_uid,
        "started_at": None,
        "uptime_s": None,
        "socket": config.listen.socket,
        "config": loaded.path,
        "state": "stopped" if pid is None else "not answering",
        "spool": {
            "directory": config.spool.directory,
            "sync": config.spool.sync,
            "bytes": sum(queue.stored_bytes for queue in ledger.queues.values()),
            "max_bytes": int(config.spool.max_bytes),
            "segments": sum(len(queue.segments) for queue in ledger.queues.values()),
            "commits": ledger.meta.commits,
            "disk_free_bytes": ledger.folder.free_bytes(),
            "quarantined_rows": ledger.quarantined_rows,
        },
        "intake": {"lost_before_intake": lost_before_intake(look.store)},
        "destinations": destinations,
        "dead_letters": {
            "records": ledger.dead_count,
            "bytes": ledger.dead_bytes,
            "max_bytes": int(config.dead_letters.max_bytes),
            "invalid": books.total("", State.DEAD.value),
        },
        "journal": ledger.journal.document() | {"max_bytes": int(config.journal.max_bytes)},
        "balanced": all(facts["balanced"] for facts in destinations.values()) and not books.queued(""),
    }


def _destination(look: Look, loaded: Loaded, books: Books, name: str, now_us: int) -> dict[str, Any]:
    queue = look.ledger.queues.get(name) or Queue(name, 1, 1)  # configured since: nothing was ever queued for it
    configured = loaded.config.destinations.get(name)
    oldest_us = queue.oldest_us(lambda at_us: max(0, now_us - at_us))
    open_gates = sum(1 for stored in _stored(look, "open") if stored.brief.destination == name)
    return {
        "platform": configured.platform if configured else None,
        "base_url": configured.base_url if configured else None,
        "state": "stopped" if configured else "removed",
        "reason": None if configured else "not in the configuration; its queue is kept",
        "retry_in_s": None,
        "admitted": books.total(name, "admitted"),
        "queued": queue.live,
        **{state.value: books.total(name, state.value) for state in State if state is not State.QUEUED},
        "queued_bytes": queue.stored_bytes,
        "max_bytes": loaded.config.quota_of(name) if configured else 0,
        "oldest_age_s": None if oldest_us is None else round(oldest_us / 1e6, 3),
        "causes": books.causes(name),
        "gates": {"open": open_gates} if open_gates else None,
        "balanced": books.queued(name) == queue.live,
    }


def lost_before_intake(rows: Rows) -> dict[str, int]:
    """What clients said that they had lost, by cause and kind, over all streams that are kept."""
    known = streams.Streams()
    for row, (_, value) in enumerate(rows.rows(Table.STREAM)):
        try:
            known.add(row, streams.decode(unpack(value)))
        except (SpoolDamaged, msgspec.MsgspecError):
            continue  # an audit says so
    return known.lost()


# -- gates ---------------------------------------------------------------------------------------------------------------


def gates_at_rest(look: Look, state: str, limit: int) -> list[dict[str, Any]]:
    """As `GET /v1/gates`: the newest first; `state` is open, final or all."""
    shown: list[dict[str, Any]] = []
    for stored in _stored(look, state):
        if len(shown) == limit:
            break
        shown.append(summary_of(_gate(look, stored)))
    return shown


def gate_at_rest(look: Look, gate_id: str) -> dict[str, Any] | None:
    """As `GET /v1/gates/{gate_id}`, None for one that is not on record."""
    for stored in _stored(look, "all"):
        if stored.brief.gate_id == gate_id:
            return facts_of(_gate(look, stored))
    return None


def _stored(look: Look, state: str) -> Iterator[Stored]:
    for stored in reversed(look.ledger.gates):
        if state == "all" or (stored.brief.step is Step.FINAL) == (state == "final"):
            yield stored


def _gate(look: Look, stored: Stored) -> GateRow:
    """The whole of it; of a damaged one what its tag says."""
    try:
        return decode(stored.row, look.store.read(key_of(Table.GATE, stored.row)))
    except SpoolDamaged:
        return of_brief(stored.brief, stored.row)
