"""Hook points of services that live in the background, seen by the hooks of a blocking client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmspell_dist.state.steps import Call

if TYPE_CHECKING:
    from llmspell_dist.state.interception import Instead
    from llmspell_dist.state.points import Points
    from llmspell_dist.state.steps import Steps

__all__ = ["PointsInThreads"]


class PointsInThreads:
    """Runs what stands at a point in a thread: hooks may take their time, the loop may not."""

    def __init__(self, points: Points, run: Callable[[Steps[Any]], Awaitable[Any]]) -> None:
        self._points = points
        self._run = run

    def wants(self, *points: str) -> bool:
        """Whether anything stands at one of these points."""
        return self._points.wants(*points)

    def at(
        self,
        point: str,
        component: tuple[str, str],
        data: Mapping[str, Any],
        *,
        error: BaseException | None = None,
        refusable: bool = False,
        replaceable: bool = False,
        operation: str | None = None,
        check: Callable[[dict[str, Any]], object] | None = None,
    ) -> Steps[tuple[dict[str, Any], Instead | None]]:
        """Run it; see `llmspell_dist.state.points.Points`."""
        steps = self._points.at(
            point,
            component,
            data,
            error=error,
            refusable=refusable,
            replaceable=replaceable,
            operation=operation,
            check=check,
        )
        found: tuple[dict[str, Any], Instead | None] = yield Call(self._run, (steps,))
        return found
