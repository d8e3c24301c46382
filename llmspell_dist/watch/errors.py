"""What can go wrong while watching.

::

    SpellError
     ├ HistoryUnavailableError
     │   └ WatchTrimmedError
     └ WaitTimeoutError                     (also TimeoutError)
"""

from __future__ import annotations

from typing import Any

from llmspell_dist.errors import HistoryUnavailableError, SpellError, shorten

__all__ = ["WaitTimeoutError", "WatchTrimmedError"]


class WatchTrimmedError(HistoryUnavailableError):
    """The log no longer reaches back to where the watch stands."""

    code = "WATCH_TRIMMED"

    def __init__(self, scope: str, since: Any, floor: Any) -> None:
        self.since = since
        """The last revision that the watch knows."""
        self.floor = floor
        """The oldest revision that the log of the scope's shard has; None if it is empty."""
        begins = f"it begins at {floor}" if floor is not None else "it is empty"
        back = "the first change" if since is None else since
        super().__init__(
            scope,
            "",
            f"the log no longer reaches back to {back}, {begins}; go on with state.snapshot() and "
            'a watch since its revision, or watch with on_trimmed="snapshot"',
        )

    def __str__(self) -> str:
        return f"cannot go on watching {self.scope}: {self.reason}"


class WaitTimeoutError(SpellError, TimeoutError):
    """No value of the key was as the caller waited for, in time."""

    code = "WAIT_TIMEOUT"
    retryable = True

    def __init__(self, scope: str, key: str, timeout_s: float) -> None:
        self.scope = scope
        self.key = key
        self.timeout_s = timeout_s
        super().__init__(f"{shorten(key)} of {scope} was not as wanted within {timeout_s:g} s")
