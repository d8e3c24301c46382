"""The staged ramp as a Locust shape: it grows by stages and ends by itself."""

from __future__ import annotations

from collections.abc import Callable

from locust import LoadTestShape

from loadtests.stages import Stage

__all__ = ["staged"]


def staged(
    stages: tuple[Stage, ...], enough: Callable[[], bool], over: Callable[[], None]
) -> type[LoadTestShape]:
    """Return a shape for these stages, which ends early once there is `enough`.

    The users of a stage come within a second. `over` is called at the end.
    """

    class Staged(LoadTestShape):
        def tick(self) -> tuple[int, float] | None:
            if enough():
                over()
                return None
            left: float = self.get_run_time()  # type: ignore[no-untyped-call]
            for stage in stages:
                if left < stage.seconds:
                    return stage.users, float(max(1, stage.users))
                left -= stage.seconds
            over()
            return None

    return Staged
