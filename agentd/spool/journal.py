"""The journal: one entry for each step of a record that is evidence, and for whatever is dead, shed or purged (promise 9).

Entries have gap-free numbers and are appended in the transaction of the step itself; nothing of them is changed later. What
became of a record is the entry with its id and the highest number. Rows hold the entries of one commit; retention takes
whole rows from the old end.

A row names the SHA-256 of the row before it, and the meta row the newest one's: a row that was changed, taken out or cut off
breaks the chain. Whoever can write the file can also write the chain anew: it shows damage and clumsy hands, and is a seal only
to who keeps a digest elsewhere (`agentd audit` prints the newest).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

import msgspec
from msgspec import Struct

from agentd.errors import SpoolDamaged
from agentd.outcomes import State
from agentd.queued import Entry
from agentd.spool.checked import UNREADABLE, pack, unpack


class Note(Struct, array_like=True, omit_defaults=True):
    """One entry. `state` QUEUED is the admission, a replay or a later place; any other is how the record ended at that destination."""

    number: int
    state: State
    destination: str
    record_id: bytes
    kind: str
    agent: str
    lane: str
    uid: int
    admitted_us: int
    at_us: int
    sha256: bytes
    cause: str = ""
    key: str = ""  # the idempotency key that it was delivered under
    platform_id: str = ""
    redactions: dict[str, int] = {}
    count: int = 1  # above 1: a segment that was shed whole; record_id is then empty, the lane its number range
    proceed: bool = False  # of a gate's verdict: the agent was let go
    fail_open: bool = False  # and by the fail mode alone
    run: str = ""
    occurred_us: int = 0  # as the record says; 0 where it says nothing
    queue_number: int = 0  # in its destination's queue
    tries: int = 0
    by: int = -1  # uid of who had it replayed, purged or resolved
    reason: str = ""  # and why, in that person's words
    local_id: str = ""  # what it introduces, by the name that its client gave it: a decision, a gate's answer
    was_number: int = 0  # in its destination's queue, of a record that has taken a later place


class Row(NamedTuple):
    """A row of the journal: the digest of the one before it, its own, and its notes."""

    previous: bytes  # empty for the first row, and for rows of format 1
    digest: bytes
    notes: list[Note]


class _Bounds(Struct):
    row: int
    size: int
    newest_us: int


class _Facts(Struct):
    """What the journal says of a record beside what its entry in the queue knows."""

    run_id: str = ""
    decision_id: str | None = None
    occurred_at: datetime | None = None
    captured_at: datetime | None = None
    started_at: datetime | None = None

    @property
    def occurred_us(self) -> int:
        time = self.occurred_at or self.captured_at or self.started_at
        return 0 if time is None else int(time.timestamp() * 1e6)


class Journal:
    """The open end of the journal: notes for the next commit, and which rows exist."""

    def __init__(self, retention_us: int, max_bytes: int) -> None:
        self._retention_us = retention_us
        self._max_bytes = max_bytes
        self._rows: deque[_Bounds] = deque()
        self._bytes = 0
        self.next_number = 1
        self.next_row = 1
        self.head = b""  # digest of the newest row
        self.pending: list[Note] = []  # without their numbers: those are given when their row is made
        self._taken: tuple[bytes, list[Note]] = (b"", [])  # the row taken last: the digest before it, its notes

    def __len__(self) -> int:
        return self.next_number - 1

    def follow(self, retention_us: int, max_bytes: int) -> None:
        """Within these bounds from now on."""
        self._retention_us, self._max_bytes = retention_us, max_bytes

    def note(self, entry: Entry, state: State, destination: str, at_us: int, **facts: str | bool | int) -> None:
        """Add an entry for a record's step.

        `facts`: cause, key, platform_id, tries, by, reason, run, local_id; of a gate's verdict proceed and fail_open too.
        """
        said = _facts_of(entry)
        facts.setdefault("run", said.run_id)
        if entry.kind == "decision" and said.decision_id:
            facts.setdefault("local_id", said.decision_id)
        self.pending.append(
            Note(
                0,
                state,
                destination,
                entry.record_id,
                entry.kind,
                entry.source.agent,
                entry.lane,
                entry.source.uid,
                entry.admitted_us,
                at_us,
                sha256(entry.body).digest(),
                occurred_us=said.occurred_us,
                queue_number=entry.number,
                redactions=dict(entry.redactions or {}),
                **facts,  # type: ignore[arg-type]  # the fields above
            )
        )

    def note_lost(
        self,
        destination: str,
        kind: str,
        count: int,
        *,
        state: State,
        numbers: str,
        admitted_us: int,
        at_us: int,
        cause: str,
        by: int = -1,
        reason: str = "",
    ) -> None:
        """Add one entry for the records of a kind in a segment that was shed, dropped or lost whole."""
        self.pending.append(
            Note(
                0, state, destination, b"", kind, "", numbers, -1, admitted_us, at_us, b"", cause, count=count,
                by=by, reason=reason,
            )
        )  # fmt: skip

    def take(self) -> tuple[int, bytes] | None:
        """The row for the next commit, None without notes."""
        if not self.pending:
            return None
        notes, self.pending = self.pending, []
        self._taken = self.head, notes
        return self._make(notes)

    def retake(self, gone: Iterable[Note]) -> tuple[int, bytes | None]:
        """The row taken last, which is on no disk, without some of its notes; None in place of a row that has none left.

        The records that they are of were refused: they never came in, also not after a crash.
        """
        before, notes = self._taken
        self.next_row -= 1
        self.next_number, self.head = notes[0].number, before
        if self._rows and self._rows[-1].row == self.next_row:
            self._bytes -= self._rows.pop().size
        refused = {id(note) for note in gone}
        left = [note for note in notes if id(note) not in refused]
        self._taken = before, left
        return self._make(left) if left else (self.next_row, None)

    def _make(self, notes: list[Note]) -> tuple[int, bytes]:
        for number, note in enumerate(notes, self.next_number):
            note.number = number
        self.next_number += len(notes)
        body = msgspec.msgpack.encode((self.head, notes))
        self.head = sha256(body).digest()
        value = pack(body)
        self._keep(_Bounds(self.next_row, len(value), notes[-1].at_us))
        self.next_row += 1
        return self.next_row - 1, value

    def expired(self, age_us: Callable[[int], int]) -> list[int]:
        """Rows that retention or `max_bytes` lets go, the oldest first; `age_us` judges stamps (agentd.ageing)."""
        gone: list[int] = []
        while self._rows and (age_us(self._rows[0].newest_us) > self._retention_us or self._bytes > self._max_bytes):
            row = self._rows.popleft()
            self._bytes -= row.size
            gone.append(row.row)
        return gone

    @property
    def rows(self) -> range:
        """The rows that there are, the oldest first; some between may have been lost to damage."""
        return range(self._rows[0].row if self._rows else self.next_row, self.next_row)

    def document(self) -> dict[str, int]:
        """For the status: the entries that there ever were, and what those that are kept take on disk."""
        return {"entries": len(self), "rows": len(self._rows), "bytes": self._bytes, "max_bytes": self._max_bytes}

    def restore(self, row: int, size: int, newest_us: int) -> None:
        """Take a row's bounds at a start."""
        self._keep(_Bounds(row, size, newest_us))
        self.next_row = max(self.next_row, row + 1)

    def _keep(self, row: _Bounds) -> None:
        self._rows.append(row)
        self._bytes += row.size


def _facts_of(entry: Entry) -> _Facts:
    """What the record itself says. A question of a gate has fields of its platform's, and what was refused may hold anything."""
    if entry.kind.startswith("gate."):
        return _Facts()
    try:
        said = msgspec.json.decode(entry.body, type=_Facts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = _Facts()
    kind, _, name = entry.lane.partition(":")
    if not said.run_id and kind == "run":
        said.run_id = name
    return said


def decode(value: bytes) -> list[Note]:
    """The notes of a row. Raises SpoolDamaged."""
    return decode_row(value).notes


def decode_row(value: bytes) -> Row:
    """A row whole. Raises SpoolDamaged."""
    try:
        body = unpack(value)
        if body is value:  # format 1: notes alone
            return Row(b"", sha256(body).digest(), msgspec.msgpack.decode(body, type=list[Note]))
        previous, notes = msgspec.msgpack.decode(body, type=tuple[bytes, list[Note]])
        return Row(previous, sha256(body).digest(), notes)
    except UNREADABLE as error:
        raise SpoolDamaged(f"journal row: {error}") from error
