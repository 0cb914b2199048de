"""Where `listen.probe` may listen: any address of this host, since it gives out health and counts alone. Errors are ConfigError."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from agentd.errors import ConfigError

if TYPE_CHECKING:  # config_checks loads this module
    from agentd.sections import Config

_EXPECTED = 'expected an address of this host with a port, such as "0.0.0.0:4320" or "127.0.0.1:4320"'
_PORTS = range(65536)


def probe_address(text: str) -> tuple[str, int]:
    """Host and port of `listen.probe`; `localhost` is 127.0.0.1, port 0 any free one. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = "127.0.0.1" if host.lower() == "localhost" else host[1:-1] if bracketed else host
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6  # noqa: PLR2004 - IPv6
    except ValueError:
        raise ConfigError(f"[listen] probe: {_EXPECTED}, got {text!r}") from None
    if is_ipv6 is not bracketed or not (port.isascii() and port.isdigit() and int(port[:6]) in _PORTS):
        raise ConfigError(f"[listen] probe: {_EXPECTED}, got {text!r}")
    return host, int(port)


def check_probe(config: Config, where: str) -> None:
    """Raise ConfigError where it can't be."""
    if config.listen.probe is None:
        return
    try:
        _, port = probe_address(config.listen.probe)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if port and config.listen.http is not None and config.listen.http.rpartition(":")[2] == str(port):
        raise ConfigError(f"{where}: [listen] probe: port {port} is [listen] http's; give it another")
