"""Platforms that behave as they like: every value of every switch of the sandbox, and faults, with the real daemon in between.

No source settles how the platforms behave there, so agentd has to come out right whichever way it is. Each round plays a face's
script (`hostile_kit`) and says what came of each step; the tables here say what should. What a table does not name comes out as in
BASE, and other records are delivered. The ids of the tests are the tables written out: `pytest --collect-only -q` shows them.
"""

import contextlib
import typing

import msgspec
import pytest
from hostile_kit import FACES, SANDBOX_AGENT, Round, Stage

from agentd.sandbox.faces import face_names, load_face
from agentd.sandbox.faults import Fault

pytestmark = pytest.mark.slow

# A platform at its best. A session that nobody knows and an action that says too little are refused; what asks for approval waits
# for a person, who gives it; an advisory yes is none; what chose none of its options is no decision.
BASE = {
    "agentos": {"human_input": "allow", "invoke": "allow", "session": "unavailable"},
    "aegis": {"small": "allow", "large": "deny"},
    "ascend": {"action": "allow", "pii": "deny", "approval": "pending>allow", "bare": "unavailable"},
    "decidefyi": {"yes": "allow", "no": "deny", "lacking": "review", "question": "review"},
    "decisionos": {"policy": "allow", "no_option": "dead:rejected"},
}
RECORDS = {
    "agentos": ("start", "events", "span", "task", "lone_task", "end", "late_event", "second_end"),
    "ascend": ("completed", "failed", "heartbeat"),
    "decidefyi": ("execution", "outcome", "crm_sync"),
    "decisionos": ("decision", "no_option", "snapshot", "of_gate"),
}
# Values of the switches that are no choice between words: durations, numbers, texts.
VALUES = {
    "agentos.human_input_answer": ("no", " "),
    "agentos.human_input_poll": ("0", "2s"),
    "agentos.max_events": ("1", "none"),
    "agentos.max_body_bytes": ("800", "4MiB"),
    "aegis.decision_delay": ("0", "300ms", "1h"),
    "aegis.deny_above": ("1", "100000", "none"),
    "ascend.decision_delay": ("0", "1h", "none"),
    "ascend.signing_secret": ("another",),
    "ascend.per_minute": ("1", "none"),
    "decidefyi.inflight_s": ("0", "0.1"),
    "decidefyi.rate_limit": ("1", "none"),
    "decidefyi.monthly_cap": ("0", "1000000", "none"),
    "decidefyi.max_prompt_bytes": ("1", "16KiB"),
    "decidefyi.max_body_bytes": ("300", "4MiB"),
    "decisionos.agents": (SANDBOX_AGENT, "*", "nobody"),
    "decisionos.monthly_decisions": ("1", "none"),
    "decisionos.tampered_link": ("1", "none"),
    "decisionos.max_body_bytes": ("100", "4MiB"),
}


def every(word, *names):
    return dict.fromkeys(names, word)


GONE = every("dead:gate_unavailable", "completed", "failed")
NO_ACTION = every("unavailable", *BASE["ascend"]) | GONE
NOT_NOW = NO_ACTION | {"heartbeat": "kept>delivered"}
ALL_WAIT = every("pending>allow", "action", "pii", "approval")
NO_ADVICE = {"question": "unavailable"}
NO_DECISION = every("unavailable", *BASE["decidefyi"]) | {"execution": "dead:gate_unavailable"}
NO_RULING = every("unavailable", "yes", "no") | {"execution": "dead:gate_unavailable"}
KEPT_RECEIPTS = every("kept>delivered", "outcome", "crm_sync")
NO_POLICY = {"policy": "unavailable", "of_gate": "dead:gate_unavailable"}
QUOTA = NO_POLICY | every("kept>delivered", "decision", "snapshot") | {"no_option": "kept>dead:rejected"}
LOST_ASKING = every("unavailable(made)", "human_input", "invoke")  # once on somebody's screen, and not asked again
EXPECTED = {
    "agentos.late_events=409": LOST_ASKING | {"late_event": "dead:run_ended"},
    "agentos.second_terminal=409": LOST_ASKING | {"second_end": "dead:run_ended"},
    "agentos.duplicate_task=same": LOST_ASKING,
    "agentos.duplicate_task=409": LOST_ASKING,
    "agentos.duplicate_task=duplicate": LOST_ASKING | {"task": "delivered again"},
    "agentos.missing_task=404": {"lone_task": "dead:rejected"},
    "agentos.human_input=wait": {"human_input": "pending>allow"},
    "agentos.human_input=timeout": {"human_input": "deny"},
    "agentos.human_input=cancel": {"human_input": "deny"},
    "agentos.human_input_answer= ": {"human_input": "review"},
    "agentos.human_input_poll=0": {"human_input": "pending>allow"},
    "agentos.human_input_poll=2s": {"human_input": "pending>allow"},  # held back for longer than the deadline
    "agentos.invoke=awaiting_approval": {"invoke": "pending"},
    "agentos.invoke=awaiting_input": {"invoke": "pending"},
    "agentos.invoke=fail": {"invoke": "unavailable(made)"},
    "agentos.unknown_session=accept": {"session": "allow"},
    "aegis.park=true": {"small": "pending>allow"},
    "aegis.decision_delay=1h": every("pending>allow", "small", "large"),
    "aegis.deny_above=1": {"small": "deny"},
    "aegis.deny_above=none": {"large": "allow"},
    "ascend.required_fields=minimal": {"bare": "allow"},
    "ascend.completion_routes=server": every("kept>delivered", *RECORDS["ascend"]),  # of a route that is not there
    "ascend.decision=approved": every("allow", "pii", "approval"),
    "ascend.decision=denied": every("deny", "action", "approval"),
    "ascend.decision=pending": ALL_WAIT,
    "ascend.decision_delay=0": ALL_WAIT,
    "ascend.decision_delay=1h": ALL_WAIT,
    "ascend.decision_delay=none": ALL_WAIT,
    "ascend.delayed_decision=approved": ALL_WAIT,
    "ascend.delayed_decision=denied": every("pending>deny", *ALL_WAIT),
    "ascend.unregistered=refuse": NOT_NOW,
    "ascend.signing_secret=another": NOT_NOW,
    "ascend.per_minute=1": NOT_NOW,
    "ascend.rate_headers=both": NOT_NOW,
    "ascend.rate_headers=reset": NOT_NOW,
    "decidefyi.rate_limit=1": NO_DECISION | KEPT_RECEIPTS,
    "decidefyi.rate_limit_form=gateway": NO_DECISION | KEPT_RECEIPTS,
    "decidefyi.rate_limit_form=runtime": NO_DECISION | KEPT_RECEIPTS,
    "decidefyi.monthly_cap=0": NO_RULING | NO_ADVICE | KEPT_RECEIPTS,
    "decidefyi.reset_unit=ms": NO_RULING | NO_ADVICE | KEPT_RECEIPTS,
    "decidefyi.reset_unit=s": NO_RULING | NO_ADVICE | KEPT_RECEIPTS,
    "decidefyi.ai=disabled": NO_ADVICE,
    "decidefyi.ai=misconfigured": NO_ADVICE,
    "decidefyi.ai=budget_exhausted": NO_ADVICE,
    "decidefyi.ai=budget_unavailable": NO_ADVICE,
    "decidefyi.advice=no": {"question": "deny"},
    "decidefyi.signing=off": NO_RULING,
    "decidefyi.store=down": NO_DECISION | KEPT_RECEIPTS,
    "decidefyi.max_prompt_bytes=1": NO_ADVICE,
    "decidefyi.max_body_bytes=300": NO_DECISION | {"question": "review"},
    "decisionos.agents=nobody": NO_POLICY | {"decision": "dead:rejected", "snapshot": "dead:introducer_dead"},
    "decisionos.chosen_must_be_option=false": {"no_option": "delivered"},
    "decisionos.replayed_status=409": NO_POLICY
    | {"policy": "unavailable(made)", "decision": "dead:outcome_unknown(stored)", "snapshot": "dead:introducer_dead"},
    "decisionos.policy_eval_ok=false": {"policy": "review"},  # its evaluation comes with an error
    "decisionos.monthly_decisions=1": QUOTA,
    "decisionos.reset_at_in_402=false": QUOTA,
    "decisionos.reset_at_in_402=true": QUOTA,
    "decisionos.max_body_bytes=100": NO_POLICY
    | every("dead:too_large", "decision", "no_option")
    | {"snapshot": "dead:introducer_dead"},
}
# What a switch needs beside it to make a difference.
_REPEATS = {"once": "cut"}
_TWIN = _REPEATS | {"at": ("yes", "outcome")}
_PENDING = {"switches": ("ascend.decision=pending",)}
_DELAYED = {"switches": ("ascend.decision=pending", "ascend.decision_delay=0"), "person": False}
_MINUTE = {"switches": ("ascend.per_minute=1",), "used_up": "/ascend/api/deployment-info", "restart": True}
_RATION = {"switches": ("decidefyi.rate_limit=1",), "used_up": "/decidefyi/api/decision/status", "restart": True}
_MONTH = {"switches": ("decidefyi.monthly_cap=0",), "restart": True}
WITH = {
    "agentos.late_events=409": _REPEATS,
    "agentos.second_terminal=409": _REPEATS,
    "agentos.duplicate_task": _REPEATS,
    "agentos.human_input_poll": {"switches": ("agentos.human_input=wait",)},
    "ascend.decision_delay=0": {**_PENDING, "person": False},
    "ascend.decision_delay": _PENDING,
    "ascend.delayed_decision": _DELAYED,
    "ascend.signing_secret": {"switches": ("ascend.signature=require",)},
    "ascend.per_minute=1": _MINUTE,
    "ascend.rate_headers": _MINUTE,
    "decidefyi.inflight_409=on": _TWIN,
    "decidefyi.inflight_s": _TWIN | {"switches": ("decidefyi.inflight_409=on",)},
    "decidefyi.rate_limit=1": _RATION,
    "decidefyi.rate_limit_form": _RATION,
    "decidefyi.monthly_cap=0": _MONTH,
    "decidefyi.reset_unit": _MONTH,
    "decisionos.replayed_status": _REPEATS,
    "decisionos.request_id_conflict": _REPEATS,
    "decisionos.reset_at_in_402": {"switches": ("decisionos.monthly_decisions=1",), "restart": True},
}


def choices(face):
    """The values of each switch: of words and yes or no by its type, else None."""
    for name, type_ in typing.get_type_hints(type(load_face(face).switches)).items():
        if type_ is bool:
            yield f"{face}.{name}", ("false", "true")
        else:
            yield f"{face}.{name}", typing.get_args(type_) if typing.get_origin(type_) is typing.Literal else None


SWITCHES = {switch: values for face in FACES for switch, values in choices(face)}
ROUNDS = [f"{switch}={value}" for switch, values in SWITCHES.items() for value in (values or VALUES.get(switch, ()))]


def expected_of(faces, words):
    """The whole table of a round."""
    table = {}
    for face in faces:
        table |= every("delivered", *RECORDS.get(face, ())) | BASE[face]
    assert words.keys() <= table.keys()
    return table | words


def ids(rounds, words):
    """Each round with what comes of it: all its gates, and the records that are not simply delivered."""
    for name in rounds:
        told = (f"{step}={word}" for step, word in words(name).items() if word != "delivered")
        yield f"{name}: {' '.join(told)}"


def of_switch(name):
    return expected_of([name.partition(".")[0]], EXPECTED.get(name, {}))


@pytest.fixture(scope="module")
def stage():
    """One daemon and one sandbox for all rounds."""
    with contextlib.closing(Stage()) as stage:
        yield stage


def test_every_value_of_every_switch_is_in_a_table():
    """A switch or a value that the sandbox gains has to be played here, and one that it loses goes."""
    assert set(FACES) == set(face_names())
    unknown = [switch for switch, values in SWITCHES.items() if values is None and switch not in VALUES]
    assert not unknown, f"say in VALUES what to play: {unknown}"
    assert not [switch for switch in VALUES if SWITCHES.get(switch, ("",)) is not None]
    named = {*EXPECTED, *(name for name in WITH if "=" in name)}
    assert named <= set(ROUNDS)
    assert {name for name in WITH if "=" not in name} <= set(SWITCHES)


@pytest.mark.parametrize("switch", [pytest.param(r, id=i) for r, i in zip(ROUNDS, ids(ROUNDS, of_switch), strict=True)])
def test_a_switch(stage, switch):
    """§4 and promises 1-5: each gate says what the platform has said, each record is delivered or dead with its cause."""
    face = switch.partition(".")[0]
    more = dict(WITH.get(switch) or WITH.get(switch.partition("=")[0]) or {})
    switches = (*more.pop("switches", ()), switch)
    expected = of_switch(switch)
    if "once" in more:
        more["once"] += f",face={face}"
    assert stage.play(Round((face,), expected, switches, **more)) == expected


# -- faults ----------------------------------------------------------------------------------------------------------------------

FAULTS = {
    "cut": Fault(cut=True),
    "hang": Fault(hang=True),
    "reset": Fault(down=True),
    "503": Fault(status=503),
    "429 in 1 s": Fault(retry_after=1.0),
    "401": Fault(status=401),
    "403": Fault(status=403),
    "302": Fault(status=302),
    "404 page": Fault(status=404, body="<html>Nothing here</html>"),
    "200 page": Fault(status=200, body="<html>Sign in</html>"),
    "200 cut JSON": Fault(status=200, body='{"data":{"id":"dec_1","run_id":"7'),
    "200 null": Fault(status=200, body="null"),
}
EMPTY = ("200 null",)  # a record's answer may be anything where no source says what it holds
LOOKS = ("cut", "hang", "503", "404 page", "200 page", "200 cut JSON", "200 null")
GATES = {name for of in BASE.values() for name in of} - {"no_option"}
EVERYWHERE = (
    every("kept>delivered", *(name for of in RECORDS.values() for name in of))
    | every("unavailable", *GATES)
    | GONE
    | {"no_option": "kept>dead:rejected", "execution": "dead:gate_unavailable", "of_gate": "dead:gate_unavailable"}
)
# Who answers 200 where nobody knows it is not the platform, and has decided nothing.
STRANGER = every("review", "invoke", "session", "yes", "no", "lacking", "question", "policy")
AT_ALL = {
    "cut": every("unavailable(made)", "invoke", "small", "large", "yes", "no", "question", "policy")
    | every("delivered", "start", "outcome", "decision")
    | {"heartbeat": "delivered again"},
    "200 page": STRANGER,
    "200 cut JSON": STRANGER,
}
AT_SUBMIT = {
    "cut": every("unavailable(made)", "action", "pii", "approval"),
    "200 null": every("review", *BASE["ascend"]),
}
AT_LOOKS = {"small": "pending>allow", "large": "pending>deny"}
FIRST = ("cut", "503", "429")
AT_FIRST = {
    ("agentos", "cut"): LOST_ASKING,
    ("agentos", "503"): every("unavailable", "human_input", "invoke"),
    ("aegis", "cut"): every("unavailable(made)", "small", "large"),
    ("aegis", "503"): every("unavailable", "small", "large"),
    ("ascend", "cut"): NO_ACTION | AT_SUBMIT["cut"] | {"heartbeat": "delivered again"},
    ("ascend", "503"): NO_ACTION,
}


def of_fault(name):
    return expected_of(FACES, EVERYWHERE | AT_ALL.get(name, {}))


def of_submit(name):
    return expected_of(["ascend"], NO_ACTION | AT_SUBMIT.get(name, {}))


def of_looks(_name):
    return expected_of(["ascend", "aegis"], AT_LOOKS)


def of_first(name):
    face, _, fault = name.partition(" ")
    return expected_of([face], AT_FIRST.get((face, fault), {}))


def params(names, words):
    return [pytest.param(name, id=i) for name, i in zip(names, ids(names, words), strict=True)]


def at(fault, path):
    return msgspec.structs.replace(FAULTS[fault], path=path)


@pytest.mark.parametrize("fault", params([name for name in FAULTS if name not in EMPTY], of_fault))
def test_a_fault_everywhere(stage, fault):
    """Promises 1, 4 and 5: what can't be delivered is kept and delivered once it can be; no gate lets anything pass."""
    expected = of_fault(fault)
    assert stage.play(Round(FACES, expected, faults=(FAULTS[fault],))) == expected


@pytest.mark.parametrize("fault", params(FAULTS, of_submit))
def test_a_fault_at_the_submission(stage, fault):
    """§4: behind a kill switch that is off, a submission is sent once, and what is no clear yes is none."""
    expected = of_submit(fault)
    assert stage.play(Round(("ascend",), expected, faults=(at(fault, "/api/v1/actions/submit"),))) == expected


@pytest.mark.parametrize("fault", params(LOOKS, of_looks))
def test_a_fault_at_the_looks(stage, fault):
    """§4: whatever goes wrong while agentd asks for a decision, the gate stays pending until the platform has decided."""
    expected = of_looks(fault)
    faults = (at(fault, "/api/v1/actions/act_"), at(fault, "/v1/intents/"))
    assert stage.play(Round(("ascend", "aegis"), expected, faults=faults)) == expected


@pytest.mark.parametrize("case", params([f"{face} {fault}" for face in FACES for fault in FIRST], of_first))
def test_the_first_answer_goes_wrong(stage, case):
    """§4: where the platform keeps a key a lost answer is asked for again and acts once; where it keeps none, never."""
    face, _, fault = case.partition(" ")
    once = {"cut": "cut", "503": "status=503", "429": "retry_after=0s"}[fault]
    expected = of_first(case)
    assert stage.play(Round((face,), expected, once=f"{once},face={face}")) == expected


def test_the_books_of_all_rounds(stage):
    """Promises 7 and 8: they balance, SIGTERM ends the daemon with 0, and its log has no defect."""
    daemon = stage.daemon
    for name in FACES:
        books = daemon.drained(destination=name)
        assert books["admitted"] == books["delivered"] + books["dead"] + books["shed"]
    assert len(daemon.dead_letters()) == sum(daemon.books(name)["dead"] for name in FACES)
    repeats = stage.world.platform.repeats(2)
    assert repeats
    assert [key for key, repeat in repeats.items() if not repeat.same_body] == []
    assert daemon.stop() == 0
    assert daemon.faults_in_log() == []
