"""What the HTTP dialect answers with: JSON, and errors as `{"error": {"code": …, "message": …}}`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from agentd.wire import encode


class Problem(Exception):  # noqa: N818 - it is answered, not reported
    """An answer that is an error. A handler raises it; the application's outermost middleware answers it."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def answer(self) -> web.Response:
        return error_answer(self.status, self.code, str(self), headers=self.headers)


class Unauthorized(Problem):
    """Over TCP, without a local token that is ours. It is not said whether there was none or a wrong one."""

    def __init__(self) -> None:
        text = "a local token of agentd's is needed: Authorization: Bearer TOKEN, or X-API-Key: TOKEN"
        super().__init__(401, "unauthorized", text, {"WWW-Authenticate": 'Bearer realm="agentd"'})


def last_answer(status: HTTPStatus, code: str, message: str) -> bytes:
    """An error as bytes, for a connection on which no request came in whole; the connection is closed after it."""
    body = encode({"error": {"code": code, "message": message}})
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"Connection: close\r\nServer: agentd\r\n\r\n" + body


def json_answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=encode(body), status=status, headers=headers, content_type="application/json")


def error_answer(
    status: int,
    code: str,
    message: str,
    *,
    more: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error in our form; `more` are members beside `error`."""
    return json_answer({"error": {"code": code, "message": message}, **(more or {})}, status, headers)
