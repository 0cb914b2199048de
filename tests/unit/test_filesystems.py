"""Where records may be kept: real lines of mountinfo(5), and a real tmpfs."""

import os
import subprocess
from pathlib import Path

import pytest

from agentd.errors import StateError
from agentd.filesystems import Mount, is_pods_own, judge, look, mount_of, mounts_in, refuse_network

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime shared:1 - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:45 / /var/lib rw,relatime - nfs4 nas:/export rw,vers=4.2
41 27 0:46 / /mnt/two\040words rw,relatime shared:7 master:2 - cifs //nas/share rw
42 27 254:0 /var/lib/kubelet/pods/7d1f/volumes/kubernetes.io~empty-dir/agentd /var/agentd rw - ext4 /dev/vda rw
43 27 0:50 / /again rw - nfs nas:/a rw
44 43 0:51 / /again rw - tmpfs tmpfs rw,size=1024k
half a line
"""
MOUNTS = mounts_in(MOUNTINFO)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/library", "ext4"),  # a name that only begins like a mount point
        ("/var/lib", "nfs4"),
        ("/var/lib/agentd/spool", "nfs4"),
        ("/mnt/two words/x", "cifs"),
        ("/proc/self", "proc"),
        ("/again/x", "tmpfs"),  # mounted over another
    ],
)
def test_the_deepest_and_latest_mount_is_the_one(path, kind):
    """A path lies on the mount whose point is the longest way to it, and of two at one point on the later."""
    assert mount_of(path, MOUNTS).kind == kind


def test_nothing_is_said_of_what_is_not_known():
    """Without a list of mounts, or with one that holds nothing above the path, there is neither fault nor warning."""
    assert mount_of("/x", []) is None
    assert judge("/x", None) == judge("/x", None).__class__()
    assert look(Path("/"), Path("/nonexistent/mountinfo")).kind == ""


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.gcsfuse"],
)
def test_a_network_file_system_is_refused(kind):
    """Promise 1: where neither lock nor sync can be relied on nothing is acknowledged."""
    found = judge("/var/lib/agentd", Mount("/var/lib", kind))
    assert f"({kind} at /var/lib)" in found.fault
    assert found.warning == ""


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("tmpfs", "in memory"),
        ("ramfs", "in memory"),
        ("overlay", "gone with the container"),
        ("fuse.fuse-overlayfs", "gone with the container"),
        ("9p", "served by another program"),
        ("virtiofs", "served by another program"),
        ("fuse.something", "served by another program"),
    ],
)
def test_a_place_that_may_not_last_is_warned_of(kind, says):
    """What does not survive machine or container, and what somebody else syncs, is taken and said."""
    found = judge("/s", Mount("/", kind))
    assert says in found.warning
    assert found.fault == ""


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "fuseblk", "bcachefs"])
def test_a_disk_is_nothing_to_talk_about(kind):
    """The usual file systems of a machine are taken in silence."""
    found = judge("/s", Mount("/", kind))
    assert (found.fault, found.warning, found.note) == ("", "", "")


def test_an_empty_dir_is_known_by_its_root():
    """Kubernetes' emptyDir outlives the container: a note, no warning."""
    found = judge("/var/agentd", mount_of("/var/agentd", MOUNTS))
    assert "ends with the pod" in found.note
    assert found.warning == ""


def test_a_folder_that_is_still_to_be_made_is_judged_by_the_one_above(tmp_path):
    """Links are followed, and what does not exist yet will lie where its parent does."""
    target = tmp_path / "real"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {target.resolve()} rw - nfs b rw\n")
    assert look(tmp_path / "link/state/deep", mountinfo).kind == "nfs"
    assert look(tmp_path / "other", mountinfo).kind == "ext4"


def test_the_daemon_refuses_and_warns(tmp_path, monkeypatch, caplog):
    """A start on a network file system raises before anything is made there; one in memory is said in the log."""
    mountinfo = tmp_path / "mountinfo"
    monkeypatch.setattr("agentd.filesystems.look.__defaults__", (mountinfo,))
    mountinfo.write_text("1 0 0:1 / / rw - nfs4 a rw\n")
    with pytest.raises(StateError, match="network file system"):
        refuse_network(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    mountinfo.write_text("1 0 0:1 / / rw - tmpfs a rw\n")
    refuse_network(tmp_path / "state")
    assert [record.action for record in caplog.records] == ["volatile_state"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_real_tmpfs_is_known(tmp_path):
    """What the kernel says of a mount made here and now, with a blank in its name."""
    place = tmp_path / "in memory"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "agentd-test", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    try:
        assert look(place / "state").kind == "tmpfs"
        assert "in memory" in look(place / "state").warning
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert look(place / "state").kind != "tmpfs" or look(tmp_path).kind == "tmpfs"


def test_only_the_top_of_an_empty_dir_is_the_pods_own(tmp_path):
    """Its mode is Kubernetes' choice; a folder within it, and a mount of anything else, is what it looks like."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTINFO)
    assert is_pods_own(Path("/var/agentd"), mountinfo)
    assert not is_pods_own(Path("/var/agentd/state"), mountinfo)
    assert not is_pods_own(Path("/var/lib"), mountinfo)
    assert not is_pods_own(Path("/var/agentd"), tmp_path / "none")
