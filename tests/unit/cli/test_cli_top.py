"""`agentd top`: what is computed from two looks, how it is drawn, and what the keys do."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from screens_kit import BUSY, CALM, LEAST, TROUBLED, drawn, histogram, look

from agentd.cli import main, terminal
from agentd.cli import top as top_verb
from agentd.cli.ask import Daemon, NoDaemon
from agentd.cli.layout import length
from agentd.cli.top_figures import Histogram, Looks, Quantiles, quantile, quantiles, read_look
from agentd.cli.top_screen import HELP, SORTS, View, screen
from agentd.errors import StateError


def status(accepted=0, refused=0, pid=1, uptime_s=5.0, **there):
    facts = {"state": "ok", "admitted": 0, "delivered": 0, "requests": 0} | there
    intake = {"accepted": accepted, "refused": {"invalid": refused}}
    return LEAST | {"pid": pid, "uptime_s": uptime_s, "intake": intake, "destinations": {"agentos": facts}}


def seen(document):
    return read_look(document)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_rates_are_those_between_two_looks():
    """Accepted, refused, admitted, delivered and requests, each by the time between."""
    looks = Looks()
    looks.add(100.0, seen(look(status(10, 1, admitted=10, delivered=5, requests=2))))
    found = looks.add(102.0, seen(look(status(50, 2, admitted=30, delivered=25, requests=4))))
    flow = found.flows["agentos"]
    assert (found.accepted_s, found.refused_s) == (20.0, 0.5)
    assert (flow.admitted, flow.delivered, flow.requests) == (10.0, 10.0, 1.0)


def test_one_look_alone_says_what_the_daemon_says():
    """Its own rates of the last half minute; what it has none of is not known."""
    found = Looks().add(100.0, seen(look(status(10, admitted_per_s=3.0, delivered_per_s=2.0))))
    assert (found.accepted_s, found.flows["agentos"].admitted, found.flows["agentos"].delivered) == (None, 3.0, 2.0)


def test_rates_are_of_the_last_seconds():
    """What was five seconds ago is forgotten, two looks are always kept."""
    looks = Looks()
    for second in range(20):
        found = looks.add(100.0 + second, seen(look(status(accepted=1000 if second > 10 else 0))))
    assert found.accepted_s == 0.0
    assert looks.add(500.0, seen(look(status(accepted=1381)))).accepted_s == 1.0


@pytest.mark.parametrize("again", [{"pid": 2, "uptime_s": 9.0}, {"pid": 1, "uptime_s": 0.1}])
def test_another_daemon_begins_anew(again):
    """Its counts are no continuation: nothing below zero is shown, and nothing of before."""
    looks = Looks()
    looks.add(100.0, seen(look(status(1000))))
    assert looks.add(101.0, seen(look(status(5, **again)))).accepted_s is None


def test_a_destination_that_is_new():
    """Configured by a reload between two looks: the daemon's own rates."""
    looks = Looks()
    looks.add(100.0, seen(look(LEAST)))
    assert looks.add(101.0, seen(look(status(admitted_per_s=7.0)))).flows["agentos"].admitted == 7.0


def test_latency_is_of_what_came_between():
    """Counts of before are taken off."""
    before = Histogram(**histogram(under_1ms=1000))
    now = Histogram(**histogram(under_1ms=1000, under_100ms=10))
    assert quantiles(before, now) == Quantiles(pytest.approx(0.055), pytest.approx(0.0991))
    assert quantiles(None, before).p99 == pytest.approx(0.00099)
    assert quantiles(now, now) == Quantiles(None, None)


@pytest.mark.parametrize(
    ("counts", "share", "found"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 0.5),
        ([1, 1, 0], 0.5, 1.0),
        ([1, 3, 0], 0.5, 1 + 1 / 3),
        ([0, 0, 5], 0.99, 2.0),
        ([-1, 1, 0], 0.5, None),
    ],
)
def test_a_quantile_lies_within_its_bucket(counts, share, found):
    """In proportion; above all bounds it is the last of them."""
    assert quantile([1.0, 2.0], counts, share) == (None if found is None else pytest.approx(found))
    assert quantile([], [], share) is None


def test_an_answer_that_is_no_look():
    """Something else that answers is an error with a sentence."""
    with pytest.raises(StateError, match="no look of agentd"):
        read_look({"hello": 1})


# -- the screen --------------------------------------------------------------------------------------------------------


def figures_of(*documents):
    looks = Looks()
    return [looks.add(100.0 + second, seen(document)) for second, document in enumerate(documents)][-1]


@pytest.mark.parametrize(
    ("name", "documents", "width", "height", "view"),
    [
        ("top-calm", [look(CALM), look(CALM)], 80, 24, View()),
        ("top-busy", [BUSY], 100, 30, View(sort="slowest", destination="agentos", paused=True)),
        ("top-narrow", [BUSY], 80, 16, View()),
        ("top-plain", [BUSY], 120, None, View()),
        ("top-help", [look(CALM)], 80, 24, View(help=True)),
    ],
)
def test_the_screen(name, documents, width, height, view):
    """As it is meant to look: as high as the terminal, no line wider, the keys at its foot."""
    lines = screen(figures_of(*documents), view, width, height)
    assert "\n".join(lines) + "\n" == drawn(name)
    assert height is None or len(lines) == height
    assert max(map(length, lines)) <= width


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [3, 6, 24, 60])
def test_any_size_will_do(width, height):
    """However small: nothing wraps, nothing scrolls."""
    for view in (View(), View(help=True)):
        lines = screen(figures_of(BUSY), view, width, height, news="no daemon at /tmp/x")
        assert len(lines) == height
        assert max(map(length, lines)) <= width


def test_what_goes_wrong_meanwhile_is_said():
    """The figures stay, and it is said that they are old."""
    lines = screen(
        figures_of(look(CALM)), View(), 80, 24, news="no daemon at /tmp/tour.sock; these are the last figures"
    )
    assert "! no daemon at /tmp/tour.sock; these are the last figures" in lines


def test_a_screen_gives_no_orders(monkeypatch):
    """But for our colours: names of runs and reasons are others' texts."""
    monkeypatch.setattr(terminal, "is_live", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    away = TROUBLED["destinations"]["agentos"] | {"reason": "\x1b[2J"}
    text = "\n".join(
        screen(figures_of(BUSY | {"status": TROUBLED | {"destinations": {"agentos": away}}}), View(), 200, 50)
    )
    assert "\x1b[31m" in text
    assert r"run:\x1b[2J" in text
    assert "\x1b[2J" not in text


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys():
    """Sort goes round, destinations go round with all of them at last, pause and help come and go, others do nothing."""
    turns = [View()]
    for key in "sssddd":
        turns.append(turns[-1].press(key, ["a", "b"]))
    assert [turn.sort for turn in turns[:4]] == [*SORTS, SORTS[0]]
    assert [turn.destination for turn in turns[3:]] == [None, "a", "b", None]
    assert View(destination="gone").press("d", ["a"]).destination == "a"
    assert View().press(" ", []).paused
    assert View(paused=True).press(" ", []) == View()
    assert View().press("?", []).help
    assert View().press("\x1b", []) == View()
    assert [View().press(key, []) for key in "qQ\x03\x04"] == [None] * 4
    assert any("pause" in line for line in HELP)


# -- without a terminal ------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(monkeypatch):
    """A daemon that gives these answers, one for each look, and is gone then."""
    asked, slept = [], []

    def ask(documents, *options):
        answers = iter(documents)

        def get(_self, path, **query):
            asked.append((path, query))
            answer = next(answers, KeyboardInterrupt())
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(Daemon, "get", get)
        monkeypatch.setattr(top_verb.time, "sleep", slept.append)
        return CliRunner().invoke(main, ["top", "--socket", "/nowhere", *options])

    ask.asked, ask.slept = asked, slept
    return ask


def test_once_is_one_snapshot(ask):
    """Plain lines, exit code 0."""
    done = ask([BUSY], "--once", "--sort", "slowest", "--destination", "agentos")
    assert (done.exit_code, ask.slept) == (0, [])
    assert done.stdout.startswith("agentd 0.1.0  running  pid 19024")
    assert "\x1b" not in done.stdout
    assert ask.asked == [("/v1/top", {"sort": "slowest", "destination": "agentos", "limit": 50})]


def test_a_snapshot_for_each_interval(ask):
    """Until Ctrl-C; a daemon that goes away is said, and the last figures stay."""
    done = ask([look(CALM), NoDaemon("no daemon at /nowhere: start one"), look(CALM)], "--interval", "250ms")
    assert done.exit_code == 130
    assert done.stdout.count("agentd 0.1.0  running") == 3
    assert done.stdout.count("! no daemon at /nowhere; these are the last figures") == 1
    assert ask.slept == [0.25] * 3


def test_no_daemon_at_the_start(ask):
    """Exit code 1 and the usual sentence."""
    done = ask([NoDaemon("no daemon at /nowhere: start one with 'agentd run'")])
    assert (done.exit_code, done.output) == (1, "agentd: no daemon at /nowhere: start one with 'agentd run'\n")


@pytest.mark.parametrize("interval", ["0", "1ms", "2h"])
def test_an_interval_that_makes_no_sense(ask, interval):
    """It is said what would."""
    done = ask([BUSY], "--interval", interval)
    assert (done.exit_code, "expected 100ms to 1h" in done.output) == (2, True)
