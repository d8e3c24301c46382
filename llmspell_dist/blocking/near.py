"""The near cache of a blocking client: what is published arrives in the background thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from llmspell_dist.cache.near import Near
from llmspell_dist.errors import ClosedError

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.config import NearCache
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.watch.feed import Feeds

__all__ = ["NearReads"]


class NearReads(Near):
    """Reads served from memory, for any number of threads."""

    def __init__(self, core: Core, feeds: Feeds, settings: NearCache, backstage: Backstage) -> None:
        super().__init__(core, feeds, settings, self._begin)
        self._backstage = backstage
        self._tasks: set[asyncio.Task[None]] = set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._backstage.call(lambda: self._create(work))
        except ClosedError:
            work.close()  # the read that it is for says so

    def _create(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def warm(self, scope: str | Scope) -> None:  # type: ignore[override]
        """Return once reads of a scope are kept; raises what keeps them from being."""
        self._backstage.run(super().warm(scope))
