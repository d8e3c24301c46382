"""What reads, decides and writes begins again when somebody else has written in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from llmspell_dist.backoff import Backoff
from llmspell_dist.errors import ConflictError
from llmspell_dist.state.steps import Pause

if TYPE_CHECKING:
    from llmspell_dist.state.steps import Steps

__all__ = ["again_on_conflict"]

T = TypeVar("T")
_ATTEMPTS: Final = 16


def again_on_conflict(attempt: Callable[[], Steps[T]]) -> Steps[T]:
    """Carry an attempt out, again from its start after a conflict; the last one is raised."""
    backoff = Backoff(first_s=0.002, max_s=0.25)
    while True:
        try:
            return (yield from attempt())
        except ConflictError:
            if backoff.failures + 1 >= _ATTEMPTS:
                raise
            yield Pause(backoff.next_s())
