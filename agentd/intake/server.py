"""The server: accepts, lets the first byte choose the dialect, reads while there is room, writes the answers.

A connection in frames or lines is a `Connection`: it submits whole messages to the sink and answers in the order in which
the futures complete. It does not read while too much is under way or its answers lie untaken, so that a full daemon is
felt by the sender as a write that blocks. A connection in HTTP is given to aiohttp at its first byte; one that came over
TCP speaks nothing else. The composition root makes one `Server`, starts it and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import cast

from aiohttp import web

from agentd.errors import AgentdError, WireError
from agentd.intake import Peer, Sink, Waiting
from agentd.intake.answers import last_answer
from agentd.intake.connection import Budget, Debt, Fault, FrameReader, LineReader, Outbox, Share, Shared, Watch
from agentd.intake.listen import Acceptor, UnixListener, open_loopback, peer_of, raise_file_limit, url_of
from agentd.intake.places import Places
from agentd.intake.protocol import HttpProtocol
from agentd.sections import Config
from agentd.wire import MAX_UNANSWERED, Ack, Dialect, Hello, decode_message, dialect_of, encode

_log = logging.getLogger("agentd.intake")
_SPARE_FILES = 64  # for the spool, the platforms' connections and the listeners
_LAST_WORD_S = 1.0  # what aiohttp may take for a connection that is left after the others are closed


class Connection(asyncio.Protocol):
    """One connection until its first byte, and to its end in frames or lines."""

    def __init__(self, shared: Shared, peer: Peer) -> None:
        self._shared = shared
        self._peer = peer
        self._share = Share(shared.budget)
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._dialect: Dialect | None = None
        self._reader: FrameReader | LineReader | None = None
        self._stream: str | None = None
        self._greeted = False  # a hello comes first or never
        self._outstanding = 0  # messages whose future is not done
        self._unanswered = 0  # of these, envelopes
        self._waiting = 0  # of these, messages that wait for room in a queue
        self._blocked = False  # as things were when last looked at, for any of the next three
        self._crowded = False
        self._write_blocked = False
        self._drained = True  # the reader holds no whole message
        self._ended = False  # the peer will send no more
        self._stopped = False  # we read no more
        self._failed = False  # the peer can't be understood any more
        self._debt: Debt | None = None

    def __repr__(self) -> str:
        return (
            f"<Connection {self._dialect or 'new'} pid {self._peer.pid} {self._outstanding} under way "
            f"({self._share.own} bytes){' full' if self._share.full else ''}{' ended' if self._ended else ''}>"
        )

    @property
    def uid(self) -> int:
        return self._peer.uid

    @property
    def is_stranger(self) -> bool:
        return not self._peer.local and self._transport is not None

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._outbox = Outbox(self._transport, self._shared.loop)
        self._owe(Debt.FIRST_BYTE)
        self._close_if_done()  # accepted while the server was closing

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            self._choose(data)
        if self._reader is not None and not self._failed:
            self._reader.feed(data)
            self._pump()

    def eof_received(self) -> bool:
        """Keep the writing half open for the answers (`nc -N` ends its half and waits)."""
        self._ended = True
        if self._reader is not None:
            self._reader.end()
        self._pump()
        return True

    def pause_writing(self) -> None:
        self._write_blocked = True
        self._govern()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        self._write_blocked = False  # whole messages that were read are still submitted, their answers go nowhere
        self._leave()

    # What the server and its watch call

    def stop(self) -> None:
        """Read no more, and close once what was read is done and answered."""
        self._stopped = True
        self._govern()
        self._close_if_done()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def expired(self) -> None:
        """The debt was not paid in time."""
        debt, self._debt = self._debt, None
        if debt is Debt.FIRST_BYTE:
            self._fail(Fault.SILENT, "nothing was sent within intake.frame_timeout")
        elif debt is Debt.REST:
            self._fail(Fault.HALF_MESSAGE, "the rest of a message did not come within intake.frame_timeout")
        elif self._outbox is not None and self._outbox.has_progressed():
            self._owe(Debt.READING)
        else:
            self._shared.sink.refuse(Fault.SLOW_READER, "answers lie unread for intake.frame_timeout", self._peer)
            self.abort()

    # Messages in

    def _choose(self, data: bytes) -> None:
        """The first byte decides who reads."""
        self._dialect = dialect_of(data[0])
        if not self._peer.local and self._dialect is not Dialect.HTTP:
            self._fail(Fault.NO_DIALECT, "HTTP alone is spoken here; frames and lines are for the Unix socket")
        elif self._dialect is Dialect.FRAMES:
            self._reader = FrameReader(self._shared.max_frame_bytes)
            cast("Outbox", self._outbox).frames = True
        elif self._dialect is Dialect.LINES:
            self._reader = LineReader(self._shared.max_frame_bytes)
        elif self._dialect is Dialect.HTTP:
            transport = cast("asyncio.Transport", self._transport)
            self._leave()
            self._shared.to_http(transport, self._peer, data)
        else:
            self._fail(Fault.NO_DIALECT, f"first byte 0x{data[0]:02x}: expected 0x00, JSON or an HTTP method")

    def _pump(self) -> None:
        """Submit whole messages while there is room for more."""
        began = False
        while self._reader is not None and not self._failed and not self._is_blocked():
            try:
                data = self._reader.next()
            except WireError as error:
                self._fail(Fault.OVERSIZED, str(error))
                return
            self._drained = data is None
            if data is None:
                break
            began = True
            self._take(data)
        if self._ended and self._drained and not self._failed and self._held():
            self._fail(Fault.HALF_MESSAGE, f"the connection ended within a message, after {self._held()} bytes of it")
        self._govern(anew=began)
        self._close_if_done()

    def _held(self) -> int:
        return self._reader.held if self._reader is not None else 0

    def _take(self, data: bytes) -> None:
        first, self._greeted = not self._greeted, True
        try:
            message = decode_message(data)
            if isinstance(message, Hello):
                self._greet(message, first=first)
                return
            origin = self._dialect or Dialect.LINES
            future = self._shared.sink.submit(
                message, self._peer, stream=self._stream, origin=origin, hold=message.seq is None
            )
        except WireError as error:
            if error.fatal and self._dialect is Dialect.FRAMES:
                self._fail(Fault.MALFORMED, str(error), error.seq)
            else:
                self._complain(Fault.MALFORMED, str(error), error.seq)
            self._shared.sink.keep(error.raw, str(error), self._peer, self._dialect or Dialect.LINES)
        except Exception:  # noqa: BLE001 - a fault of ours costs this message, not the connection
            _log.exception("a message of uid %d could not be submitted", self._peer.uid)
            self._send({"error": "internal error; the daemon's log has it"})
        else:
            self._track(future, len(data), message.seq)

    def _greet(self, hello: Hello, *, first: bool) -> None:
        if not first:
            raise WireError("a hello is a connection's first message or none")
        self._send(self._shared.sink.hello(hello, self._peer))
        self._stream = hello.stream
        # lines are what shells speak, whose end says nothing of a run's
        if hello.owns_runs and self._dialect is Dialect.FRAMES and self._transport is not None:
            self._peer = self._shared.sink.claim(hello, self._peer, self._transport)

    def _track(self, future: asyncio.Future[Ack], size: int, seq: int | None) -> None:
        if future.done() and not self._outstanding:  # else it would overtake one that was done before it
            self._answer(future, seq)
            return
        self._outstanding += 1
        self._waiting += isinstance(future, Waiting)
        self._unanswered += seq is not None
        self._shared.budget.add(self._share, size)
        future.add_done_callback(partial(self._done, size, seq))

    def _done(self, size: int, seq: int | None, future: asyncio.Future[Ack]) -> None:
        self._outstanding -= 1
        self._waiting -= isinstance(future, Waiting)
        self._unanswered -= seq is not None
        self._shared.budget.remove(self._share, size)
        self._answer(future, seq)
        waits = self._blocked and not (self._crowded and self._unanswered > MAX_UNANSWERED // 2)
        if waits or self._ended or self._stopped or self._failed:
            self._pump()

    # Answers out

    def _answer(self, future: asyncio.Future[Ack], seq: int | None) -> None:
        try:
            ack = future.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it was, the client hears "not stored"
            if not isinstance(error, AgentdError | asyncio.CancelledError):
                _log.error("a message of uid %d was not stored", self._peer.uid, exc_info=error)
            reason = str(error) if isinstance(error, AgentdError) else "internal error; nothing is known to be stored"
            self._send({"seq": seq, "error": reason} if seq is not None else {"error": reason})
        else:
            if seq is not None:
                self._send(ack)

    def _complain(self, fault: Fault, text: str, seq: int | None = None) -> None:
        self._shared.sink.refuse(fault, text, self._peer)
        self._send({"error": text} if seq is None else {"seq": seq, "error": text})

    def _fail(self, fault: Fault, text: str, seq: int | None = None) -> None:
        """Complain, take nothing more, and close when the envelopes under way are answered."""
        self._failed = True
        self._complain(fault, text, seq)
        self._govern()
        self._close_if_done()

    def _send(self, answer: Ack | dict[str, object]) -> None:
        if self._outbox is not None:
            self._outbox.put(answer)

    # Flow

    def _is_blocked(self) -> bool:
        full = self._share.look()
        self._crowded = self._unanswered > (MAX_UNANSWERED // 2 if self._crowded else MAX_UNANSWERED - 1)
        self._blocked = self._write_blocked or full or self._crowded or bool(self._waiting)
        return self._blocked

    def _govern(self, *, anew: bool = False) -> None:
        """Read or not, as things are; `anew`: what is half now is not what was half before."""
        if self._transport is None or self._transport.is_closing():
            return
        held = self._held()
        # Being crowded alone is no reason while nothing is left over: a client that keeps to 64 is not interrupted.
        blocked = self._write_blocked or self._share.full or bool(self._waiting) or (self._crowded and held > 0)
        over = self._ended or self._stopped or self._failed
        self._shared.budget.wait(self._share, self._pump if self._share.full else None)
        if blocked or over:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._write_blocked:
            self._owe(Debt.READING)
        elif self._reader is not None or over:
            self._owe(Debt.REST if held and not blocked and not over else None, anew=anew)

    def _owe(self, debt: Debt | None, *, anew: bool = False) -> None:
        if debt is self._debt and not (anew and debt):
            return
        self._debt = debt
        if debt is None:
            self._shared.watch.stop(self)
        else:
            self._shared.watch.start(self)

    def _close_if_done(self) -> None:
        read_all = (self._ended or self._stopped) and self._drained
        done = (read_all and not self._outstanding) or (self._failed and not self._unanswered)
        if not done or self._transport is None or self._outbox is None or self._transport.is_closing():
            return
        self._outbox.flush()
        self._transport.close()
        self._owe(Debt.READING if self._outbox.left else None)

    def _leave(self) -> None:
        self._transport = self._outbox = None
        self._ended = True
        self._owe(None)
        self._shared.budget.wait(self._share, None)
        self._shared.leave(self)


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
        self._open: Places[Connection | HttpProtocol] = Places(config.intake.max_connections)
        self._all_gone = asyncio.Event()
        self._shared: Shared | None = None

    @property
    def connections(self) -> int:
        """How many are open, in any dialect."""
        return len(self._open)

    async def start(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Listen on `listen.http`, and on `listen.socket` or `sockets` (listening, as systemd passes them), which become ours.

        Raises StateError, AlreadyRunning or ConfigError, and then holds nothing.
        """
        intake, loop = self._config.intake, asyncio.get_running_loop()
        if raise_file_limit() < intake.max_connections + _SPARE_FILES:
            _log.warning("the limit of open files is too low for intake.max_connections = %d", intake.max_connections)
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
            budget=Budget(intake.max_pending_bytes),
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
            _log.warning("a connection was lost before it began: %s", error)
            sock.close()
            self._leave(connection)

    def _turn_away(self, sock: socket.socket, peer: Peer) -> None:
        text = f"too many connections (intake.max_connections = {self._open.limit})"
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
