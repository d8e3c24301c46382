"""Watching for threads: a watch lives in the background, its changes come out page by page."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable, iscoroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmspell_dist.closing import Closing
from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.state.core import field_of
from llmspell_dist.state.interception import NOTHING_SEEN, Interceptor
from llmspell_dist.state.seen.changes import SeenChanges
from llmspell_dist.watch.errors import WaitTimeoutError
from llmspell_dist.watch.service import WITH_VALUE, WITHOUT_VALUE, seconds_of, value_after
from llmspell_dist.watch.service import Watches as AsyncWatches
from llmspell_dist.watch.watch import Watch as AsyncWatch

if TYPE_CHECKING:
    from llmspell_dist.blocking.backstage import Backstage
    from llmspell_dist.blocking.driver import SyncDriver
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.model import Change
    from llmspell_dist.watch.feed import Feeds
    from llmspell_dist.watch.watch import OnTrimmed

__all__ = ["Watch", "Watches"]


class _Pages:
    """What a watch in the background hands out, fetched page by page.

    A fetch goes on when its caller waits no longer, so that however short the polls are, one of
    them finds what it brought. All but `page` is used in the background's event loop.
    """

    def __init__(self, watch: AsyncWatch, fetches: set[asyncio.Task[None]]) -> None:
        self.page: deque[tuple[Change | SpellError, Revision | None]] = deque()
        self.watch = watch
        self._fetches = fetches
        self._fetch: asyncio.Task[None] | None = None
        self._awaited_by: asyncio.Task[Any] | None = None
        self._closed = False

    async def wait(self, within_s: float | None) -> None:
        """Return when there is something in the page, or after a time."""
        self._leave_to_parent()
        if self._awaited_by is not None:
            raise InvalidArgumentError(
                "watch", self.watch, "must be iterated by one thread at a time"
            )
        self._awaited_by = asyncio.current_task()
        try:
            if self._fetch is not None and self._fetch.done():
                self._take()
            if self.page:
                return
            if self._fetch is None:
                self._begin()
            assert self._fetch is not None  # noqa: S101 - just begun
            await asyncio.wait({self._fetch}, timeout=within_s)
            if self._fetch.done():
                self._take()
        finally:
            self._awaited_by = None

    def _leave_to_parent(self) -> None:
        """In a forked child: what is under way is the parent's."""
        loop = asyncio.get_running_loop()
        if self._fetch is not None and self._fetch.get_loop() is not loop:
            keep_forever(self._fetch, self._awaited_by)
            self._fetch = self._awaited_by = None

    def _begin(self) -> None:
        fetch = asyncio.get_running_loop().create_task(self.watch.next_page(self.page))
        self._fetch = fetch
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)
        fetch.add_done_callback(_seen)

    def _take(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is None:
            return
        if not fetch.cancelled():
            fetch.result()
        elif self._closed:
            raise StopAsyncIteration
        else:
            raise ClosedError("the client is closed")

    async def close(self) -> None:
        """End the watch, and the fetch that is under way."""
        self._closed = True
        self._leave_to_parent()
        if self._fetch is not None:
            self._fetch.cancel()
        await self.watch.aclose()

    def abandon(self) -> None:
        """End the fetch of a watch that nobody has any more; called from any thread."""
        fetch = self._fetch
        if fetch is not None and fetch in self._fetches:  # else it is over, or the parent's
            with suppress(RuntimeError):  # the background has ended
                fetch.get_loop().call_soon_threadsafe(fetch.cancel)


def _seen(fetch: asyncio.Task[None]) -> None:
    """Look at how a fetch ended: nobody may ask."""
    if not fetch.cancelled():
        fetch.exception()


class Watch(Closing):
    """The changes of a scope, as an iterator; `StateManager.watch` makes it.

    ``with`` returns when the subscription is confirmed: what is committed from then on comes.
    Without it the first step subscribes. One thread at a time may iterate.
    """

    def __init__(
        self,
        driver: SyncDriver,
        backstage: Backstage,
        pages: _Pages,
        prefix: str,
        shown: SeenChanges,
    ) -> None:
        self._driver = driver
        self._prefix = prefix
        self._shown = shown
        self._backstage = backstage
        self._begun = False
        self._watch = pages.watch
        self._pages = pages
        self._page = pages.page
        self._place = pages.watch.revision
        self._closed = False

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._pages.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.scope} at {self._place}>"

    @property
    def scope(self) -> str:
        """The scope that is watched."""
        return self._watch.scope

    @property
    def revision(self) -> Revision | None:
        """Up to where every change was handed out; a later watch goes on `since` here.

        ``Revision(0, 0)``: nothing was committed yet; None: a watch from now has not begun.
        """
        return self._place

    @property
    def overflows(self) -> int:
        """How often the consumer was too slow and went on from the log; nothing was lost."""
        return self._watch.overflows

    @property
    def buffered(self) -> int:
        """How many changes were heard of and not handed out yet."""
        return self._watch.buffered

    def _begin(self) -> None:
        """Let hooks refuse it, once; they run in the caller's thread, as those behind it."""
        if not self._begun and self._shown.wanted:
            said = {"scope": self.scope, "prefix": self._prefix}
            self._driver.run(self._shown.begin(said))
        self._begun = True

    def __enter__(self) -> Self:
        self._begin()
        self._backstage.run(self._watch.start())
        self._place = self._watch.revision
        return self

    def close(self) -> None:
        """End the watch; a thread that waits for its next change gets StopIteration."""
        if not self._closed:
            self._closed = True
            self._page.clear()
            if self._backstage.running:
                self._backstage.run(self._pages.close())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        change = self.next()
        assert change is not None  # noqa: S101 - without a limit there is one
        return change

    def next(self, timeout: float | timedelta | None = None) -> Change | None:
        """Return the next change, or None if there is none within `timeout`."""
        if self._closed:
            raise StopIteration
        self._begin()
        if not self._page:
            try:
                self._backstage.run(self._pages.wait(seconds_of(timeout)))
            except StopAsyncIteration:
                raise StopIteration from None
            if not self._page:
                return None
        change, place = self._page[0]
        try:
            shown = self._as_shown(change)
        except Exception:
            self._passed_on(place)
            raise
        self._passed_on(place)
        return shown

    def _as_shown(self, change: Change | SpellError) -> Change:
        if isinstance(change, SpellError):
            raise change
        if not self._shown.wanted:
            return change
        return self._driver.run(self._shown.change(change))

    def _passed_on(self, place: Revision | None) -> None:
        if self._page:  # else a hook has closed the watch
            self._page.popleft()
        self._place = place


class Watches:
    """What a blocking client's `StateManager.watch` and `wait_for` come to."""

    def __init__(
        self,
        driver: SyncDriver,
        backstage: Backstage,
        feeds: Feeds,
        seen: Interceptor = NOTHING_SEEN,
    ) -> None:
        self._driver = driver
        self._seen = SeenChanges(driver.core, "watch", seen)
        self._awaited = SeenChanges(driver.core, "wait_for", seen)
        self._unseen = SeenChanges(driver.core, "watch")
        self._backstage = backstage
        self._watches = AsyncWatches(backstage.driver, feeds)
        self._fetches: set[asyncio.Task[None]] = set()
        backstage.at_end(self._end_fetches)
        on_fork(self)

    def forget(self) -> None:
        """In a forked child: what is under way is the parent's."""
        keep_forever(*self._fetches)
        self._fetches.clear()

    async def _end_fetches(self) -> None:
        fetches = list(self._fetches)
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def open(
        self,
        scope: str | Scope,
        prefix: str | None = None,
        since: Revision | Change | None = None,
        on_trimmed: OnTrimmed = "raise",
    ) -> Watch:
        """Return a watch that has not begun."""
        return self._open(scope, prefix, since, on_trimmed, self._seen)

    def _open(
        self,
        scope: str | Scope,
        prefix: str | None,
        since: Revision | Change | None,
        on_trimmed: OnTrimmed,
        shown: SeenChanges,
    ) -> Watch:
        # Nobody looks at it in the background: hooks run in the thread that iterates.
        there = self._watches.open(scope, prefix, since, on_trimmed)
        pages = _Pages(there, self._fetches)
        return Watch(self._driver, self._backstage, pages, prefix or "", shown)

    def wait_for(
        self,
        scope: str | Scope,
        key: str,
        predicate: Callable[[Any], Any],
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Return the first value of a key, from now on, that the predicate accepts."""
        scope_key = self._driver.core.scope_key(scope)
        name = field_of(scope_key, key).decode()
        if not callable(predicate):
            raise InvalidArgumentError("predicate", predicate, "must be callable")
        within_s = seconds_of(timeout)
        until = None if within_s is None else monotonic() + within_s
        if self._awaited.wanted:
            said = {"scope": scope_key.scope.text, "key": name}
            self._driver.run(self._awaited.begin(said))
        with self._open(scope, name, None, "snapshot", self._unseen) as watch:
            value = self._value(scope_key, name)
            while not _holds(predicate, value):
                change = None
                while change is None or change.key not in (name, "") or change.op == "ttl":
                    left = None if until is None else max(0.0, until - monotonic())
                    change = watch.next(left)
                    if change is None and within_s is not None:
                        raise WaitTimeoutError(scope_key.scope.text, name, within_s)
                if change.op in WITHOUT_VALUE:
                    value = None
                elif change.op == "reset":
                    value = self._value(scope_key, name)
                elif change.op in WITH_VALUE and change.has_value:
                    value = self._shown(scope_key, name, change.value)
                else:
                    value = self._value_after(scope_key, name, change)
        return value

    def _value_after(self, scope: ScopeKey, key: str, change: Change) -> Any:
        there = self._watches
        value = self._driver.run(value_after(there.history, there.reads, scope, key, change))
        return None if value is None else self._shown(scope, key, value)

    def _value(self, scope: ScopeKey, key: str) -> Any:
        found = self._driver.run(self._watches.reads.find(scope.scope, key))
        return None if found is None else self._shown(scope, key, found.value)

    def _shown(self, scope: ScopeKey, key: str, value: Any) -> Any:
        if not self._awaited.wanted:
            return value
        return self._driver.run(self._awaited.value(scope.scope.text, key, value))


def _holds(predicate: Callable[[Any], Any], value: Any) -> bool:
    held = predicate(value)
    if isawaitable(held):
        if iscoroutine(held):
            held.close()
        raise InvalidArgumentError("predicate", predicate, "must be a plain function here")
    return bool(held)
