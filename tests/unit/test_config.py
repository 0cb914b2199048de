"""The configuration on its good and its bad days."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from agentd import config as configuration
from agentd.config import find, load, masked
from agentd.errors import ConfigError
from agentd.sections import Config, Destination, Secret
from agentd.variables import KEY_VARIABLES

ROOT = Path(__file__).parents[2]
UID = 1234


@pytest.fixture
def write(tmp_path):
    def writer(text):
        path = tmp_path / "agentd.toml"
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return path

    return writer


@pytest.fixture
def loaded(write):
    return lambda text, env=None: load(write(text), env or {}, UID).config


@pytest.fixture
def refused(write):
    """The message of the refusal; each names the file."""

    def check(text, env=None):
        path = write(text)
        with pytest.raises(ConfigError) as caught:
            load(path, env or {}, UID)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 78
        return str(caught.value).replace(f"{path}: ", "")

    return check


def destination(name="cloud", **values):
    rows = {"platform": '"agentos"', "api_key": '{ env = "KEY" }'} | values
    return f"[destinations.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items())


# -- good days -------------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_every_default(loaded):
    """Every key has a default, and the places depend on who runs it."""
    config = loaded("")
    assert (config.batch.max_events, config.batch.max_bytes, config.batch.max_interval) == (50, 2**20, 0.5)
    assert (config.spool.max_bytes, config.spool.sync) == (2**30, "full")
    assert (config.retry.initial, config.retry.max, config.intake.reference_wait) == (0.25, 60, 2)
    assert (config.listen.socket, config.listen.mode) == (f"/tmp/agentd-{UID}/agentd.sock", "0660")
    assert config.spool.directory == "/tmp/.local/state/agentd"
    assert config.destinations == {}


def test_units_are_understood(loaded):
    """Durations and sizes take units; numbers are seconds and bytes."""
    config = loaded(
        '[batch]\nmax_interval = "250ms"\nmax_bytes = "64KiB"\n[retry]\nmax = 5\n[spool]\nmax_bytes = 1000000\n'
    )
    assert (config.batch.max_interval, config.batch.max_bytes, config.retry.max, config.spool.max_bytes) == (
        0.25,
        65536,
        5,
        10**6,
    )


def test_a_destination_may_have_limits_of_its_own(loaded):
    """A destination's own batch and quota go before the common ones; the others share the spool in equal parts."""
    text = (
        '[spool]\nmax_bytes = "100MiB"\n[batch]\nmax_events = 7\n'
        + destination(max_bytes='"10MiB"')
        + "[destinations.cloud.batch]\nmax_events = 3\n"
    )
    config = loaded(text + destination("other", agents='{ a = "b" }', copy="true"))
    assert (config.batch_of("cloud").max_events, config.batch_of("other").max_events) == (3, 7)
    assert (config.quota_of("cloud"), config.quota_of("other")) == (10 * 2**20, 50 * 2**20)


def test_a_shared_spool_fits_whatever_the_count(loaded):
    """Promise 6: equal shares add up to no more than the whole."""
    text = "".join(destination(f"d{n}", copy="true") for n in range(7))
    config = loaded(text)
    assert sum(config.quota_of(name) for name in config.destinations) <= config.spool.max_bytes


@pytest.mark.parametrize("present", [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3], []])
def test_the_file_is_found_in_order(tmp_path, monkeypatch, present):
    """AGENTD_CONFIG, ./agentd.toml, $XDG_CONFIG_HOME/agentd/agentd.toml, then the host's; none is no error."""
    places = [
        tmp_path / "named.toml",
        tmp_path / "cwd/agentd.toml",
        tmp_path / "xdg/agentd/agentd.toml",
        tmp_path / "etc/agentd.toml",
    ]
    for number in present:
        places[number].parent.mkdir(parents=True, exist_ok=True)
        places[number].write_text("")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    if 0 in present:
        env["AGENTD_CONFIG"] = str(places[0])
    etc = configuration.Path

    def path(*parts):
        return places[3] if parts == ("/etc/agentd/agentd.toml",) else etc(*parts)

    monkeypatch.setattr(configuration, "Path", path)
    assert find(env, tmp_path / "cwd") == (places[present[0]] if present else None)


def test_a_folder_that_is_closed_to_us_holds_no_file(tmp_path, monkeypatch):
    """A home that another user owns is passed over, not a crash."""
    monkeypatch.setattr(Path, "is_file", lambda _self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert find({"XDG_CONFIG_HOME": str(tmp_path)}, tmp_path) is None


# -- variables -------------------------------------------------------------------------------------------------------------


def test_every_key_may_be_set_by_a_variable(loaded):
    """`AGENTD_<SECTION>__<KEY>` goes over the file, with TOML values or plain text; a secret's place may be set too."""
    env = {
        "AGENTD_BATCH__MAX_EVENTS": "7",
        "AGENTD_BATCH__MAX_INTERVAL": "2s",
        "AGENTD_SECURITY__ADMIN_UIDS": "[5, 6]",
        "AGENTD_DESTINATIONS__CLOUD__INJECT_ID": "false",
        "AGENTD_DESTINATIONS__CLOUD__API_KEY__ENV": "OTHER",
        "AGENTD_DESTINATIONS__CLOUD__BATCH__MAX_EVENTS": "3",
        "AGENTD_SOCKET": "/x.sock",
        "UNRELATED__KEY": "1",
    }
    config = loaded("[batch]\nmax_events = 50\n" + destination(), env)
    assert (config.batch.max_events, config.batch.max_interval, config.security.admin_uids) == (7, 2, [5, 6])
    cloud = config.destinations["cloud"]
    assert (cloud.inject_id, cloud.api_key, cloud.batch.max_events) == (False, Secret(env="OTHER"), 3)
    assert config.listen.socket == "/x.sock"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"AGENTD_BATCH__MAX_EVENT": "7"}, "[batch] key 'max_event' is unknown; did you mean 'max_events'?"),
        ({"AGENTD_BATHC__MAX_EVENTS": "7"}, "section 'bathc' is unknown; did you mean 'batch'?"),
        ({"AGENTD_BATCH__MAX_EVENTS": "many"}, "[batch] max_events: Expected `int`, got `str`"),
        ({"AGENTD_BATCH__MAX_EVENTS__X": "1"}, "[batch] max_events: Expected `int`, got `object`"),
        ({"AGENTD_BATCH__MAX_EVENTS": ""}, "[batch] max_events: Expected `int`, got `str`"),
        ({"AGENTD___X": "1"}, "section '' is unknown"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_an_error(refused, env, message):
    """A variable is held to the same rules as the file."""
    assert refused("", env).startswith(message)


def test_a_variable_cannot_make_a_section_of_a_value(write):
    """The variable is named where it contradicts the file."""
    with pytest.raises(ConfigError, match="AGENTD_BATCH__MAX_EVENTS__X: max_events is a value, not a section"):
        load(write("[batch]\nmax_events = 5\n"), {"AGENTD_BATCH__MAX_EVENTS__X": "1"}, UID)


def test_a_platforms_own_variables_make_a_destination(tmp_path, monkeypatch):
    """Without a file the platform's variables are all it takes; its key stays a reference to its variable."""
    monkeypatch.chdir(tmp_path)
    env = {"AGENTOS_API_KEY": "k", "AGENTOS_AGENT_ID": "a", "AGENTOS_BASE_URL": "https://x", "HOME": str(tmp_path)}
    found = load(None, env, UID)
    assert found.path is None
    assert found.config.destinations == {
        "agentos": Destination("agentos", "https://x", "a", api_key=Secret(env="AGENTOS_API_KEY"))
    }
    assert load(None, {"HOME": str(tmp_path)}, UID).config.destinations == {}
    assert (
        load(None, {"HOME": str(tmp_path), "AGENTOS_API_KEY": "k"}, UID).config.destinations["agentos"].base_url == ""
    )


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        (
            "decisionos",
            {"DECISION_OS_API_KEY": "k", "DECISION_OS_AGENT_ID": "a"},
            Destination("decisionos", "", "a", api_key=Secret(env="DECISION_OS_API_KEY")),
        ),
        ("decidefyi", {"DECIDE_API_KEY": "k"}, Destination("decidefyi", api_key=Secret(env="DECIDE_API_KEY"))),
        (
            "ascend",
            {"ASCEND_API_KEY": "k", "ASCEND_AGENT_ID": "a", "ASCEND_API_URL": "https://x"},
            Destination("ascend", "https://x", "a", api_key=Secret(env="ASCEND_API_KEY")),
        ),
        (
            "ascend",
            {"OWKAI_API_KEY": "k", "OWKAI_API_URL": "https://y", "OWKAI_AGENT_ID": "none of its variables"},
            Destination("ascend", "https://y", api_key=Secret(env="OWKAI_API_KEY")),
        ),
        (
            "ascend",
            {"ASCEND_API_KEY": "", "OWKAI_API_KEY": "k", "ASCEND_API_URL": "https://x", "OWKAI_API_URL": "https://y"},
            Destination("ascend", "https://x", api_key=Secret(env="OWKAI_API_KEY")),
        ),
        (
            "ascend",
            {"ASCEND_API_KEY": "k", "OWKAI_API_KEY": "older name"},
            Destination("ascend", api_key=Secret(env="ASCEND_API_KEY")),
        ),
        (
            "aegis",
            {"AEGIS_API_KEY": "k", "AEGIS_AGENT_ID": "a", "AEGIS_API_URL": "https://x"},
            Destination("aegis", "https://x", "a", api_key=Secret(env="AEGIS_API_KEY")),
        ),
    ],
)
def test_each_platform_has_its_own_variables(platform, env, expected, tmp_path, monkeypatch):
    """Each platform's own variables make its destination; of two names for one thing the first that is set counts."""
    monkeypatch.chdir(tmp_path)
    assert load(None, {"HOME": str(tmp_path), **env}, UID).config.destinations == {platform: expected}


@pytest.mark.parametrize(
    "name", ["AGENTOS_AGENT_ID", "AEGIS_AGENT_ID", "AEGIS_API_URL", "DECIDE_AGENT_ID", "OWKAI_API_URL"]
)
def test_a_platform_without_its_key_makes_none(name, tmp_path, monkeypatch):
    """Agent and address alone are no destination."""
    monkeypatch.chdir(tmp_path)
    assert load(None, {"HOME": str(tmp_path), name: "https://x"}, UID).config.destinations == {}


def test_all_platforms_at_once(tmp_path, monkeypatch):
    """Every platform whose key is set gets its destination, and they share the spool."""
    monkeypatch.chdir(tmp_path)
    env = dict.fromkeys(KEY_VARIABLES, "k")
    config = load(None, {"HOME": str(tmp_path), **env}, UID).config
    assert set(config.destinations) == {"agentos", "decisionos", "decidefyi", "ascend", "aegis"}
    assert sum(config.quota_of(name) for name in config.destinations) <= config.spool.max_bytes


def test_options_are_a_table_of_texts(loaded):
    """Which of a platform's variants to speak: names and words of the adapter's, given in the file or by variables."""
    text = destination(options='{ request_id_conflict = "409", shape = "b" }')
    assert loaded(text).destinations["cloud"].options == {"request_id_conflict": "409", "shape": "b"}
    assert loaded(destination()).destinations["cloud"].options is None
    by_name = {
        "AGENTD_DESTINATIONS__CLOUD__OPTIONS__SHAPE": "c",
        "AGENTD_DESTINATIONS__CLOUD__OPTIONS__REQUEST_ID_CONFLICT": "409",
        "AGENTD_DESTINATIONS__CLOUD__OPTIONS__WRAP": "true",
        "AGENTD_DESTINATIONS__CLOUD__OPTIONS__QUOTED": '"d"',
    }
    found = loaded(text, by_name).destinations["cloud"].options
    assert found == {"request_id_conflict": "409", "shape": "c", "wrap": "true", "quoted": "d"}


@pytest.mark.parametrize("value", ["{ shape = 409 }", "{ shape = true }", '{ shape = ["a"] }', '"shape"'])
def test_options_that_are_no_texts(refused, value):
    """In a file an option is written as text, so that it means what it says."""
    assert "options" in refused(destination(options=value))


def test_a_signing_secret_is_a_secret(loaded, refused):
    """It is a place like a key's; written straight into the file it is refused and not repeated."""
    found = loaded(destination(signing_secret='{ file = "/etc/agentd/sign" }')).destinations["cloud"]
    assert found.signing_secret == Secret(file="/etc/agentd/sign")
    message = refused(destination(signing_secret='"hunter2"'))
    assert "[destinations.cloud] signing_secret: a secret stands in the configuration" in message
    assert "hunter2" not in message
    assert "exactly one of" in refused(destination(signing_secret="{}"))
    shown = masked(loaded(destination(signing_secret='{ env = "SIGN" }'), {"SIGN": "hunter2"}))
    assert "hunter2" not in repr(shown)


def test_configured_destinations_go_before_a_platforms_variables(loaded):
    """With a destination of its own nothing comes into being by itself."""
    assert set(loaded(destination(), {"AGENTOS_API_KEY": "k"}).destinations) == {"cloud"}


# -- bad days --------------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    """A file that was named and is not there is an error with its name, not a default."""
    for env, path in (({}, tmp_path / "no.toml"), ({"AGENTD_CONFIG": str(tmp_path / "no.toml")}, None)):
        with pytest.raises(ConfigError, match=r"no\.toml: No such file or directory"):
            load(path, env, UID)


def test_an_unreadable_file(tmp_path):
    """A folder in the file's place, which not even root can read as one."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {}, UID)


@pytest.mark.parametrize(
    "text",
    ["[batch", "x = ", "[a]\n[a]", b"\xff\xfe", b"x = '\xff'", "x = " + "9" * 5000, "x = " + "[" * 5000],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_toml(refused, text):
    """Whatever is in the file, the answer is a sentence with its name."""
    assert refused(text).startswith("not TOML: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[batch]\nmax_event = 5", "[batch] key 'max_event' is unknown; did you mean 'max_events'?"),
        ("[bacth]\n", "section 'bacth' is unknown; did you mean 'batch'?"),
        ("batch = 5", "[batch]: expected a section, got 5"),
        ("destinations = 5", "[destinations]: expected a section, got 5"),
        ("[destinations]\ncloud = 5", "[destinations.cloud]: expected a section, got 5"),
        ("[zzz]\n", "section 'zzz' is unknown; known: listen, intake, batch"),
        (destination(base_ulr='"x"'), "[destinations.cloud] key 'base_ulr' is unknown; did you mean 'base_url'?"),
        (destination() + "[destinations.cloud.batch]\nmax_evnts = 5", "[destinations.cloud.batch] key 'max_evnts' is unknown; did you mean 'max_events'?"),
        ("[destinations.cloud]\n", "[destinations.cloud]: Object missing required field `platform`"),
    ],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(refused, text, message):
    """An unknown key is an error with a suggestion, wherever it stands."""
    assert message in refused(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[batch]\nmax_interval = "5 parsecs"', "[batch] max_interval: expected a number with a unit (us, ms, s, m, h, d, w) such as '500ms'"),
        ("[batch]\nmax_interval = -1", "[batch] max_interval: expected a duration between 0 and 100 years"),
        ("[batch]\nmax_interval = nan", "[batch] max_interval: expected a duration"),
        ("[batch]\nmax_interval = true", "[batch] max_interval: expected a duration"),
        ('[spool]\nmax_bytes = "much"', "[spool] max_bytes: expected a number with a unit"),
        ("[spool]\nmax_bytes = 1.5", "[spool] max_bytes: expected a size"),
        ("[spool]\nmax_bytes = " + "9" * 400, "[spool] max_bytes: expected a size"),
        ('[spool]\nsync = "none"', "[spool] sync: expected one of full, normal, got 'none'"),
        ('[log]\nlevel = "loud"', "[log] level: expected one of debug, info, warning, error, got 'loud'"),
        ("[log]\nformat = 5", "[log] format: expected one of auto, text, json, got 5"),
        (destination(passthrough='"all"'), "[destinations.cloud] passthrough: expected one of agent, admin, got 'all'"),
        (destination(fail_mode='"ajar"'), "[destinations.cloud] fail_mode: expected one of closed, open, got 'ajar'"),
        (destination(ordering='"time"'), "[destinations.cloud] ordering: expected one of run, agent, none, got 'time'"),
        (destination() + destination("other", timeout='"5 parsecs"'), "[destinations.other] timeout: expected a number with a unit"),
        (destination() + "[destinations.cloud.batch]\nmax_interval = -1", "[destinations.cloud.batch] max_interval: expected a duration"),
        (destination(agents='{ a = "1", b = 2 }'), "[destinations.cloud.agents] b: Expected `str`, got `int`"),
        (destination(accept='["event", 5]'), "[destinations.cloud] accept #2: Expected `str`, got `int`"),
        (destination(batch="5"), "[destinations.cloud] batch: Expected `object | null`, got `int`"),
        (destination(api_key="{ env = 5 }"), "[destinations.cloud.api_key] env: Expected `str | null`, got `int`"),
        ('[security]\nadmin_uids = [0, "root"]', "[security] admin_uids #2: Expected `int`, got `str`"),
        ('[[security.peers]]\nuid = 1\nagent_ids = ["a", 5]', "[[security.peers]] #1 agent_ids #2: Expected `str`, got `int`"),
        ("[[security.peers]]\nuid = 1", "[[security.peers]] #1: Object missing required field `agent_ids`"),
        ("[[security.tokens]]\ntoken = { env = 5 }", "[[security.tokens]] #1 token.env: Expected `str | null`, got `int`"),
        ("[batch]\nmax_events = 2.5", "[batch] max_events: Expected `int`, got `float`"),
        ("[batch]\nmax_events = 2026-01-01", "[batch] max_events: Expected `int`"),
        ('[listen]\nmode = "rw"', '[listen] mode: expected octal such as "0660", got \'rw\''),
        ("[intake]\nmax_depth = 0", "[intake] max_depth: expected 1 to 200, got 0"),
        ("[intake]\nmax_depth = 201", "[intake] max_depth: expected 1 to 200, got 201"),
        ("[intake]\nmax_frame_bytes = 1023", "[intake] max_frame_bytes: expected 1024 to 16777215"),
        ('[intake]\nmax_frame_bytes = "16MiB"', "[intake] max_frame_bytes: expected 1024 to 16777215"),
        ('[memory]\nbudget = "15MiB"', '[memory] budget: expected "16MiB" or more'),
        ("[retry]\ninitial = 0", "[retry]: expected 0 < initial <= max"),
        ("[retry]\ninitial = 61", "[retry]: expected 0 < initial <= max"),
        (destination() + "[batch]\nmax_events = 0", "max_events and max_request_events: expected 1 to 10000"),
        (destination() + "[batch]\nmax_request_events = 10001", "max_events and max_request_events: expected 1 to 10000"),
        (destination(max_in_flight="0"), "[destinations.cloud] max_in_flight: expected 1 or more, got 0"),
        (destination(accept='["evnt"]'), "[destinations.cloud] accept: 'evnt' is no kind; known: run.start"),
        (destination(max_bytes='"2GiB"'), "the destinations' max_bytes add up to 2147483648, above [spool] max_bytes 1073741824"),
    ],
)  # fmt: skip
def test_wrong_values_say_what_is_allowed(refused, text, message):
    """Section, key and what would be right, tested just outside the limits."""
    assert message in refused(text)


def test_every_key_with_a_list_of_values_names_them(refused):
    """Wherever a key takes one of a few words, a wrong one is answered with section, key and all of them."""
    common = [(f"[{section}]\n", f"[{section}]", key, words) for section, key, words in words_of(Config)]
    own = [(destination(), "[destinations.cloud]", key, words) for _, key, words in words_of(Destination)]
    assert len(common) >= 3
    assert len(own) >= 3
    for text, place, key, words in common + own:
        message = refused(f"{text}{key} = 'no word'\n")
        assert f"{place} {key}: expected one of {', '.join(words)}, got 'no word'" in message


def words_of(struct, section=""):
    """Section, key and words of each key that takes one of a few, sections below it included."""
    for key, hint in typing.get_type_hints(struct).items():
        if typing.get_origin(hint) is typing.Literal:
            yield section, key, typing.get_args(hint)
        elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from words_of(hint, key)


@pytest.mark.parametrize(
    ("key", "value"), [("max_depth", 1), ("max_depth", 200), ("max_frame_bytes", 1024), ("max_frame_bytes", 2**24 - 1)]
)
def test_limits_themselves_are_allowed(loaded, key, value):
    """The bounds of a range belong to it."""
    assert getattr(loaded(f"[intake]\n{key} = {value}\n").intake, key) == value


@pytest.mark.parametrize(
    "name", ["v1", "healthz", "readyz", "metrics", "Cloud", "1cloud", "my-cloud", "_x", '"a b"', '""']
)
def test_names_that_would_collide_are_refused(refused, name):
    """A destination's name is a path of ours: `[a-z][a-z0-9_]*`, and none of our own endpoints."""
    assert "a name is a-z, then a-z, 0-9 or _, and none of healthz, metrics, readyz, v1" in refused(destination(name))


@pytest.mark.parametrize("name", ["cloud", "a", "v2", "a_1"])
def test_names_that_are_fine(loaded, name):
    """Lower-case words with digits and underscores are names."""
    assert name in loaded(destination(name)).destinations


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com", "http:// is for loopback only"), ("http://127.0.0.1.example.com", "http:// is for loopback only"),
        ("http://10.0.0.1", "http:// is for loopback only"), ("ftp://x", "expected https://host"), ("example.com", "expected https://host"),
        ("https://", "expected https://host"), ("https://x?y=1", "expected https://host"), ("https://x#y", "expected https://host"),
        ("https://[::1", "expected https://host"), ("https://x:port", "expected https://host"), ("https://x:99999", "expected https://host"),
    ],
)  # fmt: skip
def test_wrong_urls(refused, url, message):
    """A key never travels in the clear beyond the host, and what is no URL is a sentence and no traceback."""
    assert message in refused(destination(base_url=f'"{url}"'))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:1", "http://127.9.9.9", "https://example.com/api/"],
)
def test_right_urls(loaded, url):
    """https anywhere, http on loopback."""
    assert loaded(destination(base_url=f'"{url}"')).destinations["cloud"].base_url == url


@pytest.mark.parametrize("user", ["https://user:hunter2@x", "https://hunter2@x"])
def test_a_secret_in_a_url(refused, user):
    """A URL with a password is refused, and the password is not repeated."""
    message = refused(destination(base_url=f'"{user}"'))
    assert "a secret stands in the URL; use api_key" in message
    assert "hunter2" not in message


# -- overlap ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "right"),
    [
        ({}, {}, False),
        ({"accept": '["event"]'}, {"accept": '["run.start"]'}, True),
        ({"accept": '["event", "span"]'}, {"accept": '["span"]'}, False),
        ({"agents": '{ a = "1" }'}, {"agents": '{ b = "2" }'}, True),
        ({"agents": '{ a = "1" }'}, {"agents": '{ "*" = "2" }'}, False),
        ({"agents": '{ "team-*" = "1" }'}, {"agents": '{ team-a = "2" }'}, False),
        ({"agents": '{ "bil*" = "1" }'}, {"agents": '{ "b*g" = "2" }'}, False),
        ({"agents": '{ "[a-m]*" = "1" }'}, {"agents": '{ "[n-z]*" = "2" }'}, True),
        ({"agents": '{ a = "1" }'}, {}, False),
        ({"agents": '{ a = "1" }', "accept": '["event"]'}, {"agents": '{ a = "1" }', "accept": '["task"]'}, True),
        ({"accept": "[]"}, {}, True),
        ({"copy": "true"}, {}, True),
        ({"platform": '"other"'}, {}, True),
    ],
)  # fmt: skip
def test_two_destinations_that_would_both_send(write, first, second, right):
    """Two destinations of one platform that overlap in kinds and agents are an error unless `copy = true`."""
    path = write(destination("one", **first) + destination("two", **second))
    if right:
        assert set(load(path, {}, UID).config.destinations) == {"one", "two"}
    else:
        with pytest.raises(
            ConfigError, match=r"\[destinations.one\] and \[destinations.two\] are both agentos and take the same"
        ):
            load(path, {}, UID)


@pytest.mark.parametrize(
    ("kinds", "second", "right"),
    [
        ((), {}, True),
        (("event",), {}, False),
        (("event",), {"accept": '["span"]'}, True),
        (("event",), {"copy": "true"}, True),
    ],
)
def test_what_a_platform_does_not_take_overlaps_nowhere(write, kinds, second, right):
    """Two destinations overlap in what their platform takes: one that takes gates only may be there twice."""
    path = write(destination("one") + destination("two", **second))
    asked = []

    def kinds_of(platform):
        asked.append(platform)
        return kinds

    if right:
        assert set(load(path, {}, UID, kinds_of).config.destinations) == {"one", "two"}
    else:
        with pytest.raises(ConfigError, match="are both agentos and take the same"):
            load(path, {}, UID, kinds_of)
    assert set(asked) <= {"agentos"}


# -- secrets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ['"hunter2"', "'hunter2'"])
def test_a_secret_in_the_file_is_refused_and_not_repeated(refused, value):
    """A secret written straight into the configuration is an error that says where to put it, and never its content."""
    message = refused(destination(api_key=value))
    assert "[destinations.cloud] api_key: a secret stands in the configuration" in message
    assert "hunter2" not in message


def test_a_secret_in_a_variable_of_ours_is_refused_too(refused):
    """The same goes for AGENTD_DESTINATIONS__NAME__API_KEY."""
    message = refused(destination(), {"AGENTD_DESTINATIONS__CLOUD__API_KEY": "hunter2"})
    assert "a secret stands in the configuration" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("value", ["{}", '{ env = "A", file = "b" }'])
def test_a_secret_has_one_place(refused, value):
    """Exactly one of credential, file, env."""
    assert "expected exactly one of credential, file, env" in refused(destination(api_key=value))


def test_an_unknown_place_for_a_secret(refused):
    """A place of another name is unknown."""
    assert "unknown field `path`" in refused(destination(api_key='{ path = "x" }'))


def test_a_secret_from_a_variable():
    """White space around it is not part of it; without it the variable is named."""
    assert Secret(env="KEY").read({"KEY": " hunter2\n"}) == "hunter2"
    for env in ({}, {"KEY": ""}):
        with pytest.raises(ConfigError, match="the variable KEY is not set or empty"):
            Secret(env="KEY").read(env)


@pytest.mark.parametrize(
    ("mode", "right"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o610, False), (0o644, False)]
)
def test_a_secret_from_a_file_that_others_can_read(tmp_path, mode, right):
    """A file that group or others may read is refused with the cure."""
    path = tmp_path / "key"
    path.write_text("hunter2\n")
    path.chmod(mode)
    if right:
        assert Secret(file=str(path)).read({}) == "hunter2"
    else:
        with pytest.raises(ConfigError, match="others may read this secret; chmod 600 it"):
            Secret(file=str(path)).read({})


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b" \n", "empty"), (b"hunter2\xff", "not text")])
def test_a_secret_file_without_a_secret(tmp_path, content, message):
    """What is no secret is said with its place and never with its content."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"key: {message}$") as caught:
        Secret(file=str(path)).read({})
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("place", ["no-such-file", "."])
def test_a_secret_file_that_is_none(tmp_path, place):
    """A missing file and a folder are errors with their name."""
    with pytest.raises(ConfigError, match=r"No such file|Is a directory|others may read"):
        Secret(file=str(tmp_path / place)).read({})


@pytest.mark.parametrize(
    "secret", ["hunter\n2", "hunter\r\n2", "hun\tter", "hunter\x00", "hunter\x7f", "hünter", "hun\u2028ter"]
)
def test_a_secret_that_no_header_can_carry(tmp_path, secret):
    """Control characters, line breaks within, accents: refused at the start with the place, never with the secret."""
    (tmp_path / "key").write_bytes(secret.encode())
    (tmp_path / "key").chmod(0o600)
    for place, env, name in (
        (Secret(env="KEY"), {"KEY": secret}, "the variable KEY"),
        (Secret(file=str(tmp_path / "key")), {}, "key"),
        (Secret(credential="key"), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, "key"),
    ):
        with pytest.raises(ConfigError, match=f"{name}: holds characters that no header can carry") as caught:
            place.read(env)
        assert caught.value.exit_code == 78
        assert "hun" not in str(caught.value)


def test_a_credential_of_systemd(tmp_path):
    """A credential lies where systemd says; its mode is systemd's affair."""
    (tmp_path / "agentos").write_text("hunter2")
    secret = Secret(credential="agentos")
    assert secret.read({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "hunter2"
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        secret.read({})
    with pytest.raises(ConfigError, match="No such file"):
        secret.read({"CREDENTIALS_DIRECTORY": str(tmp_path / "no")})


def test_a_secret_is_shown_as_its_place(loaded):
    """What `agentd config` shows holds places and no secrets."""
    assert str(Secret(env="KEY")) == "env KEY"
    shown = masked(loaded(destination(), {"KEY": "hunter2"}))
    assert shown["destinations"]["cloud"]["api_key"]["env"] == "KEY"
    assert shown["batch"]["max_interval"] == 0.5
    assert "hunter2" not in repr(shown)


# -- the example file ------------------------------------------------------------------------------------------------------


def keys_of(struct, section):
    for one in msgspec.structs.fields(struct):
        kinds = one.type.__args__ if hasattr(one.type, "__args__") else (one.type,)
        nested = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)), None)
        if nested is Secret or nested is None or nested is Destination:
            yield section, one.name
        else:
            yield from keys_of(nested, f"{section}.{one.name}" if section else one.name)


def test_every_key_stands_in_the_example():
    """config/agentd.toml shows every key of every section, commented or not, and shows none that does not exist."""
    path = ROOT / "config/agentd.toml"
    if not path.exists():
        pytest.skip("config/agentd.toml is not written yet")
    section, shown = "", set()
    for line in path.read_text().splitlines():
        if match := re.match(r"#?\s?\[{1,2}([a-z_.]+|destinations\.\w+(?:\.batch)?)\]", line):
            section = re.sub(r"^destinations\.\w+", "destinations", match[1])
        elif match := re.match(r"#?\s?([a-z_]+)\s*=", line):
            shown.add((section, match[1]))
    expected = {(s, key) for s, key in keys_of(Config, "") if (s, key) != ("", "destinations")}
    expected |= {(s, key) for s, key in keys_of(Destination, "destinations") if not s.endswith(".batch")}
    assert expected - shown == set()
    unknown = {(s, k) for s, k in shown - expected if not s.endswith(".batch") and not s.endswith(".agents")}
    assert unknown == set()


def test_the_example_loads():
    """The file that ships is a configuration that agentd takes."""
    path = ROOT / "config/agentd.toml"
    if not path.exists():
        pytest.skip("config/agentd.toml is not written yet")
    assert load(path, {}, UID).path == str(path)


def test_what_was_found_is_read_again_and_held_to_the_same(tmp_path, monkeypatch):
    """A reload reads the file of the start, whatever lies about by then; that it was found once does not make it one that was named."""
    seen = []
    monkeypatch.setattr("agentd.config.read_checked", lambda path, _us, *, named: seen.append((path, named)) or b"")
    load(None, {"HOME": str(tmp_path)}, before=tmp_path / "agentd.toml")
    load(tmp_path / "other.toml", {}, before=tmp_path / "agentd.toml")
    load(None, {"AGENTD_CONFIG": str(tmp_path / "said.toml")}, before=tmp_path / "said.toml")
    assert seen == [
        (tmp_path / "agentd.toml", False), (tmp_path / "other.toml", True), (tmp_path / "said.toml", True),
    ]  # fmt: skip
