"""The platforms: one adapter a file, found by its module's name, which is the word in the configuration.

What an adapter has no room for stands beside it in `_NAME_*`: its gates, and what it takes from its unmodified SDK.
"""

from __future__ import annotations

import importlib
import pkgutil

from agentd.errors import ConfigError
from agentd.exchange import Platform


def names() -> list[str]:
    """Every platform that agentd speaks to."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def load(name: str) -> Platform:
    """The adapter of that name. Raises ConfigError that names the known ones."""
    if name not in names():
        raise ConfigError(f"platform {name!r} is unknown; known: {', '.join(names())}")
    platform: Platform = importlib.import_module(f"{__name__}.{name}").PLATFORM
    return platform
