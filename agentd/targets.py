"""Destinations as configured, with their platforms and keys: what is known of them before anything is opened."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase

from agentd import platforms
from agentd.delivery.backoff import Backoff
from agentd.delivery.batcher import Limits as BatchLimits
from agentd.delivery.settings import Settings
from agentd.errors import ConfigError
from agentd.exchange import Platform, check_options
from agentd.intake.routing import Route
from agentd.reach import reach_of
from agentd.sections import Config, Destination, Secret
from agentd.stamp import stamp_of
from agentd.variables import KEY_VARIABLES

log = logging.getLogger("agentd")


class Target:
    """A configured destination with everything that is known before it is opened. Raises ConfigError."""

    def __init__(self, name: str, config: Config, env: Mapping[str, str]) -> None:
        self.name = name
        self.config = config
        self.destination: Destination = config.destinations[name]
        self.platform: Platform = platforms.load(self.destination.platform)
        self.base_url = self.destination.base_url or self.platform.default_base_url
        self.stamp = stamp_of(config.identity)
        self.kinds = self.destination.accepts(self.platform.calls)  # empty: gates only, nothing is queued for it
        unknown = sorted(self.kinds - set(self.platform.calls))
        if unknown:
            raise ConfigError(f"[destinations.{name}] accept: {self.platform.name} has no call for {unknown[0]}")
        if self.destination.api_key is None:
            raise ConfigError(
                f'[destinations.{name}] api_key is missing: say api_key = {{ env = "VARIABLE" }} or {{ file = "/path" }}'
            )
        self.api_key = self._read("api_key", self.destination.api_key, env)
        secret = self.destination.signing_secret
        self.signing_secret = None if secret is None else self._read("signing_secret", secret, env)
        try:
            self.reach = reach_of(self.destination, self.base_url, config.outbound, env, name)
        except ConfigError as error:
            raise ConfigError(f"[destinations.{name}] {error}") from None
        try:
            check_options(self.platform, self.destination.options or {})
        except ConfigError as error:
            raise ConfigError(f"[destinations.{name}] {error}") from None
        if not self.kinds and self.platform.calls:
            log.warning("%s: takes gates only; no record is queued for it", name, extra={"action": "gates_only"})

    def _read(self, key: str, secret: Secret, env: Mapping[str, str]) -> str:
        try:
            return secret.read(env)
        except ConfigError as error:
            raise ConfigError(f"[destinations.{self.name}] {key}: {error}") from error

    @property
    def identity(self) -> str:
        """What its queue, references and seals belong to."""
        agents = self.destination.agents
        return f"{self.platform.name} at {self.base_url} for " + (
            "every agent" if agents is None else str(dict(sorted(agents.items())))
        )

    def agent_of(self, local: str) -> str:
        """The platform's id for a local agent name; the name itself where no table says otherwise."""
        default = self.destination.agent_id or ""
        name = local or default
        agents = self.destination.agents
        if agents is None:
            return name
        exact = agents.get(name)
        return (
            exact
            if exact is not None
            else next((to for pattern, to in agents.items() if fnmatchcase(name, pattern)), name)
        )

    def route(self) -> Route:
        agents = self.destination.agents
        return Route(
            self.name,
            self.kinds,
            self.platform.introduces,
            None if agents is None else tuple(agents),
            self.destination.agent_id or "",
            self.destination.ordering,
        )

    def settings(self) -> Settings:
        batch = self.config.batch_of(self.name)
        return Settings(
            name=self.name,
            api_key=self.api_key,
            limits=BatchLimits(
                batch.max_events,
                int(batch.max_bytes),
                int(batch.max_interval * 1e6),
                batch.max_request_events or batch.max_events,
            ),
            max_in_flight=self.destination.max_in_flight,
            rate=self.destination.rate_limit,
            backoff=Backoff(float(self.config.retry.initial), float(self.config.retry.max)),
            reference_wait_us=int(self.config.intake.reference_wait * 1e6),
            agent_of=self.agent_of,
            inject_id=self.destination.inject_id,
            options=self.destination.options or {},
            signing_secret=self.signing_secret,
            stamp=self.stamp,
            dialect=(
                self.destination.agent_id,
                self.destination.agents,
                self.destination.options,
                self.config.identity,
            ),
        )


def targets_of(config: Config, env: Mapping[str, str]) -> dict[str, Target]:
    """Every configured destination. Raises ConfigError, also when there is none."""
    if not config.destinations:
        raise ConfigError(
            "no destination: add a section [destinations.NAME] to the configuration, or set a platform's own key "
            f"({', '.join(KEY_VARIABLES)}); 'agentd demo' needs neither"
        )
    return {name: Target(name, config, env) for name in config.destinations}
