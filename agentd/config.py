"""The configuration: TOML and `AGENTD_<SECTION>__<KEY>` variables into frozen Structs; a wrong key names the nearest.

`load(path, env, uid)` reads the file it is told (or finds), never a secret: those are references that `Secret.read`
resolves when a destination is opened. Errors are `ConfigError` with file, section and key.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agentd.config_checks import check_values, nearest
from agentd.config_faults import explain_fault
from agentd.errors import ConfigError, StateError, UsageError
from agentd.ownership import read_checked
from agentd.paths import socket_path, state_directory
from agentd.records import KINDS
from agentd.sections import Batch, Config, Destination, Duration, Loaded, PeerRule, Rate, Size, TokenRule
from agentd.stamp import completed
from agentd.units import parse_duration, parse_rate, parse_size
from agentd.variables import destinations_of, overlay

SECTIONS: tuple[str, ...] = tuple(Config.__struct_fields__)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = frozenset({"v1", "healthz", "readyz", "metrics"})
_ARRAYS: dict[str, dict[str, type[Struct]]] = {"security": {"peers": PeerRule, "tokens": TokenRule}}
_SECRET_KEYS = frozenset({"api_key", "signing_secret", "client_key", "token", "key"})


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
    *,
    before: Path | None = None,
) -> Loaded:
    """Read and check the configuration. `path` None means: find it, or take what was found `before`. Raises ConfigError.

    Without a file, and without a destination in the environment, the platforms' own variables make the destinations.
    `kinds_of` knows which kinds a platform takes; without it each is held to take all of them.
    """
    named = path is not None or bool(env.get("AGENTD_CONFIG"))
    path = path or before or find(env)
    where = str(path) if path else "environment"
    table = _read(path, named=named) if path else {}
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


def _read(path: Path, *, named: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(read_checked(path, os.geteuid(), named=named).decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except StateError as error:
        raise ConfigError(f"{path}: {error}") from None
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
        if kind is Rate:
            return Rate(parse_rate(value))
    except UsageError as error:
        raise ValueError(str(error)) from None
    raise NotImplementedError(kind)


def _fill(config: Config, env: Mapping[str, str], uid: int) -> Config:
    """The places that depend on who runs it."""
    listen = msgspec.structs.replace(config.listen, socket=config.listen.socket or socket_path(env, uid))
    spool = msgspec.structs.replace(config.spool, directory=config.spool.directory or state_directory(env, uid))
    identity = completed(config.identity, env, socket.gethostname())
    return msgspec.structs.replace(config, listen=listen, spool=spool, identity=identity)


def masked(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for `agentd config`: secrets are places already, so nothing has to be hidden."""
    return {name: msgspec.to_builtins(getattr(config, name), enc_hook=_enc_hook) for name in SECTIONS}


def _enc_hook(value: Any) -> Any:
    return float(value) if isinstance(value, Duration | Rate) else int(value)
