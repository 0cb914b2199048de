"""`agentd sidecar -- COMMAND`: a daemon for one command, in this process, for as long as the command runs.

The command finds agentd by `AGENTD_SOCKET`, and its platforms' own SDKs find it by their usual variables, with a local token of
this run in place of the keys. If `AGENTD_SOCKET` is set already the command joins that daemon, and no other is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from agentd.cli.options import config_option, load_config
from agentd.errors import AgentdError, AlreadyRunning, StateError
from agentd.sections import Config, Loaded, Secret, TokenRule

if TYPE_CHECKING:
    from agentd.daemon import Daemon

TOKEN_VARIABLE = "AGENTD_SIDECAR_TOKEN"  # noqa: S105 - where our own configuration finds it, in no environment but ours
_NOT_DELIVERED = 75  # EX_TEMPFAIL, sysexits.h
_TRIES = 5  # at a state folder that somebody else takes before us


class Outcome(NamedTuple):
    """How it ended: the command's status, what remains (destination → records, why), and how many dead letters there are."""

    code: int
    left: dict[str, tuple[int, str]]
    dead: int
    elsewhere: bool = False  # what remains lies in a folder that another sidecar has left


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@config_option
@click.option("--require-delivered", is_flag=True, help="Exit 75 if records remain undelivered at the end.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def sidecar(ctx: click.Context, require_delivered: bool, command: tuple[str, ...]) -> None:  # noqa: FBT001 - click's
    """Run COMMAND with an agentd of its own beside it, and deliver what it said."""
    if os.environ.get("AGENTD_SOCKET"):
        ctx.exit(join(command, require_delivered=require_delivered))
    ctx.exit(run_sidecar(load_config(), command, require_delivered=require_delivered))


def run_sidecar(loaded: Loaded, command: tuple[str, ...], *, require_delivered: bool) -> int:
    """Daemon and command to their ends. Returns the exit status; the last line says what remains."""
    from agentd.cli.sidecar_state import foreign, settle
    from agentd.logs import set_up
    from agentd.targets import targets_of

    config = loaded.config
    set_up(config.log.level, config.log.format)
    targets = targets_of(config, os.environ)
    identities = {name: target.identity for name, target in targets.items()}
    base = Path(config.spool.directory) / "sidecars"
    folder, outcome = _run_where_it_is_free(loaded, base, identities, command)
    if not outcome.left:
        settle(folder)
        outcome = _deliver_others(loaded, base, identities, outcome)
    say(last_line(outcome, str(base if outcome.elsewhere else folder), foreign(base, identities)))
    return status(outcome, require_delivered=require_delivered)


def _deliver_others(loaded: Loaded, base: Path, identities: dict[str, str], outcome: Outcome) -> Outcome:
    """What sidecars that ran beside one another have left, folder by folder, as long as it goes through."""
    from agentd.cli.sidecar_state import settle, waiting

    for folder in waiting(base, identities):
        try:
            other = run_in(loaded, folder, ())
        except AlreadyRunning:  # somebody else has adopted it meanwhile
            continue
        if other.left:
            return outcome._replace(left=other.left, elsewhere=True)
        settle(folder)
    return outcome


def say(line: str) -> None:
    """A line for people; nobody has to be there to read it, and the status stays the command's."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _run_where_it_is_free(
    loaded: Loaded, base: Path, identities: dict[str, str], command: tuple[str, ...]
) -> tuple[Path, Outcome]:
    """A folder that another one takes between our look and our lock is left to it; the command has not begun then."""
    from agentd.cli.sidecar_state import choose

    for tries_left in reversed(range(_TRIES)):
        folder = choose(base, identities)
        try:
            return folder, run_in(loaded, folder, command)
        except AlreadyRunning:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def run_in(loaded: Loaded, folder: Path, command: tuple[str, ...]) -> Outcome:
    """One run with its state in `folder`; without a command it only delivers what is there."""
    from agentd.cli.beside import deliver, hide, run_beside
    from agentd.cli.child_env import child_env
    from agentd.daemon import Daemon

    place = Path(tempfile.mkdtemp(prefix="agentd-sidecar-"))
    token = secrets.token_urlsafe(32)
    try:
        ours = settings(loaded.config, socket=str(place / "agentd.sock"), folder=folder)
        daemon = Daemon(
            msgspec.structs.replace(loaded, config=ours), {**os.environ, TOKEN_VARIABLE: token}, beside=True
        )
        hide()

        def env() -> dict[str, str]:
            return child_env(os.environ, loaded.config, ours.listen.socket, daemon.http_url, token)

        code = asyncio.run(run_beside(daemon, command, env) if command else deliver(daemon))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return outcome_of(code, daemon)


def outcome_of(code: int, daemon: Daemon) -> Outcome:
    """What a daemon that has ended leaves behind."""
    return Outcome(code, {name: (left.records, left.reason) for name, left in daemon.left.items()}, daemon.dead_letters)


def status(outcome: Outcome, *, require_delivered: bool) -> int:
    """The exit status: the command's own; 75 where it was 0 and something remains that should not."""
    return _NOT_DELIVERED if outcome.left and require_delivered and outcome.code == 0 else outcome.code


def settings(config: Config, *, socket: str, folder: Path) -> Config:
    """The configuration of a sidecar: its own socket, loopback port, token and state folder, and no way into the control plane.

    What a configuration says of `listen.http` and tokens is said to the host's daemon, which may run at the same time.
    """
    replace = msgspec.structs.replace
    closed = {name: replace(one, passthrough="agent") for name, one in config.destinations.items()}
    return replace(
        config,
        listen=replace(config.listen, socket=socket, http="127.0.0.1:0", mode="0600", group=None),
        spool=replace(config.spool, directory=str(folder)),
        security=replace(config.security, tokens=[TokenRule(Secret(env=TOKEN_VARIABLE))]),
        destinations=closed,
    )


def last_line(outcome: Outcome, folder: str, others: Sequence[Path] = ()) -> str:
    """What remains, why and where. `others` may hold records for other destinations."""
    more = f"; {outcome.dead} dead letters are kept in {folder}" if outcome.dead else ""
    if others:
        more += f"; records for other destinations or addresses may be left in {', '.join(map(str, others))}"
    if not outcome.left:
        return f"agentd: nothing waits{more}" if more else "agentd: everything was delivered"
    total = sum(count for count, _ in outcome.left.values())
    why = "; ".join(f"{count} for {name}: {reason}" for name, (count, reason) in outcome.left.items())
    return f"agentd: {total} records remain in {folder} for the next sidecar ({why}){more}"


def join(command: tuple[str, ...], *, require_delivered: bool) -> int:
    """Run the command beside the daemon that `AGENTD_SOCKET` names."""
    from agentd.cli.ask import Daemon
    from agentd.cli.beside import run_command

    daemon = Daemon(os.environ["AGENTD_SOCKET"], 5.0)
    try:
        daemon.get("/healthz")
    except AgentdError as error:
        raise StateError(f"AGENTD_SOCKET is set, and no daemon answers there: {error}") from error
    code = asyncio.run(run_command(command, _joined_env()))
    left = {}
    try:
        waited = daemon.post("/v1/flush", timeout_s=15.0, until="delivered", timeout=10)
        reason = str(waited.get("reason") or "still on its way")
        left = {name: (int(count), reason) for name, count in (waited.get("left") or {}).items()}
    except AgentdError as error:  # not an admin there, or it has gone: what it holds is its own to deliver
        say(f"agentd: the daemon at {daemon.socket} does not say whether everything was delivered: {error}")
        return _NOT_DELIVERED if require_delivered and code == 0 else code
    outcome = Outcome(code, left, 0)
    say(last_line(outcome, f"the daemon at {daemon.socket}"))
    return status(outcome, require_delivered=require_delivered)


def _joined_env() -> dict[str, str]:
    """Ours without the platforms' keys; where we are in a sidecar ourselves, what stands there is its local token."""
    from agentd.cli.child_env import TOKEN, secret_variables

    token = os.environ.get(TOKEN)
    secret = secret_variables(Config())
    taken = [name for name, value in os.environ.items() if name in secret and value != token]
    if taken:
        say(
            f"agentd: {', '.join(taken)} taken out of the command's environment; its SDKs are not led to the daemon that it joins"
        )
    return {name: value for name, value in os.environ.items() if name not in taken}
