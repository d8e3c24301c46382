"""Which entries of which correlations: filters, how well an entry matches them, and the order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.context import check_text
from llmspell_dist.correlated import EventRelationship
from llmspell_dist.correlation.model import to_us
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.patterns import Pattern

if TYPE_CHECKING:
    from llmspell_dist.correlation.model import TimelineEntry
    from llmspell_dist.correlation.timeline import Timeline

__all__ = ["CorrelationQuery", "QueryMatch", "SortOrder", "match_timeline", "sorted_matches"]

MAX_LIMIT: Final = 10_000
MAX_CORRELATIONS: Final = 10_000
_EXACT, _BY_PATTERN, _ANY_TYPE = 1.0, 0.8, 0.5


class SortOrder(StrEnum):
    """The order of a query's matches; ties by time, correlation and position."""

    TIME = "time"
    TIME_DESCENDING = "time_descending"
    DEPTH = "depth"
    DEPTH_DESCENDING = "depth_descending"
    TYPE = "type"
    RELEVANCE = "relevance"
    """Best matches first."""


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """An entry that a query found."""

    correlation_id: str
    entry: TimelineEntry
    """Its `causes` and `effects` are positions in the timeline of that correlation."""
    score: float
    """From 0 to 1: how well it matches, the mean over the filters that were given."""
    reasons: tuple[str, ...]
    """What it matches, a phrase for each filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationQuery:
    """Filters, all of which an entry must pass; one that is not given passes every entry.

    Filters with several values pass an entry that has any of them.
    """

    correlation_ids: Iterable[str] = ()
    types: Iterable[str] = ()
    """Types, or patterns of types: ``state.*``, ``hook.*``."""
    since: datetime | None = None
    """Entries of this moment, to the microsecond, and later ones."""
    until: datetime | None = None
    """Entries before this moment."""
    sources: Iterable[str] = ()
    targets: Iterable[str] = ()
    languages: Iterable[str] = ()
    tags: Iterable[str] = ()
    min_depth: int | None = None
    max_depth: int | None = None
    relationships: Iterable[EventRelationship | str] = ()
    """Entries at either end of such a link."""
    root_causes_only: bool = False
    """Entries that nothing in their correlation caused."""
    leaf_effects_only: bool = False
    """Entries that caused nothing."""
    min_events: int | None = None
    """Correlations of at least so many entries."""
    max_events: int | None = None
    sort: SortOrder | str = SortOrder.TIME
    limit: int = 100
    max_correlations: int = 1000
    """Without `correlation_ids` so many are looked at, those first that were active last."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("correlation_ids", "sources", "targets", "languages", "tags"):
            put(self, name, _texts(name, getattr(self, name)))
        patterns = _several("types", self.types)
        put(self, "types", tuple(Pattern(one, "types") for one in patterns))
        related = _several("relationships", self.relationships)
        coerced = (EventRelationship.coerce(one, "relationships") for one in related)
        put(self, "relationships", frozenset(coerced))
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is None:
                continue
            if not isinstance(moment, datetime) or moment.utcoffset() is None:
                raise InvalidArgumentError(name, moment, "must be an aware datetime or None")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidArgumentError("until", self.until, "must be after since")
        _check_range(self, "min_depth", "max_depth", 0)
        _check_range(self, "min_events", "max_events", 0)
        for name in ("root_causes_only", "leaf_effects_only"):
            if type(getattr(self, name)) is not bool:
                raise InvalidArgumentError(name, getattr(self, name), "must be a bool")
        put(self, "sort", _sort_order(self.sort))
        for name, most in (("limit", MAX_LIMIT), ("max_correlations", MAX_CORRELATIONS)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InvalidArgumentError(name, value, f"must be an int from 1 to {most:,}")


def _several(name: str, values: object) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidArgumentError(name, values, "must be several values, not one")
    return list(values)


def _texts(name: str, values: object) -> frozenset[str] | tuple[str, ...]:
    found = [check_text(name, value) for value in _several(name, values)]
    return tuple(dict.fromkeys(found)) if name == "correlation_ids" else frozenset(found)


def _check_range(query: CorrelationQuery, low: str, high: str, least: int) -> None:
    for name in (low, high):
        value = getattr(query, name)
        if value is not None and (type(value) is not int or value < least):
            raise InvalidArgumentError(name, value, f"must be an int of at least {least} or None")
    lowest, highest = getattr(query, low), getattr(query, high)
    if lowest is not None and highest is not None and lowest > highest:
        raise InvalidArgumentError(high, highest, f"must be at least {low}")


def _sort_order(value: object) -> SortOrder:
    try:
        return SortOrder(value)  # type: ignore[arg-type]
    except ValueError:
        rule = f"must be one of {', '.join(one.value for one in SortOrder)}"
        raise InvalidArgumentError("sort", value, rule) from None


# --- matching -------------------------------------------------------------------------------------

_Verdict = tuple[float, str] | None
"""How well an entry passes a filter and why; None: it does not."""
_Filter = Callable[["Timeline", "TimelineEntry"], _Verdict]


def match_timeline(query: CorrelationQuery, timeline: Timeline) -> Iterator[QueryMatch]:
    """Yield the entries of a timeline that pass every filter."""
    count = len(timeline)
    if query.correlation_ids and timeline.correlation_id not in query.correlation_ids:
        return
    if query.min_events is not None and count < query.min_events:
        return
    if query.max_events is not None and count > query.max_events:
        return
    common: list[tuple[float, str]] = []
    if query.correlation_ids:
        common.append((_EXACT, f"correlation {timeline.correlation_id}"))
    if query.min_events is not None or query.max_events is not None:
        common.append((_EXACT, f"correlation of {count} entries"))
    filters = list(_filters(query))
    for entry in timeline:
        said = list(common)
        for one in filters:
            verdict = one(timeline, entry)
            if verdict is None:
                break
            said.append(verdict)
        else:
            score = sum(score for score, _ in said) / len(said) if said else 1.0
            reasons = tuple(reason for _, reason in said)
            yield QueryMatch(timeline.correlation_id, entry, score, reasons)


def _filters(query: CorrelationQuery) -> Iterator[_Filter]:
    """Yield those that were given, the cheap ones first."""
    if query.since is not None or query.until is not None:
        yield _in_time(query)
    if query.types:
        yield _of_type(query)
    for name, wanted in (
        ("source", query.sources),
        ("target", query.targets),
        ("language", query.languages),
    ):
        if wanted:
            yield _has(name, frozenset(wanted))
    if query.tags:
        yield _tagged(frozenset(query.tags))
    if query.min_depth is not None or query.max_depth is not None:
        yield _at_depth(query)
    if query.root_causes_only:
        yield lambda _, entry: None if entry.causes else (_EXACT, "root cause")
    if query.leaf_effects_only:
        yield lambda _, entry: None if entry.effects else (_EXACT, "leaf effect")
    if query.relationships:
        yield _related(query)


def _in_time(query: CorrelationQuery) -> _Filter:
    since = None if query.since is None else to_us(query.since)
    until = None if query.until is None else to_us(query.until)

    def judge(_: Timeline, entry: TimelineEntry) -> _Verdict:
        if (since is not None and entry.time_us < since) or (
            until is not None and entry.time_us >= until
        ):
            return None
        return _EXACT, "in the time range"

    return judge


def _of_type(query: CorrelationQuery) -> _Filter:
    patterns: tuple[Pattern, ...] = query.types  # type: ignore[assignment]

    def judge(_: Timeline, entry: TimelineEntry) -> _Verdict:
        best: _Verdict = None
        for pattern in patterns:
            if pattern.matches(entry.type):
                score = _ANY_TYPE if pattern.text == "*" else _BY_PATTERN
                if pattern.exact:
                    score = _EXACT
                if best is None or score > best[0]:
                    best = score, f"type {pattern.text}"
        return best

    return judge


def _has(name: str, wanted: frozenset[str]) -> _Filter:
    def judge(_: Timeline, entry: TimelineEntry) -> _Verdict:
        value = getattr(entry, name)
        return (_EXACT, f"{name} {value}") if value in wanted else None

    return judge


def _tagged(wanted: frozenset[str]) -> _Filter:
    def judge(_: Timeline, entry: TimelineEntry) -> _Verdict:
        found = wanted.intersection(entry.tags)
        if not found:
            return None
        return len(found) / len(wanted), f"tags {', '.join(sorted(found))}"

    return judge


def _at_depth(query: CorrelationQuery) -> _Filter:
    least, most = query.min_depth or 0, query.max_depth

    def judge(_: Timeline, entry: TimelineEntry) -> _Verdict:
        if entry.depth < least or (most is not None and entry.depth > most):
            return None
        return _EXACT, f"depth {entry.depth}"

    return judge


def _related(query: CorrelationQuery) -> _Filter:
    wanted = frozenset(query.relationships)

    def judge(timeline: Timeline, entry: TimelineEntry) -> _Verdict:
        best: _Verdict = None
        for link in timeline.links_of.get(entry.id, ()):
            if link.relationship in wanted and (best is None or link.strength > best[0]):
                best = link.strength, f"{link.relationship.value} link"
        return best

    return judge


# --- order ----------------------------------------------------------------------------------------


def sorted_matches(matches: Iterable[QueryMatch], order: SortOrder | str) -> list[QueryMatch]:
    """Return matches in an order."""
    found = sorted(matches, key=_place)
    if order == SortOrder.TIME_DESCENDING:
        found.reverse()
    elif order == SortOrder.DEPTH:
        found.sort(key=lambda match: match.entry.depth)
    elif order == SortOrder.DEPTH_DESCENDING:
        found.sort(key=lambda match: -match.entry.depth)
    elif order == SortOrder.TYPE:
        found.sort(key=lambda match: match.entry.type)
    elif order == SortOrder.RELEVANCE:
        found.sort(key=lambda match: -match.score)
    return found


def _place(match: QueryMatch) -> tuple[int, str, int]:
    return match.entry.time_us, match.correlation_id, match.entry.position
