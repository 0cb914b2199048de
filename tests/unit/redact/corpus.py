"""Made-up secrets in the forms of the real ones, and what merely looks like them. Nothing here is, or ever was, anybody's.

They are put together at run time from parts, so that no scanner of repositories takes this file for a leak.
"""

from __future__ import annotations

import base64
import json
import random
import string
from typing import NamedTuple
from urllib.parse import quote

ALNUM = string.ascii_letters + string.digits
URLSAFE = ALNUM + "-_"
BASE64 = ALNUM + "+/"
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + "234567"


class Secret(NamedTuple):
    rule: str
    text: str  # what must not be on disk


class Planted(NamedTuple):
    """A payload with a secret in it."""

    rule: str
    secret: str
    payload: object
    how: str


def _of(rng: random.Random, alphabet: str, size: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(size))


def _mixed(rng: random.Random, alphabet: str, size: int) -> str:
    """With an upper, a lower and a digit, as all but a few in a million have."""
    return "aB3" + _of(rng, alphabet, size - 3)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _jwt(rng: random.Random) -> str:
    head = {"alg": rng.choice(["HS256", "RS256", "ES384"]), "typ": "JWT"}
    body = {"sub": _of(rng, HEX, 12), "iat": rng.randrange(10**9)}
    return ".".join([_b64(json.dumps(head).encode()), _b64(json.dumps(body).encode()), _b64(rng.randbytes(32))])


def _pem(rng: random.Random) -> str:
    kind = rng.choice(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
    lines = "\n".join(_of(rng, BASE64, 64) for _ in range(rng.randrange(3, 26)))
    return f"-----BEGIN {kind}PRIV" + f"ATE KEY-----\n{lines}\n-----END {kind}PRIV" + "ATE KEY-----"


def luhn(digits: str) -> str:
    """The digits with the one behind them that makes the sum right."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        figure = int(digit) * (2 if place % 2 == 0 else 1)
        total += figure - 9 if figure > 9 else figure
    return digits + str(-total % 10)


def _card(rng: random.Random) -> str:
    begin, size = rng.choice(
        [
            ("4", 16),
            ("51", 16),
            ("2221", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("3528", 16),
            ("36", 14),
            ("62", 16),
        ]
    )
    digits = luhn(begin + _of(rng, string.digits, size - len(begin) - 1))
    mark = rng.choice(["", " ", "-"])
    if size == 16:
        return mark.join([digits[:4], digits[4:8], digits[8:12], digits[12:]])
    return mark.join([digits[:4], digits[4:10], digits[10:]])


def forms(rng: random.Random) -> list[Secret]:
    """One secret of each form."""
    return [
        Secret("openai-key", "sk" + "-" + _of(rng, ALNUM, 20) + "T3Blbk" + "FJ" + _of(rng, ALNUM, 20)),
        Secret("openai-key", "sk" + "-proj-" + _of(rng, URLSAFE, 74) + "T3Blbk" + "FJ" + _of(rng, URLSAFE, 74)),
        Secret("openai-key", "sk" + "-" + "4" + _of(rng, HEX, 31)),
        Secret("anthropic-key", "sk" + "-ant-api03-" + _of(rng, URLSAFE, 93) + "AA"),
        Secret("google-key", "AI" + "za" + _of(rng, URLSAFE, 34) + "k"),
        Secret("google-oauth", "ya" + "29." + _of(rng, URLSAFE, 80)),
        Secret("google-oauth", "GOC" + "SPX-" + _of(rng, URLSAFE, 28)),
        Secret("aws-key", rng.choice(["AK", "AS"]) + "IA" + _of(rng, UPPER, 16)),
        Secret("github-token", "gh" + rng.choice("pousr") + "_" + _of(rng, ALNUM, 36)),
        Secret("github-token", "github" + "_pat_" + _of(rng, ALNUM, 22) + "_" + _of(rng, ALNUM, 59)),
        Secret("gitlab-token", "gl" + "pat-" + _of(rng, URLSAFE, 20)),
        Secret("slack-token", "xo" + "x" + rng.choice("bpar") + "-" + _of(rng, string.digits, 12) + "-" + _of(rng, string.digits, 12) + "-" + _of(rng, ALNUM, 24)),
        Secret("stripe-key", rng.choice("sr") + "k_" + "live_" + _of(rng, ALNUM, 24)),
        Secret("huggingface-token", "h" + "f_" + _of(rng, ALNUM, 34)),
        Secret("sendgrid-key", "S" + "G." + _of(rng, URLSAFE, 22) + "." + _of(rng, URLSAFE, 43)),
        Secret("twilio-key", "S" + "K" + _of(rng, HEX, 32)),
        Secret("npm-token", "np" + "m_" + _of(rng, ALNUM, 36)),
        Secret("pypi-token", "py" + "pi-AgEIcHlwaS5vcmc" + _of(rng, URLSAFE, 150)),
        Secret("jwt", _jwt(rng)),
        Secret("private-key", _pem(rng)),
        Secret("card", _card(rng)),
    ]  # fmt: skip


def named(rng: random.Random) -> list[tuple[str, str, str]]:
    """(member's name, rule, secret): what is known by its name alone."""
    word = "".join(rng.choice(string.ascii_lowercase) for _ in range(9))
    return [(name, rule, f"{word}{index}-{_of(rng, string.ascii_lowercase, 6)}") for index, (name, rule) in enumerate([
        ("password", "password"), ("dbPassword", "password"), ("DB_PASSWORD", "password"), ("passwd", "passwd"), ("user-pwd", "pwd"),
        ("secret", "secret"), ("client_secret", "secret"), ("clientSecret", "secret"), ("api_key", "api_key"), ("apiKey", "api_key"),
        ("X-Api-Key", "api_key"), ("Authorization", "authorization"), ("accessToken", "access_token"), ("refresh_token", "refresh_token"),
        ("private_key", "private_key"), ("Set-Cookie", "set_cookie"), ("cookie", "cookie"), ("session_token", "session_token"),
        ("passphrase", "passphrase"), ("AWS_SECRET_ACCESS_KEY", "secret_access_key"), ("ssn", "ssn"), ("cvv", "cvv"),
    ])]  # fmt: skip


def planted(seed: int = 7, rounds: int = 4) -> list[Planted]:
    """Payloads with a secret each, in all the ways in which they come."""
    rng = random.Random(seed)
    cases: list[Planted] = []
    for number in range(rounds):
        for rule, secret in forms(rng):
            cases.append(Planted(rule, secret, {"text": secret}, "alone"))
            if number == 0:
                cases += [
                    Planted(rule, secret, {"text": f"it said: {secret} and went on"}, "in a sentence"),
                    Planted(rule, secret, {"calls": [{"args": json.dumps({"value": secret, "n": 1})}]}, "in JSON in a string"),
                    Planted(rule, secret, {"calls": json.dumps({"args": json.dumps({"value": secret})})}, "in JSON in JSON in a string"),
                    Planted(rule, secret, {"deep": [[{"a": {"b": [None, secret, 1.50]}}]]}, "deep"),
                ]  # fmt: skip
        for name, rule, secret in named(rng):
            cases.append(Planted(rule, secret, {name: secret}, "by its name"))
            if number == 0:
                cases += [
                    Planted(rule, secret, {"tool": {"headers": [{name: secret, "ok": True}]}}, "by its name, deep"),
                    Planted(rule, secret, {"arguments": json.dumps({name: secret})}, "by its name, in JSON in a string"),
                    Planted(rule, secret, {"body": f'got this: {{"{name}": "{secret}"}} from it'}, "by its name, in a sentence"),
                    Planted(rule, secret, {"line": f"run with {name}={secret} please"}, "assigned"),
                ]  # fmt: skip
        aws = _mixed(rng, BASE64, 40)
        cases.append(
            Planted(
                "aws-secret",
                aws,
                {"id": "AK" + "IA" + _of(rng, UPPER, 16), "text": f"and {aws} with it"},
                "beside its id",
            )
        )
        azure = _mixed(rng, BASE64, 86) + "=="
        cases.append(
            Planted(
                "azure-key",
                azure,
                {
                    "text": f"DefaultEndpointsProtocol=https;AccountName=x;Account"
                    f"Key={azure};EndpointSuffix=core.windows.net"
                },
                "connection string",
            )
        )
        word = _of(rng, ALNUM, 14) + "7"
        cases += [
            Planted("url-password", word, {"dsn": f"postgres://app:{word}@db.internal:5432/app"}, "url"),
            Planted("url-password", word, {"dsn": quote(f"postgres://app:{word}@db.internal:5432/app", safe="")}, "percent-encoded"),
            Planted("bearer", word + "abcdef", {"curl": f"curl -H 'Authorization: Bearer {word}abcdef' https://x.test"}, "header"),
            Planted("basic-auth", base64.b64encode(f"user:{word}".encode()).decode(), {"h": ["Basic " + base64.b64encode(f"user:{word}".encode()).decode()]}, "header"),
            Planted("password", word, {"n": {"pass\u0077ord": word}}, "escaped name"),
        ]  # fmt: skip
    return cases


def lookalikes(seed: int = 11) -> list[object]:
    """Payloads that must be left as they are, to the byte."""
    rng = random.Random(seed)
    words = [
        "risk-assessment-and-mitigation-of-2026", "task-force-reports-42", "disk-usage-is-at-87-percent-now", "sk-learn", "sk-estimator-doc-link",
        "ask-anything", "Bearer of bad news", "the bearer responsibilities", "Bearer authentication", "Basic information", "basic arithmetic",
        "eyJ", "eyJhbGci.too", "see hf_hub_download()", "npm_config_cache", "npm_lifecycle_event", "pypi-server", "SK", "SKU-12345", "TASKS", "SG.1",
        "glpat-", "xoxo", "AIzabc", "AKIA", "ghp_", "github_pat_", "k_live_", "sk_live_", "4111 1111 1111 1112", "4111111111111112", "1234 5678 9012 3456",
        "2026-11-22 04:48:35", "1763792301000", "1763792301000000", "1763792301000000000", "0000000000000000", "4444444444444444", "https://example.test/a?b=c",
        "https://example.test:8080/a@b", "http://[::1]:8080/", "mailto:someone@example.test", "someone@example.test", "git@example.test:owner/name.git",
        "postgres://app:${DB_PASSWORD}@db/app", "redis://localhost:6379/0", "the password must have 12 characters", "password: required",
        "Password: must not be empty", "enter your password", "secret sauce", "api_key: missing", "token: ok", "max_tokens=4096", "tokens: 12", "stop_token=none",
        "password=***", "api_key=${API_KEY}", "password=password", "def login(password: str): ...", "password = getpass()", "if password is None: raise",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "PRIVATE KEYS are secret",
        "[redacted:jwt]", "[redacted:password]", "100 % of 4 % is %41", "C:\\users\\secret.txt", "naïve café", "日本語のテキスト", "\u001b[0m", "a\u0000b",
        "cookies are tasty", "cookie policy", "authorization is required", "credential stuffing", "author: someone", "x-api-version: 3",
    ]  # fmt: skip
    payloads: list[object] = [{"text": word} for word in words]
    payloads += [
        {"max_tokens": 4096}, {"tokens_input": 812, "tokens_output": 77}, {"token_count": 12}, {"usage": {"input_tokens": 1, "total_tokens": 2}},
        {"logprobs": [{"token": "Hello", "logprob": -0.1}, {"token": " world", "logprob": -0.2}]}, {"eos_token": "</s>"}, {"next_token": "abc"}, {"stop_token": "x"},
        {"password": None}, {"password": ""}, {"password": True}, {"has_password": False}, {"api_key": "***"}, {"api_key": "${API_KEY}"}, {"secret": "[redacted:secret]"},
        {"secretary": "Ms Smith"}, {"passwordless": "yes"}, {"password_policy": "12 characters"}, {"author": "x"}, {"authority": "y"}, {"cookie_consent": "given"},
        {"key": "value", "keys": ["a", "b"]}, {"primary_key": "id", "foreign_key": "x", "cache_key": "y", "sort_key": "z"}, {"monkey": "banana"}, {"tokenizer": "bpe"},
        {"parameters": {"type": "object", "properties": {"password": {"type": "string", "description": "the user's"}, "api_key": {"type": "string"}}, "required": ["password"]}},
        {"credentials": {}}, {"secrets": []}, {"secret": False}, {"access_token": None}, {"session_id": "f" * 32}, {"trace_id": "0" * 32}, {"order_id": "4111111111111111"},
        {"order_id": 4111111111111111}, {"ids": [1, 2]}, {"card": "birthday"}, {"discard": "yes"}, {"pin": 7}, {"score": 0.5}, {"n": 1e400}, {"signature_valid": True},
    ]  # fmt: skip
    for _ in range(24):
        payloads += [
            {"sha256": _of(rng, HEX, 64)}, {"sha1": _of(rng, HEX, 40)}, {"commit": f"merge {_of(rng, HEX, 40)} into main"},
            {"id": f"{_of(rng, HEX, 8)}-{_of(rng, HEX, 4)}-4{_of(rng, HEX, 3)}-a{_of(rng, HEX, 3)}-{_of(rng, HEX, 12)}"},
            {"at": 1.7e9 + rng.random(), "us": 1763792301000000 + rng.randrange(10**9)}, {"image": "data:image/png;base64," + base64.b64encode(rng.randbytes(90)).decode()},
        ]  # fmt: skip
    return payloads
