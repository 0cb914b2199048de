"""Who else could change what lies at a path."""

from __future__ import annotations

import os

import pytest

from agentd import ownership
from agentd.errors import StateError
from agentd.ownership import check_way, check_written, is_trusted, read_checked

ME = os.geteuid()


@pytest.fixture
def way(tmp_path):
    """A folder whose ancestors are fine."""
    check_way(tmp_path / "x", ME, "state folder")
    return tmp_path


def test_a_way_of_our_own_is_fine(way):
    """Also to what does not exist yet."""
    check_way(way / "a" / "b" / "c", ME, "state folder")


def test_a_folder_that_everybody_may_write_to_has_to_be_sticky(way):
    """In a sticky one nobody may take away what is another's."""
    (way / "open").mkdir()
    (way / "open").chmod(0o777)
    with pytest.raises(StateError, match=f"state folder .*everybody may write to {way}/open .*chmod o-w"):
        check_way(way / "open" / "state", ME, "state folder")
    (way / "open").chmod(0o1777)
    check_way(way / "open" / "state", ME, "state folder")


def test_a_link_is_looked_at_and_where_it_leads_to(way):
    """A link in a safe place into an unsafe one."""
    (way / "open").mkdir()
    (way / "open").chmod(0o777)
    (way / "link").symlink_to(way / "open")
    with pytest.raises(StateError, match="everybody may write"):
        check_way(way / "link" / "state", ME, "state folder")


def test_a_strangers_folder_is_no_way(way, monkeypatch):
    """Its owner may rename what is in it."""
    (way / "his").mkdir()
    if ME == 0:
        os.chown(way / "his", 4711, -1)
        with pytest.raises(StateError, match="belongs to uid 4711"):
            check_way(way / "his" / "state", ME, "state folder")
    monkeypatch.setattr(ownership, "is_trusted", lambda uid, us: False)
    with pytest.raises(StateError, match="belongs to uid"):
        check_way(way / "his" / "state", ME, "state folder")


def test_nobody_is_a_stranger_unless_everybody_has_a_number(monkeypatch):
    """In a user namespace root of the host appears as the overflow uid."""
    monkeypatch.setattr(ownership, "has_all_uids", lambda: True)
    assert [is_trusted(uid, 1000) for uid in (0, 1000, 1001, 65534)] == [True, True, False, False]
    monkeypatch.setattr(ownership, "has_all_uids", lambda: False)
    assert [is_trusted(uid, 1000) for uid in (0, 1000, 1001, 65534)] == [True, True, False, True]


@pytest.mark.parametrize("make", ["fifo", "hard link", "folder"])
def test_only_a_plain_file_of_ours_is_written(tmp_path, make):
    """Not another name of some other file, and nothing that is no file."""
    path = tmp_path / "lock"
    (tmp_path / "precious").write_text("precious")
    match make:
        case "fifo":
            os.mkfifo(path)
        case "hard link":
            os.link(tmp_path / "precious", path)
        case _:
            path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(StateError, match="take it away"):
            check_written(descriptor, path, ME)
    finally:
        os.close(descriptor)


def test_a_configuration_is_read_from_a_file_that_nobody_else_writes(tmp_path, monkeypatch):
    """World-writable never; a stranger's only where somebody has named it; a FIFO is not waited for."""
    path = tmp_path / "agentd.toml"
    path.write_text("x")
    path.chmod(0o664)
    assert read_checked(path, ME, named=False) == b"x"
    monkeypatch.setattr(ownership, "is_trusted", lambda uid, us: False)
    assert read_checked(path, ME, named=True) == b"x"
    with pytest.raises(StateError, match="--config"):
        read_checked(path, ME, named=False)
    path.chmod(0o666)
    for named in (False, True):
        with pytest.raises(StateError, match="chmod o-w"):
            read_checked(path, ME, named=named)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateError, match="no file"):
        read_checked(path, ME, named=False)
    assert read_checked(path, ME, named=True) == b""  # nobody writes: it is empty, and not waited for
