"""The environment of a command that runs beside agentd: the platforms' own keys out, the way to agentd in. Pure.

An SDK that reads its key and base URL from variables finds a local token and agentd there, and needs no changed line. Decision
OS's SDK and decide.fyi know no variable for the base URL: theirs are named like the others', for the agent's code to pass on.
Where a proxy is set, loopback is taken out of it: an SDK that asked a proxy for agentd would hand it the local token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentd.sections import Config, Secret
from agentd.variables import KEY_VARIABLES, PLATFORM_VARIABLES

TOKEN = "AGENTD_TOKEN"  # noqa: S105 - a variable's name
HTTP = "AGENTD_HTTP"
_MORE_SECRETS = ("ASCEND_SIGNING_SECRET",)
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_URL_WITHOUT_A_NAME = {"decisionos": "DECISION_OS_BASE_URL", "decidefyi": "DECIDE_BASE_URL"}


def secret_variables(config: Config) -> frozenset[str]:
    """Every variable that holds a secret of agentd's: the platforms' own, and those that the configuration names."""
    named = [secret.env for secret in _secrets(config) if secret is not None and secret.env is not None]
    return frozenset({*KEY_VARIABLES, *_MORE_SECRETS, *named})


def _secrets(config: Config) -> Iterable[Secret | None]:
    for destination in config.destinations.values():
        yield destination.api_key
        yield destination.signing_secret
        yield destination.proxy if isinstance(destination.proxy, Secret) else None
    yield config.outbound.proxy if isinstance(config.outbound.proxy, Secret) else None
    for rule in config.security.tokens:
        yield rule.token


def child_env(env: Mapping[str, str], config: Config, socket: str, http_url: str, token: str) -> dict[str, str]:
    """The command's environment. `http_url` is agentd's loopback listener, `token` what its SDKs show there.

    Where several destinations are of one platform its variables mean the first: an SDK knows one base URL.
    """
    child = {name: value for name, value in env.items() if name not in secret_variables(config)}
    child |= {"AGENTD_SOCKET": socket, TOKEN: token, HTTP: http_url}
    child |= _beside_proxies(env)
    for name, destination in reversed(config.destinations.items()):
        known = PLATFORM_VARIABLES.get(destination.platform)
        if known is None:
            continue
        urls = known.base_url or (_URL_WITHOUT_A_NAME[destination.platform],)
        child |= dict.fromkeys(known.api_key, token)
        child |= dict.fromkeys(urls, f"{http_url}/{name}")
        if destination.agent_id:
            child |= dict.fromkeys(known.agent_id, destination.agent_id)
    return child


def _beside_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` in both spellings with this host in it, where some proxy is set: requests and httpx ask it for loopback too."""
    if not any(name.lower() in _PROXIES for name in env):
        return {}
    listed = env.get("no_proxy", env.get("NO_PROXY", ""))
    if listed.strip() == "*":
        return {}
    exempt = ",".join(filter(None, (listed, "127.0.0.1", "localhost")))
    return {"no_proxy": exempt, "NO_PROXY": exempt}
