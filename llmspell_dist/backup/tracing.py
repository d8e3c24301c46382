"""Spans of what is done with backups; each phase that the work comes to is an event of its span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmspell_dist.backup.progress import Observer, Phase, Progress

if TYPE_CHECKING:
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["traced"]


@contextmanager
def traced(
    driver: AsyncDriver, operation: str, progress: Observer | None = None
) -> Iterator[Observer | None]:
    """Record an operation; the block gets who is to be told of its progress."""
    observer = driver.core.observer
    if not observer.tracing:
        yield progress
        return
    said = {"llmspell.backup.operation": operation}
    with observer.span(f"backup.{operation}", attributes=said, covers=True) as span:
        seen: set[Phase] = set()

        def tell(now: Progress) -> None:
            if now.phase not in seen:
                seen.add(now.phase)
                span.event(now.phase.value)
            if progress is not None:
                progress(now)

        yield tell
