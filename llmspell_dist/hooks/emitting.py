"""The three hook points of events, behind the seam that events offer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.hooks.points import HookPoint
from llmspell_dist.state.interception import arguments_of

if TYPE_CHECKING:
    from llmspell_dist.events.model import Event
    from llmspell_dist.state.points import Points
    from llmspell_dist.state.steps import Steps

__all__ = ["EventHooks", "by_the_fleet"]

_BEFORE: Final = HookPoint.BEFORE_EVENT_EMIT
_AFTER: Final = HookPoint.AFTER_EVENT_EMIT
_FAILED: Final = HookPoint.EVENT_HANDLER_ERROR
_CHANGEABLE: Final = ("type", "data", "target", "tags", "priority", "ttl")
_OWN: Final = ("hook.fleet.", "hook.one.")
"""Types of the events by which hooks of the fleet are called: no hook sees these."""
_by_the_fleet: ContextVar[bool] = ContextVar("llmspell_dist.hooks.emitting", default=False)


@contextmanager
def by_the_fleet() -> Iterator[None]:
    """Publish in the block what calls hooks of other processes; nobody else may."""
    token = _by_the_fleet.set(True)
    try:
        yield
    finally:
        _by_the_fleet.reset(token)


class EventHooks:
    """Lets hooks see, change and refuse the events of this client.

    ``BeforeEventEmit`` may change type, data, target, tags, priority and ttl, or cancel: then
    nothing is published and the publisher gets `OperationCancelledError`. ``AfterEventEmit`` sees
    what was published. ``EventHandlerError`` sees the event that a handler of a durable
    subscription failed on, and why.
    """

    def __init__(self, points: Points, run: Callable[[Steps[Any]], Awaitable[Any]]) -> None:
        self._points = points
        self._run = run

    def watches(self, event_type: str = "") -> bool:
        """Whether a hook stands before or behind what is published, or not all may publish it."""
        return self._points.wants(_BEFORE, _AFTER) or event_type.startswith(_OWN)

    async def before_emit(self, event: Event) -> Event:
        """Return the event as the hooks want it published."""
        if event.type.startswith(_OWN):
            return _own(event)
        if not self._points.wants(_BEFORE):
            return event
        told = _told(event)
        steps = self._points.at(_BEFORE, ("event", event.type), told, refusable=True)
        data, _ = await self._run(steps)
        left = zip(_CHANGEABLE, arguments_of(data, _CHANGEABLE), strict=True)
        changed = {name: value for name, value in left if value is not told[name]}
        event = replace(event, **changed) if changed else event
        return _own(event) if event.type.startswith(_OWN) else event

    async def after_emit(self, event: Event) -> None:
        """Show what was published."""
        if self._points.wants(_AFTER) and not event.type.startswith(_OWN):
            await self._run(self._points.at(_AFTER, ("event", event.type), _told(event)))

    async def handler_failed(self, event: Event, subscription: str, error: Exception) -> None:
        """Show what a handler failed on."""
        if self._points.wants(_FAILED):
            told = {**_told(event), "subscription": subscription}
            await self._run(self._points.at(_FAILED, ("event", event.type), told, error=error))


def _own(event: Event) -> Event:
    """Let an event pass that hooks do not see, if it is the fleet's."""
    if not _by_the_fleet.get():
        rule = f"must not begin with {' or '.join(_OWN)}: that is how hooks of the fleet are called"
        raise InvalidArgumentError("type", event.type, rule)
    return event


def _told(event: Event) -> dict[str, Any]:
    told = {name: getattr(event, name) for name in _CHANGEABLE}
    told["id"] = event.id
    told["source"] = event.source
    return told
