"""Watching as a service of a client: what `StateManager.watch` and `wait_for` come to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from inspect import isawaitable
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar

from llmspell_dist.errors import ClosedError, HistoryUnavailableError, InvalidArgumentError
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import field_of
from llmspell_dist.state.history import History
from llmspell_dist.state.interception import NOTHING_SEEN, Interceptor
from llmspell_dist.state.model import Change
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.scopes import Scopes, glob_of
from llmspell_dist.state.seen.changes import SeenChanges
from llmspell_dist.watch.errors import WaitTimeoutError
from llmspell_dist.watch.feed import Feeds
from llmspell_dist.watch.tail import TailReader
from llmspell_dist.watch.watch import OnTrimmed, Watch

if TYPE_CHECKING:
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.driver import AsyncDriver
    from llmspell_dist.state.steps import Steps

__all__ = ["WITHOUT_VALUE", "WITH_VALUE", "Watches", "seconds_of", "value_after"]

T = TypeVar("T")
WITHOUT_VALUE = frozenset(("delete", "expired", "clear"))
WITH_VALUE = frozenset(("set", "increment", "snapshot"))
_FROM_SNAPSHOT = frozenset(("snapshot", "reset"))


class Watches:
    """The watches of one event loop; they share one subscription a scope.

    `seen` looks at what they give out.
    """

    def __init__(self, driver: AsyncDriver, feeds: Feeds, seen: Interceptor = NOTHING_SEEN) -> None:
        self.feeds = feeds
        self.tail = TailReader(driver.core)
        self.reads = Reads(driver.core)
        self.scopes = Scopes(driver.core, self.reads)
        self.history = History(driver.core, self.reads)
        self._driver = driver
        self._seen = SeenChanges(driver.core, "watch", seen)
        self._awaited = SeenChanges(driver.core, "wait_for", seen)
        self._unseen = SeenChanges(driver.core, "watch")

    async def run(self, steps: Steps[T]) -> T:
        """Carry a reading operation out."""
        return await self._driver.run(steps)

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
        scope_key = self._driver.core.scope_key(scope)
        glob_of(prefix, None)  # the rules for a prefix are those of a listing
        if on_trimmed not in ("raise", "snapshot"):
            raise InvalidArgumentError("on_trimmed", on_trimmed, "must be raise or snapshot")
        if isinstance(since, Change):
            if since.op in _FROM_SNAPSHOT:
                raise InvalidArgumentError("since", since.op, "must be a change that the log has")
            if since.scope != scope_key.scope.text:
                raise InvalidArgumentError("since", since.scope, "must be a change of this scope")
        elif since is not None and not isinstance(since, Revision):
            raise InvalidArgumentError("since", since, "must be a Revision, a Change or None")
        return self._made(scope_key, prefix or "", since, on_trimmed, shown)

    def _made(
        self,
        scope: ScopeKey,
        prefix: str,
        since: Revision | Change | None,
        on_trimmed: OnTrimmed,
        shown: SeenChanges,
    ) -> Watch:
        """Return a watch of arguments that were checked."""
        return Watch(self, scope, prefix, since, on_trimmed, shown=shown)

    async def wait_for(
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
        if within_s == 0:
            return await self._look_for(scope_key, name, predicate)
        limit = asyncio.timeout(within_s)
        try:
            async with limit:
                return await self._wait_for(scope_key, name, predicate)
        except TimeoutError:
            if not limit.expired() or within_s is None:
                raise  # the predicate's own
            raise WaitTimeoutError(scope_key.scope.text, name, within_s) from None

    async def _look_for(self, scope: ScopeKey, key: str, predicate: Callable[[Any], Any]) -> Any:
        """Return the value that is there, if the predicate accepts it."""
        if self._awaited.wanted:
            await self.run(self._awaited.begin({"scope": scope.scope.text, "key": key}))
        value = await self._value(scope, key)
        if await _holds(predicate, value):
            return value
        raise WaitTimeoutError(scope.scope.text, key, 0)

    async def _wait_for(self, scope: ScopeKey, key: str, predicate: Callable[[Any], Any]) -> Any:
        name = scope.scope.text
        if self._awaited.wanted:
            await self.run(self._awaited.begin({"scope": name, "key": key}))
        async with self._open(scope.scope, key, None, "snapshot", self._unseen) as watch:
            value = await self._value(scope, key)
            if await _holds(predicate, value):
                return value
            async for change in watch:
                if change.key not in (key, "") or change.op == "ttl":
                    continue
                if change.op in WITHOUT_VALUE:
                    value = None
                elif change.op == "reset":
                    value = await self._value(scope, key)
                elif change.op in WITH_VALUE and change.has_value:
                    value = await self._shown(name, key, change.value)
                else:
                    value = await self._value_after(scope, key, change)
                if await _holds(predicate, value):
                    return value
        raise ClosedError("the client is closed")  # else it would go on

    async def _value(self, scope: ScopeKey, key: str) -> Any:
        found = await self.run(self.reads.find(scope.scope, key))
        return None if found is None else await self._shown(scope.scope.text, key, found.value)

    async def _value_after(self, scope: ScopeKey, key: str, change: Change) -> Any:
        value = await self.run(value_after(self.history, self.reads, scope, key, change))
        return None if value is None else await self._shown(scope.scope.text, key, value)

    async def _shown(self, scope: str, key: str, value: Any) -> Any:
        if not self._awaited.wanted:
            return value
        return await self.run(self._awaited.value(scope, key, value))

    def abandon(self, scope: ScopeKey, watch: Watch) -> None:
        """End the subscription of a watch that nobody has any more; called from any thread."""
        self.feeds.abandon(scope, watch)


def value_after(
    history: History, reads: Reads, scope: ScopeKey, key: str, change: Change
) -> Steps[Any]:
    """Return the value that a change made, or the present one if nobody can tell any more."""
    try:
        return (yield from history.get_at(scope.scope, key, change.revision, None))
    except HistoryUnavailableError:
        found = yield from reads.find(scope.scope, key)
        return None if found is None else found.value


async def _holds(predicate: Callable[[Any], Any], value: Any) -> bool:
    held = predicate(value)
    return bool(await held if isawaitable(held) else held)


def seconds_of(timeout: float | timedelta | None) -> float | None:
    """Return a time limit in seconds, checked; None is without end."""
    if timeout is None:
        return None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if type(seconds) not in (int, float) or not isfinite(seconds) or seconds < 0:
        rule = "must be seconds from 0 on, a timedelta or None"
        raise InvalidArgumentError("timeout", timeout, rule)
    return float(seconds)
