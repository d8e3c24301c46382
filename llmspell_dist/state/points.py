"""The seam at which services let hooks in: a named point, who is at it, and the data there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from llmspell_dist.state.interception import Instead
    from llmspell_dist.state.steps import Steps

__all__ = ["NO_POINTS", "Points"]


class Points(Protocol):
    """Runs what stands at a point; who puts the client together hands it in."""

    def wants(self, *points: str) -> bool:
        """Whether anything stands at one of these points, and may run here."""

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
        """Run it; the data as it is then, and what to give in the operation's place.

        `component`: type and name of who is at the point. An answer that makes no sense there is
        an error; so is a refusal (`OperationCancelledError`), where it is `refusable`, and data for
        which `check` raises. `operation`: the method, by its name.
        """


class _NoPoints:
    """Nothing stands anywhere."""

    def wants(self, *_: str) -> bool:
        return False

    def at(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("asked although nothing stands there")


NO_POINTS: Final[Points] = _NoPoints()
