"""Switches: texts, types and refusals."""

from __future__ import annotations

import msgspec
import pytest

from agentd.errors import UsageError
from agentd.sandbox import AegisSwitches, AgentosSwitches, Emulation, parse_switch
from agentd.sandbox.switches import with_switch


def test_text():
    """A switch is written face.name=value."""
    assert parse_switch("agentos.late_events=409") == ("agentos", "late_events", "409")


@pytest.mark.parametrize("text", ["", "agentos", "agentos.late_events", "late_events=409", ".x=1", "agentos.=1"])
def test_wrong_text(text):
    """Anything else is refused with an example."""
    with pytest.raises(UsageError, match=r"agentos\.late_events=409"):
        parse_switch(text)


def test_values_are_read_by_the_field_type():
    """Text and numbers become what the switch's type asks for; none lifts a limit."""
    switches = with_switch(AgentosSwitches(), "late_events", 409)
    assert switches == AgentosSwitches(late_events="409")
    assert with_switch(switches, "max_events", "50") == AgentosSwitches(late_events="409", max_events=50)
    assert with_switch(AgentosSwitches(max_events=50), "max_events", "none") == AgentosSwitches()
    assert with_switch(AgentosSwitches(max_events=50), "max_events", None) == AgentosSwitches()
    assert with_switch(AgentosSwitches(), "max_body_bytes", "2MiB").max_body_bytes == 2 * 2**20
    assert with_switch(AgentosSwitches(), "max_body_bytes", 512).max_body_bytes == 512
    assert with_switch(AgentosSwitches(), "max_body_bytes", "512").max_body_bytes == 512


@pytest.mark.parametrize(
    ("value", "seconds"), [("2s", 2.0), ("500ms", 0.5), ("0", 0.0), ("1.5", 1.5), (3, 3.0), (0.25, 0.25)]
)
def test_delays_take_units(value, seconds):
    """A switch that is a delay takes a duration with its unit, or plain seconds, as text and as a number."""
    assert with_switch(AegisSwitches(), "decision_delay", value).decision_delay == seconds


@pytest.mark.parametrize("value", ["soon", "-1", "none", None, "2 parsecs"])
def test_wrong_delays(value):
    """Anything else is refused."""
    with pytest.raises(UsageError):
        with_switch(AegisSwitches(), "decision_delay", value)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("late_event", "409", "there are late_events"),
        ("late_events", "perhaps", "late_events"),
        ("late_events", None, "late_events"),
        ("max_events", "0", "max_events"),
        ("max_body_bytes", "big", "64MiB"),
    ],
)
def test_wrong_values(name, value, named):
    """An unknown switch or value is refused by name."""
    with pytest.raises(UsageError, match=named):
        with_switch(AgentosSwitches(), name, value)


def test_constructor_takes_text_and_struct():
    """A sandbox takes its switches as texts or as a face's whole Struct."""
    emulation = Emulation(switches=[AgentosSwitches(late_events="409"), "agentos.max_events=3"])
    assert emulation.switches()["agentos"]["late_events"] == "409"
    assert emulation.switches()["agentos"]["max_events"] == 3


def test_switches_of_no_face():
    """Switches of a platform that is not in the sandbox are refused."""

    class OtherSwitches(msgspec.Struct, frozen=True):
        x: int = 1

    with pytest.raises(UsageError, match="OtherSwitches"):
        Emulation(switches=[OtherSwitches()])
    with pytest.raises(UsageError, match="no platform 'aegis'"):
        Emulation(switches=["aegis.park=true"])
