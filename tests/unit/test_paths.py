"""Where daemon and client look for each other."""

from __future__ import annotations

import pytest

from agentd.paths import client_socket_paths, socket_path, state_directory


@pytest.mark.parametrize(
    ("env", "uid", "path"),
    [
        (
            {"AGENTD_SOCKET": "/x/y.sock", "RUNTIME_DIRECTORY": "/run/a", "XDG_RUNTIME_DIR": "/run/user/5"},
            5,
            "/x/y.sock",
        ),
        ({"AGENTD_SOCKET": "", "RUNTIME_DIRECTORY": "/run/agentd"}, 5, "/run/agentd/agentd.sock"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, 5, "/run/a/agentd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/agentd/agentd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/5"}, 5, "/run/user/5/agentd/agentd.sock"),
        ({"XDG_RUNTIME_DIR": ""}, 5, "/tmp/agentd-5/agentd.sock"),
        ({}, 5, "/tmp/agentd-5/agentd.sock"),
    ],
)
def test_the_socket(env, uid, path):
    """AGENTD_SOCKET, else /run/agentd as root or under systemd, else the user's runtime folder, else /tmp."""
    assert socket_path(env, uid) == path


@pytest.mark.parametrize(
    ("env", "uid", "paths"),
    [
        ({"AGENTD_SOCKET": "/x.sock"}, 5, ["/x.sock"]),
        ({}, 0, ["/run/agentd/agentd.sock"]),
        ({"XDG_RUNTIME_DIR": "/run/user/5"}, 5, ["/run/user/5/agentd/agentd.sock", "/run/agentd/agentd.sock"]),
        ({}, 5, ["/tmp/agentd-5/agentd.sock", "/run/agentd/agentd.sock"]),
    ],
)
def test_a_client_looks_in_the_same_places(env, uid, paths):
    """The user's own daemon first, then the host's service; a socket that was named is the only one."""
    assert client_socket_paths(env, uid) == paths


@pytest.mark.parametrize(
    ("env", "uid", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, 0, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/home/x/s"}, 0, "/var/lib/agentd"),
        ({"XDG_STATE_HOME": "/home/x/s"}, 5, "/home/x/s/agentd"),
        ({"HOME": "/home/x"}, 5, "/home/x/.local/state/agentd"),
    ],
)
def test_the_state_folder(env, uid, path):
    """STATE_DIRECTORY, else /var/lib/agentd as root, else XDG_STATE_HOME/agentd."""
    assert state_directory(env, uid) == path
