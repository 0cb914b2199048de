"""Secrets in files: who else may read them, or put others in their place."""

from __future__ import annotations

import os

import pytest

from agentd.errors import ConfigError
from agentd.ownership import has_all_uids
from agentd.private import MAX_BYTES, read_private
from agentd.sections import Secret

NOBODY = 65534


@pytest.fixture
def key(tmp_path):
    tmp_path.chmod(0o700)
    path = tmp_path / "key"
    path.write_text("hunter2")
    path.chmod(0o600)
    return path


def refusal(path, **options):
    with pytest.raises(ConfigError) as caught:
        read_private(path, **options)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"
    return str(caught.value)


@pytest.fixture
def as_nobody(monkeypatch):
    """As a daemon that runs under a uid of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)


@pytest.mark.parametrize(("mode", "right"), [(0o600, True), (0o400, True), (0o640, False), (0o602, False)])
def test_what_others_may_read_or_write_is_refused(key, mode, right):
    """The mode has to leave everybody else out; the message says what to do."""
    key.chmod(mode)
    if right:
        assert read_private(key) == "hunter2"
    else:
        assert "others may read this secret; chmod 600 it" in refusal(key)


def test_a_file_of_somebody_else_is_refused(key, as_nobody):
    """Whoever owns the file may change it: our own uid and root alone may."""
    os.chown(key.parent, NOBODY, -1)
    os.chown(key, 1234, -1)
    assert "belongs to uid 1234" in refusal(key)
    for uid in (0, NOBODY):
        os.chown(key, uid, -1)
        assert read_private(key) == "hunter2"


def test_root_may_read_what_it_is_told(key):
    """The daemon of a root's configuration reads the key of whichever user it names."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(key, 1234, -1)
    assert read_private(key) == "hunter2"


def test_a_folder_that_others_may_write_to_is_refused(key):
    """Whoever may write there can put another file in its place; where the sticky bit is set only the owner can."""
    key.parent.chmod(0o777)
    assert "others may put another file in its place" in refusal(key)
    key.parent.chmod(0o1777)
    assert read_private(key) == "hunter2"


def test_a_link_is_followed_and_held_to_the_same(key, tmp_path, as_nobody):
    """Kubernetes mounts secrets as links; one of somebody else, or in a folder of somebody else's, leads nowhere."""
    os.chown(key.parent, NOBODY, -1)
    links = tmp_path / "links"
    links.mkdir(mode=0o700)
    link = links / "key"
    link.symlink_to(key)
    assert read_private(link) == "hunter2"
    os.chown(link, 1234, -1, follow_symlinks=False)
    assert "symbolic link of uid 1234" in refusal(link)
    os.chown(link, 0, -1, follow_symlinks=False)
    links.chmod(0o777)
    assert "others may put another file in its place" in refusal(link)


@pytest.mark.parametrize(("make", "reason"), [(os.mkfifo, "is no file"), (os.mkdir, "Is a directory")])
def test_what_is_no_file_is_refused_at_once(tmp_path, make, reason):
    """A FIFO that nobody writes to holds up no start."""
    tmp_path.chmod(0o700)
    make(tmp_path / "key", 0o600)
    assert reason in refusal(tmp_path / "key")


def test_a_secret_has_a_secrets_size(key):
    """What is larger is another file."""
    key.write_text("h" * MAX_BYTES)
    assert len(read_private(key)) == MAX_BYTES
    key.write_text("h" * (MAX_BYTES + 1))
    assert "no secret's size" in refusal(key)


def test_the_service_manager_sees_to_its_credentials(key):
    """systemd makes that folder for the service alone, with modes of its own."""
    key.chmod(0o440)
    assert Secret(credential="key").read({"CREDENTIALS_DIRECTORY": str(key.parent)}) == "hunter2"


@pytest.mark.parametrize("name", ["../key", "/etc/passwd", "..", ""])
def test_a_credential_is_a_name(name, tmp_path):
    """It leads nowhere else than into its folder."""
    with pytest.raises(ConfigError, match="expected a name without a path"):
        Secret(credential=name).read({"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_a_folder_of_a_stranger_on_the_way_is_refused(key, tmp_path, as_nobody):
    """However far above the file: who owns a folder there may rename what is in it."""
    if not has_all_uids():
        pytest.skip("not all users can be told apart here")
    far = tmp_path / "far" / "near"
    far.mkdir(parents=True)
    os.chown(far, NOBODY, -1)
    (far / "key").write_text("hunter2")
    (far / "key").chmod(0o600)
    assert read_private(far / "key") == "hunter2"
    os.chown(far.parent, 1234, -1)
    assert "belongs to uid 1234, who could put something else there" in refusal(far / "key")
