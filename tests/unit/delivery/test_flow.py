"""How fast a queue fills and empties, by a clock that only the test moves."""

import pytest

from agentd.delivery.flow import WINDOW_S, Drain, Flow, Rates, drain


def test_nothing_is_known_at_first():
    """Before two looks are a second apart there is no rate: a guess would be read as one."""
    flow = Flow()
    assert flow.rates(0.0, 0, 0) is None
    flow.look(10.0, 500, 100)
    assert flow.rates(10.5, 600, 200) is None


def test_rates_are_those_of_the_time_since_the_first_look():
    """Records a second, whatever the books had counted before."""
    flow = Flow()
    flow.look(10.0, 5000, 4000)
    assert flow.rates(20.0, 5100, 4050) == Rates(10.0, 5.0)


def test_what_is_older_than_the_window_is_forgotten():
    """An outage that is over for longer than the window weighs nothing any more."""
    flow = Flow()
    for second in range(600):
        flow.look(float(second), 0, 0)
    for second in range(600, 670):
        flow.look(float(second), 0, (second - 600) * 10)
    assert flow.rates(669.0, 0, 690) == Rates(0.0, 10.0)
    assert len(flow._looks) <= WINDOW_S / 2.5 + 2


def test_what_a_full_disk_takes_back_is_no_rate_below_zero():
    """Records that were booked and refused after all are taken out of the books again."""
    flow = Flow()
    flow.look(0.0, 100, 0)
    assert flow.rates(10.0, 90, 0) == Rates(0.0, 0.0)


@pytest.mark.parametrize(
    ("queued", "rates", "expected"),
    [
        (0, None, (Drain.EMPTY, 0.0)),
        (0, Rates(5.0, 0.0), (Drain.EMPTY, 0.0)),
        (10, None, (Drain.UNKNOWN, None)),
        (100, Rates(10.0, 30.0), (Drain.DRAINING, 5.0)),
        (100, Rates(10.0, 10.0), (Drain.NOT_DRAINING, None)),
        (100, Rates(10.0, 5.0), (Drain.NOT_DRAINING, None)),
        (100, Rates(0.0, 0.0), (Drain.NOT_DRAINING, None)),
    ],
)
def test_whether_it_empties_and_when(queued, rates, expected):
    """What is queued over what goes out more than comes in; never a number where it grows or nothing is known."""
    assert drain(queued, rates) == expected
