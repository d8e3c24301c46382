"""The hub's socket: messages go to their listeners, answers to the request that asked for them.

In RESP3 messages and confirmations are pushes, in RESP2 they are arrays; both are read here. The
server answers SUBSCRIBE, PSUBSCRIBE, their opposites and PING in order, one answer each, since the
hub names one channel or pattern in a request.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.redis.resp import (
    NOTHING,
    ErrorReply,
    ProtocolError,
    PushNotification,
    pack,
)
from llmspell_dist.redis.wire import Entry, Wire, WireOwner

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PING", "HubWire", "HubWireOwner"]

logger = logging.getLogger("llmspell_dist.redis")

PING = pack("PING")
_CONFIRMATIONS = frozenset({b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe"})


class HubWireOwner(WireOwner, Protocol):
    """What this wire tells the hub that it serves."""

    def answered(self, entry: Entry) -> None:
        """Learn that a request was carried out."""


class HubWire(Wire):
    """The protocol of the hub's connection; the greeting is that of every wire."""

    __slots__ = ("_hub", "listeners", "pattern_listeners")

    def __init__(self, hub: HubWireOwner) -> None:
        super().__init__(hub)
        self._hub = hub
        self.listeners: dict[bytes, Callable[[bytes], None]] = {}
        """By channel, those whose subscription was confirmed on this connection."""
        self.pattern_listeners: dict[bytes, Callable[[bytes, bytes], None]] = {}
        """The same by pattern; they are told the channel and the message."""

    def data_received(self, data: bytes) -> None:
        """Call the listeners, and hand out the answers that are complete."""
        if self.info is None:
            super().data_received(data)
            return
        gets = self._gets
        listeners = self.listeners
        try:
            self._feed(data)
            while (reply := gets()) is not NOTHING:
                kind = reply[0] if isinstance(reply, list) and reply else None
                if kind == b"message":
                    self.pushes += 1
                    listener = listeners.get(reply[1])
                    if listener is None:
                        continue  # on its way when the channel was given up
                    try:
                        listener(reply[2])
                    except (Exception, asyncio.CancelledError):
                        # A result that was cancelled raises CancelledError in who asks for it.
                        logger.exception("the listener of channel %r failed", reply[1])
                elif kind == b"pmessage":
                    self.pushes += 1
                    self._tell(reply)
                elif type(reply) is PushNotification and kind not in _CONFIRMATIONS:
                    self.pushes += 1
                elif not self._answer(kind, reply):
                    return
        except ProtocolError as error:
            self.kill(f"not the Redis protocol: {error}")

    def _tell(self, reply: list[bytes]) -> None:
        listener = self.pattern_listeners.get(reply[1])
        if listener is None:
            return  # on its way when the pattern was given up
        try:
            listener(reply[2], reply[3])
        except (Exception, asyncio.CancelledError):
            logger.exception("the listener of pattern %r failed", reply[1])

    def _answer(self, kind: bytes | None, reply: Any) -> bool:
        """Match an answer with the oldest request; False: it is none, and ended the connection."""
        failed = type(reply) is ErrorReply
        asked = PING if kind not in _CONFIRMATIONS else pack(kind.upper(), reply[1])
        if not self.pending or not (failed or asked == self.pending[0][1]):
            said = "the server sent a reply that nobody asked for"
            self.kill(reply.text if failed else said)
            return False
        entry = self.pending.popleft()
        if failed:
            self._hub.refused(entry, reply)
        else:
            self._hub.answered(entry)
        return True
