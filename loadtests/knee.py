"""The knee: up to which offer everything that is offered is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.recorder import Window

__all__ = ["Knee", "find_knee"]


@dataclass(frozen=True, slots=True)
class Knee:
    """The last stage that kept up."""

    number: int
    users: int
    throughput: float
    """Steps a second that were done there."""
    reached: bool
    """Whether a later stage did not keep up; if not, the knee lies further out."""

    def __str__(self) -> str:
        more = "" if self.reached else "at least "
        return f"{more}{self.throughput:,.0f} steps/s with {self.users:,} users"


def find_knee(windows: Sequence[Window]) -> Knee | None:
    """Return the last stage that kept up; None if not even the first one did.

    A stage that fell behind before one that kept up was disturbed from outside, and is passed over.
    """
    kept = [number for number, window in enumerate(windows) if window.offered and window.kept_up]
    if not kept:
        return None
    last = kept[-1]
    window = windows[last]
    return Knee(last, window.users, window.achieved, reached=last < len(windows) - 1)
