# Written by tools/make_blocking.py from llmspell_dist/correlation/service.py: change that.
"""Correlations, blocking: what belongs together, as one timeline, from every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.correlated import EventLink, EventRelationship
from llmspell_dist.correlation.model import TimelineConfig
from llmspell_dist.correlation.query import CorrelationQuery
from llmspell_dist.correlation.steps import CorrelationSteps
from llmspell_dist.errors import InvalidArgumentError

if TYPE_CHECKING:
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.correlation.query import QueryMatch
    from llmspell_dist.correlation.steps import KnownCorrelation
    from llmspell_dist.correlation.timeline import Timeline

__all__ = ["Correlations"]

DEFAULT_STRENGTH: Final = 0.8


class Correlations:
    """What belongs to a correlation id: commits, events, hook runs, leases and links.

    All of it lies in Redis, so every process sees the same. It is kept for seven days after the
    last activity, at most 10,000 events and 10,000 commits of a correlation, and the 10,000
    correlations that were active last.

    Raised everywhere: `InvalidArgumentError` before anything is sent, and `StoreUnavailableError`
    and its children when the server cannot be reached in time.
    """

    def __init__(self, driver: SyncDriver) -> None:
        self._driver = driver
        self._steps = CorrelationSteps(driver.core)

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    def link(
        self,
        from_id: str,
        to_id: str,
        relationship: EventRelationship | str,
        *,
        strength: float = DEFAULT_STRENGTH,
        metadata: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> EventLink:
        """Say what one entry of a correlation is to another one, as `from_id` caused by `to_id`.

        Ids are those of timeline entries: an event's id, a commit's revision as text, a hook run's
        id. `strength` is from 0 (a guess) to 1 (known). `correlation_id` is by default that in
        force. It is stored once, with its direction; said again, the last one counts. Nothing can
        be linked with itself. Whether the ids are there is not looked at, as an entry may come
        later: in a timeline without one of them the link counts for nothing, but as ``dangling``
        in `TimelineStatistics.left_out`.
        """
        link = EventLink(
            from_id, to_id, EventRelationship.coerce(relationship), strength, dict(metadata or {})
        )
        return self._driver.run(self._steps.link(link, correlation_id))

    def timeline(
        self, correlation_id: str, *, config: TimelineConfig | None = None, **changes: Any
    ) -> Timeline:
        """Return what happened in a correlation, in order, with causes and effects.

        Empty if nothing is kept of it. `changes` replace parts of the configuration:
        ``max_entries=100``. Read in pages: what is added meanwhile may be there or not.
        """
        return self._driver.run(self._steps.timeline(correlation_id, _config(config, changes)))

    def query(
        self, query: CorrelationQuery | None = None, *, config: TimelineConfig | None = None
    ) -> list[QueryMatch]:
        """Return the entries that pass a query's filters, with how well they match and why.

        Reads the timelines of the correlations that it names, else of those that were active last,
        one after the other.
        """
        if query is not None and not isinstance(query, CorrelationQuery):
            raise InvalidArgumentError("query", query, "must be a CorrelationQuery or None")
        steps = self._steps.query(query or CorrelationQuery(), _config(config, {}))
        return self._driver.run(steps)

    def recent(self, *, since: datetime | None = None, limit: int = 100) -> list[KnownCorrelation]:
        """Return the correlations that were active last, the last one first."""
        return self._driver.run(self._steps.known(since, limit))

    def forget(self, correlation_id: str) -> bool:
        """Remove what is kept of a correlation; the change log keeps its commits.

        Returns whether there was anything.
        """
        return self._driver.run(self._steps.forget(correlation_id))

    def trim(self) -> int:
        """Forget the correlations beyond what is kept; how many.

        Some process of the fleet does so anyway.
        """
        return self._driver.run(self._steps.trim())


def _config(config: TimelineConfig | None, changes: Mapping[str, Any]) -> TimelineConfig:
    if config is not None and not isinstance(config, TimelineConfig):
        raise InvalidArgumentError("config", config, "must be a TimelineConfig or None")
    config = config or TimelineConfig()
    for name in changes:
        if name not in TimelineConfig.__slots__:
            rule = f"must be one of {', '.join(TimelineConfig.__slots__)}"
            raise InvalidArgumentError("config", name, rule)
    return replace(config, **changes) if changes else config
