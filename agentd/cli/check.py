"""`agentd check`: would this configuration run here? It opens nothing for writing, and disturbs no daemon that runs.

Each part returns findings; the verb prints them and turns an error among them into exit code 78.
"""

from __future__ import annotations

import grp
import os
import shutil
import ssl
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import click

from agentd import filesystems
from agentd.cli import check_strangers
from agentd.cli.options import config_option, json_option, load_config
from agentd.cli.terminal import paint, print_json
from agentd.config_checks import read_tokens
from agentd.errors import AgentdError, ConfigError
from agentd.exchange import check_options
from agentd.paths import MAX_SOCKET_PATH
from agentd.reach import reach_of
from agentd.redact.build import build_redactor
from agentd.redact.keys import name_of
from agentd.sections import Config, Destination, Listen, Loaded, Outbound, Redact, Secret, SpoolConfig
from agentd.units import format_duration, format_size
from agentd.variables import KEY_VARIABLES

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_STOP_TIMEOUT_S = 90.0  # systemd's DefaultTimeoutStopSec: what drains longer is killed
_OTHERS = 0o077


class Finding(NamedTuple):
    """One line of the report; `about` is the part of the configuration that it speaks of."""

    level: Literal["ok", "warning", "error"]
    about: str
    message: str


@click.command()
@click.option("--online", is_flag=True, help="Ask each platform, by a read, whether it takes the key.")
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, *, online: bool, as_json: bool) -> None:
    """Say whether the configuration would run here; exit 78 if not. With --online exit 1 where a platform does not say."""
    loaded = load_config()
    findings = list(examine(loaded, os.environ, os.getuid()))
    unsaid = False
    if online:
        answers = list(_online(loaded.config, os.environ))
        unsaid = any(finding.level == "warning" for finding in answers)
        findings += answers
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        say(findings)
    if any(finding.level == "error" for finding in findings):
        ctx.exit(ConfigError.exit_code)
    ctx.exit(int(unsaid))


def _online(config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    from agentd.cli.check_online import LEVELS, look

    for name, (found, reason) in look(config, env):
        yield Finding(LEVELS[found], f"[destinations.{name}]", reason)


def say(findings: Iterable[Finding]) -> None:
    """A line for each."""
    for level, about, message in findings:
        click.echo(f"{paint(f'{level:<7}', _COLOURS[level])}  {about}: {message}")


def examine(loaded: Loaded, env: Mapping[str, str], uid: int) -> Iterator[Finding]:
    """All findings, in the order of the configuration."""
    yield Finding("ok", "configuration", loaded.path or "no file; from the environment")
    yield from _listen(loaded.config.listen, uid)
    yield from _try("[listen]", _http, loaded.config, env)
    yield from _probe(loaded.config.listen)
    yield from _spool(loaded.config.spool, uid)
    yield from starmap(Finding, check_strangers.look(loaded.config, uid))
    yield from _times(loaded.config)
    yield from _try("[redact]", _redact, loaded.config.redact, env)
    if not loaded.config.destinations:
        yield Finding(
            "error",
            "[destinations]",
            f"there is none; write one, or set a platform's own key ({', '.join(KEY_VARIABLES)})",
        )
    for name, destination in loaded.config.destinations.items():
        yield from _destination(name, destination, loaded.config.outbound, env)


def _listen(listen: Listen, uid: int) -> Iterator[Finding]:
    about = "[listen]"
    length = len(os.fsencode(listen.socket))
    if length > MAX_SOCKET_PATH:
        yield Finding("error", about, f"{listen.socket}: {length} bytes, a socket's path holds {MAX_SOCKET_PATH}")
        return
    path = Path(listen.socket)
    kind = _kind(path)
    if kind not in {"", "socket"}:
        yield Finding("error", about, f"{path}: a {kind} is in the socket's place")
        return
    if kind == "socket" and not os.access(path.parent, os.W_OK):
        yield Finding("ok", about, f"socket {path} is the service manager's, who passes it to agentd")
    else:
        yield from _folder(about, path.parent, uid, what="socket", private=False)
    if listen.group is not None:
        yield _group(listen.group)
    if int(listen.mode, 8) & 0o007:
        yield Finding("warning", about, f"mode {listen.mode}: every user of this machine may hand in records")


def _http(about: str, config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    """The loopback listener; its tokens are read and let go. Whether its port is free is not tried: a daemon may run."""
    count = len(config.security.tokens)
    if config.listen.http is not None:
        read_tokens(config, env)
        yield Finding("ok", about, f"http at {config.listen.http} for the holders of {count} local token(s)")
    elif count:
        yield Finding("warning", about, "http is not set: nobody can use the tokens of [[security.tokens]]")


def _probe(listen: Listen) -> Iterator[Finding]:
    if listen.probe is not None:
        yield Finding(
            "ok", "[listen]",
            f"probe at {listen.probe}: /healthz, /readyz and /metrics for everybody who reaches it, in the clear and without a token; "
            "it tells names of destinations, kinds and counts, and nothing of records, agents and runs",
        )  # fmt: skip


def _group(name: str) -> Finding:
    try:
        grp.getgrnam(name)
    except KeyError:
        return Finding("error", "[listen]", f"group {name!r}: there is none of that name")
    return Finding("ok", "[listen]", f"group {name}")


def _spool(spool: SpoolConfig, uid: int) -> Iterator[Finding]:
    about = "[spool]"
    path = Path(spool.directory)
    yield from _folder(about, path, uid, what="records", private=True)
    yield from _file_system(about, path)
    free = shutil.disk_usage(_existing(path)).free
    if free < spool.max_bytes:
        yield Finding(
            "warning",
            about,
            f"max_bytes {format_size(spool.max_bytes)}, but {_existing(path)} has {format_size(free)} free",
        )
    if spool.sync == "normal":
        yield Finding("warning", about, 'sync = "normal": a power failure may cost the last records acknowledged')


def _file_system(about: str, path: Path) -> Iterator[Finding]:
    found = filesystems.look(path)
    if found.fault:
        yield Finding("error", about, found.fault)
    if found.warning:
        yield Finding("warning", about, found.warning)
    if found.note:
        yield Finding("ok", about, found.note)


def _folder(about: str, path: Path, uid: int, *, what: str, private: bool) -> Iterator[Finding]:
    """Whether a folder of ours is there, ours and closed to others, or can be made."""
    if not path.is_absolute():
        yield Finding("warning", about, f"{path}: depends on the folder that the daemon is started in")
    existing = _existing(path)
    if not existing.is_dir():
        yield Finding("error", about, f"{existing}: is no folder")
        return
    found = existing.stat()
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("error", about, f"{existing}: this user may not write here")
    elif existing != path:
        yield Finding("ok", about, f"{what} in {path}; it will be made")
    elif private and found.st_uid != uid:
        yield Finding("error", about, f"{path}: belongs to uid {found.st_uid}, the daemon would run as {uid}")
    elif private and found.st_mode & _OTHERS:
        yield Finding(
            "error", about, f"{path}: others may look in (mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it"
        )
    else:
        yield Finding("ok", about, f"{what} in {path}")


def _existing(path: Path) -> Path:
    """The path, or its nearest ancestor that there is."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def _kind(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    kinds = ((stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "symbolic link"))
    return next((name for is_it, name in kinds if is_it(mode)), "file")


def _times(config: Config) -> Iterator[Finding]:
    drain = config.shutdown.drain_timeout
    if drain >= _STOP_TIMEOUT_S:
        yield Finding(
            "warning",
            "[shutdown]",
            f"drain_timeout {format_duration(drain)}: systemd kills after {format_duration(_STOP_TIMEOUT_S)} "
            f"unless TimeoutStopSec says otherwise",
        )
    if config.runs.keep < config.retry.max:
        yield Finding(
            "warning", "[runs]", "keep is shorter than [retry] max: a run would be forgotten between two tries"
        )


def _redact(about: str, config: Redact, env: Mapping[str, str]) -> Iterator[Finding]:
    """The rules in force; the key is read and let go."""
    redactor = build_redactor(config, env, about)
    if not redactor.version:
        yield Finding("warning", about, "no keys and no patterns: secrets in records are stored as they come")
        return
    rules = redactor.rules
    forms = ", ".join(dict.fromkeys(pattern.name for pattern in rules.patterns)) or "none"
    by_name = (
        f"{len(rules.keys.globs)} names ({', '.join(dict.fromkeys(map(name_of, rules.keys.globs)))})"
        if rules.keys.globs
        else "no names"
    )
    yield Finding("ok", about, f"mode {config.mode}, rules {redactor.version:08x}: forms {forms}; {by_name}")
    for pattern in rules.patterns:
        if pattern.own and not pattern.needles:
            yield Finding(
                "warning", about,
                f"pattern {pattern.name!r} holds no text of 3 characters in every match: it is tried on each record, at some µs more",
            )  # fmt: skip


def _destination(name: str, destination: Destination, outbound: Outbound, env: Mapping[str, str]) -> Iterator[Finding]:
    about = f"[destinations.{name}]"
    yield from _try(about, _platform, destination)
    yield from _try(about, _way, destination, outbound, env)
    if destination.api_key is None:
        yield Finding("error", about, 'api_key is missing: say api_key = { env = "VARIABLE" } or { file = "/path" }')
    else:
        yield from _try(about, _secret, "api_key", destination.api_key, env)
    if destination.signing_secret is not None:
        yield from _try(about, _secret, "signing_secret", destination.signing_secret, env)


def _way(about: str, destination: Destination, outbound: Outbound, env: Mapping[str, str]) -> Iterator[Finding]:
    """Proxy and certificates, where there is something to say of them; an unknown platform has been told of."""
    base_url = destination.base_url or _default_url(destination.platform)
    if not base_url:
        return
    reach = reach_of(destination, base_url, outbound, env)
    if reach.proxy is not None:
        yield Finding("ok", about, f"through the proxy {reach.proxy.place} ({reach.proxy.source})")
    if urlsplit(base_url).scheme != "https":
        return
    if reach.trust.ca_file is not None:
        ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in reach.trust.context().get_ca_certs()]
        over = sum(end < time.time() for end in ends)
        level: Literal["ok", "warning"] = "warning" if over else "ok"
        gone = f", {over} of which have expired" if over else ""
        yield Finding(level, about, f"ca_file {reach.trust.ca_file}: {len(ends)} certificate(s){gone}")
    if reach.trust.client_cert is not None:
        yield Finding("ok", about, f"client_cert {reach.trust.client_cert}")


def _default_url(platform: str) -> str:
    from agentd import platforms

    try:
        return platforms.load(platform).default_base_url
    except ConfigError:
        return ""


def _try(about: str, part: Callable[..., Iterable[Finding]], *arguments: object) -> Iterable[Finding]:
    try:
        return list(part(about, *arguments))
    except AgentdError as error:
        return [Finding("error", about, str(error))]


def _secret(about: str, key: str, secret: Secret, env: Mapping[str, str]) -> Iterator[Finding]:
    """The place only: the secret itself is read and let go."""
    secret.read(env)
    yield Finding("ok", about, f"{key} from {secret}")


def _platform(about: str, destination: Destination) -> Iterator[Finding]:
    from agentd import platforms

    platform = platforms.load(destination.platform)
    base_url = destination.base_url or platform.default_base_url
    if not base_url:
        raise ConfigError(f"platform {platform.name} has no usual address: write base_url")
    kinds = destination.accepts(platform.calls)
    foreign = sorted(kinds - set(platform.calls))
    if foreign:
        raise ConfigError(
            f"accept: {platform.name} does not take {', '.join(foreign)}; "
            f"it takes {', '.join(platform.calls) or 'gates only'}"
        )
    check_options(platform, destination.options or {})
    yield Finding("ok", about, f"platform {platform.name} at {base_url}")
    if not kinds:
        level: Literal["ok", "warning"] = (
            "warning" if platform.calls else "ok"
        )  # by its nature, or because of `accept = []`
        yield Finding(level, about, "takes gates only: no record will be queued for it")
