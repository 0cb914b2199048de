"""`agentd check`: each thing that would keep the daemon from running is found before it runs."""

from __future__ import annotations

import json
import os
import socket
import sys
import types
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.check import examine
from agentd.errors import ConfigError
from agentd.sections import Config, Destination, Duration, Listen, Loaded, Runs, Secret, Shutdown, SpoolConfig

UID = os.getuid()


@pytest.fixture(autouse=True)
def platforms(monkeypatch):
    """One platform that is known, so that these tests are about the checks."""

    def load(name):
        if name not in calls:
            raise ConfigError(f"unknown platform {name!r}; known: agentos")
        return types.SimpleNamespace(
            name=name, default_base_url=default_base_url, calls=calls[name], options={"shape": ("a", "b")}
        )

    calls = {"agentos": ("run.start", "event"), "gateonly": ()}

    default_base_url = "https://platform.example"
    module = types.ModuleType("agentd.platforms")
    module.load = load
    monkeypatch.setitem(sys.modules, "agentd.platforms", module)
    monkeypatch.setattr("agentd.platforms", module, raising=False)


@pytest.fixture(autouse=True)
def disk(monkeypatch, tmp_path_factory):
    """A list of mounts with an ordinary disk: what these tests run on may be in memory, or a container's layer."""
    mountinfo = tmp_path_factory.mktemp("proc") / "mountinfo"
    mountinfo.write_text("1 0 0:1 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr("agentd.filesystems.look.__defaults__", (mountinfo,))
    return mountinfo


@pytest.fixture
def sound(tmp_path):
    """A configuration with nothing to complain about."""
    (tmp_path / "key").write_text("very-secret")
    (tmp_path / "key").chmod(0o600)
    return Config(
        listen=Listen(socket=str(tmp_path / "run/agentd.sock")),
        spool=SpoolConfig(directory=str(tmp_path / "state")),
        destinations={
            "agentos": Destination("agentos", "http://127.0.0.1:1", api_key=Secret(file=str(tmp_path / "key")))
        },
    )


def _complaints(config, env=None, uid=UID):
    findings = examine(Loaded(config, "agentd.toml"), env or {}, uid)
    return [(finding.level, finding.message) for finding in findings if finding.level != "ok"]


def _with(config, **changes):
    return msgspec.structs.replace(config, **changes)


def _enough_room(monkeypatch):
    monkeypatch.setattr("agentd.cli.check.shutil.disk_usage", lambda _: types.SimpleNamespace(free=2**40))


def test_nothing_to_complain_about(sound, monkeypatch):
    """A sound configuration gets nothing but ok, and nothing is created by looking."""
    _enough_room(monkeypatch)
    assert _complaints(sound) == []
    assert not Path(sound.spool.directory).exists()


def test_a_socket_path_that_is_too_long(sound):
    """A path beyond what the kernel takes is found here, not at start."""
    [(_, message)] = [c for c in _complaints(_with(sound, listen=Listen(socket="/" + "x" * 107))) if c[0] == "error"]
    assert "108 bytes, a socket's path holds 107" in message


def test_something_else_in_the_sockets_place(sound, tmp_path):
    """A file where the socket should be would never be replaced."""
    (tmp_path / "file").write_text("")
    complaints = _complaints(_with(sound, listen=Listen(socket=str(tmp_path / "file"))))
    assert ("error", f"{tmp_path}/file: a file is in the socket's place") in complaints


def test_a_group_that_does_not_exist(sound):
    """The socket could not be given to it."""
    listen = msgspec.structs.replace(sound.listen, group="no-such-group-here")
    assert ("error", "group 'no-such-group-here': there is none of that name") in _complaints(
        _with(sound, listen=listen)
    )


def test_a_socket_for_everyone_is_worth_a_warning(sound):
    """Mode 0666 may be meant, but is said."""
    listen = msgspec.structs.replace(sound.listen, mode="0666")
    assert any(
        level == "warning" and "every user" in message for level, message in _complaints(_with(sound, listen=listen))
    )


def test_a_state_folder_that_others_may_read(sound, tmp_path):
    """Records are not for everyone; the cure is in the message."""
    (tmp_path / "state").mkdir(mode=0o755)
    assert any("chmod 700" in message for level, message in _complaints(sound) if level == "error")


def test_a_state_folder_of_somebody_else(sound, tmp_path):
    """The daemon would refuse a folder that is not its own."""
    (tmp_path / "state").mkdir(mode=0o700)
    assert any("belongs to uid" in message for level, message in _complaints(sound, uid=UID + 1) if level == "error")


def test_a_state_folder_that_is_a_file(sound, tmp_path):
    """A file in the folder's place is named."""
    (tmp_path / "state").write_text("")
    assert ("error", f"{tmp_path}/state: is no folder") in _complaints(sound)


@pytest.mark.parametrize(
    ("kind", "level", "says"),
    [
        ("nfs4", "error", "network file system (nfs4 at /)"),
        ("tmpfs", "warning", "is in memory"),
        ("overlay", "warning", "gone with the container"),
    ],
)
def test_a_spool_that_may_not_last(sound, disk, kind, level, says):
    """Promise 1: a network file system is refused, what ends with machine or container is warned of."""
    disk.write_text(f"1 0 0:1 / / rw - {kind} x rw\n")
    [(found, message)] = [each for each in _complaints(sound) if says in each[1]]
    assert found == level
    assert message.startswith(sound.spool.directory)


def test_a_pods_volume_is_told(sound, disk, tmp_path):
    """An emptyDir is no complaint; how long it lasts is said."""
    disk.write_text(f"1 0 0:1 /pods/1/volumes/kubernetes.io~empty-dir/state {tmp_path} rw - ext4 x rw\n")
    assert not [each for each in _complaints(sound) if "emptyDir" in each[1]]
    said = [finding.message for finding in examine(Loaded(sound, None), {}, UID)]
    assert f"{sound.spool.directory} is an emptyDir: what waits outlives the container and ends with the pod" in said


def test_a_spool_larger_than_the_disk(sound, monkeypatch):
    """More quota than free space is a warning: the queue would end before its limit."""
    monkeypatch.setattr("agentd.cli.check.shutil.disk_usage", lambda _: types.SimpleNamespace(free=2**20))
    assert any(level == "warning" and "1.0 MiB free" in message for level, message in _complaints(sound))


def test_settings_that_promise_less(sound, monkeypatch):
    """`sync = "normal"`, a drain beyond systemd's patience and a short memory for runs are said aloud."""
    _enough_room(monkeypatch)
    weak = _with(
        sound,
        spool=msgspec.structs.replace(sound.spool, sync="normal"),
        shutdown=Shutdown(drain_timeout=Duration(120)),
        runs=Runs(keep=Duration(1)),
    )
    assert [level for level, _ in _complaints(weak)] == ["warning"] * 3


def test_no_destination_says_what_to_set(sound):
    """Without a destination every record would be refused."""
    assert any(
        "AGENTOS_API_KEY" in message and "AEGIS_API_KEY" in message
        for level, message in _complaints(_with(sound, destinations={}))
        if level == "error"
    )


def test_an_unknown_platform_names_the_known_ones(sound):
    """The message is the platforms' own."""
    complaints = _complaints(_with(sound, destinations={"x": Destination("agentso")}))
    assert ("error", "unknown platform 'agentso'; known: agentos") in complaints


def test_a_kind_that_the_platform_does_not_take(sound):
    """`accept` can't make a platform take what it does not know."""
    destinations = {"agentos": Destination("agentos", accept=["event", "decision"])}
    wanted = ("error", "accept: agentos does not take decision; it takes run.start, event")
    assert wanted in _complaints(_with(sound, destinations=destinations))


@pytest.mark.parametrize("options", [{"shape": "c"}, {"form": "a"}])
def test_a_variant_that_the_platform_does_not_have(sound, options):
    """An option or a value that its adapter does not know would keep the daemon from starting; the known ones are listed."""
    found = msgspec.structs.replace(sound.destinations["agentos"], options=options)
    ((name, value),) = options.items()
    wanted = ("error", f"options: {name} = {value!r}: agentos knows shape = a | b")
    assert wanted in _complaints(_with(sound, destinations={"agentos": found}))


def test_a_destination_for_gates_only_is_said_aloud(sound, monkeypatch):
    """`accept = []` may be meant: a warning, and no reason not to run. A platform that takes no record is no news."""
    _enough_room(monkeypatch)
    key = sound.destinations["agentos"].api_key
    said = "takes gates only: no record will be queued for it"
    nothing = _with(sound, destinations={"x": Destination("agentos", accept=[], api_key=key)})
    assert _complaints(nothing) == [("warning", said)]
    assert _complaints(_with(sound, destinations={"x": Destination("gateonly", api_key=key)})) == []


def test_a_platform_for_gates_only_takes_no_kind(sound):
    """`accept` can't make it take one, and the message says what it does take."""
    destinations = {"x": Destination("gateonly", accept=["event"])}
    wanted = ("error", "accept: gateonly does not take event; it takes gates only")
    assert wanted in _complaints(_with(sound, destinations=destinations))


def test_a_signing_secret_is_looked_at_like_a_key(sound, monkeypatch):
    """A signing secret that can't be read would keep the daemon from starting; one that can is named by its place."""
    _enough_room(monkeypatch)
    found = msgspec.structs.replace(sound.destinations["agentos"], signing_secret=Secret(env="SIGN"))
    config = _with(sound, destinations={"agentos": found})
    assert _complaints(config) == [("error", "the variable SIGN is not set or empty")]
    findings = examine(Loaded(config, "agentd.toml"), {"SIGN": "hush"}, UID)
    assert [f.message for f in findings if "_secret from" in f.message] == ["signing_secret from env SIGN"]


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (Secret(env="NOT_SET"), "NOT_SET is not set"),
        (Secret(file="/no/such/file"), "No such file"),
        (Secret(credential="k"), "LoadCredential"),
    ],
)
def test_a_secret_that_can_not_be_read(sound, secret, message):
    """The place is named."""
    destinations = {"agentos": Destination("agentos", api_key=secret)}
    assert any(
        message in text for level, text in _complaints(_with(sound, destinations=destinations)) if level == "error"
    )


def test_a_destination_without_a_key(sound, monkeypatch):
    """The daemon would not start without a place to find the key in."""
    _enough_room(monkeypatch)
    destinations = {"agentos": Destination("agentos")}
    assert _complaints(_with(sound, destinations=destinations)) == [
        ("error", 'api_key is missing: say api_key = { env = "VARIABLE" } or { file = "/path" }')
    ]


@pytest.fixture
def file(sound, tmp_path):
    path = tmp_path / "agentd.toml"
    path.write_text(
        f'[listen]\nsocket = "{sound.listen.socket}"\n[spool]\ndirectory = "{sound.spool.directory}"\nmax_bytes = "1MiB"\n'
        f'[destinations.agentos]\nplatform = "agentos"\napi_key = {{ file = "{tmp_path}/key" }}\n'
    )
    return path


def test_the_verb_prints_a_line_per_finding_and_no_secret(file):
    """Exit 0, a line each, and the secret itself nowhere."""
    result = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert result.exit_code == 0
    assert all(line.startswith("ok ") for line in result.output.splitlines())
    assert f"api_key from file {file.parent}/key" in result.output
    assert "very-secret" not in result.output


def test_an_error_among_the_findings_is_78(file):
    """What would not run ends with 78; --json is an array of findings."""
    (file.parent / "key").unlink()
    result = CliRunner().invoke(main, ["check", "--config", str(file), "--json"])
    assert result.exit_code == 78
    assert [f["about"] for f in json.loads(result.stdout) if f["level"] == "error"] == ["[destinations.agentos]"]


def test_the_way_out_is_shown(sound):
    """Through which proxy and where that was set, without its password; a file that can't be read is an error by its key."""
    found = Config(
        listen=sound.listen,
        spool=sound.spool,
        destinations={
            "agentos": msgspec.structs.replace(sound.destinations["agentos"], base_url="https://platform.example")
        },
    )
    env = {"HTTPS_PROXY": "http://ann:hunter22@proxy:3128"}
    lines = [finding.message for finding in examine(Loaded(found, "agentd.toml"), env, UID)]
    assert "through the proxy http://proxy:3128 (HTTPS_PROXY)" in lines
    assert not any("hunter22" in line for line in lines)
    assert _complaints(found, {"HTTPS_PROXY": "socks5://ann:hunter22@proxy"}) == [
        ("error", "HTTPS_PROXY: socks5:// proxies are not supported; expected http://host:port or https://host:port")
    ]
    wrong = msgspec.structs.replace(found.destinations["agentos"], ca_file="/nowhere.pem")
    found = msgspec.structs.replace(found, destinations={"agentos": wrong})
    assert _complaints(found) == [("error", "ca_file: /nowhere.pem: No such file or directory")]


def test_a_socket_that_the_service_manager_holds_is_fine(sound, tmp_path, monkeypatch):
    """Socket activation: the folder is root's, the socket is there already, and is passed at the start."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "agentd.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        monkeypatch.setattr("agentd.cli.check.os.access", lambda place, _mode: place != folder)
        assert _complaints(sound) == []
        path.unlink()
        assert _complaints(sound) == [("error", f"{folder}: this user may not write here")]
