"""Hooks for the fleet, without an event loop: the same, on the client's background loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmspell_dist.events.manager import Events as AsyncEvents
from llmspell_dist.hooks.fleet import Fleet as AsyncFleet

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.hooks.fleet_inbox import FleetStats
    from llmspell_dist.hooks.fleet_model import FleetProcess
    from llmspell_dist.hooks.hook import RegisteredHook
    from llmspell_dist.hooks.points import HookPoint
    from llmspell_dist.hooks.recorder import Recorder
    from llmspell_dist.hooks.registration import Registration
    from llmspell_dist.hooks.sealing import Sealer

__all__ = ["Fleet"]


class Fleet:
    """Hooks that run for what happens in any process; as its asynchronous twin, blocking."""

    def __init__(
        self,
        hooks: Registration,
        backstage: Backstage,
        sealer: Sealer,
        recorder: Callable[[], Recorder | None],
    ) -> None:
        events = AsyncEvents(backstage.driver, backstage.hub)
        self._backstage = backstage
        self._there = AsyncFleet(
            hooks, backstage.driver, backstage.hub, events, sealer=sealer, recorder=recorder
        )

        async def end() -> None:
            await self._there.close()
            await events.close()

        backstage.at_end(end)

    @property
    def process(self) -> str:
        """What the others know this process by."""
        return self._there.process

    @property
    def stats(self) -> FleetStats:
        """What this process asked of others and did for them."""
        return self._there.stats

    @property
    def joined(self) -> bool:
        """Whether this process takes part."""
        return self._there.joined

    def processes(self) -> list[FleetProcess]:
        """Return the processes that take part, as far as this one knows; itself among them."""
        return self._there.processes()

    def join(self, *, labels: Mapping[str, str] | None = None) -> None:
        """Take part: know the hooks of the others, and run this process's own for them."""
        self._backstage.run(self._there.join(labels=labels))

    def add(
        self,
        point: HookPoint | str,
        hook: Any,
        *,
        name: str | None = None,
        run: str = "every",
        labels: Mapping[str, str] | None = None,
        max_hops: int = 3,
        timeout: float = 30.0,
        await_remote: bool = False,
        continue_on_failure: bool = True,
        **how: Any,
    ) -> RegisteredHook:
        """Register a hook that runs when its point is reached in any process that has joined."""
        there = self._there.add(
            point,
            hook,
            name=name,
            run=run,
            labels=labels,
            max_hops=max_hops,
            timeout=timeout,
            await_remote=await_remote,
            continue_on_failure=continue_on_failure,
            **how,
        )
        return self._backstage.run(there)

    __call__ = add

    def require(self, point: HookPoint | str, name: str) -> RegisteredHook:
        """Cancel operations of this process at a point while no process has the fleet hook."""
        return self._backstage.run(self._there.require(point, name))

    def remove(self, name: str, point: HookPoint | str) -> None:
        """Take a hook of this process away; `HookNotFoundError` if it has none of that name."""
        self._backstage.run(self._there.remove(name, point))

    @contextmanager
    def replacing(self, name: str, point: HookPoint | str) -> Iterator[None]:
        """Have a hook of this process away while another one of its name is put in its place.

        If the block raises, the hook is there again; `HookNotFoundError` if there is none.
        """
        there = self._there.replacing(name, point)
        self._backstage.run(there.__aenter__())
        try:
            yield
        except BaseException as error:
            self._backstage.run(there.__aexit__(type(error), error, error.__traceback__))
            raise
        self._backstage.run(there.__aexit__(None, None, None))

    def leave(self) -> None:
        """Take part no more; what is being sent is sent first, for at most five seconds."""
        if self._backstage.running:
            self._backstage.run(self._there.leave())
