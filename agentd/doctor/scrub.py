"""Taking out of a bug report what nobody else should read: secrets, names of agents, and whatever records were quoted. Pure.

Secrets that are known (keys, tokens, passwords of proxies, variables that sound like one) go by their value, in every form in which
they may be written down; others by their form, with the patterns that records are redacted by; and the user in front of any URL's
host. Names and ids become short digests under a key of this one bundle: the same name the same digest, and nobody can try names out.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

SECRET = "[secret]"  # noqa: S105 - what stands instead of one
QUOTED = "[quoted]"
LEAST_SECRET = 6  # characters; a shorter one would take words of the report with it
_LEAST_NAME = 3  # in running text; in its own field a name of any length
_USERINFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@\"'<>]+@")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
_LANE = re.compile(r"\b(run|agent|decision|action|gate|span|task|no-gate):([^\s,;()\"']+)")
_QUOTES = re.compile(r"'[^'\n]{1,2000}'|\"[^\"\n]{1,2000}\"")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH|COOKIE|SIGNING|DSN|_PWD$", re.IGNORECASE)
_PLACE_NAME = re.compile(r"__(ENV|FILE|CREDENTIAL)$")  # AGENTD_…__API_KEY__ENV names a variable


def secrets_in(env: Mapping[str, str]) -> set[str]:
    """Values of variables that sound like secrets, and the users of URLs in any of them."""
    found: set[str] = set()
    for name, value in env.items():
        if _SECRET_NAME.search(name) and not _PLACE_NAME.search(name) and not value.startswith("/"):
            found.add(value)
        for userinfo in re.findall(r"://([^/\s@\"']+)@", value):
            found |= {userinfo, *userinfo.split(":", 1)[1:]}
    return {value for value in found if len(value) >= LEAST_SECRET}


class Scrubber:
    """See the module."""

    def __init__(
        self,
        secrets: Iterable[str],
        names: Iterable[str],
        *,
        key: bytes,
        hide: Callable[[str], str] = lambda text: text,
        with_names: bool = False,
    ) -> None:
        """`hide` knows secrets by their form (agentd.redact)."""
        self._key = key
        self._hide = hide
        self._with_names = with_names
        self._forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._names = {name for name in names if name and not with_names}
        words = sorted((name for name in self._names if len(name) >= _LEAST_NAME), key=len, reverse=True)
        self._word = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])") if words else None

    def __repr__(self) -> str:
        return f"<Scrubber {len(self._forms)} forms of secrets, {len(self._names)} names>"

    def text(self, text: str) -> str:
        """A text without secrets and names."""
        for form in self._forms:
            text = text.replace(form, SECRET)
        text = self._hide(_USERINFO.sub(rf"\1{SECRET}@", text))
        if self._with_names:
            return text
        if self._word is not None:
            text = self._word.sub(lambda found: self.name(found[0]), text)
        text = _LANE.sub(lambda found: f"{found[1]}:{self.name(found[2])}", text)
        return _UUID.sub(lambda found: self.name(found[0]), text)

    def said(self, text: str) -> str:
        """A sentence of a log or a platform: what it quotes may be of a record."""
        return self.text(_QUOTES.sub(lambda found: f"{found[0][0]}{QUOTED}{found[0][0]}", text))

    def name(self, name: str) -> str:
        """A name's digest; one that is a digest already stays."""
        if self._with_names or re.fullmatch(r"name-[0-9a-f]{10}", name):
            return name
        return f"name-{hmac.digest(self._key, name.encode('utf-8', 'surrogatepass'), 'sha256').hex()[:10]}"

    def document(self, value: Any, key: str = "") -> Any:
        """JSON, its keys included; under `reason` and the like stand sentences, in which quotes go too."""
        if isinstance(value, str):
            if value in self._names:
                return self.name(value)
            return self.said(value) if key in _SENTENCES else self.text(value)
        if isinstance(value, Mapping):
            return {self._of_key(str(name)): self.document(part, str(name)) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(part, key) for part in value]
        return value

    def _of_key(self, name: str) -> str:
        return self.name(name) if name in self._names else self.text(name)

    def leaks(self, data: bytes) -> bool:
        """Whether a known secret is still in it, in any form."""
        return any(form.encode("utf-8", "surrogatepass") in data for form in self._forms)


_SENTENCES = frozenset({"reason", "error", "last_error", "what", "cause", "message", "forecast", "detail", "traceback"})


def _forms(secret: str) -> set[str]:
    """As it stands, and as JSON, URLs and Basic authentication write it."""
    if len(secret) < LEAST_SECRET:
        return set()
    raw = secret.encode("utf-8", "surrogatepass")
    encoded = {base64.b64encode(raw).decode().rstrip("="), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
    written = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return {secret, quote(raw, safe=""), raw.hex(), *encoded, *written}
