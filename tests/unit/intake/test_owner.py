"""Whose a TCP connection is: rows as the kernel writes them, and those that name nobody."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from agentd.intake.owner import uid_of

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
little = pytest.mark.skipif(sys.byteorder != "little", reason="the rows here were written on a little-endian machine")


class FakeSocket:
    def __init__(self, family, ours, theirs):
        self.family, self._ours, self._theirs = family, ours, theirs

    def getsockname(self):
        return self._ours

    def getpeername(self):
        if self._theirs is None:
            raise OSError(107, "Transport endpoint is not connected")
        return self._theirs


def connection(ours=("127.0.0.1", 4319), theirs=("127.0.0.1", 40000), family=socket.AF_INET):
    return FakeSocket(family, ours, theirs)


def row(local, remote, uid, inode=711595, state="01"):
    return f"  21: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} 2 0000000 20 0 0 10 -1\n"


OURS, THEIRS = (
    "0100007F:10DF",
    "0100007F:9C40",
)  # 127.0.0.1:4319 and 127.0.0.1:40000 as a little-endian machine writes them
MAPPED_OURS, MAPPED_THEIRS = (f"0000000000000000FFFF0000{end}" for end in (OURS, THEIRS))


@pytest.fixture
def tables(tmp_path):
    def write(tcp="", tcp6=None):
        (tmp_path / "tcp").write_text(HEAD + tcp)
        if tcp6 is not None:
            (tmp_path / "tcp6").write_text(HEAD + tcp6)
        return tmp_path

    return write


@little
def test_the_clients_own_row_names_the_owner(tables):
    """Its local end is our remote one; our own row, which looks the same the other way round, is another's."""
    rows = row(OURS, "00000000:0000", 7, state="0A") + row(OURS, THEIRS, 0) + row(THEIRS, OURS, 1001)
    assert uid_of(connection(), tables(rows)) == 1001


@little
@pytest.mark.parametrize("state", ["04", "05", "06"])
def test_a_row_without_an_inode_is_nobodys(tables, state):
    """A socket that its process has closed shows uid 0: that is nobody, and not root."""
    assert uid_of(connection(), tables(row(THEIRS, OURS, 0, inode=0, state=state))) == -1


@little
def test_a_dead_row_hides_no_live_one(tables):
    """Behind the row of a connection that has ended the one that lives is found."""
    rows = row(THEIRS, OURS, 0, inode=0, state="06") + row(THEIRS, OURS, 1001)
    assert uid_of(connection(), tables(rows)) == 1001


@little
def test_a_port_is_not_taken_for_a_longer_one(tables):
    """Addresses are compared whole."""
    rows = row("0100007F:9C41", OURS, 1) + row(THEIRS, "0100007F:10DE", 2) + row("0200007F:9C40", OURS, 3)
    assert uid_of(connection(), tables(rows)) == -1


@little
def test_an_ipv6_socket_that_speaks_ipv4_is_in_the_other_table(tables):
    """An IPv4 connection may be an IPv6 socket's, under its mapped address."""
    assert uid_of(connection(), tables("", row(MAPPED_THEIRS, MAPPED_OURS, 1002))) == 1002


@little
def test_ipv6(tables):
    """`::1` is four words, each in the machine's order."""
    one = "00000000000000000000000001000000"
    rows = row(f"{one}:9C40", f"{one}:10DF", 1003)
    ends = [("::1", 4319, 0, 0), ("::1", 40000, 0, 0)]
    assert uid_of(connection(*ends, family=socket.AF_INET6), tables("", rows)) == 1003


def test_without_tables_nobody_is_known(tmp_path):
    """A container that hides its network, and a connection that has gone, are -1 and no error."""
    assert uid_of(connection(), tmp_path) == -1
    assert uid_of(connection(theirs=None), tmp_path) == -1


def test_the_kernel_that_runs_this_is_read(tables):
    """A real connection to ourselves is ours."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            assert uid_of(accepted) == os.geteuid()
            client.close()
            assert uid_of(accepted) == -1
