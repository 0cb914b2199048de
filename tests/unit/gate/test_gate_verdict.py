"""Whether an agent may go on: every combination, against the contract's words."""

from itertools import product

import pytest

from agentd.gate.verdict import HeldBack, Leave, leave
from agentd.gating import Ruling, Traits, Word

COVERED = Traits(call="submit", introduces="action", id_field="action_id")
INTENT = Traits(call="intents", introduces="intent", id_field="intent_id", fails_open=False)


def may(word, held_back=HeldBack.NOT, traits=COVERED, *, open_mode=True, acted=None, final=True):
    acted = held_back is HeldBack.NOT if acted is None else acted
    return leave(Ruling(word, acted=acted, final=final), held_back, traits, open_mode=open_mode)


@pytest.mark.parametrize(
    ("held_back", "traits", "open_mode"), list(product(HeldBack, (COVERED, INTENT), (True, False)))
)
def test_allow_proceeds_and_no_other_word_of_the_platform_does(held_back, traits, open_mode):
    """§4: `proceed` is true for `allow`; deny, review and pending never are, whatever the fail mode."""
    assert may(Word.ALLOW, held_back, traits, open_mode=open_mode) == Leave(proceed=True, fail_open=False)
    for word in (Word.DENY, Word.REVIEW, Word.PENDING):
        assert may(word, held_back, traits, open_mode=open_mode) == Leave(proceed=False, fail_open=False)


@pytest.mark.parametrize("held_back", [HeldBack.NO_CONNECTION, HeldBack.CIRCUIT])
def test_fail_mode_open_covers_a_platform_that_can_not_be_reached(held_back):
    """§4: under fail_mode = "open" for `unavailable` where nothing was sent: no connection, open circuit."""
    assert may(Word.UNAVAILABLE, held_back) == Leave(proceed=True, fail_open=True)


@pytest.mark.parametrize("held_back", list(HeldBack))
def test_fail_mode_closed_covers_nothing(held_back):
    """§4: "closed" is the default."""
    assert may(Word.UNAVAILABLE, held_back, open_mode=False) == Leave(proceed=False, fail_open=False)


@pytest.mark.parametrize("held_back", list(HeldBack))
def test_an_intent_never_fails_open(held_back):
    """§4: never for an intent."""
    assert may(Word.UNAVAILABLE, held_back, INTENT) == Leave(proceed=False, fail_open=False)


@pytest.mark.parametrize("acted", [True, False])
def test_an_answer_that_came_or_was_lost_never_fails_open(acted):
    """§4: never for a lost answer, 401, 402, 403, or any other answer that is no verdict."""
    assert may(Word.UNAVAILABLE, HeldBack.NOT, acted=acted) == Leave(proceed=False, fail_open=False)


def test_what_was_held_back_for_another_reason_never_fails_open():
    """§4: never for a kill switch, a disk that can't record it, an unknown run, a deadline that was over."""
    assert may(Word.UNAVAILABLE, HeldBack.OTHER) == Leave(proceed=False, fail_open=False)


def test_what_may_have_acted_never_fails_open():
    """A first try that may have acted is not forgotten because the next one found no connection."""
    assert may(Word.UNAVAILABLE, HeldBack.NO_CONNECTION, acted=True) == Leave(proceed=False, fail_open=False)


def test_an_allow_that_is_not_the_last_word_does_not_proceed():
    """Nobody acts upon what may still change."""
    assert may(Word.ALLOW, final=False) == Leave(proceed=False, fail_open=False)
