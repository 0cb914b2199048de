"""`agentd config`: what is in force and where each value came from, as a file that would load to the same."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from agentd.cli.options import config_option, json_option, load_config
from agentd.cli.terminal import print_json
from agentd.config import SECTIONS, masked
from agentd.sections import Duration, Loaded, Rate, Size
from agentd.units import format_rate

_SIZES = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_DURATIONS = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3))
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_COMMENT_COLUMN = 48
Key = tuple[str, ...]

# Places that agentd shares with its clients and with systemd, and that are no AGENTD_<SECTION>__<KEY>
_PLACES: dict[Key, str] = {
    ("listen", "socket"): "AGENTD_SOCKET",
    ("spool", "directory"): "STATE_DIRECTORY",
    ("identity", "service"): "OTEL_SERVICE_NAME",
    ("identity", "version"): "OTEL_RESOURCE_ATTRIBUTES",
    ("identity", "environment"): "OTEL_RESOURCE_ATTRIBUTES",
}


@click.command()
@config_option
@json_option
def config(*, as_json: bool) -> None:
    """Show the configuration in force, and where each value came from."""
    loaded = load_config()
    if as_json:
        print_json(masked(loaded.config))
        return
    for line in as_toml(loaded, os.environ):
        click.echo(line)


def as_toml(loaded: Loaded, env: Mapping[str, str]) -> list[str]:
    """TOML lines: a value in force, or a commented key that is not set, and behind it the value's origin."""
    lines = [f"# {loaded.path or 'no configuration file'}"]
    origins = _Origins(loaded, env)
    for section in SECTIONS:
        if section != "destinations":
            lines += _section((section,), getattr(loaded.config, section), origins)
    for name, destination in loaded.config.destinations.items():
        lines += _section(("destinations", name), destination, origins)
    return lines


class _Origins:
    """Where the value under a key came from."""

    def __init__(self, loaded: Loaded, env: Mapping[str, str]) -> None:
        self._file = dict(_leaves(tomllib.loads(Path(loaded.path).read_text()))) if loaded.path else {}
        self._path = loaded.path
        self._env = env
        self._variables = {_key_of(name): name for name in env if name.startswith("AGENTD_") and "__" in name}
        self._made = {name for name in loaded.config.destinations if not self._mentions(("destinations", name))}

    def of(self, key: Key, *, is_default: bool) -> str:
        """`environment: VARIABLE`, `file: PATH`, or what agentd chose by itself."""
        for variable_key, variable in self._variables.items():
            if variable_key[: len(key)] == key:
                return f"environment: {variable}"
        if any(known[: len(key)] == key for known in self._file):
            return f"file: {self._path}"
        if key[0] == "destinations" and key[1] in self._made and not is_default:
            return "environment: the platform's own variables"
        if not is_default and self._env.get(_PLACES.get(key, "")):
            return f"environment: {_PLACES[key]}"
        return "default" if is_default else "default for this user"

    def _mentions(self, key: Key) -> bool:
        return any(known[: len(key)] == key for known in (*self._file, *self._variables))


def _leaves(table: Mapping[str, Any], key: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*key, name))
        else:
            yield (*key, name), value


def _key_of(variable: str) -> Key:
    return tuple(variable.removeprefix("AGENTD_").lower().split("__"))


def _section(key: Key, body: msgspec.Struct, origins: _Origins) -> list[str]:
    lines = ["", f"[{'.'.join(key)}]"]
    tables: list[str] = []
    for field in msgspec.structs.fields(type(body)):
        value = getattr(body, field.encode_name)
        if field.name == "batch" and value is not None:  # a destination's own limits are a table of their own
            tables += _section((*key, field.name), value, origins)
            continue
        default = field.default if field.default is not msgspec.NODEFAULT else None
        origin = origins.of((*key, field.name), is_default=value == default)
        text = f"# {field.name} is not set" if value is None else f"{field.name} = {toml_value(value)}"
        lines.append(f"{text:<{_COMMENT_COLUMN}} # {origin}" if value is not None else text)
    return lines + tables


def toml_value(value: object) -> str:
    """The value in TOML, durations and sizes with the largest unit that is exact."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Duration):
        return _with_unit(float(value), _DURATIONS)
    if isinstance(value, Size):
        return _with_unit(int(value), _SIZES)
    if isinstance(value, Rate):
        return f'"{format_rate(value)}"'
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _toml_text(value)
    if isinstance(value, list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, msgspec.Struct):
        value = {name: part for name, part in msgspec.structs.asdict(value).items() if part is not None}
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(name)} = {toml_value(part)}" for name, part in value.items()) + " }"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _with_unit(value: float, units: tuple[tuple[str, float], ...]) -> str:
    for name, factor in units:
        count = round(value / factor)
        if count and count * factor == value:
            return f'"{count}{name}"'
    return repr(value)


def _toml_text(text: str) -> str:
    """A basic string. JSON's differs from it in one character only: it lets DEL stand (https://toml.io/en/v1.0.0#string)."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml_text(name)
