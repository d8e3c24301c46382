"""How long history is kept, and when schedules are due: plans, without a server or a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_replay import START
from hypothesis import given, settings
from hypothesis import strategies as st

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.history_policy import HistoryEntry, HistoryPolicy, plan_removal
from llmspell_dist.schedule import (
    MAX_CATCH_UP,
    At,
    Cron,
    Every,
    Missed,
    Once,
    plan_runs,
    schedule_from,
)

pytestmark = pytest.mark.unit

NOW = 10_000_000_000
DAY = 86_400_000


def entries(*ages_days: float, priority: int = 0) -> list[HistoryEntry]:
    """Return entries of these ages, which must come oldest first."""
    return [
        HistoryEntry(f"{round(NOW - age * DAY)}-{n}", round(NOW - age * DAY), priority)
        for n, age in enumerate(ages_days)
    ]


def test_what_is_too_old_goes_oldest_first() -> None:
    """And nothing else."""
    kept = HistoryPolicy(min_count=0)
    found = entries(30, 8, 6.9, 0)
    assert plan_removal(found, kept, NOW) == found[:2]


def test_over_the_count_the_oldest_go() -> None:
    """The original removed the newest."""
    found = entries(5, 4, 3, 2, 1)
    assert plan_removal(found, HistoryPolicy(max_count=3, min_count=1), NOW) == found[:2]


def test_the_newest_stay_at_any_age() -> None:
    """As many as the least count says."""
    found = entries(99, 98, 97)
    assert plan_removal(found, HistoryPolicy(min_count=2), NOW) == found[:1]


def test_a_high_priority_is_kept_longer_and_goes_last() -> None:
    """By its bonus, and over the count after the others."""
    kept = HistoryPolicy(min_count=0, max_count=2)
    important = entries(10, priority=5)
    assert plan_removal(important, kept, NOW) == []
    assert plan_removal(entries(15, priority=5), kept, NOW) != []
    found = important + entries(3, 2)
    assert plan_removal(found, kept, NOW) == [found[1]]


AGES = st.lists(st.tuples(st.floats(0, 60), st.integers(0, 9)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(AGES, st.integers(1, 20), st.integers(0, 20))
def test_a_plan_keeps_its_promises(given_ages: Any, most: int, least: int) -> None:
    """Never more than the count, never less than the least, never a young one under the count."""
    policy = HistoryPolicy(max_count=max(most, least), min_count=least)
    found = [
        HistoryEntry(str(n), round(NOW - age * DAY), priority)
        for n, (age, priority) in enumerate(sorted(given_ages, reverse=True))
    ]
    gone = plan_removal(found, policy, NOW)
    left = [one for one in found if one not in gone]
    assert len(left) <= policy.max_count
    assert len(left) >= min(least, len(found))
    assert gone == [one for one in found if one in gone], "oldest first"
    for favoured in (True, False):
        like = [one for one in found if (one.priority >= 5) is favoured]
        removed = [one in gone for one in like]
        assert removed == sorted(removed, reverse=True), "of equal worth the oldest go"
    if len(found) <= policy.max_count:
        assert all(NOW - one.time_ms > 7 * DAY for one in gone)


@pytest.mark.parametrize(
    "policy",
    [HistoryPolicy(), HistoryPolicy.SHORT, HistoryPolicy.LONG, HistoryPolicy(archive=True)],
)
def test_a_policy_is_stored_and_read_back(policy: HistoryPolicy) -> None:
    """And prints itself as a sentence."""
    assert HistoryPolicy.parse(policy.stored) == policy
    assert "keep executions for" in str(policy)


def test_a_policy_of_a_later_release_is_the_default_here() -> None:
    """Nothing is removed by a rule that is not understood."""
    assert HistoryPolicy.parse(b"2 what is that") == HistoryPolicy()
    assert HistoryPolicy.ALL.max_count == 1_000_000_000


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_age": 7}, "max_age"),
        ({"max_count": 0}, "max_count"),
        ({"min_count": 20_000}, "min_count"),
        ({"priority_threshold": "high"}, "priority_threshold"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], name: str) -> None:
    """With the name of what is wrong."""
    with pytest.raises(InvalidArgumentError) as caught:
        HistoryPolicy(**wrong)
    assert caught.value.argument == name


# --- schedules ------------------------------------------------------------------------------------

MINUTE = timedelta(minutes=1)
SCHEDULES = [
    Once(START + MINUTE),
    At((START + 3 * MINUTE, START + MINUTE)),
    Every(MINUTE, start=START),
    Every(MINUTE, 4, START),
    Cron("* * * * *"),
    Cron("*/2 * * * *", "Europe/Berlin"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_is_kept_as_data(schedule: Any) -> None:
    """And means the same moments afterwards."""
    again = schedule_from(schedule.as_data())
    assert again.first_after(START) == schedule.first_after(START)
    until = START + 20 * MINUTE
    assert again.latest(START, until, 9) == schedule.latest(START, until, 9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_looking_often_or_seldom_makes_the_same_moments_due(schedule: Any) -> None:
    """None twice, none left out."""
    step, done, found = timedelta(seconds=17), START, []
    while done < START + 10 * MINUTE:
        plan = plan_runs(schedule, done, done + step, Missed.ALL)
        assert plan.left_out == 0
        found += plan.due
        done = plan.done_until
    assert found == plan_runs(schedule, START, done, Missed.ALL).due
    assert found == sorted(set(found))


def test_what_was_missed_is_made_up_for_as_the_policy_says() -> None:
    """Once, each, or not at all; what is left out is counted."""
    every, late = Every(MINUTE, start=START), START + timedelta(minutes=10, seconds=30)
    once = plan_runs(every, START, late)
    assert (once.due, once.left_out) == ([START + 10 * MINUTE], 9)
    everything = plan_runs(every, START, late, Missed.ALL)
    assert (len(everything.due), everything.left_out) == (10, 0)
    none = plan_runs(every, START, late, Missed.SKIP, timedelta(seconds=29))
    assert (none.due, none.left_out) == ([], 10)
    in_time = plan_runs(every, START, late, Missed.SKIP, timedelta(seconds=30))
    assert in_time.due == [START + 10 * MINUTE]


def test_a_week_without_anybody_is_no_week_of_work() -> None:
    """The last hundred are made up for, and counting costs nothing."""
    every = Every(timedelta(milliseconds=10), start=START)
    plan = plan_runs(every, START, START + timedelta(days=7), Missed.ALL)
    assert len(plan.due) == MAX_CATCH_UP
    assert plan.left_out == 7 * 86_400 * 100 - MAX_CATCH_UP
    cron = plan_runs(Cron("* * * * *"), START, START + timedelta(days=700), Missed.ALL)
    assert len(cron.due) == MAX_CATCH_UP


def test_a_clock_that_steps_back_makes_nothing_due_again() -> None:
    """What is decided stays decided."""
    once = Once(START)
    done = plan_runs(once, START - MINUTE, START)
    assert done.due == [START]
    assert plan_runs(once, done.done_until, START - MINUTE).due == []
    assert plan_runs(once, done.done_until, START + MINUTE).due == []


def test_an_interval_ends_after_its_last_run() -> None:
    """Counted from its start."""
    thrice = Every(MINUTE, 3, START)
    plan = plan_runs(thrice, START, START + timedelta(hours=1), Missed.ALL)
    assert plan.due == [START + MINUTE, START + 2 * MINUTE, START + 3 * MINUTE]
    assert plan.next is None


def test_a_nightly_run_happens_once_in_the_nights_the_clock_is_changed() -> None:
    """2:30 in Berlin: left out on 29 March 2026, twice there on 25 October."""
    nightly = Cron("30 2 * * *", "Europe/Berlin")
    for day in (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)):
        found, count = nightly.latest(day, day + timedelta(days=1), 10)
        assert count == len(found) == 1


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Once(datetime(2026, 1, 1)), "time"),  # noqa: DTZ001
        (lambda: At(()), "times"),
        (lambda: Every(timedelta(0)), "interval"),
        (lambda: Every(MINUTE, 0), "max_runs"),
        (lambda: Cron("61 * * * *"), "expression"),
        (lambda: Cron("0 0 31 2 *"), "expression"),
        (lambda: Cron("* * * * *", "Mars/Olympus"), "timezone"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make: Any, argument: str) -> None:
    """Before anything is stored."""
    with pytest.raises(InvalidArgumentError) as caught:
        make()
    assert caught.value.argument == argument


def test_nicknames_are_known() -> None:
    """As cron knows them."""
    assert Cron("@daily").first_after(START) == datetime(2026, 3, 2, tzinfo=UTC)
