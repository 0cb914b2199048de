"""A configured destination before it is opened: what it takes, and what its courier is told."""

from __future__ import annotations

import logging

import msgspec
import pytest

from agentd.errors import ConfigError, RecordError
from agentd.intake.routing import Table
from agentd.sections import Config, Destination, Secret
from agentd.targets import Target, targets_of

ENV = {"KEY": "very-secret", "SIGN": "hush"}


def target(platform="agentos", **fields):
    fields.setdefault("api_key", Secret(env="KEY"))
    return Target("x", Config(destinations={"x": Destination(platform, **fields)}), ENV)


def test_a_platform_for_gates_only_is_a_target_that_takes_nothing(caplog):
    """Its route takes no kind; that is its nature and no news, while `accept = []` may be a mistake and is said aloud."""
    with caplog.at_level(logging.WARNING, "agentd"):
        aegis = target("aegis")
        assert caplog.records == []
        assert target("agentos", accept=[]).kinds == frozenset()
    assert (aegis.kinds, aegis.route().kinds, aegis.route().introduces) == (frozenset(), frozenset(), frozenset())
    assert aegis.base_url == "https://api.aegis-os.com"
    assert [(record.action, record.getMessage()) for record in caplog.records] == [
        ("gates_only", "x: takes gates only; no record is queued for it")
    ]


def test_a_record_does_not_go_to_it():
    """A record that only a destination for gates is left for is refused with the reason; beside another that one takes it."""
    both = {
        "gates": Destination("aegis", api_key=Secret(env="KEY")),
        "all": Destination("agentos", api_key=Secret(env="KEY")),
    }
    targets = targets_of(Config(destinations=both), ENV)
    routes = {name: one.route() for name, one in targets.items()}
    assert [route.name for route in Table(routes.values()).route("event", "a", None)] == ["all"]
    with pytest.raises(RecordError, match="no destination takes event"):
        Table([routes["gates"]]).route("event", "a", None)
    with pytest.raises(RecordError, match="gates does not take event"):
        Table(routes.values()).route("event", "a", "gates")


def test_no_kind_can_be_accepted_for_it():
    """`accept` names a kind that the platform has no call for."""
    with pytest.raises(ConfigError, match=r"\[destinations.x\] accept: aegis has no call for event"):
        target("aegis", accept=["event"])


def test_accept_may_be_nothing():
    """`accept = []` makes any platform one for gates only; without it a platform takes all that it knows."""
    assert target(accept=[]).kinds == frozenset()
    assert target(accept=["event"]).kinds == {"event"}
    assert target().kinds >= {"event", "run.start"}


def test_options_and_signing_secret_reach_the_courier():
    """What the configuration says is what the courier is told, the secret as its content."""
    settings = target("ascend", options={"completion_route": "server"}, signing_secret=Secret(env="SIGN")).settings()
    assert (settings.options, settings.signing_secret) == ({"completion_route": "server"}, "hush")
    assert settings.api_key == "very-secret"
    plain = target().settings()
    assert (plain.options, plain.signing_secret) == ({}, None)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("key", ["api_key", "signing_secret"])
def test_a_secret_that_is_not_there_is_named(key):
    """The daemon does not start without a secret that it was told to use."""
    with pytest.raises(ConfigError, match=rf"\[destinations.x\] {key}: the variable NONE is not set"):
        target(**{key: Secret(env="NONE")})


def test_without_a_destination_it_says_what_to_set():
    """Every platform's own key is named."""
    with pytest.raises(
        ConfigError, match="AGENTOS_API_KEY, DECISION_OS_API_KEY, DECIDE_API_KEY, ASCEND_API_KEY, OWKAI_API_KEY, AEGIS"
    ):
        targets_of(Config(), ENV)


def test_a_destinations_identity_is_not_its_options():
    """Options and secrets may change while records wait; platform, address and agents may not."""
    first = target("ascend", options={"completion_route": "sdk"})
    second = target("ascend", options={"completion_route": "server"}, signing_secret=Secret(env="SIGN"))
    assert first.identity == second.identity
    assert msgspec.structs.asdict(first.destination) != msgspec.structs.asdict(second.destination)


@pytest.mark.parametrize("options", [{"completion_route": "both"}, {"route": "sdk"}])
def test_an_option_that_the_platform_does_not_know_is_an_error(options):
    """A typing error in an option is found at the start, with what would be right."""
    with pytest.raises(
        ConfigError, match=r"\[destinations.x\] options: .* ascend knows completion_route = sdk \| server"
    ):
        target("ascend", options=options)
