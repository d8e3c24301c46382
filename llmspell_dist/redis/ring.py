"""Operation ids: a client's ring of numbered commits, which makes sending one again safe."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, Protocol

from llmspell_dist.redis.commits import RENEW_RING, RING_EXPECTED

__all__ = ["WINDOW", "Numbered", "Operation", "Ring", "RingKey", "ring_key"]

WINDOW = 1024
"""Slots of a ring on the server: as many operations of a client can be unresolved at a time."""

_TOUCH_EVERY_S = 300.0
_RING_LIVES_S = 3300.0
"""A little less than the hour after which the server drops an unused ring."""


class Numbered(Protocol):
    """Something that holds sequence numbers until it is resolved."""

    first: int
    resolved: bool


RingKey = Callable[[bytes, bytes], bytes]
"""From a shard's prefix and a client to the ring's Redis key."""


def ring_key(shard: bytes, client: bytes) -> bytes:
    """Spell the ring's key as the commit script's caller does all keys of a shard."""
    return b"%b:ring:%b" % (shard, client)


@dataclass(frozen=True, slots=True)
class Operation:
    """A commit together with the id under which it was sent: what settles an unknown outcome.

    Sent again with its id the commit is applied at most once. Pickles, so that another process can
    settle it.
    """

    ring: str
    sequence: int
    commit: Any
    ack: Any = None
    """The acknowledgement level that was asked for; None: memory."""
    expected: bool = False
    """Whether the ring must still be on the server, because a commit of it was acknowledged."""
    at: float = field(default_factory=time, repr=False)

    @property
    def id(self) -> str:
        """Printed form, as it stands in the change log."""
        return f"{self.ring}:{self.sequence}"


class Ring:
    """One client's operation ids: a sequence, and a window of unresolved ones.

    A slot of the ring on the server may be overwritten only after its operation is resolved: the
    next sequence stays less than `WINDOW` ahead of the oldest unresolved one.
    """

    __slots__ = ("_key_of", "_keys", "_next", "_touched", "_unresolved", "client", "missed")

    def __init__(self, key_of: RingKey) -> None:
        self.client = os.urandom(8).hex().encode()
        self._key_of = key_of
        self._keys: dict[bytes, bytes] = {}
        self._next = 1
        self._touched: dict[bytes, tuple[float, bool]] = {}
        self._unresolved: deque[Numbered] = deque()
        self.missed: deque[tuple[Any, Any]] = deque(maxlen=WINDOW)
        """Futures that were cancelled just before their outcome came, and it."""

    @classmethod
    def of_operation(cls, operation: Operation, key_of: RingKey, *, elapsed_s: float) -> Ring:
        """Return the ring that an operation was sent with, to send just that one again."""
        ring = cls(key_of)
        ring.client = operation.ring.encode()
        if operation.expected or not 0 <= elapsed_s < _RING_LIVES_S:
            # Without its ring nobody could tell whether the operation was applied.
            ring._touched[operation.commit.shard] = (monotonic(), True)
        return ring

    def key(self, shard: bytes) -> bytes:
        """Return the ring's Redis key in a shard."""
        key = self._keys.get(shard)
        if key is None:
            key = self._keys[shard] = self._key_of(shard, self.client)
        return key

    def take(self, holder: Numbered, count: int) -> int | None:
        """Return the first of `count` new sequence numbers, or None if the window is full."""
        unresolved = self._unresolved
        while unresolved and unresolved[0].resolved:
            unresolved.popleft()
        first = self._next
        if unresolved and first + count - unresolved[0].first > WINDOW:
            return None
        unresolved.append(holder)
        self._next = first + count
        return first

    def unresolved(self) -> Iterator[Numbered]:
        """Return what holds numbers, the latest first."""
        return (one for one in reversed(self._unresolved) if not one.resolved)

    def take_one(self) -> int:
        """Return a new sequence number, for a caller with one operation at a time."""
        first = self._next
        self._next = first + 1
        return first

    def expects(self, shard: bytes, now: float) -> bool:
        """Tell whether the ring must be on the server."""
        touched = self._touched.get(shard)
        return touched is not None and touched[1] and now - touched[0] < _RING_LIVES_S

    def flags(self, shard: bytes, now: float) -> int:
        """Return the flags that new items of a shard go with."""
        touched = self._touched.get(shard)
        if touched is None or now - touched[0] >= _TOUCH_EVERY_S:
            expected = self.expects(shard, now)
            # Counts as touched once it is acknowledged, see `acknowledged`.
            return RENEW_RING | (RING_EXPECTED if expected else 0)
        return RING_EXPECTED if touched[1] else 0

    def acknowledged(self, shard: bytes, packed_at: float, flags: int) -> None:
        """Note that the server answered a group that was packed with these flags."""
        if flags & RENEW_RING:
            self._touched[shard] = (packed_at, True)
