"""The loopback listener and who may use it, on the configuration's good and its bad days."""

from __future__ import annotations

import pytest

from agentd.cli.check import examine
from agentd.config import load
from agentd.config_checks import http_address, read_tokens
from agentd.daemon import Daemon
from agentd.errors import ConfigError
from agentd.sections import Config, Destination, Listen, Loaded, PeerRule, Secret, Security, TokenRule

UID = 1234
TOKEN = '[[security.tokens]]\ntoken = { env = "T" }\n'
HTTP = '[listen]\nhttp = "127.0.0.1:4319"\n'
CLOUD = '[destinations.cloud]\nplatform = "agentos"\napi_key = { env = "KEY" }\n'


@pytest.fixture
def loaded(tmp_path):
    def check(text, env=None):
        path = tmp_path / "agentd.toml"
        path.write_text(text)
        return load(path, env or {}, UID).config

    return check


@pytest.fixture
def refused(loaded, tmp_path):
    """The message of the refusal; each names the file."""

    def check(text, env=None):
        with pytest.raises(ConfigError) as caught:
            loaded(text, env)
        assert str(tmp_path / "agentd.toml") in str(caught.value)
        return str(caught.value).replace(f"{tmp_path / 'agentd.toml'}: ", "")

    return check


# -- the address -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4319", ("127.0.0.1", 4319)),
        ("127.3.2.1:1", ("127.3.2.1", 1)),
        ("[::1]:4319", ("::1", 4319)),
        ("localhost:4319", ("127.0.0.1", 4319)),
        ("LocalHost:65535", ("127.0.0.1", 65535)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_loopback_addresses_with_a_port(loaded, text, address):
    """IPv4, IPv6 and localhost, which is 127.0.0.1 whatever the resolver says; port 0 is any free one."""
    assert http_address(text) == address
    assert loaded(f'[listen]\nhttp = "{text}"\n{TOKEN}').listen.http == text


@pytest.mark.parametrize("text", ["0.0.0.0:4319", "[::]:4319", "10.0.0.1:80", "[::ffff:127.0.0.1]:80", "128.0.0.1:1"])
def test_addresses_that_others_reach_are_refused(refused, text):
    """agentd is never open to the network, whatever the file says."""
    assert f"[listen] http: '{text}' is not loopback" in refused(f'[listen]\nhttp = "{text}"\n{TOKEN}')


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "4319", ":4319", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1: 1",
        "127.0.0.1:http", "127.0.0.1:1e2", "127.0.0.1:٣", "127.1:4319", "127.0.0.1.:4319", "::1:4319", "::1", "[::1]", "[127.0.0.1]:1",
        "example.com:4319", "localhost.evil.com:1", "http://127.0.0.1:4319", " 127.0.0.1:4319", "127.0.0.1:4319/x", "0:4319",
        "127.0.0.1:" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_address_with_a_port(refused, text):
    """A sentence that shows what is right, for whatever else stands there."""
    message = refused(f'[listen]\nhttp = "{text}"\n{TOKEN}')
    assert '[listen] http: expected a loopback address with a port such as "127.0.0.1:4319"' in message


def test_a_listener_without_a_token_is_refused(refused):
    """Section 1: without a token configured the listener is a configuration error, which says what to write."""
    message = refused(HTTP)
    assert message.startswith("[listen] http needs a local token: add [[security.tokens]] with token = { env =")


def test_what_was_built_in_code_is_held_to_it_too():
    """A Config that never saw a file can't listen without a token either."""
    with pytest.raises(ConfigError, match="needs a local token"):
        read_tokens(Config(listen=Listen(http="127.0.0.1:0")), {})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4319",
        "http://localhost:4319/api",
        "http://LOCALHOST:4319",
        "http://[::1]:4319",
        "http://127.9.9.9:4319/",
        "https://127.0.0.1:4319",
    ],
)
@pytest.mark.parametrize("http", ["127.0.0.1:4319", "[::1]:4319", "localhost:4319"])
def test_a_platform_that_is_ourselves_is_refused(refused, url, http):
    """A base_url that is our own listener would be a loop, by whatever name of loopback."""
    text = f'[listen]\nhttp = "{http}"\n{TOKEN}{CLOUD}base_url = "{url}"\n'
    assert f"[destinations.cloud] base_url: {url} is agentd's own [listen] http" in refused(text)


@pytest.mark.parametrize("url", ["http://127.0.0.1:4320", "http://localhost", "https://example.com:4319"])
def test_other_ports_and_hosts_are_platforms(loaded, url):
    """A platform may be on loopback, at another port, and anywhere else at the same one."""
    assert loaded(f'{HTTP}{TOKEN}{CLOUD}base_url = "{url}"\n').destinations["cloud"].base_url == url


def test_the_usual_port_of_a_scheme_counts(refused):
    """`http://localhost` is port 80."""
    text = f'[listen]\nhttp = "127.0.0.1:80"\n{TOKEN}{CLOUD}base_url = "http://localhost"\n'
    assert "is agentd's own" in refused(text)


# -- tokens and peers --------------------------------------------------------------------------------------------------------


def test_tokens_and_peers_are_read(loaded):
    """What a token and a uid may do, as it is written."""
    config = loaded(
        f'{HTTP}{CLOUD}{TOKEN}agent_ids = ["billing"]\ndestinations = ["cloud"]\n{TOKEN}'
        '[[security.peers]]\nuid = 1001\nagent_ids = ["billing", "support-*"]\n'
    )
    assert config.security == Security(
        tokens=[TokenRule(Secret(env="T"), ["billing"], ["cloud"]), TokenRule(Secret(env="T"))],
        peers=[PeerRule(1001, ["billing", "support-*"])],
    )


def test_tokens_may_be_set_by_a_variable(loaded):
    """The array of tables can be a variable's value, as TOML."""
    env = {
        "AGENTD_SECURITY__TOKENS": '[{ token = { env = "T" }, agent_ids = ["a"] }]',
        "AGENTD_LISTEN__HTTP": "[::1]:0",
    }
    config = loaded("", env)
    assert config.security.tokens == [TokenRule(Secret(env="T"), ["a"])]
    assert config.listen.http == "[::1]:0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOKEN + TOKEN + 'agent_id = ["x"]', "[[security.tokens]] #2 key 'agent_id' is unknown; did you mean 'agent_ids'?"),
        ("[[security.token]]\n", "[security] key 'token' is unknown; did you mean 'tokens'?"),
        ("[[security.peers]]\nuids = 1", "[[security.peers]] #1 key 'uids' is unknown; did you mean 'uid'?"),
        ("[[security.peers]]\nuid = 1", "[[security.peers]] #1: Object missing required field `agent_ids`"),
        ('[[security.peers]]\nuid = "me"\nagent_ids = ["a"]', "[[security.peers]] #1 uid: Expected `int`, got `str`"),
        ("[[security.tokens]]\n", "[[security.tokens]] #1: Object missing required field `token`"),
        (TOKEN + TOKEN + "agent_ids = [5]", "[[security.tokens]] #2 agent_ids #1: Expected `str`, got `int`"),
        (TOKEN + 'agent_ids = "a"', "[[security.tokens]] #1 agent_ids: Expected `array | null`, got `str`"),
        (TOKEN + "agent_ids = []", "[[security.tokens]] #1 agent_ids: expected one name or more"),
        (TOKEN + 'agent_ids = ["a", ""]', "[[security.tokens]] #1 agent_ids: expected one name or more"),
        (TOKEN + "destinations = []", "[[security.tokens]] #1 destinations: expected one name or more"),
        (CLOUD + TOKEN + 'destinations = ["cluod"]', "[[security.tokens]] #1 destinations: 'cluod' is none; did you mean 'cloud'?"),
        (CLOUD + TOKEN + 'destinations = ["zzz"]', "[[security.tokens]] #1 destinations: 'zzz' is none; known: cloud"),
        (TOKEN + 'destinations = ["zzz"]', "'zzz' is none; known: none"),
        ("[[security.peers]]\nuid = -1\nagent_ids = ['a']", "[[security.peers]] #1 uid: expected 0 or more, got -1"),
        ("[[security.peers]]\nuid = 1\nagent_ids = []", "[[security.peers]] #1 agent_ids: expected one name or more"),
        ("[[security.peers]]\nuid = 1\nagent_ids = ['a']\n" * 2, "[[security.peers]] #2 uid: 1 has a rule already"),
        ("[security]\ntokens = 5", "[[security.tokens]]: expected an array of tables, each with token, agent_ids, destinations"),
        ("[security]\npeers = [5]", "[[security.peers]]: expected an array of tables, each with uid, agent_ids"),
        ("[security.tokens]\ntoken = 5", "[[security.tokens]]: expected an array of tables"),
        (TOKEN.replace("env", "envv"), "Object contains unknown field `envv`"),
        ("[[security.tokens]]\ntoken = {}", "[[security.tokens]] #1 token: expected exactly one of credential, file, env"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_by_its_number(refused, text, message):
    """An array of tables has no names: the message counts, and names key and cure."""
    assert message in refused(text)


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ('[[security.tokens]]\ntoken = "hunter2-hunter2-hunter2"', {}),
        ("", {"AGENTD_SECURITY__TOKENS": '[{ token = "hunter2-hunter2-hunter2" }]'}),
        ("", {"AGENTD_SECURITY__TOKENS": "hunter2-hunter2-hunter2"}),
        ("", {"AGENTD_SECURITY__TOKENS": '["hunter2-hunter2-hunter2"]'}),
    ],
)
def test_a_token_in_the_file_is_refused_and_not_repeated(refused, text, env):
    """A token written straight into the configuration is an error, and never shown."""
    assert "hunter2" not in refused(text, env)


def test_a_token_in_the_file_says_where_to_put_it(refused):
    """The same words as for a platform's key."""
    message = refused('[[security.tokens]]\ntoken = "hunter2"')
    assert message.startswith("[[security.tokens]] #1 token: a secret stands in the configuration; write it to a file")


# -- the tokens themselves ---------------------------------------------------------------------------------------------------


def with_tokens(*places, http="127.0.0.1:0"):
    return Config(listen=Listen(http=http), security=Security(tokens=[TokenRule(Secret(env=name)) for name in places]))


def test_tokens_are_read_in_their_order():
    """One secret for each rule; 16 characters are enough."""
    assert read_tokens(with_tokens("A", "B"), {"A": "a" * 16, "B": "b" * 40}) == ["a" * 16, "b" * 40]


def test_tokens_are_not_read_where_nothing_listens():
    """A token that nobody can show is not asked for."""
    assert read_tokens(with_tokens("A", http=None), {}) == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"A": "a" * 16}, "[[security.tokens]] #2 token: the variable B is not set or empty"),
        ({"A": "a" * 16, "B": "b" * 15}, "[[security.tokens]] #2 token: env B holds less than 16 characters"),
        ({"A": "a" * 16, "B": "a" * 16}, "[[security.tokens]] #2 token: env B holds the same as #1; each has its own"),
        (
            {"A": "a" * 16, "B": "ü" * 16},
            "[[security.tokens]] #2 token: the variable B: holds characters that no header",
        ),
    ],
)
def test_a_token_that_will_not_do(env, message):
    """Missing, short, doubled or not for a header: rule and place are named, the token never."""
    with pytest.raises(ConfigError) as caught:
        read_tokens(with_tokens("A", "B"), env)
    assert str(caught.value).startswith(message)
    assert not any(value in str(caught.value) for value in env.values())


def test_the_daemon_does_not_start_on_a_wrong_token():
    """The tokens are read with the platforms' keys, before anything is opened."""
    cloud = Destination("agentos", "https://example.com", api_key=Secret(env="KEY"))
    config = Config(
        destinations={"cloud": cloud}, listen=Listen(http="127.0.0.1:0"), security=with_tokens("A").security
    )
    with pytest.raises(ConfigError, match=r"\[\[security.tokens\]\] #1 token: the variable A"):
        Daemon(Loaded(config, None), {"KEY": "k"})
    assert (
        repr(Daemon(Loaded(config, None), {"KEY": "k", "A": "a" * 16}).access)
        == "<Access 1 tokens, 0 uids with a rule>"
    )


# -- agentd check ------------------------------------------------------------------------------------------------------------


def findings(config, env):
    found = examine(Loaded(config, None), env, UID)
    return [
        (level, message)
        for level, about, message in found
        if about == "[listen]" and ("http" in message or "token" in message)
    ]


def test_check_reads_the_tokens():
    """`agentd check` says how many may use the listener, and what is wrong with a token; it never shows one."""
    right = findings(with_tokens("A", "B"), {"A": "a" * 16, "B": "b" * 16})
    assert right == [("ok", "http at 127.0.0.1:0 for the holders of 2 local token(s)")]
    [(level, message)] = findings(with_tokens("A", "B"), {"A": "a" * 16, "B": "short-secret"})
    assert level == "error"
    assert "#2 token: env B holds less than 16" in message
    assert "short-secret" not in message


def test_check_warns_of_tokens_that_nobody_can_use():
    """Tokens without a listener are no error, but hardly what was meant."""
    assert findings(with_tokens("A", http=None), {}) == [
        ("warning", "http is not set: nobody can use the tokens of [[security.tokens]]")
    ]
    assert findings(Config(), {}) == []
