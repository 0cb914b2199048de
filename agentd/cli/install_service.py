"""`agentd install-service`: write agentd's systemd units, with the paths of this installation.

A file that somebody has changed is shown as a difference and left as it is: each one carries the checksum of what was written.
Nothing is started and nothing enabled; the commands that do it are printed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

from agentd.cli import service_files as files
from agentd.cli.options import Given, config_option, read_config
from agentd.cli.terminal import echo_lines, paint
from agentd.errors import StateError
from agentd.sections import Secret

_CONFIG = "/etc/agentd/agentd.toml"
_STAMP = "# Written by 'agentd install-service'; your own settings belong in 'systemctl edit'. sha256 of the rest: "
# Closed to the service: ProtectHome=, PrivateTmp=
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
_ADVICE = "install agentd where it can, as with '/usr/bin/python3 -m venv /opt/agentd && /opt/agentd/bin/pip install …', and call that one"
_COLOURS = {"new": "green", "unchanged": "white", "updated": "yellow", "changed by hand": "red"}
_PARTS = ("agentd", "aiohttp", "click", "diskcache", "msgspec", "prometheus_client", "rich")


class ChangedByHand(StateError):  # noqa: N818 - a state that is found
    """A file was changed since it was written."""


class Planned(Struct, frozen=True):
    """A file that is to be: where, its text, and what lies there now (None: nothing)."""

    path: Path
    text: str
    found: str | None

    @property
    def state(self) -> Literal["new", "unchanged", "updated", "changed by hand"]:
        if self.found is None:
            return "new"
        if self.found == self.text:
            return "unchanged"
        return "updated" if is_ours(self.found) else "changed by hand"


@click.command()
@config_option
@click.option("--user", is_flag=True, help="For your own service manager instead of the host's.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Also write over files that were changed by hand.")
@click.option(
    "--prefix", metavar="DIR", help="For packagers: into DIR/lib/systemd and DIR/lib/sysusers.d, such as /usr."
)
@click.option("--root", metavar="DIR", help="For packagers: everything below DIR, which the units don't mention.")
@click.option("--command", metavar="PATH", help="The agentd that the units start, if it is not this one.")
def install_service(
    *, user: bool, dry_run: bool, force: bool, prefix: str | None, root: str | None, command: str | None
) -> None:
    """Write systemd units for agentd: socket, service, and the user it runs as."""
    top = Path(root or "/").absolute()
    given = click.get_current_context().ensure_object(Given).config
    config = str(given.absolute() if given else _config_path(user=user))
    if command is None:
        command = _own_command(top)
        if not user:
            refuse_hidden(_own_files() if root is None else [command])
        if not user and root is None:
            refuse_closed(_own_files())
    facts = files.Facts(
        word(command),
        word(config) if given or not user else "%E/agentd/agentd.toml",
        _credentials(top / config.lstrip("/")),
        user,
    )
    plan = [_planned(path, text) for path, text in _texts(facts, *_folders(top, prefix, user=user))]
    _carry_out(plan, dry_run=dry_run, force=force)
    if root is None and prefix is None:
        echo_lines(["", *_next(facts, config)])


# -- what the files depend on --------------------------------------------------------------------------------------------


def _config_path(*, user: bool) -> str:
    if not user:
        return _CONFIG
    home = os.environ.get("XDG_CONFIG_HOME") or f"{os.environ.get('HOME', '')}/.config"
    return f"{home}/agentd/agentd.toml"


def _own_command(top: Path) -> str:
    """The `agentd` of this installation, as it will be called where `top` is the root."""
    scripts = Path(sysconfig.get_path("scripts"))
    path = scripts / "agentd"
    if not path.exists():
        raise StateError(f"{path}: there is no agentd command beside {sys.executable}; say which with --command")
    within = top != Path("/") and path.is_relative_to(top)
    return f"/{path.relative_to(top)}" if within else str(path)


def _own_files() -> Iterator[str]:
    """What the service has to read: command, interpreter, its library, agentd and what agentd needs."""
    yield str(Path(sysconfig.get_path("scripts")) / "agentd")
    yield sys.executable
    yield os.path.realpath(sys.executable)
    yield os.__file__
    for name in _PARTS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield spec.origin


def refuse_hidden(paths: Iterable[str]) -> None:
    """Raise StateError for what the hardened service could not see."""
    for path in paths:
        for place in _chain(Path(path)):
            hidden = next((top for top in _HIDDEN if place.is_relative_to(top)), None)
            if hidden is not None:
                raise StateError(f"{place}: the service can't see {hidden} (ProtectHome=, PrivateTmp=): {_ADVICE}")


def refuse_closed(paths: Iterable[str]) -> None:
    """Raise StateError for what the service's user could not read."""
    for path in paths:
        real = Path(path).resolve()
        for place in (real, *real.parents):
            if not _is_open(place):
                raise StateError(
                    f"{place}: others may not read it, the service's user among them: chmod it, or {_ADVICE}"
                )


def _chain(path: Path) -> Iterator[Path]:
    """The path, what it is a link to, and so on to the end."""
    yield path
    place = path
    while place.is_symlink():
        place = Path(os.path.normpath(place.parent / place.readlink()))
        yield place
    yield path.resolve()


def _is_open(place: Path) -> bool:
    mode = place.stat().st_mode
    return bool(mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH))


def _credentials(path: Path) -> list[str]:
    """The names of the credentials that the configuration asks for, in its order; none without a file. Raises ConfigError."""
    if not path.exists():
        return []
    return list(dict.fromkeys(_named(read_config(path).config)))


def _named(value: object) -> Iterator[str]:
    if isinstance(value, Secret):
        yield from [value.credential] if value.credential else []
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield from _named(getattr(value, name))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _named(each)


def word(text: str) -> str:
    """A path as one word of a command line in a unit (systemd.syntax(7), systemd.service(5))."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"""[\s"'\\;]""", text) else escaped


# -- where they go -------------------------------------------------------------------------------------------------------


def _texts(facts: files.Facts, units: Path, sysusers: Path) -> Iterator[tuple[Path, str]]:
    yield units / files.SOCKET, files.socket(facts)
    yield units / files.SERVICE, files.service(facts)
    if not facts.user:
        yield sysusers / files.SYSUSERS, files.sysusers()


def _folders(top: Path, prefix: str | None, *, user: bool) -> tuple[Path, Path]:
    """Of the units, and of the entry for systemd-sysusers."""
    kind = "user" if user else "system"
    if prefix is not None:
        library = top / prefix.lstrip("/") / "lib"
        return library / "systemd" / kind, library / "sysusers.d"
    if user and top == Path("/"):
        return Path(_config_path(user=True)).parents[1] / "systemd/user", top
    return top / "etc/systemd" / kind, top / "etc/sysusers.d"


def _planned(path: Path, text: str) -> Planned:
    try:
        found = path.read_text() if path.exists() else None
    except (OSError, ValueError) as error:
        raise StateError(f"{path}: {error}") from error
    return Planned(path, stamped(text), found)


def stamped(text: str) -> str:
    """The text under a line by which `is_ours` knows it again."""
    return f"{_STAMP}{_digest(text)}\n{text}"


def is_ours(text: str) -> bool:
    """Whether a file is as some agentd has written it."""
    first, _, rest = text.partition("\n")
    return first == _STAMP + _digest(rest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _carry_out(plan: list[Planned], *, dry_run: bool, force: bool) -> None:
    """All of it or nothing. Raises ChangedByHand, StateError."""
    for file in plan:
        echo_lines([f"{file.path}: {paint(file.state, _COLOURS[file.state])}"])
        if file.state != "unchanged" and (dry_run or file.state == "changed by hand"):
            echo_lines(_difference(file))
    if not force and (changed := [str(file.path) for file in plan if file.state == "changed by hand"]):
        raise ChangedByHand(
            f"{', '.join(changed)}: changed since agentd wrote it, nothing is written; move your settings to 'systemctl edit', "
            "or let them go with --force"
        )
    if dry_run:
        return
    for file in plan:
        if file.state != "unchanged":
            _write(file)


def _difference(file: Planned) -> Iterator[str]:
    before = [] if file.found is None else file.found.splitlines()
    lines = difflib.unified_diff(before, file.text.splitlines(), "as it is", "as it would be", lineterm="")
    return (f"    {line}" for line in lines)


def _write(file: Planned) -> None:
    new = file.path.with_name(f".{file.path.name}.new")
    try:
        file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new.write_text(file.text)
        new.chmod(0o644)
        new.replace(file.path)
    except OSError as error:
        raise StateError(f"{file.path}: {error.strerror}; the host's units are root's, your own take --user") from error


def _next(facts: files.Facts, config: str) -> Iterator[str]:
    """What is left to do, as commands."""
    own = " --user" if facts.user else ""
    yield "next:"
    if not facts.user:
        yield "  systemd-sysusers                                  # makes the user and group agentd"
        yield "  usermod -aG agentd NAME                           # for each user whose agents may hand in records"
    if not Path(config).exists():
        yield f"  write {config}, then call this again: its credentials become lines of the unit"
    keys = f"{config.rpartition('/')[0]}/credentials"
    for name in facts.credentials:
        if not Path(f"{keys}/{name}").exists():
            yield f"  install -D -m 600 /dev/stdin {keys}/{name}    # and type the key"
    yield f"  systemctl{own} daemon-reload"
    yield f"  systemctl{own} enable --now agentd.socket agentd.service"
    if facts.user:
        yield "  loginctl enable-linger                            # if it is to run while you are not logged in"
    yield f"  systemctl{own} status agentd; journalctl{own} -u agentd -o cat"
