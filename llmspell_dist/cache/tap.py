"""Own writes seen at once: every commit of the process passes by what caches, both ways."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import Future

    from llmspell_dist.redis.blocking_driver import BlockingDriver
    from llmspell_dist.redis.commits import Commit
    from llmspell_dist.redis.lanes import Lanes

__all__ = ["BlockingTap", "LanesTap", "WriteListener"]


class WriteListener(Protocol):
    """What keeps values in memory, and so wants to know of this client's commits."""

    @property
    def watching(self) -> bool:
        """Whether it keeps anything at all."""

    def wrote(self, commit: Commit) -> None:
        """Forget what a commit changes."""


class LanesTap:
    """Lanes whose commits a cache is told of, before they leave and when they are over."""

    def __init__(self, lanes: Lanes, near: WriteListener) -> None:
        self._lanes = lanes
        self._near = near
        self.submit = lanes.submit
        self.execute = lanes.execute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lanes, name)

    def commit(self, commit: Any, ack: Any = None) -> Future[Any]:
        """Send a commit; see `Lanes.commit`."""
        if not self._near.watching:
            return self._lanes.commit(commit, ack)
        self._near.wrote(commit)
        # The first callback of the future: who waits for it reads after this.
        return self._told(self._lanes.commit(commit, ack), commit)

    def settle(self, operation: Any) -> Future[Any]:
        """Send the commit of an unknown outcome again; see `Lanes.settle`."""
        self._near.wrote(operation.commit)
        return self._told(self._lanes.settle(operation), operation.commit)

    def _told(self, future: Future[Any], commit: Any) -> Future[Any]:
        future.add_done_callback(partial(self._over, commit))
        return future

    def _over(self, commit: Any, _: Future[Any]) -> None:
        self._near.wrote(commit)


class BlockingTap:
    """As `LanesTap`, for the connections of a blocking client."""

    def __init__(self, connections: BlockingDriver, near: WriteListener) -> None:
        self._connections = connections
        self._near = near
        self.submit = connections.submit
        self.execute = connections.execute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connections, name)

    def commit(self, commit: Any, ack: Any = None) -> Any:
        """Send a commit; see `BlockingDriver.commit`."""
        if not self._near.watching:
            return self._connections.commit(commit, ack)
        self._near.wrote(commit)
        try:
            return self._connections.commit(commit, ack)
        finally:
            self._near.wrote(commit)

    def settle(self, operation: Any) -> Any:
        """Send the commit of an unknown outcome again; see `BlockingDriver.settle`."""
        self._near.wrote(operation.commit)
        try:
            return self._connections.settle(operation)
        finally:
            self._near.wrote(operation.commit)
