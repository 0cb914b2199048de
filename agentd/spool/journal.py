"""The journal: one entry for each step of a record that is evidence, and for whatever is dead, shed or purged (promise 9).

Entries have gap-free numbers and are appended in the transaction of the step itself; nothing of them is changed later. What
became of a record is the entry with its id and the highest number. Rows hold the entries of one commit; retention takes
whole rows from the old end.
"""

from __future__ import annotations

from collections import deque
from hashlib import sha256

import msgspec
from msgspec import Struct

from agentd.outcomes import State
from agentd.queued import Entry


class Note(Struct, array_like=True, omit_defaults=True):
    """One entry. `state` QUEUED is the admission; any other is how the record ended at that destination."""

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


class _Row(Struct):
    row: int
    size: int
    newest_us: int


class Journal:
    """The open end of the journal: notes for the next commit, and which rows exist."""

    def __init__(self, retention_us: int, max_bytes: int) -> None:
        self._retention_us = retention_us
        self._max_bytes = max_bytes
        self._rows: deque[_Row] = deque()
        self._bytes = 0
        self.next_number = 1
        self.next_row = 1
        self.pending: list[Note] = []

    def __len__(self) -> int:
        return self.next_number - 1

    def note(self, entry: Entry, state: State, destination: str, at_us: int, **facts: str | bool) -> None:
        """Add an entry for a record's step. `facts`: cause, key, platform_id; of a gate's verdict proceed and fail_open too."""
        self.pending.append(
            Note(
                self._take_number(),
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
    ) -> None:
        """Add one entry for the records of a kind in a segment that was shed or lost whole."""
        number = self._take_number()
        self.pending.append(
            Note(number, state, destination, b"", kind, "", numbers, -1, admitted_us, at_us, b"", cause, count=count)
        )

    def take(self) -> tuple[int, bytes] | None:
        """The row for the next commit, None without notes."""
        if not self.pending:
            return None
        value = msgspec.msgpack.encode(self.pending)
        row = _Row(self.next_row, len(value), self.pending[-1].at_us)
        self._keep(row)
        self.next_row += 1
        self.pending = []
        return row.row, value

    def expired(self, now_us: int) -> list[int]:
        """Rows that retention or `max_bytes` lets go, the oldest first."""
        gone: list[int] = []
        while self._rows and (self._rows[0].newest_us < now_us - self._retention_us or self._bytes > self._max_bytes):
            row = self._rows.popleft()
            self._bytes -= row.size
            gone.append(row.row)
        return gone

    def restore(self, row: int, size: int, newest_us: int) -> None:
        """Take a row's bounds at a start."""
        self._keep(_Row(row, size, newest_us))
        self.next_row = max(self.next_row, row + 1)

    def _keep(self, row: _Row) -> None:
        self._rows.append(row)
        self._bytes += row.size

    def _take_number(self) -> int:
        self.next_number += 1
        return self.next_number - 1


def decode(value: bytes) -> list[Note]:
    """The notes of a row. Raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(value, type=list[Note])
