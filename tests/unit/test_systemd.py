"""What systemd hands to a service and hears of it: variables that are checked, sockets that can be used, datagrams that are exact."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile

import pytest

from agentd.errors import ConfigError
from agentd.systemd import Notifier, inherit, listen_fds, watchdog_interval

OWN = str(os.getpid())


@pytest.fixture
def place():
    """A folder whose paths fit into a socket's address."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        yield folder


def listening(path, kind=socket.SOCK_STREAM, family=socket.AF_UNIX):
    sock = socket.socket(family, kind)
    sock.bind(path)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


class Passed:
    """Descriptors one behind the other, as systemd passes them; the caller's duplicates stay."""

    def __init__(self, *things):
        self.first = 200
        for place, thing in enumerate(things):
            os.dup2(thing.fileno(), self.first + place)
        self.count = len(things)

    def env(self, **more):
        return {"LISTEN_FDS": str(self.count), "LISTEN_PID": OWN, **more}

    def take(self, **more):
        return listen_fds(self.env(**more), first=self.first)

    def close(self):
        for fd in range(self.first, self.first + self.count):
            with contextlib.suppress(OSError):  # taken over, and closed by whoever took it
                os.close(fd)


@pytest.fixture
def passed():
    made = []

    def make(*things):
        made.append(Passed(*things))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- sockets -------------------------------------------------------------------------------------------------------------


def test_sockets_that_listen_are_taken_over_in_their_order(place, passed):
    """Each can be accepted from, and no child of ours has it."""
    with listening(f"{place}/a") as one, listening(f"{place}/b") as other:
        found = passed(one, other).take(LISTEN_FDNAMES="agents:more")
    try:
        assert [sock.getsockname() for sock in found] == [f"{place}/a", f"{place}/b"]
        assert not any(sock.get_inheritable() for sock in found)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{place}/a")
            found[0].accept()[0].close()
    finally:
        for sock in found:
            sock.close()


def test_without_systemd_there_are_none():
    """No variable, nothing to take."""
    assert listen_fds({}) == []
    found = inherit({})
    assert (found.sockets, bool(found.notifier), found.watchdog_s, found.path) == ([], False, None, None)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, "systemd has passed its sockets to another"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID=: expected a number"),
        ({"LISTEN_FDS": "one", "LISTEN_PID": OWN}, "LISTEN_FDS=one: expected a number"),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": OWN}, "LISTEN_FDS=-1: expected a number"),
        ({"LISTEN_FDS": "2", "LISTEN_PID": OWN, "LISTEN_FDNAMES": "a"}, "1 names for LISTEN_FDS=2"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": OWN, "LISTEN_FDNAMES": "x"}, r"descriptor 900 \(x\).*Bad file descriptor"),
    ],
)
def test_variables_that_contradict_are_said(variables, said):
    """What was passed is never ignored: agents would talk to a socket that nobody reads."""
    with pytest.raises(ConfigError, match=said):
        listen_fds(variables, first=900)


def test_what_agentd_cannot_listen_on_is_refused_by_name(place, passed, tmp_path):
    """Not a stream, no Unix socket, not listening, open to everybody, no socket at all: each with what would be right."""
    tcp = socket.create_server(("127.0.0.1", 0))
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(f"{place}/deaf")
    cases = [
        (listening(f"{place}/d", socket.SOCK_DGRAM), "SOCK_DGRAM, expected a stream"),
        (tcp, r"no Unix socket; HTTP over loopback is \[listen\] http"),
        (deaf, "does not listen"),
        (listening(f"\0agentd-test-{OWN}"), "abstract name"),
        ((tmp_path / "file").open("w"), "is no socket"),
    ]
    for thing, said in cases:
        with thing, pytest.raises(ConfigError, match=said) as caught:
            passed(thing).take(LISTEN_FDNAMES="agents")
        assert "(agents), passed by systemd" in str(caught.value)


def test_one_that_is_wrong_costs_no_descriptor_of_the_others(place, passed):
    """Those before it are closed again."""
    with listening(f"{place}/a") as good, listening(f"{place}/d", socket.SOCK_DGRAM) as bad:
        both = passed(good, bad)
        with pytest.raises(ConfigError):
            both.take()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(both.first)


# -- the watchdog --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": OWN}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),  # somebody else is watched
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(variables, seconds):
    """Half of WATCHDOG_USEC; nothing where nobody watches this process."""
    assert watchdog_interval(variables) == seconds


@pytest.mark.parametrize("usec", ["0", "", "soon"])
def test_a_watchdog_without_a_time_is_a_mistake(usec):
    """Said, and not guessed at."""
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        watchdog_interval({"WATCHDOG_USEC": usec})


# -- news ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request, place):
    """A service manager's socket, and the address that it would announce."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        address = f"{place}/notify" if request.param == "path" else f"@agentd-notify-{OWN}"
        sock.bind(address.replace("@", "\0"))
        sock.setblocking(False)
        yield sock, address


def test_each_piece_of_news_is_one_datagram(manager):
    """sd_notify(3)'s words, over a path and over an abstract name."""
    sock, address = manager
    notifier = Notifier(address, monotonic_ns=lambda: 5_000_123)
    said = []
    for tell in (
        lambda: notifier.ready("takes records"),
        notifier.reloading,
        lambda: notifier.status("one\nREADY=1\n two"),
        notifier.feed,
        lambda: notifier.feed("busy"),
        lambda: notifier.extend(1.5),
        lambda: notifier.stopping("stopping"),
    ):
        tell()
        said.append(sock.recv(4096).decode())
    assert said == [
        "READY=1\nSTATUS=takes records",
        "RELOADING=1\nMONOTONIC_USEC=5000\nSTATUS=reading the configuration",
        "STATUS=one READY=1 two",  # one line, whatever a reason holds
        "WATCHDOG=1",
        "WATCHDOG=1\nSTATUS=busy",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_nobody_is_told_where_nobody_listens():
    """Without an address each piece of news is nothing."""
    notifier = Notifier()
    notifier.ready("x")
    assert not notifier


def test_a_manager_that_is_gone_is_said_once(place, caplog):
    """It is no reason to stop serving, nor to fill the log."""
    notifier = Notifier(f"{place}/nobody")
    for _ in range(3):
        notifier.feed()
    [line] = caplog.records
    assert (line.action, f"NOTIFY_SOCKET={place}/nobody" in line.getMessage()) == ("notify_failed", True)


def test_an_address_of_another_kind_is_refused():
    """Paths and abstract names are all that there is."""
    with pytest.raises(ConfigError, match="NOTIFY_SOCKET=vsock:2:1: expected a path, or @"):
        Notifier("vsock:2:1")


def test_the_variables_are_gone_afterwards(manager):
    """What we start is no service: it inherits nothing of it, whether it could be used or not."""
    _, address = manager
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": OWN, "PATH": "/bin"}
    found = inherit(env)
    assert (found.watchdog_s, found.notifier.address, found.path, env) == (1.0, address, None, {"PATH": "/bin"})
    env = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a", "PATH": "/bin"}
    with pytest.raises(ConfigError):
        inherit(env)
    assert env == {"PATH": "/bin"}
