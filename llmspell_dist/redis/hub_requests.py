"""The asking half of the hub: which channels are wanted, and what the server says to that.

`hub.Hub` is the half that users see.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import get_running_loop
from time import monotonic
from typing import TYPE_CHECKING

from llmspell_dist.backoff import Backoff
from llmspell_dist.redis.options import LaneOptions
from llmspell_dist.redis.replies import RETRIED, error_code, error_from_reply
from llmspell_dist.redis.resp import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmspell_dist.errors import StoreUnavailableError
    from llmspell_dist.redis.connection import EndpointResolver, ServerInfo
    from llmspell_dist.redis.hub_wire import HubWire
    from llmspell_dist.redis.resp import ErrorReply
    from llmspell_dist.redis.supervisor import Supervisor
    from llmspell_dist.redis.wire import Entry, Wire

__all__ = ["Channel", "HubRequests", "Leave", "Place"]

logger = logging.getLogger("llmspell_dist.redis")


Place = tuple[bool, bytes]
"""Whether it is a pattern of channels, and the name of the channel or the pattern."""


class Channel:
    """A channel, or a pattern of channels, that somebody wants to hear."""

    __slots__ = ("future", "heard", "listener", "lost", "place", "refusal", "resumed", "since")

    def __init__(
        self,
        place: Place,
        listener: Callable[..., None],
        resumed: Callable[[], None] | None,
        lost: Callable[[], None] | None,
    ) -> None:
        self.place = place
        self.listener = listener
        self.resumed = resumed
        self.lost = lost
        self.since = monotonic()
        self.future: asyncio.Future[None] = get_running_loop().create_future()
        """Done once the first subscription was confirmed, or has failed."""
        self.heard: asyncio.Future[None] | None = None
        """For those who wait until it is subscribed again."""
        self.refusal: StoreUnavailableError | None = None
        """What the server said last, while it refuses."""

    def again(self) -> asyncio.Future[None]:
        """Return what is done when the channel is subscribed again, given up, or refused."""
        if self.heard is None:
            self.heard = get_running_loop().create_future()
        return self.heard

    def answer_again(self, error: StoreUnavailableError | None = None) -> None:
        """Let those go on who wait until the channel is subscribed again."""
        heard, self.heard = self.heard, None
        if heard is None or heard.done():
            return
        if error is None:
            heard.set_result(None)
        else:
            heard.set_exception(error)


class Leave:
    """An UNSUBSCRIBE or PUNSUBSCRIBE on its way."""

    __slots__ = ("future", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.future: asyncio.Future[None] = get_running_loop().create_future()

    def finish(self) -> None:
        """Let the caller of `unsubscribe` go on."""
        if not self.future.done():
            self.future.set_result(None)


class HubRequests:
    """Channels, and the requests about them, over one connection after another.

    The requests of a turn leave in one write. A connection that is lost takes the requests on it
    along: the next one begins with a subscription for every channel that is still wanted.
    """

    _supervisor: Supervisor

    def __init__(self, resolver: EndpointResolver, options: LaneOptions) -> None:
        self.resolver = resolver
        self.options = options
        self.closing = False
        self._begin()

    def _begin(self) -> None:
        """Start from nothing: at construction, and in the child after a fork."""
        # A child must not ask the server to end what is the parent's connection.
        self.info: ServerInfo | None = None
        self._wire: HubWire | None = None
        self._channels: dict[Place, Channel] = {}
        self._waiting: dict[Place, Channel] = {}
        """Those of the channels that were never confirmed."""
        self._turn: list[Entry] = []
        self._refused: list[Entry] = []
        self._again: asyncio.TimerHandle | None = None
        self._backoff = Backoff.within(self.options.retry_budget)

    @property
    def server(self) -> str:
        """What errors call the server."""
        return self.resolver.label if self.info is None else self.info.address

    # --- out ------------------------------------------------------------------------------------

    def _want(self, channel: Channel) -> None:
        """Ask for a channel now, or as soon as there is a connection."""
        self._channels[channel.place] = self._waiting[channel.place] = channel
        if self._wire is not None:
            self._send(channel, _subscribe(channel))
        else:
            self._supervisor.wake()

    def _leave(self, channel: Channel) -> Leave | None:
        """Give a channel up; return what tells the server, if there is need to."""
        if not self._drop(channel) or self._wire is None:
            return None
        is_pattern, name = channel.place
        if is_pattern:
            self._wire.pattern_listeners.pop(name, None)
        else:
            self._wire.listeners.pop(name, None)
        leave = Leave(channel.place)
        self._send(leave, pack("PUNSUBSCRIBE" if is_pattern else "UNSUBSCRIBE", name))
        return leave

    def _drop(self, channel: Channel) -> bool:
        if self._channels.get(channel.place) is not channel:
            return False
        del self._channels[channel.place]
        self._waiting.pop(channel.place, None)
        channel.answer_again()
        return True

    def ask(self, packed: bytes) -> None:
        """Send a request whose answer is only a sign of life."""
        self._send(None, packed)

    def _send(self, waiter: Channel | Leave | None, packed: bytes) -> None:
        if not self._turn:
            get_running_loop().call_soon(self._flush)
        self._turn.append((waiter, packed, 0.0))

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        wire = self._wire
        if wire is not None and turn:
            wire.pending.extend(turn)
            wire.write(b"".join([entry[1] or b"" for entry in turn]), len(turn), monotonic())

    # --- what the wire tells --------------------------------------------------------------------

    def answered(self, entry: Entry) -> None:
        """Take note that the server has carried a request out."""
        waiter = entry[0]
        if isinstance(waiter, Leave):
            waiter.finish()
        elif isinstance(waiter, Channel) and self._channels.get(waiter.place) is waiter:
            self._confirmed(waiter)

    def _confirmed(self, channel: Channel) -> None:
        if self._wire is not None:
            is_pattern, name = channel.place
            if is_pattern:
                self._wire.pattern_listeners[name] = channel.listener
            else:
                self._wire.listeners[name] = channel.listener
        self._backoff.reset()
        channel.refusal = None
        if self._waiting.pop(channel.place, None) is None:
            _call(channel.resumed)
            channel.answer_again()
        elif not channel.future.done():
            channel.future.set_result(None)

    def refused(self, entry: Entry, reply: ErrorReply) -> None:
        """Try again what may work later; else fail the caller that waits, if one does."""
        waiter = entry[0]
        passes = error_code(reply.text) in RETRIED
        if isinstance(waiter, Leave):
            if passes:
                self._defer(entry)
            else:
                waiter.finish()  # without the right to leave, messages go on to come to nobody
        elif isinstance(waiter, Channel) and self._channels.get(waiter.place) is waiter:
            error = error_from_reply(reply, self.server)
            if passes or waiter.place not in self._waiting:
                # Who was subscribed before waits for `resumed`, so the hub must not give up.
                if waiter.refusal is None:
                    logger.warning("hub: no subscription yet: %s", error)
                waiter.refusal = error
                self._defer(entry)
                if not passes:
                    waiter.answer_again(error)
            else:
                self._drop(waiter)
                _fail(waiter, error)

    def _defer(self, entry: Entry) -> None:
        self._refused.append(entry)
        if self._again is None:
            pause_s = self._backoff.next_s()
            self._again = get_running_loop().call_later(pause_s, self._send_again)

    def _send_again(self) -> None:
        self._again = None
        entries, self._refused = self._refused, []
        for waiter, packed, _ in entries:
            wanted = self._channels.get(waiter.place)
            if packed is not None and wanted is (waiter if isinstance(waiter, Channel) else None):
                self._send(waiter, packed)
            elif isinstance(waiter, Leave):
                waiter.finish()  # subscribed anew meanwhile

    def progressed(self) -> None:
        """Do nothing: the hub's requests are few and small, and wait for no room."""

    def wire_lost(self, wire: Wire, said: str) -> None:
        """Tell every channel that it hears nothing, and connect again."""
        if wire is not self._wire:
            return
        heard = [self._channels[False, name] for name in self._wire.listeners]
        heard += [self._channels[True, name] for name in self._wire.pattern_listeners]
        self._detach()
        logger.warning("hub lane: lost %s: %s", self.server, said)
        self._supervisor.lost(said)
        for channel in heard:
            _call(channel.lost)

    def _detach(self) -> HubWire | None:
        """Let go of the connection, and of all that was asked over it."""
        wire, self._wire = self._wire, None
        entries = [*self._turn, *self._refused]
        self._turn, self._refused = [], []
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if wire is not None:
            entries += wire.pending
            wire.pending.clear()
            wire.listeners.clear()
            wire.pattern_listeners.clear()
        for waiter, _, _ in entries:
            if isinstance(waiter, Leave):
                waiter.finish()
        return wire

    # --- what the supervisor tells --------------------------------------------------------------

    @property
    def backlog(self) -> dict[Place, Channel]:
        """The channels: while there is one, the supervisor goes on connecting."""
        return self._channels

    def attach(self, wire: HubWire) -> None:
        """Subscribe every channel over a connection that was greeted."""
        self.info = wire.info
        self._wire = wire
        for channel in self._channels.values():
            self._send(channel, _subscribe(channel))

    def expire(self, now: float, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail the `subscribe` calls that wait for longer than their budget."""
        budget_s = self.options.retry_budget
        for channel in list(self._waiting.values()):
            if channel.since <= now - budget_s:
                late = said if self._wire is None else f"not confirmed within {budget_s:g} s"
                self._leave(channel)
                _fail(channel, channel.refusal or cls(self.server, late))

    def fail_all(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Fail every `subscribe` call that waits; what was subscribed once stays wanted."""
        for channel in list(self._waiting.values()):
            self._leave(channel)
            _fail(channel, cls(self.server, said))
        for channel in self._channels.values():
            channel.answer_again(cls(self.server, said))


def _subscribe(channel: Channel) -> bytes:
    is_pattern, name = channel.place
    return pack("PSUBSCRIBE" if is_pattern else "SUBSCRIBE", name)


def _fail(channel: Channel, error: StoreUnavailableError) -> None:
    if not channel.future.done():
        channel.future.set_exception(error)


def _call(callback: Callable[[], None] | None) -> None:
    if callback is None:
        return
    try:
        callback()
    except (Exception, asyncio.CancelledError):
        logger.exception("a callback of the hub failed")
