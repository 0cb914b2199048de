"""What it takes to reach a destination: where it is, through which proxy, whom to trust, how long to wait.

`reach_of` makes it of the configuration and the environment and raises ConfigError for what can't be: a daemon that starts knows
its ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from agentd import proxies
from agentd.config_outbound_checks import check_proxy
from agentd.errors import ConfigError
from agentd.proxies import Proxy
from agentd.sections import Destination, Outbound, Secret
from agentd.trust import Trust

CONNECT_S = 5.0
# of the whole time: where it is short, what hangs in connecting ends as "no connection", and not as an answer that was lost
_CONNECT_SHARE = 0.9


class Reach(Struct, frozen=True):
    """See the module. Times are seconds."""

    base_url: str
    name: str = ""  # the destination's
    timeout_s: float = 30.0
    connect_s: float = CONNECT_S  # for name, TCP, proxy and TLS together
    proxy: Proxy | None = None
    trust: Trust = Trust()

    def connect_within(self, total_s: float) -> float:
        """How long connecting may take of a request that has `total_s` in all."""
        return min(self.connect_s, total_s * _CONNECT_SHARE)


def reach_of(
    destination: Destination, base_url: str, outbound: Outbound, env: Mapping[str, str], name: str = ""
) -> Reach:
    """The way to a destination. Raises ConfigError that names the key, and never a proxy's credentials."""
    trust = _trust(destination, outbound, env)
    if urlsplit(base_url).scheme == "https":
        trust.context()  # what can't be read is said now, and not at the first request
    connect_s = float(destination.connect_timeout or CONNECT_S)
    proxy = _proxy(destination, base_url, outbound, env)
    return Reach(base_url, name, float(destination.timeout), connect_s, proxy, trust)


def _proxy(destination: Destination, base_url: str, outbound: Outbound, env: Mapping[str, str]) -> Proxy | None:
    """The destination's own, else the common one, else the environment's."""
    if destination.proxy is not None:
        text = _text(destination.proxy, "proxy", env)
        if text == proxies.DIRECT:
            return None
        if proxies.is_loopback(urlsplit(base_url).hostname or ""):
            raise ConfigError(f"proxy: {base_url} is on this host, and what is for this host is never proxied")
        return proxies.parse(text, "proxy")
    if outbound.proxy is None:
        return proxies.from_environment(base_url, env)
    text = _text(outbound.proxy, "[outbound] proxy", env)
    if text == proxies.DIRECT or proxies.is_exempt(base_url, outbound.no_proxy):
        return None
    return proxies.parse(text, "[outbound] proxy")


def _text(value: str | Secret, key: str, env: Mapping[str, str]) -> str:
    """A proxy's URL, written out or in the place of a secret. Raises ConfigError for a password that is written out."""
    if isinstance(value, str):
        check_proxy(value, key)
        return value
    try:
        return value.read(env)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _trust(destination: Destination, outbound: Outbound, env: Mapping[str, str]) -> Trust:
    own = env.get("SSL_CERT_FILE")
    ca_file = destination.ca_file or outbound.ca_file
    if ca_file is None and own and not Path(own).is_file():  # OpenSSL would believe nobody, and not say why
        raise ConfigError(f"SSL_CERT_FILE: {own}: there is no such file")
    key: str | None = None
    if destination.client_key is not None:
        try:
            key = str(destination.client_key.path(env))
        except ConfigError as error:
            raise ConfigError(f"client_key: {error}") from error
    return Trust(ca_file, destination.client_cert, key)
