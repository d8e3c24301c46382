"""The checks of how we reach the server and what it lets us do: rights, latency, clock, log."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from llmspell_dist.doctor import rights as needed
from llmspell_dist.doctor.facts import Facts, Finding, Severity
from llmspell_dist.quantities import spoken
from llmspell_dist.records import FORMAT

__all__ = ["clock", "commit", "holds", "latency", "log", "namespace", "protocol", "rights", "tls"]

OK, INFO, WARNING, PROBLEM = Severity.OK, Severity.INFO, Severity.WARNING, Severity.PROBLEM

SLOW_MS, TOO_SLOW_MS = 5.0, 50.0
"""Median round trips; a server on the same network answers well under one millisecond."""
SPIKE: Final = 20.0
"""The slowest may take this many medians (and more than `SLOW_MS`) before it is a warning."""
SKEW_S, TOO_MUCH_SKEW_S = 1.0, 60.0
LONG: Final = timedelta(days=7)
"""After which a hold should have moved, if the log's retention has no age."""
ARCHIVE: Final = "archive"
"""The hold of the archive."""
OVERDUE: Final = 1.2
"""A log longer than this many times its retention is one that nobody shortens."""
HOLD_WARNING, HOLD_PROBLEM = 0.5, 0.8
"""Shares of the cap at which entries kept for a hold are reported."""


def rights(facts: Facts) -> Finding:
    """Whether the user may do everything that the library does."""
    check, known = "rights", facts.rights
    if known is None or known.how == "none":
        return Finding(check, INFO, "rights could not be tested here")
    if not known.missing:
        how = "as ACL DRYRUN says" if known.how == "dryrun" else "tried out"
        return Finding(check, OK, f"user {known.user} has all rights that are needed, {how}")
    named = [f"{right.kind} {right.name} ({right.purpose})" for right in known.missing]
    found = f"user {known.user} lacks: {', '.join(named)}"
    advice = f"{needed.advice(known.user, known.missing)}"
    essential = any(right.essential for right in known.missing)
    return Finding(check, PROBLEM if essential else WARNING, found, advice)


def protocol(facts: Facts) -> Finding:
    """Whether the server speaks the protocol that was asked for."""
    if facts.protocol >= facts.protocol_asked:
        return Finding("protocol", OK, f"RESP{facts.protocol}")
    found = f"RESP{facts.protocol}, although RESP{facts.protocol_asked} was asked for"
    advice = "Everything works; a proxy or a missing right refuses HELLO."
    return Finding("protocol", INFO, found, advice)


def tls(facts: Facts) -> Finding:
    """Whether what travels over a network is encrypted."""
    if facts.scheme == "rediss":
        return Finding("tls", OK, "the connection is encrypted")
    if facts.loopback:
        return Finding("tls", OK, "not encrypted, and does not leave this machine")
    found = f"not encrypted on the way to {facts.address}: values and the password can be read"
    return Finding("tls", WARNING, found, "Use TLS: rediss:// instead of redis://.")


def latency(facts: Facts) -> Finding:
    """How long a round trip takes."""
    check, times = "latency", sorted(facts.round_trips_ms)
    if not times:
        return Finding(check, INFO, "no round trips were measured")
    median, worst = percentile(times, 0.5), times[-1]
    found = (
        f"round trip p50 {median:.2f} ms, p99 {percentile(times, 0.99):.2f} ms, "
        f"slowest {worst:.2f} ms"
    )
    if median >= TOO_SLOW_MS:
        advice = "Run close to the server: every single call waits for one round trip."
        return Finding(check, PROBLEM, found, advice)
    if median >= SLOW_MS:
        return Finding(check, WARNING, found, "Run close to the server, or batch calls.")
    if worst > max(SPIKE * median, 10 * SLOW_MS):
        advice = "Look for slow commands (SLOWLOG GET), swapping or a busy host."
        return Finding(check, WARNING, found, advice)
    return Finding(check, OK, found)


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` of an ordered list lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def clock(facts: Facts) -> Finding:
    """How far the clocks of this machine and the server are apart."""
    check, skew = "clock", facts.clock
    if skew is None:
        return Finding(check, INFO, "the server does not tell its time")
    ahead = "ahead of" if skew.offset_s >= 0 else "behind"
    sure = max(0.0, abs(skew.offset_s) - skew.uncertainty_s)
    found = f"the server is {abs(skew.offset_s):.3f} s {ahead} this machine"
    advice = (
        "Run NTP on both. Expiry and revisions follow the server's clock, so nothing breaks, but "
        "times that this machine compares with its own are wrong by that much."
    )
    if sure >= TOO_MUCH_SKEW_S:
        return Finding(check, PROBLEM, found, advice)
    if sure >= SKEW_S:
        return Finding(check, WARNING, found, advice)
    return Finding(check, OK, found)


def namespace(facts: Facts) -> Finding:
    """Whether the namespace is one that this release can work with."""
    found_format, shards = facts.settings
    name = f"namespace {facts.namespace}"
    if found_format is None:
        return Finding("namespace", OK, f"{name} does not exist yet")
    if found_format != FORMAT:
        advice = "Use the release that fits it, or another namespace."
        found = f"{name} has format {found_format}, this release has {FORMAT}"
        return Finding("namespace", PROBLEM, found, advice)
    return Finding("namespace", OK, f"{name}: format {found_format}, shards: {shards}")


def commit(facts: Facts) -> Finding:
    """Whether a whole commit works."""
    check, trial = "commit", facts.commit
    if trial is None or not trial.tried:
        said = "" if trial is None else f": {trial.said}"
        return Finding(check, INFO, f"no commit was tried{said}")
    if not trial.ok:
        advice = "See the other findings, rights and replication first."
        return Finding(check, PROBLEM, f"a commit failed: {trial.said}", advice)
    if trial.left_behind:
        found = f"a commit works; {trial.left_behind} of its keys could not be removed"
        advice = f"They expire in a minute; else remove the keys of {trial.namespace}."
        return Finding(check, WARNING, found, advice)
    return Finding(check, OK, "a commit in a scratch namespace works")


def log(facts: Facts) -> Finding:
    """Whether the log is kept as short as its retention says."""
    check, kept = "log", facts.retention
    if facts.logs is None:
        return Finding(check, INFO, "the log could not be read")
    longest = max(facts.logs, key=lambda stat: stat.entries, default=None)
    if longest is None or not longest.entries:
        return Finding(check, OK, "the log is empty")
    found = f"{longest.entries:,} entries in a shard's log; retention: {kept}"
    share = longest.entries / kept.cap_entries
    if longest.holds and share > HOLD_WARNING:
        who = min(longest.holds, key=lambda name: longest.holds[name])
        advice = f"Let {who} go on, or release it: at {kept.cap_entries:,} it breaks."
        severity = PROBLEM if share > HOLD_PROBLEM else WARNING
        return Finding(check, severity, f"{found}; hold {who} keeps them", advice)
    if not longest.holds and longest.entries > OVERDUE * kept.max_entries:
        advice = "Start a client with this retention: a running one shortens the log every second."
        return Finding(check, WARNING, f"{found}; nobody shortens it", advice)
    age_s = _age_s(facts)
    limit = kept.max_age
    if not longest.holds and limit is not None and age_s > OVERDUE * limit.total_seconds():
        advice = "Start a client with this retention: a running one shortens the log every second."
        return Finding(check, WARNING, f"{found}; the oldest is {spoken(age_s)} old", advice)
    return Finding(check, OK, found)


def _age_s(facts: Facts) -> float:
    """How old the oldest entry was when the newest came."""
    stats = [stat for stat in facts.logs or () if stat.floor and stat.last]
    return max(((s.last.ms - s.floor.ms) / 1000 for s in stats if s.last and s.floor), default=0.0)


def holds(facts: Facts) -> Finding:
    """Whether an archiver or snapshot lost entries that it still needed, or has ended unnoticed."""
    check, limit = "holds", facts.retention.max_age or LONG
    if facts.logs is None:
        return Finding(check, INFO, "the log could not be read")
    broken = sorted({name for stat in facts.logs for name in stat.broken})
    if broken:
        found = f"broken at the log's cap: {', '.join(broken)}; what they held is gone"
        advice = "Take a new base for what they archive, then hold again or release them."
        return Finding(check, PROBLEM, found, advice)
    still_s, longest = max(
        (
            ((stat.last.ms - at.ms) / 1000, name)
            for stat in facts.logs
            for name, at in stat.holds.items()
            if stat.last is not None
        ),
        default=(0.0, ""),
    )
    if still_s > OVERDUE * limit.total_seconds():
        found = f"hold {longest} has not moved for {spoken(still_s)}: the log grows"
        ends = "backup archive --forget" if longest == ARCHIVE else f"log.release({longest!r})"
        return Finding(check, WARNING, found, f"Let {longest} go on, or end it: {ends}.")
    held = sorted({name for stat in facts.logs for name in stat.holds})
    return Finding(check, OK, f"held by {', '.join(held)}" if held else "no holds")
