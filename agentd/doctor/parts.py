"""What goes into a bug report's bundle, and which secrets and names this host knows of."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentd import __version__, filesystems
from agentd.config import masked
from agentd.doctor import looking
from agentd.doctor.bundle import Part
from agentd.doctor.examination import Given
from agentd.doctor.scrub import Scrubber, secrets_in
from agentd.errors import AgentdError, ConfigError, StateError
from agentd.redact.build import build_redactor
from agentd.sections import Config, Redact, Secret
from agentd.spool import audit as audits
from agentd.spool.look import open_rows
from agentd.variables import PLATFORM_VARIABLES

LOG_LINES = 500
_LOG_BYTES = 2**20
_JOURNAL_S = 10.0
_PACKAGES = ("agentd-recorder", "agentd", "aiohttp", "click", "diskcache", "msgspec", "prometheus-client", "rich")
_RELEVANT = (
    "AGENTD_",
    "AGENTOS_",
    "DECISION_OS_",
    "DECIDE_",
    "ASCEND_",
    "OWKAI_",
    "AEGIS_",
    "SSL_CERT_",
    "XDG_",
    "OTEL_",
)
_ALSO = frozenset(
    {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "INVOCATION_ID"}
)


def scrubber(given: Given, env: Mapping[str, str], *, key: bytes, with_names: bool) -> Scrubber:
    """One that knows the secrets that can be read from here, and the names that the configuration holds."""
    config = given.loaded.config if given.loaded is not None else Config()
    hide = build_redactor(Redact(), {}).text
    return Scrubber(_secrets(config, env), _names(config, env), key=key, hide=hide, with_names=with_names)


def _secrets(config: Config, env: Mapping[str, str]) -> set[str]:
    found = secrets_in(env)
    for place in _places(config):
        with contextlib.suppress(ConfigError):  # not for us to read, so that we can't write it either
            found.add(place.read(env))
    with contextlib.suppress(OSError, KeyError):
        found |= {path.read_text(errors="replace").strip() for path in Path(env["CREDENTIALS_DIRECTORY"]).iterdir()}
    userinfo = secrets_in({"url": "\n".join(found)})
    return found | userinfo | {line for value in found for line in value.splitlines()}


def _places(value: object) -> Iterator[Secret]:
    """Every place of a secret in the configuration."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _places(getattr(value, name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _places(part)
    elif isinstance(value, list):
        for part in value:
            yield from _places(part)


def _names(config: Config, env: Mapping[str, str]) -> set[str]:
    names = {env[variable] for known in PLATFORM_VARIABLES.values() for variable in known.agent_id if env.get(variable)}
    for destination in config.destinations.values():
        names |= {destination.agent_id or "", *(destination.agents or {}), *(destination.agents or {}).values()}
    for peer in config.security.peers:
        names |= set(peer.agent_ids)
    for token in config.security.tokens:
        names |= set(token.agent_ids or ())
    return names - {"", "*"}


def parts(
    given: Given,
    env: Mapping[str, str],
    *,
    ask: Callable[[str], Any],
    doctor: Callable[[], Any],
    directory: Callable[[], Path],
    log: Path | None,
    audit: bool,
) -> list[Part]:
    """In the order in which they are taken: what makes root the folder's owner comes last. `ask` is the daemon's answer at a path."""
    found = [
        Part("platform.json", "this host: kernel, Python, limits, file systems", lambda: _platform(directory())),
        Part("versions.json", "agentd and what it is made with", _versions),
        Part("variables.json", "which variables are set, without their values", lambda: _variables(env)),
        Part("config.json", "the configuration in force; secrets are places", lambda: _config(given)),
        Part("status.json", "what the daemon says of itself", lambda: ask("/v1/status")),
        Part("health.json", "whether it is healthy and ready", lambda: {"healthz": ask("/healthz"), "readyz": ask("/readyz")}),
        Part("metrics.prom", "its metrics", lambda: ask("/metrics")),
        Part("queue.json", "how much waits, by destination", lambda: ask("/v1/queue?view=stats")),
        Part("log.txt", f"the last {LOG_LINES} lines of its log", lambda: _log(log)),
        Part("doctor.json", "what doctor finds", doctor),
    ]  # fmt: skip
    if audit:
        found.append(Part("audit.json", "the books, recounted from the disk", lambda: _audit(directory())))
    return found


def _platform(directory: Path) -> dict[str, Any]:
    disk = looking.disk(directory)
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": sys.version,
        "libc": " ".join(platform.libc_ver()),
        "cpus": os.cpu_count(),
        "uid": os.geteuid(),
        "is_container": Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or bool(os.environ.get("KUBERNETES_SERVICE_HOST")),
        "systemd": Path("/run/systemd/system").is_dir(),
        "unit": msgspec.to_builtins(looking.unit()),
        "files": msgspec.to_builtins(looking.files(None)),
        "disk": None if disk is None else msgspec.to_builtins(disk),
        "state_on": filesystems.look(directory).kind,
        "os_release": _os_release(),
    }  # fmt: skip


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _versions() -> dict[str, Any]:
    installed = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return {"agentd": __version__, "python": platform.python_version(), "packages": installed}


def _variables(env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "set": sorted(
            name for name in env if name.startswith(_RELEVANT) or name in _ALSO or name.lower().endswith("_proxy")
        )
    }


def _config(given: Given) -> dict[str, Any]:
    if given.loaded is None:
        raise StateError(given.error)
    document = {"path": given.loaded.path, **masked(given.loaded.config)}
    redact = document["redact"]
    redact["allow"] = f"{len(redact['allow'])} expressions"  # they may be the very values
    redact["patterns"] = [entry.partition("=")[0] for entry in redact["patterns"]]
    return document


def _log(log: Path | None) -> str:
    """The end of a file, or of systemd's journal. Raises StateError where there is neither."""
    if log is not None:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])
    if shutil.which("journalctl") is None:
        raise StateError("there is no journal here; --log FILE takes the end of a file")
    command = ["journalctl", "--unit=agentd.service", f"--lines={LOG_LINES}", "--output=cat", "--no-pager", "--quiet"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_JOURNAL_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise StateError("the journal did not answer") from None
    if not done.stdout.strip():
        raise StateError("the journal has no lines of agentd.service for this user; --log FILE takes the end of a file")
    return done.stdout[-_LOG_BYTES:]


def _audit(directory: Path) -> dict[str, Any]:
    with open_rows(directory) as store:
        found = audits.audit(store)
    return {
        "balanced": found.balanced,
        "commits": found.commits,
        "books": msgspec.to_builtins(found.counts),
        "causes": found.causes,
        "findings": msgspec.to_builtins(found.findings),
    }


def unreachable(error: AgentdError) -> Callable[[str], Any]:
    """In place of a daemon that does not answer."""

    def ask(_path: str) -> Any:
        raise error

    return ask
