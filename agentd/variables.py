"""What the environment says of the configuration: `AGENTD_<SECTION>__<KEY>`, and the variables that the platforms' own SDKs read.

Tables in, tables out; `config` checks them. No secret is read here: a key's variable is named, and its value left where it is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from agentd.errors import ConfigError


class _Variables(Struct, frozen=True):
    """The variables that a platform's own SDK reads; of several names for one thing the first that is set counts."""

    api_key: tuple[str, ...]
    agent_id: tuple[str, ...] = ()
    base_url: tuple[str, ...] = ()


# Without a configuration file these make a destination for each platform whose key is set
PLATFORM_VARIABLES = {
    "agentos": _Variables(("AGENTOS_API_KEY",), ("AGENTOS_AGENT_ID",), ("AGENTOS_BASE_URL",)),
    "decisionos": _Variables(("DECISION_OS_API_KEY",), ("DECISION_OS_AGENT_ID",)),
    "decidefyi": _Variables(("DECIDE_API_KEY",)),
    "ascend": _Variables(
        ("ASCEND_API_KEY", "OWKAI_API_KEY"), ("ASCEND_AGENT_ID",), ("ASCEND_API_URL", "OWKAI_API_URL")
    ),
    "aegis": _Variables(("AEGIS_API_KEY",), ("AEGIS_AGENT_ID",), ("AEGIS_API_URL",)),
}
KEY_VARIABLES: tuple[str, ...] = tuple(name for known in PLATFORM_VARIABLES.values() for name in known.api_key)


def overlay(table: dict[str, Any], env: Mapping[str, str]) -> None:
    """`AGENTD_BATCH__MAX_EVENTS=100` and `AGENTD_DESTINATIONS__NAME__API_KEY__ENV=VAR` over the file's values."""
    for variable in sorted(env):
        if not variable.startswith("AGENTD_") or "__" not in variable:
            continue
        keys = variable.removeprefix("AGENTD_").lower().split("__")
        target = table
        for key in keys[:-1]:
            child = target.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{variable}: {key} is a value, not a section")
            target = child
        value = _from_text(env[variable])
        is_option = keys[0] == "destinations" and keys[-2] == "options"  # always text, `409` and `true` as well
        target[keys[-1]] = env[variable] if is_option and not isinstance(value, str) else value


def _from_text(text: str) -> object:
    """A TOML value where it is one (`100`, `true`, `["event"]`), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def destinations_of(env: Mapping[str, str]) -> dict[str, Any]:
    """A table for each platform whose key is set."""
    destinations: dict[str, Any] = {}
    for platform, names in PLATFORM_VARIABLES.items():
        key = _first_set(names.api_key, env)
        if key is None:
            continue
        table: dict[str, Any] = {"platform": platform, "api_key": {"env": key}}
        for field_name, variable in (
            ("agent_id", _first_set(names.agent_id, env)),
            ("base_url", _first_set(names.base_url, env)),
        ):
            if variable is not None:
                table[field_name] = env[variable]
        destinations[platform] = table
    return destinations


def _first_set(names: Iterable[str], env: Mapping[str, str]) -> str | None:
    return next((name for name in names if env.get(name)), None)
