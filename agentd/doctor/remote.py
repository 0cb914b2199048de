"""Judging the way to a platform: proxy, name, connection, TLS, clock, key. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from agentd.doctor.facts import Hop
from agentd.doctor.findings import Finding, fail, ok, warn

CERTIFICATE_SOON_DAYS = 14.0
CLOCK_OFF_S, CLOCK_WRONG_S = 30.0, 300.0
_UNPAID, _TOO_MANY = 402, 429


def way(hop: Hop) -> Iterator[Finding]:
    """One destination, as far as its way was gone."""
    check = hop.name
    through = f" through the proxy {hop.proxy} ({hop.proxy_source})" if hop.proxy else ""
    place = f"{hop.host}:{hop.port}"
    if hop.unreadable:
        yield fail(check, f"can't be asked: {hop.unreadable}", "its key or its way out is not as the configuration says", "agentd check says all that is wrong; write the key where it says")  # fmt: skip
        return
    if (broken := _unreached(hop, place, through)) is not None:
        yield broken
        return
    if hop.certificate_days is not None and hop.certificate_days < CERTIFICATE_SOON_DAYS:
        yield warn(check, f"the certificate of {place} ends in {hop.certificate_days:.0f} days", f"it was issued by {hop.issuer or 'somebody'} and not renewed yet", "if the platform is yours, renew it; else watch it")  # fmt: skip
    if hop.lost:
        yield fail(check, f"{hop.base_url} does not answer{through}", hop.lost, "is the platform up? its status page; everything is kept meanwhile")  # fmt: skip
    elif hop.key_found:
        yield _key(hop, through)
    else:
        yield ok(check, f"{place} is reached{through}")


def _unreached(hop: Hop, place: str, through: str) -> Finding | None:
    check = hop.name
    if hop.dns_error:
        return fail(check, f"the name {hop.host} is not found", hop.dns_error, f"is it spelt right in base_url? getent hosts {hop.host}; /etc/resolv.conf; a host without DNS needs a proxy ([outbound] proxy)")  # fmt: skip
    if hop.tcp_error:
        at = f"the proxy {hop.proxy}" if hop.proxy else place
        cure = (
            f"is the proxy right? it comes from {hop.proxy_source}"
            if hop.proxy
            else "is the platform up, is its port open in the firewall, is a proxy needed (HTTPS_PROXY, [outbound] proxy)?"
        )
        return fail(check, f"no connection to {at}", hop.tcp_error, cure)
    if hop.tls_error:
        return fail(check, f"no trust in {place}{through}", hop.tls_error, _tls_cure(hop.tls_error))
    return None


def _tls_cure(error: str) -> str:
    if "unknown issuer" in error:
        return 'a private CA, or a proxy that reads along: ca_file = "/path" in the destination or [outbound]; update-ca-certificates if it is a public one'
    if "expired" in error or "not valid yet" in error:
        return "compare this host's clock (date -u); if it is right, the platform has to renew its certificate"
    if "another name" in error:
        return "base_url names the host as its certificate does"
    if "client certificate" in error:
        return "set client_cert and client_key of the destination"
    if "no TLS" in error:
        return "is the port right? http:// is for this host alone"
    return f"openssl s_client shows what it offers: {error}"


def _key(hop: Hop, through: str) -> Finding:
    check = hop.name
    if hop.status == _UNPAID:
        return fail(check, f"the quota is used up or unpaid{through}", hop.key_said, "the platform's billing page; everything is kept and goes out once it is paid or a new month begins")  # fmt: skip
    if hop.key_found == "taken":
        return ok(check, f"{hop.base_url} takes the key{through}")
    if hop.key_found == "refused":
        return fail(check, "the platform refuses the key", hop.key_said, "put the right one where api_key says and reload (systemctl reload agentd); nothing that waits is lost")  # fmt: skip
    if hop.key_found == "away":
        if hop.status == _TOO_MANY:
            return warn(check, "the platform is asked too often", hop.key_said, "lower rate_limit or max_in_flight of the destination; agentd goes slower by itself")  # fmt: skip
        return warn(check, "the platform is there and has no answer now", hop.key_said, "its status page; agentd tries again by itself")  # fmt: skip
    return warn(check, "something else than the platform answers", hop.key_said, "is base_url right? a captive portal or a proxy may be in between")  # fmt: skip


def clock(hops: Iterable[Hop]) -> Iterator[Finding]:
    """Ours against theirs: most of several can't be wrong together."""
    ahead = [hop.clock_ahead_s for hop in hops if hop.clock_ahead_s is not None]
    if not ahead:
        return
    off = median(ahead)
    what = f"this host's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the platforms'"
    cure = "timedatectl status; systemctl enable --now systemd-timesyncd, or chrony"
    if abs(off) >= CLOCK_WRONG_S:
        yield fail(
            "clock", what, "times of records are wrong by so much, signatures and certificates may be refused", cure
        )
    elif abs(off) >= CLOCK_OFF_S:
        yield warn("clock", what, "times of records are wrong by so much", cure)
    else:
        yield ok("clock", f"agrees with the platforms' within {max(abs(off), 1):.0f} s")
