"""Events through a sidecar: publish, hear live, handle durably, look at queues and dead letters."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import ClosedError, InvalidArgumentError, SpellError
from llmspell_dist.events import Event, PublisherStats, RateLimit
from llmspell_dist.events.batches import in_parts
from llmspell_dist.events.errors import (
    PublishBlockedError,
    UnreadableEventError,
)
from llmspell_dist.events.live import LiveSubscription
from llmspell_dist.events.looking import MOST_LISTED, DeadLetter, SubscriptionInfo, check_id
from llmspell_dist.events.manager import Events, check_timeout
from llmspell_dist.events.steps import check_name
from llmspell_dist.events.terms import ConsumerStats, DurableTerms
from llmspell_dist.fork import keep_forever, on_fork
from llmspell_dist.jsonable import from_json
from llmspell_dist.observation import NOTHING_OBSERVED
from llmspell_dist.patterns import Pattern
from llmspell_dist.remote.durable import RemoteDurableSubscription
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.remote.event_documents import document_of, event_of, info_of, letter_of
from llmspell_dist.remote.problems import error_of

if TYPE_CHECKING:
    from llmspell_dist.remote.transport import Transport

__all__ = ["RemoteEvents"]

_AT_ONCE: Final = 500
_QUEUES: Final = ("v1", "subscriptions")
_REFUSED: Final = frozenset({"PUBLISH_REJECTED", "PUBLISH_BLOCKED", "RATE_LIMITED"})
_GONE: Final = frozenset({"SUBSCRIPTION_NOT_FOUND"})


class RemoteEvents(Events):
    """Events between processes, through a sidecar; see `Events`, whose promises it keeps."""

    _tracing = NOTHING_OBSERVED
    """Whoever handles an event here is seen by the sidecar's own spans only."""
    _router: Any

    @property
    def observer(self) -> None:
        """Nobody: hooks on events run in the sidecar."""
        return None

    @observer.setter
    def observer(self, _: object) -> None:
        raise NotThroughSidecarError("an observer of events", "hooks on events run in the sidecar")

    def __init__(self, transport: Transport, client: str) -> None:
        self._transport = transport
        self._client = client
        self._router = _Router(transport)
        self._limit: RateLimit | None = None
        self._stats = PublisherStats()
        self._consumers = count(1)
        self._open: set[RemoteDurableSubscription] = set()
        self._ended: dict[str, ConsumerStats] = {}
        on_fork(self)

    # --- publishing

    async def publish_event(self, event: Event, *, timeout: float = 30.0) -> Event:
        """Publish an event that was made already; see `publish`."""
        if not isinstance(event, Event):
            raise InvalidArgumentError("event", event, "must be an Event")
        check_timeout(timeout)
        if self._limit is not None and not await self._limit.admit(event.type, self._stats):
            return event
        answer = await self._post(("v1", "events"), document_of(event), timeout)
        self._stats.published += 1
        return event_of(answer)

    async def _post(self, path: tuple[str, ...], document: Any, timeout: float) -> Any:
        # Whether a full queue is worth another try, its publisher knows.
        answer = await self._transport.request(
            "POST",
            path,
            query={"timeout": min(timeout, 300.0)},
            document=document,
            accept=_REFUSED,
            patience_s=timeout,
        )
        if answer.status >= 400:
            error = error_of(answer.status, answer.document, self._transport.server)
            self._stats.blocked += isinstance(error, PublishBlockedError)
            self._stats.rejected += not isinstance(error, PublishBlockedError)
            raise error
        return answer.document

    async def publish_many(self, events: Iterable[Event], *, timeout: float = 30.0) -> int:
        """Publish events in their order, some hundred in a round trip; return how many."""
        check_timeout(timeout)
        if isinstance(events, Event):
            raise InvalidArgumentError("events", events, "must be several events, not one")
        some: list[dict[str, Any]] = []
        with in_parts() as stored:
            for event in events:
                if not isinstance(event, Event):
                    raise InvalidArgumentError("events", event, "must be Event objects")
                if self._limit is not None and not await self._limit.admit(event.type, self._stats):
                    continue
                some.append(document_of(event))
                if len(some) == _AT_ONCE:
                    stored.append(await self._publish_some(some, timeout))
                    some = []
            if some:
                stored.append(await self._publish_some(some, timeout))
        return sum(stored)

    async def _publish_some(self, documents: list[dict[str, Any]], timeout: float) -> int:
        answer = await self._post(("v1", "events", "batch"), {"events": documents}, timeout)
        published: int = answer["count"]
        self._stats.published += published
        return published

    def limit_rate(self, limit: RateLimit | None) -> None:
        """Limit how fast this client publishes, from now on; None: no longer (the default)."""
        if limit is not None and not isinstance(limit, RateLimit):
            raise InvalidArgumentError("limit", limit, "must be a RateLimit or None")
        self._limit = limit

    def stats(self) -> PublisherStats:
        """Return what became of the events that this client published."""
        return replace(self._stats)

    def consumed(self) -> dict[str, ConsumerStats]:
        """Return what the consumers of this client did, by durable subscription."""
        totals = {name: replace(stats) for name, stats in self._ended.items()}
        for one in self._open:
            totals.setdefault(one.name, ConsumerStats()).add(one.stats())
        return totals

    # --- subscribing

    def _durable(
        self,
        name: str,
        pattern: Pattern,
        *,
        consumer: str | None,
        capacity: int | None,
        overflow: str | None,
        terms: DurableTerms,
    ) -> Any:
        found = RemoteDurableSubscription(
            self._transport,
            name,
            pattern,
            consumer=f"{self._client}-{next(self._consumers)}" if consumer is None else consumer,
            capacity=capacity,
            overflow=overflow,
            terms=terms,
            ended=self._left,
        )
        self._open.add(found)
        return found

    def _left(self, subscription: RemoteDurableSubscription) -> None:
        self._open.discard(subscription)
        total = self._ended.setdefault(subscription.name, ConsumerStats())
        total.add(subscription.stats())

    async def failed(self, name: str, event: Event, error: Exception) -> None:
        """Take note that a handler raised: hooks of the sidecar hear nothing of it."""

    # --- looking

    async def subscriptions(self) -> list[SubscriptionInfo]:
        """Return every durable subscription of the namespace by name, with what waits in it."""
        answer = await self._transport.request("GET", _QUEUES)
        return [info_of(one) for one in answer.document["subscriptions"]]

    async def remove(self, name: str) -> bool:
        """End a durable subscription, with queue and dead letters; return whether it existed."""
        answer = await self._transport.request("DELETE", (*_QUEUES, check_name(name)), accept=_GONE)
        return answer.status < 400

    async def dead_letters(
        self, name: str, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Return the dead letters of a durable subscription, oldest first; `after`: an id."""
        if type(limit) is not int or not 1 <= limit <= MOST_LISTED:
            raise InvalidArgumentError("limit", limit, f"must be an int from 1 to {MOST_LISTED:,}")
        query = {"limit": limit, "after": None if after is None else check_id(after, "after")}
        path = (*_QUEUES, check_name(name), "dead")
        answer = await self._transport.request("GET", path, query=query, accept=_GONE)
        if answer.status >= 400:
            return []
        return [letter_of(one) for one in answer.document["letters"]]

    async def replay(self, name: str, ids: Iterable[str] | str) -> int:
        """Put dead letters back into the queue, as new events at its end; return how many were."""
        path = (*_QUEUES, check_name(name), "dead", "replay")
        answer = await self._transport.request("POST", path, document={"ids": _checked(ids)})
        replayed: int = answer.document["count"]
        return replayed

    async def delete_dead(self, name: str, ids: Iterable[str] | str) -> int:
        """Delete dead letters; return how many there were."""
        done = 0
        for one in _checked(ids):
            path = (*_QUEUES, check_name(name), "dead")
            answer = await self._transport.request("DELETE", path, query={"id": one}, accept=_GONE)
            done += answer.document["count"] if answer.status < 400 else 0
        return done

    # --- the end

    def forget(self) -> None:
        """In a forked child: subscriptions are the parent's, and so are the names of consumers."""
        self._router.forget()
        for one in self._open:
            one.disown()
        self._open, self._ended = set(), {}
        self._client = f"remote-{os.urandom(8).hex()}"

    async def close(self) -> None:
        """End all subscriptions; twice is allowed."""
        await self._router.close()
        for one in tuple(self._open):
            await one.close()


class _Router:
    """Hears for live subscriptions: one stream each, whatever comes in between is a gap."""

    def __init__(self, transport: Transport) -> None:
        self.steps = self
        self._transport = transport
        self._tasks: dict[LiveSubscription, asyncio.Task[None]] = {}

    def read_event(self, message: bytes) -> Event:
        """Decode an event; `UnreadableEventError` if it is none."""
        try:
            return event_of(from_json(json.loads(message)))
        except (SpellError, ValueError, KeyError, TypeError) as error:
            # Not the message, which may have data in it: this stands in the log.
            raise UnreadableEventError(type(error).__name__) from None

    async def add(self, subscription: LiveSubscription) -> None:
        """Begin to hear what a subscription wants; returns when it is heard."""
        begun = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(self._hear(subscription, begun))
        self._tasks[subscription] = task
        try:
            await begun
        except BaseException:
            await self.remove(subscription)
            raise

    async def _hear(self, subscription: LiveSubscription, begun: asyncio.Future[None]) -> None:
        stream = self._transport.stream(("v1", "events"), query={"pattern": subscription.pattern})
        try:
            async for event in stream:
                if event.name == "message":
                    subscription.take(event.data.encode())
                elif event.name == "begun":
                    if begun.done():
                        subscription.gap()
                    else:
                        begun.set_result(None)
                elif event.name == "missed":
                    subscription.gap()
        except Exception as error:  # noqa: BLE001 - whoever waits for events is told
            if begun.done():
                subscription.abandon(error)
            else:
                begun.set_exception(error)

    async def remove(self, subscription: LiveSubscription) -> None:
        """Hear nothing more for it."""
        task = self._tasks.pop(subscription, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def forget(self) -> None:
        """In a forked child: the streams are the parent's."""
        for subscription in self._tasks:
            subscription.abandon(ClosedError("the subscription belongs to the parent process"))
        keep_forever(self._tasks)
        self._tasks = {}

    async def close(self) -> None:
        """End all of them: the client closes."""
        for subscription in tuple(self._tasks):
            subscription.abandon()
            await self.remove(subscription)


def _checked(ids: Iterable[str] | str) -> list[str]:
    return [check_id(one) for one in ([ids] if isinstance(ids, str) else ids)]
