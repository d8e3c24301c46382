"""The list of checks, and those of the server itself: version, mode, disk, memory, replicas.

A check is a pure function of `Facts` that returns one `Finding`. Those of the connection and of the
namespace are in `checks_use`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from llmspell_dist.doctor import checks_use as use
from llmspell_dist.doctor.facts import Facts, Finding, Severity, whole

__all__ = ["CHECKS", "Check", "diagnose"]

Check = Callable[[Facts], Finding]
OK, INFO, WARNING, PROBLEM = Severity.OK, Severity.INFO, Severity.WARNING, Severity.PROBLEM

NEAR_FULL, FULL = 0.80, 0.95
"""Shares of maxmemory (or, without it, of the machine's memory)."""
LAG_BYTES, LAG_S = 10_000_000, 10
"""A replica that is further behind is one that a failover would lose acknowledged writes by."""


class Flaw(NamedTuple):
    """Releases that one should not run."""

    flavour: str
    first: tuple[int, ...]
    fixed: tuple[int, ...]
    """The first release of the line that is sound."""
    what: str


_LUA: Final = "a Lua script can take the server over (CVE-2025-49844)"
FLAWS: Final = (
    Flaw("redis", (6, 2), (6, 2, 20), _LUA),
    Flaw("redis", (7, 0), (7, 2, 11), _LUA),
    Flaw("redis", (7, 4), (7, 4, 6), _LUA),
    Flaw("redis", (8, 0), (8, 0, 4), _LUA),
    Flaw("redis", (8, 2), (8, 2, 2), _LUA),
    Flaw("valkey", (8, 0), (8, 0, 6), _LUA),
    Flaw("valkey", (8, 1), (8, 1, 4), _LUA),
)
OLDEST: Final = {"redis": (6, 2), "valkey": (8, 0)}


def version(facts: Facts) -> Finding:
    """Whether the release is one that the library works with and that is known to be sound."""
    check, name = "version", f"{facts.flavour.capitalize()} {facts.version}"
    if facts.scheme == "memory":
        return Finding(check, OK, "memory://, which behaves as Redis 7.0")
    numbers = tuple(int(part) for part in re.findall(r"\d+", facts.version)[:3])
    if not numbers:
        advice = "Allow INFO or HELLO, so that the version can be seen."
        return Finding(check, INFO, "the server does not tell its version", advice)
    oldest = OLDEST.get(facts.flavour, (0,))
    if numbers < oldest:
        wanted = ".".join(map(str, oldest))
        advice = f"Upgrade: {facts.flavour.capitalize()} {wanted} or later is needed."
        return Finding(check, PROBLEM, f"{name} is too old", advice)
    for flaw in FLAWS:
        if flaw.flavour == facts.flavour and flaw.first <= numbers < flaw.fixed:
            fixed = ".".join(map(str, flaw.fixed))
            advice = (
                f"Upgrade to {fixed} or later, or make sure that the distribution has patched it "
                "without changing the version."
            )
            return Finding(check, WARNING, f"{name}: {flaw.what}", advice)
    return Finding(check, OK, name)


def mode(facts: Facts) -> Finding:
    """Whether this is one server, not a cluster or a sentinel."""
    said = facts.info.get("redis_mode") or facts.info.get("server_mode") or "standalone"
    if facts.info.get("cluster_enabled") == "1" or said == "cluster":
        advice = "Use a server with cluster-enabled no; this release does not support clusters yet."
        return Finding("cluster", PROBLEM, "the server is a node of a cluster", advice)
    if said == "sentinel":
        advice = "Connect to the server that the sentinel watches."
        return Finding("cluster", PROBLEM, "this is a sentinel, which holds no data", advice)
    return Finding("cluster", OK, "not a cluster")


def persistence(facts: Facts) -> Finding:
    """Whether what was acknowledged survives a restart and a power loss."""
    check, aof = "persistence", facts.info.get("aof_enabled")
    if facts.scheme == "memory":
        return Finding(check, INFO, "memory:// keeps nothing", "For tests only.")
    if aof is None:
        advice = "Allow INFO, so that this can be checked."
        return Finding(check, INFO, "the server does not tell", advice)
    for field, what in (("aof_last_write_status", "AOF"), ("rdb_last_bgsave_status", "snapshot")):
        if facts.info.get(field, "ok") != "ok":
            advice = "Look into the server's log: the disk may be full or not writable."
            return Finding(check, PROBLEM, f"the last write of the {what} failed", advice)
    turn_on = "CONFIG SET appendonly yes, and appendonly yes in the server's configuration."
    if aof != "1":
        saves = facts.config.get("save")
        if saves == "":
            found = "neither AOF nor snapshots: a restart loses everything"
            return Finding(check, PROBLEM, found, turn_on)
        found = "no AOF: a restart loses what was written since the last snapshot"
        return Finding(check, WARNING, found, turn_on)
    fsync = facts.config.get("appendfsync")
    if fsync == "no":
        found = "AOF without fsync: a power loss loses some 30 seconds"
        return Finding(check, WARNING, found, "CONFIG SET appendfsync everysec (or always).")
    said = {
        "always": "AOF, on disk before the acknowledgement",
        "everysec": "AOF, on disk within a second",
        None: "AOF; how often it is synced is not told",
    }
    return Finding(check, OK, said.get(fsync, f"AOF, appendfsync {fsync}"))


def eviction(facts: Facts) -> Finding:
    """Whether the server throws state away when memory runs out."""
    check, policy = "eviction", facts.setting("maxmemory-policy")
    if policy is None:
        return Finding(check, INFO, "the server does not tell its maxmemory-policy")
    if policy == "noeviction":
        return Finding(check, OK, "noeviction: a full server refuses writes and keeps its data")
    advice = "CONFIG SET maxmemory-policy noeviction, and in the server's configuration."
    if policy.startswith("volatile"):
        found = f"{policy}: a full server drops operation ids, so a retry may be refused"
        return Finding(check, WARNING, found, advice)
    if whole(facts.setting("maxmemory")) == 0:
        found = f"{policy}: state will be thrown away as soon as a maxmemory is set"
        return Finding(check, WARNING, found, advice)
    return Finding(check, PROBLEM, f"{policy}: a full server throws state away", advice)


def memory(facts: Facts) -> Finding:
    """Whether there is a limit, and how near it is."""
    check, used, limit = "memory", facts.number("used_memory"), whole(facts.setting("maxmemory"))
    if used is None or limit is None:
        return Finding(check, INFO, "the server does not tell how much memory it uses")
    total = facts.number("total_system_memory")
    if limit:
        share, of = used / limit, f"maxmemory, {_megabytes(limit)}"
    elif total:
        share, of = used / total, f"the machine's {_megabytes(total)}, and no maxmemory is set"
    else:
        share, of = 0.0, "an unknown amount, and no maxmemory is set"
    found = f"{_megabytes(used)} used, {share:.0%} of {of}"
    if share >= FULL:
        return Finding(check, PROBLEM, found, "Free or add memory now: writes are refused soon.")
    if share >= NEAR_FULL:
        return Finding(check, WARNING, found, "Plan for more memory, or a shorter log retention.")
    if not limit:
        advice = "Set maxmemory below the machine's memory, so that the system never kills it."
        return Finding(check, INFO, found, advice)
    return Finding(check, OK, found)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


# --- replicas -------------------------------------------------------------------------------------


class Replica(NamedTuple):
    """One line of ``INFO replication``."""

    name: str
    online: bool
    behind: int | None
    """Bytes."""
    silent_s: int | None
    """Since it last acknowledged."""


def replicas(facts: Facts) -> Iterator[Replica]:
    """Yield the replicas that the server lists."""
    written = facts.number("master_repl_offset")
    for field, text in facts.info.items():
        if not re.fullmatch(r"slave\d+", field):
            continue
        said = dict(part.partition("=")[::2] for part in text.split(","))
        offset = whole(said.get("offset"))
        behind = None if offset is None or written is None else max(0, written - offset)
        name = f"{said.get('ip', '?')}:{said.get('port', '?')}"
        yield Replica(name, said.get("state") == "online", behind, whole(said.get("lag")))


def replication(facts: Facts) -> Finding:
    """Whether this is a master, and its replicas follow."""
    check = "replication"
    if facts.info.get("role") == "slave":
        master = f"{facts.info.get('master_host', '?')}:{facts.info.get('master_port', '?')}"
        link = facts.info.get("master_link_status", "unknown")
        found = f"this is a replica of {master} (link {link}); it takes no writes"
        return Finding(check, PROBLEM, found, f"Connect to the master, {master}.")
    listed = list(replicas(facts))
    if not listed:
        return Finding(check, OK, "a master without replicas")
    offline = [replica.name for replica in listed if not replica.online]
    if offline:
        advice = "Wait if it is being set up; else look into the replica's log."
        return Finding(check, WARNING, f"not in sync: {', '.join(offline)}", advice)
    slow = [
        f"{replica.name} by {replica.behind or 0:,} bytes, silent for {replica.silent_s or 0} s"
        for replica in listed
        if (replica.behind or 0) > LAG_BYTES or (replica.silent_s or 0) > LAG_S
    ]
    if slow:
        advice = "Check the network and the replica's load; a failover now would lose writes."
        return Finding(check, WARNING, f"behind: {'; '.join(slow)}", advice)
    return Finding(check, OK, f"a master; in sync: {', '.join(r.name for r in listed)}")


def min_replicas(facts: Facts) -> Finding:
    """Whether a master that is cut off from its replicas stops taking writes."""
    check = "min-replicas"
    if facts.info.get("role") == "slave" or not any(replicas(facts)):
        return Finding(check, OK, "does not apply: no replicas")
    wanted = facts.setting("min-replicas-to-write") or facts.setting("min-slaves-to-write")
    if wanted is None:
        return Finding(check, INFO, "the server does not tell min-replicas-to-write")
    if wanted == "0":
        found = "min-replicas-to-write is 0: a master that is cut off goes on taking writes, "
        advice = "CONFIG SET min-replicas-to-write 1 (and min-replicas-max-lag 10)."
        return Finding(check, WARNING, found + "which the failover then loses", advice)
    return Finding(check, OK, f"min-replicas-to-write {wanted}")


CHECKS: Final[dict[str, Check]] = {
    "version": version,
    "cluster": mode,
    "rights": use.rights,
    "protocol": use.protocol,
    "tls": use.tls,
    "latency": use.latency,
    "clock": use.clock,
    "persistence": persistence,
    "eviction": eviction,
    "memory": memory,
    "replication": replication,
    "min-replicas": min_replicas,
    "namespace": use.namespace,
    "commit": use.commit,
    "log": use.log,
    "holds": use.holds,
}
"""Every check by its id, in the order in which they are shown."""


def diagnose(facts: Facts, *, ignore: Iterable[str] = ()) -> list[Finding]:
    """Return what every check finds, without those that are to be ignored."""
    left_out = frozenset(ignore)
    return [check(facts) for name, check in CHECKS.items() if name not in left_out]
