"""Feeds: what is published about a scope, for all of a process who watch it over one subscription.

Nothing is subscribed for a scope that nobody watches.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol
from weakref import ref

from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.revision import PACKED_BYTES, Revision
from llmspell_dist.watch.bell import BELL_BYTES, read_told

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.redis.hub import Hub
    from llmspell_dist.watch.bell import Told

__all__ = ["Ear", "Feeds"]

logger = logging.getLogger("llmspell_dist.watch")

_BELL_ALONE_S: Final = 0.02
"""A bell that nothing follows for so long (an older release rang it) sends watchers to the log."""


class Ear(Protocol):
    """One who listens to a scope. All calls come in the event loop, in order; none may block."""

    def rang(self, revision: Revision) -> None:
        """Learn that the scope is at a revision now; `told` says more in a moment."""

    def told(self, told: Told) -> None:
        """Learn what commits did."""

    def missed(self, revision: Revision) -> None:
        """Learn that the scope is at a revision, and that nothing will tell what was done."""

    def lost(self) -> None:
        """Learn that nothing is heard from now on."""

    def resumed(self) -> None:
        """Learn that everything is heard from now on; what was in between is not."""

    def ended(self, *, forked: bool) -> None:
        """Learn that the client was closed, or that this is a forked child."""


class _Feed:
    """One scope's subscription and those who listen to it.

    It is wanted while somebody listens, and held while the hub has it.
    One task at a time makes the second the first, so a newcomer never meets one that leaves.
    """

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        # Not kept alive: a watch that its user has dropped leaves.
        self.ears: list[ref[Ear]] = []
        self.held = False
        """Whether the hub has the channel, with a connection or while it makes one."""
        self.settling: asyncio.Task[None] | None = None
        self.subscribing: asyncio.Task[None] | None = None
        """The part of `settling` that can be given up when nobody is left."""
        self.left: asyncio.Future[None] | None = None
        """Done when those who have left need not wait any more."""
        self._rung: Revision | None = None
        self._late: asyncio.TimerHandle | None = None

    def present(self) -> list[Ear]:
        """Return those who listen now."""
        return [ear for one in self.ears if (ear := one()) is not None]

    def hear(self, message: bytes) -> None:
        """Hand a message to everybody."""
        if len(message) == BELL_BYTES:
            revision = Revision.unpack(message[:PACKED_BYTES])
            if revision is not None:
                self._ring(revision)
            return
        try:
            told = read_told(message)
        except SpellError as error:
            logger.warning("a message about %r cannot be read: %s", self.channel, error)
            told = None
        if told is None:
            return  # the bell before it sends everybody to the log
        if self._rung is not None and told.revision >= self._rung:
            self._rung = None
        for ear in self.present():
            ear.told(told)

    def _ring(self, revision: Revision) -> None:
        if self._rung is None or revision > self._rung:
            self._rung = revision
        if self._late is None:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(_BELL_ALONE_S, self._nothing_followed)
        for ear in self.present():
            ear.rang(revision)

    def _nothing_followed(self) -> None:
        self._late = None
        rung, self._rung = self._rung, None
        if rung is not None:
            for ear in self.present():
                ear.missed(rung)

    def lost(self) -> None:
        """Tell everybody that nothing is heard."""
        for ear in self.present():
            ear.lost()

    def resumed(self) -> None:
        """Tell everybody that all is heard again."""
        for ear in self.present():
            ear.resumed()

    def stop(self) -> None:
        """Forget the bell that rang last, and take the timer away."""
        self._rung = None
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def release(self) -> None:
        """Let those who have left go on."""
        left, self.left = self.left, None
        if left is not None and not left.done():
            left.set_result(None)


class Feeds:
    """The feeds of one event loop, one for each scope that somebody watches."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._closed = False
        self._begin()
        on_fork(self)

    def _begin(self) -> None:
        self._feeds: dict[bytes, _Feed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._feeds)

    def listening(self) -> list[Ear]:
        """Return those who listen now."""
        return [ear for feed in list(self._feeds.values()) for ear in feed.present()]

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._closed

    def hears(self, scope: ScopeKey) -> bool:
        """Whether what is published about a scope that was joined is heard now."""
        feed = self._feeds.get(scope.hash)
        return feed is not None and feed.held and self._hub.hears(scope.hash)

    async def join(self, scope: ScopeKey, ear: Ear) -> None:
        """Let `ear` hear what is published about a scope, from the moment that this returns.

        Raises what `Hub.subscribe` raises; then the ear hears nothing.
        """
        if self._closed:
            raise ClosedError("the client is closed")
        self._loop = asyncio.get_running_loop()
        feed = self._feeds.get(scope.hash)
        if feed is None:
            feed = self._feeds[scope.hash] = _Feed(scope.hash)
        if ear not in feed.present():
            feed.ears.append(ref(ear))
        try:
            while True:
                self._check_there(feed, ear)
                if self.hears(scope):
                    return
                if feed.settling is None and not feed.held:
                    self._settle(feed)
                if feed.settling is None:
                    await self._confirmed(feed)
                    continue
                settling = feed.settling
                # Others may wait for it too: a caller that is cancelled leaves it to them.
                await asyncio.wait({settling})
                if not settling.cancelled():
                    settling.result()
        except BaseException:
            self.drop(scope, ear)
            raise

    def _check_there(self, feed: _Feed, ear: Ear) -> None:
        if self._closed:
            raise ClosedError("the client is closed")
        if ear not in feed.present():
            raise ClosedError("the subscription was given up meanwhile")

    async def _confirmed(self, feed: _Feed) -> None:
        try:
            await self._hub.confirmed(feed.channel)
        except InvalidArgumentError:
            if feed.held:
                raise
            # Everybody was dropped meanwhile, and perhaps somebody has come since.

    def drop(self, scope: ScopeKey, ear: Ear | None) -> asyncio.Future[None] | None:
        """Let `ear` hear nothing more; the last one out ends the subscription.

        Returns what is done when the server has confirmed that, or somebody has come meanwhile.
        """
        feed = self._feeds.get(scope.hash)
        if feed is None:
            return None
        feed.ears = [one for one in feed.ears if one() not in (None, ear)]
        if feed.ears or self._closed:
            return None
        if feed.settling is None and not feed.held:
            del self._feeds[scope.hash]
            return None
        if feed.left is None:
            feed.left = asyncio.get_running_loop().create_future()
        if feed.subscribing is not None:
            feed.subscribing.cancel()
        if feed.settling is None:
            self._settle(feed)
        return feed.left

    def abandon(self, scope: ScopeKey, ear: Ear) -> None:
        """Drop an ear that nobody has any more; called from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            self.drop(scope, ear)
        else:
            with suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(self.drop, scope, None)

    def _settle(self, feed: _Feed) -> None:
        feed.settling = asyncio.get_running_loop().create_task(self._settled(feed))
        feed.settling.add_done_callback(_seen)

    async def _settled(self, feed: _Feed) -> None:
        """Subscribe or unsubscribe until the hub holds what is wanted."""
        try:
            while not self._closed and bool(feed.present()) != feed.held:
                if feed.held:
                    feed.held = False
                    feed.stop()
                    await self._hub.unsubscribe(feed.channel)
                    feed.release()
                else:
                    feed.release()  # somebody came: who has left is not kept waiting
                    await self._subscribe(feed)
        finally:
            feed.settling = None
            if not feed.held and not feed.present() and self._feeds.get(feed.channel) is feed:
                del self._feeds[feed.channel]
            feed.release()

    async def _subscribe(self, feed: _Feed) -> None:
        subscribe = self._hub.subscribe(
            feed.channel, feed.hear, resumed=feed.resumed, lost=feed.lost
        )
        subscribing = feed.subscribing = asyncio.get_running_loop().create_task(subscribe)
        try:
            await asyncio.wait({subscribing})
            if not subscribing.cancelled():  # else everybody has left
                subscribing.result()
                feed.held = True
        finally:
            feed.subscribing = None
            subscribing.cancel()

    async def close(self) -> None:
        """End all feeds; who watches is told."""
        self._closed = True
        feeds, self._feeds = self._feeds, {}
        tasks = []
        for feed in feeds.values():
            feed.stop()
            for ear in feed.present():
                ear.ended(forked=False)
            for task in (feed.subscribing, feed.settling):
                if task is not None:
                    task.cancel()
                    tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self) -> None:
        """In a forked child: subscriptions and watches are the parent's."""
        for feed in self._feeds.values():
            for ear in feed.present():
                ear.ended(forked=True)
        keep_forever(self._feeds, self._loop)
        self._begin()


def _seen(task: asyncio.Task[None]) -> None:
    """Look at how a task ended: all who waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
