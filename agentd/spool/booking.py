"""What a commit says in books, journal and references of the records that it brings, and how that is taken back.

Records enter them when their commit is gathered, so that all of it is in that very commit; one that finds no room is undone.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentd.outcomes import State
from agentd.queued import Entry
from agentd.records import EVIDENCE
from agentd.spool.books import Books
from agentd.spool.ledger import Ledger
from agentd.spool.refs import encode as encode_ref
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table
from agentd.spool.writer import Append, Pending

REPLAYED = "replayed"  # in the journal: why a dead record waits again
MOVED = "moved"  # and why a queued one has another number


def book(ledger: Ledger, append: Append, now: int) -> None:
    """It goes with the commit that is being gathered."""
    before = len(ledger.journal.pending)
    for name, entries in append.copies.items() if append.admits else ():
        _book_new(ledger, name, entries, now)
    if append.returned:
        _book_returned(ledger, append, now)
    for ref in append.introduced:
        ledger.refs.changed[ref.row] = ref
    for noted in append.notes:
        ledger.journal.note(noted.entry, noted.state, noted.destination, now, **noted.facts)
    append.noted = ledger.journal.pending[before:]


def _book_new(ledger: Ledger, name: str, entries: Sequence[Entry], now: int) -> None:
    for entry in entries:
        ledger.books.admit(name, entry.kind)
        if entry.kind in EVIDENCE:
            ledger.journal.note(entry, State.QUEUED, name, now)


def _book_returned(ledger: Ledger, append: Append, now: int) -> None:
    """Out of the dead; the journal says of each that it waits again, and by whom."""
    for name, entries in append.copies.items():
        for entry in entries:
            ledger.journal.note(entry, State.QUEUED, name, now, cause=REPLAYED, by=append.by)
    for back in append.returned:
        brief = back.brief
        ledger.books.end(brief.destination, brief.kind, State.DEAD, brief.cause, -1)
        ledger.remove_letter(brief, back.size)


def unbook(append: Append, books: Books) -> None:
    """In books of a commit that went wrong, as if its records had never been in them."""
    for name, entries in append.copies.items():
        for entry in entries if append.admits else ():
            books.admit(name, entry.kind, -1)
    for back in append.returned:
        books.end(back.brief.destination, back.brief.kind, State.DEAD, back.brief.cause)


def undo(ledger: Ledger, append: Append, pending: Pending) -> None:
    """Its commit found no room: nothing of it is kept, and `pending` is tried again without it (`gathering.retake_journal`)."""
    unbook(append, ledger.books)
    for back in append.returned:
        ledger.add_letter(back.brief, back.size)
    for ref in append.introduced:  # a reference without its introducer would be waited for without end
        before = ledger.refs.withdraw(ref)
        if before is None:
            pending.delete(key_of(Table.REF, ref.row))
        else:
            pending.put(Put(key_of(Table.REF, ref.row), encode_ref(before)))
