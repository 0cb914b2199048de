"""The group: verbs are found by name and loaded when called; errors become exit codes."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from agentd import __version__, cli
from agentd.cli import VERBS, LazyGroup, main
from agentd.errors import AgentdError, ConfigError, StateError, UsageError


def _group(monkeypatch, error):
    """A group whose one verb raises."""

    @click.command()
    def failing():
        raise error

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: failing)
    return main


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    """Each verb in the table exists under its name and has a help text."""
    result = CliRunner().invoke(main, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Usage: main {verb}" in result.output


def test_help_names_all_verbs():
    """`agentd --help` lists what there is."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert [word for word in VERBS if f"\n  {word}" not in result.output] == []


def test_version():
    """`agentd --version` prints the version."""
    assert CliRunner().invoke(main, ["--version"]).output == f"agentd, version {__version__}\n"


def test_an_unknown_verb_is_a_usage_error():
    """A verb that does not exist ends with 2."""
    result = CliRunner().invoke(main, ["frobnicate"])
    assert result.exit_code == 2
    assert "frobnicate" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [(AgentdError("a"), 1), (StateError("a"), 1), (UsageError("a"), 2), (ConfigError("a"), 78)],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_its_exit_code(monkeypatch, error, code):
    """Whatever agentd raises becomes one line on standard error and the class's exit code."""
    result = CliRunner().invoke(_group(monkeypatch, error), ["failing"])
    assert (result.exit_code, result.output) == (code, "agentd: a\n")


def test_a_message_of_several_lines_is_printed_as_one(monkeypatch):
    """One line, so that log collectors keep it together."""
    result = CliRunner().invoke(_group(monkeypatch, StateError("first\n  second")), ["failing"])
    assert result.output == "agentd: first second\n"


def test_ctrl_c_is_130(monkeypatch):
    """An interrupted verb ends as shells expect of SIGINT."""
    result = CliRunner().invoke(_group(monkeypatch, KeyboardInterrupt()), ["failing"])
    assert (result.exit_code, result.output) == (130, "")


def test_a_light_verb_loads_no_heavy_library():
    """`agentd emit` in a shell loop does not pay for the daemon's libraries or for other verbs."""
    heavy = "aiohttp diskcache rich prometheus_client agentd.sandbox agentd.cli.demo asyncio"
    code = (
        "import sys; from agentd.cli import main; main(['emit', 'nonsense'], standalone_mode=False); "
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("words", [["--config", "{path}", "config"], ["config", "--config", "{path}"]])
def test_config_may_stand_before_or_after_the_verb(tmp_path, words):
    """`--config PATH` means the same on either side of the verb."""
    path = tmp_path / "my.toml"
    path.write_text("[batch]\nmax_events = 7\n")
    result = CliRunner().invoke(main, [word.format(path=path) for word in words])
    assert result.exit_code == 0
    assert "max_events = 7" in result.output


def test_a_broken_configuration_is_78(tmp_path):
    """A wrong key ends with 78 and names the nearest."""
    path = tmp_path / "my.toml"
    path.write_text("[batch]\nmax_event = 7\n")
    result = CliRunner().invoke(main, ["--config", str(path), "config"])
    assert result.exit_code == 78
    assert result.output.startswith("agentd: ")
    assert "did you mean 'max_events'?" in result.output


def test_run_hands_the_daemon_what_the_command_line_overrides(tmp_path, monkeypatch):
    """`run --socket --state` override the configuration, and the daemon's return value is the exit code."""
    seen = []
    daemon = type(sys)("agentd.daemon")
    daemon.serve = lambda loaded, *_: seen.append(loaded) or 3
    monkeypatch.setitem(sys.modules, "agentd.daemon", daemon)
    path = tmp_path / "my.toml"
    path.write_text('[listen]\nsocket = "/a"\nmode = "0600"\n')
    result = CliRunner().invoke(main, ["--config", str(path), "run", "--socket", "/b", "--state", "/c"])
    assert result.exit_code == 3
    (loaded,) = seen
    assert (loaded.config.listen.socket, loaded.config.listen.mode, loaded.config.spool.directory) == (
        "/b",
        "0600",
        "/c",
    )
    assert loaded.path == str(path)


def test_the_module_is_the_command():
    """`python -m agentd` is `agentd`."""
    done = subprocess.run([sys.executable, "-m", "agentd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"agentd, version {__version__}\n"
    assert cli.INTERRUPTED == 130
