"""What a new configuration changes, and what of that can't be done while the daemon runs. Pure: two setups in, a plan out.

A plan is carried out whole or not at all. What is not known to follow (`FOLLOWS`) needs a restart: a key that nobody has
thought of here is refused and not forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from agentd.errors import ConfigError
from agentd.reach import Reach
from agentd.sections import Config, Destination

# Sections, or keys of sections, that are exchanged while the daemon runs. Destinations have rules of their own.
FOLLOWS = frozenset(
    {
        "batch",
        "retry",
        "dead_letters",
        "journal",
        "gate",
        "runs",
        "shutdown",
        "security",
        "log",
        "redact",
        "identity",
        "outbound",
        "intake.reference_wait",
        "intake.max_connections_per_uid",
        "intake.max_records_per_second_per_uid",
        "intake.max_bytes_per_second_per_uid",
        "intake.max_record_bytes",
        "intake.max_depth",
        "spool.max_bytes",
    }
)
_COMMON = ("retry", "batch", "outbound", "identity", "intake.reference_wait")  # what all couriers share


class Site(Protocol):
    """A configured destination with its secrets read."""

    @property
    def destination(self) -> Destination: ...
    @property
    def identity(self) -> str: ...
    @property
    def api_key(self) -> str: ...
    @property
    def signing_secret(self) -> str | None: ...
    @property
    def reach(self) -> Reach | None: ...


class Setup(Struct, frozen=True):
    """A configuration with its secrets read. `tokens` are those of `security.tokens`, in their order."""

    config: Config
    sites: Mapping[str, Site]
    tokens: Sequence[str] = ()

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"<Setup {', '.join(self.sites)}>"


class Kept(Struct, frozen=True):
    """A queue as the spool has it: what its records were taken for, and how many wait."""

    identity: str
    records: int


class Plan(Struct, frozen=True):
    """What changes. `added` and `removed` say how many records wait in that queue, `changed` which keys are others.

    `moved` are those of the changed that are another platform or account now: nothing waits there.
    """

    added: dict[str, int] = {}
    removed: dict[str, int] = {}
    changed: dict[str, tuple[str, ...]] = {}
    moved: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return bool(self.added or self.removed or self.changed or self.settings)

    def __str__(self) -> str:
        """In words, for people."""
        parts = [f"{name} added" + (f" with {left} records kept" if left else "") for name, left in self.added.items()]
        parts += [f"{name} removed" + (f", {left} records kept" if left else "") for name, left in self.removed.items()]
        parts += [f"{name} changed ({', '.join(keys)})" for name, keys in self.changed.items()]
        return "; ".join([*parts, *self.settings]) or "nothing changed"

    @property
    def is_common(self) -> bool:
        """Whether what all couriers share is another."""
        return any(_is_within(key, _COMMON) for key in self.settings)


def changes(old: Setup, new: Setup, kept: Mapping[str, Kept]) -> Plan:
    """What to do. `kept` are the spool's queues, configured or not. Raises ConfigError that names all that can't be done."""
    settings = tuple(_settings(old, new))
    refusals = [f"{_dotted(key)} needs a restart" for key in settings if not _is_within(key, FOLLOWS)]
    refusals += [_moved(name, kept[name]) for name, site in new.sites.items() if _is_moved(site, kept.get(name))]
    if refusals:
        raise ConfigError(f"not reloaded: {'; '.join(refusals)}")
    both = [name for name in new.sites if name in old.sites]
    changed = {name: keys for name in both if (keys := tuple(_keys(name, old, new)))}
    return Plan(
        added={name: _records(kept, name) for name in new.sites if name not in old.sites},
        removed={name: _records(kept, name) for name in old.sites if name not in new.sites},
        changed=changed,
        moved=tuple(name for name in both if old.sites[name].identity != new.sites[name].identity),
        settings=settings,
    )


def _records(kept: Mapping[str, Kept], name: str) -> int:
    return kept[name].records if name in kept else 0


def _is_moved(site: Site, queue: Kept | None) -> bool:
    return queue is not None and queue.records > 0 and queue.identity != site.identity


def _moved(name: str, queue: Kept) -> str:
    return (
        f"[destinations.{name}] platform, base_url or agents changed while {queue.records} records wait for it (they were "
        f"taken for {queue.identity}): let it drain, give the new one another name, or take them out for good with "
        f"'agentd queue drop {name} --reason TEXT'"
    )


def _settings(old: Setup, new: Setup) -> Iterator[str]:
    """The keys outside of destinations that differ, as `section.key`."""
    for section in Config.__struct_fields__:
        if section == "destinations":
            continue
        was, now = getattr(old.config, section), getattr(new.config, section)
        yield from (f"{section}.{key}" for key in _differing(was, now))
    if old.config.security.tokens == new.config.security.tokens and list(old.tokens) != list(new.tokens):
        yield "security.tokens"  # rotated: the same places, other contents


def _differing(was: Struct, now: Struct) -> list[str]:
    return [key for key in now.__struct_fields__ if getattr(was, key) != getattr(now, key)]


def _keys(name: str, old: Setup, new: Setup) -> Iterator[str]:
    """The keys of a destination that differ, secrets by what they hold and not by where they are alone."""
    was, now = old.sites[name], new.sites[name]
    differing = _differing(was.destination, now.destination)
    yield from (key for key in differing if key != "batch")
    if was.api_key != now.api_key and "api_key" not in differing:
        yield "api_key"
    if was.signing_secret != now.signing_secret and "signing_secret" not in differing:
        yield "signing_secret"
    proxy = _proxy_of(was), _proxy_of(now)
    if proxy[0] != proxy[1] and "proxy" not in differing and old.config.outbound == new.config.outbound:
        yield "proxy"  # the same place, another content: the environment's or a secret's
    if old.config.batch_of(name) != new.config.batch_of(name):
        yield "batch"


def _proxy_of(site: Site) -> object:
    return None if site.reach is None else site.reach.proxy


def _is_within(key: str, known: Iterable[str]) -> bool:
    return key in known or key.partition(".")[0] in known


def _dotted(key: str) -> str:
    section, _, name = key.partition(".")
    return f"[{section}] {name}"


def as_document(plan: Plan) -> dict[str, object]:
    """The plan as JSON: what `POST /-/reload` answers."""
    document: dict[str, object] = msgspec.to_builtins(plan)
    return document
