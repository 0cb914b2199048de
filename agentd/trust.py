"""Whom we believe to be a platform, and as whom we go there: TLS 1.2 or newer, always verified, and what was wrong in words.

Without `ca_file` the system's issuers count, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR` (OpenSSL reads these itself). With it
those in the file alone. There is no way to switch verification off: a key must not be shown to whoever answers.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from msgspec import Struct

from agentd.errors import ConfigError

# OpenSSL's X509_V_ERR_* (x509_vfy.h) → what they mean for whoever runs agentd
_EXPIRED, _NOT_YET = {10}, {9}
_UNKNOWN = {2, 18, 19, 20, 21, 27}
_NAME = {62, 64}
_REVOKED = {23}
# What a server says of our own certificate (RFC 8446 §6.2). In TLS 1.3 it may say so after the request has left, and has then
# ended no handshake: whatever came behind it was not read.
_REFUSED_OURS = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    }
)  # fmt: skip
_HANDSHAKE = frozenset({"SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_ACCESS_DENIED"})
_VERSION = frozenset(
    {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "WRONG_SSL_VERSION", "NO_PROTOCOLS_AVAILABLE"}
)
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})


class Trust(Struct, frozen=True):
    """Files, as they are configured; what is in them is read when a context is made."""

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None  # None: it stands in the same file

    def context(self) -> ssl.SSLContext:
        """A new context from the files as they are now. Raises ConfigError that names the file."""
        context = ssl.create_default_context(cafile=self._issuers())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert is not None:
            self._present(context)
        return context

    def _issuers(self) -> str | None:
        if self.ca_file is None:
            return None
        try:
            text = Path(self.ca_file).read_bytes()
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=self.ca_file)
        except OSError as error:  # SSLError is one
            why = "holds no certificate that can be read" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"ca_file: {self.ca_file}: {why}") from None
        if b"PRIVATE KEY-----" in text:
            raise ConfigError(f"ca_file: {self.ca_file}: holds a private key; certificates alone are needed")
        return self.ca_file

    def _present(self, context: ssl.SSLContext) -> None:
        assert self.client_cert is not None  # noqa: S101 - the caller looked
        for key, path in (("client_cert", self.client_cert), ("client_key", self.client_key)):
            if path is not None and (why := _unusable(path)):
                raise ConfigError(f"{key}: {path}: {why}")
        try:
            # without a password OpenSSL would ask for one on the terminal
            context.load_cert_chain(self.client_cert, self.client_key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"client_cert: {self.client_cert}: {_why_not(error)}") from None


def _unusable(path: str) -> str:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__
    if b"ENCRYPTED" in text:  # PKCS #8's head line, and the old form's Proc-Type
        return "its key is encrypted; agentd takes one without a password, in a file of mode 0600"
    return ""


def _why_not(error: ssl.SSLError | ValueError) -> str:
    if "MISMATCH" in _reason(error):
        return "its key is another one's"
    return "holds no certificate with its key in PEM; a key in another file is said by client_key"


def describe(error: BaseException) -> str | None:
    """What is wrong with a TLS connection; None for what is no error of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error)
    if not isinstance(error, ssl.SSLError):
        return None
    reason = _reason(error)
    if reason in _REFUSED_OURS:
        said = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"it refuses our client certificate ({said}): see client_cert"
    if reason in _HANDSHAKE:
        return "it refuses the TLS handshake: does it want a client certificate (client_cert)?"
    if reason in _VERSION:
        return "it speaks no TLS 1.2 or newer"
    if reason in _NO_TLS:
        return "it speaks no TLS"
    return f"TLS failed ({reason.replace('_', ' ').lower() or type(error).__name__})"


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code in _EXPIRED:
        return "its certificate has expired"
    if code in _NOT_YET:
        return "its certificate is not valid yet: is this host's clock right?"
    if code in _NAME:
        return "its certificate is for another name: is base_url right?"
    if code in _UNKNOWN:
        return "its certificate is from an unknown issuer: a private CA is named by ca_file"
    if code in _REVOKED:
        return "its certificate has been revoked"
    return f"its certificate does not verify ({error.verify_message})"


def refuses_ours(error: BaseException) -> bool:
    """Whether a server turned our own certificate away: it has read nothing then."""
    return any(isinstance(one, ssl.SSLError) and _reason(one) in _REFUSED_OURS for one in _causes(error))


def _reason(error: BaseException) -> str:
    """OpenSSL's name of it; not every SSLError has one."""
    return (getattr(error, "reason", None) or "").upper()


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """The error of TLS behind an error, if one is."""
    for one in _causes(error):
        inner = getattr(one, "certificate_error", None) or getattr(one, "os_error", None)
        for candidate in (inner, one):
            if isinstance(candidate, ssl.SSLError):
                return candidate
    return None
