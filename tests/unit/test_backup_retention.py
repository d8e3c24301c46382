"""Rules and plans of retention, by example; the faults of the system that this one follows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmspell_dist.backup.retention import (
    AllOf,
    AnyOf,
    BackupType,
    Everything,
    Importance,
    ImportanceAtLeast,
    KeepLast,
    KeepPerPeriod,
    KeepYounger,
    Period,
    PrunePlan,
    RetentionPolicy,
    Rule,
    StoredBackup,
    StoredSegment,
    Tagged,
    plan_prune,
)
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision, to_ms

pytestmark = [pytest.mark.unit, pytest.mark.backup]

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
INCREMENTAL, DIFFERENTIAL = BackupType.INCREMENTAL, BackupType.DIFFERENTIAL


def made(backup_id: str, ago: timedelta, parent: str | None = None, **more: Any) -> StoredBackup:
    """Return a backup of some time ago; one with a parent is incremental."""
    kind = more.pop("type", BackupType.FULL if parent is None else INCREMENTAL)
    at = Revision(to_ms(NOW - ago), 0)
    more.setdefault("positions", {"0": at, "1": at})
    return StoredBackup(backup_id, NOW - ago, kind, parent, **more)


def daily(count: int, **more: Any) -> list[StoredBackup]:
    """Return full backups of the last days: ``d0`` is today's."""
    return [made(f"d{n}", n * DAY, **more) for n in range(count)]


def planned(
    policy: RetentionPolicy | str | Rule,
    backups: Iterable[StoredBackup],
    segments: Iterable[StoredSegment] = (),
) -> PrunePlan:
    """Return the plan of a policy."""
    if isinstance(policy, str):
        policy = RetentionPolicy.parse(policy)
    elif not isinstance(policy, RetentionPolicy):
        policy = RetentionPolicy(policy)
    return plan_prune(policy, backups, segments, now=NOW)


def staying(*args: Any) -> set[str]:
    """Return the ids of what stays."""
    return {backup.id for backup in planned(*args).stays}


def why(plan: PrunePlan, backup_id: str) -> str:
    """Return the reason of a decision."""
    return next(one.because for one in plan.decisions if one.backup.id == backup_id)


# --- rules


def test_the_last_n_stay() -> None:
    """The newest, whatever the order in which they come."""
    assert staying(KeepLast(3), reversed(daily(10))) == {"d0", "d1", "d2"}


def test_of_the_same_moment_the_greater_id_is_newer() -> None:
    """So that two processes decide the same."""
    same = [made(name, DAY) for name in ("b", "c", "a")]
    assert staying(KeepLast(1), same) == {"c"}
    assert staying(KeepPerPeriod(Period.DAILY, 1), same) == {"c"}


def test_younger_than_an_age_stay() -> None:
    """Exactly that age is no longer younger."""
    assert staying(KeepYounger(2 * DAY), daily(5)) == {"d0", "d1"}


def test_the_newest_of_each_period_stays() -> None:
    """Periods without a backup do not count."""
    hours = [made(f"h{n:03}", n * HOUR) for n in range(0, 24 * 40, 5)]
    plan = planned(KeepPerPeriod(Period.DAILY, 3), hours)
    assert [one.time.date().isoformat() for one in plan.stays] == [
        "2026-11-26",
        "2026-11-25",
        "2026-11-24",
    ]
    assert why(plan, "h015") == "the newest of 2026-11-25"
    gap = [made("a", DAY), made("b", 100 * DAY), made("c", 200 * DAY)]
    assert staying(KeepPerPeriod(Period.DAILY, 3), gap) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("period", "later", "earlier"),
    [
        (Period.HOURLY, "2026-11-26T10:00", "2026-11-26T09:59"),
        (Period.DAILY, "2026-11-26T00:00", "2026-11-25T23:59"),
        (Period.WEEKLY, "2026-11-23T00:00", "2026-11-22T23:59"),
        (Period.MONTHLY, "2026-11-01T00:00", "2026-10-31T23:59"),
        (Period.YEARLY, "2026-01-01T00:00", "2025-12-31T23:59"),
    ],
)
def test_periods_begin_in_utc(period: Period, later: str, earlier: str) -> None:
    """Also for moments that are given in another time zone; weeks begin on Monday."""
    moments = [datetime.fromisoformat(text + "+00:00") for text in (later, earlier)]
    backups = [
        StoredBackup(str(n), moment.astimezone(None)) for n, moment in enumerate(moments)
    ] + [StoredBackup("older", moments[1] - timedelta(minutes=1))]
    assert staying(KeepPerPeriod(period, 2), backups) == {"0", "1"}


def test_the_last_days_of_a_year_belong_to_the_week_that_they_lie_in() -> None:
    """2024-12-30 is in week 1 of 2025."""
    backups = [
        StoredBackup("new", datetime(2025, 1, 2, tzinfo=UTC)),
        StoredBackup("old", datetime(2024, 12, 30, tzinfo=UTC)),
        StoredBackup("older", datetime(2024, 12, 29, tzinfo=UTC)),
    ]
    plan = planned(KeepPerPeriod(Period.WEEKLY, 2), backups)
    assert {one.id for one in plan.stays} == {"new", "older"}
    assert "the newest of 2025-W01" in why(plan, "new")


def test_importance_and_above_stays() -> None:
    """Low, standard, important, critical, in this order."""
    backups = [made(str(one), (9 - one) * DAY, importance=one) for one in Importance]
    assert staying(ImportanceAtLeast(Importance.IMPORTANT), backups) == {"important", "critical"}
    assert Importance.LOW < Importance.STANDARD < Importance.IMPORTANT < Importance.CRITICAL
    assert Importance.coerce("Critical") is Importance.CRITICAL
    with pytest.raises(InvalidArgumentError, match="low, standard, important, critical"):
        Importance.coerce("urgent")


def test_one_of_the_tags_is_enough() -> None:
    """And all of them are asked for by AllOf."""
    backups = [
        made("now", HOUR),
        made("both", DAY, tags=frozenset({"release", "audit"})),
        made("one", 2 * DAY, tags=frozenset({"audit"})),
        made("none", 3 * DAY),
    ]
    either = Tagged(frozenset({"release", "audit"}))
    assert staying(either, backups) == {"now", "both", "one"}
    both = AllOf(Tagged(frozenset({"release"})), Tagged(frozenset({"audit"})))
    assert staying(both, backups) == {"now", "both"}


# --- what stays in any case


def test_the_parents_of_what_stays_stay() -> None:
    """The original's retention removed them, and what was left could not be restored."""
    chain = [
        made("full", 9 * DAY),
        made("i1", 8 * DAY, "full"),
        made("i2", 7 * DAY, "i1"),
        made("i3", HOUR, "i2"),
        made("other", 8 * DAY),
    ]
    plan = planned(KeepLast(1), chain)
    assert {one.id for one in plan.stays} == {"full", "i1", "i2", "i3", "other"}
    assert why(plan, "i2") == "i3 goes on from it"
    assert why(plan, "other") == "the last full one"


def test_a_differential_needs_its_full_backup_only() -> None:
    """Others of the same full one may go."""
    backups = [
        made("full", 9 * DAY),
        made("a", 8 * DAY, "full", type=DIFFERENTIAL),
        made("b", 7 * DAY, "full", type=DIFFERENTIAL),
    ]
    plan = planned(KeepLast(1), backups)
    assert {one.id for one in plan.stays} == {"full", "b"}


def test_the_last_full_backup_stays() -> None:
    """Even if no rule keeps it."""
    plan = planned(KeepYounger(HOUR), [made("old", 100 * DAY), made("older", 200 * DAY)])
    assert {one.id for one in plan.stays} == {"old"}
    assert "the last full one" in why(plan, "old")


def test_the_minimum_stays() -> None:
    """Backups that are older than all rules allow, if there are no younger ones."""
    old = [made(f"d{n}", (100 + n) * DAY) for n in range(5)]
    assert staying("younger=1d min=3", old) == {"d0", "d1", "d2"}


def test_pinned_and_locked_backups_stay() -> None:
    """A lock that has passed holds nothing."""
    backups = [
        *daily(2),
        made("pin", 50 * DAY, pinned=True),
        made("locked", 51 * DAY, locked_until=NOW + DAY),
        made("free", 52 * DAY, locked_until=NOW),
    ]
    plan = planned(KeepLast(1), backups)
    assert {one.id for one in plan.stays} == {"d0", "pin", "locked"}
    assert why(plan, "locked") == "locked until 2026-11-27 12:00 UTC"


def test_a_backup_without_its_parent_is_left_alone_and_takes_no_place() -> None:
    """It cannot be restored, so it must not push out one that can."""
    backups = [made("broken", HOUR, "gone"), made("also", HOUR / 2, "broken"), *daily(3)[1:]]
    plan = planned(KeepLast(1), backups)
    assert {one.id for one in plan.stays} == {"broken", "also", "d1"}
    assert "gone is missing" in why(plan, "also")


def test_parents_in_a_circle_are_no_chain() -> None:
    """A damaged manifest must not hang anything."""
    backups = [made("a", HOUR, "b"), made("b", DAY, "a"), made("c", DAY, "c"), made("d", DAY)]
    assert staying(KeepLast(1), backups) == {"a", "b", "c", "d"}


def test_each_series_is_judged_alone() -> None:
    """A backup of one scope never takes the place of one of everything."""
    some = [made(f"s{n}", n * HOUR, series="scopes=user:1") for n in range(3)]
    assert staying(KeepLast(2), [*daily(3), *some]) == {"d0", "d1", "s0", "s1"}


# --- limits


def test_the_maximum_holds_whatever_their_age() -> None:
    """The original kept more than its maximum for thirty days, as one rule of two was enough."""
    many = [made(f"h{n}", n * HOUR) for n in range(40)]
    assert len(staying("younger=30d max-count=10", many)) == 10
    assert len(staying(AllOf(KeepLast(10), KeepYounger(30 * DAY)), many)) == 10
    assert len(staying(AnyOf(KeepLast(10), KeepYounger(30 * DAY)), many)) == 40


def test_the_size_holds_and_the_oldest_of_the_least_important_go_first() -> None:
    """An old important one outlives younger ones."""
    backups = [*daily(6, size=100), made("key", 90 * DAY, size=100, importance=Importance.CRITICAL)]
    plan = planned("max-size=300B", backups)
    assert {one.id for one in plan.stays} == {"d0", "d1", "key"}
    assert why(plan, "d2") == "everything is kept, but 300B are the most"
    assert plan.freed == 400


def test_parents_count_in_the_size() -> None:
    """Else a limit that is kept on paper is not kept on disk."""
    backups = [
        made("new", HOUR, size=100),
        made("full", 9 * DAY, size=500),
        made("inc", DAY, "full", size=10),
    ]
    assert staying("max-size=300B", backups) == {"new"}
    assert staying("max-size=610B", backups) == {"new", "full", "inc"}


def test_what_backups_share_counts_once() -> None:
    """Objects that have not changed are not stored twice, so they are not counted twice."""
    backups = [made(f"d{n}", n * DAY, objects={"same": 100, str(n): 10}) for n in range(5)]
    plan = planned("max-size=130B", backups)
    assert {one.id for one in plan.stays} == {"d0", "d1", "d2"}
    assert plan.freed == 20


def test_the_archive_counts_in_the_size() -> None:
    """As far back as the backups that stay need it."""
    log = [segment(n * DAY, (n - 1) * DAY, size=100) for n in range(10, 0, -1)]
    assert staying("max-size=450B", daily(10, size=50), log) == {"d0", "d1", "d2"}
    assert staying("max-size=450B pitr=1d", daily(10, size=50), log) == {f"d{n}" for n in range(7)}


def test_the_minimum_is_stronger_than_the_limits() -> None:
    """Never below it."""
    assert staying("min=3 max-size=1B", daily(6, size=100)) == {"d0", "d1", "d2"}


# --- the archive


def segment(since: timedelta, until: timedelta, **more: Any) -> StoredSegment:
    """Return a segment of the log from one moment to just before another."""
    first, last = to_ms(NOW - since), to_ms(NOW - until) - 1
    return StoredSegment("00000000", "0", Revision(first, 0), Revision(last, 7), **more)


def test_the_log_goes_up_to_the_oldest_backup_that_stays() -> None:
    """And nothing newer, as each one that stays can be rolled forward with it."""
    log = [segment(n * DAY, (n - 1) * DAY, name=str(n)) for n in range(10, 0, -1)]
    plan = planned(KeepLast(3), daily(8), log)
    assert [one.name for one in plan.segments] == [str(n) for n in range(10, 2, -1)]


def test_a_segment_that_a_backup_ends_inside_of_stays() -> None:
    """And all of the log does, if it is not known where a backup ends."""
    log = [segment(2 * DAY, DAY)]
    end = log[0].last
    inside = Revision(end.ms, end.seq - 1)
    at = [made("a", DAY, positions={"0": inside})]
    assert planned(KeepLast(1), at, log).segments == ()
    at = [made("a", DAY, positions={"0": end})]
    assert planned(KeepLast(1), at, log).segments == tuple(log)
    at = [made("a", DAY, positions={})]
    assert planned(KeepLast(1), at, log).segments == ()


def test_shards_are_cut_each_at_its_own_revision() -> None:
    """In a cluster each shard of a backup ends at one of its own."""
    log = [StoredSegment("00000000", shard, Revision(1, 0), Revision(9, 0)) for shard in "12"]
    one = made("a", DAY, positions={"1": Revision(9, 0), "2": Revision(8, 0)})
    assert [found.shard for found in planned(KeepLast(1), [one], log).segments] == ["1"]


def test_without_a_backup_that_can_be_restored_all_of_the_log_stays() -> None:
    """There is nothing to judge it by."""
    assert not planned(KeepLast(1), [made("a", DAY, "gone")], [segment(9 * DAY, 8 * DAY)])


def test_with_a_window_the_log_of_older_backups_goes() -> None:
    """A yearly backup need not hold a year of log."""
    log = [segment(n * DAY, (n - 1) * DAY, name=str(n)) for n in range(400, 0, -1)]
    plan = planned("daily=3 monthly=12 pitr=7d", daily(400), log)
    assert [one.name for one in plan.segments] == [str(n) for n in range(400, 7, -1)]
    assert "the base for any moment of the last 7 days" in why(plan, "d7")


def test_a_locked_segment_stays() -> None:
    """The store would refuse to remove it."""
    log = [segment(9 * DAY, 8 * DAY, locked_until=NOW + DAY)]
    assert not planned(KeepLast(1), daily(1), log)


# --- plans


def test_children_go_before_their_parents() -> None:
    """So that an interruption leaves no backup that lists and does not restore."""
    chain = [made("f", 9 * DAY), made("i", 9 * DAY, "f"), made("j", 9 * DAY, "i"), *daily(1)]
    assert [one.id for one in planned(KeepLast(1), chain).goes] == ["j", "i", "f"]


def test_a_plan_says_why() -> None:
    """A line for each backup, and plain data."""
    plan = planned("last=1", daily(2, size=1500))
    assert str(plan) == (
        "keep the last one: 1 of 2 backups and 0 segments of the log go, 1.5 kB\n"
        "d0 stays: the newest one, which always stays; the last full one; among the last 1\n"
        "d1 goes: no rule keeps it"
    )
    assert plan.as_data()["goes"] == ["d1"]
    assert plan.as_data()["freed_bytes"] == 1500


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("last=10", "keep the last 10"),
        (
            "last=10 daily=7 min=3",
            "keep the last 10 or the newest of each of the last 7 days, always the newest 3",
        ),
        (
            "all(last=10 younger=30d)",
            (
                "keep what is among the last 10 and among those younger than 30 days, "
                "always the newest one"
            ),
        ),
        (
            "importance=critical tag=release,audit max-size=10GB pitr=12h",
            (
                "keep those of importance critical or those tagged audit or release, "
                "at most 10GB, always the newest one, and any moment of the last 12 hours"
            ),
        ),
        ("max-count=1", "keep everything, at most 1 backup, always the newest one"),
    ],
)
def test_a_policy_prints_itself_as_a_sentence(text: str, sentence: str) -> None:
    """What a user reads before anything goes."""
    assert str(RetentionPolicy.parse(text)) == sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        "min=3",
        "pitr=7d",
        "last",
        "last=",
        "last=0",
        "last=-1",
        "last=x",
        "last=1_0",
        "last=٣",
        "younger=30",
        "younger=0d",
        "younger=999999999999999w",
        "max-size=10",
        "max-size=0B",
        "fortnightly=3",
        "importance=urgent",
        "tag=",
        "tag=a,,b",
        "any()",
        "all(last=1",
        "last=1)",
        "last=1 min=1 min=2",
        "all(last=1 min=3)",
        "min=3 max-count=2",
        "(last=1)",
        "any(" * 40 + "last=1" + ")" * 40,
        None,
    ],
)
def test_what_is_no_policy_is_refused(text: Any) -> None:
    """With a message that names the word."""
    with pytest.raises(InvalidArgumentError):
        RetentionPolicy.parse(text)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "[]",
        "{}",
        '{"version":2,"keep":{"rule":"everything"}}',
        '{"version":1}',
        '{"version":1,"keep":{"rule":"last"}}',
        '{"version":1,"keep":{"rule":"last","count":"3"}}',
        '{"version":1,"keep":{"rule":"last","count":true}}',
        '{"version":1,"keep":{"rule":"any","of":3}}',
        '{"version":1,"keep":{"rule":"any","of":[]}}',
        '{"version":1,"keep":{"rule":"tag","any":[3]}}',
        '{"version":1,"keep":{"rule":"tag","any":[[]]}}',
        '{"version":1,"keep":{"rule":["last"]}}',
        '{"version":1,"keep":{"rule":"younger","seconds":1.5}}',
        '{"version":1,"keep":{"rule":"importance","least":3}}',
        '{"version":1,"keep":{"rule":"new"}}',
        '{"version":1,"keep":{"rule":"everything"},"max_age":3}',
        '{"version":1,"keep":{"rule":"everything"},"pitr_seconds":0}',
        '{"version":1,"keep":{"rule":"everything"},"pitr_seconds":99999999999999999999}',
        '{"version":1,"keep":' + '{"rule":"any","of":[' * 30 + "]}" * 30 + "}",
    ],
)
def test_what_is_no_stored_policy_is_refused(stored: str) -> None:
    """Also one of a newer release, and a limit that this one does not know."""
    with pytest.raises(InvalidArgumentError):
        RetentionPolicy.from_stored(stored)


def test_values_that_make_no_sense_are_refused() -> None:
    """Before anything is planned with them."""
    for make in (
        lambda: KeepLast(0),
        lambda: KeepYounger(timedelta(0)),
        lambda: KeepYounger(timedelta(milliseconds=1500)),
        lambda: KeepPerPeriod("hourly", 0),  # type: ignore[arg-type]
        lambda: KeepPerPeriod("sometimes", 1),  # type: ignore[arg-type]
        lambda: Tagged(frozenset()),
        AllOf,
        lambda: AnyOf("last=3"),  # type: ignore[arg-type]
        lambda: RetentionPolicy("last=3"),  # type: ignore[arg-type]
        lambda: StoredBackup("a", datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda: StoredBackup("a", NOW, BackupType.FULL, "b"),
        lambda: StoredBackup("a", NOW, BackupType.INCREMENTAL),
        lambda: StoredBackup("a", NOW, size=-1),
        lambda: planned(Everything(), [made("a", DAY), made("a", HOUR)]),
    ):
        with pytest.raises(InvalidArgumentError):
            make()
