"""What stands behind the routes: the client, who may what, and the state of the sidecar itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llmspell_dist.leases.handles import read_handles
from llmspell_dist.observation import NOTHING_OBSERVED
from llmspell_dist.sidecar.auth.grants import Principal
from llmspell_dist.sidecar.observer import NOT_OBSERVED, Observer
from llmspell_dist.sidecar.settings import SidecarSettings
from llmspell_dist.state.driver import driver_of
from llmspell_dist.state.manager import StateManager

if TYPE_CHECKING:
    from llmspell_dist.client import Spell
    from llmspell_dist.observation import Observer as Spans
    from llmspell_dist.sidecar.auth.access import Access
    from llmspell_dist.sidecar.bodies import Bodies
    from llmspell_dist.state.core import Core

__all__ = ["Services"]

T = TypeVar("T")
_FENCED_KEPT: Final = 1024


class Services:
    """One of each, shared by all requests."""

    def __init__(
        self,
        spell: Spell,
        access: Access,
        bodies: Bodies,
        settings: SidecarSettings,
    ) -> None:
        self.spell = spell
        self.access = access
        self.bodies = bodies
        self.settings = settings
        self.observer: Observer = NOT_OBSERVED
        """Hears of every request."""
        self.spans: Spans = NOTHING_OBSERVED
        """Records them, if somebody wants traces."""
        self.render_metrics: Callable[[], tuple[bytes, str]] = _no_metrics
        """Gives the metrics and their media type; blocks a few milliseconds."""
        self.own_state = StateManager(driver_of(spell))
        """State that no hook looks at, for what the sidecar keeps for itself."""
        self.nobody = Principal("nobody", "anonymous", ())
        """Who asks for what is public."""
        self.draining = False
        """Whether it is stopping: what is accepted is answered, and streams end."""
        self.stopping = asyncio.Event()
        """Set when streams must end."""
        self.ending: list[Callable[[], Awaitable[None]]] = []
        """What services do at the end, once nothing is asked any more."""
        self.kept: dict[str, Any] = {}
        """What belongs to the whole sidecar, by name; see `one` too."""
        self._one: dict[Callable[[Services], Any], Any] = {}
        self.url: str | None = None
        """Where the server is, for who looks at it anew; None: where the environment says."""
        self._fenced: dict[bytes, StateManager] = {}

    def one(self, kind: Callable[[Services], T]) -> T:
        """Return the one of a class that keeps something between requests; the first call makes it.

        Its constructor takes these services.
        """
        if kind not in self._one:
            self._one[kind] = kind(self)
        found: T = self._one[kind]
        return found

    def drain(self) -> None:
        """Say that the sidecar stops: not ready any more, and streams end."""
        self.draining = True
        self.stopping.set()

    async def end(self) -> None:
        """Let each service end what it holds, whatever happens to the others; the last begun first.

        What one of them raises is raised when all have ended.
        """
        async with AsyncExitStack() as stack:
            for end in self.ending:
                stack.push_async_callback(end)

    def fenced(self, handles: bytes) -> StateManager:
        """Return the shared state under the leases of these handles."""
        known = self._fenced.get(handles)
        if known is None:
            if len(self._fenced) >= _FENCED_KEPT:
                self._fenced.clear()
            known = self.spell.leases.state_of(self.fenced_core(handles))
            self._fenced[handles] = known
        return known

    def fenced_core(self, handles: bytes) -> Core:
        """Return what builds commits that carry the leases of these handles.

        Whether they hold says the commit script, with every commit: `StaleFencingTokenError`.
        """
        steps = self.spell.leases.steps
        return steps.core.fenced([handle.fence(steps) for handle in read_handles(handles)])


def _no_metrics() -> tuple[bytes, str]:
    return b"", "text/plain; version=0.0.4; charset=utf-8"
