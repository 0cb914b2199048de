"""`[identity]`: where records come from, said where a platform has room for it. Pure.

Every request says it in its `User-Agent` (RFC 9110 §10.1.5), ASCEND's also in `X-Environment`, as its SDK does. In bodies it stands as
the member `agentd_identity` where the platform takes free members that are not what the agent said to somebody: the input of
AgentOS's `run.start`, the `metadata` of an Aegis intent, the `context` of an ASCEND action. A decision of Decision OS whose agent names
no `runner` gets the service. decide.fyi's receipts are hashed over their fields and have no room.

It is fixed when a batch is sealed: calls with room for it are sealed with their whole body, so that a repeat is the same bytes under
whatever identity agentd was started meanwhile (promise 4). Headers may differ from try to try. Who configures nothing tells nothing:
the host's name alone makes no identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from agentd import __version__
from agentd.errors import ConfigError

if TYPE_CHECKING:  # config loads this module
    from agentd.sections import Identity

MEMBER = "agentd_identity"
MAX_CHARS = 255
MAX_ATTRIBUTES = 32
_PLAIN = "!#$&'*+,-./:?@^_`|~"  # beside letters and digits; what would end the comment or a pair goes as %XX
# OpenTelemetry's names of these (https://opentelemetry.io/docs/specs/semconv/resource/), the older one last
_OTEL = {
    "service": ("service.name",),
    "version": ("service.version",),
    "environment": ("deployment.environment.name", "deployment.environment"),
}


class Stamp(Struct, frozen=True):
    """What goes out with requests: `members` into bodies that have room, `headers` with each; both empty without an identity."""

    members: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}
    environment: str = ""


def stamp_of(identity: Identity) -> Stamp:
    """The stamp of an identity as `completed` has it."""
    members = {name: value for name, value in msgspec.structs.asdict(identity).items() if value}
    if not members:
        return Stamp()
    pairs = "; ".join(f"{name}={quote(value, safe=_PLAIN)}" for name, value in _pairs(identity))
    return Stamp(members, {"user-agent": f"agentd/{__version__} ({pairs})"}, quote(identity.environment, safe=_PLAIN))


def _pairs(identity: Identity) -> Iterator[tuple[str, str]]:
    for name in ("service", "version", "environment", "host"):
        if value := getattr(identity, name):
            yield name, value
    yield from ((quote(name, safe=_PLAIN), value) for name, value in identity.attributes.items())


def stamped(members: Mapping[str, Any], stamp: Mapping[str, Any]) -> dict[str, Any]:
    """A free object with the identity in it; a member of that name that the agent gave stays."""
    return {**({MEMBER: stamp} if stamp else {}), **members}


def runner_of(stamp: Mapping[str, Any]) -> str | None:
    """`service/version`, None without a service."""
    service = stamp.get("service")
    return f"{service}/{stamp['version']}" if service and "version" in stamp else service


def completed(identity: Identity, env: Mapping[str, str], host: str) -> Identity:
    """With OpenTelemetry's variables in place of what is left out; and once anything is said, with the host's name."""
    told = dict(_otel(env.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    if env.get(
        "OTEL_SERVICE_NAME"
    ):  # it wins (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/)
        told["service.name"] = env["OTEL_SERVICE_NAME"]
    found = {
        name: next((told[key] for key in keys if _is_usable(told.get(key, ""))), "")
        for name, keys in _OTEL.items()
        if not getattr(identity, name)
    }
    identity = msgspec.structs.replace(identity, **found)
    if identity.host or not any(msgspec.structs.asdict(identity).values()):
        return identity
    return msgspec.structs.replace(identity, host=host)


def _otel(text: str) -> Iterator[tuple[str, str]]:
    """`key=value,key=value`, values in percent-encoding; what is none of it is left out."""
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if equals:
            yield key.strip(), unquote(value.strip())


def _is_usable(value: str) -> bool:
    return value.isprintable() and 0 < len(value) <= MAX_CHARS


def check_identity(identity: Identity, where: str) -> None:
    """Raise ConfigError for what can't be shown in a line."""
    place = f"{where}: [identity]"
    if len(identity.attributes) > MAX_ATTRIBUTES:
        raise ConfigError(f"{place} attributes: {len(identity.attributes)}, {MAX_ATTRIBUTES} are the most")
    given = {name: getattr(identity, name) for name in ("host", "service", "environment", "version")}
    for name, value in (given | {f"attributes.{name}": value for name, value in identity.attributes.items()}).items():
        if len(value) > MAX_CHARS or not value.isprintable():
            raise ConfigError(f"{place} {name}: expected at most {MAX_CHARS} characters in one line")
    for name in identity.attributes:
        if not _is_usable(name):
            raise ConfigError(f"{place} attributes: {name[:40]!r} is no name; expected 1 to {MAX_CHARS} characters")
