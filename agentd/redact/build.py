"""The redactor that the configuration asks for. Raises ConfigError that names the entry which is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agentd.errors import ConfigError
from agentd.redact.engine import Redactor, Rules
from agentd.redact.keys import DEFAULT, Keys, read_keys
from agentd.redact.marks import Marker
from agentd.redact.own import read_allowed, read_own
from agentd.redact.patterns import BUILT_IN, OPTIONAL, Pattern
from agentd.sections import Redact

_LEAST_KEY = 16  # characters: HMAC-SHA-256 under less can be tried out


def check_redact(config: Redact, where: str) -> None:
    """Whether rules can be made of it; reads no secret. Raises ConfigError."""
    read_keys(config.keys, where)
    _read_patterns(config.patterns, where)
    for source in config.allow:
        read_allowed(source, where)
    if config.mode == "hash" and config.key is None:
        raise ConfigError(
            f'{where}: [redact] mode = "hash" needs a key: key = {{ file = "/path" }}, {{ env = "VARIABLE" }} or {{ credential = "NAME" }}'
        )


def build_redactor(config: Redact, env: Mapping[str, str], where: str = "[redact]") -> Redactor:
    """Its rules at work. Raises ConfigError, also where the key can't be read."""
    check_redact(config, where)
    key = b""
    if config.key is not None:
        key = config.key.read(env).encode()
        if len(key) < _LEAST_KEY:
            raise ConfigError(f"{where}: [redact] key: {config.key}: expected {_LEAST_KEY} characters or more")
    allowed = [read_allowed(source, where) for source in config.allow]
    rules = Rules(
        read_keys(config.keys, where),
        _read_patterns(config.patterns, where),
        Marker(config.mode, key),
        tuple(config.allow),
    )
    return Redactor(rules, allowed)


def no_redactor() -> Redactor:
    """One without rules."""
    return Redactor(Rules(Keys(()), (), Marker("mask")))


def _read_patterns(configured: list[str], where: str) -> tuple[Pattern, ...]:
    """`redact.patterns`: `default`, a built-in one's name, `!name` to leave one out, or NAME=EXPRESSION."""
    known: dict[str, list[Pattern]] = {}
    for pattern in (*BUILT_IN, *OPTIONAL):
        known.setdefault(pattern.name, []).append(pattern)
    chosen: list[Pattern] = []
    for entry in configured:
        if entry == DEFAULT:
            chosen += BUILT_IN
        elif entry.removeprefix("!") in known and entry.startswith("!"):
            chosen = [pattern for pattern in chosen if pattern.name != entry[1:]]
        elif entry in known:
            chosen += known[entry]
        elif re.fullmatch(r"!?[a-z0-9_-]*", entry):
            raise ConfigError(
                f"{where}: [redact] patterns: {entry!r}: expected one of {DEFAULT}, {', '.join(known)} (with ! before it: not that one), "
                "or NAME=EXPRESSION"
            )
        else:
            chosen.append(read_own(entry, where))
    return tuple({id(pattern): pattern for pattern in chosen}.values())
