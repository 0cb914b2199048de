"""A connection in frames or lines: it submits whole messages to the sink and answers in the order in which the futures complete.

It does not read while too much is under way, its user's turn is over (`rota`), he sends too fast (`rates`) or has too much in memory
(`budget`), or its answers lie untaken: so a full daemon, and a full share of it, is felt by the sender as a write that blocks. A
connection in HTTP is given to aiohttp at its first byte; one that came over TCP speaks nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import cast

from agentd.errors import AgentdError, WireError
from agentd.intake import Peer, Waiting
from agentd.intake.budget import Share
from agentd.intake.connection import Debt, Fault, FrameReader, LineReader, Outbox, Shared, who_of
from agentd.wire import MAX_UNANSWERED, Ack, Dialect, Hello, Message, decode_message, dialect_of

_log = logging.getLogger("agentd.intake")


class Connection(asyncio.Protocol):
    """One connection until its first byte, and to its end in frames or lines."""

    def __init__(self, shared: Shared, peer: Peer) -> None:
        self._shared = shared
        self._peer = peer
        self._who = who_of(peer)
        self._share = Share(shared.budget, self._who, self._govern)
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._dialect: Dialect | None = None
        self._reader: FrameReader | LineReader | None = None
        self._stream: str | None = None
        self._greeted = False  # a hello comes first or never
        self._outstanding = 0  # messages whose future is not done
        self._unanswered = 0  # of these, envelopes
        self._waiting = 0  # of these, messages that wait for room in a queue
        self._blocked = False  # as things were when last looked at, for any of the next five
        self._crowded = False
        self._others = False  # its user has too much under way
        self._deferred = False  # until it is its user's turn again
        self._too_fast: asyncio.TimerHandle | None = None  # until its user may send again
        self._write_blocked = False
        self._drained = True  # the reader holds no whole message
        self._ended = False  # the peer will send no more
        self._stopped = False  # we read no more
        self._failed = False  # the peer can't be understood any more
        self._gone = False
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
        self._govern()
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
        if not self._drained:
            self._pump()

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
        clock = self._shared.rota.clock
        while self._reader is not None and not self._failed and not self._is_blocked():
            start = clock()
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
            self._shared.rota.spend(self._who, clock() - start)
        if self._ended and self._drained and not self._failed and self._held():
            self._fail(Fault.HALF_MESSAGE, f"the connection ended within a message, after {self._held()} bytes of it")
        self._govern(anew=began)
        self._close_if_done()
        if self._gone:
            self._forget()

    def _turn(self) -> None:
        """It is its user's turn again, or he may send again."""
        self._deferred = False
        self._too_fast = None
        self._pump()

    def _held(self) -> int:
        return self._reader.held if self._reader is not None else 0

    def _take(self, data: bytes) -> None:
        first, self._greeted = not self._greeted, True
        try:
            message = decode_message(data)
            records = len(message.items) if isinstance(message, Message) else 1
            self._shared.rates.charge(self._who, records, len(data), self._shared.rota.clock())
            if isinstance(message, Hello):
                self._greet(message, first=first)
                return
            origin = self._dialect or Dialect.LINES
            future = self._shared.sink.submit(
                message, self._peer, stream=self._stream, origin=origin, hold=message.seq is None
            )
        except WireError as error:
            self._shared.rates.charge(self._who, 1, len(data), self._shared.rota.clock())
            if error.fatal and self._dialect is Dialect.FRAMES:
                self._fail(Fault.MALFORMED, str(error), error.seq)
            else:
                self._complain(Fault.MALFORMED, str(error), error.seq)
            self._shared.sink.keep(error.raw, str(error), self._peer, self._dialect or Dialect.LINES)
        except Exception:  # noqa: BLE001 - a fault of ours costs this message, not the connection
            _log.exception("a message of uid %d could not be submitted", self._peer.uid, extra={"action": "defect"})
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
        self._shared.budget.add(self._share, size, waits=isinstance(future, Waiting))
        future.add_done_callback(partial(self._done, size, seq))

    def _done(self, size: int, seq: int | None, future: asyncio.Future[Ack]) -> None:
        self._outstanding -= 1
        self._waiting -= isinstance(future, Waiting)
        self._unanswered -= seq is not None
        self._shared.budget.remove(self._share, size, waits=isinstance(future, Waiting))
        self._answer(future, seq)
        waits = self._blocked and not self._deferred and not (self._crowded and self._unanswered > MAX_UNANSWERED // 2)
        if waits or self._ended or self._stopped or self._failed:
            self._pump()

    # Answers out

    def _answer(self, future: asyncio.Future[Ack], seq: int | None) -> None:
        try:
            ack = future.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it was, the client hears "not stored"
            if not isinstance(error, AgentdError | asyncio.CancelledError):
                _log.error(
                    "a message of uid %d was not stored", self._peer.uid, exc_info=error, extra={"action": "defect"}
                )
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
        self._others = self._shared.budget.is_crowded(self._share.purse)
        self._crowded = self._unanswered > (MAX_UNANSWERED // 2 if self._crowded else MAX_UNANSWERED - 1)
        self._blocked = self._write_blocked or full or self._others or self._crowded or bool(self._waiting)
        if not self._blocked and self._held():
            self._wait_for_turn()
        self._blocked |= self._deferred or self._too_fast is not None
        return self._blocked

    def _wait_for_turn(self) -> None:
        """Unless it may go on now: others may come before, and nobody faster than he may."""
        shared = self._shared
        if not self._deferred and not shared.rota.has_turn(self._who):
            self._deferred = True
            shared.rota.wait(self._who, self._turn)
        if self._too_fast is None and (wait_s := shared.rates.wait_s(self._who, shared.rota.clock())) > 0:
            self._too_fast = shared.loop.call_later(wait_s, self._turn)

    def _govern(self, *, anew: bool = False) -> None:
        """Read or not, as things are; `anew`: what is half now is not what was half before."""
        budget, share, held = self._shared.budget, self._share, self._held()
        budget.hold(share, held)
        if anew:
            budget.began(share)
        budget.wait(share, self._pump if share.full or self._others else None)  # also of one that is gone
        if self._transport is None or self._transport.is_closing():
            return
        may_read = budget.may_read(share)
        waits = self._deferred or self._too_fast is not None or bool(self._waiting)
        # Being crowded alone is no reason while nothing is left over: a client that keeps to 64 is not interrupted.
        blocked = self._write_blocked or share.full or self._others or waits or (self._crowded and held > 0)
        over = self._ended or self._stopped or self._failed
        budget.wait_to_read(share, None if may_read else self._govern)
        if blocked or over or not may_read:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._write_blocked:
            self._owe(Debt.READING)
        elif self._reader is not None or over:
            self._owe(Debt.REST if held and may_read and not blocked and not over else None, anew=anew)
        else:
            self._owe(Debt.FIRST_BYTE if may_read else None)

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
        self._ended = self._gone = True
        self._owe(None)
        self._shared.leave(self)
        self._forget()

    def _forget(self) -> None:
        """What was read whole is still submitted, and counts until then."""
        if (self._drained or self._failed) and self._share.is_ours:
            self._shared.budget.leave(self._share)
            if self._too_fast is not None:
                self._too_fast.cancel()
