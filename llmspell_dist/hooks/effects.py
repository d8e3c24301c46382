"""Which results a point allows; what each does there is in docs/hooks/results.md.

At a point that is not in the table whoever runs it decides what a result means, so all are allowed.
"""

from __future__ import annotations

from typing import Final

from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.hooks.results import (
    Cache,
    Cancel,
    Continue,
    Fork,
    HookResult,
    Modified,
    Redirect,
    Replace,
    Retry,
    Skipped,
)

__all__ = ["ALL", "GOING_ON", "STATE_POINTS", "allowed_at"]

_GOING_ON: Final = (Continue, Modified, Skipped, Fork)
ALL: Final[frozenset[type[HookResult]]] = frozenset(
    {*_GOING_ON, Cancel, Redirect, Replace, Retry, Cache}
)

_ALLOWED: Final[dict[str, frozenset[type[HookResult]]]] = {
    HookPoint.BEFORE_STATE_READ: ALL,
    HookPoint.BEFORE_STATE_WRITE: ALL - {Cache},
    HookPoint.AFTER_STATE_READ: frozenset({*_GOING_ON, Cancel, Replace, Retry}),
    # It has happened: nothing can be cancelled or sent elsewhere any more.
    HookPoint.AFTER_STATE_WRITE: frozenset({*_GOING_ON, Replace, Retry}),
    HookPoint.STATE_CONFLICT: frozenset({*_GOING_ON, Cancel, Replace, Retry}),
}
GOING_ON: Final[frozenset[type[HookResult]]] = frozenset({Continue, Modified, Skipped})
"""What a queued hook may answer."""
STATE_POINTS: Final = frozenset(_ALLOWED)


def allowed_at(point: str) -> frozenset[type[HookResult]]:
    """Return the results that a hook at a point may give."""
    return _ALLOWED.get(point, ALL)
