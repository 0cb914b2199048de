"""Several users of one host against one daemon: connections that the kernel says are theirs, and verbs run as them."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from harness import clean_environment

HOSTILE, VICTIM, OTHER, ADMIN = 65534, 65533, 65532, 65531  # uids
ONE_AT_A_TIME = threading.Lock()  # whose user this process is, it is with all its threads
TABLE = os.environ.get("AGENTD_STRANGERS_TABLE")  # a file that gets a row for each attempt

# Forks, becomes the user and runs a verb: the interpreter need not lie where he may read, so all is imported before.
_ZYGOTE = """
import importlib, io, json, os, pkgutil, sys
import agentd, agentd.cli
for module in pkgutil.walk_packages(agentd.__path__, "agentd."):
    if not module.name.endswith(("__main__", "recorder")) and ".testing" not in module.name:
        importlib.import_module(module.name)
import encodings.idna, rich.console, rich.table, shlex, tomllib
for line in sys.stdin:
    asked = json.loads(line)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(theirs, 1); os.dup2(theirs, 2); os.close(ours)
        os.chdir(asked["cwd"]); os.environ.clear(); os.environ.update(asked["env"])
        os.setgroups([]); os.setresgid(*[asked["uid"]] * 3); os.setresuid(*[asked["uid"]] * 3)
        code = 70
        try:
            agentd.cli.main(asked["argv"], prog_name="agentd")
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException:
            import traceback; traceback.print_exc()
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, said.decode()]), flush=True)
"""


def note(attempt: str, got: str) -> None:
    """A row of the table for people."""
    if TABLE:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].split(" ")[0]
        with open(TABLE, "a") as file:  # noqa: PTH123
            file.write(f"| {attempt} | {got} | `{test}` |\n")


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """The work under another effective uid and gid. It may not wait for anybody who does the same."""
    with ONE_AT_A_TIME:
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(uid)
        os.seteuid(uid)
        try:
            return work()
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def connect(path: str, uid: int, timeout_s: float = 30.0) -> socket.socket:
    """A connection of that user's."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(timeout_s)
    try:
        as_user(uid, lambda: link.connect(path))
    except OSError:
        link.close()
        raise
    return link


def frame(message: Any) -> bytes:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def receive(link: socket.socket) -> Any:
    """One frame, None at the end."""
    data = b""
    wanted = 4
    while len(data) < wanted:
        part = link.recv(wanted - len(data))
        if not part:
            return None
        data += part
        if len(data) == 4:
            wanted = 4 + int.from_bytes(data, "big")
    return json.loads(data[4:])


def ask(link: socket.socket, seq: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    """An envelope's answer."""
    link.sendall(frame({"seq": seq, "records": records}))
    answer: dict[str, Any] = receive(link)
    assert answer is not None
    return answer


def said(link: socket.socket, within_s: float = 10.0) -> bytes:
    """All that is said until the end of the connection, or a silence."""
    link.settimeout(within_s)
    found = bytearray()
    try:
        while part := link.recv(65536):
            found += part
    except OSError:
        pass
    return bytes(found)


def pushed(link: socket.socket, data: bytes, within_s: float) -> int:
    """How many of these bytes are taken within the time."""
    link.setblocking(False)
    taken, end = 0, time.monotonic() + within_s
    while taken < len(data) and (left := end - time.monotonic()) > 0:
        if select.select([], [link], [], left)[1]:
            try:
                taken += link.send(data[taken : taken + 65536])
            except (BrokenPipeError, ConnectionResetError):
                break
    return taken


def _until_quiet(answer: http.client.HTTPResponse) -> bytes:
    """Of an answer without end: its lines until an empty one, which says that there is no news."""
    said = b""
    while (line := answer.readline()) not in (b"", b"\n"):
        said += line
    return said


class User:
    """Somebody who asks over HTTP: on the Unix socket, or with a local token over TCP."""

    def __init__(self, path: str, uid: int, port: int = 0, token: str = "") -> None:
        self.path, self.uid, self.port, self.token = path, uid, port, token

    def __call__(self, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port or None, timeout=30)
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        else:
            connection.sock = connect(self.path, self.uid)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            said = _until_quiet(answer) if target.startswith("/v1/tail") else answer.read()
            return answer.status, said, dict(answer.getheaders())
        finally:
            connection.close()

    def document(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        status, data, _ = self(method, target, body)
        return status, json.loads(data)


class Verbs:
    """The command line as whichever user."""

    def __init__(self, folder: Any) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, uid: int, *argv: str, **environment: str) -> tuple[int, str]:
        """Exit code, and what was printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        env = clean_environment(self._folder, **environment)
        asked = {"uid": uid, "argv": argv, "env": env, "cwd": "/"}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code, text = json.loads(self._process.stdout.readline())
        assert "Traceback" not in text, text
        return code, text

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
