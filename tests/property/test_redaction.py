"""Redaction as a whole: no planted secret is left, wherever it stands; everything else is as it was, to the byte; JSON stays JSON."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.redact.build import build_redactor
from agentd.sections import Redact, Secret

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/redact"))

import corpus

SECRETS = [(case.rule, case.secret) for case in corpus.planted(5, 2) if case.how == "alone"]
NAMES = [case[0] for case in corpus.named(random.Random(1))]
MASK, TAG, DROP = (
    build_redactor(Redact(mode=mode, key=Secret(env="K")), {"K": "k" * 16}) for mode in ("mask", "hash", "drop")
)
SETTINGS = settings(max_examples=120, deadline=None)

plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="0123456789=:@-_"), max_size=20),
)  # fmt: skip
names = st.text("abdefgz", min_size=1, max_size=8)
trees = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
around = st.sampled_from(["", " ", "so: ", "(", "it is ", "\n", "é", "\u2028", "\t"])
ensure_ascii = st.booleans()


def place(draw, tree, leaf):
    """The tree with the leaf somewhere in it, plain or in JSON in a string."""
    how = draw(st.integers(0, 3))
    if how == 0:
        return {"a": tree, "leaf": leaf}
    if how == 1:
        return [tree, [leaf, tree]]
    if how == 2:
        return {"args": json.dumps({"in": [leaf], "b": tree}), "t": tree}
    return {"deep": json.dumps({"args": json.dumps([leaf])}), "t": tree}


@st.composite
def planted(draw):
    """A payload with a secret of some form in it."""
    _, secret = draw(st.sampled_from(SECRETS))
    before = draw(around)
    text = before + secret + draw(st.sampled_from(["", " ", ", ", ".", ")", "\n"]))
    return secret, place(draw, draw(trees), text)


@st.composite
def under_a_name(draw):
    """A payload with a secret that only its member's name gives away."""
    secret = draw(st.text("bcdfghjklmnpqrstvwz", min_size=12, max_size=30)) + "7"
    return secret, place(draw, draw(trees), {draw(st.sampled_from(NAMES)): secret})


def record(payload, ascii_only):
    return json.dumps(
        {"kind": "event", "run_id": "r", "type": "t", "payload": payload}, ensure_ascii=ascii_only
    ).encode()


def everything(value):
    """All texts of a document, those in JSON in them included."""
    if isinstance(value, dict):
        return "".join(key + everything(item) for key, item in value.items())
    if isinstance(value, list):
        return "".join(map(everything, value))
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return everything(json.loads(value))
        except ValueError:
            return value
    return str(value)


@SETTINGS
@given(planted() | under_a_name(), ensure_ascii)
def test_no_planted_secret_is_left(case, ascii_only):
    """In any mode, in any place; what is left is JSON and is found clean by a second look."""
    secret, payload = case
    body = record(payload, ascii_only)
    for redactor in (MASK, TAG, DROP):
        changed = redactor.records([body])
        assert changed, body
        new = changed[0].body
        assert secret not in everything(json.loads(new))
        assert json.dumps(secret)[1:-1].encode() not in new
        msgspec.json.decode(new)
        assert redactor.records([new]) == {}


@SETTINGS
@given(trees, ensure_ascii, st.sampled_from([None, 0, 2]))
def test_everything_else_stays_to_the_byte(tree, ascii_only, indent):
    """Whatever spaces, escapes and numbers it is written with."""
    body = json.dumps(
        {"kind": "event", "run_id": "r", "type": "t", "payload": tree}, ensure_ascii=ascii_only, indent=indent
    ).encode()
    assert MASK.records([body]) == {}
    assert MASK.raw(body).body is body


@SETTINGS
@given(planted(), trees)
def test_a_mark_is_all_that_changes(case, tree):
    """The record with its secret masked is the record with a mark in the secret's place."""
    secret, payload = case
    body = record({"p": payload, "t": tree}, ascii_only=False)
    new = json.loads(MASK.records([body])[0].body)
    rules = {rule for rule, other in SECRETS if other == secret}
    found = everything(new)
    expected = {
        everything(json.loads(record({"p": payload, "t": tree}, ascii_only=False))).replace(
            secret, f"[redacted:{rule}]"
        )
        for rule in rules
    }
    assert found in expected


@SETTINGS
@given(st.binary(max_size=200), st.sampled_from(SECRETS))
def test_rubbish_hides_nothing(rubbish, case):
    """What is no JSON, of any encoding, is gone over as a text; nothing is raised."""
    _, secret = case
    raw = rubbish + b'\n "' + secret.encode() + b'" \n' + rubbish
    assert secret.encode() not in MASK.raw(raw).body
