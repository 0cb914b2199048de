"""What in an answer speaks against a yes."""

from __future__ import annotations

import pytest

from agentd.platforms._objections import AGREES, ASKS_A_PERSON, agree, objection, refuses


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"a": {"b": [{"allowed": False}]}}, "allowed False"), ({"policyDecision": "deny"}, "policyDecision 'deny'"),
        ({"Policy-Decision": 0}, "Policy-Decision 0"), ({"policy_result": {"x": {"decision": "maybe"}}}, "decision 'maybe'"),
        ({"allowed": []}, "allowed of type list"), ({"allowed": {"outcome": "maybe"}}, "outcome 'maybe'"), ({"error": 0}, "error 0"),
        ({"error": {"code": None}}, "error of type dict"), ({"deep": {"error": "x"}, "blocked": True}, "blocked True"),
        ({"x": {"status": "FAILED"}}, "status 'FAILED'"), ({"result": 0.0}, "result 0.0"), ([[{"denied": "yes"}]], "denied 'yes'"),
        ({"policy_decision": {"rule": "deny"}}, "rule 'deny'"), ({"ok": "x" * 999}, "ok '" + "x" * 79),
    ],
    ids=str,
)  # fmt: skip
def test_a_no_is_found_at_any_depth(said, found):
    """Flags and policies say what is known to agree, errors are empty, verdicts are no known no; the outermost is told first."""
    assert objection(said) == found


@pytest.mark.parametrize(
    "said",
    [
        None, 5, "deny", [], {}, ["deny"], {"reason": "denied before"}, {"allowed": None}, {"allowed": "Yes"}, {"auto_approved": False},
        {"policy_decision": {}}, {"policy_decision": {"decision": "allow", "rules": ["deny"]}}, {"error": None, "errors": [], "error_code": ""},
        {"blocked": False, "failed": 0, "denied": []}, {"policy_decision": {"reason": "nothing denied"}}, {"decision": "maybe"}, {"status": "queued"}, {"result": {"score": 0}},
        {"status": "not_blocked"}, {"risk_score": 0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_objection(said):
    """Nulls, empty errors, other names, and words that no source has for a no where any text may stand."""
    assert objection(said) == ""


def test_what_is_free_is_not_looked_at():
    """Members in somebody's own words, in either spelling of their name, with all that is in them."""
    said = {"actionDetails": {"error": "x"}, "action_details": [{"allowed": False}]}
    assert objection(said, frozenset({"actiondetails"})) == ""
    assert objection({"more": said}) == "error 'x'"


def test_words_that_agree_can_be_more():
    """A policy that asks for a person agrees where a person was asked, and nowhere else."""
    said = {"policy_decision": {"decision": "Require-Approval"}}
    assert objection(said) == "decision 'Require-Approval'"
    assert objection(said, agrees=AGREES | ASKS_A_PERSON) == ""


def test_depth_is_no_matter():
    """As deep as JSON can be read, without a recursion that ends."""
    said = {"allowed": False}
    for _ in range(100_000):
        said = {"x": [said]}
    assert objection(said) == "allowed False"


@pytest.mark.parametrize(
    "word", ["deny", "DENIED ", "Not Allowed", "not-approved", "policy_rejected", "evaluation failed", False, 0, 0.0]
)
def test_a_known_no(word):
    """Words in any spelling, alone or as part of a longer one."""
    assert refuses(word)
    assert not agree(word)


@pytest.mark.parametrize("word", ["", "not_blocked", "no_findings", "approved", "denylist", None, True, 1, [], {}])
def test_what_is_no_known_no(word):
    """A negated one, one that only begins like it, nothing."""
    assert not refuses(word)
