"""The way to a destination, from the configuration's words: what is made of them, and what is refused at the start."""

from __future__ import annotations

import shutil
import ssl

import pytest
from outward_kit import Authority

from agentd.config import load, masked
from agentd.errors import ConfigError
from agentd.reach import CONNECT_S, Reach, reach_of
from agentd.sections import Secret
from agentd.trust import Trust, describe

URL = "https://platform.example"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")


@pytest.fixture
def reach(tmp_path):
    """`reach(destination lines, outbound lines, env)`: what the file makes of it."""

    def make(destination="", outbound="", env=None, url=URL):
        path = tmp_path / "agentd.toml"
        text = f'[outbound]\n{outbound}\n[destinations.cloud]\nplatform = "agentos"\napi_key = {{ env = "KEY" }}\n{destination}\n'
        path.write_text(text)
        config = load(path, env or {}, 0).config
        return reach_of(config.destinations["cloud"], url, config.outbound, env or {}, "cloud")

    return make


@pytest.fixture
def refused(reach):
    """The message of the refusal."""

    def check(*words, **more):
        with pytest.raises(ConfigError) as caught:
            reach(*words, **more)
        return str(caught.value)

    return check


def secret(tmp_path, text, mode=0o600):
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(mode)
    return f'{{ file = "{path}" }}'


def test_without_a_word_it_is_direct(reach):
    """The system's issuers, no proxy, 30 s in all and 5 s to connect."""
    assert reach() == Reach(URL, "cloud", 30.0, CONNECT_S, None, Trust())


def test_whose_proxy_counts(reach):
    """The destination's own, else the common one, else the environment's; `direct` is none at all."""
    env = {"HTTPS_PROXY": "http://env:1"}
    common = 'proxy = "http://common:1"'
    assert reach(env=env).proxy.place == "http://env:1"
    assert reach("", common, env).proxy.place == "http://common:1"
    assert reach('proxy = "own:1"', common, env).proxy.place == "http://own:1"
    assert reach('proxy = "direct"', common, env).proxy is None
    assert reach("", 'proxy = "direct"', env).proxy is None


def test_the_common_proxy_has_its_own_list(reach):
    """`no_proxy` is for the configuration's proxy, NO_PROXY for the environment's; a destination's own proxy is meant."""
    common = 'proxy = "http://common:1"\nno_proxy = [".example"]'
    assert reach("", common).proxy is None
    assert reach('proxy = "own:1"', common).proxy.place == "http://own:1"
    assert reach("", 'proxy = "http://common:1"', {"NO_PROXY": "*"}).proxy.place == "http://common:1"


def test_loopback_goes_directly(reach, refused):
    """No common proxy is asked for this host, and an own one for it is a mistake."""
    url = "http://127.0.0.1:4400/agentos"
    assert reach("", 'proxy = "http://common:1"', url=url).proxy is None
    assert reach(env={"HTTP_PROXY": "http://a:1", "ALL_PROXY": "http://a:1"}, url=url).proxy is None
    assert "never proxied" in refused('proxy = "own:1"', url=url)


def test_a_proxys_password_lives_where_secrets_do(reach, refused, tmp_path):
    """Written out it is refused without a word of it; a file or a variable holds the whole URL, and nothing shows it."""
    for place in (
        ("proxy", 'proxy = "http://ann:hunter22@p:1"', ""),
        ("[outbound] proxy", "", 'proxy = "http://ann:hunter22@p:1"'),
    ):
        message = refused(*place[1:])
        assert (place[0] in message, "hunter22" in message, "file =" in message) == (True, False, True)
    found = reach(f"proxy = {secret(tmp_path, 'http://ann:hunter22@p:1')}")
    assert (found.proxy.place, found.proxy.credentials.startswith("Basic "), "hunter22" in repr(found)) == (
        "http://p:1",
        True,
        False,
    )
    assert reach('proxy = { env = "P" }', env={"P": "http://ann:hunter22@p:1"}).proxy.place == "http://p:1"
    assert "others may read" in refused(f"proxy = {secret(tmp_path, 'http://p:1', 0o644)}")


def test_a_variable_of_the_configuration_shows_no_password(tmp_path):
    """Also not where AGENTD_… sets it: what `agentd config` would print is refused first."""
    env = {"AGENTD_OUTBOUND__PROXY": "http://ann:hunter22@p:1"}
    path = tmp_path / "agentd.toml"
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        load(path, env, 0)
    assert "hunter22" not in str(caught.value)
    shown = masked(load(path, {"AGENTD_OUTBOUND__PROXY": "http://p:1"}, 0).config)
    assert shown["outbound"]["proxy"] == "http://p:1"


@pytest.mark.parametrize(
    ("destination", "outbound", "word"),
    [
        ('proxy = "socks5://p:1"', "", "[destinations.cloud] proxy: socks5:// proxies are not supported"),
        ("", 'proxy = "p:1:1"', "[outbound] proxy: no URL of a proxy"),
        ("", 'no_proxy = ["a"]', "[outbound] no_proxy: says nothing without proxy"),
        ('proxy = { fiel = "x" }', "", "proxy"), ("proxy = { file = 3 }", "", "[destinations.cloud.proxy] file: Expected `str"),
        ('timeout = "0s"', "", "timeout: expected more than 0"), ('timeout = "2h"', "", 'at most "1h", got 2h'),
        ('connect_timeout = "0s"', "", "connect_timeout: expected more than 0"),
        ('timeout = "2s"\nconnect_timeout = "3s"', "", "at most timeout (2s), got 3s"),
        ('client_key = { file = "/k" }', "", "client_key: says nothing without client_cert"),
        ('client_cert = "/c"\nclient_key = "/k"', "", "client_key: a secret stands in the configuration"),
        ("monthly_cap = 0", "", "monthly_cap: expected 1 or more"),
        ('rate_limit = "fast"', "", "rate_limit: expected requests by time such as '600/min'"),
        ("rate_limit = 0", "", "rate_limit: expected requests by time"), ('rate_limit = "5"', "", "rate_limit: expected requests by time"),
    ],
)  # fmt: skip
def test_what_cant_be_is_refused_by_its_name(refused, destination, outbound, word):
    """Each with section and key and what would be right."""
    assert word in refused(destination, outbound)


def test_times(reach):
    """Connecting takes its own limit, and of a short whole at most nine tenths, so that it ends as what it is."""
    found = reach('timeout = "10s"\nconnect_timeout = "2s"')
    assert (found.timeout_s, found.connect_within(10.0), found.connect_within(1.0)) == (10.0, 2.0, 0.9)
    assert reach('timeout = "1s"').connect_within(1.0) == 0.9


# -- certificates ------------------------------------------------------------------------------------------------------


@needs_openssl
def test_files_are_looked_at_before_the_first_request(reach, refused, tmp_path):
    """A file that is not there, holds none, or holds a key: each is said at the start, by key and path."""
    authority = Authority(tmp_path / "ca")
    cert, key = authority.issue("agentd", "client")
    good = f'ca_file = "{authority.ca_file}"'
    assert reach(good).trust == Trust(str(authority.ca_file))
    assert reach("", good).trust == Trust(str(authority.ca_file))
    assert reach(f'client_cert = "{cert}"\nclient_key = {{ file = "{key}" }}').trust == Trust(None, str(cert), str(key))
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    assert reach(f'client_cert = "{both}"').trust == Trust(None, str(both))
    (tmp_path / "empty").write_text("")
    for line, word in (
        ('ca_file = "/nowhere/ca.pem"', "ca_file: /nowhere/ca.pem: No such file"),
        (f'ca_file = "{tmp_path}/empty"', "holds no certificate"), (f'ca_file = "{key}"', "holds no certificate"),
        (f'ca_file = "{both}"', "holds a private key"),
        ('client_cert = "/nowhere"', "client_cert: /nowhere: No such file"), (f'client_cert = "{cert}"', "no certificate with its key"),
        (f'client_cert = "{cert}"\nclient_key = {{ file = "{authority.folder}/ca.key" }}', "its key is another one's"),
        (f'client_cert = "{cert}"\nclient_key = {{ file = "{authority.encrypt(key)}" }}', "its key is encrypted"),
        (f'client_cert = "{cert}"\nclient_key = {{ env = "KEY" }}', "it is read as a file"),
    ):  # fmt: skip
        assert word in refused(line)
    key.chmod(0o644)
    assert "chmod 600" in refused(f'client_cert = "{cert}"\nclient_key = {{ file = "{key}" }}')


@needs_openssl
def test_a_key_in_systemds_credentials(reach, tmp_path):
    """Like any secret it may be a credential; its file is what OpenSSL reads."""
    cert, key = Authority(tmp_path / "ca").issue("agentd", "client")
    line = f'client_cert = "{cert}"\nclient_key = {{ credential = "{key.name}" }}'
    assert reach(line, env={"CREDENTIALS_DIRECTORY": str(key.parent)}).trust.client_key == str(key)


def test_the_systems_file_has_to_be_there(reach, refused):
    """OpenSSL would silently believe nobody; with a `ca_file` it is not asked."""
    assert refused(env={"SSL_CERT_FILE": "/nowhere"}) == "SSL_CERT_FILE: /nowhere: there is no such file"


def test_verification_cant_be_switched_off():
    """No key of the configuration, and no variable, makes a context that believes anybody."""
    context = Trust().context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not any("verify" in name or "insecure" in name for name in Trust.__struct_fields__)


def test_a_secret_is_a_place_for_libraries_too(tmp_path):
    """`path` gives the file, and refuses what others may read, what is not there and what is no file."""
    file = tmp_path / "k"
    file.write_text("x")
    file.chmod(0o600)
    assert Secret(file=str(file)).path({}) == file
    for wrong, word in (
        (Secret(env="X"), "read as a file"),
        (Secret(file="/nowhere"), "No such file"),
        (Secret(credential="c"), "CREDENTIALS"),
    ):
        with pytest.raises(ConfigError, match=word):
            wrong.path({})


def test_what_is_no_tls_error_has_no_words():
    """Only errors of TLS are told in its words."""
    assert describe(OSError("x")) is None
    assert describe(ssl.SSLError(1, "x")) == "TLS failed (SSLError)"
