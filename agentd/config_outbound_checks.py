"""What the way out may be told: proxies, certificates and times. `config_checks.check_values` calls it; errors are ConfigError.

What needs files or the environment is checked where a destination's way is made (`agentd.reach`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentd import proxies
from agentd.errors import ConfigError
from agentd.units import format_duration

if TYPE_CHECKING:  # config loads this module
    from agentd.sections import Config, Destination, Secret

_MAX_TIMEOUT_S = 3600.0


def check_outbound(config: Config, where: str) -> None:
    """Raise ConfigError for the first value that can't be; `where` is the file."""
    outbound = config.outbound
    check_proxy(outbound.proxy, f"{where}: [outbound] proxy")
    if outbound.no_proxy and outbound.proxy is None:
        raise ConfigError(f"{where}: [outbound] no_proxy: says nothing without proxy; the environment has its NO_PROXY")
    for name, destination in config.destinations.items():
        place = f"{where}: [destinations.{name}]"
        _check_times(destination, place)
        check_proxy(destination.proxy, f"{place} proxy")
        if destination.client_key is not None and destination.client_cert is None:
            raise ConfigError(f"{place} client_key: says nothing without client_cert")
        if destination.monthly_cap is not None and destination.monthly_cap < 1:
            raise ConfigError(f"{place} monthly_cap: expected 1 or more, got {destination.monthly_cap}")


def _check_times(destination: Destination, place: str) -> None:
    timeout = float(destination.timeout)
    if not 0 < timeout <= _MAX_TIMEOUT_S:
        raise ConfigError(f'{place} timeout: expected more than 0 and at most "1h", got {format_duration(timeout)}')
    connect = destination.connect_timeout
    if connect is not None and not 0 < connect <= timeout:
        raise ConfigError(
            f"{place} connect_timeout: expected more than 0 and at most timeout ({format_duration(timeout)}), "
            f"got {format_duration(connect)}"
        )


def check_proxy(proxy: str | Secret | None, place: str) -> None:
    """Whether it can be a proxy's URL, if it is written out. Raises ConfigError, which never quotes it."""
    if not isinstance(proxy, str) or proxy == proxies.DIRECT:
        return
    if proxies.has_credentials(proxy):
        key = place.rpartition(" ")[2]
        raise ConfigError(
            f"{place}: user and password stand in the configuration; write the whole URL to a file and say "
            f'{key} = {{ file = "/path" }}, {{ env = "VARIABLE" }} or {{ credential = "NAME" }}'
        )
    proxies.parse(proxy, place)
