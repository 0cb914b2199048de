"""What the answer to a read says of a key."""

from __future__ import annotations

import pytest

from agentd import platforms
from agentd.exchange import Lost, Response
from agentd.probing import Found, Probe, judge

PROBE = Probe("/v1/things?limit=1")


def said(status, body=b"", **headers):
    return judge(PROBE, Response(status, headers, body))


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (200, Found.TAKEN), (402, Found.TAKEN), (401, Found.REFUSED), (403, Found.REFUSED), (301, Found.UNCLEAR),
        (404, Found.UNCLEAR), (405, Found.UNCLEAR), (400, Found.UNCLEAR), (429, Found.AWAY), (500, Found.AWAY),
        (503, Found.AWAY),
    ],
)  # fmt: skip
def test_a_status_says_so_much_and_no_more(status, found):
    """Only 401 and 403 refuse a key; a platform that is busy, or another server at its address, says nothing of it."""
    assert said(status).found is found


def test_nobody_is_no_refusal():
    """Without a connection nothing is known of the key."""
    found, reason = judge(PROBE, Lost("no connection to x:443: Connection refused", sent=False))
    assert found is Found.AWAY
    assert "Connection refused" in reason


def test_the_platforms_words_are_shown_in_one_line():
    """What it says of the refusal helps; what can't be printed is left out, and there is an end to it."""
    assert 'GET /v1/things: 401, {"error": "bad key"}' in said(401, b'{"error":\n "bad key"}').reason
    assert said(401, b"\x00\x1b[31m").reason.endswith(": 401)")
    assert len(said(500, b"x" * 10_000).reason) < 400


def test_a_redirect_asks_for_the_address():
    """It is not followed, and the likely cause is named."""
    assert "redirects to https://other/: is base_url right?" in said(302, location="https://other/").reason


@pytest.mark.parametrize("name", platforms.names())
def test_every_adapter_knows_a_read(name):
    """`check --online` writes nothing anywhere: a GET without a body."""
    request = platforms.load(name).probe.request
    assert (request.method, request.body) == ("GET", b"")
    assert request.path.startswith("/")
