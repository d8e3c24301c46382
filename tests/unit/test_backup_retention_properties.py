"""What holds of every plan of retention, for any backups and any policy."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    RetentionPolicy,
    Rule,
    StoredBackup,
    StoredSegment,
    Tagged,
    plan_prune,
)
from llmspell_dist.revision import Revision, to_ms

pytestmark = [pytest.mark.unit, pytest.mark.backup]

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
TAGS = ("release", "audit", "a-b")
COUNTS = st.integers(1, 6)

PLAIN_RULES: st.SearchStrategy[Rule] = st.one_of(
    st.builds(KeepLast, COUNTS),
    st.builds(KeepYounger, st.integers(1, 100).map(lambda hours: timedelta(hours=hours))),
    st.builds(KeepPerPeriod, st.sampled_from(Period), COUNTS),
    st.builds(ImportanceAtLeast, st.sampled_from(Importance)),
    st.builds(Tagged, st.frozensets(st.sampled_from(TAGS), min_size=1)),
    st.just(Everything()),
)
RULES = st.recursive(
    PLAIN_RULES,
    lambda inner: st.builds(
        lambda make, rules: make(*rules),
        st.sampled_from([AllOf, AnyOf]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)


@st.composite
def policies(draw: st.DrawFn, *, limits: bool = True) -> RetentionPolicy:
    """A policy, with limits or without."""
    minimum = draw(COUNTS)
    return RetentionPolicy(
        draw(RULES),
        minimum,
        draw(st.none() | st.integers(minimum, 12)) if limits else None,
        draw(st.none() | st.integers(1, 3000)) if limits else None,
        draw(st.none() | st.integers(1, 300).map(lambda hours: timedelta(hours=hours))),
    )


@st.composite
def backups(draw: st.DrawFn) -> list[StoredBackup]:
    """Full and incremental backups, of equal moments too, some without their parents."""
    found: list[StoredBackup] = []
    for n in range(draw(st.integers(0, 14))):
        parents = [one.id for one in found]
        parent = draw(st.none() | st.sampled_from([*parents, "gone"])) if parents else None
        kinds = [BackupType.FULL] if parent is None else list(BackupType)[1:]
        time = NOW - timedelta(hours=draw(st.integers(-2, 200) | st.integers(0, 20_000)))
        at = Revision(to_ms(time), draw(st.integers(0, 3)))
        one = StoredBackup(
            f"{draw(st.integers(0, 99)):02}-{n:02}",
            time,
            draw(st.sampled_from(kinds)),
            parent,
            draw(st.sampled_from(Importance)),
            draw(st.frozensets(st.sampled_from(TAGS))),
            draw(st.integers(0, 500)),
            draw(st.sampled_from([False] * 5 + [True])),
            draw(st.none() | st.just(NOW + timedelta(hours=1))),
            draw(st.sampled_from(["", "", "scopes=user:1"])),
            {"0": at, "1": at} if draw(st.booleans()) else {},
            dict.fromkeys(draw(st.frozensets(st.sampled_from("abcdef"))), 50),
        )
        found.append(one)
    return draw(st.permutations(found))


@st.composite
def segments(draw: st.DrawFn) -> list[StoredSegment]:
    """A log in pieces, on two timelines and two shards."""
    found = []
    for timeline in ("00000001", "00000002"):
        for shard in "01":
            hours = sorted(draw(st.sets(st.integers(0, 220), max_size=8)), reverse=True)
            for since, until in pairwise(hours):
                first, last = (to_ms(NOW - timedelta(hours=one)) for one in (since, until))
                found.append(
                    StoredSegment(timeline, shard, Revision(first, 1), Revision(last, 0), since + 1)
                )
    return found


def complete(backup: StoredBackup, by_id: dict[str, StoredBackup]) -> bool:
    """Tell whether a backup can be restored from these, the slow and plain way."""
    seen = set()
    while backup.parent is not None:
        seen.add(backup.id)
        if backup.parent in seen or backup.parent not in by_id:
            return False
        backup = by_id[backup.parent]
    return True


def ids(found: Any) -> set[str]:
    """Return the ids of backups."""
    return {one.id for one in found}


def occupied(found: Iterable[StoredBackup], log: Iterable[StoredSegment]) -> int:
    """Return how many bytes these take, objects of several backups once."""
    objects: dict[str, int] = {}
    size = sum(one.size for one in log)
    for one in found:
        size += one.size
        objects.update(one.objects)
    return size + sum(objects.values())


EXAMPLES = settings(max_examples=50, deadline=None)


@EXAMPLES
@given(policies(), backups(), segments())
def test_what_can_be_restored_and_stays_can_be_restored_after_it(
    policy: RetentionPolicy, found: list[StoredBackup], log: list[StoredSegment]
) -> None:
    """Its parents stay, at every moment of carrying the plan out, and the log behind it does."""
    plan = plan_prune(policy, found, log, now=NOW)
    before = {one.id: one for one in found}
    assert ids(plan.stays) | ids(plan.goes) == before.keys()
    assert not ids(plan.stays) & ids(plan.goes)
    left = dict(before)
    could = {one.id for one in found if complete(one, before)}
    for gone in plan.goes:
        del left[gone.id]
        assert could & left.keys() == {one.id for one in left.values() if complete(one, left)}
    if policy.pitr is None:
        for one in plan.stays:
            if complete(one, before):
                for segment in plan.segments:
                    assert segment.last <= one.position(segment.shard)
    assert plan.freed == occupied(found, log) - occupied(
        plan.stays, [one for one in log if one not in plan.segments]
    )


@EXAMPLES
@given(policies(), backups(), segments())
def test_a_plan_that_was_carried_out_has_nothing_left_to_do(
    policy: RetentionPolicy, found: list[StoredBackup], log: list[StoredSegment]
) -> None:
    """Whatever the policy, limits included."""
    plan = plan_prune(policy, found, log, now=NOW)
    left = [one for one in log if one not in plan.segments]
    again = plan_prune(policy, plan.stays, left, now=NOW)
    assert not again
    assert ids(again.stays) == ids(plan.stays)


@EXAMPLES
@given(policies(), backups())
def test_the_minimum_and_the_last_full_backup_of_each_series_stay(
    policy: RetentionPolicy, found: list[StoredBackup]
) -> None:
    """As far as there are so many; pinned and locked ones too."""
    stays = ids(plan_prune(policy, found, now=NOW).stays)
    by_id = {one.id: one for one in found}
    for name in {one.series for one in found}:
        series = [one for one in found if one.series == name and complete(one, by_id)]
        series.sort(key=lambda one: (one.time, one.id))
        assert len(stays & ids(series)) >= min(policy.minimum, len(series))
        fulls = [one for one in series if one.type is BackupType.FULL]
        assert not fulls or fulls[-1].id in stays
    assert stays >= {one.id for one in found if one.pinned or one.locked_until}
    assert stays >= {one.id for one in found if not complete(one, by_id)}


@EXAMPLES
@given(policies(limits=False), backups(), COUNTS, st.sampled_from([None, *Period]))
def test_a_greater_count_keeps_no_less(
    policy: RetentionPolicy, found: list[StoredBackup], count: int, period: Period | None
) -> None:
    """Of the last ones, and of each kind of period."""

    def stays(count: int) -> set[str]:
        rule = KeepLast(count) if period is None else KeepPerPeriod(period, count)
        made = RetentionPolicy(AnyOf(rule, policy.keep), policy.minimum)
        return ids(plan_prune(made, found, now=NOW).stays)

    assert stays(count) <= stays(count + 1)


@EXAMPLES
@given(policies(), backups(), segments(), st.integers(1, 3000), st.integers(1, 500))
def test_a_greater_limit_keeps_no_less(
    policy: RetentionPolicy,
    found: list[StoredBackup],
    log: list[StoredSegment],
    size: int,
    more: int,
) -> None:
    """And what is above it is above it only by what stays in any case."""

    def plan(size: int | None) -> Any:
        made = RetentionPolicy(policy.keep, policy.minimum, None, size, policy.pitr)
        return plan_prune(made, found, log, now=NOW)

    assert ids(plan(size).stays) <= ids(plan(size + more).stays)
    least = ids(plan(1).stays)
    stays, gone = plan(size).stays, plan(size).segments
    if ids(stays) != least:
        kept = [one for one in log if one not in gone]
        assert occupied(stays, kept) <= size


@EXAMPLES
@given(st.lists(RULES, min_size=1, max_size=4), backups())
def test_composites_are_what_they_are_defined_as(
    rules: list[Rule], found: list[StoredBackup]
) -> None:
    """Kept if any keeps it; kept only if all keep it."""
    newest = sorted(found, key=lambda one: one.age_key, reverse=True)
    each = [set(rule.judge(newest, NOW)) for rule in rules]
    assert set(AnyOf(*rules).judge(newest, NOW)) == set.union(*each)
    assert set(AllOf(*rules).judge(newest, NOW)) == set.intersection(*each)


@EXAMPLES
@given(RULES, backups(), st.data())
def test_what_a_rule_keeps_it_keeps_of_fewer_too(
    rule: Rule, found: list[StoredBackup], data: st.DataObject
) -> None:
    """Which is why pruning twice is pruning once."""
    newest = sorted(found, key=lambda one: one.age_key, reverse=True)
    kept = rule.judge(newest, NOW)
    fewer = [one for one in newest if one.id in kept or data.draw(st.booleans())]
    assert set(rule.judge(fewer, NOW)) >= set(kept)


@EXAMPLES
@given(policies())
def test_a_policy_is_read_back_as_it_was_written(policy: RetentionPolicy) -> None:
    """From JSON the same value, from the short form one that says the same."""
    assert RetentionPolicy.from_stored(policy.stored) == policy
    read = RetentionPolicy.parse(policy.text)
    assert str(read).replace("(", "").replace(")", "") == str(policy).replace("(", "").replace(
        ")", ""
    )
    assert RetentionPolicy.parse(read.text) == read
