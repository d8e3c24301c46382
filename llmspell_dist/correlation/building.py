"""From entries and links to a timeline: their order, who caused whom, how deep; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter

from llmspell_dist.correlated import EventLink, EventRelationship
from llmspell_dist.correlation.auto_links import auto_links
from llmspell_dist.correlation.graph import Edge, depths, without_circles
from llmspell_dist.correlation.model import EntryKind, TimelineConfig, TimelineEntry
from llmspell_dist.correlation.timeline import Timeline
from llmspell_dist.revision import NO_REVISION, Revision

__all__ = ["build_timeline"]

_by_time = attrgetter("time_us")


def build_timeline(
    correlation_id: str,
    entries: Sequence[TimelineEntry],
    links: Sequence[EventLink] = (),
    config: TimelineConfig | None = None,
    *,
    truncated: bool = False,
    unreadable: int = 0,
) -> Timeline:
    """Put entries in order and find their causes; pure. The entries given become the timeline's."""
    config = config or TimelineConfig()
    left_out: Counter[str] = Counter()
    ordered = _in_order(entries)
    by_id = {entry.id: entry for entry in ordered}
    if len(by_id) < len(ordered):  # recorded twice, as by a request that was sent again
        left_out["duplicate"] += len(ordered) - len(by_id)
        by_id = {entry.id: entry for entry in reversed(ordered)}  # the first of each
        ordered = [entry for entry in ordered if by_id[entry.id] is entry]
    if len(ordered) > config.max_entries:
        truncated = True
        del ordered[config.max_entries :]
        by_id = {entry.id: entry for entry in ordered}

    said = list(links)
    if config.auto_link:
        linked = {frozenset((link.from_id, link.to_id)) for link in said}
        said += [
            link
            for link in auto_links(ordered)
            if frozenset((link.from_id, link.to_id)) not in linked
        ]
    kept = _usable(said, by_id, config, left_out)
    edges, strengths = _edges(ordered, by_id, kept)
    if any(cause >= effect for cause, effect in edges):
        _causes_first(ordered, kept)
        edges, strengths = _edges(ordered, by_id, kept)
        left_out["itself"] += sum([cause == effect for cause, effect in edges])
        edges, circular = without_circles(
            len(ordered), [edge for edge in edges if edge[0] != edge[1]]
        )
        left_out["circular"] += len(circular)
    _connect(ordered, edges)
    return Timeline(
        correlation_id,
        ordered,
        kept,
        config,
        truncated=truncated,
        strengths=strengths,
        left_out={why: count for why, count in left_out.items() if count},
        unreadable=unreadable,
    )


def _in_order(entries: Sequence[TimelineEntry]) -> list[TimelineEntry]:
    """Sort by the server's clock; within one millisecond events behind the commits before them."""
    ordered = sorted(entries, key=_by_time)
    for place in _shared_moments(ordered):
        moment = ordered[place]
        if any(entry.kind is EntryKind.CHANGE for entry in moment):
            ordered[place] = sorted(moment, key=_within_a_moment)
    return ordered


def _shared_moments(ordered: list[TimelineEntry]) -> Iterator[slice]:
    """Yield where more than one entry has the same time."""
    start = 0
    for stop in range(1, len(ordered) + 1):
        if stop < len(ordered) and ordered[stop].time_us == ordered[start].time_us:
            continue
        if stop - start > 1:
            yield slice(start, stop)
        start = stop


def _within_a_moment(entry: TimelineEntry) -> tuple[int, int]:
    """Return the number of the commit that an entry is or comes behind; -1: before all of them."""
    if entry.kind is EntryKind.CHANGE:
        number = entry.id.partition("-")[2]
        return int(number) if number.isdecimal() else 0, 0
    after = entry.after or NO_REVISION
    last = Revision.unpack(after) if len(after) == len(NO_REVISION) else None
    same = last is not None and last.ms == entry.time_us // 1000
    return last.seq if same and last is not None else -1, 1


def _usable(
    links: list[EventLink],
    by_id: dict[str, TimelineEntry],
    config: TimelineConfig,
    left_out: Counter[str],
) -> list[EventLink]:
    """Return the links that count, each once: the one that was made last."""
    last: dict[tuple[str, str, EventRelationship], EventLink] = {}
    for link in links:
        if link.strength < config.min_strength:
            left_out["weak"] += 1
        elif link.from_id not in by_id or link.to_id not in by_id:
            left_out["dangling"] += 1
        else:
            last[link.from_id, link.to_id, link.relationship] = link
    return list(last.values())


def _causes_first(ordered: list[TimelineEntry], links: list[EventLink]) -> None:
    """Within one moment of the clock no entry stands before its cause."""
    linked: dict[str, list[str]] = {}
    for link in links:
        if link.relationship.causal:
            linked.setdefault(link.from_id, []).append(link.to_id)
    for shared in _shared_moments(ordered):
        moment = ordered[shared]
        place = {entry.id: number for number, entry in enumerate(moment)}
        if _out_of_order(moment, place, linked):
            ordered[shared] = _sorted_moment(moment, place, linked)


def _causes_of(entry: TimelineEntry, linked: dict[str, list[str]]) -> list[str]:
    found = linked.get(entry.id, [])
    return found if entry.causation_id is None else [entry.causation_id, *found]


def _out_of_order(
    moment: list[TimelineEntry], place: dict[str, int], linked: dict[str, list[str]]
) -> bool:
    for number, entry in enumerate(moment):
        if place.get(entry.causation_id, -1) > number:  # type: ignore[arg-type]
            return True
        if linked and any(place.get(one, -1) > number for one in linked.get(entry.id, ())):
            return True
    return False


def _sorted_moment(
    moment: list[TimelineEntry], place: dict[str, int], linked: dict[str, list[str]]
) -> list[TimelineEntry]:
    """Return the entries of one moment, each after its causes; circles are cut where met."""
    done: list[TimelineEntry] = []
    seen: set[int] = set()
    for first in range(len(moment)):
        stack = [(first, False)]
        while stack:
            number, finished = stack.pop()
            if finished:
                done.append(moment[number])
                continue
            if number in seen:
                continue
            seen.add(number)
            stack.append((number, True))
            before = {place[one] for one in _causes_of(moment[number], linked) if one in place}
            stack += [(one, False) for one in sorted(before - seen, reverse=True)]
    return done


def _edges(
    ordered: list[TimelineEntry], by_id: dict[str, TimelineEntry], links: list[EventLink]
) -> tuple[list[Edge], dict[Edge, float]]:
    """Return each pair of cause and effect once, in the order of the effects; numbers the entries.

    Also how strong those are that only links say.
    """
    for position, entry in enumerate(ordered):
        entry.position = position
    find = by_id.get
    edges: list[Edge] = []
    for entry in ordered:
        if entry.causation_id is not None:
            cause = find(entry.causation_id)
            if cause is not None:
                edges.append((cause.position, entry.position))
    strengths: dict[Edge, float] = {}
    if links:
        said = set(edges)
        for link in links:
            edge = (by_id[link.to_id].position, by_id[link.from_id].position)
            if link.relationship.causal and edge not in said:
                strengths[edge] = max(strengths.get(edge, 0.0), link.strength)
        edges += strengths
        edges.sort(key=_by_effect)
    return edges, strengths


def _by_effect(edge: Edge) -> Edge:
    return edge[1], edge[0]


def _connect(ordered: list[TimelineEntry], edges: list[Edge]) -> None:
    """Tell every entry its causes, effects and depth; `edges` in the order of the effects."""
    effects: list[list[int] | None] = [None] * len(ordered)
    depth = depths(len(ordered), edges)
    for cause, effect in edges:
        entry = ordered[effect]
        entry.causes = (*entry.causes, cause) if entry.causes else (cause,)
        entry.depth = depth[effect]
        after = effects[cause]
        if after is None:
            effects[cause] = [effect]
        else:
            after.append(effect)
    for entry, found in zip(ordered, effects, strict=True):
        if found is not None:
            entry.effects = tuple(found)
