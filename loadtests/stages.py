"""Stages of a load, as text: ``50x10,100x10`` is 50 users for 10 seconds, then 100."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Stage", "StagesError", "format_stages", "parse_stages", "total_s"]

LONGEST_S: Final = 3600.0
MOST_USERS: Final = 10_000


class StagesError(Exception):
    """That is no list of stages."""


@dataclass(frozen=True, slots=True)
class Stage:
    """So many users for so many seconds."""

    users: int
    seconds: float

    @property
    def settle_s(self) -> float:
        """How long it takes until what is measured counts: users come, connections open."""
        return min(2.0, self.seconds / 3)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Return the stages; `StagesError` says what is wrong, all together last at most an hour."""
    stages = []
    for part in text.split(","):
        users, cross, seconds = part.strip().partition("x")
        try:
            stage = Stage(int(users), float(seconds))
        except ValueError:
            cross = ""
            stage = Stage(0, 0)
        if not cross or not 0 < stage.users <= MOST_USERS or not _right(stage.seconds):
            raise StagesError(f"stage {part.strip()!r} must be USERSxSECONDS, as in 50x10")
        stages.append(stage)
    if total_s(stages) > LONGEST_S:
        raise StagesError(f"the stages must last at most {LONGEST_S:g} s, not {total_s(stages):g}")
    return tuple(stages)


def _right(seconds: float) -> bool:
    return 0 < seconds <= LONGEST_S  # False for NaN too


def format_stages(stages: tuple[Stage, ...]) -> str:
    """Return the text that `parse_stages` reads."""
    return ",".join(f"{stage.users}x{stage.seconds:g}" for stage in stages)


def total_s(stages: tuple[Stage, ...] | list[Stage]) -> float:
    """Return how long they last."""
    return sum(stage.seconds for stage in stages)
