"""What was measured, stage by stage: Locust's own figures are of a whole run."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests.histogram import Histogram
from loadtests.ledger import Ledger
from loadtests.stages import Stage

__all__ = ["DELIVERY", "KEPT_UP", "SUBSCRIBE", "UNPACED", "Recorder", "Window"]

DELIVERY: Final = "delivery"
SUBSCRIBE: Final = "subscribe"
UNPACED: Final = (DELIVERY, SUBSCRIBE, "count under lease")
"""How the names of what has no rate of its own begin: it is not part of what was offered."""
KEPT_UP: Final = 0.9
_ENOUGH: Final = 2
_CLOSE_S: Final = 0.5
"""The clock of the stages starts a little after the shape's."""


@dataclass(slots=True)
class Window:
    """What was measured in one stage, after it had settled."""

    users: int
    offered: float = 0.0
    """Steps a second that its users wanted to do."""
    since: float = 0.0
    until: float = 0.0
    steps: Histogram = field(default_factory=Histogram)
    """Of the users that have a rate."""
    names: dict[str, Histogram] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.until - self.since

    @property
    def achieved(self) -> float:
        """Steps a second that were done."""
        return self.steps.count / self.seconds if self.seconds else 0.0

    @property
    def kept_up(self) -> bool:
        """Whether what was offered was done, but for a tenth."""
        return self.achieved >= KEPT_UP * self.offered

    def add(self, name: str, found: Histogram) -> None:
        """Count what was measured under a name."""
        self.names.setdefault(name, Histogram()).merge(found)
        if not name.startswith(UNPACED):
            self.steps.merge(found)

    def took(self, name: str, ms: float) -> None:
        """Count one duration under a name."""
        found = self.names.get(name)
        if found is None:
            found = self.names[name] = Histogram()
        found.add(ms)
        if not name.startswith(UNPACED):
            self.steps.add(ms)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "users": self.users,
            "offered": self.offered,
            "since": self.since,
            "until": self.until,
            "steps": self.steps.to_json(),
            "names": {name: found.to_json() for name, found in self.names.items()},
            "failures": dict(self.failures),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Window:
        """Return what `to_json` gave."""
        names = {name: Histogram.from_json(found) for name, found in data["names"].items()}
        return cls(
            users=data["users"],
            offered=data["offered"],
            since=data["since"],
            until=data["until"],
            steps=Histogram.from_json(data["steps"]),
            names=names,
            failures=Counter(data["failures"]),
        )


class Recorder:
    """Counts into the window of the stage that runs; between windows only failures count."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self.windows = [Window(stage.users) for stage in stages]
        self.ledger = Ledger()
        self.failures: Counter[str] = Counter()
        self.requests = 0
        self._wanted: list[tuple[float, float]] = []
        """Since when, and how many steps a second the users wanted to do from then on."""
        self._bounds: list[tuple[float, float]] = []

    def begin(self, now: float | None = None) -> None:
        """Start the clock of the stages."""
        at = time.time() if now is None else now
        self._bounds = []
        for stage, window in zip(self.stages, self.windows, strict=True):
            window.since, window.until = at + stage.settle_s, at + stage.seconds
            self._bounds.append((window.since, window.until))
            at += stage.seconds

    def wants(self, more: float, now: float | None = None) -> None:
        """Count the steps a second that a user wants to do from now on, or no more if it leaves."""
        wanted = self._wanted[-1][1] if self._wanted else 0.0
        self._wanted.append((time.time() if now is None else now, wanted + more))

    def end(self, now: float | None = None) -> None:
        """Forget stages that were not finished: users leave from now on."""
        at = time.time() if now is None else now
        self._offer()
        kept = sum(bool(window.until) and window.until <= at + _CLOSE_S for window in self.windows)
        self.windows, self._bounds = self.windows[:kept], self._bounds[:kept]
        for number, window in enumerate(self.windows):
            window.until = min(window.until, at)
            self._bounds[number] = (window.since, window.until)

    def add(
        self,
        name: str,
        found: Histogram,
        failures: Mapping[str, int] | None = None,
        now: float | None = None,
    ) -> None:
        """Count what ended now."""
        self.requests += found.count
        window = self._window(time.time() if now is None else now)
        for text, count in (failures or {}).items():
            self.failures[f"{name}: {text}"] += count
            if window is not None:
                window.failures[f"{name}: {text}"] += count
        if window is not None:
            window.add(name, found)

    def took(self, name: str, ms: float, failure: Exception | None) -> None:
        """Count one request that ended now; the same as `add`, at a tenth of its cost."""
        if failure is not None:
            found = Histogram()
            found.add(ms)
            self.add(name, found, {f"{type(failure).__name__}: {failure}": 1})
            return
        self.requests += 1
        window = self._window(time.time())
        if window is not None:
            window.took(name, ms)

    def _window(self, now: float) -> Window | None:
        for window, (since, until) in zip(self.windows, self._bounds, strict=False):
            if since <= now < until:
                return window
        return None

    def _offer(self) -> None:
        """Note what was offered in each stage: what its users wanted in the middle of it.

        Not when something ends: in a stage in which everything stalls nothing does.
        """
        for window in self.windows:
            middle = (window.since + window.until) / 2
            count = bisect_right(self._wanted, middle, key=lambda one: one[0])
            window.offered = self._wanted[count - 1][1] if count else 0.0

    def overloaded(self, now: float | None = None) -> bool:
        """Whether two stages in a row did not keep up: a ramp that goes on learns nothing new."""
        at = time.time() if now is None else now
        self._offer()
        over = [window for window in self.windows if window.until and window.until <= at]
        late = over[-_ENOUGH:]
        return len(late) == _ENOUGH and not any(window.kept_up for window in late)

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        facts = {
            "windows": [window.to_json() for window in self.windows],
            "requests": self.requests,
            "failures": dict(self.failures),
            "ledger": self.ledger.to_json(),
        }
        path.write_text(json.dumps(facts), encoding="utf-8")
