"""What the routes of leases take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from llmspell_dist.leases.model import LeaseHolder, LeaseInfo, LeasePast, LeaseWaiter, WaitGraph
from llmspell_dist.leases.terms import DEFAULT_TTL_S

__all__ = [
    "TTL",
    "Broken",
    "GraphDocument",
    "LeaseAttempt",
    "LeaseBreak",
    "LeaseDocument",
    "LeaseGrant",
    "LeasePage",
    "LeaseRef",
    "LeaseRenewal",
    "LeaseWish",
    "Requirement",
    "RequirementChange",
    "RequirementWish",
    "Wait",
    "graph_document",
    "lease_document",
]

TTL = Annotated[
    float,
    Meta(gt=0, description="Seconds that it outlives a holder that died: 0.05 to a day."),
]
Wait = Annotated[float, Meta(ge=0)]
Attempt = Annotated[str, Meta(min_length=8, max_length=64)]
HandleText = Annotated[str, Meta(description="What acquiring it gave as `handle`.")]


class LeaseWish(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a lease is wanted."""

    ttl: TTL = DEFAULT_TTL_S
    wait: Annotated[
        Wait | None, Meta(description="Seconds to wait in line; null waits without end.")
    ] = 0.0
    mode: str = "exclusive"
    owner: Annotated[
        str | None, Meta(description="Who holds it; by default nobody else is this owner.")
    ] = None
    reentrant: Annotated[bool, Meta(description="Whether the owner may hold it several times.")] = (
        False
    )
    label: Annotated[str | None, Meta(description="For people who look.")] = None
    attempt: Annotated[
        Attempt | None, Meta(description="A random text by which the request can be abandoned.")
    ] = None


class LeaseAttempt(Struct, frozen=True, forbid_unknown_fields=True):
    """Which request to acquire is meant: by the `attempt` that it carried."""

    attempt: Attempt


class LeaseGrant(Struct, frozen=True):
    """A lease that is held from now on, and by what it is renewed, released and carried."""

    scope: str
    name: str
    mode: str
    owner: str
    token: Annotated[int, Meta(description="Higher than that of every earlier grant.")]
    ttl: float
    expires: Annotated[
        datetime, Meta(description="About when it ends unless it is renewed; renew at a third.")
    ]
    expires_in: Annotated[float, Meta(description="Seconds for which it holds at least.")]
    handle: HandleText


class LeaseRef(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which hold is meant: by its handle, or by owner and token with all holds of the owner."""

    handle: HandleText | None = None
    owner: str | None = None
    token: int | None = None
    mode: str = "exclusive"


class LeaseRenewal(LeaseRef, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which hold is to be kept, and for how long."""

    ttl: Annotated[TTL | None, Meta(description="By default that of the handle, or 10.")] = None


class HolderDocument(Struct, frozen=True):
    """Who holds a lease."""

    owner: str
    mode: str
    token: int
    since: datetime
    expires: datetime
    ttl_s: float
    holds: int
    label: str | None
    host: str | None
    pid: int | None
    correlation_id: str | None


class WaiterDocument(Struct, frozen=True):
    """Who waits for a lease."""

    owner: str
    mode: str
    since: datetime
    deadline: datetime | None
    connected: bool
    label: str | None
    host: str | None
    pid: int | None


class PastDocument(Struct, frozen=True):
    """A hold that has ended."""

    holder: HolderDocument
    how: str
    ended: datetime
    reason: str | None
    actor: str | None


class LeaseDocument(Struct, frozen=True):
    """One lease as of one moment of the server's clock."""

    scope: str
    name: str
    time: datetime
    token: int
    held: bool
    holders: list[HolderDocument]
    waiters: list[WaiterDocument]
    waiting: int
    history: list[PastDocument]


class LeasePage(Struct, frozen=True):
    """Leases that are held or waited for, those that end soonest first."""

    leases: list[LeaseDocument]


class EdgeDocument(Struct, frozen=True):
    """One owner waits for a lease that another holds."""

    waiter: str
    scope: str
    name: str
    holder: str


class GraphDocument(Struct, frozen=True):
    """Who waits for whom, and the cycles in that."""

    edges: list[EdgeDocument]
    deadlocks: list[list[EdgeDocument]]


class LeaseBreak(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a lease is taken away, and from whom."""

    reason: Annotated[str, Meta(description="The change log keeps it.")]
    token: Annotated[int | None, Meta(description="Only from the holder with this token.")] = None


class Broken(Struct, frozen=True):
    """The entry of the change log that says so."""

    revision: str | None


class Requirement(Struct, frozen=True):
    """The lease that every write of the scope must carry; null: none."""

    name: str | None


class RequirementWish(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which lease every write of the scope must carry from now on."""

    name: str = "main"


class RequirementChange(Struct, frozen=True):
    """Whether that is new."""

    changed: bool


def _holder(found: LeaseHolder) -> HolderDocument:
    return HolderDocument(
        owner=found.owner,
        mode=str(found.mode),
        token=found.token,
        since=found.since,
        expires=found.expires,
        ttl_s=found.ttl_s,
        holds=found.holds,
        label=found.label,
        host=found.host,
        pid=found.pid,
        correlation_id=found.correlation_id,
    )


def _waiter(found: LeaseWaiter) -> WaiterDocument:
    return WaiterDocument(
        owner=found.owner,
        mode=str(found.mode),
        since=found.since,
        deadline=found.deadline,
        connected=found.connected,
        label=found.label,
        host=found.host,
        pid=found.pid,
    )


def _past(found: LeasePast) -> PastDocument:
    how = str(found.how)
    return PastDocument(_holder(found.holder), how, found.ended, found.reason, found.actor)


def lease_document(info: LeaseInfo) -> LeaseDocument:
    """Return what is known about a lease as a document."""
    return LeaseDocument(
        scope=info.scope,
        name=info.name,
        time=info.time,
        token=info.token,
        held=info.held,
        holders=[_holder(one) for one in info.holders],
        waiters=[_waiter(one) for one in info.waiters],
        waiting=info.waiting,
        history=[_past(one) for one in info.history],
    )


def graph_document(graph: WaitGraph) -> GraphDocument:
    """Return who waits for whom as a document."""
    edges = {
        edge: EdgeDocument(edge.waiter, edge.scope, edge.name, edge.holder) for edge in graph.edges
    }
    cycles = [[edges[edge] for edge in cycle] for cycle in graph.deadlocks]
    return GraphDocument(list(edges.values()), cycles)
