"""Profiles: which loads one after the other, each with its stages, its limits and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadtests.stages import Stage

__all__ = ["DEFAULT", "HOLD", "PROFILES", "RAMP", "Limits", "Plan", "Profile"]

RAMP: Final = "ramp"
HOLD: Final = "hold"
STEADY: Final = "steady"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a load must stay within; latencies as multiples of the unloaded median."""

    p95: float = 15.0
    p99: float = 40.0
    growth: float = 0.05
    """Of the sidecar's memory, after warm-up."""
    part_of_knee: float = 0.7


@dataclass(frozen=True, slots=True)
class Plan:
    """One load. A hold's users are a part of those at the knee of the ramp before it."""

    name: str
    mix: str
    target: str
    kind: str
    stages: tuple[Stage, ...]
    warm_up_s: float = 0.0
    judged: bool = True
    """Whether speed counts: a smoke run is too short for that."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Loads that are run together, in order."""

    name: str
    plans: tuple[Plan, ...]
    limits: Limits = Limits()


def _stages(seconds: float, *users: int) -> tuple[Stage, ...]:
    return tuple(Stage(count, seconds) for count in users)


_UP: Final = (20, 60, 100, 140, 180, 220, 260, 300, 340, 400, 460, 520)
_FAR: Final = (10, 100, 200, 400, 600, 800, 1000, 1200, 1500, 1800)


def _mixed(hold_s: float, warm_up_s: float, step_s: float) -> tuple[Plan, ...]:
    return (
        Plan("mixed", "mixed", "sidecar", RAMP, _stages(step_s, *_UP)),
        Plan("hold", "mixed", "sidecar", HOLD, _stages(hold_s, 1), warm_up_s),
    )


DEFAULT: Final = "default"
PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile(
            "quick",
            (
                Plan("mixed", "mixed", "sidecar", RAMP, _stages(2, 18, 24), judged=False),
                Plan("library", "mixed", "library", RAMP, _stages(2, 18, 24), judged=False),
            ),
        ),
        Profile(
            DEFAULT,
            (
                *_mixed(hold_s=25, warm_up_s=5, step_s=5),
                Plan("agents", "agents", "sidecar", RAMP, _stages(4, 10, 100, 200, 300, 400)),
                Plan("reads", "reads", "sidecar", RAMP, _stages(4, 5, 60, 120, 180, 240)),
                Plan("writes", "writes", "sidecar", RAMP, _stages(4, 5, 60, 120, 180, 240)),
                Plan("lease", "lease", "sidecar", STEADY, _stages(5, 1, 8)),
                Plan("fanout", "fanout", "sidecar", STEADY, _stages(6, 44, 204)),
                Plan("library", "agents", "library", RAMP, _stages(4, *_FAR)),
            ),
        ),
        Profile(
            "soak",
            _mixed(hold_s=600, warm_up_s=60, step_s=6),
            # Ten minutes even out what disturbs a stage of seconds.
            Limits(p95=10.0, p99=25.0),
        ),
    )
}
