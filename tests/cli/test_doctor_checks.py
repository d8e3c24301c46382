"""The doctor's checks, each as a pure function of facts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llmspell_dist.doctor import CHECKS, Facts, Severity, diagnose
from llmspell_dist.doctor.facts import ClockOffset, CommitTrial, MissingRight, Rights
from llmspell_dist.log import LogStat
from llmspell_dist.retention import Retention
from llmspell_dist.revision import Revision

pytestmark = pytest.mark.unit

OK, INFO, WARNING, PROBLEM = Severity.OK, Severity.INFO, Severity.WARNING, Severity.PROBLEM
DAY_MS = 86_400_000

SOUND: dict[str, Any] = {
    "flavour": "valkey",
    "version": "9.1.2",
    "info": {
        "redis_mode": "standalone",
        "role": "master",
        "aof_enabled": "1",
        "used_memory": "1000000",
        "maxmemory": "100000000",
        "maxmemory_policy": "noeviction",
    },
    "config": {"appendfsync": "everysec", "save": "", "min-replicas-to-write": "0"},
    "rights": Rights("default", "dryrun"),
    "round_trips_ms": (0.1,) * 50,
    "clock": ClockOffset(0.001, 0.0001),
    "commit": CommitTrial(ok=True),
    "logs": (LogStat("0", 10, Revision(1000, 0), Revision(2000, 0), {}, {}),),
    "settings": (1, 1),
}


def facts(*, info: dict[str, str] | None = None, **changed: Any) -> Facts:
    """Facts about a sound server, with some changed."""
    given = SOUND | {"info": SOUND["info"] | (info or {})} | changed
    return Facts(**given)


def severity(check: str, known: Facts) -> Severity:
    """What one check says; whatever it is, a problem or warning comes with advice."""
    finding = CHECKS[check](known)
    assert finding.check == check
    assert finding.found
    if finding.severity.rank >= WARNING.rank:
        assert finding.advice
    return finding.severity


def test_a_sound_server_has_no_findings() -> None:
    """Every check is content."""
    assert {finding.severity for finding in diagnose(facts())} == {OK}


def test_nothing_known_is_never_a_problem() -> None:
    """A user without INFO and CONFIG gets information, not alarms."""
    assert all(finding.severity in {OK, INFO} for finding in diagnose(Facts()))


def test_checks_can_be_left_out() -> None:
    """By their ids."""
    found = {finding.check for finding in diagnose(facts(), ignore=["tls", "clock"])}
    assert found == CHECKS.keys() - {"tls", "clock"}


@pytest.mark.parametrize(
    ("flavour", "version", "expected"),
    [
        ("redis", "6.0.16", PROBLEM),
        ("redis", "5.0.7", PROBLEM),
        ("valkey", "7.2.8", PROBLEM),
        ("redis", "6.2.14", WARNING),
        ("redis", "6.2.20", OK),
        ("redis", "7.0.15", WARNING),
        ("redis", "7.2.11", OK),
        ("redis", "8.2.2", OK),
        ("valkey", "8.0.5", WARNING),
        ("valkey", "8.1.4", OK),
        ("redis", "unknown", INFO),
    ],
)
def test_versions_too_old_or_known_bad_are_reported(
    flavour: str, version: str, expected: Severity
) -> None:
    """Redis from 6.2, Valkey from 8, without the known holes."""
    assert severity("version", facts(flavour=flavour, version=version)) is expected


@pytest.mark.parametrize(
    ("info", "config", "expected"),
    [
        ({"aof_enabled": "1"}, {"appendfsync": "always"}, OK),
        ({"aof_enabled": "1"}, {"appendfsync": "everysec"}, OK),
        ({"aof_enabled": "1"}, {}, OK),
        ({"aof_enabled": "1"}, {"appendfsync": "no"}, WARNING),
        ({"aof_enabled": "0"}, {"save": "3600 1"}, WARNING),
        ({"aof_enabled": "0"}, {}, WARNING),
        ({"aof_enabled": "0"}, {"save": ""}, PROBLEM),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, {}, PROBLEM),
        ({"aof_enabled": "1", "rdb_last_bgsave_status": "err"}, {}, PROBLEM),
    ],
)
def test_persistence_is_judged_by_what_a_restart_loses(
    info: dict[str, str], config: dict[str, str], expected: Severity
) -> None:
    """From nothing at all to everything."""
    assert severity("persistence", facts(info=info, config=config)) is expected


@pytest.mark.parametrize(
    ("policy", "limit", "expected"),
    [
        ("noeviction", "0", OK),
        ("allkeys-lru", "100", PROBLEM),
        ("allkeys-random", "0", WARNING),
        ("volatile-ttl", "100", WARNING),
    ],
)
def test_an_evicting_policy_is_reported(policy: str, limit: str, expected: Severity) -> None:
    """It is state, not a cache."""
    known = facts(info={"maxmemory_policy": policy, "maxmemory": limit})
    assert severity("eviction", known) is expected


@pytest.mark.parametrize(
    ("used", "limit", "total", "expected"),
    [
        (10, 100, 1000, OK),
        (80, 100, 1000, WARNING),
        (96, 100, 1000, PROBLEM),
        (10, 0, 1000, INFO),
        (850, 0, 1000, WARNING),
        (10, 0, 0, INFO),
    ],
)
def test_memory_is_judged_against_its_limit_or_the_machine(
    used: int, limit: int, total: int, expected: Severity
) -> None:
    """Before writes are refused or the system kills the server."""
    numbers = {"used_memory": used, "maxmemory": limit, "total_system_memory": total}
    info = {name: str(number) for name, number in numbers.items()}
    assert severity("memory", facts(info=info)) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ip=10.0.0.2,port=6379,state=online,offset=1000,lag=0", OK),
        ("ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0", WARNING),
        ("ip=10.0.0.2,port=6379,state=online,offset=1000,lag=60", WARNING),
        ("ip=10.0.0.2,port=6379,state=online,offset=-20000000,lag=0", WARNING),
    ],
)
def test_replicas_out_of_sync_are_reported(line: str, expected: Severity) -> None:
    """Not connected, silent, or far behind."""
    known = facts(info={"master_repl_offset": "1000", "slave0": line})
    assert severity("replication", known) is expected


def test_a_replica_is_the_wrong_server() -> None:
    """And the advice names the right one."""
    info = {"role": "slave", "master_host": "10.0.0.1", "master_port": "6379"}
    known = facts(info=info)
    assert severity("replication", known) is PROBLEM
    assert "10.0.0.1:6379" in CHECKS["replication"](known).advice
    assert severity("min-replicas", known) is OK


def test_a_master_with_replicas_should_stop_when_it_is_cut_off() -> None:
    """min-replicas-to-write 0 lets it go on; without replicas it does not matter."""
    replica = {"slave0": "ip=10.0.0.2,port=6379,state=online,offset=0,lag=0"}
    assert severity("min-replicas", facts()) is OK
    assert severity("min-replicas", facts(info=replica)) is WARNING
    config = {"min-replicas-to-write": "1"}
    assert severity("min-replicas", facts(info=replica, config=config)) is OK


def test_clusters_and_sentinels_are_not_servers_for_us_yet() -> None:
    """Both are reported as what they are."""
    assert severity("cluster", facts(info={"cluster_enabled": "1"})) is PROBLEM
    assert severity("cluster", facts(info={"redis_mode": "cluster"})) is PROBLEM
    assert severity("cluster", facts(info={"redis_mode": "sentinel"})) is PROBLEM


def test_missing_rights_matter_by_what_they_are_needed_for() -> None:
    """Without XADD nothing works; without CLIENT ID almost everything does."""
    needed = MissingRight("command", "xadd", "commits", essential=True)
    handy = MissingRight("command", "client|id", "connecting", essential=False)
    assert severity("rights", facts(rights=Rights("bob", "probe", (needed, handy)))) is PROBLEM
    assert severity("rights", facts(rights=Rights("bob", "probe", (handy,)))) is WARNING
    assert severity("rights", facts(rights=Rights("bob", "none"))) is INFO


def test_an_older_protocol_is_only_information() -> None:
    """RESP2 does everything."""
    assert severity("protocol", facts(protocol=2)) is INFO
    assert severity("protocol", facts(protocol=2, protocol_asked=2)) is OK


def test_plain_text_over_a_network_is_a_warning() -> None:
    """On this machine it is not."""
    assert severity("tls", facts(scheme="redis", loopback=False)) is WARNING
    assert severity("tls", facts(scheme="redis", loopback=True)) is OK
    assert severity("tls", facts(scheme="rediss", loopback=False)) is OK


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0.1,) * 50, OK),
        ((0.1,) * 49 + (5.0,), OK),
        ((0.1,) * 49 + (80.0,), WARNING),
        ((8.0,) * 50, WARNING),
        ((80.0,) * 50, PROBLEM),
        ((), INFO),
    ],
)
def test_slow_round_trips_are_reported(times: tuple[float, ...], expected: Severity) -> None:
    """By the median, and by single ones that stand out."""
    assert severity("latency", facts(round_trips_ms=times)) is expected


@pytest.mark.parametrize(
    ("offset", "uncertainty", "expected"),
    [(0.2, 0.001, OK), (-3.0, 0.001, WARNING), (90.0, 0.1, PROBLEM), (1.5, 1.0, OK)],
)
def test_clock_skew_counts_only_as_far_as_it_is_certain(
    offset: float, uncertainty: float, expected: Severity
) -> None:
    """A slow round trip says little."""
    assert severity("clock", facts(clock=ClockOffset(offset, uncertainty))) is expected


def test_a_namespace_of_another_format_is_a_problem() -> None:
    """A new one is not."""
    assert severity("namespace", facts(settings=(99, 1))) is PROBLEM
    assert severity("namespace", facts(settings=(None, None))) is OK


def test_a_failed_commit_is_a_problem_and_one_that_was_not_tried_is_not() -> None:
    """What it left behind is a warning."""
    assert severity("commit", facts(commit=CommitTrial(ok=False, said="NOPERM"))) is PROBLEM
    assert severity("commit", facts(commit=CommitTrial(ok=False, tried=False))) is INFO
    assert severity("commit", facts(commit=CommitTrial(ok=True, left_behind=2))) is WARNING


RETENTION = Retention(max_age=timedelta(days=1), max_entries=1000, cap_entries=10_000)


@pytest.mark.parametrize(
    ("entries", "age_ms", "held", "expected"),
    [
        (0, 0, False, OK),
        (1000, DAY_MS, False, OK),
        (1500, DAY_MS, False, WARNING),
        (10, 2 * DAY_MS, False, WARNING),
        (4000, 9 * DAY_MS, True, OK),
        (6000, DAY_MS, True, WARNING),
        (9000, DAY_MS, True, PROBLEM),
    ],
)
def test_the_log_is_judged_by_its_retention_and_holds(
    entries: int, age_ms: int, held: bool, expected: Severity
) -> None:
    """A hold may keep more, up to the cap."""
    first, last = Revision(DAY_MS, 0), Revision(DAY_MS + age_ms, 0)
    holds = {"archiver": first} if held else {}
    stat = LogStat("0", entries, first, last, holds, {})
    assert severity("log", facts(logs=(stat,), retention=RETENTION)) is expected


def test_a_broken_hold_is_a_problem_that_is_named() -> None:
    """Its archive has a gap."""
    stat = LogStat("0", 10, None, None, {}, {"archiver": Revision(1, 0)})
    known = facts(logs=(stat,))
    assert severity("holds", known) is PROBLEM
    assert "archiver" in CHECKS["holds"](known).found


@pytest.mark.parametrize(("behind_ms", "expected"), [(0, OK), (DAY_MS, OK), (2 * DAY_MS, WARNING)])
def test_a_hold_that_nobody_moves_is_reported(behind_ms: int, expected: Severity) -> None:
    """It keeps more than the retention would: of an archive that has ended, say."""
    last = Revision(9 * DAY_MS, 0)
    stat = LogStat("0", 10, last, last, {"archive": Revision(last.ms - behind_ms, 0)}, {})
    known = facts(logs=(stat,), retention=RETENTION)
    assert severity("holds", known) is expected
    if expected is WARNING:
        finding = CHECKS["holds"](known)
        assert "hold archive has not moved for 2d" in finding.found
        assert "backup archive --forget" in finding.advice
