"""`agentd config`: what it prints loads to the same configuration, and says where each value came from."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentd import config
from agentd.cli import main
from agentd.cli.config import as_toml, toml_value
from agentd.sections import Duration, Secret, Size

FULL = """
[listen]
socket = "/run/x/agentd.sock"
[batch]
max_interval = "1250ms"
[spool]
directory = "/var/x"
max_bytes = "3MiB"
[security]
admin_uids = [0, 7]
[memory]
budget = 20000001
[destinations.first]
platform = "agentos"
base_url = "http://127.0.0.1:4400"
api_key = { file = "/etc/k \\"ey\\"" }
agents = { "billing-*" = "4f0c0a9e-0000-4000-8000-000000000000" }
accept = ["event"]
rate_limit = "20/min"
monthly_cap = 500
connect_timeout = "2s"
proxy = { file = "/etc/proxy" }
ca_file = "/etc/ca.pem"
client_cert = "/etc/c.pem"
client_key = { credential = "k" }
[destinations.first.batch]
max_events = 9
[destinations.second]
platform = "agentos"
accept = ["run.start"]
proxy = "direct"
[outbound]
proxy = "http://p:3128"
no_proxy = ["10.0.0.0/8", ".x"]
"""


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "agentd.toml"
    path.write_text(FULL)
    return path


def test_what_is_printed_loads_to_the_same(full, tmp_path):
    """The printed TOML is a configuration file with the same effect, whatever is in it."""
    env = {"AGENTD_RETRY__MAX": "90s", "HOME": "/nowhere"}
    loaded = config.load(full, env, 1000)
    again = tmp_path / "again.toml"
    again.write_text("\n".join(as_toml(loaded, env)))
    assert config.load(again, {}, 1000).config == loaded.config


def test_each_value_names_its_origin(full):
    """File, environment and default are told apart."""
    env = {"AGENTD_RETRY__MAX": "90s", "HOME": "/nowhere"}
    lines = {line.partition(" = ")[0]: line for line in as_toml(config.load(full, env, 1000), env)}
    assert lines["max_bytes"].endswith(f"# file: {full}") or lines["max_bytes"].endswith("# default")
    assert lines["initial"].endswith("# default")
    assert lines["max"].endswith("# environment: AGENTD_RETRY__MAX")
    assert lines["admin_uids"].endswith(f"# file: {full}")
    assert "# group is not set" in lines


def test_places_that_depend_on_the_user_say_so():
    """Socket and state folder come from neither file nor table of defaults."""
    lines = as_toml(config.load(None, {"HOME": "/home/u"}, 1000), {"HOME": "/home/u"})
    assert next(line for line in lines if line.startswith("directory")).endswith("# default for this user")


def test_places_that_the_environment_names_say_so():
    """AGENTD_SOCKET and systemd's STATE_DIRECTORY are named where they are what counted."""
    env = {"HOME": "/home/u", "AGENTD_SOCKET": "/s", "STATE_DIRECTORY": "/d"}
    text = "\n".join(as_toml(config.load(None, env, 1000), env))
    assert "# environment: AGENTD_SOCKET" in text
    assert "# environment: STATE_DIRECTORY" in text


def test_destinations_made_from_a_platforms_variables_say_so():
    """Without a file, AGENTOS_API_KEY makes a destination; the listing tells."""
    env = {"AGENTOS_API_KEY": "very-secret", "HOME": "/home/u"}
    text = "\n".join(as_toml(config.load(None, env, 1000), env))
    assert 'api_key = { env = "AGENTOS_API_KEY" }' in text
    assert "# environment: the platform's own variables" in text
    assert "very-secret" not in text


def test_json_is_one_document(full):
    """`config --json` prints plain values, and nothing else."""
    result = CliRunner().invoke(main, ["--config", str(full), "config", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.output)
    assert document["batch"]["max_interval"] == 1.25
    assert document["destinations"]["first"]["accept"] == ["event"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (8, "8"),
        (Size(2**20), '"1MiB"'),
        (Size(1000), "1000"),
        (Size(0), "0"),
        (Duration(0.25), '"250ms"'),
        (Duration(90), '"90s"'),
        (Duration(7 * 86400), '"7d"'),
        (Duration(0.0001), "0.0001"),
        ('a"b\\c\nd\x7fé', '"a\\"b\\\\c\\nd\\u007fé"'),
        (["a", 1], '["a", 1]'),
        ({"a b": 1, "c": "d"}, '{ "a b" = 1, c = "d" }'),
        (Secret(env="X"), '{ env = "X" }'),
    ],
)
def test_values_in_toml(value, text):
    """Durations and sizes carry the largest unit that is exact; text is escaped as TOML wants it."""
    assert toml_value(value) == text


def test_what_has_no_toml_is_a_bug():
    """A type that nobody thought of fails loudly instead of printing nonsense."""
    with pytest.raises(TypeError, match="no TOML for object"):
        toml_value(object())
