"""The error tree. Each class says what its reader does next, and its docstring is its default message.

AgentdError
├── ConfigError      the operator edits the configuration (exit code 78, sysexits EX_CONFIG)
├── UsageError       the caller corrects the command line or the value (exit code 2)
├── RecordError      the agent's author corrects the record; `path` names the field
├── Forbidden        the caller uses an agent, a destination or a right that it was given
├── WireError        the peer speaks no dialect of ours; the connection is closed after the answer
├── StateError       the operator looks at the state folder or the socket (exit code 1)
│   ├── AlreadyRunning   another daemon holds the socket or the folder
│   ├── NewerFormat      the operator starts the newer agentd that wrote the spool
│   └── SpoolDamaged     a row can't be trusted; it is set aside, never guessed at
└── SpoolFull        the client keeps the record and comes back
"""

from __future__ import annotations


class AgentdError(Exception):
    """agentd can't go on with this."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        """Take the message, or fall back on the class's own sentence."""
        super().__init__(message or (self.__doc__ or "").strip())


class ConfigError(AgentdError):
    """The configuration is wrong."""

    exit_code = 78


class UsageError(AgentdError):
    """The command or value is wrong."""

    exit_code = 2


class RecordError(AgentdError):
    """The record is not one of ours."""

    def __init__(self, message: str = "", *, raw: bytes = b"") -> None:
        """`raw` is the record as it was sent, where it is at hand."""
        super().__init__(message)
        self.raw = raw


class Forbidden(AgentdError):  # noqa: N818 - a verdict, as HTTP calls it
    """Whoever asks may not do this."""


class WireError(AgentdError):
    """The bytes are no message of ours."""

    def __init__(self, message: str = "", *, seq: int | None = None, fatal: bool = False, raw: bytes = b"") -> None:
        """`seq` is the envelope's, where it could be read; `fatal` means that the stream can't be trusted after it.

        `raw` is the one record that the message was, where it was one.
        """
        super().__init__(message)
        self.seq = seq
        self.fatal = fatal
        self.raw = raw


class StateError(AgentdError):
    """The state folder or the socket can't be used."""


class AlreadyRunning(StateError):  # noqa: N818 - a state that is found, named as the reader would say it
    """Another agentd is running here."""


class NewerFormat(StateError):  # noqa: N818 - as above
    """The spool is of a newer agentd."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the spool has format {found}, this agentd knows {known}: start the newer agentd that wrote it"
        )


class SpoolDamaged(StateError):  # noqa: N818 - as above
    """A row of the spool is damaged."""


class SpoolFull(AgentdError):  # noqa: N818 - as above
    """spool full"""  # noqa: D400, D415 - the promised words, read by clients
