"""The durable lane: groups of commits, then one shared WAIT or WAITAOF on the same connection.

WAIT counts only the writes of its own connection and holds that connection up meanwhile. So a lane
of its own sends what has gathered, waits for the acknowledgement, and sends what gathered since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from llmspell_dist.redis.groups import Group
from llmspell_dist.redis.lane import Lane
from llmspell_dist.redis.resp import ErrorReply, pack

if TYPE_CHECKING:
    from asyncio import Future

    from llmspell_dist.errors import StoreUnavailableError
    from llmspell_dist.redis.groups import Operation, Ring, SizedCommit
    from llmspell_dist.redis.wire import Entry

__all__ = ["ALL_REPLICAS", "AckLevel", "AckedOutcome", "DurableLane", "ack_request", "ack_result"]

ALL_REPLICAS = -1


class AckLevel(Protocol):
    """An acknowledgement level, as far as the lane looks at it."""

    @property
    def local_fsync(self) -> bool:
        """Whether the server's own disk must have it."""

    @property
    def replicas(self) -> int:
        """How many replicas must have it; -1: all."""


@dataclass(frozen=True, slots=True)
class _NoLevel:
    local_fsync: bool = False
    replicas: int = 0


_NO_LEVEL = _NoLevel()


class AckedOutcome(bytes):
    """A commit's outcome with what is known about its durability."""

    level: Any
    """The level that was asked for."""
    reached: bool
    local_fsyncs: int
    replicas: int
    said: str
    """Why the level was not reached, if the server refused to wait."""
    operation: Operation | None = None
    """Asks for the level again, where it was not reached."""


def ack_request(level: AckLevel, replicas_known: int, timeout_s: float) -> bytes:
    """Return the request that waits for a level."""
    replicas = replicas_known if level.replicas == ALL_REPLICAS else level.replicas
    timeout_ms = max(1, round(timeout_s * 1000))
    if level.local_fsync:
        return pack("WAITAOF", 1, replicas, timeout_ms)
    return pack("WAIT", replicas, timeout_ms)


def ack_result(outcome: bytes, level: AckLevel, replicas_known: int, reply: Any) -> AckedOutcome:
    """Judge the reply to `ack_request`: the level is reached, or it is not known to be."""
    needed = replicas_known if level.replicas == ALL_REPLICAS else level.replicas
    local, replicas, said = 0, 0, ""
    if isinstance(reply, list):
        local, replicas = int(reply[0]), int(reply[1])
    elif isinstance(reply, int):
        replicas = reply
    else:
        said = reply.text if isinstance(reply, ErrorReply) else "the connection was lost"
    acked = AckedOutcome(outcome)
    acked.level = level
    acked.local_fsyncs = local
    acked.replicas = replicas
    acked.said = said
    acked.reached = not said and replicas >= needed and (local >= 1 or not level.local_fsync)
    return acked


class DurableLane(Lane):
    """A lane whose commits are answered when their acknowledgement level is reached, or is not."""

    eager_items = 0
    """Never: what waits together shares one WAIT."""
    _level: AckLevel = _NO_LEVEL
    """Of the commit that is being submitted."""

    def commit_acked(self, commit: SizedCommit, level: AckLevel) -> Future[Any]:
        """Send a commit; the future gives an `AckedOutcome`."""
        self._level = level
        return self._join(commit, (commit.shard, level))

    def settle_acked(self, operation: Operation, level: AckLevel) -> Future[Any]:
        """Send a commit again under its operation id; the future gives an `AckedOutcome`."""
        self._level = level
        return self.settle(operation)

    def _begin(self) -> None:
        super()._begin()
        self._most_replicas = 0

    def _new_group(self, shard: bytes, ring: Ring) -> Group:
        return _DurableGroup(self, shard, ring, self._now, self._level)

    def replicas_known(self) -> int:
        """How many replicas "all" means."""
        if self.options.replicas is not None:
            return self.options.replicas
        if self.info is not None:
            self._most_replicas = max(self._most_replicas, self.info.replicas)
        return max(1, self._most_replicas)  # "all of none" would promise what nothing keeps

    def _drain(self) -> None:
        """Send the groups of one level that have gathered, and one wait for them all."""
        wire = self._wire
        if wire is None or wire.pending:
            return
        known = self.replicas_known()
        chunk: list[bytes] = []
        groups: list[_DurableGroup] = []
        while self.backlog:
            entry = self.backlog[0]
            group = entry[0] if isinstance(entry[0], _DurableGroup) else None
            if group is not None and groups and group.level != groups[0].level:
                break
            self.backlog.popleft()
            packed = entry[1] if entry[1] is not None else self._pack(entry)
            if packed is None:
                break
            if packed:
                wire.pending.append(entry)
                chunk.append(packed)
                if group is not None:
                    groups.append(group)
        if groups:
            chunk.append(ack_request(groups[0].level, known, self.options.ack_timeout))
            wire.pending.append((_Acknowledgement(groups, known), None, monotonic()))
        if chunk:
            wire.write(b"".join(chunk), len(chunk), monotonic())


class _DurableGroup(Group):
    """A group whose outcomes are held back until the wait after it is answered."""

    __slots__ = ("held", "level")

    def __init__(self, lane: Lane, shard: bytes, ring: Ring, at: float, level: Any) -> None:
        super().__init__(lane, shard, ring, at)
        self.level = level
        self.held: list[Any] | None = None

    def settle(self, outcomes: Any) -> None:
        self.held = list(outcomes)

    def acknowledge(self, known: int, reply: Any) -> None:
        """Resolve the members, if the script has answered for them."""
        if self.held is not None:
            held, self.held = self.held, None
            outcomes: list[Any] = []
            for index, outcome in enumerate(held):
                if isinstance(outcome, bytes):
                    acked = ack_result(outcome, self.level, known, reply)
                    if not acked.reached:
                        acked.operation = self.operation(index)
                    outcomes.append(acked)
                else:
                    outcomes.append(outcome)
            super().settle(outcomes)

    def operation(self, index: int) -> Operation:
        return replace(super().operation(index), ack=self.level)


class _Acknowledgement:
    """Waits for a WAIT or WAITAOF on behalf of the groups before it."""

    __slots__ = ("_groups", "_known")

    def __init__(self, groups: list[_DurableGroup], known: int) -> None:
        self._groups = groups
        self._known = known

    def deliver(self, entry: Entry, reply: Any) -> None:  # noqa: ARG002 - a Waiter
        for group in self._groups:
            group.acknowledge(self._known, reply)

    def lost(self, entry: Entry, said: str) -> list[Entry]:  # noqa: ARG002 - a Waiter
        # Their outcomes are known, their durability is not. The retry gets the same outcomes, and
        # it writes, so that its wait covers the first attempt.
        again: list[Entry] = []
        for group in self._groups:
            if group.held is not None:
                group.held = None
                group.sent = True
                again.append((group, None, group.at))
        return again

    def fail(self, cls: type[StoreUnavailableError], said: str) -> None:
        """Do nothing: the groups fail by themselves."""
