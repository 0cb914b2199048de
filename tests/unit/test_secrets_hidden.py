"""No secret is in what is printed of whoever holds one: a repr in a log, a traceback, a debugger's list."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from agentd.changes import Setup
from agentd.compat.build import stands_of
from agentd.config import masked
from agentd.daemon import Daemon
from agentd.errors import ConfigError
from agentd.exchange import Sending
from agentd.gate.build import _desks
from agentd.http import Http, Way
from agentd.intake.access import Access
from agentd.reloading import Fresh
from agentd.sections import Config, Destination, Listen, Loaded, Secret, Security, TokenRule
from agentd.targets import targets_of

KEY, SIGNING, TOKEN, PROXY = "key-hunter2-0001", "sign-hunter2-0002", "token-hunter2-0003", "proxy-hunter2-0004"
ENV = {"KEY": KEY, "SIGN": SIGNING, "TOKEN": TOKEN, "PROXY": f"http://user:{PROXY}@proxy.example:3128"}
CONFIG = Config(
    listen=Listen(socket="/tmp/x.sock", http="127.0.0.1:0"),
    security=Security(tokens=[TokenRule(Secret(env="TOKEN"))]),
    destinations={
        "cloud": Destination(
            "ascend",
            "https://platform.example",
            "a",
            api_key=Secret(env="KEY"),
            signing_secret=Secret(env="SIGN"),
            proxy=Secret(env="PROXY"),
        )
    },
)


@pytest.fixture
def targets():
    return targets_of(CONFIG, ENV)


def shows(*things):
    text = " ".join(f"{thing!r} {thing!s}" for thing in things)
    return [secret for secret in (KEY, SIGNING, TOKEN, PROXY) if secret in text]


def test_who_holds_a_secret_does_not_show_it(targets):
    """Targets, settings, desks, stands, ways, setups, the daemon itself."""
    target = targets["cloud"]
    way = Way(Http(), target.reach)
    spool = SimpleNamespace(refs=None, wait_for_names=None)
    loaded = Loaded(CONFIG, None)
    fresh = Fresh(loaded, targets, [TOKEN])
    sending = Sending(KEY, "id", 0.0, b"", SIGNING)
    daemon = Daemon(loaded, ENV)
    held = [
        target, target.settings(), *_desks(targets, CONFIG, {"cloud": way}), *stands_of(targets, CONFIG, spool).values(),
        way, target.reach, Setup(CONFIG, targets, [TOKEN]), fresh, fresh.setup, sending, Access(CONFIG.security, [TOKEN]),
        daemon, loaded,
    ]  # fmt: skip
    assert shows(*held) == []


def test_a_configuration_shows_places(targets):
    """`agentd config` and whatever prints the Structs have the places of secrets, which are no secrets."""
    assert shows(CONFIG, json.dumps(masked(CONFIG), default=str)) == []
    assert "KEY" in json.dumps(masked(CONFIG), default=str)


@pytest.mark.parametrize("variable", ["KEY", "SIGN", "TOKEN", "PROXY"])
def test_an_error_names_the_place(variable):
    """A secret that can't be used is told by where it is, also in the causes of the error."""
    env = {**ENV, variable: f"{ENV[variable]}\nä"}
    with pytest.raises(ConfigError) as caught:
        Daemon(Loaded(CONFIG, None), env)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert shows(*[error for error in chain if error is not None]) == []
    assert variable in str(caught.value)
