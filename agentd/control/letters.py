"""The dead letters as the HTTP dialect shows them, and what an operator does with them.

`document` is what a letter looks like, whoever asks: the daemon, or the command line over a stopped one's folder.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from agentd.identity import text_of
from agentd.intake import Grant, Peer
from agentd.intake.letters import Selection
from agentd.outcomes import Cause
from agentd.spool import dead
from agentd.spool.dead import DeadLetters
from agentd.spool.letters import Letter, Wanted
from agentd.spool.store import Rows
from agentd.units import rfc3339
from agentd.wire import deeper_than

_MAX_DEPTH = 200  # of what goes into an answer as JSON: readers give up at about 1000


Page = list[tuple[int, Letter, int | None]]  # number, letter, how many are dead because it is
Read = Callable[[Callable[[Rows, Callable[[], bool]], Page]], Awaitable[Page]]


class LetterControl:
    """See `agentd.intake.letters.Letters`. `read` runs a job over the rows of one moment, off the event loop and one at a time."""

    def __init__(self, letters: DeadLetters, read: Read, now_us: Callable[[], int]) -> None:
        self._letters = letters
        self._read = read
        self._now_us = now_us

    async def listing(
        self, chosen: Selection, viewer: Peer, *, limit: int, after: int | None, admin: bool, grant: Grant
    ) -> list[dict[str, Any]]:
        wanted = wanted_by(chosen, self._now_us())
        if not admin and (chosen.ids or chosen.run is not None):  # whoever names one sees whether there is such a one
            wanted = replace(wanted, uid=viewer.uid)
        counts = bool(chosen.ids)
        found = await self._read(lambda rows, _: look_for(rows, wanted, limit, after, counts=counts))
        return [
            document(number, letter, whole=may_see(letter, viewer, admin=admin, grant=grant), carries=carries)
            for number, letter, carries in found
        ]

    async def replay(self, chosen: Selection, admin: Peer, *, force: bool) -> dict[str, Any]:
        done = await self._letters.replay(wanted_by(chosen, self._now_us()), admin.uid, force=force)
        return {"replayed": done.replayed, "left": dict(done.left)}

    async def purge(self, chosen: Selection, admin: Peer, reason: str) -> dict[str, Any]:
        return {"purged": await self._letters.purge(wanted_by(chosen, self._now_us()), admin.uid, reason)}


def look_for(rows: Rows, wanted: Wanted, limit: int, after: int | None, *, counts: bool) -> Page:
    """The page (see `agentd.spool.dead.page`); with `counts` how many are dead because of each, which takes a search through all."""
    found = dead.page(rows, wanted, limit, after)
    carries = dead.carried(rows, [letter for _, letter in found]) if counts else [None] * len(found)
    return [(number, letter, count) for (number, letter), count in zip(found, carries, strict=True)]


def wanted_by(chosen: Selection, now_us: int) -> Wanted:
    """A choice in the spool's words."""
    before_us = None if chosen.older_s is None else now_us - int(chosen.older_s * 1e6)
    return Wanted(chosen.ids, chosen.destination, chosen.run, chosen.cause, before_us)


def may_see(letter: Letter, viewer: Peer, *, admin: bool, grant: Grant) -> bool:
    """Whether the viewer sees the contents. Several whom the kernel doesn't name (uid -1) are not one user."""
    own = admin or letter.source.uid == viewer.uid >= 0
    return own and grant.allows_agent(letter.source.agent) and grant.allows_destination(letter.destination)


def document(number: int, letter: Letter, *, whole: bool, carries: int | None = None) -> dict[str, Any]:
    """A dead letter for people; what it says, and what was said of it, only for those who may see that.

    `number` is the letter's own: a record may be dead at several destinations. `carries` is how many others are dead because it is.
    Of others' letters not even id and lane are told: records and runs go by them.
    """
    facts: dict[str, Any] = {
        "letter": number,
        "destination": letter.destination or None,
        "kind": letter.kind,
        "cause": letter.cause.value,
        "admitted_at": rfc3339(letter.admitted_us / 1e6),
        "died_at": rfc3339(letter.died_us / 1e6),
        "tries": letter.tries,
        "status": letter.status,
        "bytes": len(letter.body),
    }
    if not whole:
        return facts
    facts |= {
        "id": text_of(letter.record_id),
        "agent": letter.source.agent,
        "lane": letter.lane or None,
        "reason": letter.reason,
        "uid": letter.source.uid,
        "pid": letter.source.pid,
        "origin": letter.source.origin,
        "sha256": sha256(letter.body).hexdigest(),  # as the journal has it
        "key": letter.key or None,
        "history": [{"at": rfc3339(t.at_us / 1e6), "status": t.status, "reason": t.reason} for t in letter.history],
        "answer": letter.answer,
    }
    if carries is not None:
        facts["carries"] = carries
    return facts | _contents(letter)


def _contents(letter: Letter) -> dict[str, Any]:
    """The record as it is kept, spliced; as text where it is no JSON that an answer could hold, which only an invalid one can be."""
    body = letter.body
    if letter.cause is Cause.INVALID and not _is_json(body):
        return {"record": None, "text": body.decode(errors="replace")}
    return {"record": Raw(body)}


def _is_json(body: bytes) -> bool:
    try:
        body.decode()
        msgspec.json.decode(body, type=Raw)
        return not deeper_than(body, _MAX_DEPTH)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return False
