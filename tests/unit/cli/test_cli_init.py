"""`agentd init`: what it finds, the file that it writes, and that no secret is in it."""

import os
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.init import places
from agentd.cli.init_file import Found, Framework, frameworks, text
from agentd.config import load
from agentd.variables import PLATFORM_VARIABLES, destinations_of

AGENT = "6adea1a6-2973-5c67-a1ed-967b60bcbdf0"
SECRET = "aos_agent_very_secret_0123456789"
EVERY = {name: f"{SECRET}-{name}" for known in PLATFORM_VARIABLES.values() for name in known.api_key}
AGENTOS = {"AGENTOS_API_KEY": SECRET, "AGENTOS_AGENT_ID": AGENT, "AGENTOS_BASE_URL": "http://127.0.0.1:4400/agentos"}


@pytest.fixture
def init(tmp_path, monkeypatch):
    """`agentd init` in an empty folder, without a terminal, with these variables and no others that matter."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("AGENTD_", "XDG_", "OTEL_")) or any(
            name in known for one in PLATFORM_VARIABLES.values() for known in (one.api_key, one.agent_id, one.base_url)
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTD_SPOOL__DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("AGENTD_SOCKET", str(tmp_path / "a.sock"))
    return lambda *options, **env: CliRunner().invoke(main, ["init", *options], env=env)


def test_what_is_found_is_written_checked_and_followed_up(init, tmp_path):
    """A key's variable makes a destination; the file loads, `check` finds nothing wrong, and the next command is named."""
    done = init(**AGENTOS)
    assert done.exit_code == 0, done.output
    assert "found a key of AgentOS in AGENTOS_API_KEY" in done.output
    assert "api_key from env AGENTOS_API_KEY" in done.output
    assert "agentd sidecar -- python my_agent.py" in done.output
    [(name, found)] = load(tmp_path / "agentd.toml", AGENTOS).config.destinations.items()
    assert (name, found.platform, found.agent_id, found.base_url) == (
        "agentos",
        "agentos",
        AGENT,
        AGENTOS["AGENTOS_BASE_URL"],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["agentd.toml"]


def test_no_secret_is_written_or_shown(init, tmp_path):
    """References only, also where a variable for an address holds more than one."""
    done = init(
        **EVERY,
        AEGIS_API_URL=f"https://user:{SECRET}@aegis.example/x",
        ASCEND_API_URL=f"https://a.example/?key={SECRET}",
    )
    written = (tmp_path / "agentd.toml").read_text()
    assert SECRET not in written + done.output
    assert "not taken from AEGIS_API_URL" in written
    assert list(tomllib.loads(written)["destinations"]) == list(PLATFORM_VARIABLES)


def test_without_a_key_it_says_what_to_set(init, tmp_path):
    """The file shows every platform as an example, and the exit status is check's."""
    done = init()
    assert done.exit_code == 78
    assert "found no platform's key" in done.output
    assert "error    [destinations]: there is none" in done.output
    assert "agentd check" in done.output.splitlines()[-1]
    assert "destinations" not in tomllib.loads((tmp_path / "agentd.toml").read_text())


def test_an_example_holds_once_its_marks_are_taken_away(tmp_path):
    """Every commented platform and the commented listener load as they stand."""
    lines = text(Found({}, [])).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# [destinations."))
    plain = "\n".join(line.removeprefix("# ").replace("# HTTP on", "## HTTP on") for line in lines[start:])
    plain = "\n".join(line for line in plain.splitlines() if not line.startswith(("HTTP on", "For ")))
    path = tmp_path / "agentd.toml"
    path.write_text(plain)
    config = load(path, EVERY | {"LOCAL_TOKEN": "x" * 16}).config
    assert list(config.destinations) == list(PLATFORM_VARIABLES)
    assert (config.listen.http, config.identity.service) == ("127.0.0.1:4319", "my-service")


def test_a_file_that_is_there_is_kept(init, tmp_path):
    """Nothing is written over without --force, a link least of all; --output writes somewhere else."""
    (tmp_path / "agentd.toml").write_text("mine")
    done = init(**AGENTOS)
    assert done.exit_code == 1
    assert "is there already" in done.output
    assert (tmp_path / "agentd.toml").read_text() == "mine"
    (tmp_path / "dangling.toml").symlink_to(tmp_path / "elsewhere")
    assert init("--output", "dangling.toml", **AGENTOS).exit_code == 1
    assert not (tmp_path / "elsewhere").exists()
    assert init("--output", "other.toml", **AGENTOS).exit_code == 0
    assert init("--force", **AGENTOS).exit_code == 0
    assert tomllib.loads((tmp_path / "agentd.toml").read_text())["destinations"]


def test_a_forced_write_goes_through_no_link(init, tmp_path):
    """--force replaces the link itself."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "agentd.toml").symlink_to(tmp_path / "theirs")
    assert init("--force", **AGENTOS).exit_code == 0
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "agentd.toml").is_symlink()


def test_a_folder_that_is_not_there_is_named(init):
    """Bad input: one line with the path and why."""
    done = init("--output", "nowhere/agentd.toml", **AGENTOS)
    assert done.exit_code == 1
    assert "nowhere/agentd.toml: No such file or directory" in done.output


def installed(folder, name, version):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_frameworks_are_found_where_agents_live(tmp_path):
    """The active environment first, then those of the folder; SDKs before frameworks, each once."""
    site = "lib/python3.11/site-packages"
    installed(tmp_path / "active" / site, "langchain", "1.0")
    installed(tmp_path / ".venv" / site, "langchain", "0.1")
    installed(tmp_path / ".venv" / site, "Pyagentos_SDK", "0.4.0")
    installed(tmp_path / "venv" / site, "unheard-of", "1")
    found = frameworks(places(tmp_path, {"VIRTUAL_ENV": str(tmp_path / "active")})[:3])
    assert [(each.name, each.version, each.platform) for each in found] == [
        ("pyagentos-sdk", "0.4.0", "agentos"), ("langchain", "1.0", ""),
    ]  # fmt: skip
    assert "# pyagentos-sdk 0.4.0: AgentOS's SDK works unchanged" in text(Found({}, found))


def test_what_others_named_cannot_break_out_of_a_comment():
    """A version with a line break makes no line of the file."""
    found = Found(destinations_of(AGENTOS), [Framework("x", "1\n[destinations.evil]", "a\x1b[2Jb")])
    assert list(tomllib.loads(text(found))["destinations"]) == ["agentos"]


@pytest.mark.parametrize(("answer", "written"), [("n", False), ("y", True)])
def test_on_a_terminal_it_asks(tmp_path, answer, written):
    """Nobody who looks at the screen is surprised; `--yes` and a pipe are not asked."""
    ours, theirs = os.openpty()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "AGENTD_SPOOL__DIRECTORY": str(tmp_path / "s"),
        **AGENTOS,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "init"], stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    try:
        os.write(ours, f"{answer}\n".encode())
        shown = b""
        while chunk := read(ours):
            shown += chunk
        assert process.wait(20) == (0 if written else 1)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Write agentd.toml?" in shown
    assert (tmp_path / "agentd.toml").exists() is written


def read(terminal):
    """The next of what is shown; nothing at the end, which a terminal says as an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
