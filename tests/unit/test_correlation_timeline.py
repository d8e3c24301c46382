"""Timelines: order, causes, effects, depth, circles, concurrency, chains, numbers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fix_correlation import START_US, R, build_timeline, entry, ids, link, shape
from hypothesis import given
from hypothesis import strategies as st

from llmspell_dist.correlated import EventLink, EventRelationship
from llmspell_dist.correlation import CorrelationQuery, TimelineConfig, auto_links
from llmspell_dist.correlation.graph import components, depths, without_circles
from llmspell_dist.errors import InvalidArgumentError

pytestmark = pytest.mark.unit


# --- order ----------------------------------------------------------------------------------------


def test_entries_stand_in_time_order_with_positions() -> None:
    """Whatever order they were read in."""
    timeline = build_timeline("run", [entry("c", 30), entry("a", 0), entry("b", 10)])
    assert ids(timeline) == ["a", "b", "c"]
    assert [one.position for one in timeline] == [0, 1, 2]
    assert timeline.relative_time(timeline[2]) == timedelta(milliseconds=30)
    assert len(timeline) == 3
    assert ids(timeline[1:]) == ["b", "c"]
    assert timeline.started == timeline[0].time


def test_within_one_moment_no_entry_stands_before_its_cause() -> None:
    """Servers count milliseconds; much happens in one."""
    timeline = build_timeline(
        "run", [entry("c", 5, cause="b"), entry("b", 5, cause="a"), entry("a", 5), entry("d", 5)]
    )
    assert ids(timeline) == ["a", "b", "c", "d"]
    linked = build_timeline("run", [entry("b", 5), entry("a", 5)], [link("b", "a")])
    assert ids(linked) == ["a", "b"]


def test_a_thing_that_was_recorded_twice_is_there_once() -> None:
    """A request that was sent again after a lost connection."""
    timeline = build_timeline("run", [entry("a", 0), entry("b", 1, cause="a"), entry("a", 2)])
    assert ids(timeline) == ["a", "b"]
    assert timeline.statistics.left_out == {"duplicate": 1}


def test_more_than_the_most_entries_are_cut_off_and_said_so() -> None:
    """The first ones stay: causes come before effects."""
    entries = [entry(str(n), n, cause=str(n - 1) if n else None) for n in range(10)]
    timeline = build_timeline("run", entries, [link("9", "0")], TimelineConfig(max_entries=4))
    assert ids(timeline) == ["0", "1", "2", "3"]
    assert timeline.truncated
    assert timeline.statistics.left_out == {"dangling": 1}
    assert not build_timeline("run", entries[:3]).truncated


def test_nothing_is_an_empty_timeline() -> None:
    """With numbers too."""
    timeline = build_timeline("run", [])
    assert list(timeline) == []
    assert timeline.chains == []
    assert timeline.started is None
    said = timeline.statistics
    assert (said.entries, said.duration, said.longest_gaps) == (0, timedelta(0), ())


# --- causes ---------------------------------------------------------------------------------------


def test_causation_ids_and_causal_links_make_causes_and_effects() -> None:
    """A link goes from what was caused to its cause."""
    entries = [entry("a"), entry("b", 1, cause="a"), entry("c", 2), entry("d", 3, cause="b")]
    timeline = build_timeline("run", entries, [link("c", "a"), link("d", "c", "response_to")])
    assert shape(timeline) == {
        "a": ([], 0),
        "b": (["a"], 1),
        "c": (["a"], 1),
        "d": (["b", "c"], 2),
    }
    assert ids(timeline.effects(timeline[0])) == ["b", "c"]
    assert ids(timeline.roots) == ["a"]
    assert ids(timeline.leaves) == ["d"]


@pytest.mark.parametrize("relationship", list(EventRelationship))
def test_only_causal_relationships_make_causes(relationship: EventRelationship) -> None:
    """To be a part of something, related to it or concurrent with it is not to come of it."""
    timeline = build_timeline("run", [entry("a"), entry("b", 1)], [link("b", "a", relationship)])
    causal = relationship in {R.CAUSED_BY, R.RESPONSE_TO, R.FOLLOWS_FROM}
    assert shape(timeline)["b"] == ((["a"], 1) if causal else ([], 0))
    assert relationship.causal is causal
    assert timeline.statistics.links_by_relationship == {relationship.value: 1}


def test_a_link_is_of_both_its_ends_but_stored_once() -> None:
    """The original stored it both ways, and every linked event became its own cause."""
    timeline = build_timeline("run", [entry("a"), entry("b", 1)], [link("b", "a")])
    assert timeline.links_of["a"] == timeline.links_of["b"] == timeline.links
    assert shape(timeline) == {"a": ([], 0), "b": (["a"], 1)}


def test_no_event_is_its_own_cause() -> None:
    """Neither said by itself nor linked."""
    timeline = build_timeline("run", [entry("a", cause="a")])
    assert shape(timeline) == {"a": ([], 0)}
    assert timeline.statistics.left_out == {"itself": 1}
    with pytest.raises(InvalidArgumentError, match="to_id must be another one than from_id"):
        link("a", "a")


def test_of_links_said_again_the_last_one_counts() -> None:
    """Weak ones count for nothing, and those whose ends are not there."""
    entries = [entry("a"), entry("b", 1), entry("c", 2)]
    links = [
        link("b", "a", strength=0.6),
        link("b", "a", strength=0.9),
        link("c", "a", strength=0.49),
        link("c", "nowhere"),
    ]
    timeline = build_timeline("run", entries, links)
    assert timeline.links == [links[1]]
    assert timeline.statistics.left_out == {"weak": 1, "dangling": 1}
    kept = build_timeline("run", entries, links, TimelineConfig(min_strength=0))
    assert shape(kept)["c"] == (["a"], 1)


def test_a_cause_that_is_not_there_is_counted() -> None:
    """It may belong to another correlation, or have been forgotten."""
    timeline = build_timeline("run", [entry("a", cause="elsewhere")])
    assert timeline.roots == list(timeline)
    assert timeline.statistics.unresolved == 1


def test_an_effect_whose_clock_is_behind_keeps_its_cause() -> None:
    """It stands before it in time, and below it in depth."""
    timeline = build_timeline(
        "run",
        [entry("effect", 0, cause="cause"), entry("cause", 5), entry("on", 6, cause="effect")],
    )
    assert ids(timeline) == ["effect", "cause", "on"]
    assert shape(timeline) == {"effect": (["cause"], 1), "cause": ([], 0), "on": (["effect"], 2)}


# --- circles --------------------------------------------------------------------------------------


def test_of_a_circle_the_edges_that_point_back_in_time_count_for_nothing() -> None:
    """Nothing loops, and depth is defined."""
    entries = [entry("a", 0, cause="c"), entry("b", 1, cause="a"), entry("c", 2, cause="b")]
    timeline = build_timeline("run", entries)
    assert shape(timeline) == {"a": ([], 0), "b": (["a"], 1), "c": (["b"], 2)}
    assert timeline.statistics.left_out == {"circular": 1}


def test_a_circle_in_one_moment_is_cut_too() -> None:
    """Where time says nothing, the order in which they came does."""
    timeline = build_timeline("run", [entry("a", cause="b"), entry("b", cause="a")])
    assert sorted(len(one.causes) for one in timeline) == [0, 1]


def test_what_only_hangs_on_a_circle_keeps_its_causes() -> None:
    """Also where it stands before it."""
    entries = [
        entry("early", 0, cause="a"),
        entry("a", 1, cause="b"),
        entry("b", 2, cause="a"),
    ]
    assert shape(build_timeline("run", entries)) == {
        "early": (["a"], 1),
        "a": ([], 0),
        "b": (["a"], 1),
    }


EDGES = st.integers(1, 12).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=30),
    )
)


@given(EDGES)
def test_components_are_what_can_reach_each_other(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Compared with reachability by brute force."""
    size, edges = case
    reach = [{node} for node in range(size)]
    for _ in range(size):
        for cause, effect in edges:
            for known in reach:
                if cause in known:
                    known.add(effect)
    found = components(size, edges)
    for one in range(size):
        for other in range(size):
            together = other in reach[one] and one in reach[other]
            assert (found[one] == found[other]) is together


@given(EDGES)
def test_what_is_left_has_no_circle_and_lost_no_more_than_it_must(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    """Edges forward in time all stay; depth is one more than the deepest cause."""
    size, given_edges = case
    edges = sorted({edge for edge in given_edges if edge[0] != edge[1]}, key=lambda e: (e[1], e[0]))
    kept, circular = without_circles(size, edges)
    assert sorted(kept + circular) == sorted(edges)
    assert all(
        cause < effect or (cause, effect) in kept
        for cause, effect in edges
        if (cause, effect) not in circular
    )
    assert all(cause > effect for cause, effect in circular)
    assert len(set(components(size, kept))) == size, "there is a circle"
    depth = depths(size, kept)
    for node in range(size):
        causes = [cause for cause, effect in kept if effect == node]
        assert depth[node] == (1 + max(depth[cause] for cause in causes) if causes else 0)


NAMES = "abcdefgh"


@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(NAMES), st.integers(0, 5), st.none() | st.sampled_from(NAMES + "?")
        ),
        max_size=10,
    ),
    links=st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.sampled_from(NAMES),
            st.sampled_from(list(EventRelationship)),
            st.floats(0, 1),
        ).filter(lambda one: one[0] != one[1]),
        max_size=10,
    ),
    automatic=st.booleans(),
)
def test_what_holds_for_every_timeline(
    entries: list[Any], links: list[Any], automatic: bool
) -> None:
    """Order, symmetry, no entry among its own causes however far back, depth, nothing lost."""
    made = [entry(name, ms, cause=cause) for name, ms, cause in entries]
    said = [EventLink(*one) for one in links]
    timeline = build_timeline("run", made, said, TimelineConfig(auto_link=automatic))
    assert {one.id for one in timeline} == {name for name, _, _ in entries}
    assert [one.position for one in timeline] == list(range(len(timeline)))
    times = [one.time_us for one in timeline]
    assert times == sorted(times)
    for one in timeline:
        assert list(one.causes) == sorted(set(one.causes))
        assert list(one.effects) == sorted(set(one.effects))
        assert all(one.position in timeline[cause].effects for cause in one.causes)
        assert all(one.position in timeline[effect].causes for effect in one.effects)
        assert one.depth == max((timeline[cause].depth + 1 for cause in one.causes), default=0)
        back = set(one.causes)
        for _ in timeline:
            back |= {cause for position in back for cause in timeline[position].causes}
        assert one.position not in back
        near = timeline.concurrent(one)
        assert one not in near
        assert not {other.position for other in near} & {*one.causes, *one.effects}
    for chain in timeline.chains:
        for cause, effect in zip(chain.positions, chain.positions[1:], strict=False):
            assert cause in timeline[effect].causes
        assert chain.complete is (not timeline[chain.positions[0]].causes)
        assert 0 <= chain.strength <= 1
    said_numbers = timeline.statistics
    assert said_numbers.entries == len(timeline) == sum(said_numbers.by_kind.values())
    assert said_numbers.roots == len(timeline.roots)
    assert said_numbers.leaves == len(timeline.leaves)


# --- beside each other ----------------------------------------------------------------------------


def test_concurrent_are_those_within_the_window_that_are_not_cause_or_effect() -> None:
    """The window's ends included; a link says it of those further apart."""
    entries = [
        entry("a", 0),
        entry("b", 50, cause="a"),
        entry("c", 100),
        entry("d", 101),
        entry("far", 9000),
    ]
    timeline = build_timeline("run", entries, [link("far", "a", "concurrent_with")])
    assert ids(timeline.concurrent(timeline[0])) == ["c", "far"]
    assert ids(timeline.concurrent(timeline[1])) == ["c", "d"]
    assert ids(timeline.concurrent(timeline[4])) == ["a"]
    narrow = build_timeline("run", entries, (), TimelineConfig(concurrency_window=timedelta(0)))
    assert narrow.concurrent(narrow[0]) == []


def test_chains_lead_from_a_root_to_each_last_effect_over_the_strongest_causes() -> None:
    """Their strength is the product; a causation id counts as certain."""
    entries = [entry("a"), entry("b", 10), entry("c", 20, cause="b"), entry("alone", 30)]
    timeline = build_timeline(
        "run", entries, [link("b", "a", strength=0.5), link("c", "a", strength=0.9)]
    )
    (chain,) = timeline.chains
    assert [timeline[position].id for position in chain.positions] == ["a", "b", "c"]
    assert chain.strength == 0.5
    assert chain.duration == timedelta(milliseconds=20)
    assert chain.complete
    short = build_timeline("run", entries, timeline.links, TimelineConfig(max_depth=1))
    assert [len(one.positions) for one in short.chains] == [2]
    assert not short.chains[0].complete


def test_numbers_of_a_timeline() -> None:
    """Counts, times, gaps."""
    entries = [
        entry("a", 0, type="tool.called", source="ann"),
        entry("b", 100, type="tool.called", source="bob", cause="a"),
        entry("c", 1100, type="tool.failed", source="ann"),
    ]
    said = build_timeline("run", entries).statistics
    assert said.by_kind == {"event": 3}
    assert said.by_type == {"tool.called": 2, "tool.failed": 1}
    assert said.by_source == {"ann": 2, "bob": 1}
    assert said.duration == timedelta(milliseconds=1100)
    assert said.average_gap == timedelta(milliseconds=550)
    assert [(gap.after, gap.duration) for gap in said.longest_gaps] == [
        (1, timedelta(seconds=1)),
        (0, timedelta(milliseconds=100)),
    ]
    assert (said.max_depth, said.roots, said.leaves, said.unresolved) == (1, 2, 2, 0)
    assert said.started is not None
    assert round(said.started.timestamp() * 1e6) == START_US


# --- guessed links --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "later", "apart_ms", "relationship"),
    [
        ("tool.request", "tool.response", 7000, R.RESPONSE_TO),
        ("tool.request", "tool.response", 10, R.RESPONSE_TO),
        ("tool.request", "other.response", 7000, None),
        ("hook.execution.start", "hook.execution.complete", 7000, R.PART_OF),
        ("job.started", "job.ended", 59_999, R.PART_OF),
        ("job.started", "job.ended", 60_000, None),
        ("a", "b", 99, R.CONCURRENT_WITH),
        ("a", "b", 100, R.FOLLOWS_FROM),
        ("a", "b", 4999, R.FOLLOWS_FROM),
        ("a", "b", 5000, None),
    ],
)
def test_links_are_guessed_from_types_and_times(
    earlier: str, later: str, apart_ms: int, relationship: EventRelationship | None
) -> None:
    """What names tell goes before what times suggest."""
    entries = [entry("1", 0, type=earlier), entry("2", apart_ms, type=later)]
    found = [
        (one.from_id, one.to_id, one.relationship, one.strength) for one in auto_links(entries)
    ]
    assert found == ([] if relationship is None else [("2", "1", relationship, 0.8)])


def test_guesses_look_back_ten_entries_and_follow_the_nearest() -> None:
    """And leave alone what says its cause."""
    entries = [entry("start", 0, type="job.start")]
    entries += [entry(str(n), 1000 * n + 1000) for n in range(10)]
    entries += [entry("end", 12_000, type="job.end"), entry("said", 12_500, cause="0")]
    found = {(one.from_id, one.to_id, one.relationship) for one in auto_links(entries)}
    assert ("end", "start", R.PART_OF) not in found
    assert ("end", "9", R.FOLLOWS_FROM) in found
    assert ("5", "4", R.FOLLOWS_FROM) in found
    assert ("5", "3", R.FOLLOWS_FROM) not in found
    assert not [one for one in found if one[0] == "said"]


def test_what_cannot_be_named_in_a_link_is_not_guessed_about() -> None:
    """A lease's id says its scope and name, and may be longer than a link's ends."""
    entries = [entry("a"), entry("b" * 300, 10), entry("c", 20)]
    assert [(one.from_id, one.to_id) for one in auto_links(entries)] == [("c", "a")]


def test_guessed_links_are_used_if_asked_for_and_never_over_one_that_was_made() -> None:
    """By default nothing is guessed."""
    entries = [entry("a"), entry("b", 1000)]
    assert build_timeline("run", entries).links == []
    guessed = build_timeline("run", entries, (), TimelineConfig(auto_link=True))
    assert shape(guessed)["b"] == (["a"], 1)
    made = [link("b", "a", "related_to")]
    assert build_timeline("run", entries, made, TimelineConfig(auto_link=True)).links == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_entries": 0},
        {"max_entries": 10_001},
        {"max_entries": 1.5},
        {"max_depth": 0},
        {"concurrency_window": 100},
        {"concurrency_window": timedelta(-1)},
        {"min_strength": 1.1},
        {"min_strength": "0.5"},
        {"auto_link": 1},
    ],
)
def test_a_wrong_configuration_is_named(wrong: dict[str, Any]) -> None:
    """Before anything is read."""
    with pytest.raises(InvalidArgumentError) as caught:
        TimelineConfig(**wrong)
    assert caught.value.argument in wrong
    assert CorrelationQuery() == CorrelationQuery()
