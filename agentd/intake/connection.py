"""What a connection is made of: readers of frames and lines, answers on their way, terms that run out.

Bytes and deadlines in, decisions out: no socket is touched but through the transport that an `Outbox` is given.
`server` does what is decided here for frames and lines, `routes` for HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Protocol

from agentd.crashpoints import Point, reached
from agentd.errors import WireError
from agentd.intake import Peer, Sink
from agentd.intake.budget import Budget
from agentd.intake.rates import Rates
from agentd.intake.rota import Rota
from agentd.wire import HEADER_BYTES, Ack, encode, frame, frame_length


class Fault(StrEnum):
    """Why something that came was no message, or a connection was ended. Stable names: the sink counts by them."""

    NO_DIALECT = "no_dialect"  # a first byte that chooses none of the three
    MALFORMED = "malformed"  # not JSON, or JSON of the wrong shape
    OVERSIZED = "oversized"  # above intake.max_frame_bytes, or a frame of no bytes
    SILENT = "silent"  # no first byte within intake.frame_timeout
    HALF_MESSAGE = "half_message"  # the rest of a message did not come
    SLOW_READER = "slow_reader"  # answers lie untaken for intake.frame_timeout
    UNAUTHORIZED = "unauthorized"  # over TCP, without a local token of ours
    FOREIGN_PAGE = "foreign_page"  # over TCP, with a Host, Origin or Sec-Fetch-Site that is not ours: a browser's
    TOO_MANY_CONNECTIONS = "too_many_connections"  # above intake.max_connections, or max_connections_per_uid
    TOO_MUCH = "too_much"  # over HTTP: above a limit of one uid's, to be sent again later


class Debt(Enum):
    """What a connection owes us; it is given `intake.frame_timeout` for it."""

    FIRST_BYTE = auto()
    REST = auto()  # of a message that has begun
    READING = auto()  # of our answers


class Reader:
    """Bytes as they come; a whole chunk is kept as it is, and only what runs over two chunks is put together."""

    def __init__(self, limit: int) -> None:
        """`limit` is the most bytes that one message may have."""
        self._limit = limit
        self._data: bytes | bytearray = b""
        self._head = 0

    @property
    def held(self) -> int:
        """Bytes that were fed and not yet given out."""
        return len(self._data) - self._head

    def feed(self, data: bytes) -> None:
        if not self.held:
            self._data = data
        elif isinstance(self._data, bytearray):
            del self._data[: self._head]
            self._data += data
        else:
            self._data = bytearray(self._data[self._head :]) + data
        self._head = 0

    def next(self) -> bytes | None:
        """The next whole message, None if there is none yet. Raises WireError where no message can follow."""
        raise NotImplementedError

    def end(self) -> None:
        """No more will be fed."""

    def _cut(self, start: int, end: int, head: int) -> bytes:
        """The bytes from `start` to `end`; what lies before `head` is done with, and an empty buffer lets its memory go."""
        message = bytes(self._data[start:end])
        self._head = head
        if head >= len(self._data):
            self._data, self._head = b"", 0
        return message


class FrameReader(Reader):
    """Frames: the length is judged on the header, before anything of the frame is kept."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._wanted = HEADER_BYTES  # as many bytes make a look worth while

    def next(self) -> bytes | None:
        if self.held < self._wanted:
            return None
        start = self._head + HEADER_BYTES
        self._wanted = HEADER_BYTES + frame_length(self._data[self._head : start], self._limit)
        end = self._head + self._wanted
        if end > len(self._data):
            return None
        self._wanted = HEADER_BYTES
        return self._cut(start, end, end)


class LineReader(Reader):
    """Lines: blank ones are nothing, CR LF is as good as LF, and the last needs neither."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._seen = 0  # of the bytes held, those known to hold no end of line: each byte is looked at once
        self._final = False

    def end(self) -> None:
        self._final = True

    def next(self) -> bytes | None:
        while self.held:
            end = self._data.find(b"\n", self._head + self._seen)
            self._seen = self.held if end < 0 else 0
            if (self.held if end < 0 else end - self._head) > self._limit:
                raise WireError(f"line of more than {self._limit} bytes (intake.max_frame_bytes)", fatal=True)
            if end < 0 and not self._final:
                return None
            self._seen = 0
            end = len(self._data) if end < 0 else end
            line = self._cut(self._head, end, end + 1).strip(b" \t\r\n")
            if line:
                return line
        return None


class Outbox:
    """Answers on their way out: those of one turn of the event loop leave with one system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.frames = False  # lines until the connection has chosen
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._sent_bytes = 0
        self._taken_bytes = 0  # of those sent, by the peer, when last looked at

    def put(self, answer: Ack | dict[str, Any]) -> None:
        data = encode(answer)
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(_frame(answer, data) if self.frames else data + b"\n")

    def flush(self) -> None:
        if self._waiting and not self._transport.is_closing():
            data = b"".join(self._waiting)
            self._sent_bytes += len(data)
            self._transport.write(data)
            reached(Point.INTAKE_ANSWERED)
        self._waiting.clear()

    @property
    def left(self) -> int:
        """Bytes that the peer has not taken."""
        return self._transport.get_write_buffer_size()

    def has_progressed(self) -> bool:
        """Whether the peer took some of our answers since this was last asked."""
        taken = self._sent_bytes - self.left
        progressed, self._taken_bytes = taken > self._taken_bytes, taken
        return progressed


def _frame(answer: Ack | dict[str, Any], data: bytes) -> bytes:
    try:
        return frame(data)
    except WireError as error:  # a hundred thousand refusals and more
        seq = {"seq": answer.seq} if isinstance(answer, Ack) else {}
        return frame(encode(seq | {"error": f"the answer does not fit: {error}"}))


class Watched(Protocol):
    def expired(self) -> None: ...


class Clock(Protocol):
    """The part of an event loop that tells the time."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle: ...


class Watch:
    """Who owes us something, until when. One timer for all of them, and none while nobody does."""

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._due: dict[Watched, float] = {}  # in order of time, as every debt has the same term
        self._timer: asyncio.TimerHandle | None = None

    def start(self, who: Watched) -> None:
        """`who.expired()` is called after the timeout; a term that is running begins anew."""
        self._due.pop(who, None)
        self._due[who] = self._clock.time() + self.timeout_s
        self._arm()

    def stop(self, who: Watched) -> None:
        self._due.pop(who, None)

    def close(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.time()
        for who, at in list(self._due.items()):
            if at > now:
                break
            if self._due.get(who) == at:
                del self._due[who]
                who.expired()
        self._arm()

    def _arm(self) -> None:
        if self._due and self._timer is None:
            self._timer = self._clock.call_at(next(iter(self._due.values())), self._sweep)


def who_of(peer: Peer) -> int:
    """Whose limits hold for a peer: its uid's, and where the kernel doesn't say that, its token's."""
    return peer.uid if peer.uid >= 0 else -2 - peer.token


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server have in common."""

    sink: Sink
    max_frame_bytes: int
    budget: Budget
    rates: Rates
    rota: Rota
    watch: Watch
    loop: asyncio.AbstractEventLoop
    to_http: Callable[[asyncio.Transport, Peer, bytes], None]
    leave: Callable[[Any], None]
