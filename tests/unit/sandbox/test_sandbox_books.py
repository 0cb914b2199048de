"""Books: counters, ledger and the repeats of idempotency keys."""

from __future__ import annotations

from agentd.sandbox.books import Books, Repeat, RequestLine, digest


def line(key="", body=b"{}", status=200, path="/x", fault=""):
    return RequestLine(1.0, "agentos", "POST", path, status, key, digest(body), len(body), fault)


def test_repeats_cover_all_requests():
    """Repeats are counted over everything, the ledger keeps the latest only."""
    books = Books(keep=2)
    for number in range(10):
        books.note(line(key=f"key-{number}"))
    books.note(line(key="key-0"))
    assert len(books.ledger) == 2
    assert books.repeats()["key-0"] == Repeat(2, same_body=True, sha256=digest(b"{}"))
    assert len(books.repeats()) == 10
    assert list(books.repeats(2)) == ["key-0"]
    assert books.repeats(3) == {}


def test_one_differing_body_is_remembered():
    """Once a key came with other bytes, it stays conflicting, whatever follows."""
    books = Books()
    for body in (b"a", b"b", b"a"):
        books.note(line("k", body))
    assert books.repeats() == {"k": Repeat(3, same_body=False, sha256=digest(b"a"))}
    assert books.key_totals() == {"keys": 1, "repeated": 1, "conflicting": 1}


def test_requests_without_key_or_body_read():
    """No key, nothing to repeat; a body that was not read says nothing of its key."""
    books = Books()
    books.note(line())
    books.note(RequestLine(1.0, "agentos", "POST", "/x", 0, "k", "", 0, "down"), "down")
    assert books.repeats() == {}
    assert books.totals() == ({"/x": {"0": 1, "200": 1}}, {"down": 1})
