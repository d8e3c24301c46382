"""How far a backup, restore or check has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic

__all__ = ["Observer", "Phase", "Progress", "Tracker"]


class Phase(StrEnum):
    """What is being done; a restore goes through those of rs-llmspell."""

    PREPARING = "preparing"
    SCANNING = "scanning"
    CATCHING_UP = "catching up"
    SEALING = "sealing"
    VALIDATING_BACKUPS = "validating backups"
    CREATING_ROLLBACK_POINT = "creating rollback point"
    RESTORING_DATA = "restoring data"
    VERIFYING_RESTORE = "verifying restore"
    SWAPPING = "swapping"
    COMPLETED = "completed"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of the work."""

    phase: Phase = Phase.PREPARING
    bytes: int = 0
    """Done so far, before compression."""
    total_bytes: int | None = None
    """About how many there are; None if nobody knows yet."""
    records: int = 0
    scopes: int = 0
    seconds: float = 0.0


Observer = Callable[[Progress], None]
"""Is told how far the work is; it must be quick and must not raise."""


class Tracker:
    """Tells an observer, at most ten times a second and at every new phase."""

    def __init__(self, observer: Observer | None, *, now: Callable[[], float] = monotonic) -> None:
        self.progress = Progress()
        self._observer = observer
        self._now = now
        self._begun = now()
        self._told = -1.0

    def update(
        self,
        phase: Phase | None = None,
        *,
        total_bytes: int | None = None,
        bytes: int | None = None,  # noqa: A002 - what Progress calls it
        records: int | None = None,
        scopes: int | None = None,
    ) -> None:
        """Note where the work is; what is None stays as it was."""
        old, now = self.progress, self._now()
        self.progress = replace(
            old,
            phase=old.phase if phase is None else phase,
            bytes=old.bytes if bytes is None else bytes,
            total_bytes=old.total_bytes if total_bytes is None else total_bytes,
            records=old.records if records is None else records,
            scopes=old.scopes if scopes is None else scopes,
            seconds=now - self._begun,
        )
        fresh = self.progress.phase is not old.phase
        if self._observer is not None and (fresh or now - self._told >= 0.1):
            self._told = now
            self._observer(self.progress)
