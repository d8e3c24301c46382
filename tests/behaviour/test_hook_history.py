"""The history of hooks: every run of a replayable hook is there, is found, and goes in its time."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_state import Store

from llmspell_dist import ClassRules, Options, StateClass, blocking, connect
from llmspell_dist.client import Spell
from llmspell_dist.context import context
from llmspell_dist.errors import InvalidArgumentError, StoreTimeoutError
from llmspell_dist.hooks.context import HookContext
from llmspell_dist.hooks.errors import (
    ExecutionNotFoundError,
    OperationCancelledError,
    UnknownHookPointError,
)
from llmspell_dist.hooks.history_keeping import HistoryKeeping
from llmspell_dist.hooks.history_policy import HistoryPolicy
from llmspell_dist.hooks.recording import Execution
from llmspell_dist.hooks.results import Cancel, Modified
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack

pytestmark = pytest.mark.integration

S = "agent:alice"
WRITE = "BeforeStateWrite"
SECRET = "correct horse battery staple"


class ToyCipher:
    """Turns every byte around and signs."""

    def encrypt(self, plaintext: bytes, *, associated_data: bytes) -> bytes:
        """Return the signature and the turned bytes."""
        turned = bytes(255 - byte for byte in plaintext)
        return hmac.digest(associated_data, turned, "sha256") + turned

    def decrypt(self, ciphertext: bytes, *, associated_data: bytes) -> bytes:
        """Return the plaintext."""
        tag, turned = ciphertext[:32], ciphertext[32:]
        if not hmac.compare_digest(tag, hmac.digest(associated_data, turned, "sha256")):
            raise ValueError("not authentic")
        return bytes(255 - byte for byte in turned)


def doubles(ctx: HookContext) -> Modified:
    """Double what is written."""
    return Modified({"value": ctx.data["value"] * 2})


def moody(ctx: HookContext) -> Any:
    """Raise at 0, cancel at 1, else do nothing."""
    if ctx.data["value"] == 0:
        raise ValueError(f"zero for {ctx.data['key']}")
    return Cancel("one") if ctx.data["value"] == 1 else None


async def record(
    spell: Spell, count: int, *, hook: Any = doubles, correlation: str = "run"
) -> None:
    """Have a hook run so often, and what it did written."""
    spell.hooks.register(WRITE, hook, replayable=True)
    with context(correlation_id=correlation):
        for number in range(count):
            with suppress(OperationCancelledError):
                await spell.state.set(S, f"k{number}", number)
    await spell.hooks.history.flush()
    spell.hooks.unregister(hook.__name__)


# --- what is recorded -----------------------------------------------------------------------------


async def test_a_run_is_recorded_with_what_the_hook_was_told_and_answered(spell: Spell) -> None:
    """As it was before the hook changed anything."""
    before = datetime.now(UTC)
    with context(causation_id="cause"):
        await record(spell, 2)
    _, found = await spell.hooks.history.query(correlation_id="run")
    assert found.replay_id == "doubles:1.0.0"
    assert found.point == WRITE
    assert found.causation_id == "cause"
    assert before <= found.started_at <= datetime.now(UTC)
    assert found.context is not None
    assert found.context["data"]["value"] == 1
    assert found.context["operation"]["type"] == "set"
    assert found.result == Modified({"value": 2})
    assert found.gaps == []
    assert await spell.hooks.history.get(found.id) == found


async def test_a_hook_that_is_not_replayable_leaves_no_trace(spell: Spell, store: Store) -> None:
    """It costs nothing either."""
    spell.hooks.register(WRITE, doubles)
    await spell.state.set(S, "k", 1)
    await spell.hooks.history.flush()
    assert await spell.hooks.history.count() == 0
    assert not [key for key in store.all_keys() if b":hook" in key]


async def test_failures_and_vetoes_are_recorded_too(spell: Spell) -> None:
    """They are what one looks for."""
    await record(spell, 3, hook=moody)
    found = await spell.hooks.history.query(hook="moody")
    assert [one.outcome for one in found] == ["error", "cancel", "continue"]
    assert found[0].failed
    assert found[0].error is not None
    assert (found[0].error.type, found[0].error.message) == ("ValueError", "zero for k0")
    assert found[1].result == Cancel("one")


async def test_a_coroutine_hook_and_one_with_a_time_limit_are_recorded(spell: Spell) -> None:
    """However it is carried out."""

    async def waits(ctx: HookContext) -> None:
        ctx.new_id()
        await asyncio.sleep(0)
        ctx.now()

    def in_a_thread(ctx: HookContext) -> None:
        ctx.random()

    spell.hooks.register("AfterStateWrite", waits, replayable=True)
    spell.hooks.register("AfterStateWrite", in_a_thread, replayable=True, timeout=5)
    spell.hooks.register("AfterStateWrite", waits, name="queued", replayable=True, queued=True)
    await spell.state.set(S, "k", 1)
    await spell.hooks.drain()
    await spell.hooks.history.flush()
    found = await spell.hooks.history.query(point="AfterStateWrite")
    kinds = {one.hook: [taken.kind for taken in one.inputs] for one in found}
    assert kinds == {
        "waits": ["new_id", "now"],
        "in_a_thread": ["random"],
        "queued": ["new_id", "now"],
    }


async def test_a_run_whose_caller_was_cancelled_is_recorded(spell: Spell) -> None:
    """It may have done something; that it was cut off is its error."""
    began = asyncio.Event()

    async def slow(_: HookContext) -> None:
        began.set()
        await asyncio.Event().wait()

    spell.hooks.register(WRITE, slow, replayable=True, timeout=10)
    writing = asyncio.create_task(spell.state.set(S, "k", 1))
    await began.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert writing.cancelled()
    await spell.hooks.history.flush()
    (run,) = await spell.hooks.history.query(hook="slow")
    assert (run.failed, run.outcome) == (True, "error")
    assert run.error is not None
    assert run.error.type == "CancelledError"
    assert run.context is not None
    assert run.context["data"]["key"] == "k"


async def test_a_run_stands_in_the_stream_of_its_correlation(spell: Spell, store: Store) -> None:
    """Where the timeline finds it, beside commits and events."""
    await record(spell, 1)
    stream = store.raw("XRANGE", store.space.correlation("0", "run"), "-", "+")
    kinds = [dict(zip(fields[::2], fields[1::2], strict=True))[b"k"] for _, fields in stream]
    assert kinds == [b"h"]


async def test_nothing_is_lost_when_a_client_is_closed(url: str, namespace: str) -> None:
    """What is queued is written first."""
    async with connect(url, namespace=namespace) as spell:
        spell.hooks.register(WRITE, doubles, replayable=True)
        await asyncio.gather(*(spell.state.set(S, f"k{n}", n) for n in range(500)))
    assert spell.hooks.history.stats.lost == 0
    async with connect(url, namespace=namespace) as spell:
        assert await spell.hooks.history.count() == 500


async def test_a_batch_that_is_sent_twice_is_there_once(spell: Spell) -> None:
    """A lost reply makes no duplicate."""
    await record(spell, 1)
    (found,) = await spell.hooks.history.query()
    steps: HistoryKeeping = spell.hooks.history._steps
    arguments = steps.arguments(found)
    for number, added in ((1, 1), (1, 0), (2, 1), (1, 0)):
        assert await spell._driver.run(steps.record("client", number, arguments)) == added
    assert await spell.hooks.history.count() == 3


async def test_what_cannot_be_written_yet_is_kept_and_written_later(spell: Spell) -> None:
    """An outage of the server loses nothing that there is room for."""
    writer = spell.hooks._writer
    run, refused = writer._run, 0

    async def refuse_twice(steps: Any) -> Any:
        nonlocal refused
        if refused < 2:
            refused += 1
            steps.close()
            raise StoreTimeoutError("test", "not yet")
        return await run(steps)

    writer._run = refuse_twice
    await record(spell, 3)
    assert (writer.stats.written, writer.stats.lost) == (3, 0)
    assert refused == 2
    assert await spell.hooks.history.count() == 3


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_what_goes_wrong_once_ends_no_recording(
    spell: Spell, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """A batch that nobody foresaw is counted as lost, and named; what comes next is written."""
    writer = spell.hooks._writer
    run, failed = writer._run, asyncio.Event()

    async def fails_once(steps: Any) -> Any:
        writer._run = run
        failed.set()
        raise error

    writer._run = fails_once
    spell.hooks.register(WRITE, doubles, replayable=True)
    await spell.state.set(S, "first", 1)
    await failed.wait()
    flusher = writer._flusher
    assert flusher is not None
    if error is asyncio.CancelledError:
        await asyncio.wait([flusher])  # somebody has cancelled every task of the loop
    else:
        await spell.hooks.history.flush()
        assert writer.stats.lost == 1
        assert "1 executions of hooks are not recorded" in caplog.text
    await spell.state.set(S, "second", 1)
    await spell.hooks.history.flush()
    (found,) = await spell.hooks.history.query()
    assert found.context is not None
    assert found.context["data"]["key"] == "second"
    assert (writer.stats.written, writer.stats.lost, writer.stats.queued) == (1, 1, 0)


async def test_a_full_queue_holds_hooks_back_and_counts_what_it_cannot_take(spell: Spell) -> None:
    """A hook waits for room; if there is none after its time, it runs and is counted as lost."""
    writer = spell.hooks._writer
    writer._max_queued = 2
    run, gate = writer._run, asyncio.Event()

    async def held(steps: Any) -> Any:
        await gate.wait()
        return await run(steps)

    writer._run = held
    spell.hooks.register(WRITE, doubles, replayable=True)
    await spell.state.set(S, "first", 1)
    await asyncio.sleep(0)  # the writer has that one in its hands
    waiting = [asyncio.create_task(spell.state.set(S, f"k{n}", n)) for n in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting[2].done(), "it waits for room"
    gate.set()
    await asyncio.gather(*waiting)
    await spell.hooks.history.flush()
    assert (writer.stats.written, writer.stats.lost) == (4, 0)
    gate.clear()
    writer._max_queued = 0
    (found,) = await spell.hooks.history.query(limit=1)
    assert writer.put(found) is False
    assert writer.stats.lost == 1


async def test_a_run_that_cannot_be_packed_stops_no_other(
    spell: Spell, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, and counted."""
    await record(spell, 1)
    (found,) = await spell.hooks.history.query()
    writer = spell.hooks._writer
    writer.put(replace(found, correlation_id="\ud800"))
    writer.put(replace(found, id="another"))
    await spell.hooks.history.flush()
    assert (writer.stats.written, writer.stats.lost, writer.stats.queued) == (2, 1, 0)
    assert "a run of hook doubles is not recorded" in caplog.text


# --- secrets --------------------------------------------------------------------------------------


async def test_with_a_cipher_nothing_is_kept_in_the_clear(
    url: str, namespace: str, store: Store
) -> None:
    """Which keys are sensitive may be known to their records alone."""
    options = Options(namespace=namespace, cipher=ToyCipher())
    async with connect(url, options=options) as spell:
        spell.hooks.register(WRITE, lambda ctx: Modified(dict(ctx.data)), name="h", replayable=True)
        await spell.state.set(S, "k", SECRET, state_class=StateClass.SENSITIVE)
        await spell.hooks.history.flush()
        assert SECRET.encode() not in store.everything()
        (found,) = await spell.hooks.history.query()
        assert found.context is not None
        assert found.context["data"]["value"] == SECRET
    async with connect(url, namespace=namespace) as without:
        (found,) = await without.hooks.history.query()
        assert found.secret
        assert found.context is None


async def test_without_a_cipher_what_is_sensitive_is_left_out(
    url: str, namespace: str, store: Store
) -> None:
    """By the rules of the client, or by what the call says; the rest is there."""
    rules = ClassRules(patterns=(("*secret*", StateClass.SENSITIVE),))
    async with connect(url, options=Options(namespace=namespace, classes=rules)) as spell:
        spell.hooks.register(WRITE, lambda _: Cancel("no"), name="h", replayable=True)
        for key, state_class in (("secret", None), ("k", StateClass.SENSITIVE), ("plain", None)):
            with pytest.raises(Exception, match="cancelled"):
                await spell.state.set(S, key, SECRET, state_class=state_class)
        with pytest.raises(Exception, match="cancelled"):
            await spell.state.set_many(S, {"my-secret": SECRET, "a": 1})
        await spell.hooks.history.flush()
        found = await spell.hooks.history.query()
        seen = [one.context is not None for one in found]
        assert seen[:3] == [False, False, True]
        assert not any(seen[3:])
        assert store.everything().count(SECRET.encode()) == 1


# --- finding --------------------------------------------------------------------------------------


async def test_executions_are_found_by_what_they_are(spell: Spell) -> None:
    """By correlation, hook, version, point, time, outcome and failure, in pages, both ways."""
    await record(spell, 3, hook=moody, correlation="one")
    middle = datetime.now(UTC)
    await record(spell, 4, hook=doubles, correlation="two")
    query = spell.hooks.history.query

    async def keys(**which: Any) -> list[str]:
        found = await query(**which)
        return [one.hook[0] + one.context["data"]["key"][1] for one in found if one.context]

    assert await keys() == ["m0", "m1", "m2", "d0", "d1", "d2", "d3"]
    assert await keys(newest_first=True, limit=2) == ["d3", "d2"]
    assert await keys(correlation_id="one") == ["m0", "m1", "m2"]
    assert await keys(correlation_id="two", newest_first=True) == ["d3", "d2", "d1", "d0"]
    assert await keys(hook="doubles", limit=2) == ["d0", "d1"]
    assert await keys(hook="doubles", version="2") == []
    assert await keys(point=WRITE, correlation_id="none") == []
    assert await keys(since=middle) == ["d0", "d1", "d2", "d3"]
    assert await keys(until=middle, outcome="cancel") == ["m1"]
    assert await keys(failed=True) == ["m0"]
    assert await keys(failed=False, correlation_id="one") == ["m1", "m2"]
    first = await query(limit=3)
    assert await keys(after=first[-1].entry) == ["d0", "d1", "d2", "d3"]
    of_two = await query(correlation_id="two", limit=1)
    assert await keys(correlation_id="two", after=of_two[0].entry) == ["d1", "d2", "d3"]


async def test_more_than_a_page_is_found(spell: Spell) -> None:
    """By an index and without one."""
    await record(spell, 450)
    ways: tuple[dict[str, Any], ...] = ({"correlation_id": "run"}, {"hook": "doubles"}, {})
    for which in ways:
        found = await spell.hooks.history.query(limit=10_000, **which)
        assert [one.context["data"]["value"] for one in found if one.context] == [*range(450)]


async def test_history_is_told_in_figures(spell: Spell) -> None:
    """Counts, failure rate, durations, sequences, and where two runs differ."""
    await record(spell, 3, hook=moody)
    await record(spell, 2, hook=doubles)
    history = spell.hooks.history
    told = await history.analyze()
    assert (told.total, told.failed, told.failure_rate) == (5, 1, 0.2)
    assert told.by_hook == {"moody": 3, "doubles": 2}
    assert told.errors == {"ValueError": 1}
    assert told.durations.count == 5
    assert told.durations.min_us <= told.durations.p50_us <= told.durations.max_us
    found = await history.patterns(length=2, min_count=2)
    assert [(one.hooks, one.count) for one in found] == [(("moody", "moody"), 2)]
    one, other = (await history.query(hook="doubles"))[:2]
    assert str((await history.compare(one.id, other)).first) == "result.data.value: 0 became 2"


async def test_an_execution_that_cannot_be_read_hides_no_other(
    spell: Spell, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log."""
    await record(spell, 1)
    store.raw("XADD", store.space.hooks("0"), "*", "b", b"\x09new", "n", "0")
    await record(spell, 1, correlation="later")
    assert len(await spell.hooks.history.query()) == 2
    assert "format 09" in caplog.text


async def test_what_makes_no_sense_is_refused_before_anything_is_sent(spell: Spell) -> None:
    """With the name of the argument."""
    history = spell.hooks.history
    for which, argument in (
        ({"limit": 0}, "limit"),
        ({"hook": ""}, "hook"),
        ({"since": datetime(2026, 1, 1)}, "time"),  # noqa: DTZ001
        ({"after": "yesterday"}, "revision"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await history.query(**which)
        assert caught.value.argument == argument
    with pytest.raises(UnknownHookPointError):
        await history.query(point="BeforeStateWrit")
    with pytest.raises(ExecutionNotFoundError, match="no-such"):
        await history.get("no-such")
    with pytest.raises(InvalidArgumentError):
        await history.retain("for ever")  # type: ignore[arg-type]


# --- how long -------------------------------------------------------------------------------------


async def test_what_is_over_the_count_goes_oldest_first_and_leaves_nothing(
    spell: Spell, store: Store
) -> None:
    """Neither in the stream nor in the index."""
    await record(spell, 6)
    await spell.hooks.history.retain(HistoryPolicy(max_count=2, min_count=1))
    assert await spell.hooks.history.tidy() == 4
    left = await spell.hooks.history.query(hook="doubles")
    assert [one.context["data"]["value"] for one in left if one.context] == [4, 5]
    members = store.raw("ZRANGE", store.space.hook_index("0"), 0, -1)
    assert len(members) == 5 * 2
    assert await spell.hooks.history.tidy() == 0


async def test_what_is_too_old_goes_by_the_servers_clock(spell: Spell) -> None:
    """And what has a bonus stays longer."""
    await record(spell, 2)
    spell.hooks.register(WRITE, moody, replayable=True, retention_priority=9)
    await spell.state.set(S, "k", 2)
    await spell.hooks.history.flush()
    week = HistoryPolicy(min_count=0)
    await spell.hooks.history.retain(week)
    steps: HistoryKeeping = spell.hooks.history._steps
    now_ms = round(datetime.now(UTC).timestamp() * 1000)
    for days, gone in ((6, 0), (8, 2), (13, 0), (15, 1)):
        then_ms = now_ms + days * 86_400_000
        assert await spell._driver.run(steps.apply(then_ms)) == gone


async def test_what_goes_is_archived_first(spell: Spell) -> None:
    """And stays if that fails, with all that are younger."""
    archived: list[Execution] = []
    broken = True

    async def archive(one: Execution) -> None:
        if broken and len(archived) == 1:
            raise OSError("disk full")
        archived.append(one)

    await record(spell, 4)
    await spell.hooks.history.retain(HistoryPolicy(max_count=1, min_count=1, archive=True))
    assert await spell.hooks.history.tidy() == 0, "this process has no archive"
    spell.hooks.history.archive_with(archive)
    assert await spell.hooks.history.tidy() == 1
    broken = False
    assert await spell.hooks.history.tidy() == 2
    assert [one.context["data"]["value"] for one in archived if one.context] == [0, 1, 2]
    assert archived[0].result == Modified({"value": 0})


async def test_one_process_of_the_fleet_applies_the_policy_by_itself(
    spell: Spell, url: str, namespace: str
) -> None:
    """As a chore of housekeeping, and the others do not at the same time."""
    from llmspell_dist.state.housekeeping import housekeep

    await record(spell, 3)
    await spell.hooks.history.retain(HistoryPolicy(max_count=1, min_count=1))
    assert await spell.hooks.history.policy() == HistoryPolicy(max_count=1, min_count=1)
    await spell._driver.run(housekeep(spell._assembly.core))
    assert await spell.hooks.history.count() == 1
    async with connect(url, namespace=namespace) as other:
        assert await other.hooks.history.policy() == HistoryPolicy(max_count=1, min_count=1)
        steps: HistoryKeeping = other.hooks.history._steps
        assert await other._driver.run(steps.tidy()) == 0, "it is another process's turn"


async def test_nothing_is_missed_until_a_lost_index_is_made_anew(
    spell: Spell, store: Store
) -> None:
    """Also when the newest runs are in an index again."""
    await record(spell, 3)
    (before, *_) = await spell.hooks.history.query()
    _, index = spell.hooks.history._steps.keys()
    store.raw("DEL", index)
    await record(spell, 1)
    assert len(await spell.hooks.history.query(hook="doubles")) == 4
    found = await spell.hooks.history.query(correlation_id="run", newest_first=True, limit=2)
    assert len(found) == 2
    assert await spell.hooks.history.get(before.id) == before


async def test_an_index_that_was_lost_is_made_anew(spell: Spell, store: Store) -> None:
    """The stream is the truth."""
    await record(spell, 3)
    index = store.space.hook_index("0")
    before = store.raw("ZRANGE", index, 0, -1)
    await spell._driver.run(_forget(index))
    await spell.hooks.history.retain(HistoryPolicy(max_count=2, min_count=1))
    assert await spell.hooks.history.tidy() == 1
    assert len(await spell.hooks.history.query(hook="doubles")) == 2
    assert set(store.raw("ZRANGE", index, 0, -1)) < set(before)


def _forget(key: bytes) -> Any:
    yield Command(pack(b"DEL", key), "DEL")


# --- without an event loop ------------------------------------------------------------------------


def test_the_blocking_surface_records_and_finds_the_same(
    url: str, namespace: str, store: Store
) -> None:
    """Over the client's background thread."""
    with blocking.connect(url, namespace=namespace) as spell:
        spell.hooks.register(WRITE, doubles, replayable=True)
        with context(correlation_id="run"):
            spell.state.set(S, "k", 21)
        spell.hooks.history.flush()
        (found,) = spell.hooks.history.query(correlation_id="run")
        assert found.result == Modified({"value": 42})
        spell.hooks.history.retain(HistoryPolicy(max_age=timedelta(days=1)))
        assert spell.hooks.history.tidy() == 0
        spell.state.set(S, "k", 22)
    with blocking.connect(url, namespace=namespace) as spell:
        assert spell.hooks.history.count() == 2, "the last one was written when it closed"


@pytest.mark.parametrize("lost", [False, True], ids=["indexed", "index lost"])
async def test_what_cannot_be_read_is_forgotten_as_anything_else(
    spell: Spell, store: Store, lost: bool
) -> None:
    """It hides no other record, and the policy is applied to it too."""
    history, index = store.space.hooks("0"), store.space.hook_index("0")
    await record(spell, 2)
    await spell.hooks.history.flush()
    store.raw("XADD", history, "*", "x", "y")
    store.raw("XADD", history, "*", "n", "high", "b", b"\xff\xfe")
    store.raw("ZADD", index, 0, b"t\0nonsense\0high")
    await record(spell, 2, hook=moody)
    if lost:
        await spell._driver.run(_forget(index))
    assert len(await spell.hooks.history.query()) >= 4
    await spell.hooks.history.retain(HistoryPolicy(max_count=2, min_count=1))
    assert await spell.hooks.history.tidy() >= 4
    assert await spell.hooks.history.count() == 2
    assert len(await spell.hooks.history.query()) == 2


async def test_a_chore_that_fails_stops_neither_others_nor_the_housekeeper(
    spell: Spell, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and every chore has its turn."""
    from llmspell_dist.state.housekeeping import housekeep

    done: list[str] = []

    def broken() -> Any:
        done.append("broken")
        raise ValueError("no field")
        yield

    def works() -> Any:
        done.append("works")
        yield from ()

    core = spell._assembly.core
    core.chores += [broken, works]
    await spell._driver.run(housekeep(core))
    store.raw("HDEL", core.keyspace.ctl("0"), "swept")
    await spell._driver.run(housekeep(core))
    assert done == ["broken", "works", "broken", "works"]
    assert caplog.text.count("broken failed") == 1
