"""Which headers pass."""

from __future__ import annotations

from agentd.compat.headers import outgoing, returning

OWN = {"authorization": "Bearer platform-key", "idempotency-key": ""}


def test_nothing_of_the_callers_own_goes_out():
    """Its token, cookies, hop-by-hop headers and whatever is not on the list stay here; the platform's key goes."""
    sent = {
        "authorization": "Bearer local-token", "x-api-key": "local-token", "cookie": "a=b", "host": "127.0.0.1:4319",
        "connection": "keep-alive", "transfer-encoding": "chunked", "te": "trailers", "upgrade": "h2c", "content-length": "5",
        "proxy-authorization": "x", "x-forwarded-for": "10.0.0.1", "origin": "http://x", "x-own": "1", "expect": "100-continue",
        "content-type": "application/json", "accept": "text/event-stream", "user-agent": "sdk/1", "x-request-id": "r",
    }  # fmt: skip
    assert outgoing(sent, OWN, frozenset({"x-request-id"})) == {
        "content-type": "application/json", "accept": "text/event-stream", "user-agent": "sdk/1", "x-request-id": "r",
        "authorization": "Bearer platform-key",
    }  # fmt: skip


def test_no_list_lets_a_key_through():
    """A stand-in that lets a header through can't let the key's be overwritten, or the local token out."""
    sent = {"authorization": "Bearer local", "x-api-key": "local", "cookie": "a=b"}
    assert outgoing(sent, {"Authorization": "Bearer key"}, frozenset(sent)) == {"authorization": "Bearer key"}


def test_the_sdks_own_idempotency_key_counts():
    """Where the stand-in lets it through, the platform hears the caller's and not ours."""
    own = {"authorization": "Bearer key", "x-idempotency-key": "ours"}
    out = outgoing({"x-idempotency-key": "theirs"}, own, frozenset({"x-idempotency-key"}))
    assert out == {"authorization": "Bearer key", "x-idempotency-key": "theirs"}


def test_of_an_answer_the_sdk_sees_what_it_needs():
    """Type, when to come again, limits and ids; neither cookies nor a way elsewhere, nor how it was packed."""
    answer = {
        "content-type": "application/json", "retry-after": "3", "x-ratelimit-remaining": "0", "ratelimit-reset": "9",
        "x-request-id": "r", "set-cookie": "a=b", "location": "https://elsewhere", "content-encoding": "gzip",
        "content-length": "5", "transfer-encoding": "chunked", "connection": "close", "server": "x",
        "www-authenticate": "Bearer", "access-control-allow-origin": "*",
    }  # fmt: skip
    assert set(returning(answer)) == {
        "content-type", "retry-after", "x-ratelimit-remaining", "ratelimit-reset", "x-request-id",
    }  # fmt: skip
