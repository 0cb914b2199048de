"""Shell completion, with the shells themselves: a TAB on a terminal completes agentd's verbs and options."""

import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.completion import SHELLS

WITHIN_S = 30


@pytest.fixture
def env(tmp_path):
    """An `agentd` on the path, of this very tree."""
    command = tmp_path / "bin" / "agentd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m agentd "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "", "LANG": "C.UTF-8"}


def needs(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")


@contextmanager
def terminal(*command, env):
    """The command on a terminal of its own; the terminal's other end."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    try:
        yield ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal, what):
    """What the terminal shows until `what` is there."""
    shown = b""
    deadline = time.monotonic() + WITHIN_S
    while what.encode() not in shown:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([terminal], [], [], max(left, 0))
        assert ready, f"{what!r} is not among {shown.decode(errors='replace')!r}"
        shown += os.read(terminal, 4096)
    return shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("typed", "completed"), [("agentd instal\t", "install-service"), ("agentd check --onl\t", "check --online")]
)
@pytest.mark.parametrize(
    ("shell", "setup"),
    [
        (("bash", "--norc", "--noprofile", "-i"), 'eval "$(agentd completion bash)"'),
        (("zsh", "-f", "-i"), 'autoload -Uz compinit; compinit -u -D; eval "$(agentd completion zsh)"'),
    ],
    ids=["bash", "zsh"],
)
def test_a_tab_completes(env, shell, setup, typed, completed):
    """In bash and zsh, as their manuals say to load a completion."""
    needs(shell[0])
    with terminal(*shell, env=env) as shown:
        os.write(shown, f"{setup}; echo REA''DY\n".encode())
        read_until(shown, "READY")
        os.write(shown, typed.encode())
        read_until(shown, completed)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("agentd instal", "install-service"), ("agentd check --onl", "--online"), ("agentd dead-letters re", "replay")],
)
def test_fish_completes(env, typed, completed):
    """fish says what it would complete without a terminal."""
    needs("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"agentd completion fish | source; complete -C '{typed}'"],
        env=env, capture_output=True, text=True, check=False, timeout=WITHIN_S,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [completed], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_the_shells_own(shell, tmp_path):
    """Each shell takes its script without complaint; where it isn't here, the script at least names agentd."""
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_AGENTD_COMPLETE=" + f"{shell}_complete" in done.output
    if shutil.which(shell):
        script = Path(tmp_path / f"agentd.{shell}")
        script.write_text(done.output)
        checked = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_refused():
    """Section 6: a usage error, which names those that there are."""
    done = CliRunner().invoke(main, ["completion", "tcsh"])
    assert done.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in done.output
