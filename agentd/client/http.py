"""One HTTP request over the daemon's socket: what gates and `flush` need of HTTP/1.1, and no more.

`request` and `Answer` are pure, so that `exchange` (a thread that waits) and `aio_gates.exchange` (asyncio) share them.
http.client would cost an agent 15 ms at its first gate, and has nothing for asyncio.
"""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

RECV_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 2**20  # as long as a frame may be
_FINAL = 200  # smaller ones announce another answer
_HEX = frozenset(b"0123456789abcdefABCDEF")
_MAX_DIGITS = 8  # of a chunk's length
_MAX_LINE = 4096  # bytes of the line that says it, extensions included


class Heard(NamedTuple):
    """An answer."""

    status: int
    body: bytes


class Unheard(NamedTuple):
    """No answer. `sent`: the request may have been read; otherwise the daemon has certainly nothing of it."""

    reason: str
    sent: bool


def request(method: str, target: str, body: bytes = b"") -> bytes:
    """The request's bytes. The daemon closes the connection after its answer."""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    kind = "Content-Type: application/json\r\n" if body else ""
    return f"{head}{kind}\r\n".encode() + body


class Answer:
    """Bytes from the socket, until they are an answer."""

    def __init__(self) -> None:
        self._data = bytearray()  # the head until it is whole, the body from then on
        self._chunks: _Chunks | None = None  # of a body that comes in them
        self._received = 0
        self._status = 0
        self._fields: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> Heard | None:
        """More bytes; none means that the peer has ended. Raises ValueError for what is no answer or too long a one."""
        self._data += data
        self._received += len(data)
        if self._received > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            raise ValueError("the answer is too long")
        body = self._body(ended=not data) if self._status or self._read_head() else None
        if body is not None:
            return Heard(self._status, body)
        if not data:
            raise ValueError("the connection was closed before the end of the answer")
        return None

    def _read_head(self) -> bool:
        head, gap, rest = bytes(self._data).partition(b"\r\n\r\n")
        if not gap:
            if len(head) > MAX_HEAD_BYTES:
                raise ValueError("the answer's head is too long")
            return False
        first, *lines = head.split(b"\r\n")
        status = _status_in(first)
        self._data = bytearray(rest)
        if status < _FINAL:
            return self._read_head()
        self._status = status
        self._fields = dict(_field(line) for line in lines)
        if self._fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunks = _Chunks(self._data)
        return True

    def _body(self, *, ended: bool) -> bytes | None:
        if self._chunks is not None:
            return self._chunks.take()
        length = self._fields.get(b"content-length")
        if length is None:
            return bytes(self._data) if ended else None
        if not length.isdigit() or len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            raise ValueError(f"the answer's length is {length[:20]!r}")
        return bytes(self._data[: int(length)]) if len(self._data) >= int(length) else None


def _status_in(line: bytes) -> int:
    """The status of `HTTP/1.1 200 OK`. Raises ValueError."""
    version, _, rest = line.partition(b" ")
    status = rest.partition(b" ")[0]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status.isdigit() or len(status) != 3:  # noqa: PLR2004 - RFC 9110 §15
        raise ValueError("the answer is not HTTP/1.1")
    return int(status)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()


class _Chunks:
    """A chunked body, put together as it comes: what has been read leaves `data`, so that no byte is read twice."""

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self._body = bytearray()

    def take(self) -> bytes | None:
        """The whole body; None while the last chunk is not there. Trailers are not waited for. Raises ValueError."""
        at = 0
        while (end := self._data.find(b"\r\n", at, at + _MAX_LINE)) >= 0:
            size = _chunk_size(bytes(self._data[at:end]))
            if size == 0:
                return bytes(self._body)
            begin = end + 2
            if len(self._data) < begin + size + 2:
                break
            self._body += self._data[begin : begin + size]
            at = begin + size + 2
        if end < 0 and len(self._data) - at >= _MAX_LINE:
            raise ValueError("the answer's chunk has no length")
        del self._data[:at]
        return None


def _chunk_size(line: bytes) -> int:
    """Raises ValueError."""
    digits = line.partition(b";")[0].strip()
    if not 0 < len(digits) <= _MAX_DIGITS or not _HEX.issuperset(digits):
        raise ValueError(f"the answer's chunk has the length {line[:20]!r}")
    return int(digits, 16)


def exchange(path: str, message: bytes, timeout_s: float) -> Heard | Unheard:
    """Send a request and wait for its answer in this thread, for `timeout_s` altogether. Never raises for the peer's sake."""
    from socket import AF_UNIX, SOCK_STREAM, socket

    end = monotonic() + timeout_s
    with socket(AF_UNIX, SOCK_STREAM) as link:
        try:
            link.settimeout(timeout_s)
            link.connect(path)
        except OSError as error:
            return Unheard(f"{path} ({words(error, timeout_s)})", sent=False)
        answer = Answer()
        try:
            link.settimeout(max(end - monotonic(), 0.001))
            link.sendall(message)
            while True:
                link.settimeout(max(end - monotonic(), 0.001))
                heard = answer.feed(link.recv(RECV_BYTES))
                if heard is not None:
                    return heard
        except (OSError, ValueError) as error:
            return Unheard(words(error, timeout_s), sent=True)


def words(error: Exception, timeout_s: float) -> str:
    """What went wrong with an exchange."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
