"""Which recorded executions are meant. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.points import point_of
from llmspell_dist.revision import Revision, to_ms

if TYPE_CHECKING:
    from llmspell_dist.hooks.recording import Execution

__all__ = ["HistoryQuery"]

MAX_LIMIT: Final = 10_000
_NUL: Final = b"\0"


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Which executions are meant; what is None is not asked."""

    correlation_id: str | None = None
    hook: str | None = None
    version: str | None = None
    point: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None
    """``continue``, ``cancel``, …, ``error``."""
    failed: bool | None = None
    """Whether the hook raised."""
    limit: int = 100
    newest_first: bool = False
    after: str | None = None
    """The `entry` of the last execution of the page before."""

    def __post_init__(self) -> None:
        if type(self.limit) is not int or not 1 <= self.limit <= MAX_LIMIT:
            rule = f"must be an int from 1 to {MAX_LIMIT:,}"
            raise InvalidArgumentError("limit", self.limit, rule)
        for name in ("correlation_id", "hook", "version", "outcome", "after"):
            value = getattr(self, name)
            if value is not None and (type(value) is not str or not value):
                raise InvalidArgumentError(name, value, "must be text or None")
        if self.point is not None:
            object.__setattr__(self, "point", point_of(self.point))
        if self.after is not None:
            Revision.parse(self.after)
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, datetime):
                    raise InvalidArgumentError(name, value, "must be an aware datetime or None")
                to_ms(value)

    def accepts(self, execution: Execution) -> bool:
        """Return whether an execution is meant."""
        return (
            self.correlation_id in (None, execution.correlation_id)
            and self.hook in (None, execution.hook)
            and self.version in (None, execution.version)
            and self.point in (None, execution.point)
            and self.outcome in (None, execution.outcome)
            and self.failed in (None, execution.failed)
            and (self.since is None or execution.started_at >= self.since)
            and (self.until is None or execution.started_at <= self.until)
        )

    @property
    def indexed_by(self) -> bytes | None:
        """What the members of the index begin with that lead to all that is meant."""
        if self.correlation_id is not None:
            return b"c\0" + self.correlation_id.encode() + _NUL
        if self.hook is not None:
            return b"h\0" + self.hook.encode() + _NUL
        if self.point is not None:
            return b"p\0" + self.point.encode() + _NUL
        return None
