"""Replays on a schedule: run by one process, made up for as said, whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_hooks import Hooked, Seen
from fix_replay import POINT, START, Watch
from fix_state import until

from llmspell_dist import connect
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import InvalidArgumentError, StaleFencingTokenError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import ScheduleNotFoundError
from llmspell_dist.hooks.points import HookPoint as P
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig
from llmspell_dist.hooks.results import Cancel, Modified
from llmspell_dist.hooks.schedule_store import SCOPE, ScheduledReplay
from llmspell_dist.hooks.schedules import LEASE_NAME, ReplaySchedules
from llmspell_dist.schedule import Cron, Every, Once

pytestmark = pytest.mark.integration

S = "agent:alice"
MINUTE = timedelta(minutes=1)


class Runs:
    """Takes the place of the replays themselves: notes what is to run."""

    def __init__(self) -> None:
        self.due: list[tuple[str, datetime]] = []
        self.fail: BaseException | None = None
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, made: ScheduledReplay, due: datetime) -> BatchReport:
        """Note it, and fail if that is wanted."""
        self.due.append((made.name, due))
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.fail is not None:
            raise self.fail
        return BatchReport(total=1)

    def at(self, name: str = "nightly") -> list[datetime]:
        """Return the moments for which one ran."""
        return [due for named, due in self.due if named == name]


Make = Callable[[Spell], ReplaySchedules]


@pytest.fixture
def watch() -> Watch:
    """The clock of all."""
    return Watch()


@pytest.fixture
def runs() -> Runs:
    """What ran."""
    return Runs()


@pytest.fixture
def make(watch: Watch, runs: Runs) -> Make:
    """A factory of schedules with that clock."""
    return lambda spell: ReplaySchedules(spell._driver, spell.leases, runs, now=watch)


async def turn(spell: Spell, schedules: ReplaySchedules) -> datetime | None:
    """Be the process that runs schedules, once."""
    async with spell.leases.acquire(SCOPE, name=LEASE_NAME) as lease:
        return await schedules.turn(lease)


# --- due ------------------------------------------------------------------------------------------


async def test_a_schedule_runs_when_it_is_due_and_not_again(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """Whoever looks, and however often."""
    schedules = make(spell)
    await schedules.add("nightly", Every(MINUTE, start=START), executions=["run-1"])
    assert await turn(spell, schedules) == START + MINUTE
    assert runs.due == []
    watch.go_on(seconds=61)
    for _ in range(3):
        assert await turn(spell, schedules) == START + 2 * MINUTE
    assert runs.at() == [START + MINUTE]
    status = await schedules.show("nightly")
    assert (status.progress.runs, status.progress.last_due) == (1, START + MINUTE)
    assert status.next == START + 2 * MINUTE


async def test_another_process_knows_how_far_it_has_come(
    spell: Spell, url: str, namespace: str, *, make: Make, watch: Watch, runs: Runs
) -> None:
    """Schedules and progress lie in the store."""
    await make(spell).add("nightly", Every(MINUTE, 3, START), executions=["run-1"])
    async with connect(url, namespace=namespace) as other:
        for minutes in (1.5, 2.5, 9):
            watch.now = START + minutes * MINUTE
            await turn(other, make(other))
            await turn(spell, make(spell))
    assert runs.at() == [START + MINUTE, START + 2 * MINUTE, START + 3 * MINUTE]
    assert (await make(spell).show("nightly")).next is None


@pytest.mark.parametrize(
    ("missed", "ran", "left_out"),
    [("once", [10], 9), ("all", [*range(1, 11)], 0), ("skip", [], 10)],
)
async def test_what_nobody_was_there_for_is_made_up_for_as_said(
    spell: Spell,
    make: Make,
    watch: Watch,
    runs: Runs,
    *,
    missed: str,
    ran: list[int],
    left_out: int,
) -> None:
    """Ten minutes without any process."""
    schedules = make(spell)
    every = Every(MINUTE, start=START)
    grace = timedelta(seconds=10)
    await schedules.add("nightly", every, executions=["r"], missed=missed, grace=grace)
    watch.now = START + 10 * MINUTE + timedelta(seconds=30)
    await turn(spell, schedules)
    assert runs.at() == [START + number * MINUTE for number in ran]
    assert (await schedules.show("nightly")).progress.left_out == left_out


async def test_a_run_that_was_under_way_is_run_again_and_at_last_given_up(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """The process dies each time before it has come to its end."""
    schedules = make(spell)
    await schedules.add("nightly", Once(START + MINUTE), executions=["run-1"])
    watch.go_on(minutes=2)
    runs.fail = asyncio.CancelledError()
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await turn(spell, schedules)
    status = await schedules.show("nightly")
    assert status.progress.pending == (START + MINUTE,)
    assert status.next == START + MINUTE
    assert status.progress.attempts == 3
    await turn(spell, schedules)
    assert len(runs.due) == 3
    status = await schedules.show("nightly")
    assert status.progress.pending == ()
    assert status.progress.last_difference is not None
    assert "given up after 3" in status.progress.last_difference
    runs.fail = None
    await turn(spell, schedules)
    assert len(runs.due) == 3


async def test_a_schedule_that_breaks_keeps_no_other_from_running(
    spell: Spell, make: Make, watch: Watch, runs: Runs, *, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is: it is logged, tried again and at last given up."""
    schedules = make(spell)
    for name in ("a broken one", "nightly"):
        await schedules.add(name, Once(START + MINUTE), executions=["run-1"])
    watch.go_on(minutes=2)

    async def breaks() -> None:
        if runs.due[-1][0] == "a broken one":
            raise RuntimeError

    runs.meanwhile = breaks
    for _ in range(4):
        await turn(spell, schedules)
    assert [name for name, _ in runs.due] == ["a broken one", "nightly", *["a broken one"] * 2]
    assert "replay schedule a broken one" in caplog.text
    progress = (await schedules.show("a broken one")).progress
    assert "given up after 3" in str(progress.last_difference)


async def test_a_process_that_lost_the_lease_writes_no_progress(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """The store itself refuses it, however sure it is of itself."""
    schedules = make(spell)
    await schedules.add("nightly", Every(MINUTE, start=START), executions=["run-1"])
    lease = await spell.leases.acquire(SCOPE, name=LEASE_NAME, on_lost="event")
    await spell.leases.break_lease(SCOPE, name=LEASE_NAME, reason="test")
    watch.go_on(minutes=1.5)
    with pytest.raises(StaleFencingTokenError):
        await schedules.turn(lease)
    assert runs.due == [], "it was to be written before it ran"
    await turn(spell, schedules)
    assert runs.at() == [START + MINUTE]


async def test_a_clock_that_steps_back_runs_nothing_twice(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """As when another machine takes over whose clock is behind."""
    schedules = make(spell)
    await schedules.add("nightly", Cron("* * * * *"), executions=["run-1"])
    watch.go_on(minutes=2)
    await turn(spell, schedules)
    watch.go_on(minutes=-2)
    await turn(spell, schedules)
    watch.go_on(minutes=2, seconds=30)
    await turn(spell, schedules)
    assert runs.at() == [START + 2 * MINUTE]


async def test_a_clock_that_was_far_ahead_stops_nothing_for_long(
    spell: Spell, make: Make, watch: Watch, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """What it decided is forgotten as soon as a right one looks."""
    schedules = make(spell)
    await schedules.add("nightly", Every(60 * MINUTE, start=START), executions=["run-1"])
    watch.go_on(days=30)
    await turn(spell, schedules)
    assert len(runs.due) == 1
    watch.go_on(days=-30)
    for _ in range(3):
        await turn(spell, schedules)
        watch.go_on(hours=1)
    await turn(spell, schedules)
    assert runs.at()[1:] == [START + number * 60 * MINUTE for number in (1, 2, 3)]
    assert "far ahead" in caplog.text


async def test_the_time_is_the_servers(
    spell: Spell, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the machine that runs schedules may be wrong."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=30)

    monkeypatch.setattr("llmspell_dist.hooks.schedules.datetime", Ahead)
    schedules = ReplaySchedules(spell._driver, spell.leases, runs)
    now = datetime.now(UTC)
    await schedules.add("later", Once(now + timedelta(days=10)), executions=["run-1"])
    await schedules.add("past", Once(now - timedelta(days=10)), executions=["run-1"])
    await schedules.add("soon", Every(timedelta(milliseconds=10), start=now), executions=["r"])
    await turn(spell, schedules)
    assert [name for name, _ in runs.due] in (["soon"], [])
    progress = (await schedules.show("soon")).progress
    assert progress.done_until < now + timedelta(days=1)


async def test_a_schedule_that_is_removed_while_it_runs_leaves_nothing_behind(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """And is not run for what else was due."""
    schedules = make(spell)
    await schedules.add("nightly", Every(MINUTE, start=START), executions=["run-1"], missed="all")
    watch.go_on(minutes=3.5)
    runs.meanwhile = lambda: schedules.remove("nightly")
    await turn(spell, schedules)
    assert len(runs.due) == 1
    assert [key async for key in spell.state.keys(SCOPE)] == []


async def test_hooks_of_users_neither_see_nor_stop_it(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """A guard that refuses what it does not know is no reason for replays to end."""
    seen: list[str] = []

    def refuse(ctx: HookContext) -> Cancel:
        seen.append(ctx.data["key"])
        return Cancel("no")

    spell.hooks.register(POINT, refuse)
    spell.hooks.register("AfterStateWrite", lambda _: None, name="record", replayable=True)
    schedules = make(spell)
    await schedules.add("nightly", Once(START + MINUTE), executions=["run-1"])
    watch.go_on(minutes=2)
    await turn(spell, schedules)
    assert len(runs.due) == 1
    assert (await schedules.show("nightly")).progress.runs == 1
    assert seen == []
    await spell.hooks.history.flush()
    assert await spell.hooks.history.count() == 0


# --- setting up -----------------------------------------------------------------------------------


async def test_schedules_are_listed_replaced_switched_off_and_removed(
    spell: Spell, make: Make, watch: Watch, runs: Runs
) -> None:
    """A new one of the same name begins anew."""
    schedules = make(spell)
    every = Every(MINUTE, start=START)
    config = ReplayConfig({"context.data.x": [1]}, timeout=5, tags=("t",), new_inputs="take")
    made = await schedules.add(
        "b", every, hook="limits", within=MINUTE, mode="modified", config=config, max_concurrent=2
    )
    await schedules.add("a", Once(START + MINUTE), executions=["run-1"])
    assert made.query is not None
    assert made.query.limit == 10_000, "as a batch: not the oldest hundred only"
    listed = await schedules.list()
    assert [one.name for one in listed] == ["a", "b"]
    assert listed[1].replay == made
    await schedules.enable("a", enabled=False)
    watch.go_on(minutes=1.5)
    await turn(spell, schedules)
    assert runs.at("a") == []
    assert len(runs.at("b")) == 1
    assert (await schedules.show("a")).next is None
    await schedules.enable("a")
    await turn(spell, schedules)
    assert len(runs.at("a")) == 1
    again = Once(watch.now + MINUTE)
    with pytest.raises(InvalidArgumentError, match="replace=True"):
        await schedules.add("a", again, executions=["run-1"])
    assert (await schedules.show("a")).progress.runs == 1
    await schedules.add("a", again, executions=["run-1"], replace=True)
    assert (await schedules.show("a")).progress.runs == 0
    await schedules.remove("a")
    for missing in (schedules.remove, schedules.show, schedules.enable):
        with pytest.raises(ScheduleNotFoundError):
            await missing("a")


@pytest.mark.parametrize("change", ["replaced", "removed"])
async def test_a_switch_undoes_nothing_that_happens_meanwhile(
    spell: Spell, make: Make, monkeypatch: pytest.MonkeyPatch, *, change: str
) -> None:
    """What was replaced in between stays so; what was removed is not revived."""
    schedules, overtaken = make(spell), asyncio.Event()
    await schedules.add("nightly", Every(MINUTE, start=START), executions=["old"])
    driver = schedules._driver
    plain = driver.execute

    async def read_and_overtaken(request: Any) -> Any:
        given = await plain(request)
        if not overtaken.is_set():
            overtaken.set()
            if change == "removed":
                await schedules.remove("nightly")
            else:
                every = Every(MINUTE, start=START)
                await schedules.add("nightly", every, executions=["new"], replace=True)
        return given

    monkeypatch.setattr(driver, "execute", read_and_overtaken)
    if change == "removed":
        with pytest.raises(ScheduleNotFoundError):
            await schedules.enable("nightly", enabled=False)
        assert await schedules.list() == []
    else:
        await schedules.enable("nightly", enabled=False)
        made = (await schedules.show("nightly")).replay
        assert (made.executions, made.enabled) == (("new",), False)
    assert overtaken.is_set()


async def test_a_schedule_that_cannot_be_read_keeps_no_other_from_running(
    spell: Spell, make: Make, watch: Watch, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log."""
    schedules = make(spell)
    await spell.state.set(SCOPE, "schedule/odd", {"v": 9})
    await schedules.add("nightly", Once(START + MINUTE), executions=["run-1"])
    watch.go_on(minutes=2)
    await turn(spell, schedules)
    assert len(runs.at()) == 1
    assert "schedule/odd is left out" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"name": ""}, "name"),
        ({"schedule": "daily"}, "schedule"),
        ({"schedule": Every}, "schedule"),
        ({"executions": ()}, "executions"),
        ({"hook": "h"}, "executions"),
        ({"missed": "never"}, "missed"),
        ({"mode": "fast"}, "mode"),
        ({"mode": "debug"}, "mode"),
        ({"config": ReplayConfig({"context.data.x": 1})}, "modifications"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_it_is_stored(
    spell: Spell, make: Make, wrong: dict[str, Any], argument: str
) -> None:
    """By name."""
    given = {"name": "n", "schedule": Once(START), "executions": ["r"], **wrong}
    with pytest.raises(InvalidArgumentError) as caught:
        await make(spell).add(given.pop("name"), given.pop("schedule"), **given)
    assert caught.value.argument == argument
    assert await make(spell).list() == []


# --- as a whole -----------------------------------------------------------------------------------


async def test_a_serving_process_replays_what_history_has(spell: Spell) -> None:
    """And says what differed; what is in the history then is found by a query."""
    offset = 0

    def shifts(ctx: HookContext) -> Modified:
        return Modified({"value": ctx.data["value"] + offset})

    spell.hooks.register(POINT, shifts, replayable=True)
    with context(correlation_id="run"):
        await spell.state.set(S, "k", 1)
    await spell.hooks.history.flush()
    offset = 5
    schedules = spell.replay.schedules
    schedules.serve()
    schedules.serve()
    await schedules.add("check", Every(timedelta(milliseconds=20), 2), correlation_id="run")
    (run,) = await spell.hooks.history.query(correlation_id="run")
    await schedules.add("gone", Every(timedelta(milliseconds=20), 1), executions=["no-such"])

    async def done() -> bool:
        return not any(one.next for one in await schedules.list())

    await until(done, within_s=15)
    status = await schedules.show("check")
    assert status.progress.runs in (1, 2), "two that were due together are one"
    assert (status.progress.last_total, status.progress.last_identical) == (1, 0)
    expected = f"shifts:1.0.0 in {run.id}: result.data.value: 1 became 6"
    assert status.progress.last_difference == expected
    assert (await schedules.show("gone")).progress.last_failed == 1
    assert schedules.serving
    await schedules.stop()
    await until(lambda: not schedules.serving)


# --- the library's own bookkeeping ----------------------------------------------------------------


async def test_hooks_have_no_say_in_what_schedules_keep(hooked: Hooked) -> None:
    """Neither in their state nor in their lease; a recorded hook does not record them either."""
    seen = Seen(lambda _: Cancel("nobody writes"))
    for point in (P.BEFORE_STATE_WRITE, P.BEFORE_STATE_READ, "lease:before_acquire"):
        hooked.hooks.register(point, seen, on_failure="cancel", replayable=True)
    schedules = hooked.spell.replay.schedules
    soon = Every(timedelta(milliseconds=20), 2)
    await hooked.do(schedules.add("now", soon, hook="nothing"))
    await hooked.do(schedules.serve())

    async def ran() -> bool:
        return bool((await hooked.do(schedules.show("now"))).progress.runs)

    await until(ran, within_s=10, every_s=0.02)
    await hooked.do(schedules.stop())
    assert seen.runs == []
