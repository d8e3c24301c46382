"""Handlers over a durable subscription: what returns is acknowledged, what raises comes again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from llmspell_dist.callables import check_takes_one
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.events.model import Event
from llmspell_dist.events.tracing import processing
from llmspell_dist.observation import NOTHING_OBSERVED, Observer

if TYPE_CHECKING:
    from llmspell_dist.events.durable import DurableSubscription

__all__ = ["Handler", "check_handler", "handle_all"]

Handler = Callable[[Event], Awaitable[Any] | Any]
"""Handles one event: a coroutine function or a plain one."""

Failed = Callable[[str, Event, Exception], Awaitable[None]]


def check_handler(handler: object, concurrency: object, *, most: int = 10_000) -> None:
    """Refuse what cannot handle events."""
    if not callable(handler):
        raise InvalidArgumentError("handler", handler, "must be callable")
    check_takes_one("handler", handler, handler, "the event")
    if type(concurrency) is not int or not 1 <= concurrency <= most:
        raise InvalidArgumentError("concurrency", concurrency, f"must be an int from 1 to {most:,}")


async def handle_all(
    subscription: DurableSubscription,
    handler: Handler,
    *,
    concurrency: int,
    stop: asyncio.Event | None,
    failed: Failed,
    observer: Observer = NOTHING_OBSERVED,
) -> None:
    """Handle events of a subscription that has begun, until cancelled or `stop` is set."""
    workers = [
        asyncio.ensure_future(_work(subscription, handler, failed, observer))
        for _ in range(concurrency)
    ]
    stopping = None if stop is None else asyncio.ensure_future(stop.wait())
    waited: list[asyncio.Future[Any]] = [*workers]
    if stopping is not None:
        waited.append(stopping)
    try:
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            subscription.drain()
            await asyncio.gather(*workers)
        for worker in workers:
            if worker.done():
                worker.result()
    finally:
        for one in waited:
            one.cancel()
        await asyncio.gather(*waited, return_exceptions=True)


async def _work(
    subscription: DurableSubscription, handler: Handler, failed: Failed, observer: Observer
) -> None:
    async for event in subscription:
        try:
            if observer.tracing:
                with processing(event, observer, subscription.name):
                    await _handled(handler, event)
            else:
                await _handled(handler, event)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is a failure of it
            await failed(subscription.name, event, error)
            await subscription.nack(event, error)
        else:
            await subscription.ack(event)


async def _handled(handler: Handler, event: Event) -> None:
    result = handler(event)
    if isawaitable(result):
        await result
