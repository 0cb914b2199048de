"""`agentd sidecar` and `agentd dev`: what the command is given, where its records lie, what the last line says."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agentd.cli import main
from agentd.cli.child_env import HTTP, TOKEN, child_env
from agentd.cli.dev import emulated
from agentd.cli.sandbox import AGENT_ID
from agentd.cli.sidecar import TOKEN_VARIABLE, Outcome, last_line, settings, status
from agentd.cli.sidecar_state import choose, foreign, purpose, settle, waiting
from agentd.config import load as load_configuration
from agentd.sections import Config, Destination, Listen, Outbound, Secret, Security, TokenRule

URL = "http://127.0.0.1:5000"


def config(**destinations):
    return Config(destinations=destinations)


def agentos(variable="AGENTOS_API_KEY", **more):
    return Destination("agentos", api_key=Secret(env=variable), **more)


def given(env, of):
    return child_env(env, of, "/run/x.sock", URL, "local-token")


def test_the_platforms_keys_are_taken_out():
    """Section 7: no platform's key is in the command's environment, whichever variable it stood in."""
    env = {
        "PATH": "/bin", "AGENTOS_API_KEY": "s1", "OWKAI_API_KEY": "s2", "DECIDE_API_KEY": "s3", "MY_KEY": "s4",
        "ASCEND_SIGNING_SECRET": "s5", "HOST_TOKEN": "s6",
    }  # fmt: skip
    of = config(ours=agentos("MY_KEY", signing_secret=Secret(env="ASCEND_SIGNING_SECRET")))
    of = Config(destinations=of.destinations, security=type(of.security)(tokens=[TokenRule(Secret(env="HOST_TOKEN"))]))
    child = given(env, of)
    assert not {"s1", "s2", "s3", "s4", "s5", "s6"} & set(child.values())
    assert child["PATH"] == "/bin"


def test_sdks_find_agentd_by_their_own_variables():
    """Section 7: base URLs point at agentd, keys are the local token, and the client finds the socket."""
    child = given({}, config(agentos=agentos(agent_id="a-1"), ascend=Destination("ascend", api_key=Secret(env="K"))))
    assert child["AGENTD_SOCKET"] == "/run/x.sock"
    assert (child[TOKEN], child[HTTP]) == ("local-token", URL)
    assert (child["AGENTOS_BASE_URL"], child["AGENTOS_API_KEY"]) == (f"{URL}/agentos", "local-token")
    assert child["AGENTOS_AGENT_ID"] == "a-1"
    assert (child["ASCEND_API_URL"], child["OWKAI_API_KEY"]) == (f"{URL}/ascend", "local-token")
    assert "DECISION_OS_API_KEY" not in child


def test_of_two_destinations_of_a_platform_the_first_is_its_sdks():
    """An SDK knows one base URL: it is the first destination's."""
    child = given({}, config(one=agentos(), two=agentos()))
    assert child["AGENTOS_BASE_URL"] == f"{URL}/one"


def test_platforms_without_a_variable_get_one():
    """Decision OS's SDK and decide.fyi read no base URL from the environment: the agent's code passes ours on."""
    child = given(
        {},
        config(
            d=Destination("decisionos", api_key=Secret(env="K")), f=Destination("decidefyi", api_key=Secret(env="K"))
        ),
    )
    assert child["DECISION_OS_BASE_URL"] == f"{URL}/d"
    assert child["DECIDE_BASE_URL"] == f"{URL}/f"


def test_a_sidecars_settings(tmp_path):
    """Its own socket for its own user, a free loopback port and a token of this run alone; the control plane is closed."""
    given = config(agentos=agentos(passthrough="admin"))
    given = msgspec.structs.replace(
        given, listen=Listen(http="127.0.0.1:4319"), security=Security(tokens=[TokenRule(Secret(env="HOSTS"))])
    )
    ours = settings(given, socket="/x/s", folder=tmp_path)
    assert ours.destinations["agentos"].passthrough == "agent"
    assert (ours.listen.socket, ours.listen.mode, ours.listen.http) == ("/x/s", "0600", "127.0.0.1:0")
    assert ours.spool.directory == str(tmp_path)
    assert [rule.token.env for rule in ours.security.tokens] == [TOKEN_VARIABLE]


# -- where the records lie -------------------------------------------------------------------------------------------------


def lock(folder):
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_the_next_sidecar_takes_the_folder_over(tmp_path):
    """Section 7: a folder that may hold records is adopted by the next sidecar of the same destinations."""
    first = choose(tmp_path, {"agentos": "agentos at x"})
    assert choose(tmp_path, {"agentos": "agentos at x"}) == first
    assert first.stat().st_mode & 0o777 == 0o700


def test_two_sidecars_at_a_time_have_two_folders(tmp_path):
    """Whoever finds a folder in use makes another; the first free one that may hold records comes first."""
    first = choose(tmp_path, {"a": "x"})
    held = lock(first)
    second = choose(tmp_path, {"a": "x"})
    assert second != first
    os.close(held)
    settle(first)
    assert choose(tmp_path, {"a": "x"}) == second
    settle(second)
    assert choose(tmp_path, {"a": "x"}) == first


def test_what_others_left_is_found(tmp_path):
    """Free folders that may hold records: those of the same purpose, and those of any other, each among its own."""
    mine, other = choose(tmp_path, {"a": "x"}), choose(tmp_path, {"a": "y"})
    assert (waiting(tmp_path, {"a": "x"}), foreign(tmp_path, {"a": "x"})) == ([mine], [other])
    held = lock(mine)
    assert waiting(tmp_path, {"a": "x"}) == []
    os.close(held)
    settle(mine)
    settle(other)
    assert (waiting(tmp_path, {"a": "x"}), foreign(tmp_path, {"a": "x"})) == ([], [])
    assert foreign(tmp_path / "nowhere", {}) == []


def test_its_folders_are_its_users_alone(tmp_path):
    """Every folder that is made on the way is closed to others, the state folder of `agentd run` included."""
    folder = choose(tmp_path / "state" / "sidecars", {"a": "x"})
    assert {place.stat().st_mode & 0o777 for place in (folder, folder.parent, folder.parent.parent)} == {0o700}


def test_a_folder_in_use_is_not_settled_any_more(tmp_path):
    """A sidecar that is killed leaves a folder that may hold records, whatever was in it before."""
    first = choose(tmp_path, {"a": "x"})
    settle(first)
    assert choose(tmp_path, {"a": "x"}) == first
    assert not (first / "settled").exists()


def test_records_are_not_handed_to_another_place(tmp_path):
    """Another address, another platform or other agents are another purpose, with folders of its own."""
    assert choose(tmp_path, {"a": "agentos at x"}) != choose(tmp_path, {"a": "agentos at y"})
    assert purpose({"a": "1", "b": "2"}) == purpose({"b": "2", "a": "1"})


def test_the_last_line_says_how_many_why_and_where():
    """Section 7: how many remain, why, and in which folder."""
    line = last_line(Outcome(0, {"agentos": (3, "no connection"), "ascend": (1, "401")}, 0), "/state/x-1")
    assert (
        line
        == "agentd: 4 records remain in /state/x-1 for the next sidecar (3 for agentos: no connection; 1 for ascend: 401)"
    )
    assert last_line(Outcome(0, {}, 0), "/x") == "agentd: everything was delivered"
    assert "may be left in /y" in last_line(Outcome(0, {}, 0), "/x", [Path("/y")])
    assert last_line(Outcome(0, {}, 2), "/x") == "agentd: nothing waits; 2 dead letters are kept in /x"


def test_the_status_is_the_commands_own():
    """Section 7: the exit status passes through; 75 stands only where the command itself was content."""
    left = {"agentos": (1, "away")}
    assert [status(Outcome(code, left, 0), require_delivered=True) for code in (0, 3)] == [75, 3]
    assert [status(Outcome(0, of, 0), require_delivered=wanted) for of, wanted in ((left, False), ({}, True))] == [0, 0]


# -- dev -------------------------------------------------------------------------------------------------------------------


class _Sandbox:
    def url_for(self, face):
        return f"http://127.0.0.1:4400/{face}"


def test_dev_emulates_every_platform():
    """Section 6: the sandbox is every platform, with no key of anybody's."""
    of = emulated(Config(), _Sandbox())
    assert set(of.destinations) == {"agentos", "aegis", "ascend", "decidefyi", "decisionos"}
    assert all(one.base_url.startswith("http://127.0.0.1:4400/") for one in of.destinations.values())
    assert {one.api_key.env for one in of.destinations.values()} == {"AGENTD_DEV_KEY"}


def test_dev_keeps_the_names_of_a_configuration(tmp_path):
    """A configured destination keeps its name and what it accepts; its key and address are not used."""
    path = tmp_path / "agentd.toml"
    path.write_text(
        '[destinations.prod]\nplatform = "agentos"\nbase_url = "https://example.org"\napi_key = { env = "PROD" }\n'
        'agents = { billing = "u-1" }\naccept = ["run.start"]\n'
    )
    one = emulated(load_configuration(path, {}, 1000).config, _Sandbox()).destinations["prod"]
    assert (one.base_url, one.accept, one.agents) == (
        "http://127.0.0.1:4400/agentos",
        ["run.start"],
        {"billing": AGENT_ID},
    )


def test_the_command_line_wants_a_command():
    """`agentd sidecar` without a command is a usage error."""
    result = CliRunner().invoke(main, ["sidecar"])
    assert result.exit_code == 2


@pytest.mark.parametrize("verb", ["sidecar", "dev"])
def test_its_own_options_end_where_the_command_begins(verb):
    """Options behind the command's name are the command's."""
    command = main.get_command(None, verb)
    context = command.make_context(verb, ["--", "tool", "--require-delivered", "--port", "1"])
    assert context.params["command"] == ("tool", "--require-delivered", "--port", "1")


def test_no_sdk_asks_a_proxy_for_agentd():
    """Where a proxy is set, this host is taken out of it in both spellings: it would be shown the local token."""
    child = given({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".internal"}, config())
    assert child["NO_PROXY"] == child["no_proxy"] == ".internal,127.0.0.1,localhost"
    assert given({"http_proxy": "http://p:1"}, config())["NO_PROXY"] == "127.0.0.1,localhost"
    assert given({"ALL_PROXY": "http://p:1", "no_proxy": "*"}, config())["no_proxy"] == "*"
    assert "NO_PROXY" not in given({}, config())


def test_a_proxys_password_is_agentds_alone():
    """A variable that the configuration names as a proxy's place is taken out like a key's."""
    of = Config(
        destinations={"ours": agentos(proxy=Secret(env="OUR_PROXY"))},
        outbound=Outbound(proxy=Secret(env="COMMON_PROXY")),
    )
    child = given({"OUR_PROXY": "http://u:pw@p:1", "COMMON_PROXY": "http://u:pw@q:1", "HOME": "/"}, of)
    assert {"OUR_PROXY", "COMMON_PROXY"} & set(child) == set()
