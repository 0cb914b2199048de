"""`agentd install-service`: units with the right paths, nothing overwritten in silence, nothing that the service could not see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentd.cli import install_service as verb
from agentd.cli import main
from agentd.cli import service_files as files
from agentd.cli.install_service import is_ours, refuse_closed, refuse_hidden, stamped, word
from agentd.errors import StateError

ROOT = Path(__file__).parents[3]
SYSTEM = files.Facts("/usr/bin/agentd", "/etc/agentd/agentd.toml")
USER = files.Facts("/usr/bin/agentd", "%E/agentd/agentd.toml", user=True)
UNITS = ("etc/systemd/system/agentd.socket", "etc/systemd/system/agentd.service", "etc/sysusers.d/agentd.conf")


@pytest.fixture
def install(tmp_path):
    """Call the verb for a root of its own."""

    def call(*arguments, code=0, **env):
        words = ["install-service", "--root", str(tmp_path), "--command", "/usr/bin/agentd", *arguments]
        done = CliRunner(env={"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": None, **env}).invoke(main, words)
        assert done.exit_code == code, done.output
        return done.output

    call.root = tmp_path
    return call


# -- the files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("agentd.service", files.service(SYSTEM)),
        ("agentd.socket", files.socket(SYSTEM)),
        ("agentd.sysusers.conf", files.sysusers()),
        ("user/agentd.service", files.service(USER)),
        ("user/agentd.socket", files.socket(USER)),
    ],
)
def test_the_repository_holds_what_is_written(name, text):
    """`systemd/` is for packagers and readers: the same texts, for an agentd in /usr/bin."""
    assert (ROOT / "systemd" / name).read_text() == text


def test_keys_become_lines_of_the_unit():
    """One LoadCredential= for each, from the folder beside the configuration."""
    text = files.service(files.Facts("/opt/a/bin/agentd", "/etc/agentd/agentd.toml", ["agentos", "token"]))
    assert "LoadCredential=agentos:/etc/agentd/credentials/agentos\nLoadCredential=token:/etc/agentd/" in text
    assert "# LoadCredential" not in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_them(tmp_path):
    """`verify` for both kinds, and an exposure of 1.4 or better."""
    command = tmp_path / "agentd"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for kind, facts in (("system", SYSTEM), ("user", USER)):
        folder = tmp_path / kind
        folder.mkdir()
        text = files.service(facts).replace("/usr/bin/agentd", str(command))
        (folder / files.SERVICE).write_text(text)
        (folder / files.SOCKET).write_text(files.socket(facts))
        units = [str(folder / name) for name in (files.SERVICE, files.SOCKET)]
        done = subprocess.run(
            ["systemd-analyze", f"--{kind}", "verify", "--man=no", "--recursive-errors=no", *units],
            capture_output=True, text=True, check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"},
        )  # fmt: skip
        assert (done.returncode, done.stderr.replace("\n", "")) == (0, ""), kind
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=14", str(tmp_path / "system/agentd.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/opt/agentd/bin/agentd", "/opt/agentd/bin/agentd"),
        ("/opt/my agents/agentd", '"/opt/my agents/agentd"'),
        ("/opt/100%/a$b", "/opt/100%%/a$$b"),
        ('/opt/a"b', '"/opt/a\\"b"'),
    ],
)
def test_a_path_is_one_word_of_a_command_line(path, written):
    """systemd's own quoting: percent and dollar mean something there."""
    assert word(path) == written


# -- writing -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_all_and_writes_nothing(install):
    """Each file with its text; the folder stays empty."""
    said = install("--dry-run")
    assert [f"/{name}: new" in said for name in UNITS] == [True] * 3
    assert "+ExecStart=/usr/bin/agentd --config /etc/agentd/agentd.toml run" in said
    assert list(install.root.iterdir()) == []


def test_it_writes_once_and_then_finds_nothing_to_do(install):
    """Idempotent: the second call leaves every file as it is."""
    install()
    before = {name: (install.root / name).stat() for name in UNITS}
    assert install().count(": unchanged") == 3
    assert {name: (install.root / name).stat() for name in UNITS} == before
    assert all(found.st_mode & 0o777 == 0o644 for found in before.values())


def test_what_somebody_changed_is_shown_and_left(install):
    """Exit code 1, all or nothing; `--force` is how to say that it may go."""
    install()
    unit, socket = install.root / UNITS[1], install.root / UNITS[0]
    unit.write_text(unit.read_text().replace("RestartSec=2", "RestartSec=9"))
    socket.unlink()
    said = install(code=1)
    assert ("agentd.service: changed by hand" in said, "-RestartSec=9" in said, "+RestartSec=2" in said) == (True,) * 3
    assert "nothing is written; move your settings to 'systemctl edit'" in said
    assert not socket.exists()
    install("--force")
    assert ("RestartSec=2\n" in unit.read_text(), socket.exists()) == (True, True)


def test_a_unit_of_somebody_else_is_left_too(install):
    """A file that carries no stamp of ours was written by hand, whatever it holds."""
    unit = install.root / UNITS[1]
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert "changed by hand" in install(code=1)
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_a_newer_agentd_replaces_what_an_older_one_wrote(install):
    """What carries the stamp of its own text was changed by nobody."""
    install()
    unit = install.root / UNITS[1]
    unit.write_text(stamped("[Service]\n# of an older agentd\n"))
    assert "agentd.service: updated" in install()
    assert is_ours(unit.read_text())
    assert "of an older agentd" not in unit.read_text()


def test_packagers_get_their_own_places(install):
    """`--prefix /usr` is where a distribution's units lie, and no word about what is to be done next."""
    said = install("--prefix", "/usr")
    install("--prefix", "/usr", "--user")
    found = sorted(str(path.relative_to(install.root)) for path in install.root.rglob("*") if path.is_file())
    assert found == [
        "usr/lib/systemd/system/agentd.service",
        "usr/lib/systemd/system/agentd.socket",
        "usr/lib/systemd/user/agentd.service",
        "usr/lib/systemd/user/agentd.socket",
        "usr/lib/sysusers.d/agentd.conf",
    ]
    assert "next:" not in said


def test_the_credentials_of_the_configuration_are_loaded(install):
    """Those that it names, wherever it names them; a wrong configuration is an error before anything is written."""
    config = install.root / "etc/agentd/agentd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[listen]\nhttp = "127.0.0.1:4319"\n[[security.tokens]]\ntoken = { credential = "local" }\n'
        '[destinations.agentos]\nplatform = "agentos"\nagent_id = "a"\napi_key = { credential = "agentos" }\n'
        'base_url = "http://127.0.0.1:1/agentos"\n'
    )
    install()
    unit = (install.root / UNITS[1]).read_text()
    assert [line.partition(":")[0] for line in unit.splitlines() if line.startswith("LoadCredential=")] == [
        "LoadCredential=local",
        "LoadCredential=agentos",
    ]
    config.write_text("[listn]\n")
    assert "section 'listn' is unknown" in install(code=78)


def test_a_users_units_are_in_the_users_place(tmp_path, monkeypatch):
    """`--user` writes below XDG_CONFIG_HOME and says the commands of one's own manager."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = CliRunner().invoke(main, ["install-service", "--user"])
    assert done.exit_code == 0, done.output
    unit = (tmp_path / "systemd/user/agentd.service").read_text()
    assert f"ExecStart={word(str(Path(sys.prefix, 'bin', 'agentd')))} --config %E/agentd/agentd.toml run" in unit
    assert "User=" not in unit
    assert "systemctl --user enable --now agentd.socket agentd.service" in done.output
    assert f"write {tmp_path}/agentd/agentd.toml" in done.output
    assert not (tmp_path / "sysusers.d").exists()


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    """With the way out; here a file is in the folder's place."""
    (tmp_path / "etc").write_text("")
    done = CliRunner().invoke(main, ["install-service", "--root", str(tmp_path), "--command", "/usr/bin/agentd"])
    assert (done.exit_code, "the host's units are root's" in done.output) == (1, True)


# -- what the service can see --------------------------------------------------------------------------------------------


def test_what_the_service_could_not_see_is_refused(tmp_path):
    """Homes and temporary folders, also behind a link, whose target counts."""
    link = tmp_path / "python"
    link.symlink_to("/home/somebody/.pyenv/bin/python3")
    for path, place in (
        ("/root/venv/bin/agentd", "/root"),
        ("/home/me/venv/bin/agentd", "/home"),
        ("/tmp/v/agentd", "/tmp"),
    ):
        with pytest.raises(StateError, match=f"the service can't see {place} "):
            refuse_hidden([path])
    with pytest.raises(StateError, match=r"the service can't see /(home|tmp) "):
        refuse_hidden([str(link)])


def test_what_its_user_could_not_read_is_refused(tmp_path, monkeypatch):
    """A folder on the way that is closed to others is named."""
    file = tmp_path / "closed" / "agentd"
    file.parent.mkdir()
    file.touch(0o644)
    monkeypatch.setattr(verb, "_is_open", lambda place: place != file.parent)
    with pytest.raises(StateError, match=f"{file.parent}: others may not read it"):
        refuse_closed([str(file)])
    refuse_closed([str(tmp_path)])


@pytest.mark.parametrize(("mode", "is_open"), [(0o755, True), (0o711, True), (0o750, False), (0o700, False)])
def test_a_folder_is_open_that_others_may_pass_through(tmp_path, mode, is_open):
    """Execution for folders, reading for files."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    folder.chmod(mode)
    file.touch()
    file.chmod(0o644 if is_open else 0o640)
    assert (verb._is_open(folder), verb._is_open(file)) == (is_open, is_open)


def test_a_package_s_root_is_no_part_of_its_paths(tmp_path, monkeypatch):
    """What is installed below `--root` starts the agentd that lies there once that is the root."""
    (tmp_path / "opt/agentd/bin").mkdir(parents=True)
    (tmp_path / "opt/agentd/bin/agentd").touch()
    monkeypatch.setattr(verb.sysconfig, "get_path", lambda _name: str(tmp_path / "opt/agentd/bin"))
    done = CliRunner().invoke(main, ["install-service", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "ExecStart=/opt/agentd/bin/agentd --config" in (tmp_path / UNITS[1]).read_text()


def test_an_interpreter_of_a_home_is_refused_for_the_host(monkeypatch, tmp_path):
    """The verb itself looks at this installation: command, interpreter, library, what agentd needs."""
    monkeypatch.setattr(verb, "_own_files", lambda: ["/root/.pyenv/versions/3.11.7/bin/python3"])
    monkeypatch.setattr(verb, "_write", lambda file: pytest.fail(f"{file.path} was written"))
    done = CliRunner().invoke(main, ["install-service"])
    assert (done.exit_code, "/usr/bin/python3 -m venv /opt/agentd" in done.output) == (1, True)
    assert all(Path(path).is_absolute() for path in verb._own_files())
