# Written by tools/make_blocking.py from llmspell_dist/hooks/history.py: change that.
"""The history of hooks: what replayable hooks were told and answered; blocking."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.comparator import Comparison, compare_outcomes
from llmspell_dist.hooks.history_keeping import HistoryKeeping
from llmspell_dist.hooks.history_policy import HistoryPolicy
from llmspell_dist.hooks.history_query import HistoryQuery
from llmspell_dist.hooks.inspecting import HistoryAnalysis, SequencePattern, analyze, find_patterns
from llmspell_dist.hooks.recording import Execution

if TYPE_CHECKING:
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.hooks.history_writer import HistoryWriter, WriterStats

__all__ = ["HookHistory"]

_EVERYTHING = 10_000


class HookHistory:
    """Every execution of every replayable hook of the namespace, for as long as the policy says.

    An execution is written in the background, in batches, soon after it ended; those of a process
    that stops in order are all there, of one that is killed all but the last moments, each whole.
    With a cipher everything that hooks are told, take and answer is encrypted; without one it is
    left out where an operation is about a Sensitive key.
    """

    def __init__(
        self,
        driver: SyncDriver,
        steps: HistoryKeeping,
        writer: HistoryWriter,
        flush: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._steps = steps
        self._writer = writer
        self._flush = flush

    @property
    def stats(self) -> WriterStats:
        """How many executions of this process are written, lost, and still to be written."""
        return self._writer.stats

    def flush(self) -> None:
        """Return when every execution that ended so far in this process is written, or lost."""
        self._flush()

    def get(self, execution_id: str) -> Execution:
        """Return one execution; `ExecutionNotFoundError` if it is not there."""
        return self._driver.run(self._steps.get(execution_id))

    def query(
        self,
        *,
        correlation_id: str | None = None,
        hook: str | None = None,
        version: str | None = None,
        point: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        outcome: str | None = None,
        failed: bool | None = None,
        limit: int = 100,
        newest_first: bool = False,
        after: str | None = None,
    ) -> list[Execution]:
        """Return up to `limit` executions that are all of this, oldest first.

        `outcome` is the name of a result (``continue``, ``cancel``, …) or ``error``; `failed` asks
        whether the hook raised. `after` is the `entry` of the last execution of the page before.
        """
        query = HistoryQuery(
            correlation_id=correlation_id,
            hook=hook,
            version=version,
            point=point,
            since=since,
            until=until,
            outcome=outcome,
            failed=failed,
            limit=limit,
            newest_first=newest_first,
            after=after,
        )
        return self._driver.run(self._steps.query(query))

    def count(self) -> int:
        """Return how many executions there are."""
        return self._driver.run(self._steps.count())

    def analyze(self, **which: Any) -> HistoryAnalysis:
        """Return figures over executions; arguments are those of `query`, at most 10,000."""
        which.setdefault("limit", _EVERYTHING)
        return analyze(self.query(**which))

    def patterns(
        self, *, length: int = 2, min_count: int = 2, **which: Any
    ) -> list[SequencePattern]:
        """Return which hooks run one after the other within correlations, the most frequent first.

        `which` are arguments of `query`.
        """
        which.setdefault("limit", _EVERYTHING)
        return find_patterns(self.query(**which), length=length, min_count=min_count)

    def compare(self, one: str | Execution, other: str | Execution) -> Comparison:
        """Return where the outcomes of two executions differ."""
        left = one if isinstance(one, Execution) else self.get(one)
        right = other if isinstance(other, Execution) else self.get(other)
        return compare_outcomes((left.result, left.error), (right.result, right.error))

    # --- how long

    def policy(self) -> HistoryPolicy:
        """Return how long executions are kept."""
        return self._driver.run(self._steps.policy())

    def retain(self, policy: HistoryPolicy) -> None:
        """Keep executions for so long from now on; it holds for the whole namespace.

        Some process of the fleet removes what is over, oldest first, every 15 seconds.
        """
        self._driver.run(self._steps.retain(policy))

    def archive_with(self, archive: Callable[[Execution], Any] | None) -> None:
        """Have this process give executions to `archive` before they go, if the policy says so.

        An execution goes when the function has returned; if it raises, that one and the later ones
        stay until the next time.
        """
        if archive is not None and not callable(archive):
            raise InvalidArgumentError("archive", archive, "must be a function or None")
        self._steps.archive = archive

    def tidy(self) -> int:
        """Apply the policy now; return how many executions went."""
        return self._driver.run(self._steps.apply())
