"""Which proxy, by the configuration's words and the environment's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import ConfigError
from agentd.proxies import entries, from_environment, has_credentials, is_exempt, is_loopback, parse

URL = "https://www.decide.fyi"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("http://proxy:3128", "http://proxy:3128"), ("proxy:3128", "http://proxy:3128"), ("http://proxy", "http://proxy:80"),
        ("https://proxy/", "https://proxy:443"), ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
        ("http://ann:secret@proxy:3128", "http://proxy:3128"),
    ],
)  # fmt: skip
def test_a_proxys_url(text, place):
    """With or without scheme, port and credentials: the place is the same, and holds no credentials."""
    proxy = parse(text, "test")
    assert (proxy.place, "secret" in repr(proxy)) == (place, False)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("socks5://ann:secret@proxy:1080", "socks5:// proxies are not supported"), ("ftp://proxy", "ftp:// proxies"),
        ("http://", "no URL of a proxy"), ("http://proxy:0", "no URL"), ("http://proxy:99999", "no URL"),
        ("http://proxy/path", "no URL"), ("http://ann:se/cret@proxy:3128", "no URL"), ("http://[::1", "no URL"),
        ("http://an%0An:secret@proxy", "no header can carry"), ("http://an%3An:secret@proxy", "no header can carry"),
    ],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_without_a_word_of_it(text, word):
    """The message names where it was set and what would be right, and nothing of a password."""
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as error:
        parse(text, "HTTPS_PROXY")
    assert word in str(error.value)
    assert "secret" not in str(error.value)
    assert "ret@" not in str(error.value)


def test_credentials_become_a_header():
    """Quoted characters are unquoted, a user alone has an empty password, and none is None."""
    assert parse("http://ann:p%40ss@proxy", "").credentials == "Basic YW5uOnBAc3M="
    assert parse("http://ann@proxy", "").credentials == "Basic YW5uOg=="
    assert parse("http://proxy", "").credentials is None
    assert (has_credentials("http://a:b@c"), has_credentials("http://c:1")) == (True, False)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"https_proxy": "http://b:1", "HTTPS_PROXY": "http://a:1"}, "http://b:1"),  # as curl and Python have it
        ({"ALL_PROXY": "http://c:1"}, "http://c:1"),
        ({"ALL_PROXY": "http://c:1", "HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"HTTP_PROXY": "http://d:1"}, None),  # for http:// alone
        ({"https_proxy": "", "ALL_PROXY": "http://c:1"}, None),  # set to nothing: directly
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "decide.fyi"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "other", "no_proxy": "decide.fyi"}, None),
        ({"HTTPS_PROXY": "socks5://a:1", "NO_PROXY": "*"}, None),  # what is not used need not be right
    ],
)
def test_the_environments_proxy(env, place):
    """The usual names in the usual order."""
    proxy = from_environment(URL, env)
    assert (None if proxy is None else proxy.place) == place


def test_the_plain_scheme_has_its_own_variable():
    """HTTP_PROXY is for http:// alone, HTTPS_PROXY for https:// alone."""
    env = {"HTTP_PROXY": "http://d:1", "HTTPS_PROXY": "http://a:1"}
    assert from_environment("http://platform", env).place == "http://d:1"
    assert from_environment("https://platform", env).place == "http://a:1"


@pytest.mark.parametrize(
    ("entry", "host", "exempt"),
    [
        ("*", "a.example", True), ("example.com", "example.com", True), ("example.com", "www.example.com", True),
        (".example.com", "www.example.com", True), (".example.com", "example.com", True), ("*.example.com", "a.b.example.com", True),
        ("example.com", "badexample.com", False), ("www.example.com", "example.com", False), ("EXAMPLE.com", "Example.COM", True),
        ("example.com.", "example.com", True), ("example.com:443", "example.com", True), ("example.com:8443", "example.com", False),
        ("example.com:443", "example.com:8443", False), ("example.com", "example.com:8443", True),
        ("10.0.0.0/8", "10.1.2.3", True), ("10.0.0.0/8", "11.1.2.3", False), ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True), ("10.1.2", "10.1.2.3", False), ("1.2.3", "a.1.2.3", True), ("2001:db8::/32", "[2001:db8::7]", True),
        ("2001:db8::7", "[2001:DB8:0::7]", True), ("[2001:db8::7]:443", "[2001:db8::7]", True), ("[2001:db8::7]:1", "[2001:db8::7]", False),
        ("10.0.0.0/8", "ten.example", False), ("10.0.0.0/99", "10.1.2.3", False), (".", "example.com", False), ("", "example.com", False),
        ("10.0.0.0/8", "[::ffff:10.1.2.3]", True),
    ],
)  # fmt: skip
def test_what_goes_directly(entry, host, exempt):
    """Names with all below them, addresses, networks, ports; nothing by half a name."""
    assert is_exempt(f"https://{host}", [entry]) is exempt


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_never_proxied(host):
    """What is meant for this host does not leave it, whatever is set."""
    assert is_exempt(f"https://{host}:1", [])
    assert from_environment(f"https://{host}:1", {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://a:1"}) is None


def test_what_only_looks_like_loopback():
    """A name that begins like it is not this host."""
    assert not any(map(is_loopback, ("localhost.example", "127.example", "128.0.0.1", "notlocalhost", "")))


def test_the_list_is_split_as_everybody_does():
    """At commas and white space, empty entries are none."""
    assert entries(" a.example, b.example  c.example,,\n") == ["a.example", "b.example", "c.example"]


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=5))
def test_any_text_is_a_list_or_an_error_of_ours(text, exempt):
    """No environment makes it raise anything but ConfigError."""
    assert isinstance(is_exempt(URL, exempt), bool)
    try:
        parse(text, "HTTPS_PROXY")
    except ConfigError:
        return
