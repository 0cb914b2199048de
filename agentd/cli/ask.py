"""Questions to a running daemon: HTTP/1.1 over its Unix socket, one connection a question.

Whatever can go wrong on the way is an error with a sentence that says what to do; a daemon that answers with an error is
`Refused`, which keeps status and code. Used by every verb that needs a daemon.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlencode

from agentd.errors import AgentdError, StateError
from agentd.units import format_duration

JSON = "application/json"
_SOME_ERROR = 400


class NoDaemon(StateError):  # noqa: N818 - a state that is found, named as the reader would say it
    """No daemon listens there."""


class Refused(AgentdError):  # noqa: N818 - as above
    """The daemon said no."""

    def __init__(self, status: int, code: str, message: str, document: Any = None) -> None:
        """Take the message for people; status, code and the whole document are for the verb."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.document = document


class Answer(NamedTuple):
    """A status and the JSON document that came with it."""

    status: int
    document: Any
    body: bytes = b""


class _UnixConnection(http.client.HTTPConnection):
    """http.client over AF_UNIX: the host that it names in its headers is only for the protocol's sake."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """The daemon behind one socket. Raises NoDaemon, Refused and StateError."""

    def __init__(self, socket_path: str, timeout_s: float = 5.0) -> None:
        self.socket = socket_path
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        """Name the socket."""
        return f"<Daemon at {self.socket}>"

    def get(self, path: str, **query: object) -> Any:
        """The document at `path`; query values that are None are left out."""
        return self.ask("GET", path + _query(query)).document

    def read(self, path: str, **query: object) -> bytes:
        """The document at `path` to the byte, as it came."""
        return self.ask("GET", path + _query(query)).body

    def read_text(self, path: str) -> str:
        """The text at `path`, which is no JSON."""
        with self._asked("GET", path, b"", self.timeout_s) as response:
            if response.status >= _SOME_ERROR:
                raise Refused(response.status, "", f"GET {path}: status {response.status}")
            return response.read().decode(errors="replace")

    def post(self, path: str, *, body: bytes = b"", timeout_s: float | None = None, **query: object) -> Any:
        """What the daemon answers to `body`. `timeout_s` is for questions that the daemon takes its time over."""
        return self.ask("POST", path + _query(query), body, timeout_s).document

    def ask(self, method: str, target: str, body: bytes = b"", timeout_s: float | None = None) -> Answer:
        """The answer as it came, unless it is an error in the daemon's envelope: that raises Refused."""
        answer = self._exchange(method, target, body, self.timeout_s if timeout_s is None else timeout_s)
        return self._checked(method, target, answer)

    def _checked(self, method: str, target: str, answer: Answer) -> Answer:
        document = answer.document
        error = document.get("error") if isinstance(document, dict) else None
        if isinstance(error, dict):
            raise Refused(answer.status, str(error.get("code", "")), str(error.get("message", "")), document)
        if answer.status >= _SOME_ERROR and (error or not isinstance(document, dict)):
            raise Refused(answer.status, "", str(error or f"{method} {target}: status {answer.status}"))
        return answer

    def lines(self, path: str, **query: object) -> Iterator[bytes]:
        """What it says at `path`, line by line and without the empty ones, until it ends. Raises as the others do."""
        with self._asked("GET", path + _query(query), b"", self.timeout_s) as response:
            if response.status >= _SOME_ERROR:
                body = response.read()
                self._checked("GET", path, Answer(response.status, json.loads(body), body))
            with suppress(http.client.IncompleteRead):  # it was killed: that is an end, too
                for line in response:
                    if line.strip():
                        yield line.rstrip(b"\n")

    def _exchange(self, method: str, target: str, body: bytes, timeout_s: float) -> Answer:
        with self._asked(method, target, body, timeout_s) as response:
            answer = response.read()
            return Answer(response.status, json.loads(answer), answer)

    @contextmanager
    def _asked(self, method: str, target: str, body: bytes, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
        """The answer's head has come; what goes wrong before its end is a sentence that says what to do."""
        connection = _UnixConnection(self.socket, timeout_s)
        try:
            connection.request(method, target, body or None, {"Content-Type": JSON} if body else {})
            yield connection.getresponse()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon(f"no daemon at {self.socket}: start one with 'agentd run'") from None
        except PermissionError:
            raise StateError(
                f"{self.socket}: permission denied; its mode and group are [listen] mode and group in the configuration"
            ) from None
        except TimeoutError:
            raise StateError(
                f"the daemon at {self.socket} did not answer within {format_duration(timeout_s)}"
            ) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise StateError(f"{self.socket}: this does not answer like a daemon: {what}") from error
        finally:
            connection.close()


def _query(values: dict[str, object]) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return "?" + urlencode(given, doseq=True) if given else ""
