"""The few rules of HTTP/1.1 that the client needs: an answer is whole or there is none."""

import pytest

from agentd.client.http import MAX_BODY_BYTES, MAX_HEAD_BYTES, Answer, Heard, request

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n{"a"'
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n2;ext=1\r\n{}\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)


def feed(data, size):
    answer = Answer()
    for start in range(0, len(data), size):
        heard = answer.feed(data[start : start + size])
        if heard is not None:
            return heard
    return answer.feed(b"")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (PLAIN, 200, b'{"a"'),
        (CHUNKED, 200, b"{}0123456789"),
        (b"HTTP/1.0 503 no room\r\n\r\nto the end", 503, b"to the end"),
        (b"HTTP/1.1 204\r\nContent-Length: 0\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + PLAIN, 200, b'{"a"'),
        (PLAIN + b"left over", 200, b'{"a"'),
    ],
)
def test_an_answer_in_pieces(data, status, body, size):
    """However the bytes arrive, the answer is the same."""
    assert feed(data, size) == Heard(status, body)


def test_chunks_are_read_once():
    """What has been read is not kept to be read again: a long answer in small chunks costs as much as it is long."""
    answer = Answer()
    answer.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"a\r\n0123456789\r\n" * 100
    for _ in range(1000):
        assert answer.feed(piece + b"a\r\n01234") is None
        assert len(answer._data) < len(b"a\r\n0123456789\r\n")
        assert answer.feed(b"56789\r\n") is None
    assert answer.feed(b"0\r\n\r\n") == Heard(200, b"0123456789" * 101_000)


@pytest.mark.parametrize("data", [b"", PLAIN[:20], PLAIN[:-1], CHUNKED[:60], CHUNKED[: CHUNKED.index(b"0\r\nTrailer")]])
def test_half_an_answer_is_none(data):
    """A connection that ends too early has answered nothing, not even what it looked like."""
    with pytest.raises(ValueError, match="closed before the end"):
        feed(data, 1000)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x00\x00\x02{}HTTP/1.1 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", "length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), "length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000, "chunk"),
        (b"x" * (MAX_HEAD_BYTES + 1), "head is too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_HEAD_BYTES + MAX_BODY_BYTES + 1), "too long"),
    ],
)
def test_what_is_no_answer(data, words):
    """Nonsense and endless answers are refused instead of being waited for."""
    with pytest.raises(ValueError, match=words):
        feed(data, len(data))


def test_a_request():
    """Its first byte is a capital letter, which makes it HTTP on the daemon's socket."""
    assert request("POST", "/v1/gate", b"{}") == (
        b"POST /v1/gate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
        b"Content-Type: application/json\r\n\r\n{}"
    )
    assert request("GET", "/x").endswith(b"Content-Length: 0\r\n\r\n")
