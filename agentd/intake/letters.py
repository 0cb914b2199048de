"""The HTTP dialect of dead letters: `GET /v1/dead-letters`, `POST /v1/dead-letters/replay` and `/purge`.

Everybody sees that there are some; contents, reasons and answers are for admins and for the uid that sent the record. Replaying and
purging are for who may decide, and never of everything by an oversight: no choice at all is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import Struct

from agentd.errors import UsageError
from agentd.explain import explain
from agentd.intake import Control, Grant, Peer
from agentd.intake.answers import Problem, json_answer
from agentd.intake.door import grant_of, peer_of_request
from agentd.intake.queues import Busy
from agentd.outcomes import DEATHS
from agentd.units import parse_duration

MOST = 1000  # letters of one answer
MOST_IDS = 10_000
REASON_CHARS = 1000
_FILTERS = ("id", "destination", "run", "cause", "older", "limit", "after")
_WHO = "the daemon's own uid, root and security.admin_uids, and within a sidecar for nobody"


class Selection(Struct, frozen=True):
    """Which letters; what is None or empty leaves nothing out."""

    ids: frozenset[bytes] = frozenset()
    destination: str | None = None
    run: str | None = None
    cause: str | None = None
    older_s: float | None = None


class Letters(Protocol):
    """What the HTTP dialect asks of the dead letters. Answers are JSON objects (agentd.control.letters)."""

    async def listing(
        self, chosen: Selection, viewer: Peer, *, limit: int, after: int | None, admin: bool, grant: Grant
    ) -> list[dict[str, Any]]:
        """The newest, the newest first; or those `after` a letter's number, the oldest first. Raises Busy."""
        ...

    async def replay(self, chosen: Selection, admin: Peer, *, force: bool) -> dict[str, Any]:
        """{"replayed": n, "left": {reason: n}}."""
        ...

    async def purge(self, chosen: Selection, admin: Peer, reason: str) -> dict[str, Any]:
        """{"purged": n}."""
        ...


_Form = TypeVar("_Form", bound="_Chosen")


class _Chosen(Struct, forbid_unknown_fields=True):
    ids: list[str] = []
    destination: str | None = None
    run: str | None = None
    cause: str | None = None
    older_than: str | float | None = None
    all: bool = False


class _Replay(_Chosen, forbid_unknown_fields=True):
    force: bool = False


class _Purge(_Chosen, forbid_unknown_fields=True):
    reason: str = ""


def add_letters(app: web.Application, letters: Letters, control: Control) -> None:
    """The routes of `/v1/dead-letters`."""
    routes = _Routes(letters, control)
    app.router.add_get("/v1/dead-letters", routes.look)
    app.router.add_post("/v1/dead-letters/replay", routes.replay)
    app.router.add_post("/v1/dead-letters/purge", routes.purge)


class _Routes:
    """The handlers, with what they ask."""

    def __init__(self, letters: Letters, control: Control) -> None:
        self._letters = letters
        self._control = control

    async def look(self, request: web.Request) -> web.Response:
        query = request.query
        for name in query:
            if name not in _FILTERS:
                raise _bad(f"{name[:64]!a}: no such parameter; expected {', '.join(_FILTERS)}")
        chosen = Selection(
            _ids("id", query.getall("id", [])),
            query.get("destination") or None,
            query.get("run") or None,
            _cause(query.get("cause") or None),
            _seconds("older", query["older"]) if "older" in query else None,
        )
        limit = _number("limit", query.get("limit", "100"), 1, MOST)
        after = _number("after", query["after"], 0, 2**48) if "after" in query else None
        peer = peer_of_request(request)
        admin = self._control.is_admin(peer)
        grant = grant_of(request)
        try:
            found = await self._letters.listing(chosen, peer, limit=limit, after=after, admin=admin, grant=grant)
        except Busy as busy:
            raise Problem(503, "busy", str(busy), {"Retry-After": "5"}) from None
        return json_answer(found)

    async def replay(self, request: web.Request) -> web.Response:
        peer = self._who_may_decide(request, "replaying")
        asked = _read(await request.read(), _Replay)
        return json_answer(await self._letters.replay(_selection(asked), peer, force=asked.force))

    async def purge(self, request: web.Request) -> web.Response:
        peer = self._who_may_decide(request, "purging")
        asked = _read(await request.read(), _Purge)
        chosen, reason = _selection(asked), " ".join(asked.reason.split())
        if not 1 <= len(reason) <= REASON_CHARS:
            raise _bad(f"$.reason: expected 1 to {REASON_CHARS} characters: who reads the journal will want to know")
        return json_answer(await self._letters.purge(chosen, peer, reason))

    def _who_may_decide(self, request: web.Request, what: str) -> Peer:
        peer = peer_of_request(request)
        if not self._control.may_decide(peer):
            raise Problem(403, "forbidden", f"{what} is for {_WHO}")
        return peer


def _read(body: bytes, form: type[_Form]) -> _Form:
    try:
        return msgspec.json.decode(body or b"{}", type=form)
    except msgspec.ValidationError as error:
        raise _bad(explain(error, b"")) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad(f"the body is no JSON: {error}") from None


def _selection(asked: _Chosen) -> Selection:
    """Raises Problem for a choice of nothing, and for one of everything that names something."""
    older = asked.older_than
    chosen = Selection(
        _ids("$.ids", asked.ids),
        asked.destination,
        asked.run,
        _cause(asked.cause),
        None if older is None else _seconds("$.older_than", older),
    )
    if asked.all and chosen != Selection():
        raise _bad("$.all: goes with none of ids, destination, run, cause, older_than")
    if not asked.all and chosen == Selection():
        raise _bad('an empty choice: say ids, destination, run, cause or older_than, or {"all": true}')
    return chosen


def _bad(message: str) -> Problem:
    return Problem(400, "bad_request", message)


def _ids(name: str, texts: Sequence[str]) -> frozenset[bytes]:
    if len(texts) > MOST_IDS:
        raise _bad(f"{name}: {len(texts)} ids: expected at most {MOST_IDS}")
    try:
        return frozenset(UUID(text).bytes for text in texts)
    except ValueError:
        raise _bad(f"{name}: expected a record's id, a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057") from None


def _cause(text: str | None) -> str | None:
    if text is not None and text not in DEATHS:
        raise _bad(f"cause: expected one of {', '.join(DEATHS)}, got {text[:64]!r}")
    return text


def _number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most))) or not least <= int(text) <= most:
        raise _bad(f"{name}: expected {least} to {most}, got {text[:64]!r}")
    return int(text)


def _seconds(name: str, given: str | float) -> float:
    """A number of seconds, or a duration with a unit."""
    try:
        is_number = isinstance(given, str) and given.isascii() and given.replace(".", "", 1).isdecimal()
        return parse_duration(float(given) if is_number else given)
    except UsageError as error:
        raise _bad(f"{name}: {error}") from None
