"""Which destinations take a record: by kind, agent and `to`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from msgspec import Struct

from agentd.errors import RecordError


class Route(Struct, frozen=True):
    """A destination as routing sees it. `agents` None takes every agent."""

    name: str
    kinds: frozenset[str]
    introduces: frozenset[str] = frozenset()
    agents: tuple[str, ...] | None = None
    default_agent: str = ""
    ordering: str = "run"

    def takes(self, kind: str, agent: str) -> bool:
        return kind in self.kinds and self.takes_agent(agent)

    def takes_agent(self, agent: str) -> bool:
        if self.agents is None:
            return True
        name = agent or self.default_agent
        return any(fnmatchcase(name, pattern) for pattern in self.agents)


class Table:
    """The routes, with the answers for (kind, agent) remembered."""

    _REMEMBERED = 10_000  # agent names come from outside: bounded

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._names = frozenset(route.name for route in self._routes)
        self._defaults = {route.name: route.default_agent for route in self._routes}
        self._known: dict[tuple[str, str], tuple[Route, ...]] = {}

    def default_agent(self, destination: str) -> str:
        """The destination's name for records that name no agent."""
        return self._defaults.get(destination, "")

    def route(self, kind: str, agent: str, to: str | Sequence[str] | None) -> tuple[Route, ...]:
        """The destinations of a record. Raises RecordError that says why nobody takes it."""
        found = self._known.get((kind, agent))
        if found is None:
            found = self._find(kind, agent)
        if to is not None:
            return self._named(found, kind, agent, (to,) if isinstance(to, str) else tuple(to))
        if not found:
            raise RecordError(self._why(kind, agent))
        return found

    def takes(self, destination: str, kind: str, agent: str) -> bool:
        """Whether it would take the kind from that agent."""
        found = self._known.get((kind, agent))
        if found is None:
            found = self._find(kind, agent)
        return destination in [route.name for route in found]

    def _find(self, kind: str, agent: str) -> tuple[Route, ...]:
        found = tuple(route for route in self._routes if route.takes(kind, agent))
        if len(self._known) >= self._REMEMBERED:
            self._known.clear()
        self._known[kind, agent] = found
        return found

    def _named(self, found: tuple[Route, ...], kind: str, agent: str, names: tuple[str, ...]) -> tuple[Route, ...]:
        if not names:
            raise RecordError("$.to: names no destination")
        unknown = [name for name in names if name not in self._names]
        if unknown:
            raise RecordError(
                f"$.to: no destination {unknown[0][:64]!r}; configured: {', '.join(sorted(self._names)) or 'none'}"
            )
        named = tuple(route for route in found if route.name in names)
        if len(named) != len(set(names)):
            missing = sorted(set(names) - {route.name for route in named})
            raise RecordError(
                f"$.to: {missing[0]} does not take {kind}" + (f" of agent {agent[:64]!r}" if agent else "")
            )
        return named

    def _why(self, kind: str, agent: str) -> str:
        if not self._routes:
            return "no destination is configured"
        if not any(kind in route.kinds for route in self._routes):
            return f"$.kind: no destination takes {kind} (configured: {', '.join(sorted(self._names))})"
        return f"$.agent_id: no destination takes {kind} of agent {agent[:64]!r}"
