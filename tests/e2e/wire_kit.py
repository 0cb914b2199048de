"""What lies between agentd and the world, and goes wrong there: a disk that fails or is slow, and a wire that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from harness import Daemon, World

SOURCE = Path(__file__).with_name("diskfault.c")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
_MODE = struct.Struct("=4i")

Mood = Literal["whole", "reset request", "torn answer", "dripping answer", "silent"]


class FailingDisk:
    """The files of a daemon's state folder on a disk of many moods; diskfault.c is the layer. `daemon` is started by the test."""

    def __init__(self, world: World, **sections: dict[str, Any]) -> None:
        if COMPILER is None:
            pytest.skip("no C compiler to build the layer under the daemon with")
        library = world.folder / "diskfault.so"
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True, capture_output=True)
        self._mode = world.folder / "mode"
        self._mode.write_bytes(bytes(_MODE.size))
        self.daemon: Daemon = world.daemon(start=False, **sections)
        self.daemon.environment = {
            "LD_PRELOAD": str(library), "DISKFAULT_ROOT": str(self.daemon.state), "DISKFAULT_MODE": str(self._mode),
        }  # fmt: skip

    def fails(self, *, reads: int = 0, writes: int = 0, syncs: int = 0, sync_ms: int = 0) -> None:
        """With these errnos from now on, and syncs that take so long; without any it is in good health."""
        with self._mode.open("r+b") as file:
            file.write(_MODE.pack(reads, writes, syncs, sync_ms))


class Wire:
    """Connections to a platform that pass through here, each in the mood of its beginning; `certificate` makes it TLS.

    reset request     a part of the request is read, and the connection reset: the platform never hears of it
    torn answer       the platform's answer breaks off in the middle of its body
    dripping answer   a byte of it every 50 ms
    silent            the connection is taken, and nothing is ever read
    """

    def __init__(self, world: World, certificate: tuple[Path, Path] | None = None) -> None:
        there = urlsplit(world.platform.url)
        self._there = there.hostname, there.port
        self.mood: Mood = "whole"
        self.met = 0  # connections that were not whole
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(*certificate)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire")
        self._thread.start()
        world.on_exit(self._close)
        self._server = self._run(self._listen())
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}{there.path}"

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._context)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._talk(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests, until one of them is met by a mood that ends the connection."""
        while request := await _message(reader, cut=self.mood == "reset request"):
            mood = self.mood
            self.met += mood != "whole"
            if mood == "reset request":
                _reset(writer)
                return
            if mood == "silent":
                await asyncio.Event().wait()
            answer = await self._ask(request)
            if mood == "torn answer":
                writer.write(answer[:-10])
                await writer.drain()
                return
            step = 1 if mood == "dripping answer" else len(answer)
            for place in range(0, len(answer), step):
                writer.write(answer[place : place + step])
                await writer.drain()
                if step == 1:
                    await asyncio.sleep(0.05)

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._there)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()

    def _close(self) -> None:
        async def end() -> None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


async def _message(reader: asyncio.StreamReader, *, cut: bool = False) -> bytes:
    """A request or an answer, whole; empty at the end. `cut`: its head alone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    lengths = [line.partition(b":")[2] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    return head if cut or not lengths else head + await reader.readexactly(int(lengths[0]))


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody vouches for, and its key. Skips where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return cert, key
