"""What the next commit says of references, journal and what runs lost, gathered from the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from agentd.spool.ledger import Ledger
from agentd.spool.refs import encode as encode_ref
from agentd.spool.store import Put, key_of
from agentd.spool.tables import Table
from agentd.spool.writer import Append, Pending


def gather_refs(ledger: Ledger, pending: Pending) -> None:
    refs = ledger.refs
    for row in refs.removed:
        pending.delete(key_of(Table.REF, row))
    for row, ref in refs.changed.items():
        pending.put(Put(key_of(Table.REF, row), encode_ref(ref)))
    refs.removed, refs.changed = [], {}


def gather_journal(ledger: Ledger, pending: Pending) -> None:
    noted = ledger.journal.take()
    if noted is not None:
        row, value = noted
        pending.put(Put(key_of(Table.JOURNAL, row), value, ledger.now_us().to_bytes(8, "little")))
        for old in ledger.journal.expired(lambda _at_us: 0):  # for its size alone
            pending.delete(key_of(Table.JOURNAL, old))
    ledger.meta.journal_number = ledger.journal.next_number
    ledger.meta.journal_head = ledger.journal.head


def retake_journal(ledger: Ledger, pending: Pending, refused: Iterable[Append]) -> None:
    """The commit is tried again without what these say: a crash before the next one must not leave them admitted."""
    gone = [note for append in refused for note in append.noted]
    if not gone:
        return
    row, value = ledger.journal.retake(gone)
    put = pending.puts.pop(key_of(Table.JOURNAL, row), None)
    if value is not None:
        pending.put(Put(key_of(Table.JOURNAL, row), value, put.tag if put is not None else None))
    ledger.meta.journal_number = ledger.journal.next_number
    ledger.meta.journal_head = ledger.journal.head


def gather_losses(ledger: Ledger, pending: Pending) -> None:
    """Runs that are told with this commit; what it sheds is counted when it is written."""
    losses = ledger.losses
    pending.told = told_by(ledger, pending.appends)
    if not (pending.told or pending.shed or pending.lost or losses.has_changed):
        return
    pending.lost_rows = ledger.take_row(Table.LOST), ledger.take_row(Table.LOST)
    written = losses.write(pending.told, pending.lost_rows[0])
    if written is None:
        return
    if written.value:
        pending.put(Put(key_of(Table.LOST, pending.lost_rows[0]), written.value))
    for row in written.gone:
        pending.delete(key_of(Table.LOST, row))


def untell(ledger: Ledger, pending: Pending) -> None:
    """The commit's notices found no room: its row says that those runs are still to be told."""
    if not pending.told:
        return
    ledger.losses.untell(pending.told)
    pending.told = []
    row = pending.lost_rows[0]
    pending.put(Put(key_of(Table.LOST, row), ledger.losses.rewrite(row)))


def told_by(ledger: Ledger, appends: Iterable[Append]) -> list[bytes]:
    """The ids of the notices that these bring."""
    losses = ledger.losses
    if not losses.is_telling:
        return []
    copies = [copy for append in appends for copy in append.copies.items()]
    return [one.record_id for name, entries in copies for one in entries if losses.is_told_by(name, one)]
