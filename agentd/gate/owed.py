"""Answers that SDKs are owed from before the start: whoever sends the same bytes again gets what the record has.

A row keeps the digest of what an SDK sent (`GateRow.owed`) until its answer has gone out. What has none then was asked by
somebody whose line broke when agentd ended, and whose retry layers come again within ten minutes. Each such asking is joined
once: two that sent the same bytes had asked twice. What certainly made nothing is not joined, the repeat is a new try.
"""

from __future__ import annotations

from collections.abc import Callable

from agentd.exchange import Lost, Response
from agentd.gate.book import Book, is_unmade
from agentd.gating import Word
from agentd.spool.gaterows import GateRow, Step, Stored

KEPT_S = 600.0


class Owed:
    """What of the book is owed to somebody, as it was at the start."""

    def __init__(self) -> None:
        self._stored: dict[bytes, list[Stored]] = {}  # by digest, the newest first

    def __repr__(self) -> str:
        return f"<Owed {sum(map(len, self._stored.values()))}>"

    def load(self, book: Book) -> None:
        """Call once what a crash has cut off is ruled upon."""
        for stored in book.newest(lambda brief: bool(brief.owed) and not is_unmade(brief)):
            self._stored.setdefault(stored.brief.owed, []).append(stored)

    def take(self, digest: bytes, age_us: Callable[[int], int]) -> Stored | None:
        """The oldest asking of these bytes that is still owed; `age_us` says how long ago a gate was asked."""
        waiting = self._stored.pop(digest, [])
        fresh = [stored for stored in waiting if age_us(stored.brief.asked_us) < KEPT_S * 1e6]
        if len(fresh) > 1:
            self._stored[digest] = fresh[:-1]
        return fresh[-1] if fresh else None


def answer_of(gate: GateRow) -> Response | Lost:
    """The platform's answer as far as the record has it; Lost where nobody knows its word, or a person has given one."""
    has_word = gate.step in (Step.PENDING, Step.FINAL) and gate.word is not Word.UNAVAILABLE
    if has_word and gate.response and gate.resolved_by is None:
        return Response(gate.status or 200, {"content-type": "application/json"}, gate.response)
    return Lost(gate.reason or "agentd ended", sent=True)
