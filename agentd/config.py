"""The configuration: TOML and `AGENTD_<SECTION>__<KEY>` variables into frozen Structs; a wrong key names the nearest.

`load(path, env, uid)` reads the file it is told (or finds), never a secret: those are references that `Secret.read`
resolves when a destination is opened. Errors are `ConfigError` with file, section and key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from agentd.config_checks import check_values, nearest
from agentd.config_faults import explain_fault
from agentd.errors import ConfigError, UsageError
from agentd.paths import socket_path, state_directory
from agentd.records import KINDS
from agentd.units import parse_duration, parse_size
from agentd.variables import destinations_of, overlay
from agentd.wire import MAX_FRAME_BYTES


class Duration(float):
    """Seconds, written with a unit."""


class Size(int):
    """Bytes, written with a unit."""


class Secret(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a secret is; exactly one of the three. The secret itself never stands in the configuration."""

    credential: str | None = None
    file: str | None = None
    env: str | None = None

    def read(self, env: Mapping[str, str]) -> str:
        """The secret. Raises ConfigError that names its place, never its content."""
        if self.env is not None:
            value = env.get(self.env, "")
            if not value:
                raise ConfigError(f"the variable {self.env} is not set or empty")
            return _printable(value.strip(), f"the variable {self.env}")
        path = self._path(env)
        try:
            if self.file is not None and path.stat().st_mode & 0o077:
                raise ConfigError(f"{path}: others may read this secret; chmod 600 it")
            value = path.read_text().strip()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except ValueError:
            raise ConfigError(f"{path}: not text") from None  # the cause would quote the secret
        if not value:
            raise ConfigError(f"{path}: empty")
        return _printable(value, str(path))

    def _path(self, env: Mapping[str, str]) -> Path:
        if self.credential is None:
            return Path(self.file or "")
        folder = env.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(
                f"credential {self.credential!r}: CREDENTIALS_DIRECTORY is not set (systemd's LoadCredential= sets it)"
            )
        return Path(folder) / self.credential

    def __str__(self) -> str:
        """The place, for messages."""
        return next(f"{kind} {name}" for kind, name in msgspec.structs.asdict(self).items() if name is not None)


def _printable(secret: str, place: str) -> str:
    """A secret travels in a header, which takes visible ASCII alone."""
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError(
            f"{place}: holds characters that no header can carry (line breaks, control characters, accents)"
        )
    return secret


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    socket: str = ""
    http: str | None = None  # "127.0.0.1:4319": HTTP alone, loopback alone, with a token
    mode: str = "0660"
    group: str | None = None


class Intake(Struct, frozen=True, forbid_unknown_fields=True):
    max_frame_bytes: Size = Size(MAX_FRAME_BYTES)
    max_record_bytes: Size = Size(2**20)
    max_depth: int = 64
    max_connections: int = 2048
    max_pending_bytes: Size = Size(8 * 2**20)
    frame_timeout: Duration = Duration(30)
    dedupe_window: int = 65536
    reference_wait: Duration = Duration(2)


class Batch(Struct, frozen=True, forbid_unknown_fields=True):
    max_events: int = 50
    max_bytes: Size = Size(2**20)
    max_interval: Duration = Duration(0.5)
    max_request_events: int | None = None


class SpoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    directory: str = ""
    max_bytes: Size = Size(2**30)
    sync: Literal["full", "normal"] = "full"


class RetryConfig(Struct, frozen=True, forbid_unknown_fields=True):
    initial: Duration = Duration(0.25)
    max: Duration = Duration(60)


class DeadLetters(Struct, frozen=True, forbid_unknown_fields=True):
    max_bytes: Size = Size(128 * 2**20)


class JournalConfig(Struct, frozen=True, forbid_unknown_fields=True):
    retention: Duration = Duration(200 * 86400)
    max_bytes: Size = Size(256 * 2**20)


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True):
    drain_timeout: Duration = Duration(10)


class Runs(Struct, frozen=True, forbid_unknown_fields=True):
    keep: Duration = Duration(7 * 86400)
    orphan_grace: Duration = Duration(30)


class Memory(Struct, frozen=True, forbid_unknown_fields=True):
    budget: Size = Size(64 * 2**20)


class GateConfig(Struct, frozen=True, forbid_unknown_fields=True):
    remember: Duration = Duration(86400)
    follow: Duration = Duration(86400)


class PeerRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Which agents a uid on the Unix socket may speak for; a uid without a rule may speak for all."""

    uid: int
    agent_ids: list[str]


class TokenRule(Struct, frozen=True, forbid_unknown_fields=True):
    """What the holder of a local token may do; without agents or destinations all of them."""

    token: Secret
    agent_ids: list[str] | None = None
    destinations: list[str] | None = None


class Security(Struct, frozen=True, forbid_unknown_fields=True):
    admin_uids: list[int] = []
    peers: list[PeerRule] = []
    tokens: list[TokenRule] = []


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Destination(Struct, frozen=True, forbid_unknown_fields=True):
    platform: str
    base_url: str = ""
    agent_id: str | None = None
    agents: dict[str, str] | None = None
    accept: list[str] | None = None
    copy: bool = False
    api_key: Secret | None = None
    signing_secret: Secret | None = None
    options: dict[str, str] | None = None
    max_bytes: Size | None = None
    max_in_flight: int = 8
    timeout: Duration = Duration(30)
    fail_mode: Literal["closed", "open"] = "closed"
    ordering: Literal["run", "agent", "none"] = "run"
    inject_id: bool = True
    passthrough: Literal["agent", "admin"] = "agent"
    batch: Batch | None = None

    def accepts(self, known: Iterable[str]) -> frozenset[str]:
        """The kinds that it takes of those that its platform knows; `accept = []` is none of them, gates only."""
        return frozenset(known if self.accept is None else self.accept)


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    listen: Listen = Listen()
    intake: Intake = Intake()
    batch: Batch = Batch()
    spool: SpoolConfig = SpoolConfig()
    retry: RetryConfig = RetryConfig()
    dead_letters: DeadLetters = DeadLetters()
    journal: JournalConfig = JournalConfig()
    shutdown: Shutdown = Shutdown()
    gate: GateConfig = GateConfig()
    runs: Runs = Runs()
    memory: Memory = Memory()
    security: Security = Security()
    log: Log = Log()
    destinations: dict[str, Destination] = field(default_factory=dict)

    def batch_of(self, name: str) -> Batch:
        """The destination's own batch limits, else the common ones."""
        return self.destinations[name].batch or self.batch

    def quota_of(self, name: str) -> int:
        """The destination's own `max_bytes`, else an equal share of `spool.max_bytes` (promise 6)."""
        own = self.destinations[name].max_bytes
        return int(own) if own is not None else self.spool.max_bytes // max(1, len(self.destinations))


class Loaded(Struct, frozen=True):
    """A configuration and where it came from; `path` is None without a file."""

    config: Config
    path: str | None


SECTIONS: tuple[str, ...] = tuple(Config.__struct_fields__)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = frozenset({"v1", "healthz", "readyz", "metrics"})
_ARRAYS: dict[str, dict[str, type[Struct]]] = {"security": {"peers": PeerRule, "tokens": TokenRule}}
_SECRET_KEYS = frozenset({"api_key", "signing_secret", "token", "key"})


def find(env: Mapping[str, str], cwd: Path = Path()) -> Path | None:
    """`AGENTD_CONFIG`, `./agentd.toml`, `$XDG_CONFIG_HOME/agentd/agentd.toml`, `/etc/agentd/agentd.toml`, or None."""
    if env.get("AGENTD_CONFIG"):
        return Path(env["AGENTD_CONFIG"])
    home = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '')}/.config"
    places = (cwd / "agentd.toml", Path(home) / "agentd/agentd.toml", Path("/etc/agentd/agentd.toml"))
    return next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113 - Path.is_file raises where a folder is closed to us


def load(
    path: Path | None,
    env: Mapping[str, str],
    uid: int | None = None,
    kinds_of: Callable[[str], Iterable[str]] = lambda _platform: KINDS,
) -> Loaded:
    """Read and check the configuration. `path` None means: find it. Raises ConfigError.

    Without a file, and without a destination in the environment, the platforms' own variables make the destinations.
    `kinds_of` knows which kinds a platform takes; without it each is held to take all of them.
    """
    path = path or find(env)
    where = str(path) if path else "environment"
    table = _read(path) if path else {}
    overlay(table, env)
    if "destinations" not in table:
        table["destinations"] = destinations_of(env)
    _check_shape(table, where)
    try:
        config = msgspec.convert(table, Config, dec_hook=_dec_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {explain_fault(error, table, Config, _dec_hook)}") from None
    uid = os.getuid() if uid is None else uid
    config = _fill(config, env, uid)
    check_values(config, where, kinds_of)
    return Loaded(config, str(path) if path else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, and numbers of 5,000 digits
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _check_shape(table: dict[str, Any], where: str) -> None:
    """Unknown keys with the nearest one, and secrets in the file: the two that deserve words of their own."""
    for section, body in table.items():
        _known(section, SECTIONS, where, "section")
        if not isinstance(body, dict):
            raise ConfigError(f"{where}: [{section}]: expected a section, got {body!r}")
        if section == "destinations":
            for name, destination in body.items():
                _check_destination_shape(name, destination, where)
        else:
            _check_keys(body, type(getattr(Config(), section)), f"[{section}]", where)
        for key, struct in _ARRAYS.get(section, {}).items():
            _check_array(body.get(key, []), struct, f"[[{section}.{key}]]", where)


def _check_array(rows: object, struct: type[Struct], place: str, where: str) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(
            f"{where}: {place}: expected an array of tables, each with {', '.join(struct.__struct_fields__)}"
        )
    for number, row in enumerate(rows, 1):
        _check_keys(row, struct, f"{place} #{number}", where)


def _check_destination_shape(name: str, body: object, where: str) -> None:
    place = f"[destinations.{name}]"
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"{where}: {place}: a name is a-z, then a-z, 0-9 or _, and none of {', '.join(sorted(_RESERVED))}"
        )
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: {place}: expected a section, got {body!r}")
    _check_keys(body, Destination, place, where)
    if isinstance(body.get("batch"), dict):
        _check_keys(body["batch"], Batch, f"[destinations.{name}.batch]", where)


def _check_keys(body: dict[str, Any], struct: type[Struct], place: str, where: str) -> None:
    for key, value in body.items():
        _known(key, struct.__struct_fields__, where, f"{place} key")
        if key in _SECRET_KEYS and isinstance(value, str):
            raise ConfigError(
                f"{where}: {place} {key}: a secret stands in the configuration; write it to a file and say "
                f'{key} = {{ file = "/path" }}, {{ env = "VARIABLE" }} or {{ credential = "NAME" }}'
            )
        if key in _SECRET_KEYS and isinstance(value, dict) and len(value) != 1:
            raise ConfigError(f"{where}: {place} {key}: expected exactly one of credential, file, env")


def _known(key: str, known: tuple[str, ...], where: str, what: str) -> None:
    if key not in known:
        raise ConfigError(f"{where}: {what} {key!r} is unknown; {nearest(key, known)}")


def _dec_hook(kind: type, value: Any) -> Any:
    try:
        if kind is Duration:
            return Duration(parse_duration(value))
        if kind is Size:
            return Size(parse_size(value))
    except UsageError as error:
        raise ValueError(str(error)) from None
    raise NotImplementedError(kind)


def _fill(config: Config, env: Mapping[str, str], uid: int) -> Config:
    """The places that depend on who runs it."""
    listen = msgspec.structs.replace(config.listen, socket=config.listen.socket or socket_path(env, uid))
    spool = msgspec.structs.replace(config.spool, directory=config.spool.directory or state_directory(env, uid))
    return msgspec.structs.replace(config, listen=listen, spool=spool)


def masked(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for `agentd config`: secrets are places already, so nothing has to be hidden."""
    return {name: msgspec.to_builtins(getattr(config, name), enc_hook=_enc_hook) for name in SECTIONS}


def _enc_hook(value: Any) -> Any:
    return float(value) if isinstance(value, Duration) else int(value)
