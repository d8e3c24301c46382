"""Group commit: many independent commits in one script call, each with its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.errors import OutcomeUnknownError, StoreProtocolError, StoreUnavailableError
from llmspell_dist.redis.commits import RENEW_RING, RETRY
from llmspell_dist.redis.replies import error_from_reply, nothing_ran, refused_by_role
from llmspell_dist.redis.resp import ErrorReply
from llmspell_dist.redis.ring import Operation, Ring

if TYPE_CHECKING:
    import asyncio

    from llmspell_dist.redis.wire import Entry

__all__ = [
    "GROUP_BYTES",
    "GROUP_ITEMS",
    "Group",
    "GroupOwner",
    "Operation",
    "PackGroup",
    "Ring",
    "SizedCommit",
]

GROUP_ITEMS = 64
GROUP_BYTES = 256 * 1024


class SizedCommit(Protocol):
    """A commit as far as the lane looks at it."""

    @property
    def shard(self) -> bytes:
        """The prefix of the keys of the shard that all its scopes lie in."""

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire."""


class PackGroup(Protocol):
    """`llmspell_dist.redis.commits.pack_group`."""

    def __call__(
        self,
        ring_key: bytes,
        items: Sequence[tuple[int, int, Any]],
        /,
        *,
        eval_body: bool = False,
    ) -> bytes:
        """Return one request that carries the items ``(sequence, flags, commit)``."""


class GroupOwner(Protocol):
    """The lane, as its groups see it."""

    @property
    def server(self) -> str:
        """What errors call the server."""

    def refused_group(self, entry: Entry, reply: ErrorReply) -> bool:
        """Take a refused group back to send it again; False if it fails."""


class Group:
    """Commits of one shard in one script call; each member gets its own outcome."""

    __slots__ = (
        "_flags",
        "_lane",
        "_packed_at",
        "_ring",
        "at",
        "commits",
        "first",
        "futures",
        "key",
        "resolved",
        "sent",
        "shard",
        "size",
        "with_body",
    )

    def __init__(self, lane: GroupOwner, shard: bytes, ring: Ring, at: float) -> None:
        self._lane = lane
        self._ring = ring
        self.at = at
        self._flags = 0
        self._packed_at = 0.0
        self.shard = shard
        self.key: object = shard
        """Under what the lane finds the group while it is open."""
        self.commits: list[Any] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.size = 0
        self.first = 0
        self.sent = False
        """Whether it may have reached the server over a connection that was lost."""
        self.resolved = False
        self.with_body = False

    def add(self, commit: SizedCommit, future: asyncio.Future[Any]) -> None:
        """Let one more commit go with the group."""
        self.commits.append(commit)
        self.futures.append(future)
        self.size += commit.size

    def number(self) -> bool:
        """Give the members their sequence numbers; False while the ring has no room.

        Members that were cancelled before are left out, and so never happen.
        """
        if self.first:
            return True
        if any(future.done() for future in self.futures):
            kept = [
                pair for pair in zip(self.commits, self.futures, strict=True) if not pair[1].done()
            ]
            self.commits = [commit for commit, _ in kept]
            self.futures = [future for _, future in kept]
        if not self.commits:
            return True
        first = self._ring.take(self, len(self.commits))
        if first is None:
            return False
        self.first = first
        return True

    def pack(self, pack_group: PackGroup) -> bytes:
        """Return the request; at a retry the same numbers with the retry flag."""
        ring = self._ring
        now = self._packed_at = monotonic()
        flags = ring.flags(self.shard, now)
        if self.sent:
            # Touching makes a retry a write, so that a WAIT after it covers the first attempt.
            flags |= RETRY | RENEW_RING
        self._flags = flags
        first = self.first
        items = [(first + i, flags, commit) for i, commit in enumerate(self.commits)]
        return pack_group(ring.key(self.shard), items, eval_body=self.with_body)

    def deliver(self, entry: Entry, reply: Any) -> None:
        """Give each member its outcome."""
        if type(reply) is ErrorReply:
            if not self._lane.refused_group(entry, reply):
                self.refuse(reply)
        elif type(reply) is not list or len(reply) != len(self.futures):
            self.fail(StoreProtocolError, "the commit script answered no outcomes", sent=True)
        elif (refused := refused_by_role(reply)) is not None:
            if not self._lane.refused_group(entry, refused):
                self.refuse(refused)
        else:
            self._ring.acknowledged(self.shard, self._packed_at, self._flags)
            self.settle(reply)

    def settle(self, outcomes: Sequence[Any]) -> None:
        """Resolve the members."""
        self.resolved = True
        for future, outcome in zip(self.futures, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
            else:
                self._ring.missed.append((future, outcome))

    def lost(self, entry: Entry, said: str) -> list[Entry]:  # noqa: ARG002 - a Waiter
        """Note that the connection was lost; the group is sent again with the retry flag."""
        self.sent = True
        return [entry]

    def abandon(self, error: Exception) -> None:
        """Fail all members because the group cannot be packed."""
        self.resolved = True
        for future in self.futures:
            if not future.done():
                future.set_exception(error)

    def refuse(self, reply: ErrorReply) -> None:
        """Fail all members by the error reply of the whole script call."""
        self.resolved = True
        unsure = self.sent or not nothing_ran(reply.text)
        for index, future in enumerate(self.futures):
            if not future.done():
                operation = self.operation(index) if unsure else None
                error = error_from_reply(
                    reply, self._lane.server, may_have_happened=unsure, operation=operation
                )
                future.set_exception(error)

    def fail(self, cls: type[StoreUnavailableError], said: str, *, sent: bool = False) -> None:
        """Fail all members: the outcome is unknown if the group may have left before."""
        self.resolved = True
        sent = sent or self.sent
        for index, future in enumerate(self.futures):
            if future.done():
                continue
            if sent:
                operation = self.operation(index)
                future.set_exception(
                    OutcomeUnknownError(self._lane.server, said, operation=operation)
                )
            else:
                future.set_exception(cls(self._lane.server, said))

    def operation(self, index: int) -> Operation:
        """Return what settles the outcome of a member later."""
        ring = self._ring
        return Operation(
            ring.client.decode(),
            self.first + index,
            self.commits[index],
            expected=ring.expects(self.shard, monotonic()),
        )
