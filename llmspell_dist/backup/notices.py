"""What is told about backups: hooks before and after, and fifteen types of events.

========== ================================================= =================================
operation  hook points                                       events
========== ================================================= =================================
backup     ``backup:start`` ``backup:end`` ``backup:error``  ``backup.started`` ``.completed`` …
restore    ``restore:start`` …                               ``restore.started`` …
rollback   ``rollback:start`` …                              ``rollback.started`` …
validation ``validation:start`` …                            ``validation.started`` …
cleanup    ``cleanup:start`` …                               ``cleanup.started`` …
========== ================================================= =================================

Events end in ``started``, ``completed`` and ``failed``. A hook at ``…:start`` may cancel.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import SpellError
from llmspell_dist.state.points import NO_POINTS, Points

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["EVENT_TYPES", "Notices", "Publish"]

logger = logging.getLogger("llmspell_dist.backup")
logger.addHandler(logging.NullHandler())

_OPERATIONS: Final = ("backup", "restore", "rollback", "validation", "cleanup")
EVENT_TYPES: Final = tuple(
    f"{operation}.{what}"
    for operation in _OPERATIONS
    for what in ("started", "completed", "failed")
)
Publish = Callable[[str, Mapping[str, Any]], Awaitable[Any]]


class Notices:
    """Tells hooks and subscribers what happens to backups."""

    def __init__(
        self, driver: AsyncDriver, publish: Publish | None, points: Points = NO_POINTS
    ) -> None:
        self._driver = driver
        self._publish = publish
        self._points = points

    @asynccontextmanager
    async def of(self, operation: str, target: str, **facts: Any) -> AsyncIterator[dict[str, Any]]:
        """Tell the beginning and the end of an operation; the block adds facts to what it gets.

        Raises `OperationCancelledError` before anything has happened, if a hook says so.
        """
        component = ("backup", target)
        await self._at(f"{operation}:start", component, facts, refusable=True)
        await self._tell(f"{operation}.started", facts)
        result: dict[str, Any] = dict(facts)
        try:
            yield result
        except BaseException as error:
            result["error"] = getattr(error, "code", type(error).__name__)
            result["message"] = str(error)
            await self._tell(f"{operation}.failed", result)
            await self._at(f"{operation}:error", component, result, error=error)
            raise
        await self._tell(f"{operation}.completed", result)
        await self._at(f"{operation}:end", component, result)

    async def _at(
        self,
        point: str,
        component: tuple[str, str],
        data: Mapping[str, Any],
        *,
        error: BaseException | None = None,
        refusable: bool = False,
    ) -> None:
        if self._points.wants(point):
            steps = self._points.at(point, component, data, error=error, refusable=refusable)
            await self._driver.run(steps)

    async def _tell(self, event: str, data: Mapping[str, Any]) -> None:
        """Publish an event; that nobody can be told is no reason to fail."""
        if self._publish is None:
            return
        try:
            await self._publish(event, data)
        except SpellError as error:
            logger.warning("the event %s could not be published: %s", event, error)
