"""Leases over HTTP: taken with a place in line, kept and given back by handle from any sidecar."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.errors import (
    DeadlockError,
    InvalidArgumentError,
    LeaseAlreadyHeldError,
    LeaseNotHeldError,
    LeaseRequiredError,
    LeaseUnavailableError,
    StaleFencingTokenError,
)
from llmspell_dist.leases.handles import Handle, read_handle
from llmspell_dist.leases.looking import MAX_LISTED, MAX_WAITERS_SHOWN
from llmspell_dist.leases.terms import make_terms
from llmspell_dist.sidecar.attending import attended
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import LEASE_HEADER, Call
from llmspell_dist.sidecar.endpoint import EVERYTHING, Needs, Registry
from llmspell_dist.sidecar.leasing import Leasing, Taken
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply
from llmspell_dist.sidecar.routes.lease_shapes import (
    Broken,
    GraphDocument,
    LeaseAttempt,
    LeaseBreak,
    LeaseDocument,
    LeaseGrant,
    LeasePage,
    LeaseRef,
    LeaseRenewal,
    LeaseWish,
    Requirement,
    RequirementChange,
    RequirementWish,
    graph_document,
    lease_document,
)

__all__ = ["LEASE", "WRITE", "grant_document", "routes"]

routes = Registry(
    "leases", "Exclusive or shared use of a scope for a time, with fencing tokens and a fair line."
)
READ: Final = Needs(Verb.READ, "{scope}")
WRITE: Final = Needs(Verb.WRITE, "{scope}")
ADMIN: Final = Needs(Verb.ADMIN, "{scope}")
LEASE: Final = "/v1/leases/{scope}/{name}"
_REQUIREMENT: Final = "/v1/lease-requirements/{scope}"


# --- taking, keeping, giving back -----------------------------------------------------------------


@routes.route(
    "POST",
    LEASE,
    WRITE,
    body=LeaseWish,
    returns=LeaseGrant,
    errors=(LeaseUnavailableError, LeaseAlreadyHeldError, DeadlockError),
)
async def acquire_lease(call: Call) -> Reply:
    """Take a lease, waiting in line for it as long as `wait` says.

    The client renews it, at a third of its `ttl`, and carries its `handle` in the header
    ``LLMSpell-Lease`` of what it writes. Who closes the connection leaves the line at once.
    """
    wish: LeaseWish = call.body
    leasing = call.services.one(Leasing)
    work = leasing.acquire(
        call.parameters["scope"],
        call.parameters["name"],
        ttl=wish.ttl,
        wait=wish.wait,
        mode=wish.mode,
        owner=wish.owner,
        reentrant=wish.reentrant,
        label=wish.label,
        attempt=None if wish.attempt is None else _attempt(call, wish.attempt),
    )

    async def undo(taken: Taken) -> None:
        await leasing.release(taken.handle)

    return Reply(grant_document(leasing, await attended(call, work, undo)))


def grant_document(leasing: Leasing, taken: Taken) -> LeaseGrant:
    """Return what a client needs to know of its lease."""
    handle = taken.handle
    return LeaseGrant(
        scope=handle.scope,
        name=handle.name,
        mode=str(handle.mode),
        owner=handle.owner,
        token=handle.token,
        ttl=handle.ttl_ms / 1000,
        expires=leasing.expires(taken.left_s),
        expires_in=round(taken.left_s, 3),
        handle=handle.text,
    )


@routes.route(
    "POST",
    f"{LEASE}/renew",
    WRITE,
    body=LeaseRenewal,
    returns=LeaseGrant,
    errors=(LeaseNotHeldError,),
)
async def renew_lease(call: Call) -> Reply:
    """Keep a lease for another while; any sidecar of the fleet can do that."""
    leasing = call.services.one(Leasing)
    taken = await leasing.renew(_meant(call, leasing, call.body), call.body.ttl)
    return Reply(grant_document(leasing, taken))


@routes.route("POST", f"{LEASE}/abandon", WRITE, body=LeaseAttempt)
async def abandon_lease(call: Call) -> Reply:
    """Leave nothing behind of a request to acquire whose answer its client did not wait for.

    What it was granted is given back, also if it is granted only now. Known to this sidecar alone:
    without it a lease whose answer was lost ends after its time to live.
    """
    await call.services.one(Leasing).abandon(_attempt(call, call.body.attempt))
    return NO_CONTENT


def _attempt(call: Call, given: str) -> str:
    """Return what nobody else can mean, and of no other lease: rights are those of the path."""
    scope, name = call.parameters["scope"], call.parameters["name"]
    return f"{call.principal.label}\0{scope}\0{name}\0{given}"


@routes.route("POST", f"{LEASE}/release", WRITE, body=LeaseRef, errors=(LeaseNotHeldError,))
async def release_lease(call: Call) -> Reply:
    """Give a lease back; the next in line has it at once."""
    leasing = call.services.one(Leasing)
    await leasing.release(_meant(call, leasing, call.body))
    return NO_CONTENT


def _meant(call: Call, leasing: Leasing, ref: LeaseRef) -> Handle:
    """Return the hold that a body names: of the lease in the path, on which rights were checked."""
    scope, name = call.parameters["scope"], call.parameters["name"]
    steps = leasing.leases.steps
    if ref.handle is None:
        if ref.owner is None or ref.token is None:
            raise InvalidArgumentError("handle", None, "must be given, or owner and token")
        terms = make_terms(mode=ref.mode, owner=ref.owner)
        steps.by_facts(scope, name, ref.owner, ref.token, terms)  # refuses what cannot be
        return Handle(scope, name, terms.mode, ref.owner, ref.token)
    if ref.owner is not None or ref.token is not None:
        raise InvalidArgumentError("handle", ref.handle, "cannot be given with owner and token")
    handle = read_handle(ref.handle)
    if steps.target(handle.scope, handle.name).keys[0] != steps.target(scope, name).keys[0]:
        raise InvalidArgumentError("handle", ref.handle, f"must be of {name} in {scope}")
    return handle


# --- looking --------------------------------------------------------------------------------------


class _Waiters(Struct, frozen=True, forbid_unknown_fields=True):
    waiters: Annotated[int, Meta(ge=0, le=MAX_WAITERS_SHOWN)] = 100


@routes.route("GET", LEASE, READ, query=_Waiters, returns=LeaseDocument)
async def show_lease(call: Call) -> Reply:
    """Tell who holds a lease, who waits for it, and the last holds that ended."""
    scope, name = call.parameters["scope"], call.parameters["name"]
    info = await call.spell.leases.show(scope, name=name, waiters=call.query.waiters)
    return Reply(lease_document(info))


class _LeaseList(Struct, frozen=True, forbid_unknown_fields=True):
    shard: str = "0"
    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 100
    waiters: Annotated[int, Meta(ge=0, le=MAX_WAITERS_SHOWN)] = 0


@routes.route("GET", "/v1/leases", asks=(Verb.LIST,), query=_LeaseList, returns=LeasePage)
async def list_leases(call: Call) -> Reply:
    """List the leases that are held or waited for, of the scopes that the caller may list.

    Those that end soonest first; `limit` counts those of other scopes too.
    """
    query: _LeaseList = call.query
    _check_shard(call, query.shard)
    found = await call.spell.leases.list(
        shard=query.shard, limit=query.limit, waiters=query.waiters
    )
    shown = [info for info in found if call.principal.may(Verb.LIST, info.scope)]
    return Reply(LeasePage([lease_document(info) for info in shown]))


class _Shard(Struct, frozen=True, forbid_unknown_fields=True):
    shard: str = "0"


@routes.route(
    "GET", "/v1/lease-graph", Needs(Verb.LIST, EVERYTHING), query=_Shard, returns=GraphDocument
)
async def show_lease_graph(call: Call) -> Reply:
    """Tell who waits for whom, and name the deadlocks."""
    _check_shard(call, call.query.shard)
    return Reply(graph_document(await call.spell.leases.graph(shard=call.query.shard)))


def _check_shard(call: Call, shard: str) -> None:
    shards = call.spell.leases.steps.core.shards()
    if shard not in shards:
        raise InvalidArgumentError("shard", shard, f"must be a number from 0 to {len(shards) - 1}")


# --- what operators do ----------------------------------------------------------------------------


@routes.route(
    "POST",
    f"{LEASE}/break",
    ADMIN,
    body=LeaseBreak,
    returns=Broken,
    errors=(LeaseNotHeldError,),
    headers=("Idempotency-Key",),
)
async def break_lease(call: Call) -> Reply:
    """Take a lease from its holder, whose writes are refused from then on; the next one has it."""
    revision = await call.spell.leases.break_lease(
        call.parameters["scope"],
        name=call.parameters["name"],
        reason=call.body.reason,
        token=call.body.token,
    )
    return Reply(Broken(None if revision is None else str(revision)))


@routes.route("GET", _REQUIREMENT, READ, returns=Requirement)
async def show_requirement(call: Call) -> Reply:
    """Tell which lease every write of a scope must carry."""
    return Reply(Requirement(await call.spell.leases.requirement(call.parameters["scope"])))


_CHANGES: Final[dict[str, Any]] = {
    "returns": RequirementChange,
    "errors": (LeaseRequiredError, StaleFencingTokenError),
    "headers": ("LLMSpell-Lease",),
}


@routes.route("PUT", _REQUIREMENT, ADMIN, body=RequirementWish, **_CHANGES)
async def set_requirement(call: Call) -> Reply:
    """Let every write of a scope be refused that does not carry a lease.

    To change a requirement that there is, the request must carry the lease that it names.
    """
    carried = _carried(call)
    changed = await call.spell.leases.require(
        call.parameters["scope"], name=call.body.name, lease=carried
    )
    return Reply(RequirementChange(changed))


@routes.route("DELETE", _REQUIREMENT, ADMIN, **_CHANGES)
async def delete_requirement(call: Call) -> Reply:
    """Let a scope be written without a lease again; this request must carry it once more."""
    carried = _carried(call)
    if carried is None:
        rule = "must carry the lease that the scope demands"
        raise InvalidArgumentError("llmspell-lease", None, rule)
    changed = await call.spell.leases.unrequire(call.parameters["scope"], lease=carried)
    return Reply(RequirementChange(changed))


class _Carried:
    """What a request carries, as the library's methods want a lease."""

    def __init__(self, core: Any) -> None:
        self.core = core


def _carried(call: Call) -> Any:
    handles = call.headers.get(LEASE_HEADER)
    return None if handles is None else _Carried(call.services.fenced_core(handles))
