"""The rules against a corpus: at least 200 secrets in the ways in which they come, and 200 texts that merely look like them."""

from __future__ import annotations

import json

import corpus
import msgspec
import pytest

from agentd.redact.build import build_redactor
from agentd.redact.engine import Redactor
from agentd.redact.fields import place_of
from agentd.redact.walk import Walk
from agentd.sections import Redact, Secret

PLANTED, LOOKALIKES = corpus.planted(), corpus.lookalikes()
ENCODERS = {
    "msgspec": lambda value: msgspec.json.encode(value).decode(),
    "json": json.dumps,
    "indented": lambda value: json.dumps(value, indent=1),
}


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return build_redactor(Redact(), {})


def record(payload: str) -> bytes:
    """An event around an encoded payload."""
    return b'{"kind":"event","run_id":"r1","type":"t","payload":%b}' % payload.encode()


def body_of(case: corpus.Planted, how: str) -> bytes:
    body = record(ENCODERS[how](case.payload))
    return body.replace(b'"password"', b'"pass\\u0077ord"') if case.how == "escaped name" else body


def holds(secret: str, body: bytes) -> bool:
    """Whether the secret stands in the record, in any way in which a reader would find it again."""
    return (
        secret.encode() in body
        or json.dumps(secret)[1:-1].encode() in body
        or secret in json.dumps(json.loads(body), ensure_ascii=False)
    )


def test_the_corpus_is_as_large_as_it_says():
    """What the figures in the README are about."""
    assert len(PLANTED) >= 200
    assert len(LOOKALIKES) >= 200
    assert len({case.rule for case in PLANTED}) >= 30


@pytest.mark.parametrize("how", ENCODERS)
def test_every_planted_secret_goes(redactor, how):
    """Each is found by its rule, nothing of it is left, and a second look finds nothing more."""
    for case in PLANTED:
        found = redactor.records([body_of(case, how)])
        assert 0 in found, case
        new = found[0]
        assert not holds(case.secret, new.body), case
        assert case.rule in new.hits, (case, new.hits)
        assert f"[redacted:{case.rule}]".encode() in new.body
        assert redactor.records([new.body]) == {}, new.body


@pytest.mark.parametrize("how", ENCODERS)
def test_what_merely_looks_like_a_secret_is_left(redactor, how):
    """To the byte, by the screen and by the walk behind it."""
    for payload in LOOKALIKES:
        body = record(ENCODERS[how](payload))
        assert redactor.records([body]) == {}, payload
        walk = Walk(body, build_redactor(Redact(), {})._texts)
        assert walk.run(place_of) == body, (payload, walk.hits)


def test_neighbours_are_told_apart(redactor):
    """In a message of many only the records with secrets are touched, wherever they stand."""
    bodies = [record(json.dumps(payload)) for payload in LOOKALIKES[:40]]
    for place in (0, 7, 39, 40):
        mixed = [*bodies[:place], body_of(PLANTED[0], "json"), *bodies[place:]]
        assert set(redactor.records(mixed)) == {place}


def test_what_is_around_a_secret_stays(redactor):
    """Only the hit is replaced: spaces, order, numbers of any length and repeated members stay as they were sent."""
    secret = corpus.planted(3, 1)[0].secret
    payload = f'{{ "a" : 1.0,"b":123456789012345678901234567890, "t": "so {secret}, and", "a":[1e5 ,null] }}'
    expected = payload.replace(secret, "[redacted:openai-key]")
    assert redactor.records([record(payload)])[0].body == record(expected)


@pytest.mark.parametrize("case", [case for case in PLANTED if case.how == "alone"][:25], ids=lambda case: case.rule)
def test_a_tag_tells_the_same_secret_again(case):
    """Mode `hash`: the same secret has the same tag, another one another, and another key gives another."""

    def tag(secret, key):
        config = Redact(mode="hash", key=Secret(env="KEY"))
        redacted = build_redactor(config, {"KEY": key}).records([record(json.dumps({"x": secret}))])[0]
        return json.loads(redacted.body)["payload"]["x"]

    first = tag(case.secret, "k" * 16)
    assert first == tag(case.secret, "k" * 16) != tag(case.secret, "j" * 16)
    assert first.startswith(f"[redacted:{case.rule}:")


def test_dropped_members_leave_valid_json():
    """Mode `drop`: the member goes, in an array it is null, and a record's own field is masked since it can't go."""
    redactor = build_redactor(Redact(mode="drop"), {})
    for case in PLANTED:
        found = redactor.records([body_of(case, "json")])
        assert 0 in found, case
        assert not holds(case.secret, found[0].body)
        json.loads(found[0].body)
    payload = {"a": 1, "password": "hunter2", "b": [{"secret": "s3cr3t-x"}, PLANTED[0].secret], "token": "abcdef123456"}
    payload = json.dumps(payload, separators=(",", ":"))
    assert redactor.records([record(payload)])[0].body == record('{"a":1,"b":[{},null]}')
    decision = b'{"kind":"decision","context":"used %b"}' % PLANTED[0].secret.encode()
    assert redactor.records([decision])[0].body == b'{"kind":"decision","context":"used [redacted:openai-key]"}'
