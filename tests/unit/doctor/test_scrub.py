"""Scrubbing a bug report: no secret in any form, names as digests, and the rest readable."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from agentd.doctor.bundle import Leak, Part, collect, contents
from agentd.doctor.scrub import Scrubber, secrets_in
from agentd.redact.build import build_redactor
from agentd.sections import Redact

KEY = 'kf-93/x+Qé"Z-secret'


def scrubber(**more):
    facts = {
        "secrets": {KEY},
        "names": {"billing", "it"},
        "key": b"k",
        "hide": build_redactor(Redact(), {}).text,
    } | more
    return Scrubber(**facts)


@pytest.mark.parametrize(
    "form",
    [KEY, json.dumps(KEY)[1:-1], quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode(), base64.urlsafe_b64encode(KEY.encode()).decode(), KEY.encode().hex()],
)  # fmt: skip
def test_a_known_secret_goes_in_every_form(form):
    """As it is, and as JSON, URLs and headers write it."""
    one = scrubber()
    assert one.leaks(f"a {form} b".encode())
    cleaned = one.text(f"a {form} b")
    assert cleaned.rstrip("=").replace("=", "") == "a [secret] b"
    assert not one.leaks(cleaned.encode())


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("via http://ann:pass-word@proxy:3128/x", "pass-word"),
        ("postgres+x://u:p%40ss@h", "p%40ss"),
        ("key sk-ant-api03-" + "a" * 93 + "AA seen", "sk-ant-api03-aaaa"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlc2lnbmF0dXJl", "eyJzdWIi"),
        ('password = "correct horse"', "correct horse"),
    ],
)
def test_unknown_secrets_go_by_their_form(text, gone):
    """Users in URLs, and what the redaction's patterns know."""
    assert gone not in scrubber().text(text)


@pytest.mark.parametrize(
    "text", ["at http://ann:word-1@proxy:3128/x", "at https://token-2@h", "HTTP://a:b@c d://e:f@g"]
)
def test_who_stands_in_front_of_a_host_goes_without_any_pattern(text):
    """User and password of every URL, whatever the patterns know."""
    cleaned = scrubber(hide=str).text(text)
    assert "[secret]@" in cleaned
    assert not any(part in cleaned for part in ("ann", "word-1", "token-2", "a:b", "e:f"))


def test_names_and_ids_are_digests():
    """The same name the same digest, in one bundle alone; short names only in their own field; a digest stays what it is."""
    one, other = scrubber(), scrubber(key=b"other")
    digest = one.name("billing")
    text = "billing, rebilling and run:invoice-7 of 0b0c2a1e-8a7c-4d3f-9a55-2f1f0c6b7a11 do it"
    cleaned = one.text(text)
    assert cleaned.startswith(f"{digest}, rebilling and run:name-")
    assert cleaned.endswith(" do it")
    assert "invoice-7" not in cleaned
    assert "0b0c2a1e" not in cleaned
    assert one.text(cleaned) == cleaned
    assert other.name("billing") != digest
    assert one.document({"agent_id": "it", "billing": ["billing"]}) == {"agent_id": one.name("it"), digest: [digest]}
    assert scrubber(with_names=True).text(text) == text


def test_what_a_sentence_quotes_may_be_of_a_record():
    """In reasons and log lines quotations go; elsewhere they stay."""
    one = scrubber()
    found = one.document({"reason": "422: 'Mrs Miller' is no \"name\"", "path": "/a 'b'"})
    assert found == {"reason": "422: '[quoted]' is no \"[quoted]\"", "path": "/a 'b'"}


def test_variables_that_sound_like_secrets():
    """By their name, and users of URLs in whatever variable; places of secrets and short values are none."""
    env = {
        "AGENTOS_API_KEY": "aos_1234567", "MY_PASSWORD": "hunter22", "HTTPS_PROXY": "http://ann:proxy-pass@p:1", "PATH": "/usr/bin:/bin", "X_TOKEN": "abc",
        "AGENTD_DESTINATIONS__X__API_KEY__ENV": "AGENTOS_API_KEY", "SSH_AUTH_SOCK": "/tmp/ssh/agent", "KEYFILE": "/etc/key",
    }  # fmt: skip
    assert secrets_in(env) == {"aos_1234567", "hunter22", "ann:proxy-pass", "proxy-pass"}


def test_a_log_is_scrubbed_line_by_line():
    """JSON lines member by member, ids by their field; other lines as sentences; lists of JSON as sentences too."""
    entry = {
        "message": "billing: 2 records of run:r-1 are dead: 422 'x'",
        "lane": "run:r-1",
        "record_id": "abc",
        "n": 2,
    }
    log = "\n".join([json.dumps(entry), f"plain {KEY} 'quoted'", "{no json", "[1]"])
    written = collect([Part("log.txt", "", lambda: log)], scrubber())[0].data.decode().splitlines()
    first = json.loads(written[0])
    assert "r-1" not in written[0]
    assert first["message"].endswith("are dead: 422 '[quoted]'")
    assert first["lane"].startswith("name-")
    assert (first["record_id"][:5], first["n"]) == ("name-", 2)
    assert written[1:] == ["plain [secret] '[quoted]'", "{no json", "[1]"]


def test_a_secret_that_is_left_stops_everything():
    """The last look is at the bytes themselves."""

    class Blind(Scrubber):
        def text(self, text):
            return text

    blind = Blind({KEY}, (), key=b"k")
    with pytest.raises(Leak, match=r"x\.json would hold a secret"):
        collect([Part("x.json", "", lambda: {"a": KEY})], blind)


def test_what_can_not_be_had_is_a_sentence():
    """A daemon that does not answer costs its parts, and the rest is there."""

    def gone():
        raise OSError(2, "no such thing")

    written = collect([Part("a.json", "a", gone), Part("b.json", "b", lambda: {"x": 1})], scrubber())
    assert json.loads(written[0].data) == {"error": "[Errno 2] no such thing"}
    assert written[0].about == "a: could not be had"
    said = contents(written, with_names=False)
    assert "b.json" in said
    assert "digests" in said
    assert "--with-names" in contents(written, with_names=True)
