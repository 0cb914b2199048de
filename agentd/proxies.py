"""Which proxy the way to a platform leads through: the configuration's, else the environment's, else none. Pure.

The environment's rules are those that curl, Go and requests share. `https_proxy`, then `all_proxy`, and the same in capitals
(`http_proxy` for http://; lower case wins, empty means none); `NO_PROXY` lists what goes directly: `*`, host names with all
that is below them (a leading dot or `*.` changes nothing), addresses, networks such as `10.0.0.0/8`, each also with `:port`.
Loopback is never proxied: what is meant for this host must not leave it.

A proxy's credentials are in no repr, and its `place` is all that messages say of it.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from agentd.errors import ConfigError

DIRECT = "direct"  # in the configuration: through no proxy, whatever else is set
_PORTS = {"http": 80, "https": 443}
_SCHEMES = "expected http://host:port or https://host:port"


class Proxy(Struct, frozen=True):
    """A proxy that speaks CONNECT; `source` is where it was set."""

    place: str  # scheme://host:port, without credentials
    source: str = ""
    credentials: str | None = None  # the value of Proxy-Authorization

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"<Proxy {self.place} from {self.source}>"


def is_loopback(host: str) -> bool:
    """`localhost` and what is below it, 127.0.0.0/8, ::1."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 §6.3
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def parse(text: str, source: str) -> Proxy:
    """A proxy from its URL. Raises ConfigError, which quotes nothing of it: there may be a password inside."""
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")  # as curl takes it
        port = url.port
    except ValueError:
        raise ConfigError(f"{source}: no URL of a proxy; {_SCHEMES}") from None
    if url.scheme not in _PORTS:
        raise ConfigError(f"{source}: {url.scheme}:// proxies are not supported; {_SCHEMES}")
    if not url.hostname or port == 0 or url.path not in {"", "/"} or url.query or url.fragment:
        raise ConfigError(f"{source}: no URL of a proxy; {_SCHEMES}; quote a password's special characters as %XX")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return Proxy(f"{url.scheme}://{host}:{port or _PORTS[url.scheme]}", source, _credentials(url, source))


def _credentials(url: SplitResult, source: str) -> str | None:
    """What Proxy-Authorization says (RFC 7617)."""
    if url.username is None:
        return None
    user, password = unquote(url.username), unquote(url.password or "")
    if ":" in user or not (user + password).isprintable():
        raise ConfigError(f"{source}: its user or password holds characters that no header can carry")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def has_credentials(text: str) -> bool:
    """Whether a proxy's URL holds a user or password, as far as it can be read."""
    return "@" in text


def from_environment(base_url: str, env: Mapping[str, str]) -> Proxy | None:
    """The environment's proxy for this URL, None where it goes directly. Raises ConfigError."""
    scheme = urlsplit(base_url).scheme
    for name in (f"{scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if variable not in env:
                continue
            text = env[variable].strip()
            if not text:  # set to nothing: none, and no other is looked for
                return None
            if is_exempt(base_url, entries(env.get("no_proxy", env.get("NO_PROXY", "")))):
                return None
            return parse(text, variable)
    return None


def entries(text: str) -> list[str]:
    """The list that `NO_PROXY` is, split at commas and white space."""
    return [entry for entry in re.split(r"[,\s]+", text) if entry]


def is_exempt(base_url: str, exempt: Iterable[str]) -> bool:
    """Whether this URL goes directly by such a list. An entry that can't be understood matches nothing."""
    url = urlsplit(base_url)
    host = (url.hostname or "").rstrip(".")
    port = url.port or _PORTS.get(url.scheme, 0)
    return is_loopback(host) or any(_matches(host, port, entry.lower()) for entry in exempt)


def _matches(host: str, port: int, entry: str) -> bool:
    if entry == "*":
        return True
    network = _network(entry)
    address = _address(host)
    if network is not None:
        return address is not None and address in network
    name, only = _split_port(entry)
    if only is not None and only != port:
        return False
    literal = _address(name)
    if literal is not None or address is not None:
        return literal == address
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """`host:8443`, `[::1]:8443`, and what has no port; a bare IPv6 address has none either."""
    bracketed = re.fullmatch(r"\[(.+)\](?::(\d{1,5}))?", entry)
    if bracketed:
        return bracketed[1], int(bracketed[2]) if bracketed[2] else None
    name, colon, port = entry.rpartition(":")
    return (name, int(port)) if colon and ":" not in name and port.isascii() and port.isdigit() else (entry, None)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
