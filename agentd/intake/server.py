"""The server: accepts, and knows every connection until it is gone.

What a connection says is `dialogue`'s in frames and lines, and aiohttp's in HTTP. The composition root makes one `Server`, starts
it and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

from aiohttp import web

from agentd.intake import Peer, Sink
from agentd.intake.answers import last_answer
from agentd.intake.budget import Budget
from agentd.intake.connection import Fault, Shared, Watch
from agentd.intake.dialogue import Connection
from agentd.intake.listen import Acceptor, UnixListener, open_loopback, peer_of, raise_file_limit, url_of
from agentd.intake.places import Places
from agentd.intake.protocol import HttpProtocol
from agentd.intake.rates import Rates
from agentd.intake.rota import Rota
from agentd.sections import Config, Intake
from agentd.wire import encode

_log = logging.getLogger("agentd.intake")
_SPARE_FILES = 64  # for the spool, the platforms' connections and the listeners
_LAST_WORD_S = 1.0  # what aiohttp may take for a connection that is left after the others are closed


class Server:
    """The listeners, and every connection that came through them."""

    def __init__(self, config: Config, sink: Sink, app: web.Application) -> None:
        """Hold no socket yet. `app` answers the HTTP dialect (`routes.build_app`); it is started and ended from here."""
        self.http_url: str | None = None  # where `listen.http` is, with the port that port 0 became; set by `start`
        self._config = config
        self._sink = sink
        self._runner = web.AppRunner(app, shutdown_timeout=_LAST_WORD_S)
        self._unix: UnixListener | None = None
        self._sockets: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        self._attaching: set[asyncio.Task[None]] = set()
        self._open: Places[Connection | HttpProtocol] = Places(
            config.intake.max_connections, config.intake.max_connections_per_uid
        )
        self._all_gone = asyncio.Event()
        self._shared: Shared | None = None

    @property
    def connections(self) -> int:
        """How many are open, in any dialect."""
        return len(self._open)

    def follow(self, intake: Intake) -> None:
        """One user's limits, from now on; connections that are above a lower one stay."""
        self._open.per_uid = intake.max_connections_per_uid
        if self._shared is not None:
            self._shared.rates.follow(intake.max_records_per_second_per_uid, intake.max_bytes_per_second_per_uid)

    def missing(self) -> str | None:
        """Why nobody can connect over the Unix socket any more; None if they can, or if it is the service manager's."""
        return None if self._unix is None else self._unix.missing()

    async def start(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Listen on `listen.http`, and on `listen.socket` or `sockets` (listening, as systemd passes them), which become ours.

        Raises StateError, AlreadyRunning or ConfigError, and then holds nothing.
        """
        intake, loop = self._config.intake, asyncio.get_running_loop()
        if raise_file_limit() < intake.max_connections + _SPARE_FILES:
            _log.warning(
                "the limit of open files is too low for intake.max_connections = %d", intake.max_connections,
                extra={"action": "few_files"},
            )  # fmt: skip
        if sockets is None:
            self._unix = UnixListener(self._config.listen)
        self._sockets = [self._unix.socket] if self._unix is not None else list(sockets or ())
        try:
            if self._config.listen.http is not None:
                self._sockets.append(open_loopback(self._config.listen.http))
                self.http_url = url_of(self._sockets[-1])
            await self._runner.setup()
        except BaseException:
            self._close_sockets()
            self._release()
            raise
        self._shared = Shared(
            sink=self._sink,
            max_frame_bytes=intake.max_frame_bytes,
            budget=Budget(intake.max_pending_bytes, intake.max_pending_bytes_per_uid, loop.call_soon),
            rates=Rates(intake.max_records_per_second_per_uid, intake.max_bytes_per_second_per_uid),
            rota=Rota(loop.time, loop.call_soon),
            watch=Watch(intake.frame_timeout, loop),
            loop=loop,
            to_http=self._to_http,
            leave=self._leave,
        )
        for sock in self._sockets:
            sock.setblocking(False)
            self._acceptors.append(Acceptor(sock, self._welcome, loop))

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Take nothing more, wait at most `timeout_s` for what is under way and its answers, and leave the path."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        self._close_sockets()
        if self._attaching:
            await asyncio.wait(self._attaching)
        await asyncio.sleep(0)  # an HTTP request that has come in whole is begun in this turn
        for connection in list(self._open):
            connection.stop()
        await self._wait_until_gone(timeout_s)
        self.abort()
        await self._wait_until_gone(_LAST_WORD_S)
        await self._runner.cleanup()
        if self._shared is not None:
            self._shared.watch.close()
        self._release()

    def abort(self) -> None:
        """End every connection now, answered or not: what `aclose` waits for is over."""
        for connection in list(self._open):
            connection.abort()

    async def _wait_until_gone(self, timeout_s: float) -> None:
        self._all_gone.clear()
        if self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._all_gone.wait()

    def _close_sockets(self) -> None:
        if self._unix is not None:
            self._unix.close()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _release(self) -> None:
        if self._unix is not None:
            self._unix.release()
            self._unix = None

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        peer = peer_of(sock)
        if self._shared is None or not self._open.has_one(peer):
            self._turn_away(sock, peer)
            return
        connection = Connection(self._shared, peer)
        self._open.add(connection)
        task = self._shared.loop.create_task(self._attach(connection, sock))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def _attach(self, connection: Connection, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            _log.warning("a connection was lost before it began: %s", error, extra={"action": "connection_lost"})
            sock.close()
            self._leave(connection)

    def _turn_away(self, sock: socket.socket, peer: Peer) -> None:
        text = self._open.why_none(peer)
        self._sink.refuse(Fault.TOO_MANY_CONNECTIONS, text, peer)
        with sock, suppress(OSError):
            full = last_answer(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", text)
            sock.send(encode({"error": text}) + b"\n" if peer.local else full)

    def _to_http(self, transport: asyncio.Transport, peer: Peer, data: bytes) -> None:
        if self._shared is None or self._runner.server is None:
            transport.abort()
            return
        protocol = HttpProtocol(self._runner.server, self._shared, peer)
        self._open.add(protocol)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def _leave(self, connection: Connection | HttpProtocol) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_gone.set()
