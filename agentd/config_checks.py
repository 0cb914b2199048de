"""What a configuration's values have to be beyond their types: ranges, addresses, and what must fit together.

`config.load` calls `check_values`; the daemon and `agentd check` read the local tokens with `read_tokens`, which holds what
has been built in code to the same rule: nobody listens on TCP without a token. Errors are `ConfigError` with section and key.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentd import globs
from agentd.config_outbound_checks import check_outbound
from agentd.config_probe_checks import check_probe
from agentd.errors import ConfigError
from agentd.records import KINDS
from agentd.redact.build import check_redact
from agentd.stamp import check_identity
from agentd.wire import MAX_FRAME_BYTES

if TYPE_CHECKING:  # config loads this module
    from agentd.sections import Config, Destination

MIN_TOKEN_CHARACTERS = 16  # 64 bits and more even in hexadecimal digits: not to be guessed at 10,000 tries a second
_PORTS = {"http": 80, "https": 443}
_UNGUARDED = (
    '[listen] http needs a local token: add [[security.tokens]] with token = { env = "VARIABLE" } or { file = "/path" }, '
    "and what it allows: agent_ids, destinations"
)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def http_address(text: str) -> tuple[str, int]:
    """Host and port of `listen.http`; `localhost` is 127.0.0.1, port 0 any free one. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = "127.0.0.1" if host.lower() == "localhost" else host[1:-1] if bracketed else host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    right = port.isascii() and port.isdigit() and int(port[:6]) < 65536  # noqa: PLR2004 - 16 bits
    if not right or address is None or bracketed is not (address.version == 6):  # noqa: PLR2004 - IPv6
        raise ConfigError(
            f'[listen] http: expected a loopback address with a port such as "127.0.0.1:4319", got {text!r}'
        )
    if not _is_loopback(host):
        raise ConfigError(f"[listen] http: {text!r} is not loopback; agentd is never open to the network")
    return host, int(port)


def read_tokens(config: Config, env: Mapping[str, str]) -> list[str]:
    """The local tokens in their order; none where nothing listens on TCP. Raises ConfigError, which never shows a token."""
    if config.listen.http is None:
        return []
    if not config.security.tokens:
        raise ConfigError(_UNGUARDED)
    tokens: list[str] = []
    for number, rule in enumerate(config.security.tokens, 1):
        place = f"[[security.tokens]] #{number} token"
        try:
            token = rule.token.read(env)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        if len(token) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(f"{place}: {rule.token} holds less than {MIN_TOKEN_CHARACTERS} characters")
        if token in tokens:
            raise ConfigError(f"{place}: {rule.token} holds the same as #{tokens.index(token) + 1}; each has its own")
        tokens.append(token)
    return tokens


def check_values(config: Config, where: str, kinds_of: Callable[[str], Iterable[str]]) -> None:
    """Raise ConfigError for the first value that can't be; `where` is the file. `kinds_of`: see `config.load`."""
    _check_sections(config, where)
    for name, destination in config.destinations.items():
        _check_destination(name, destination, where)
    check_outbound(config, where)
    _check_overlap(config, where, kinds_of)
    _check_security(config, where)
    _check_listener(config, where)
    check_probe(config, where)
    check_redact(config.redact, where)
    check_identity(config.identity, where)


def _check_security(config: Config, where: str) -> None:
    uids: set[int] = set()
    for number, peer in enumerate(config.security.peers, 1):
        place = f"{where}: [[security.peers]] #{number}"
        if peer.uid < 0:
            raise ConfigError(f"{place} uid: expected 0 or more, got {peer.uid}")
        if peer.uid in uids:
            raise ConfigError(f"{place} uid: {peer.uid} has a rule already; write all its agents into one")
        uids.add(peer.uid)
        _check_names(peer.agent_ids, f"{place} agent_ids")
    for number, token in enumerate(config.security.tokens, 1):
        place = f"{where}: [[security.tokens]] #{number}"
        _check_names(token.agent_ids, f"{place} agent_ids")
        _check_names(token.destinations, f"{place} destinations")
        for name in token.destinations or ():
            if name not in config.destinations:
                raise ConfigError(f"{place} destinations: {name!r} is none; {nearest(name, config.destinations)}")


def _check_names(names: list[str] | None, place: str) -> None:
    """An empty list could be meant as all or as none."""
    if names is not None and not (names and all(names)):
        raise ConfigError(f"{place}: expected one name or more; leave the key out, where that is allowed, for all")


def _check_listener(config: Config, where: str) -> None:
    if config.listen.http is None:
        return
    try:
        _, port = http_address(config.listen.http)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not config.security.tokens:
        raise ConfigError(f"{where}: {_UNGUARDED}")
    for name, destination in config.destinations.items():
        url = urlsplit(destination.base_url)
        if port and _is_loopback(url.hostname or "") and (url.port or _PORTS.get(url.scheme)) == port:
            raise ConfigError(
                f"{where}: [destinations.{name}] base_url: {destination.base_url} is agentd's own [listen] http; "
                f"say where the platform is"
            )


def _check_sections(config: Config, where: str) -> None:
    for name in config.destinations:
        batch = config.batch_of(name)
        if not 1 <= batch.max_events <= 10_000 or not 1 <= (batch.max_request_events or 1) <= 10_000:  # noqa: PLR2004
            raise ConfigError(f"{where}: [batch] max_events and max_request_events: expected 1 to 10000")
    if not re.fullmatch(r"0?[0-7]{3}", config.listen.mode):
        raise ConfigError(f'{where}: [listen] mode: expected octal such as "0660", got {config.listen.mode!r}')
    if not 1 <= config.intake.max_depth <= 200:  # noqa: PLR2004 - the parser's own limit is near 390 on a deep stack
        raise ConfigError(f"{where}: [intake] max_depth: expected 1 to 200, got {config.intake.max_depth}")
    if not 1024 <= config.intake.max_frame_bytes <= MAX_FRAME_BYTES:  # noqa: PLR2004
        raise ConfigError(f"{where}: [intake] max_frame_bytes: expected 1024 to {MAX_FRAME_BYTES}")
    if config.memory.budget < 16 * 2**20:
        raise ConfigError(f'{where}: [memory] budget: expected "16MiB" or more')
    if config.retry.initial <= 0 or config.retry.max < config.retry.initial:
        raise ConfigError(f"{where}: [retry]: expected 0 < initial <= max")
    quotas = sum(config.quota_of(name) for name in config.destinations)
    if quotas > config.spool.max_bytes:
        raise ConfigError(
            f"{where}: the destinations' max_bytes add up to {quotas}, above [spool] max_bytes {config.spool.max_bytes}"
        )


def _check_destination(name: str, destination: Destination, where: str) -> None:
    place = f"{where}: [destinations.{name}]"
    unknown = sorted(set(destination.accept or ()) - set(KINDS))
    if unknown:
        raise ConfigError(f"{place} accept: {unknown[0]!r} is no kind; known: {', '.join(KINDS)}")
    if destination.max_in_flight < 1:
        raise ConfigError(f"{place} max_in_flight: expected 1 or more, got {destination.max_in_flight}")
    if not destination.base_url:
        return
    wrong = ConfigError(f"{place} base_url: expected https://host[:port][/path], got {destination.base_url!r}")
    try:
        url = urlsplit(destination.base_url)
        if url.username or url.password:
            raise ConfigError(f"{place} base_url: a secret stands in the URL; use api_key")
        if url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment or url.port == 0:
            raise wrong
    except ValueError:  # brackets without an address, a port that is none
        raise wrong from None
    if url.scheme == "http" and not _is_loopback(url.hostname):
        raise ConfigError(
            f"{place} base_url: http:// is for loopback only, the key would travel in the clear; use https://"
        )


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _check_overlap(config: Config, where: str, kinds_of: Callable[[str], Iterable[str]]) -> None:
    """Two destinations of one platform that take the same kinds of the same agents would send everything twice."""
    names = list(config.destinations)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            a, b = config.destinations[first], config.destinations[second]
            if a.platform != b.platform or a.copy or b.copy:
                continue
            if not _agents_overlap(a, b):
                continue
            known = kinds_of(a.platform)
            if set(a.accepts(known)) & set(b.accepts(known)):
                raise ConfigError(
                    f"{where}: [destinations.{first}] and [destinations.{second}] are both {a.platform} and take the same "
                    f"records; give them different agents or accept, or set copy = true where that is wanted"
                )


def _agents_overlap(a: Destination, b: Destination) -> bool:
    """Whether some agent's records reach both; without a table a destination takes every agent."""
    return a.agents is None or b.agents is None or globs.any_common(a.agents, b.agents)
