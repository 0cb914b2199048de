"""The platform's key in what the platform says."""

from __future__ import annotations

import pytest

from agentd.withheld import Withheld

KEY = "aos_ws_0123456789"


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": KEY}])
def test_a_key_is_taken_out(headers):
    """Wherever it stands, however often; all else stays."""
    withheld = Withheld({**headers, "idempotency-key": "0123456789"})
    assert withheld.data(f'{{"a":"{KEY}","b":"x{KEY}{KEY}","c":"0123456789"}}'.encode()) == (
        b'{"a":"***","b":"x******","c":"0123456789"}'
    )
    assert withheld.text(f"401 {KEY} is wrong") == "401 *** is wrong"
    assert KEY not in repr(withheld)


def test_without_a_key_nothing_changes():
    """A request without one, and a key so short that it stands in a text by chance."""
    for headers in ({}, {"authorization": "Bearer k"}, {"authorization": ""}):
        assert Withheld(headers).data(b"kkk") == b"kkk"
        assert Withheld(headers).begun(b"kkk") == 0


@pytest.mark.parametrize("end", [b"", b"a", b"aos_", KEY[:-1].encode(), b"aaos_w"])
def test_a_key_may_be_cut_in_two(end):
    """What may be its beginning is known, so that it is not passed on before its rest has come."""
    size = Withheld({"x-api-key": KEY}).begun(b"x" + end)
    assert end.endswith((b"x" + end)[1 + len(end) - size :])
    assert size == (len(end) if not end.startswith(b"aaos") else len(end) - 1)
