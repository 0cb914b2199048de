"""Secrets by their form: keys of the large providers, tokens, private keys, card numbers, credentials in URLs. Pure.

A pattern has literals, one of which stands in every hit: by these records are screened (`screen`), so that what has none costs a
scan of memory and no regular expression. Sources of the forms: the providers' documentation and the rules of GitHub's and
Gitleaks' secret scanning. Quantifiers are bounded or possessive and can't be re-tried in two ways: the cost is linear.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator

from msgspec import Struct

Match = re.Match[str]
WINDOW = 4096  # characters, of a text that a pattern from the configuration is tried on at once
# In an encoded record an escape stands before a word as its last letter: `\nsk-…`. What stands there is judged once it is decoded.
_BEFORE = re.compile(r"^\(\?<![^)]*\)")
_PEM_BYTES = 16384  # of a private key; one of 16,384 bits has 12.7 kB


class Pattern(Struct, frozen=True):
    """One form. `group` of the expression is the secret; `check` judges what an expression can't."""

    name: str
    expression: re.Pattern[str]
    needles: tuple[str, ...]  # one of these stands in every hit; none: it is looked for in every record
    confirm: re.Pattern[bytes] | None = (
        None  # of the encoded record, from `back` bytes before the needle on; None: no look
    )
    back: int = 0
    group: int = 0
    check: Callable[[Match], bool] | None = None
    folded: tuple[bytes, ...] = ()  # needles of the folded copy (`screen`), in place of the others
    beside: tuple[str, ...] = ()  # looked for only in records that hold one of these
    digits: bool = False  # of numbers too
    own: bool = False  # from the configuration


def finds(pattern: Pattern, text: str) -> Iterator[Match]:
    """All hits. Those of a pattern from the configuration within windows that overlap by half, which bounds what a clumsy one may cost."""
    if not pattern.own or len(text) <= WINDOW:
        yield from pattern.expression.finditer(text)
        return
    for start in range(0, len(text) - WINDOW // 2, WINDOW // 2):
        yield from pattern.expression.finditer(text, start, start + WINDOW)


def _build(
    name: str,
    expression: str,
    *needles: str,
    confirm: str | None = None,
    back: int = 0,
    group: int = 0,
    check: Callable[[Match], bool] | None = None,
    folded: tuple[bytes, ...] = (),
    beside: tuple[str, ...] = (),
) -> Pattern:
    return Pattern(
        name, re.compile(expression), needles, re.compile(_BEFORE.sub("", confirm or expression).encode()), back, group, check, folded, beside
    )  # fmt: skip


# -- what an expression can't say --------------------------------------------------------------------------------------


def _looks_random(found: Match) -> bool:
    """Has a digit: `Bearer` is a word of prose as well."""
    return any(char.isdigit() for char in found[1])


def _is_basic(found: Match) -> bool:
    """Base64 of `user:password` (RFC 7617)."""
    text = found[1]
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    return b":" in data and all(32 <= byte < 127 for byte in data)  # noqa: PLR2004 - visible ASCII


def _is_mixed(found: Match) -> bool:
    """Upper, lower and digits: no hexadecimal digest, no word."""
    text = found[0]
    return any(c.isupper() for c in text) and any(c.islower() for c in text) and any(c.isdigit() for c in text)


# Issuer ranges as (first digits from, to, lengths), https://en.wikipedia.org/wiki/Payment_card_number (ISO/IEC 7812)
_ISSUERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)), ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)), ("37", "37", (15,)),  # American Express
    ("300", "305", (14, 16, 19)), ("3095", "3095", (14, 16, 19)), ("36", "36", (14, 16, 19)), ("38", "39", (14, 16, 19)),  # Diners
    ("3528", "3589", (16, 17, 18, 19)),  # JCB
    ("6011", "6011", (16, 17, 18, 19)), ("644", "649", (16, 17, 18, 19)), ("65", "65", (16, 17, 18, 19)),  # Discover
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("5018", "5018", (16, 19)), ("5020", "5020", (16, 19)), ("5038", "5038", (16, 19)), ("6304", "6304", (16, 19)),
    ("6759", "6759", (16, 19)), ("6761", "6763", (16, 19)),  # Maestro
)  # fmt: skip
_BY_FIRST = {first: tuple(one for one in _ISSUERS if one[0][0] <= first <= one[1][0]) for first in "0123456789"}
_DOUBLED = str.maketrans("0123456789", "0246813579")


def is_card(digits: str) -> bool:
    """Whether an issuer gives numbers of this length and beginning, and the last digit is right (Luhn, ISO/IEC 7812-1 annex B)."""
    size = len(digits)
    for low, high, sizes in _BY_FIRST[digits[0]]:
        if size in sizes and low <= digits[: len(low)] <= high:
            break
    else:
        return False
    luhn = sum(map(int, digits[-1::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))
    return luhn % 10 == 0 and len(set(digits)) > 1


def _is_card(found: Match) -> bool:
    return is_card(re.sub("[ -]", "", found[0]))


def _has_password(found: Match) -> bool:
    """No template of one: `postgres://user:${PASSWORD}@host`."""
    return not re.fullmatch(r"\$\{?\w+\}?|\{\{?\w+\}?\}|\*+|x+|<\w+>|%\w+%", found[1], re.IGNORECASE)


# -- the table ---------------------------------------------------------------------------------------------------------

_B = r"(?<![A-Za-z0-9_-])"  # where a word of a key's alphabet begins
_E = r"(?![A-Za-z0-9_-])"
_URL = r"://[^\s/?#\"'<>@:\\]{0,256}:([^\s/?#\"'<>\\]{1,512})@"
BUILT_IN: tuple[Pattern, ...] = (
    _build("private-key", rf"-----BEGIN (?:(?!PRIVATE)[A-Z0-9]{{1,16}} ){{0,4}}PRIVATE KEY(?: BLOCK)?-----"
           rf"(?:(?!-----END)[A-Za-z0-9+/=\s\\:,.-]){{0,{_PEM_BYTES}}}+(?:-----END [A-Z0-9 ]{{0,40}}-----)?+",
           "PRIVATE", confirm=r"PRIVATE(?: |%20|\+)KEY"),
    _build("age-key", r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Za-z]{20,}+", "AGE-SECRET"),
    _build("jwt", _B + r"eyJ[A-Za-z0-9_-]{10,}+\.[A-Za-z0-9_-]{6,}+\.[A-Za-z0-9_-]{6,}+(?:\.[A-Za-z0-9_-]{6,}+){0,2}", "eyJ"),
    _build("anthropic-key", _B + r"sk-ant-[A-Za-z0-9_-]{20,}+", "sk-"),
    _build("openai-key", _B + r"sk-(?:(?:proj|svcacct|admin|None|or-v1|lf)-[A-Za-z0-9_-]{20,}+|(?=[A-Za-z]{0,99}[0-9])[A-Za-z0-9]{20,}+" + _E + ")", "sk-"),
    _build("google-key", _B + r"AIza[A-Za-z0-9_-]{35}" + _E, "AIza"),
    _build("google-oauth", _B + r"(?:ya29\.[A-Za-z0-9_-]{20,}+|GOCSPX-[A-Za-z0-9_-]{28})", "ya29.", "GOCSPX-"),
    _build("aws-key", _B + r"(?:AKIA|ASIA)[A-Z2-7]{16}" + _E, "AKIA", "ASIA"),
    _build("aws-secret", r"(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])", check=_is_mixed, beside=("AKIA", "ASIA")),
    _build("github-token", _B + r"(?:gh[pousr]_[A-Za-z0-9]{36,}+|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})" + _E,
           "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    _build("gitlab-token", _B + r"gl(?:pat|dt|rt)-[A-Za-z0-9_-]{20,}+(?:\.[A-Za-z0-9_-]{2,}+){0,3}", "glpat-", "gldt-", "glrt-"),
    _build("slack-token", _B + r"xox[abeoprs](?:\.xox[bp])?-(?=[A-Za-z-]{0,99}[0-9])[A-Za-z0-9-]{10,}+", "xox"),
    _build("slack-token", _B + r"xapp-[0-9]-[A-Za-z0-9-]{20,}+", "xapp-"),
    _build("slack-webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9_/-]{20,}+)", "hooks.slack", group=1,
           confirm=r"hooks\.slack\.com"),
    _build("stripe-key", _B + r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}+", "k_live_", "k_test_", back=1),
    _build("stripe-key", _B + r"whsec_[A-Za-z0-9+/]{24,}+", "whsec_"),
    _build("huggingface-token", _B + r"hf_[A-Za-z0-9]{30,}+" + _E, "hf_"),
    _build("sendgrid-key", _B + r"SG\.[A-Za-z0-9_-]{20,24}\.[A-Za-z0-9_-]{39,50}" + _E, "SG."),
    _build("twilio-key", _B + r"SK[0-9a-f]{32}" + _E, "SK"),
    _build("npm-token", _B + r"npm_[A-Za-z0-9]{36}" + _E, "npm_"),
    _build("pypi-token", _B + r"pypi-[A-Za-z0-9_-]{50,}+", "pypi-"),
    _build("azure-key", r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}==", check=_is_mixed, beside=("windows.net",)),
    _build("azure-key", r"(?:AccountKey|SharedAccessKey|accountkey|sharedaccesskey)=([A-Za-z0-9+/]{40,88}={0,2})", "Key=", "key=", group=1,
           back=16),
    _build("url-signature", r"[?&](?:sig|[Xx]-[Aa]mz-[Ss]ignature|[Xx]-[Gg]oog-[Ss]ignature)=([A-Za-z0-9%+/=_-]{16,}+)",
           "sig=", "ignature=", group=1, folded=(b'sig"', b'signature"'), back=12),
    _build("url-password", _URL, "://", group=1, check=_has_password),
    _build("bearer", r"(?<![A-Za-z0-9])[Bb](?:earer|EARER) {1,4}((?=[A-Za-z0-9._~+/=-]{16})[A-Za-z0-9_~+/=-]++(?:\.[A-Za-z0-9_~+/=-]++)*+)", "earer ", "EARER ", group=1, check=_looks_random, folded=(b'bearer"',),
           confirm=r"(?i:bearer)(?: {1,4}|%20|\+)[A-Za-z0-9._~+/=-]{16}"),
    _build("basic-auth", r"(?<![A-Za-z0-9])[Bb]asic {1,4}([A-Za-z0-9+/]{8,}+={0,2})", "asic ", group=1, check=_is_basic, folded=(b'basic"',)),
    Pattern(
        "card",
        re.compile(
            r"(?<![\w.+-])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1?[0-9]{1,3})?|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})"
            r"(?![\w-]|\.[0-9])", re.ASCII,
        ),
        (), check=_is_card, digits=True,
    ),
)  # fmt: skip
# Only if they are switched on: not secrets to everybody.
OPTIONAL: tuple[Pattern, ...] = (
    _build("email", r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])", "@", back=64),
)  # fmt: skip
