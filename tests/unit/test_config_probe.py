"""`listen.probe`: any address of this host, a port of its own, off by default."""

from __future__ import annotations

import pytest

from agentd.cli.check import examine
from agentd.config import load
from agentd.config_probe_checks import probe_address
from agentd.errors import ConfigError

MORE = '[destinations.x]\nplatform = "agentos"\napi_key = { env = "K" }\n'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0.0.0.0:4320", ("0.0.0.0", 4320)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("localhost:9", ("127.0.0.1", 9)),
        ("[::]:4320", ("::", 4320)), ("10.1.2.3:65535", ("10.1.2.3", 65535)),
    ],
)  # fmt: skip
def test_addresses(text, place):
    """IPv4, IPv6 in brackets, localhost; a port from 0 to 65535."""
    assert probe_address(text) == place


@pytest.mark.parametrize(
    "text", ["", "4320", ":4320", "*:4320", "host.example:4320", "0.0.0.0", "0.0.0.0:", "0.0.0.0:65536", "0.0.0.0:x", "::1:4320", "[127.0.0.1]:1", "0.0.0.0:٣"]
)  # fmt: skip
def test_what_is_no_address(text):
    """Names are not looked up, and everything else is refused with what would be right."""
    with pytest.raises(
        ConfigError, match=r'\[listen\] probe: expected an address of this host with a port, such as "0'
    ):
        probe_address(text)


def written(tmp_path, listen):
    path = tmp_path / "agentd.toml"
    path.write_text(f"[listen]\n{listen}\n{MORE}")
    return load(path, {"K": "k"})


def test_it_is_off_by_default(tmp_path):
    """Nobody opens a port who was not told to."""
    assert written(tmp_path, "").config.listen.probe is None


def test_a_wrong_one_names_file_and_key(tmp_path):
    """The message has both."""
    with pytest.raises(ConfigError, match=r"agentd.toml: \[listen\] probe: expected an address"):
        written(tmp_path, 'probe = "everywhere"')


def test_two_listeners_have_two_ports(tmp_path):
    """On a port of `listen.http` it would be refused at the start; it is said before."""
    token = '[[security.tokens]]\ntoken = { env = "T" }\n'
    with pytest.raises(ConfigError, match=r"port 4319 is \[listen\] http's"):
        written(tmp_path, f'http = "127.0.0.1:4319"\nprobe = "0.0.0.0:4319"\n{token}')


def test_check_says_what_it_gives_out(tmp_path):
    """`agentd check` explains who may ask, and what is told."""
    loaded = written(tmp_path, 'probe = "0.0.0.0:4320"')
    said = [finding for finding in examine(loaded, {"K": "k"}, 0) if "probe at" in finding.message]
    assert [finding.level for finding in said] == ["ok"]
    assert "without a token" in said[0].message
