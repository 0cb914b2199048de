"""Secrets by the name that they stand under: `password`, `client_secret`, `Set-Cookie`. Pure.

Names are compared in lower case and without `_`, `-` and `.`, so that `api_key` also means `apiKey`, `API-KEY` and `api.key`; `*` and `?`
are globs. A rule is named by its glob, without the stars. What every record of ours holds (`tokens_input`, `max_tokens`, `run_id`) is
matched by no default, and the record's own fields are never judged by their names at all (`fields`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agentd.errors import ConfigError

DEFAULT = "default"
# Suffixes for the most part: `db_password` is a secret, `password_policy` is not.
DEFAULT_KEYS: tuple[str, ...] = (
    "*password", "*password?", "*passwd", "*pwd", "*passphrase", "*passcode",
    "*secret", "*secrets", "*secret_key", "*secret_access_key",
    "*api_key", "*private_key", "*access_key", "*account_key", "*signing_key", "*encryption_key", "*ssh_key",
    "*master_key", "*shared_key", "*storage_key",
    "*authorization", "*access_token", "*refresh_token", "*id_token", "*auth_token", "*bearer_token", "*session_token",
    "*security_token", "*csrf_token", "*xsrf_token", "*oauth_token", "*private_token", "*bot_token", "*api_token",
    "*user_token", "*client_token", "*service_token", "token",
    "cookie", "cookies", "set_cookie", "*session_cookie", "*credential", "*credentials",
    "cvv", "cvv?", "cvc", "cvc?", "*card_number", "ssn",
)  # fmt: skip
# Also the word for a piece of text, in what language models report: a secret only where the value looks like one.
GUARDED = frozenset({"token"})
_FOLDED_AWAY = str.maketrans("", "", "_-.")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ALLOWED = re.compile(r"[A-Za-z0-9_.*?-]{2,64}")
_KNOWN_NAMES = 8192  # that are remembered; names come from outside
_NAME_CHARS = 256  # of a name are judged: its first and its last half
# One needle for several: each costs a scan of every message.
_SHARED = {
    b"password": b"passw", b'passwd"': b"passw", b'passphrase"': b"passp", b'passcode"': b"passc", b'secret"': b"secret", b'secrets"': b"secret",
    b'cookie"': b"cookie", b'cookies"': b"cookie", b'credential"': b"credential", b'credentials"': b"credential",
}  # fmt: skip
_COMMON = frozenset(
    {"number", "value", "name", "id", "string", "type", "code", "data", "text", "model"}
)  # words of half the records


class Keys:
    """The names in force."""

    def __init__(self, globs: Sequence[str], exempt: Sequence[str] = ()) -> None:
        self.globs = tuple(globs)
        self.exempt = tuple(exempt)
        self._rules = [(_pattern(glob), name_of(glob)) for glob in self.globs]
        self._exempt = [_pattern(glob) for glob in self.exempt]
        self._known: dict[str, str | None] = {}

    def rule(self, name: str) -> str | None:
        """The rule that a member of this name falls under, None for an ordinary one."""
        try:
            return self._known[name]
        except KeyError:
            if len(self._known) >= _KNOWN_NAMES:
                self._known.clear()
            return self._known.setdefault(name, self._find(name))

    def _find(self, name: str) -> str | None:
        folded = fold(name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS // 2] + name[-_NAME_CHARS // 2 :])
        if any(pattern.fullmatch(folded) for pattern in self._exempt):
            return None
        return next((rule for pattern, rule in self._rules if pattern.fullmatch(folded)), None)

    def needles(self) -> list[bytes]:
        """Pieces of text, of which at least one stands in any record that has such a name (`screen.folded`)."""
        needles = {_needle(glob) for glob in self.globs}
        needles = {_SHARED.get(one, one) for one in needles}
        return sorted(one for one in needles if not any(other != one and other in one for other in needles))


def read_keys(configured: Sequence[str], where: str) -> Keys:
    """`redact.keys` as rules: `default` means ours, `!name` an exemption. Raises ConfigError."""
    globs: list[str] = []
    exempt: list[str] = []
    for entry in configured:
        name = entry.removeprefix("!")
        if not _ALLOWED.fullmatch(name) or not re.search("[A-Za-z0-9]{2}", name):
            raise ConfigError(
                f"{where}: [redact] keys: {entry!r}: expected a name or glob of 2 to 64 letters, digits, _ - . * ?, "
                f'"{DEFAULT}" for the built-in ones, or "!name" for what is to be left'
            )
        if entry == DEFAULT:
            globs += DEFAULT_KEYS
        elif entry.startswith("!"):
            exempt.append(name)
        else:
            globs.append(name)
    return Keys(list(dict.fromkeys(globs)), exempt)


def name_of(glob: str) -> str:
    """A rule's name, as it stands in marks and metrics."""
    return glob.strip("*?").strip("_-.").lower() or glob


def fold(name: str) -> str:
    return name.lower().translate(_FOLDED_AWAY)


def _pattern(glob: str) -> re.Pattern[str]:
    """Linear: a run of stars is one, and a name has no more characters than its record."""
    parts = re.split(r"([*?]+)", fold(glob))
    return re.compile(
        "".join(".*" if "*" in part else "." * len(part) if "?" in part else re.escape(part) for part in parts),
        re.DOTALL,
    )


def _needle(glob: str) -> bytes:
    """A word that every name of the glob has: the last where the name ends with it (and the quote behind it), else the longest.

    Digits are 0 in what is searched.
    """
    parts = [_WORDS.findall(part) for part in re.split(r"[*?]+", glob)]
    last = parts[-1][-1].lower() if glob[-1] not in "*?" and parts[-1] else ""
    if last and (last not in _COMMON or sum(map(len, parts)) == 1):
        word = last + '"'
    else:
        whole = [word.lower() for words in parts for word in words]
        word = max((one for one in whole if one not in _COMMON), key=len, default=whole[0])
    return re.sub("[0-9]", "0", word).encode()
