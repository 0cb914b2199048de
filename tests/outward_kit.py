"""What stands between agentd and a platform: a private authority, TLS in front of a plain server, a proxy that speaks CONNECT.

All of it is real: certificates are made by openssl, bytes go through sockets. `threaded` runs the servers beside a test that has no loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import warnings

NAME = "platform.test"  # nobody's by RFC 6761: only a proxy that is told where it is can find it


class Authority:
    """A private CA in a folder."""

    def __init__(self, folder, name="private CA"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        more = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        self._openssl(
            "req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", "ca.key", "-out", "ca.pem", *more
        )

    def _openssl(self, *arguments):
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def issue(self, name, file="server", days=2):
        """(certificate, key) for a name; `days` below 0: it has expired."""
        (self.folder / f"{file}.ext").write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n")
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{file}.key", "-out", f"{file}.csr")
        self._openssl(
            "x509", "-req", "-in", f"{file}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", f"{file}.ext", "-out", f"{file}.pem",
        )  # fmt: skip
        (self.folder / f"{file}.key").chmod(0o600)
        return self.folder / f"{file}.pem", self.folder / f"{file}.key"

    def encrypt(self, key):
        """The same key under a password."""
        path = key.with_suffix(".locked")
        self._openssl("ec", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(path))
        path.chmod(0o600)
        return path


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def server_context(certificate, *, clients=None, newest=None):
    """A server's side of TLS. `clients`: the file of those who vouch for clients, which then have to show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    if newest is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")  # below TLS 1.2 OpenSSL speaks at no higher level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = newest
    return context


class Server:
    """Connections of a port of its own, ended with the block."""

    def __init__(self, context=None, port=0):
        self._context = context
        self._tasks = set()
        self.port = port
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _abort_all_of(self.port)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError
            ):
                await self.talk(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def talk(self, reader, writer):
        raise NotImplementedError


class Front(Server):
    """TLS in front of a plain server on this host, as a load balancer has it."""

    def __init__(self, context, behind, port=0):
        super().__init__(context, port)
        self._behind = behind

    async def talk(self, reader, writer):
        await _join(reader, writer, *await asyncio.open_connection("127.0.0.1", self._behind))


class ConnectProxy(Server):
    """Tells `heard` what it was asked; knows where `hosts` are, whatever DNS says; `refusal` is said instead of going there."""

    def __init__(self, hosts, *, refusal=None, credentials=None, tls=None, silent=False, port=0):
        super().__init__(tls, port)
        self.hosts = hosts
        self.refusal = refusal
        self.silent = silent
        self._credentials = credentials
        self.heard = []

    async def talk(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, place, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self.heard.append((method, place, headers))
        if self.silent:
            await asyncio.Event().wait()
        if self.refusal is not None:
            writer.write(self.refusal)
            await writer.drain()
            return
        if self._credentials is not None and headers.get("proxy-authorization") != self._credentials:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n"
            )
            await writer.drain()
            return
        port = self.hosts.get(place.rpartition(":")[0], int(place.rpartition(":")[2]))
        there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await _join(reader, writer, *there)


class Outspoken:
    """TLS by Python's blocking sockets: unlike asyncio's it says in an alert why it ends a handshake, as other servers do."""

    def __init__(self, context):
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.came = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                with self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as spoken:
                    self._speak(spoken)

    def _speak(self, spoken):
        try:
            spoken.do_handshake()
        except ssl.SSLError:
            socket.socket.shutdown(spoken, socket.SHUT_WR)
            while socket.socket.recv(
                spoken, 65536
            ):  # a close with something unread would be a reset, which overtakes the alert
                pass
        else:
            self._answer(spoken)

    def _answer(self, spoken):
        head = b""
        while b"\r\n\r\n" not in head:
            part = spoken.recv(65536)
            if not part:
                return
            head += part
        self.came.append(head.partition(b"\r\n")[0].decode())
        spoken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")


async def _join(reader, writer, there_reader, there_writer):
    """Carry bytes both ways until one side has ended."""
    ways = [asyncio.create_task(_carry(reader, there_writer)), asyncio.create_task(_carry(there_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        there_writer.transport.abort()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def threaded(*servers):
    """The servers run on a loop of their own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started = []
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
            started.append(server)
        yield
    finally:
        for server in started:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _abort_all_of(port):
    """Also connections that were accepted and are nobody's yet, in the midst of their handshake: asyncio alone knows them.

    What was aborted is closed a few turns later, TLS within TLS after some more.
    """
    for _ in range(20):
        for transport in list(asyncio.get_running_loop()._transports.values()):
            if (transport.get_extra_info("sockname") or (None, None))[1] == port:
                transport.abort()
        await asyncio.sleep(0)
