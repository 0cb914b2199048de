"""The parts of redaction: names, cards, own patterns, what is never changed, the screen, texts, and the redactor's books."""

from __future__ import annotations

import json
import logging
import sys
import time

import corpus
import pytest

from agentd import logs
from agentd.errors import ConfigError
from agentd.records import TYPES
from agentd.redact import screen
from agentd.redact.build import build_redactor, check_redact, no_redactor
from agentd.redact.fields import place_of
from agentd.redact.keys import DEFAULT_KEYS, Keys, read_keys
from agentd.redact.own import catastrophic, literal_of
from agentd.redact.patterns import is_card
from agentd.redact.walk import Place
from agentd.sections import Redact, Secret

SECRET = corpus.planted(1, 1)[0].secret


def redactor(**keys):
    return build_redactor(Redact(**keys), {"KEY": "k" * 16})


def event(payload):
    return json.dumps({"kind": "event", "run_id": "r1", "type": "t", "payload": payload}).encode()


def payload_after(one, payload):
    body = event(payload)
    changed = one.records([body])
    return json.loads(changed[0].body if changed else body)["payload"]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("password", "password"), ("Password2", "password"), ("dbPassword", "password"), ("DB-PASSWORD", "password"), ("apiKey", "api_key"),
        ("x-api-key", "api_key"), ("proxy-authorization", "authorization"), ("clientSecret", "secret"), ("set-cookie", "set_cookie"),
        ("tokens_input", None), ("max_tokens", None), ("token_count", None), ("input_tokens", None), ("password_policy", None), ("secretary", None),
        ("monkey", None), ("primary_key", None), ("cookie_consent", None), ("author", None), ("next_token", None), ("run_id", None),
    ],
)  # fmt: skip
def test_names_in_any_spelling(name, rule):
    """Case, `_`, `-`, `.` and camelCase make no difference; what only holds such a word is no secret."""
    assert Keys(DEFAULT_KEYS).rule(name) == rule


def test_no_field_of_a_record_is_a_secret_by_its_name():
    """The contract's own names are matched by no default."""
    names = {name for kind in TYPES.values() for name in kind.__struct_fields__}
    assert {name: rule for name in names if (rule := Keys(DEFAULT_KEYS).rule(name))} == {}


def test_names_from_the_configuration():
    """Globs beside the built-in ones or in place of them, and exemptions."""
    own = redactor(keys=["default", "*_pin", "!cookie"])
    assert payload_after(own, {"card_pin": "1234", "cardPin": "1", "cookie": "a=b", "password": "x"}) == {
        "card_pin": "[redacted:pin]", "cardPin": "[redacted:pin]", "cookie": "a=b", "password": "[redacted:password]",
    }  # fmt: skip
    alone = redactor(keys=["staff?", "*badge*"], patterns=[])
    assert payload_after(alone, {"staff1": "x", "theBadgeNo": 7, "password": "x"}) == {
        "staff1": "[redacted:staff]", "theBadgeNo": "[redacted:badge]", "password": "x",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["*", "a", "", "sp ace", "x" * 65, "!", "*?*", 'qu"ote'])
def test_a_name_that_would_mean_everything_is_refused(name):
    """The message names the entry and what is expected."""
    with pytest.raises(ConfigError, match=r"f\.toml: \[redact\] keys: .*expected a name or glob"):
        read_keys([name], "f.toml")


def test_a_guarded_name_is_a_secret_only_with_a_secret():
    """`token` is a word of language models as well."""
    assert payload_after(redactor(), {"token": "Hello"}) == {"token": "Hello"}
    assert payload_after(redactor(), {"token": "a1b2c3d4e5f6"}) == {"token": "[redacted:token]"}


def test_values_of_every_type_go_with_their_name():
    """Numbers and containers as well; what is empty, true, false or null says nothing."""
    payload = {
        "password": 1234,
        "secret": ["a", {"b": 1}],
        "credentials": {"user": "u", "pass": "p"},
        "pwd": None,
        "cvv": True,
        "passwd": "",
    }
    assert payload_after(redactor(), payload) == {
        "password": "[redacted:password]", "secret": "[redacted:secret]", "credentials": "[redacted:credentials]", "pwd": None, "cvv": True, "passwd": "",
    }  # fmt: skip


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digits", "card"),
    [
        (corpus.luhn("411111111111111"), True), (corpus.luhn("37828224631000"), True), (corpus.luhn("222100000000000"), True),
        (corpus.luhn("911111111111111"), False), (corpus.luhn("41111111111111"), False), ("4" * 16, False), ("0" * 16, False), ("1763792301000000", False),
    ],
)  # fmt: skip
def test_a_card_number_has_an_issuer_a_length_and_a_sum(digits, card):
    """All three, or it is a number like others."""
    assert is_card(digits) is card
    if card:
        assert not is_card(digits[:-1] + str((int(digits[-1]) + 1) % 10))


def test_a_card_number_that_is_a_number():
    """It goes as one that is a text; under the name of an id it stays."""
    number = int(corpus.luhn("411111111111111"))
    assert payload_after(redactor(), {"pan": number, "order_id": number, "orderId": str(number)}) == {
        "pan": "[redacted:card]", "order_id": number, "orderId": str(number),
    }  # fmt: skip


def test_mail_addresses_only_if_they_are_switched_on():
    """They are no secret to everybody."""
    text = {"text": "write to someone@example.test today"}
    assert payload_after(redactor(), text) == text
    assert payload_after(redactor(patterns=["default", "email"]), text) == {"text": "write to [redacted:email] today"}


def test_a_pattern_can_be_left_out_and_a_value_allowed():
    """`!card`, and what `allow` matches whole."""
    card = corpus.luhn("411111111111111")
    assert payload_after(redactor(patterns=["default", "!card"]), {"x": card}) == {"x": card}
    allowing = redactor(allow=[card, "test-.*"])
    assert payload_after(allowing, {"x": card, "password": "test-1", "secret": "tesT-1"}) == {
        "x": card, "password": "test-1", "secret": "[redacted:secret]",
    }  # fmt: skip


def test_the_private_key_ends_where_it_ends():
    """What comes behind it stays, also behind one that was cut off."""
    pem = next(case.secret for case in corpus.planted() if case.rule == "private-key")
    assert payload_after(redactor(), {"t": f"a {pem} b"}) == {"t": "a [redacted:private-key] b"}
    cut = pem[: pem.index("-----END")]
    assert payload_after(redactor(), {"t": f"{cut}|rest"}) == {"t": "[redacted:private-key]|rest"}


# -- own patterns ------------------------------------------------------------------------------------------------------


def test_own_patterns():
    """By a text that every hit holds, or without one; a single group is the secret."""
    own = redactor(patterns=["staff=EMP-[0-9]{6}", "two=[0-9]{3}-[0-9]{2}-[0-9]{4}", "one=badge ([A-Z]{4})"])
    payload = {"t": "EMP-123456 and 123-45-6789, badge ABCD", "n": {"x": "EMP-12345"}}
    assert payload_after(own, payload) == {
        "t": "[redacted:staff] and [redacted:two], badge [redacted:one]",
        "n": {"x": "EMP-12345"},
    }
    assert payload_after(own, {"t": "nothing"}) == {"t": "nothing"}


@pytest.mark.parametrize(
    ("source", "literal"),
    [
        ("EMP-[0-9]{6}", "EMP-"),
        ("[a-z]+secret[0-9]", "secret"),
        ("(?i)emp-[0-9]{6}", ""),
        ("ab", ""),
        ("(?:abc|abd)x", ""),
        ("^abc", "abc"),
    ],
)
def test_the_text_that_every_hit_holds(source, literal):
    """Records are screened by it; nothing that may be missing or be written in another way counts."""
    assert literal_of(source) == literal


CATASTROPHES = [
    "(a+)+$", "([a-z]+)*x", "(a|a)*b", "(a|ab)*c", "(.*a){12}", r"(\w+\s?)*!", "(x+x+)+y", ".*.*=.*", r"^(\d+)*z", "(?:a?){30}a{30}", r"(a*)*\1b",
]  # fmt: skip


@pytest.mark.parametrize("source", CATASTROPHES)
def test_catastrophic_expressions_are_refused(source):
    """And said why, within a second."""
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match=r"\[redact\] patterns: 'x=.*may take for ever"):
        check_redact(Redact(patterns=[f"x={source}"]), "f")
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize(
    "source",
    [
        "EMP-[0-9]{6}",
        r"\bAB[0-9]+\b",
        "[A-Z]{2}[0-9]{9}",
        r"key-(?:live|test)-[a-z0-9]{20,40}",
        "(?i)internal-[0-9a-f]{8}",
        "x(?P<a>y)z",
        "x[a-f]++z",
    ],
)
def test_ordinary_expressions_pass(source):
    """What people write."""
    assert catastrophic(source) is None
    check_redact(Redact(patterns=[f"x={source}"]), "f")


@pytest.mark.parametrize(
    ("entry", "words"),
    [("x=(", "no regular expression"), ("x=a*", "empty text"), ("X Y=a", "expected the name"), ("emial", "expected one of"), ("!emial", "expected one of"),
     ("x=" + "a" * 1001, "more than 1000")],
)  # fmt: skip
def test_faults_of_patterns_are_named(entry, words):
    """With the entry, and what would be right."""
    with pytest.raises(ConfigError, match=rf"f: \[redact\] patterns: .*{words}"):
        check_redact(Redact(patterns=[entry]), "f")


def test_what_gets_slower_with_its_text_is_refused():
    """A search that begins anew at each of its characters is named; bounded it passes, and ends soon on any text."""
    with pytest.raises(ConfigError, match="bound its repeats"):
        check_redact(Redact(patterns=["x=[0-9]+B"]), "f")
    own = redactor(patterns=["x=[0-9]{1,40}B"])
    begun = time.process_time()
    own.records([event({"t": "1" * 100_000})])
    assert time.process_time() - begun < 20


def test_a_hit_is_found_wherever_it_lies():
    """Also across the windows that a long text is cut into."""
    own = redactor(patterns=["staff=EMP-[0-9]{6}"])
    for place in (0, 2040, 2048, 4090, 4096, 6139, 9990):
        text = "x" * place + "EMP-123456" + "y" * (10_000 - place)
        assert payload_after(own, {"t": text}) == {"t": text.replace("EMP-123456", "[redacted:staff]")}


# -- what is never changed ---------------------------------------------------------------------------------------------


def test_which_fields_may_be_changed():
    """Ids, words, times and digests never; texts and free JSON."""
    never = {name for kind in TYPES.values() for name in kind.__struct_fields__ if place_of(name) is Place.NEVER}
    assert never == {
        "id", "to", "agent_id", "run_id", "external_run_id", "parent_run_id", "span_id", "parent_span_id", "task_id", "decision_id", "policy_version_id", "trace_id",
        "session_id", "conversation_id", "request_id", "event_id", "action_id", "execution_id", "execution_receipt_id", "target_object_id", "crm_object_id", "policy_id",
        "level", "trigger_type", "occurred_at", "started_at", "ended_at", "captured_at", "executed_at",
        "prompt_hash", "decision_record_hash", "decision_receipt_hash", "state_before_hash", "state_after_hash", "execution_hash",
    }  # fmt: skip


def test_an_id_that_looks_like_a_secret_is_counted_and_left():
    """What names a run names it everywhere."""
    one = redactor()
    body = json.dumps({"kind": "event", "run_id": SECRET, "type": "t", "payload": {"x": SECRET}}).encode()
    assert json.loads(one.records([body])[0].body) == {
        "kind": "event",
        "run_id": SECRET,
        "type": "t",
        "payload": {"x": "[redacted:openai-key]"},
    }
    assert (one.counts, one.ids) == ({"openai-key": 1}, {"run_id": 1})
    assert one.records([json.dumps({"kind": "event", "run_id": SECRET, "type": "t"}).encode()]) == {}
    assert one.ids == {"run_id": 2}


def test_fields_that_are_none_of_ours_are_judged_by_name():
    """As evidence of a refused record holds them."""
    assert (
        redactor().raw(b'{"kind":"decision","context":"x","password":"hunter2"}').body
        == b'{"kind":"decision","context":"x","password":"[redacted:password]"}'
    )


def test_what_is_no_json_is_gone_over_as_a_text():
    """Cut off, of the wrong encoding, too deep."""
    one = redactor()
    for raw in (
        b'{"kind":"decision","context":"%b' % SECRET.encode(),
        b'{"kind":"decision","x":"\xff %b"}' % SECRET.encode(),
        b'{"kind":"decision","password":"%b","x":' % SECRET.encode(),
        b"[" * 3000 + b'"%b"' % SECRET.encode() + b"]" * 3000,
    ):
        assert SECRET.encode() not in one.raw(raw).body
    assert one.raw(b'{"kind":"decision","context":"x","password":"hunter-2').body.endswith(
        b'"password":"[redacted:password]'
    )


def test_texts():
    """Reasons and lines of the log."""
    one = redactor()
    assert one.text(f"got {SECRET!r}") == "got '[redacted:openai-key]'"
    assert one.text("Cookie: a=b; c=d\nHost: x") == "Cookie: [redacted:cookie]\nHost: x"
    assert one.text("curl --password hunter2 x") == "curl --password [redacted:password] x"
    assert one.text("all is well") == "all is well"
    assert repr(redactor(mode="hash", key=Secret(env="KEY"))).count("k" * 16) == 0


# -- the screen --------------------------------------------------------------------------------------------------------


def test_the_screen_needs_no_c_library(monkeypatch):
    """Without `strstr` it finds the same."""
    bodies = [event(case.payload) for case in corpus.planted()[:150]] + [
        event(payload) for payload in corpus.lookalikes()
    ]
    found = set(redactor().records(bodies))
    monkeypatch.setattr(screen, "contains", lambda data, needle: needle in data)
    assert set(redactor().records(bodies)) == found


def test_a_nul_hides_nothing():
    """C's texts end at a NUL, and what is no JSON may hold one."""
    assert SECRET.encode() not in redactor().raw(b"\x00 " + SECRET.encode()).body


def test_nothing_is_looked_for_where_nothing_is_configured():
    """Version 0, and every record as it came."""
    off = redactor(keys=[], patterns=[])
    assert off.version == no_redactor().version == 0
    assert off.records([event({"password": SECRET})]) == {}
    assert (off.raw(SECRET.encode()).body, off.text(SECRET)) == (SECRET.encode(), SECRET)


def test_the_version_tells_rules_apart():
    """The same for the same rules in every process, another for any other; a key changes it and can't be read from it."""
    versions = {
        redactor().version, redactor(keys=["default", "ssn2"]).version, redactor(patterns=["default", "email"]).version, redactor(allow=["x"]).version,
        redactor(mode="drop").version, redactor(mode="hash", key=Secret(env="KEY")).version,
        build_redactor(Redact(mode="hash", key=Secret(env="KEY")), {"KEY": "j" * 16}).version,
    }  # fmt: skip
    assert len(versions) == 7
    assert redactor().version == redactor().version
    assert all(0 < version < 2**32 for version in versions)


def test_hash_needs_a_key():
    """One that can't be tried out."""
    with pytest.raises(ConfigError, match='mode = "hash" needs a key'):
        check_redact(Redact(mode="hash"), "f")
    with pytest.raises(ConfigError, match="expected 16 characters or more") as caught:
        build_redactor(Redact(mode="hash", key=Secret(env="KEY")), {"KEY": "short-one"})
    assert "short-one" not in str(caught.value)


def test_another_configuration_is_followed_and_counting_goes_on():
    """A reload exchanges the rules, not the counts."""
    one = redactor()
    one.records([event({"password": "abc"})])
    one.follow(redactor(keys=["nick"], patterns=[]))
    assert payload_after(one, {"password": "x", "nick": "y"}) == {"password": "x", "nick": "[redacted:nick]"}
    assert one.counts == {"password": 1, "nick": 1}


def test_fingerprints_tell_secrets_apart_and_give_none_away():
    """What goes into digests on disk: itself, or something that needs a key of this process."""
    one = redactor()
    assert one.fingerprint(b'{"a":1}') == b'{"a":1}'
    first, second = one.fingerprint(b'{"password":"a"}'), one.fingerprint(b'{"password":"b"}')
    assert first != second
    assert first == one.fingerprint(b'{"password":"a"}') != redactor().fingerprint(b'{"password":"a"}')


@pytest.mark.parametrize("form", [logs._Text, logs._Json])
def test_lines_of_the_log_and_tracebacks_hold_no_secret(form):
    """Whatever a message, a field of it or an exception says; a line of JSON stays one."""
    record = logging.makeLogRecord(
        {"msg": "got %s", "args": (SECRET,), "levelname": "ERROR", "lane": f"Cookie: a={SECRET}", "other": [SECRET]}
    )
    try:
        raise ValueError(SECRET)  # noqa: TRY301 - to have a traceback
    except ValueError:
        record.exc_info = sys.exc_info()
    logs.hide_with(redactor().text)
    try:
        line = form().format(record)
    finally:
        logs.hide_with(str)
    assert SECRET not in line
    assert "[redacted:openai-key]" in line
    assert form is logs._Text or json.loads(line)["message"] == "got [redacted:openai-key]"
