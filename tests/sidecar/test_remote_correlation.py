"""Correlations through a sidecar: the library's objects, as far as the caller may see them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from fix_remote import Grants
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist import connect
from llmspell_dist.context import context
from llmspell_dist.correlated import (
    KIND_EVENT,
    KIND_HOOK,
    KIND_LEASE,
    HookRun,
    LeaseEvent,
    pack_hook_run,
    pack_lease_event,
)
from llmspell_dist.correlation import (
    CorrelationQuery,
    Timeline,
    TimelineConfig,
    TimelineEntry,
    correlation,
)
from llmspell_dist.correlation.documents import timeline_document
from llmspell_dist.errors import SpellError
from llmspell_dist.events.model import Event
from llmspell_dist.events.wire import pack_event
from llmspell_dist.sidecar.auth.errors import ForbiddenError
from llmspell_dist.state.correlated import note_call

pytestmark = [pytest.mark.integration, pytest.mark.one_server]

RUN = "run-1"
TOLD = ("kind", "id", "type", "time_us", "causation_id", "source", "target", "language", "after")
PLACED = ("trimmed", "position", "causes", "effects", "depth")


async def happen(sidecar: Sidecar) -> None:
    """Let something of every kind happen, with a link, and with what nobody can read."""
    spell = sidecar.services.spell
    driver = spell.state._driver
    hook = HookRun(id="h1", point="p", hook="audit", result="stop", error="no", causation_id="x")
    lease = LeaseEvent(what="acquired", scope="agent:a", name="main", token=7, owner="ann")
    broken = pack_event(Event("b.broken", "data"), driver.core.values.codec)
    damaged = broken.replace(b"\xa4data", b"\xc1data")
    assert damaged != broken
    with correlation(RUN, actor="ann"):
        asked = await spell.events.publish("a.asked", {"n": (1, b"x")}, tags=["t"], target="bob")
        with context(causation_id=asked.id):
            await spell.state.set("agent:a", "k", "a secret")
            await spell.state.set_many("agent:b", {"k": 1, "l": 2})
        answered = await spell.events.publish("a.answered", ttl=60, priority=3)
    noted = (
        (KIND_HOOK, pack_hook_run(hook)),
        (KIND_LEASE, pack_lease_event(lease)),
        (b"z", b"of a later release"),
        (KIND_EVENT, damaged),
    )
    await driver.execute(note_call(driver.core, RUN, noted))
    await spell.correlation.link(
        answered.id, asked.id, "response_to", strength=0.7, metadata={"n": 1}, correlation_id=RUN
    )


def all_of(entry: TimelineEntry) -> Any:
    """Return everything that an entry says."""
    said = [getattr(entry, name) for name in (*TOLD, *PLACED)]
    try:
        return *said, list(entry.tags), type(entry.tags), entry.detail, entry.data
    except SpellError as error:
        return *said, list(entry.tags), type(error), str(error)


def whole(timeline: Timeline) -> Any:
    """Return everything that a timeline says."""
    return (
        [all_of(entry) for entry in timeline],
        [asdict(link) for link in timeline.links],
        timeline.statistics,
        timeline.chains,
        timeline.config,
        timeline.truncated,
        [[one.id for one in timeline.concurrent(entry)] for entry in timeline],
    )


async def test_a_timeline_is_the_one_that_the_library_gives(sidecar: Sidecar) -> None:
    """Down to the data, the changes, the strengths of links, and what cannot be read."""
    await happen(sidecar)
    config = TimelineConfig(auto_link=True, max_depth=3)
    async with connect(sidecar.url) as remote:
        for given in (None, config):
            ours = await sidecar.services.spell.correlation.timeline(RUN, config=given)
            # The context here must not get into what others did.
            with correlation("another", actor="me"):
                theirs = await remote.correlation.timeline(RUN, config=given)
            assert whole(theirs) == whole(ours)
            assert timeline_document(theirs) == timeline_document(ours)
            assert {one.kind.value for one in theirs} == {
                *("event", "change", "hook", "lease", "unknown")
            }
            assert "a secret" not in str([one.detail for one in theirs if one.kind == "change"])
        cut = await remote.correlation.timeline(RUN, max_entries=2)
        assert (len(cut), cut.truncated) == (2, True)


async def test_a_query_finds_what_the_library_finds(sidecar: Sidecar) -> None:
    """With scores and reasons, by every filter, in every order."""
    await happen(sidecar)
    ours = sidecar.services.spell.correlation
    queries = (
        CorrelationQuery(correlation_ids=[RUN], types=["a.*"], sort="relevance"),
        CorrelationQuery(tags=["t"], targets=["bob"], languages=["python"], sources=["ann"]),
        CorrelationQuery(relationships=["response_to"], min_events=1, max_events=100, max_depth=5),
        CorrelationQuery(root_causes_only=True, leaf_effects_only=True, sort="type", limit=2),
        None,
    )
    async with connect(sidecar.url) as remote:
        for query in queries:
            for config in (None, TimelineConfig(min_strength=0.9)):
                mine = await ours.query(query, config=config)
                found: Any = await remote.correlation.query(query, config=config)
                assert [
                    (one.correlation_id, one.score, one.reasons, all_of(one.entry)) for one in found
                ] == [
                    (one.correlation_id, one.score, one.reasons, all_of(one.entry)) for one in mine
                ]
                assert found.not_allowed == 0
        assert await remote.correlation.recent() == await ours.recent()


async def test_what_may_not_be_read_is_left_out_and_counted(
    start_sidecar: StartSidecar, granted: Grants
) -> None:
    """Of a timeline in its statistics, of a query beside its matches; the rest is refused."""
    access, token = granted((f"correlation:{RUN}", "read"), ("agent:a", "read"))
    sidecar = await start_sidecar(access)
    await happen(sidecar)
    async with connect(sidecar.url, token=token) as remote:
        seen = await remote.correlation.timeline(RUN)
        everything = await sidecar.services.spell.correlation.timeline(RUN)
        assert {one.target for one in seen if one.kind != "hook"} == {"agent:a"}
        assert seen.statistics.left_out["not_allowed"] == len(everything) - len(seen) > 0
        found: Any = await remote.correlation.query(CorrelationQuery(correlation_ids=[RUN]))
        assert (len(found), found.not_allowed) == (len(seen), len(everything) - len(seen))
        for refused in (
            remote.correlation.link("a", "b", "caused_by", correlation_id=RUN),
            remote.correlation.forget(RUN),
            remote.correlation.trim(),
            remote.correlation.recent(),
            remote.correlation.query(),
        ):
            with pytest.raises(ForbiddenError):
                await refused


async def test_an_event_that_is_heard_has_no_causes_of_who_hears_it(sidecar: Sidecar) -> None:
    """As in the library: it is what was published, whatever context is in force here."""
    ours = sidecar.services.spell.events
    published = await ours.publish("a.alone")
    async with connect(sidecar.url) as remote:
        with correlation("mine", actor="me"):
            async with remote.events.subscribe("a.*") as heard:
                await ours.publish_event(published)
                assert await anext(aiter(heard)) == published
    assert (published.correlation_id, published.causation_id, published.source) == (None,) * 3
