"""Where a verb looks for the daemon: as an agent would, unless the command line says otherwise."""

from __future__ import annotations

import os
import socket

import pytest
from click.testing import CliRunner

from agentd import ownership
from agentd.cli import main
from agentd.cli.options import find_socket
from agentd.errors import ConfigError, StateError

UID = 4242


@pytest.fixture
def listening(tmp_path):
    """A folder with a socket that somebody listens on."""
    (tmp_path / "agentd").mkdir()
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "agentd/agentd.sock"))
        yield tmp_path


def _config(folder, text):
    path = folder / "agentd.toml"
    path.write_text(text)
    return path


def test_the_configuration_named_on_the_command_line_comes_first(tmp_path):
    """`--config` wins over AGENTD_SOCKET."""
    path = _config(tmp_path, '[listen]\nsocket = "/from/file"\n')
    assert find_socket(path, {"AGENTD_SOCKET": "/from/env"}, UID) == "/from/file"


def test_agentd_socket_wins_over_a_configuration_lying_about(tmp_path):
    """Inside a sidecar, AGENTD_SOCKET names the sidecar's daemon; the host's configuration must not lead elsewhere."""
    path = _config(tmp_path, '[listen]\nsocket = "/from/file"\n')
    assert find_socket(None, {"AGENTD_SOCKET": "/from/env", "AGENTD_CONFIG": str(path)}, UID) == "/from/env"


def test_a_configuration_that_is_found_names_the_socket(tmp_path):
    """Without AGENTD_SOCKET the configuration in force says where the daemon listens."""
    path = _config(tmp_path, '[listen]\nsocket = "/from/file"\n')
    assert find_socket(None, {"AGENTD_CONFIG": str(path)}, UID) == "/from/file"


def test_a_broken_configuration_that_was_named_is_an_error(tmp_path):
    """A named configuration is not passed over in silence."""
    with pytest.raises(ConfigError):
        find_socket(tmp_path / "missing.toml", {}, UID)


@pytest.mark.parametrize("verb", [("config",), ("check",), ("run",), ("status",)])
def test_a_configuration_that_this_user_may_not_read_is_a_bad_configuration(tmp_path, monkeypatch, verb):
    """Exit code 78 and one sentence, as for any other bad configuration; it is no wrong use of the command line."""
    path = _config(tmp_path, "")
    may, read = os.access, ownership.read_checked
    monkeypatch.setattr(os, "access", lambda at, *rest, **more: str(at) != str(path) and may(at, *rest, **more))

    def closed(at, us, *, named):
        if at == path:
            raise PermissionError(13, "Permission denied", str(at))
        return read(at, us, named=named)

    monkeypatch.setattr("agentd.config.read_checked", closed)
    monkeypatch.setattr("faulthandler.enable", lambda *_: None)
    done = CliRunner().invoke(main, ["--config", str(path), *verb])
    assert done.exit_code == 78
    assert f"{path}: Permission denied" in done.output


def test_a_configuration_without_a_socket_leaves_it_to_the_usual_places(listening, monkeypatch):
    """A file that names no socket does not hide the daemon that does run."""
    path = _config(listening, "[batch]\nmax_events = 7\n")
    places = [f"{listening}/none.sock", f"{listening}/agentd/agentd.sock"]
    monkeypatch.setattr("agentd.client.find.client_socket_paths", lambda *_: places)
    assert find_socket(None, {"AGENTD_CONFIG": str(path)}, UID) == places[1]


def test_without_anything_the_places_are_named(tmp_path, monkeypatch):
    """Where nobody listens, the message names where it looked and what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "agentd.client.find.client_socket_paths", lambda *_: [f"{tmp_path}/a.sock", f"{tmp_path}/b.sock"]
    )
    with pytest.raises(StateError) as caught:
        find_socket(None, {"XDG_CONFIG_HOME": str(tmp_path)}, UID)
    assert str(caught.value) == (
        f"no daemon at {tmp_path}/a.sock (no such file or directory), {tmp_path}/b.sock (no such file or directory): "
        "start one with 'agentd run'"
    )
