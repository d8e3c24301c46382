"""What is known about leases: who holds one, who waits, what was, who waits for whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llmspell_dist.observation import Histogram

__all__ = [
    "LeaseCounts",
    "LeaseHolder",
    "LeaseHow",
    "LeaseInfo",
    "LeaseMode",
    "LeasePast",
    "LeaseWaiter",
    "WaitEdge",
    "WaitGraph",
]


class LeaseMode(StrEnum):
    """How a lease is held."""

    EXCLUSIVE = "exclusive"
    """By one owner; only such a lease fences writes."""
    SHARED = "shared"
    """By any number of readers, while nobody holds it exclusively."""


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who holds a lease."""

    owner: str
    mode: LeaseMode
    token: int
    since: datetime
    expires: datetime
    ttl_s: float
    holds: int
    """How often the owner holds it (re-entrant)."""
    label: str | None = None
    host: str | None = None
    pid: int | None = None
    correlation_id: str | None = None
    """The correlation in which it was taken."""

    def __str__(self) -> str:
        who = self.label or self.owner
        where = f" on {self.host}, process {self.pid}" if self.host else ""
        return f"{who}{where}, since {self.since:%Y-%m-%d %H:%M:%S} UTC, token {self.token}"


@dataclass(frozen=True, slots=True)
class LeaseWaiter:
    """Who waits for a lease."""

    owner: str
    mode: LeaseMode
    since: datetime
    deadline: datetime | None
    """When it gives up; None: never."""
    connected: bool
    """Whether its process listens; one that does not is skipped when its turn comes."""
    label: str | None = None
    host: str | None = None
    pid: int | None = None


class LeaseHow(StrEnum):
    """How a hold ended."""

    RELEASED = "released"
    EXPIRED = "expired"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class LeasePast:
    """A hold that has ended."""

    holder: LeaseHolder
    how: LeaseHow
    ended: datetime
    reason: str | None = None
    """Why it was broken."""
    actor: str | None = None
    """Who broke it."""

    @property
    def held_s(self) -> float:
        """Seconds from the grant to the end."""
        return (self.ended - self.holder.since).total_seconds()


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """One lease as of one moment of the server's clock."""

    scope: str
    name: str
    time: datetime
    token: int
    """The last one granted; 0: none that is remembered."""
    holders: tuple[LeaseHolder, ...]
    waiters: tuple[LeaseWaiter, ...]
    """In the order in which they are served; at most as many as were asked for."""
    waiting: int
    """How many wait in all."""
    history: tuple[LeasePast, ...]
    """Ended holds, newest first, at most 16; forgotten a day after the last one."""

    @property
    def held(self) -> bool:
        """Whether anybody holds it."""
        return bool(self.holders)


@dataclass(frozen=True, slots=True)
class WaitEdge:
    """One owner waits for a lease that another holds."""

    waiter: str
    scope: str
    name: str
    holder: str


_NO_EDGE = WaitEdge("", "", "", "")


@dataclass(frozen=True, slots=True)
class WaitGraph:
    """Who waits for whom (the wait-for graph of a lock manager)."""

    edges: tuple[WaitEdge, ...]

    @property
    def deadlocks(self) -> tuple[tuple[WaitEdge, ...], ...]:
        """The cycles: owners of whom each waits for the next, and the last for the first."""
        after: dict[str, list[WaitEdge]] = {}
        for edge in self.edges:
            after.setdefault(edge.waiter, []).append(edge)
        found: dict[frozenset[WaitEdge], tuple[WaitEdge, ...]] = {}
        done: set[str] = set()
        for start, edges in after.items():
            # Depth first and without recursion: a queue can be long. An owner that is on the path
            # already closes a cycle.
            path: list[WaitEdge] = []
            places = {start: 0}
            todo: list[Iterator[WaitEdge]] = [iter(edges if start not in done else ())]
            while todo:
                edge = next(todo[-1], _NO_EDGE)
                if edge is _NO_EDGE:
                    todo.pop()
                    owner = path.pop().holder if path else start
                    places.pop(owner, None)
                    done.add(owner)
                    continue
                if edge.holder in places:
                    cycle = (*path[places[edge.holder] :], edge)
                    found.setdefault(frozenset(cycle), cycle)
                elif edge.holder not in done:
                    path.append(edge)
                    places[edge.holder] = len(path)
                    todo.append(iter(after.get(edge.holder, ())))
        return tuple(found.values())


@dataclass(slots=True)
class LeaseCounts:
    """What became of the leases of a client, since it was opened."""

    acquired: int = 0
    lost: int = 0
    """Lost or broken while they were held."""
    waits: Histogram = field(default_factory=Histogram)
    """Seconds for which callers waited for those that they got."""

    def note(self, what: str) -> None:
        """Count what is noted of a grant."""
        if what == "acquired":
            self.acquired += 1
        elif what != "released":
            self.lost += 1
