"""Correlations on real servers: recorded, kept for a time, the same from every process."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fix_correlation import ids, shape
from fix_servers import behind
from fix_state import Store

from llmspell_dist import Options, connect
from llmspell_dist.blocking import connect as connect_blocking
from llmspell_dist.client import Spell
from llmspell_dist.context import MAX_BYTES, context
from llmspell_dist.correlated import (
    KIND_HOOK,
    HookRun,
    pack_hook_run,
)
from llmspell_dist.correlation import (
    CorrelationQuery,
    EntryKind,
    EventRelationship,
    TimelineConfig,
    correlation,
    following,
    from_headers,
    to_headers,
)
from llmspell_dist.correlation.steps import STREAM_PAGE
from llmspell_dist.errors import ConflictError, InvalidArgumentError
from llmspell_dist.events.model import Event
from llmspell_dist.events.wire import pack_event
from llmspell_dist.retention import Retention
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope
from llmspell_dist.state.correlated import note_call
from llmspell_dist.state.housekeeping import housekeep

pytestmark = [pytest.mark.integration, pytest.mark.both_surfaces]

WEEK_MS = 7 * 86_400_000


async def note(spell: Spell, correlation_id: str, *items: tuple[bytes, bytes]) -> None:
    """Record things as the services do."""
    driver = behind.get(spell, spell).state._driver
    await driver.execute(note_call(driver.core, correlation_id, items))


def packed(spell: Spell, event: Event) -> tuple[bytes, bytes]:
    """An event as its kind and bytes."""
    return b"e", pack_event(event, spell.state._driver.core.values.codec)


# --- commits --------------------------------------------------------------------------------------


async def test_commits_and_events_keep_the_order_in_which_they_happened(spell: Spell) -> None:
    """Also where many of them fall into one millisecond of the server's clock."""
    happened: list[str] = []
    with correlation("in-order"):
        for number in range(30):
            happened.append(str(await spell.state.set("agent:a", "k", number)))
            happened.append((await spell.events.publish("step.done", number)).id)
            if number % 3 == 0:
                happened.append((await spell.events.publish("step.told", number)).id)
    timeline = await spell.correlation.timeline("in-order")
    assert [entry.id for entry in timeline.entries] == happened


@pytest.mark.parametrize(
    "run",
    ["run-1", "x" * 31, "x" * 32, "x" * MAX_BYTES, "Läufe {a}:*%", "a:log", "~._-", "漢" * 85],
)
async def test_commits_are_remembered_with_their_correlation(
    spell: Spell, store: Store, run: str
) -> None:
    """Whatever text its id is; the keys are those that Python spells."""
    with correlation(run, actor="ann"):
        first = await spell.state.set("agent:a", "k", 1)
        second = await spell.state.set_many("agent:b", {"k": 1, "l": 2})
    await spell.state.set("agent:a", "k", 2)
    log = store.space.correlation_log("0", run)
    assert store.raw("LRANGE", log, 0, -1) == [first.packed, second.packed]
    assert 0 < store.raw("PTTL", log) <= WEEK_MS
    timeline = await spell.correlation.timeline(run)
    assert [(one.kind, one.id, one.source, one.target) for one in timeline] == [
        (EntryKind.CHANGE, str(first), "ann", "agent:a"),
        (EntryKind.CHANGE, str(second), "ann", "agent:b"),
    ]
    assert [one.key for one in timeline[1].detail.changes] == ["k", "l"]
    assert [known.correlation_id for known in await spell.correlation.recent()] == [run]


async def test_values_never_are_in_a_timeline(spell: Spell) -> None:
    """It says which keys changed; their values are the state's to show."""
    with correlation("run"):
        await spell.state.set("agent:a", "k", "a secret" * 100)
        await spell.state.append("agent:a", "list", "a secret")
        await spell.state.delete("agent:a", "k")
    timeline = await spell.correlation.timeline("run")
    assert [one.type for one in timeline] == ["state.set", "state.append", "state.delete"]
    changes = [change for one in timeline for change in one.detail.changes]
    assert [change.payload for change in changes] == [None] * len(changes)
    assert [change.key for change in changes] == ["k", "list", "k"]


async def test_commits_of_one_turn_are_remembered_each_with_its_own(spell: Spell) -> None:
    """Group commit carries those of several correlations, and those of none."""

    async def write(number: int) -> None:
        name = f"run-{number % 3}"
        if number % 4:
            with correlation(name):
                await spell.state.set(f"agent:{number}", "k", number)
        else:
            await spell.state.set(f"agent:{number}", "k", number)

    await asyncio.gather(*[write(number) for number in range(60)])
    for which in range(3):
        timeline = await spell.correlation.timeline(f"run-{which}")
        scopes = {one.target for one in timeline}
        assert scopes == {f"agent:{n}" for n in range(60) if n % 4 and n % 3 == which}


async def test_a_commit_that_is_refused_is_not_remembered(spell: Spell) -> None:
    """Nor is one that changes nothing."""
    with correlation("run"):
        with pytest.raises(ConflictError):
            await spell.state.compare_and_set("agent:a", "k", 1, expected=Revision(1, 1))
        await spell.state.delete("agent:a", "nothing")
    assert len(await spell.correlation.timeline("run")) == 0
    assert await spell.correlation.recent() == []


@pytest.mark.library_only("a request that names a cause, but no correlation, begins one")
async def test_what_surrounds_a_correlation_costs_other_commits_nothing(
    spell: Spell, store: Store
) -> None:
    """No key is made for a commit without a correlation id, whatever else is said about it."""
    with context(actor="ann", causation_id="c", traceparent="t"):
        await spell.state.set("agent:a", "k", 1)
    assert not [key for key in store.all_keys() if b":corr" in key]


async def test_a_key_of_another_type_stops_no_commit(spell: Spell, store: Store) -> None:
    """What is only remembered may fail, what it remembers may not."""
    store.raw("SET", store.space.correlation_log("0", "run"), "x")
    store.raw("SET", store.space.correlations("0"), "x")
    with correlation("run"):
        revision = await spell.state.set("agent:a", "k", 1)
    assert (await spell.state.get_record("agent:a", "k")).revision == revision  # type: ignore[union-attr]


async def test_a_commit_says_its_root_if_it_is_another(spell: Spell, store: Store) -> None:
    """And its parent as its cause."""
    with correlation("run"):
        await spell.state.set("agent:a", "k", 1)
        with correlation() as child:
            await spell.state.set("agent:a", "k", 2)
    first, second = (entry.meta for entry in store.log())
    assert (first.get("r"), first.get("p")) == (None, None)
    assert (second["c"], second["r"], second["p"]) == (child.correlation_id, "run", "run")


# --- all kinds ------------------------------------------------------------------------------------


async def test_events_commits_and_hook_runs_make_one_timeline(spell: Spell) -> None:
    """In order of server time, tied by what they say caused them."""
    with correlation("run", actor="ann") as run:
        asked = await spell.events.publish("tool.request", {"n": 1})
        with context(causation_id=asked.id):
            changed = await spell.state.set("agent:a", "k", 1)
            hook = HookRun(
                id="h1",
                point="after_state_write",
                hook="audit",
                result="continue",
                causation_id=str(changed),
            )
            await note(spell, "run", (KIND_HOOK, pack_hook_run(hook)))
        answered = await spell.events.publish("tool.response", {"n": 2})
        await spell.correlation.link(
            answered.id, asked.id, EventRelationship.RESPONSE_TO, strength=1, metadata={"n": 1}
        )
    timeline = await spell.correlation.timeline("run")
    assert shape(timeline) == {
        asked.id: ([], 0),
        str(changed): ([asked.id], 1),
        "h1": ([str(changed)], 2),
        answered.id: ([asked.id], 1),
    }
    kinds = {one.id: one.kind for one in timeline}
    assert [kinds[one] for one in (asked.id, str(changed), "h1")] == ["event", "change", "hook"]
    assert timeline.by_id[asked.id].detail.data == {"n": 1}
    assert timeline.by_id[asked.id].source == "ann"
    assert timeline.by_id[asked.id].detail.traceparent == run.traceparent
    assert timeline.links[0].metadata == {"n": 1}


async def test_what_is_sent_twice_is_there_once(spell: Spell) -> None:
    """As after a lost reply."""
    event = packed(spell, Event("a", correlation_id="run"))
    await note(spell, "run", event)
    await note(spell, "run", event)
    for _ in range(2):
        await spell.correlation.link("x", "y", "related_to", correlation_id="run")
    timeline = await spell.correlation.timeline("run")
    assert len(timeline) == 1
    assert timeline.statistics.left_out == {"duplicate": 1, "dangling": 2}


async def test_links_go_to_the_correlation_in_force_or_the_one_that_is_named(
    spell: Spell, store: Store
) -> None:
    """Without either it is an error that says so; a link with itself too. Nothing is sent."""
    with pytest.raises(InvalidArgumentError, match="correlation_id must be given"):
        await spell.correlation.link("b", "a", "caused_by")
    with pytest.raises(InvalidArgumentError, match="to_id must be another one"):
        await spell.correlation.link("a", "a", "caused_by", correlation_id="run")
    with pytest.raises(InvalidArgumentError, match="relationship"):
        await spell.correlation.link("b", "a", "likes", correlation_id="run")
    assert not [key for key in store.all_keys() if b":corr" in key]
    with correlation("in-force"):
        await spell.correlation.link("b", "a", "caused_by")
    await spell.correlation.link("b", "a", "caused_by", correlation_id="named")
    known = {one.correlation_id for one in await spell.correlation.recent()}
    assert known == {"in-force", "named"}


# --- across processes -----------------------------------------------------------------------------


async def test_two_clients_and_the_blocking_one_see_the_same(
    spell: Spell, url: str, namespace: str
) -> None:
    """Also over the other's causes: the context crosses in headers."""
    with correlation("run", actor="here") as here:
        asked = await spell.events.publish("job.request")
        headers = to_headers(here, causation_id=asked.id)
    async with connect(url, namespace=namespace) as other:
        with correlation(from_headers(headers), actor="there"):
            done = await other.state.set("agent:a", "k", 1)
        seen = await other.correlation.timeline("run")
    mine = await spell.correlation.timeline("run")
    blocking = await asyncio.to_thread(_seen_blocking, url, namespace)
    assert shape(mine) == shape(seen) == blocking == {asked.id: ([], 0), str(done): ([asked.id], 1)}


async def test_commits_of_several_shards_make_one_timeline(url: str, namespace: str) -> None:
    """Each is remembered in its scope's shard."""
    async with connect(url, namespace=f"{namespace}-sharded", options=Options(shards=8)) as spell:
        with correlation("run"):
            revisions = {await spell.state.set(f"agent:{n}", "k", n) for n in range(40)}
            event = await spell.events.publish("a")
        timeline = await spell.correlation.timeline("run")
        shards = {
            spell.state._driver.core.keyspace.shard(Scope.parse(f"agent:{n}")) for n in range(40)
        }
        assert len(shards) > 4
        assert set(ids(timeline)) == {event.id, *map(str, revisions)}
        assert [one.correlation_id for one in await spell.correlation.recent()] == ["run"]
        assert await spell.correlation.forget("run")
        assert await spell.correlation.recent() == []
        assert list(await spell.correlation.timeline("run")) == []


async def test_more_correlations_than_a_page_are_listed(spell: Spell, store: Store) -> None:
    """The last one first."""
    members = [part for n in range(1203) for part in (10**12 + n, f"run-{n}")]
    store.raw("ZADD", store.space.correlations("0"), *members)
    found = await spell.correlation.recent(limit=1201)
    assert [one.correlation_id for one in found] == [f"run-{n}" for n in range(1202, 1, -1)]
    assert len(await spell.correlation.recent(limit=500)) == 500


async def test_correlations_of_one_millisecond_are_listed_in_one_order(
    spell: Spell, store: Store
) -> None:
    """However many are asked for: fewer are the beginning of more."""
    members = [part for n in range(1203) for part in (10**12, f"run-%3A{n}")]
    store.raw("ZADD", store.space.correlations("0"), *members)
    whole = await spell.correlation.recent(limit=2000)
    assert len(whole) == 1203
    for limit in (1, 7, 500, 501):
        assert await spell.correlation.recent(limit=limit) == whole[:limit]


async def test_who_handles_an_event_or_a_change_goes_on_in_its_correlation(spell: Spell) -> None:
    """With the root that a commit says; what belongs to none begins one."""
    with correlation("root"), correlation() as run:
        event = await spell.events.publish("job.wanted")
        await spell.state.set("agent:a", "k", 1)
    (entry,) = await behind.get(spell, spell).log.entries()
    (change,) = await spell.state.history("agent:a", "k")
    for cause, name in (
        (event, event.id),
        (entry, str(entry.revision)),
        (change, str(entry.revision)),
    ):
        found = following(cause)
        assert (found.correlation_id, found.causation_id) == (run.correlation_id, name)
        assert found.traceparent == run.traceparent
        assert found.root_id == ("root" if cause is not event else run.correlation_id)
    with correlation(following(event)):
        done = await spell.events.publish("job.done")
    timeline = await spell.correlation.timeline(run.correlation_id)
    assert shape(timeline)[done.id] == ([event.id], 1)
    alone = await spell.events.publish("job.alone")
    begun = following(alone)
    assert begun.is_root
    assert begun.causation_id == alone.id
    with pytest.raises(InvalidArgumentError, match="cause"):
        following("event-1")  # type: ignore[arg-type]


def _seen_blocking(url: str, namespace: str) -> Any:
    with connect_blocking(url, namespace=namespace) as spell:
        assert [one.correlation_id for one in spell.correlation.recent()] == ["run"]
        found = spell.correlation.query(CorrelationQuery(correlation_ids=["run"]))
        assert [one.entry.position for one in found] == [0, 1]
        with correlation("run"):
            link = spell.correlation.link("b", "a", "caused_by")
        assert link.relationship is EventRelationship.CAUSED_BY
        return shape(spell.correlation.timeline("run"))


# --- how long it is kept --------------------------------------------------------------------------


async def test_a_trimmed_commit_is_shown_as_one_whose_details_are_gone(
    url: str, namespace: str
) -> None:
    """The log keeps what its retention says, which may be less."""
    options = Options(retention=Retention(max_entries=1))
    async with connect(url, namespace=namespace, options=options) as spell:
        with correlation("run"):
            first = await spell.state.set("agent:a", "k", 1)
            second = await spell.state.set("agent:a", "k", 2)
        await spell.log.trim()
        timeline = await spell.correlation.timeline("run")
    assert ids(timeline) == [str(first), str(second)]
    assert [one.trimmed for one in timeline] == [True, False]
    assert (timeline[0].kind, timeline[0].detail) == (EntryKind.CHANGE, None)
    assert timeline.statistics.trimmed == 1


async def test_a_correlation_expires_a_week_after_its_last_activity(
    spell: Spell, store: Store
) -> None:
    """Any activity prolongs all of it."""
    await note(spell, "run", packed(spell, Event("a")))
    stream = store.space.correlation("0", "run")
    store.raw("PEXPIRE", stream, 5000)
    with correlation("run"):
        await spell.state.set("agent:a", "k", 1)
    log = store.space.correlation_log("0", "run")
    assert WEEK_MS - 60_000 < store.raw("PTTL", stream) <= WEEK_MS
    store.raw("PEXPIRE", log, 5000)
    await spell.events.publish("a", correlation_id="run")
    assert WEEK_MS - 60_000 < store.raw("PTTL", log) <= WEEK_MS
    store.raw("PEXPIRE", log, 5000)
    await note(spell, "run", packed(spell, Event("b")))
    assert WEEK_MS - 60_000 < store.raw("PTTL", log) <= WEEK_MS


async def test_commits_of_a_correlation_are_bounded(spell: Spell, store: Store) -> None:
    """The oldest go; the list is as long as it was."""
    log = store.space.correlation_log("0", "run")
    old = [Revision(1, number).packed for number in range(10_000)]
    for at in range(0, len(old), 1000):
        store.raw("RPUSH", log, *old[at : at + 1000])
    with correlation("run"):
        newest = await spell.state.set("agent:a", "k", 1)
    assert store.raw("LLEN", log) == 10_000
    assert store.raw("LINDEX", log, 0) == old[1]
    assert store.raw("LINDEX", log, -1) == newest.packed


async def test_events_of_a_correlation_are_bounded(spell: Spell, store: Store) -> None:
    """About 10,000, and a timeline says that it is cut off."""
    events = [packed(spell, Event("a", n)) for n in range(10_300)]
    for at in range(0, len(events), 500):
        await note(spell, "run", *events[at : at + 500])
    assert 10_000 <= store.raw("XLEN", store.space.correlation("0", "run")) < 10_200
    timeline = await spell.correlation.timeline("run")
    assert len(timeline) == 10_000
    some = await spell.correlation.timeline("run", max_entries=5)
    assert ids(some) == ids(timeline)[:5]
    assert some.truncated


async def test_the_correlations_that_were_active_longest_ago_are_forgotten(
    spell: Spell, store: Store
) -> None:
    """As many stay as the settings say."""
    for number in range(6):
        with correlation(f"run {number}"):
            await spell.state.set("agent:a", "k", number)
        await spell.events.publish("a", correlation_id=f"run {number}")
        store.raw("ZADD", store.space.correlations("0"), number + 10**12, f"run%20{number}")
    store.raw("ZADD", store.space.correlations("0"), 5, "long-over")
    store.raw("HSET", store.space.ctl("0"), "correlations", 2)
    now = await spell.correlation.trim()
    # All of them are older than a week by their scores.
    assert now == 7
    for number in range(6):
        with correlation(f"run {number}"):
            await spell.state.set("agent:a", "k", number)
    assert await spell.correlation.trim() == 4
    left = {key for key in store.all_keys() if b":corr:" in key}
    assert not {store.space.correlation("0", f"run {n}") for n in range(4)} & left
    assert not {store.space.correlation_log("0", f"run {n}") for n in range(4)} & left
    assert store.space.correlation_log("0", "run 5") in left
    assert len(await spell.correlation.timeline("run 0")) == 0


async def test_how_many_are_kept_is_the_namespaces_and_housekeeping_sees_to_it(
    spell: Spell, url: str, namespace: str
) -> None:
    """Whoever keeps house does as the option says that somebody gave."""
    for number in range(4):
        with correlation(f"run-{number}"):
            await spell.state.set("agent:a", "k", number)
    assert await spell.correlation.trim() == 0
    async with connect(url, namespace=namespace, options=Options(max_correlations=2)):
        pass
    driver = behind.get(spell, spell).state._driver
    while await driver.run(housekeep(driver.core)):
        pass
    assert {one.correlation_id for one in await spell.correlation.recent()} == {"run-2", "run-3"}
    with pytest.raises(InvalidArgumentError, match="max_correlations"):
        Options(max_correlations=0)


async def test_a_correlation_can_be_forgotten(spell: Spell, store: Store) -> None:
    """The log keeps its commits."""
    with correlation("run"):
        await spell.state.set("agent:a", "k", 1)
    assert await spell.correlation.forget("run")
    assert not await spell.correlation.forget("run")
    assert len(await spell.correlation.timeline("run")) == 0
    assert await spell.correlation.recent() == []
    assert len(store.log()) == 1


# --- many -----------------------------------------------------------------------------------------


async def test_a_timeline_of_several_pages_is_whole(spell: Spell) -> None:
    """Events and commits, each in their order."""
    count = 2 * STREAM_PAGE + 17
    events = [Event("a", n, correlation_id="run") for n in range(count)]
    assert await spell.events.publish_many(events) == count

    async def write(number: int) -> Revision:
        with correlation("run"):
            return await spell.state.set("agent:a", f"k{number}", number)

    revisions = await asyncio.gather(*[write(number) for number in range(1100)])
    timeline = await spell.correlation.timeline("run")
    said = [one.id for one in timeline if one.kind is EntryKind.EVENT]
    assert said == [event.id for event in events]
    changed = [one.id for one in timeline if one.kind is EntryKind.CHANGE]
    assert changed == [str(revision) for revision in sorted(revisions)]


async def test_a_query_looks_at_those_that_were_active_last(spell: Spell) -> None:
    """Or at those that it names; with limit and order."""
    for number in range(5):
        with correlation(f"run-{number}"):
            await spell.state.set("agent:a", "k", number)
            await spell.events.publish("a.b", number, tags=["odd"] if number % 2 else [])
    found = await spell.correlation.query(CorrelationQuery(types=["a.*"], tags=["odd"]))
    assert [one.correlation_id for one in found] == ["run-1", "run-3"]
    few = CorrelationQuery(max_correlations=2, types=["state.*"], sort="time_descending", limit=1)
    assert [one.correlation_id for one in await spell.correlation.query(few)] == ["run-4"]
    later = datetime.now(UTC) + timedelta(days=1)
    assert await spell.correlation.query(CorrelationQuery(since=later)) == []
    assert await spell.correlation.recent(since=later) == []
    assert len(await spell.correlation.recent(limit=2)) == 2
    assert len(await spell.correlation.query()) == 10


async def test_bad_input_is_named_and_nothing_is_sent(spell: Spell) -> None:
    """Of every operation."""
    with pytest.raises(InvalidArgumentError, match="correlation_id"):
        await spell.correlation.timeline("")
    with pytest.raises(InvalidArgumentError, match="max_entries"):
        await spell.correlation.timeline("run", max_entries=0)
    with pytest.raises(InvalidArgumentError, match="config must be one of"):
        await spell.correlation.timeline("run", max_events=1)
    with pytest.raises(InvalidArgumentError, match="config"):
        await spell.correlation.timeline("run", config={})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="query"):
        await spell.correlation.query({})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="limit"):
        await spell.correlation.recent(limit=0)
    with pytest.raises(InvalidArgumentError, match="correlation_id"):
        await spell.correlation.forget("\ud800")
    assert "run" not in repr(spell.correlation)
    assert len(await spell.correlation.timeline("run", config=TimelineConfig(max_entries=1))) == 0
