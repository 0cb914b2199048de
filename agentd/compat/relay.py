"""Gates of an SDK: asked through the gate room, which has them on record, with the SDK's own bytes there and the platform's back.

The gate room decides whether and when anything is sent; `_Line` is the way out that it sends through. An answer that is no
event stream is on record before the SDK hears it; a stream is passed on as it comes, and its verdict recorded at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from aiohttp import web
from msgspec import Struct

from agentd.compat.headers import outgoing, returning
from agentd.compat.names import Asker, Refused
from agentd.compat.passing import MAX_ANSWER_BYTES, check_redirect, cut_off, request_of, unanswered
from agentd.compat.stands import Stand
from agentd.compat.unheard import Connection, Unheard
from agentd.errors import SpoolFull
from agentd.exchange import Lost, Request, Response
from agentd.gate.keeper import Keeper, Passed
from agentd.http import Broken, Http, Opened
from agentd.intake import GateRefusal
from agentd.standin import Called, Streaming, Why

_TAIL_BYTES = 256 * 1024  # of a stream, kept for its verdict
_UNSENT = "nothing was sent"
_RUN_WAIT_S = 30.0  # for a run that the platform has not named yet; a gate never overtakes its start


class Relay:
    """Asks gates for SDKs."""

    def __init__(self, keeper: Keeper, http: Http) -> None:
        self._keeper = keeper
        self._http = http
        self._unheard: Unheard[_Heard] = Unheard()

    async def ask(
        self, incoming: web.Request, stand: Stand, called: Called, asker: Asker, gate: str
    ) -> web.StreamResponse:
        """The platform's answer. Raises Refused, RecordError, Forbidden."""
        asked = stand.stand_in.asked(called)
        known = None if asked.run_id is None else stand.names.check("run", asked.run_id, asker)
        named = stand.names.agent(asked.agent)
        agent = known.agent if known is not None and not named else asker.grant.agent_for(named)
        named_s = max(stand.reference_wait_s, _RUN_WAIT_S) if called.door.limit_s is None else stand.reference_wait_s
        sent = _digest(incoming, stand, called.body, asker)
        owed = _digest(
            incoming, stand, self._keeper.redactor.raw(called.body).body, asker
        )  # on disk: of what stands there
        called = await stand.names.translate(called, asker, named_s, Why.UNREACHABLE)
        line = _Line(self._http, stand, called, incoming)
        request = request_of(called)

        async def question() -> _Heard:
            wait_s = stand.wait_s(called.door)
            named = msgspec.structs.replace(asked, agent=agent)
            passed = await self._keeper.pass_on(
                stand.name, gate, named, request, asker.peer, deadline_s=wait_s, way=line, owed=owed
            )
            return _Heard(passed, line if line.begun is not None else None)

        caller = Connection(incoming)
        try:
            heard = await self._unheard.ask(sent, caller, question)
        except GateRefusal as refusal:
            raise _refused(refusal) from None
        except SpoolFull:
            raise Refused(Why.SPOOL_FULL, "too many questions are open; nothing was sent") from None
        if not caller.missed and (heard.line is None or heard.line.ended):
            self._keeper.told(heard.passed.gate)
        if heard.line is None or heard.line.begun is None:
            return _answer(heard.passed, stand, called)
        if heard.line is not line:
            raise Refused(Why.OUTCOME_UNKNOWN, "it is under way already, and its stream went to a caller who hung up")
        if not line.ended:
            cut_off(incoming)
        return heard.line.begun


class _Heard(Struct, frozen=True):
    """What came of a question; `line` is its way out where that has streamed to an SDK."""

    passed: Passed
    line: _Line | None


def _digest(incoming: web.Request, stand: Stand, body: bytes, asker: Asker) -> bytes:
    """What two calls share where one may be the repeat of the other: caller, destination, target and bytes."""
    caller = f"{asker.peer.uid} {asker.peer.token} {stand.name} {incoming.method} {incoming.raw_path}\n"
    return hashlib.sha256(caller.encode(errors="surrogateescape") + body).digest()


def _refused(refusal: GateRefusal) -> Refused:
    if refusal.status == 503:  # noqa: PLR2004
        return Refused(Why.UNREACHABLE, f"{refusal}; nothing was sent")
    return Refused(Why.NOT_FOUND if refusal.code == "foreign_reference" else Why.MALFORMED, str(refusal))


def _answer(passed: Passed, stand: Stand, called: Called) -> web.Response:
    answer, reason = passed.answer, passed.reason
    if answer is None:
        raise Refused(Why.UNREACHABLE, reason if reason.endswith(_UNSENT) else f"{reason}; {_UNSENT}")
    if isinstance(answer, Lost):
        raise unanswered(answer, unsafe=True)
    if passed.from_record and isinstance(stand.stand_in, Streaming) and stand.stand_in.streams(called):
        text = f"it was asked before a restart, and its answer can't be streamed: `agentd gates show {passed.gate.gate_id}`"
        raise Refused(Why.OUTCOME_UNKNOWN, text)
    check_redirect(answer.status, answer.headers)
    return web.Response(status=answer.status, body=answer.body or None, headers=returning(answer.headers))


class _Line:
    """The way to the platform for one call: what it answers is kept whole, an event stream goes to the SDK meanwhile."""

    unreachable = False

    def __init__(self, http: Http, stand: Stand, called: Called, incoming: web.Request) -> None:
        self._http = http
        self._stand = stand
        self._called = called
        self._incoming = incoming
        self.begun: web.StreamResponse | None = None  # the SDK's answer, where it is one that has begun already
        self.ended = False

    async def send(
        self, request: Request, headers: Mapping[str, str], *, timeout_s: float | None = None, limit: int = 0
    ) -> Response | Lost:
        """See `agentd.gate.desk.Way`. What the SDK is to get is not cut: `limit` is that of what is kept."""
        del limit
        stand, door = self._stand, self._called.door
        passed = outgoing(self._called.headers, headers, stand.stand_in.headers)
        wait_s = stand.wait_s(door) if timeout_s is None else timeout_s
        async with self._http.open(stand.reach, request, passed, wait_s, streams=door.streams) as answer:
            if isinstance(answer, Lost):
                return answer
            content_type = answer.headers.get("content-type", "")
            if door.streams and answer.status == 200 and content_type.startswith("text/event-stream"):  # noqa: PLR2004
                return await self._stream(answer)
            return await _whole(answer)

    async def _stream(self, answer: Opened) -> Response | Lost:
        """Pass the events on as they come. The agent that has gone away ends the passing, not the reading."""
        response = self.begun = web.StreamResponse(headers=returning(answer.headers))
        tail = bytearray()
        listens = await _write(response, self._incoming, b"")
        try:
            async for part in answer.parts():
                tail += part
                del tail[:-_TAIL_BYTES]
                listens = listens and await _write(response, self._incoming, part)
        except Broken as error:
            return Lost(f"the stream broke off: {error}", sent=True)
        self.ended = not listens or await _write(response, self._incoming, None)
        stand_in = self._stand.stand_in
        ended = Response(answer.status, answer.headers, bytes(tail))
        return stand_in.whole(ended) if isinstance(stand_in, Streaming) else ended


async def _write(response: web.StreamResponse, incoming: web.Request, part: bytes | None) -> bool:
    """Whether the agent still listens. The first call prepares the answer, None ends it."""
    try:
        if not response.prepared:
            await response.prepare(incoming)
        elif part is None:
            await response.write_eof()
        elif part:
            await response.write(part)
    except ConnectionError:
        return False
    return True


async def _whole(answer: Opened) -> Response | Lost:
    """The whole answer: what the SDK gets is what is on record."""
    body = bytearray()
    try:
        async for part in answer.parts():
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                return Lost(f"the answer has more than {MAX_ANSWER_BYTES} bytes", sent=True)
    except Broken as error:
        return Lost(f"the answer broke off: {error}", sent=True)
    return Response(answer.status, answer.headers, bytes(body))
