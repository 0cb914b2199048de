"""Wheel and sdist as they are built: what is in them, what they say of themselves, and that they work in a clean environment."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = sorted(
    {
        tuple(map(int, found[1].split(".")))
        for each in PROJECT["classifiers"]
        if (found := re.search(r":: (3\.\d+)$", each))
    }
)
NAME = f"agentd_recorder-{PROJECT['version']}"
EMIT = """
from agentd import Client
with Client() as client, client.start_run(input={"n": 1}) as run:
    run.emit("said", {"by": "the wheel"})
    assert client.flush(10)
"""
IMPORT_ALL = """
import importlib, pkgutil, agentd
for each in pkgutil.walk_packages(agentd.__path__, "agentd."):
    if each.name not in ("agentd.__main__", "agentd.client.recorder"):  # the one runs, the other is pytest's
        importlib.import_module(each.name)
print(agentd.__file__)
"""


def run(*command, within_s=240, **options):
    return subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False, timeout=within_s, **options
    )


def built(source, folder, *targets):
    done = run(sys.executable, "-m", "hatchling", "build", "-d", folder, *targets, cwd=source)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory):
    """A folder with the wheel and the sdist of this tree."""
    return built(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(artefacts):
    return artefacts / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="session")
def sdist(artefacts):
    return artefacts / f"{NAME}.tar.gz"


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def modules_of_the_tree():
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "agentd").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_the_package_and_its_data(wheel):
    """Every module, `py.typed`, the files of config/ as shared data, and nothing else: no tests, no caches, no path of this machine."""
    found = contents(wheel)
    data, info = f"{NAME}.data/data/share/agentd/", f"{NAME}.dist-info/"
    assert {name for name in found if name.startswith("agentd/")} == modules_of_the_tree()
    assert "agentd/py.typed" in found
    shared = {f"{data}{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "config").rglob("*") if path.is_file()}
    assert {name for name in found if name.startswith(data)} == shared
    assert f"{data}config/agentd.toml" in found
    assert [name for name in found if not name.startswith(("agentd/", data, info))] == []
    assert [name for name, body in found.items() if str(ROOT).encode() in body] == []


def test_the_wheel_says_what_it_is(wheel):
    """Metadata that a registry takes, by the standard's own checks; the README is its description."""
    found = contents(wheel)
    metadata = Metadata.from_email(found[f"{NAME}.dist-info/METADATA"], validate=True)
    assert (metadata.name, str(metadata.version), str(metadata.requires_python)) == (
        "agentd-recorder", PROJECT["version"], PROJECT["requires-python"],
    )  # fmt: skip
    message = email.message_from_bytes(found[f"{NAME}.dist-info/METADATA"])
    assert message["Description-Content-Type"] == "text/markdown"
    assert (ROOT / "README.md").read_text().strip() in message.get_payload(decode=True).decode()
    entries = found[f"{NAME}.dist-info/entry_points.txt"].decode()
    assert "[console_scripts]\nagentd = agentd.cli:main" in entries
    assert "[pytest11]\nagentd = agentd.client.recorder" in entries


def test_the_sdist_makes_the_same_wheel(wheel, sdist, tmp_path):
    """What is built of the source distribution is what is built of the tree; it brings tests, config and units along."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / NAME
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {"README.md", "pyproject.toml", "config/agentd.toml", "systemd/agentd.service", "tests/conftest.py"} <= names
    assert [name for name in names if "__pycache__" in name or name.startswith((".venv", ".git/", ".hypothesis"))] == []
    again = built(source, tmp_path / "dist", "-t", "wheel") / wheel.name
    assert contents(again) == contents(wheel)


# -- in a clean environment ------------------------------------------------------------------------------------------------


def interpreter(version):
    """A Python of this version: this one, one on the path, or one of pyenv's; None without."""
    name = ".".join(map(str, version))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [f"python{name}", *sorted(pyenv.glob(f"versions/{name}.*/bin/python"))]
    if sys.version_info[:2] == version:
        candidates.insert(0, sys.executable)
    for candidate in candidates:
        try:
            done = run(candidate, "-c", "import sys, venv; print(*sys.version_info[:2])")
        except OSError:
            continue
        if done.stdout.split() == [str(part) for part in version]:
            return candidate
    return None


@pytest.fixture(scope="module", params=[SUPPORTED[0], SUPPORTED[-1]], ids=["oldest", "newest"])
def clean(request, wheel, tmp_path_factory):
    """The bin folder of an environment in which nothing but the wheel was asked for; skips where there is no such Python."""
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"there is no Python {'.'.join(map(str, request.param))} here")
    folder = tmp_path_factory.mktemp("clean")
    made = run(python, "-m", "venv", folder)
    assert made.returncode == 0, made.stderr
    done = run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture
def call(clean, tmp_path):
    """Runs a command of the clean environment, far from the tree and without its variables."""
    env = {
        "PATH": f"{clean}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "AGENTOS_API_KEY": "k" * 20,
    }

    def command(name, *arguments):
        done = run(clean / name, *arguments, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    return command


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_module_loads_without_a_warning(call, clean):
    """Dependencies are complete and fit one another, and nothing that is used is on its way out."""
    assert "No broken requirements" in call("pip", "check").stdout
    assert call("python", "-I", "-W", "error", "-c", IMPORT_ALL).stdout.startswith(str(clean.parent))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_works_from_the_wheel(call, clean, tmp_path):
    """A record goes from the client library through the daemon to the (emulated) platform; units, completion and configuration are made."""
    assert call("agentd", "--version").stdout.strip() == f"agentd, version {PROJECT['version']}"
    done = call("agentd", "dev", "--port", "0", "--", clean / "python", "-c", EMIT)
    assert done.stderr.strip().splitlines()[-1] == "agentd: everything was delivered"
    assert "install-service" in call("agentd", "--help").stdout
    units = call("agentd", "install-service", "--root", tmp_path / "root", "--command", "/usr/bin/agentd")
    assert "agentd.service" in units.stdout
    assert (tmp_path / "root/etc/systemd/system/agentd.service").is_file()
    for shell in ("bash", "zsh", "fish"):
        assert "_AGENTD_COMPLETE" in call("agentd", "completion", shell).stdout
    call("agentd", "init", "--output", tmp_path / "mine.toml")
    example = clean.parent / "share/agentd/config/agentd.toml"
    assert "platform agentos at" in call("agentd", "--config", example, "check").stdout


def test_some_supported_python_is_here():
    """The tests above have run on one at least: skips for all would say nothing."""
    assert any(interpreter(version) for version in (SUPPORTED[0], SUPPORTED[-1]))
