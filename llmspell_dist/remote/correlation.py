"""Correlations through a sidecar: the library's own, whose steps ask a sidecar.

What the caller may not see is left out, and counted: in `TimelineStatistics.left_out` as
``not_allowed``, and of a query in `Matches.not_allowed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from llmspell_dist.context import check_text
from llmspell_dist.correlated import EventLink, pack_link
from llmspell_dist.correlation.query import QueryMatch
from llmspell_dist.correlation.service import Correlations
from llmspell_dist.correlation.steps import MAX_KNOWN, CorrelationSteps, KnownCorrelation
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.correlation_documents import match_of, timeline_of
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.revision import to_ms

if TYPE_CHECKING:
    from datetime import datetime

    from llmspell_dist.correlation.model import TimelineConfig
    from llmspell_dist.correlation.query import CorrelationQuery
    from llmspell_dist.correlation.timeline import Timeline
    from llmspell_dist.remote.driver import RemoteDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["Matches", "RemoteCorrelations"]

_ALL: Final = ("v1", "correlations")
_GONE: Final = frozenset({"NOT_FOUND"})


class Matches(list[QueryMatch]):
    """What a query found."""

    not_allowed: int = 0
    """How many entries of what was looked at the caller may not see, whether they match or not."""


class RemoteCorrelations(Correlations):
    """What belongs to a correlation id, through a sidecar; every method of `Correlations`."""

    def __init__(self, driver: RemoteDriver) -> None:
        self._driver = cast("Any", driver)
        self._steps = _RemoteSteps(driver.core)


class _RemoteSteps(CorrelationSteps):
    """The operations on correlations, as requests."""

    def link(self, link: EventLink, correlation_id: str | None) -> Steps[EventLink]:
        """Store a link."""
        pack_link(link)  # refuses what could not be stored
        document = {
            "from_id": link.from_id,
            "to_id": link.to_id,
            "relationship": link.relationship.value,
            "strength": link.strength,
            "metadata": dict(link.metadata),
        }
        path = (*_ALL, self.correlation_of(correlation_id), "links")
        yield from asked(Ask("POST", path, document=document))
        return link

    def forget(self, correlation_id: str) -> Steps[bool]:
        """Remove what is kept of a correlation; whether there was anything."""
        path = (*_ALL, check_text("correlation_id", correlation_id))
        answer = yield from asked(Ask("DELETE", path, accept=_GONE))
        return answer.status < 400

    def trim(self) -> Steps[int]:
        """Forget the correlations beyond what is kept now."""
        answer = yield from asked(Ask("POST", (*_ALL, "trim")))
        forgotten: int = answer.document["forgotten"]
        return forgotten

    def timeline(self, correlation_id: str, config: TimelineConfig) -> Steps[Timeline]:
        """Return what happened in a correlation, as far as the caller may see it."""
        path = (*_ALL, check_text("correlation_id", correlation_id))
        query = {**_settings(config), "details": True}
        answer = yield from asked(Ask("GET", path, query=query))
        return timeline_of(answer.document, config, self.core.values.codec)

    def known(self, since: datetime | None, limit: int) -> Steps[list[KnownCorrelation]]:
        """Return the correlations that were active last, the last one first."""
        if type(limit) is not int or not 1 <= limit <= MAX_KNOWN:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MAX_KNOWN:,}")
        if since is not None:
            to_ms(since)
        query = {"since": None if since is None else since.isoformat(), "limit": limit}
        answer = yield from asked(Ask("GET", _ALL, query=query))
        return [KnownCorrelation(**one) for one in answer.document["correlations"]]

    def query(self, query: CorrelationQuery, config: TimelineConfig) -> Steps[list[QueryMatch]]:
        """Return the best matches, as far as the caller may see them."""
        wanted: Any = query
        document = {
            "correlation_ids": list(query.correlation_ids),
            "types": [pattern.text for pattern in wanted.types],
            "since": query.since,
            "until": query.until,
            "sources": sorted(query.sources),
            "targets": sorted(query.targets),
            "languages": sorted(query.languages),
            "tags": sorted(query.tags),
            "min_depth": query.min_depth,
            "max_depth": query.max_depth,
            "relationships": sorted(one.value for one in wanted.relationships),
            "root_causes_only": query.root_causes_only,
            "leaf_effects_only": query.leaf_effects_only,
            "min_events": query.min_events,
            "max_events": query.max_events,
            "sort": wanted.sort.value,
            "limit": query.limit,
            "max_correlations": query.max_correlations,
            "timelines": _settings(config),
            "details": True,
        }
        ask = Ask("POST", (*_ALL, "query"), document=document, idempotent=True)
        found = (yield from asked(ask)).document
        matches = Matches(match_of(one, self.core.values.codec) for one in found["matches"])
        matches.not_allowed = found["not_allowed"]
        return matches


def _settings(config: TimelineConfig) -> dict[str, Any]:
    """Return what the sidecar needs to put a timeline together; the rest is for who reads it."""
    return {
        "max_entries": config.max_entries,
        "min_strength": config.min_strength,
        "auto_link": config.auto_link,
    }
