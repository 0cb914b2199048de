"""`agentd diagnose`: a bundle for a bug report, without secrets, records and names, and what is in it said before it is written."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from agentd.cli.doctor import examined, given_by
from agentd.cli.options import config_option, json_option, socket_option
from agentd.cli.terminal import complain, print_json
from agentd.errors import AgentdError, StateError
from agentd.paths import state_directory

if TYPE_CHECKING:
    from agentd.doctor.bundle import Written
    from agentd.doctor.examination import Given

_ANSWER_S = 5.0


@click.command()
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Default: ./agentd-diagnose-TIME.tar.gz."
)
@click.option("--dry-run", is_flag=True, help="Say what would be in it, and write nothing.")
@click.option("--with-names", is_flag=True, help="Leave names of agents and ids as they are.")
@click.option(
    "--log",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The daemon's log, where it is not in the journal.",
)
@click.option("--no-audit", is_flag=True, help="Leave out the audit, which takes its time on a large spool.")
@click.option("--offline", is_flag=True, help="Ask no platform.")
@config_option
@socket_option
@json_option
def diagnose(
    socket: str | None,
    output: Path | None,
    log: Path | None,
    *,
    dry_run: bool,
    with_names: bool,
    no_audit: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Write a bundle for a bug report: versions, configuration, status, metrics, counts, log, doctor's findings.

    Secrets are taken out, names of agents and ids are digests, and no record is in it. It is readable by you alone.
    """  # fmt: skip
    from agentd.doctor.bundle import contents

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = f"agentd-diagnose-{stamp}"
    path = output or Path(f"{folder}.tar.gz")
    file = None if dry_run else _create(path)  # before root becomes the state folder's owner, who may not write here
    try:
        written = _written(socket, log, with_names=with_names, audits=not no_audit, online=not offline)
        text = contents(written, with_names=with_names)
        if not as_json:
            click.echo(text)
        if file is not None:
            _pack(file, written, text, folder)
    except BaseException:
        if file is not None:
            with suppress(OSError):  # root may have become the state folder's owner
                path.unlink()
        raise
    finally:
        if file is not None:
            file.close()
    if as_json:
        members = [{"name": name, "about": about, "bytes": len(data)} for name, about, data in written]
        print_json({"file": None if dry_run else str(path), "contents": members})
    else:
        complain(
            "nothing was written (--dry-run)" if dry_run else f"written to {path}, for your eyes until you send it"
        )


def _create(path: Path) -> IO[bytes]:
    """For its owner alone; what is there is not overwritten."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StateError(f"{path} is there already: name another with -o") from None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    return os.fdopen(handle, "wb")


def _written(socket: str | None, log: Path | None, *, with_names: bool, audits: bool, online: bool) -> list[Written]:
    from msgspec import to_builtins

    from agentd.doctor.bundle import collect
    from agentd.doctor.parts import parts, scrubber

    given = given_by(socket)
    ask = _asking(given.socket)
    found = parts(
        given,
        os.environ,
        ask=ask,
        doctor=lambda: to_builtins(examined(socket, online=online)),
        directory=lambda: _directory(given, ask),
        log=log,
        audit=audits,
    )
    return collect(found, scrubber(given, os.environ, key=secrets.token_bytes(32), with_names=with_names))


def _asking(socket: str) -> Callable[[str], Any]:
    """What the daemon answers at a path: JSON, or a text."""
    from agentd.cli.ask import Daemon

    there = Daemon(socket, _ANSWER_S)

    def ask(path: str) -> Any:
        if path == "/metrics":
            return there.read_text(path)
        return there.ask("GET", path).document

    return ask


def _directory(given: Given, ask: Callable[[str], Any]) -> Path:
    try:
        return Path(ask("/v1/status")["spool"]["directory"])
    except AgentdError:
        if given.loaded is not None:
            return Path(given.loaded.config.spool.directory)
        return Path(state_directory(os.environ, os.getuid()))


def _pack(file: IO[bytes], written: list[Written], text: str, folder: str) -> None:
    from agentd.doctor.bundle import Written as Member
    from agentd.doctor.bundle import pack

    pack(file, [Member("README.txt", "", f"{text}\n".encode()), *written], folder, time.time())
    file.flush()
    os.fsync(file.fileno())
