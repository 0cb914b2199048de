"""Whether two patterns have a name in common, held against `fnmatch` itself."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentd.globs import any_common, common

LETTERS = "abc"
PIECES = st.sampled_from(
    ["*", "?", "[ab]", "[!a]", "[b-c]", "[!a-b]", "[c-a]", "[!c-a]", "[]a]", "[!]]", "[", "]", "!", *LETTERS]
)
PATTERNS = st.lists(PIECES, max_size=3).map("".join)
ALPHABET = [*"abc", "]", "[", "!", "-", "z"]
# Each character of a shortest common name answers to a piece that is no `*`: four are enough for two patterns of three pieces,
# of which one at least is a `*` where the lengths differ
SHORT = ["".join(letters) for length in range(5) for letters in product(ALPHABET, repeat=length)]


@given(st.data())
def test_a_name_that_matches_both_is_an_overlap(data):
    """Whatever the name and the patterns: what would be sent twice is found."""
    name = data.draw(st.text("ab-[]!é\n", max_size=8))

    def pattern():
        """A pattern of the name: letters of it given up for wildcards."""
        parts = [
            data.draw(st.sampled_from([letter, "?", "*", "[!\0]", f"[{letter}]", f"*{letter}"])) for letter in name
        ]
        return "".join(parts) + data.draw(st.sampled_from(["", "*"]))

    one, other = pattern(), pattern()
    if fnmatchcase(name, one) and fnmatchcase(name, other):
        assert common(one, other)
        assert any_common([one], ["x", other])


@settings(max_examples=100, deadline=None)
@given(PATTERNS, PATTERNS)
@example("b*c", "ba*")
@example("[c-a]*", "*")
@example("*[", "[]a]*")
def test_an_overlap_has_a_name(one, other):
    """Exact: patterns of up to three pieces meet if and only if a name of up to four characters matches both."""
    assert common(one, other) is any(fnmatchcase(name, one) and fnmatchcase(name, other) for name in SHORT)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("bil*", "b*g", True), ("*a", "b*", True), ("a*", "b*", False), ("a?c", "*bc", True), ("a?", "a", False),
        ("*-prod", "*-test", False), ("team-*", "*-team", True), ("[a-m]*", "[n-z]*", False), ("[a-n]*", "[n-z]*", True),
        ("[!a]", "a", False), ("[!a]", "[!b]", True), ("[!!-~]", "?", True), ("[!!-~]", "[a-z]", False), ("[!a]", "[a]", False), ("[c-a]", "*", False), ("[", "[[]", True),
        ("", "*", True), ("", "?", False), ("a", "a", True), ("A", "a", False), ("*" * 60 + "a", "b" + "*" * 60, True),
        ("*a*a*a*a*a*a*a*a*b", "*a*a*a*a*a*a*a*a*c", False),
    ],
)  # fmt: skip
def test_by_hand(one, other, meet):
    """What a reader of the two patterns would say, whichever comes first."""
    assert common(one, other) is meet
    assert common(other, one) is meet
    assert any_common({one: "x"}, {other: "y"}) is meet


def test_tables_of_names_are_compared_as_sets():
    """Ten thousand names against ten thousand others take no hundred million comparisons."""
    assert not any_common([f"a{number}" for number in range(10_000)], [f"b{number}" for number in range(10_000)])
