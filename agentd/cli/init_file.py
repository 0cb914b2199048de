"""What `agentd init` finds, and the file that it makes of it. Pure but for `frameworks`, which looks at what is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from agentd.cli.config import toml_value
from agentd.cli.terminal import harmless
from agentd.variables import PLATFORM_VARIABLES

# Distributions by PyPI's names: what an agent that uses them does to reach agentd
_SDKS = {
    "pyagentos-sdk": ("agentos", "AgentOS's SDK works unchanged with agentd as its base_url"),
    "decision-os-sdk": ("decisionos", "Decision OS's SDK works unchanged with agentd as its base_url"),
    "ascend-ai-sdk": ("ascend", "ASCEND's SDK works unchanged with agentd as its base URL"),
}
_BY_CALLBACK = "call agentd's client from its callbacks"
_FRAMEWORKS = {
    "langgraph": _BY_CALLBACK,
    "langchain": _BY_CALLBACK,
    "langchain-core": _BY_CALLBACK,
    "llama-index-core": _BY_CALLBACK,
    "crewai": "call agentd's client from its step and task callbacks",
    "autogen-agentchat": "call agentd's client around its runs",
    "pydantic-ai": "call agentd's client around its runs",
    "openai-agents": "call agentd's client from its run hooks",
    "smolagents": "call agentd's client from its step callbacks",
    "openai": "emit_llm_request and emit_llm_response around its calls",
    "anthropic": "emit_llm_request and emit_llm_response around its calls",
}
_NAMES = {
    "agentos": "AgentOS",
    "decisionos": "Decision OS",
    "decidefyi": "decide.fyi",
    "ascend": "ASCEND",
    "aegis": "AegisOS",
}


class Framework(Struct, frozen=True):
    """An installed distribution that an agent may be made with; `platform` for a platform's own SDK."""

    name: str
    version: str
    advice: str
    platform: str = ""


class Found(Struct, frozen=True):
    """`destinations` as the platforms' variables make them: tables without a secret."""

    destinations: Mapping[str, Mapping[str, Any]]
    frameworks: list[Framework]


def frameworks(path: Iterable[str]) -> list[Framework]:
    """What is installed in these folders, each once, in our order."""
    found: dict[str, str] = {}
    for each in metadata.distributions(path=list(path)):
        name = (each.metadata["Name"] or "").lower().replace("_", "-")
        found.setdefault(name, each.version)
    sdks = [
        Framework(name, found[name], advice, platform) for name, (platform, advice) in _SDKS.items() if name in found
    ]
    return sdks + [Framework(name, found[name], advice) for name, advice in _FRAMEWORKS.items() if name in found]


def report(found: Found) -> Iterator[str]:
    """What was found, for people."""
    for name, table in found.destinations.items():
        yield f"found a key of {_NAMES[name]} in {table['api_key']['env']}"
    if not found.destinations:
        yield "found no platform's key in this environment"
    for each in found.frameworks:
        yield f"found {each.name} {each.version}: {each.advice}"


def text(found: Found) -> str:
    """The file."""
    lines = (*_head(found), *_destinations(found), *_listener(found), *_rest())
    return "".join(f"{harmless(line)}\n" for line in lines)


def _head(found: Found) -> Iterator[str]:
    yield "# agentd's configuration, by 'agentd init' for what it found here. 'agentd check' says what is wrong with it, 'agentd config'"
    yield "# what is in force. What is left out has its default: all keys, with a comment each, are in config/agentd.toml of the"
    yield "# sources, which a wheel installs as share/agentd/config/agentd.toml."
    yield "#"
    yield "# No secret stands here: api_key says where one is."
    for each in found.frameworks:
        yield f"# {each.name} {each.version}: {each.advice}"


def _destinations(found: Found) -> Iterator[str]:
    for name, table in found.destinations.items():
        yield from ("", f"[destinations.{name}]", f'platform = "{name}"')
        yield f'api_key = {toml_value(dict(table["api_key"]))}    # for a service better {{ file = "/etc/agentd/{name}.key" }}, mode 0600'
        yield from _places(name, table)
    for name in PLATFORM_VARIABLES:
        if name not in found.destinations:
            yield from ("", *(f"# {line}" for line in _example(name)))


def _places(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    """The agent and the address: as the variables have them, or how they are written."""
    known = PLATFORM_VARIABLES[name]
    if "agent_id" in table:
        yield f"agent_id = {toml_value(table['agent_id'])}    # of records that name no agent; from {known.agent_id[0]}"
    elif known.agent_id:
        yield '# agent_id = "…"    # the platform\'s id for records that name no agent'
    if "base_url" in table and _is_plain(table["base_url"]):
        yield f"base_url = {toml_value(table['base_url'])}"
    elif "base_url" in table:
        yield f'# base_url = "https://…"    # not taken from {" or ".join(known.base_url)}: more than an address stands there'


def _is_plain(url: str) -> bool:
    """Whether it is an address without what may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return not (parts.username or parts.password or parts.query or parts.fragment)


def _example(name: str) -> Iterator[str]:
    known = PLATFORM_VARIABLES[name]
    yield f"[destinations.{name}]    # {_NAMES[name]}: its key was not found in {' or '.join(known.api_key)}"
    yield f'platform = "{name}"'
    yield f'api_key = {{ env = "{known.api_key[0]}" }}'
    if known.agent_id:
        yield 'agent_id = "…"'


def _listener(found: Found) -> Iterator[str]:
    sdks = [each for each in found.frameworks if each.platform]
    yield ""
    if sdks:
        yield f"# For {', '.join(each.name for each in sdks)}: HTTP on the loopback, for holders of a local token. 'agentd sidecar' does this by itself."
    else:
        yield "# HTTP on the loopback, for the platforms' own SDKs and for languages that can't use a Unix socket; needs a local token."
    yield from (
        "# [listen]",
        '# http = "127.0.0.1:4319"',
        "# [[security.tokens]]",
        '# token = { env = "LOCAL_TOKEN" }    # 16 characters or more',
    )


def _rest() -> Iterator[str]:
    yield from (
        "",
        "[spool]",
        'max_bytes = "1GiB"    # of records that wait, all destinations together; on a disk of this machine',
        "",
        "# [identity]    # where records come from, told to the platforms",
        '# service = "my-service"',
        '# environment = "production"',
    )
