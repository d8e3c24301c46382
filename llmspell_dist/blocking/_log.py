# Written by tools/make_blocking.py from llmspell_dist/log.py: change that.
"""The change log, blocking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmspell_dist.log import LogStat, LogSteps

if TYPE_CHECKING:
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.changes import LogEntry
    from llmspell_dist.revision import Revision

__all__ = ["ChangeLog"]


class ChangeLog:
    """The change log of a namespace; every commit is one entry, its id the commit's revision."""

    def __init__(self, driver: SyncDriver) -> None:
        self._driver = driver
        self._steps = LogSteps(driver.core)

    def __repr__(self) -> str:
        core = self._driver.core
        return f"<{type(self).__name__} of {core.keyspace.namespace!r} on {core.server}>"

    def entries(
        self,
        *,
        shard: str = "0",
        after: Revision | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[LogEntry]:
        """Return up to `limit` entries after a revision (None: from the oldest)."""
        return self._driver.run(self._steps.entries(shard, after, limit, newest_first))

    def stat(self, *, shard: str = "0") -> LogStat:
        """Return how much the log holds, where it begins, and who holds it."""
        return self._driver.run(self._steps.stat(shard))

    def hold(self, name: str, *, at: Revision | None = None) -> None:
        """Keep entries from `at` on (None: from the newest) from being trimmed, until `release`.

        Setting it again moves it. At the retention's cap a hold breaks; `stat` then shows it.
        """
        self._driver.run(self._steps.hold(name, at))

    def release(self, name: str) -> None:
        """Let entries be trimmed again."""
        self._driver.run(self._steps.release(name))

    def trim(self) -> int:
        """Shorten the log to its retention now; return how many entries went.

        Some process of the fleet does so every second anyway.
        """
        return self._driver.run(self._steps.trim())
