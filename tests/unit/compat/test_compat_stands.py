"""A destination towards its SDK: how long its calls may take."""

from __future__ import annotations

import msgspec
import pytest

from agentd import platforms
from agentd.compat.paths import Doors
from agentd.compat.stands import Stand
from agentd.reach import Reach
from agentd.standin import Does, Door

DOOR = Door("POST", "/x", Does.GATE, gate="action")


def stand(timeout_s):
    platform = platforms.load("ascend")
    return Stand(
        "a", platform, platform.stand_in, Doors([]), None, Reach("http://x"), "key", "secret", timeout_s, 2.0, False
    )


@pytest.mark.parametrize(
    ("timeout_s", "patience_s", "limit_s", "expected"),
    [(30, 0, None, 30), (30, 60, None, 60), (30, 0, 4, 4), (2, 0, 4, 2), (30, 60, 4, 4)],
)
def test_how_long_a_call_may_take(timeout_s, patience_s, limit_s, expected):
    """The destination's timeout, more where the SDK waits longer, and never so long that the SDK would repeat a gate."""
    door = msgspec.structs.replace(DOOR, patience_s=patience_s, limit_s=limit_s)
    assert stand(timeout_s).wait_s(door) == expected


def test_its_repr_shows_no_secret():
    """What a log may quote holds neither key nor signing secret."""
    assert repr(stand(1)) == "<Stand a at http://x>"
