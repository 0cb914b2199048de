"""What can be configured: a frozen Struct for each section, with its defaults. Reading and checking are config's and config_checks'.

A secret is a place here (`Secret`), read when it is needed: nothing that is printed of a configuration can hold one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from agentd.errors import ConfigError
from agentd.private import read_private
from agentd.wire import MAX_FRAME_BYTES


class Duration(float):
    """Seconds, written with a unit."""


class Size(int):
    """Bytes, written with a unit."""


class Rate(float):
    """Requests a second, written as a number of these or with a unit of time."""


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
        value = read_private(path, checked=self.file is not None).strip()  # systemd has seen to its credentials
        if not value:
            raise ConfigError(f"{path}: empty")
        return _printable(value, str(path))

    def path(self, env: Mapping[str, str]) -> Path:
        """Where it is, for a library that reads it itself. Raises ConfigError, also where others may read it."""
        if self.env is not None:
            raise ConfigError("expected { file = … } or { credential = … }: it is read as a file")
        path = self._path(env)
        read_private(path, checked=self.file is not None)
        return path

    def _path(self, env: Mapping[str, str]) -> Path:
        if self.credential is None:
            return Path(self.file or "")
        if self.credential in {"", ".", ".."} or "/" in self.credential:
            raise ConfigError(f"credential {self.credential!r}: expected a name without a path")
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
    probe: str | None = None  # "0.0.0.0:4320": /healthz, /readyz and /metrics alone, for kubelet and Prometheus
    mode: str = "0660"
    group: str | None = None


class Intake(Struct, frozen=True, forbid_unknown_fields=True):
    max_frame_bytes: Size = Size(MAX_FRAME_BYTES)
    max_record_bytes: Size = Size(2**20)
    max_depth: int = 64
    max_connections: int = 2048
    max_pending_bytes: Size = Size(8 * 2**20)
    max_connections_per_uid: int = 1024
    max_pending_bytes_per_uid: Size = Size(32 * 2**20)
    max_records_per_second_per_uid: int = 0  # 0: no limit
    max_bytes_per_second_per_uid: Size = Size(0)
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


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """Where records come from (agentd.stamp); empty: nothing is said of it."""

    host: str = ""
    service: str = ""
    environment: str = ""
    version: str = ""
    attributes: dict[str, str] = {}


class Outbound(Struct, frozen=True, forbid_unknown_fields=True):
    """The way out, for every destination that says nothing else."""

    proxy: str | Secret | None = None  # without it the environment's
    no_proxy: list[str] = []  # what `proxy` is not for, in the form of NO_PROXY
    ca_file: str | None = None


class Redact(Struct, frozen=True, forbid_unknown_fields=True):
    """What is taken out of records before they are stored (agentd.redact); no keys and no patterns: nothing."""

    keys: list[str] = field(default_factory=lambda: ["default"])
    patterns: list[str] = field(default_factory=lambda: ["default"])
    allow: list[str] = []
    mode: Literal["mask", "hash", "drop"] = "mask"
    key: Secret | None = None


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"  # auto: json into systemd's journal, text elsewhere


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
    rate_limit: Rate | None = None
    monthly_cap: int | None = None
    timeout: Duration = Duration(30)
    connect_timeout: Duration | None = None
    proxy: str | Secret | None = None
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: Secret | None = None
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
    redact: Redact = Redact()
    identity: Identity = Identity()
    outbound: Outbound = Outbound()
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
