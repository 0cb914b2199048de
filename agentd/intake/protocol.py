"""One HTTP connection: aiohttp's protocol, held to the terms of every connection here.

`server` hands a connection over at its first byte; `routes` makes the application that answers on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from agentd.intake import Peer
from agentd.intake.answers import error_answer, last_answer
from agentd.intake.budget import Share
from agentd.intake.connection import Fault, Shared
from agentd.intake.owner import uid_of

_log = logging.getLogger("agentd.intake.http")
_KEEPALIVE_S = 600.0  # an idle HTTP connection; SDKs end theirs after 15 s and open another
_LINGERING_S = 10.0  # an answered request's body is read and thrown away, so that its sender comes to read the answer


class HttpProtocol(web.RequestHandler):
    """One HTTP connection: aiohttp's, and in it the terms of every connection here (half a head, a reader that stalls)."""

    def __init__(self, manager: web.Server, shared: Shared, peer: Peer) -> None:
        options: dict[str, Any] = {"access_log": None, "logger": _log, "keepalive_timeout": _KEEPALIVE_S}
        options["lingering_time"] = min(_LINGERING_S, shared.watch.timeout_s)
        super().__init__(manager, loop=shared.loop, **options)
        self.ended = False  # the peer will ask no more
        self.begun = 0  # requests so far
        self.was_reset = False  # the peer has closed without having read all that it was sent
        self.shared = shared
        self._peer = peer
        self._pipe: asyncio.Transport | None = None  # aiohttp's `transport` is None as soon as it begins to close
        self._fed = False  # something came that no handler has begun with
        self._requests = 0  # under way
        self._left = 0  # bytes of the answer that the peer had not taken when last looked at
        self._uid: int | None = None  # over TCP, once it was looked for
        self._share: Share | None = None  # of its user's memory, once it has sent a body

    @property
    def uid(self) -> int:
        """See `agentd.intake.places.Guest`."""
        return self._peer.uid

    @property
    def is_stranger(self) -> bool:
        return not self._peer.local and self._uid is None and self._pipe is not None

    def holder(self, token: int) -> Peer:
        """Who is at the other end of this TCP connection, with the token that it has shown."""
        if self._uid is None:
            self._uid = -1 if self._pipe is None else uid_of(self._pipe.get_extra_info("socket"))
        return Peer(uid=self._uid, gid=-1, pid=0, token=token)

    def share(self, who: int) -> Share:
        """The part of the user's memory that its requests take."""
        if self._share is None:
            self._share = Share(self.shared.budget, who)
        return self._share

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a request, its body included, is the handler's."""
        self.shared.watch.stop(self)
        self._fed = False
        self._requests += 1
        self.begun += 1
        try:
            yield
        finally:
            self._requests -= 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if data and not self._requests and not self._fed:
            self._fed = True
            self.shared.watch.start(self)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp always closes, here an answer may be due
        self.ended = True
        return self._fed or self._requests > 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._pipe = None
        self.was_reset = isinstance(exc, ConnectionError)
        self.shared.watch.stop(self)
        super().connection_lost(exc)
        if self._share is not None:
            self.shared.budget.leave(self._share)
        self.shared.leave(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.shared.watch.start(self)
        self._left = self._pipe.get_write_buffer_size() if self._pipe is not None else 0

    def resume_writing(self) -> None:
        super().resume_writing()
        self.shared.watch.stop(self)

    def stop(self) -> None:
        """Take no further request; close once the one under way is answered."""
        self.close()
        if not self._requests and self._pipe is not None:
            self._pipe.close()

    def abort(self) -> None:
        if self._pipe is not None:
            self._pipe.abort()

    def expired(self) -> None:
        if self._pipe is None:
            return
        if self.writing_paused:
            before, self._left = self._left, self._pipe.get_write_buffer_size()
            if self._left < before:
                self.shared.watch.start(self)
                return
            self.shared.sink.refuse(Fault.SLOW_READER, "an HTTP answer lies unread", self._peer)
            self._pipe.abort()
        else:
            text = "the rest of the request did not come within intake.frame_timeout"
            self.shared.sink.refuse(Fault.HALF_MESSAGE, text, self._peer)
            self._pipe.write(last_answer(HTTPStatus.REQUEST_TIMEOUT, "timeout", text))
            self._pipe.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not read as HTTP, in our form."""
        if isinstance(exc, ConnectionError):
            raise exc  # the peer went within its request, or was sent away at the end: there is nobody to answer
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        text = " ".join((message or "the request could not be read").split())[:300]
        if status < 500:  # noqa: PLR2004
            self.shared.sink.refuse(Fault.MALFORMED, f"HTTP: {text}", self._peer)
            response = error_answer(status, "bad_request", text)
        else:
            _log.error("a request failed", exc_info=exc, extra={"action": "defect"})
            response = error_answer(status, "internal", "internal error; the daemon's log has it")
        response.headers["Server"] = "agentd"
        response.force_close()
        return response
