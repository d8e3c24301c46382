"""What is sent for leases and how the answers are read; nothing here does I/O.

Every script may be sent twice: an acquire is known by its nonce, a release too. So a lost
connection is survived by sending again.
"""

from __future__ import annotations

import os
import socket
import threading
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.context import get_context
from llmspell_dist.correlated import KIND_LEASE, LeaseEvent, pack_lease_event
from llmspell_dist.errors import (
    DeadlockError,
    InvalidArgumentError,
    LeaseAlreadyHeldError,
    LeaseNotHeldError,
    LeaseUnavailableError,
    SpellError,
)
from llmspell_dist.leases.model import (
    LeaseHolder,
    LeaseHow,
    LeaseInfo,
)
from llmspell_dist.leases.terms import DEFAULT_NAME, check_name
from llmspell_dist.leases.wire import (
    MODES,
    NONCE_BYTES,
    pack_info,
    read_holder,
    read_holders,
    read_past,
    read_waiter,
)
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.commits import Fence
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import from_ms
from llmspell_dist.scope import Scope
from llmspell_dist.state.correlated import note_call

if TYPE_CHECKING:
    from llmspell_dist.context import CommitContext
    from llmspell_dist.leases.keeper import Grant
    from llmspell_dist.leases.terms import Terms
    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.core import Core

__all__ = ["Claim", "LeaseSteps", "Place", "Target"]

_TARGETS_CACHED: Final = 4096
MAX_WAITERS_SHOWN: Final = 1000
MAX_LISTED: Final = 1000
_REGISTRY_PAGE: Final = 500
BROKEN: Final = "it was broken by force"
_TRY_ONCE, _NO_END = 0, -1
"""Flag of a scope's `$$`: a lease's name stands behind it."""


class Target(NamedTuple):
    """One lease of one scope, with the keys that its scripts touch."""

    scope: ScopeKey
    name: str
    shard: str
    keys: tuple[bytes, ...]
    """The lease, its queue, its readers, the shard's registry, who waits for what."""

    @property
    def text(self) -> str:
        """The printed scope."""
        return self.scope.scope.text


class Claim(NamedTuple):
    """One attempt to hold a lease, the same however often it is sent."""

    target: Target
    terms: Terms
    owner: bytes
    nonce: bytes
    info: bytes
    said: CommitContext | None = None
    """The context in which it was made, if that belongs to a correlation."""

    @property
    def mode(self) -> bytes:
        """The mode as the scripts know it."""
        return MODES[self.terms.mode]


class Place(NamedTuple):
    """A place in a lease's queue."""

    place: int
    """From 0."""
    holder_s: float
    """Seconds until the time of the present holder is over."""
    ticket: bytes
    last_token: int
    """A grant that comes from now on has a higher one."""


class LeaseSteps:
    """The operations on leases: what to send, and what the answer means."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.client = os.urandom(8)
        """What others wake this client by."""
        self.highest = 0
        """The highest token that this client has seen: none that it is granted is lower."""
        self._seeing = threading.Lock()
        self._numbers = count(1)
        self._targets: dict[tuple[str | Scope, str], Target] = {}
        self._host, self._pid = socket.gethostname()[:64], os.getpid()
        self._infos: dict[str | None, bytes] = {}
        self._acquire = load_script("lease_acquire")
        self._renew = load_script("lease_renew")
        self._release = load_script("lease_release")

    # --- names

    def target(self, scope: str | Scope, name: str) -> Target:
        """Return a lease as the scripts need it; those used lately cost one look-up."""
        try:
            return self._targets[scope, name]
        except (KeyError, TypeError):
            pass
        scope_key = self.core.scope_key(scope)
        check_name(name)
        keyspace, parsed = self.core.keyspace, scope_key.scope
        shard = keyspace.shard(parsed)
        keys = (
            keyspace.lease(parsed, name),
            keyspace.lease_queue(parsed, name),
            keyspace.lease_readers(parsed, name),
            keyspace.leases(shard),
            keyspace.waits(shard),
        )
        target = Target(scope_key, name, shard, keys)
        if len(self._targets) >= _TARGETS_CACHED:
            self._targets.clear()
        self._targets[scope, name] = target
        return target

    def channel(self, shard: str) -> bytes:
        """Return the channel over which this client is woken."""
        return self.core.keyspace.wake(shard, self.client.hex())

    def new_client(self) -> None:
        """Be another client: after a fork."""
        self.client = os.urandom(8)
        self._pid = os.getpid()
        self._infos.clear()

    def claim(self, target: Target, terms: Terms, owner: str) -> Claim:
        """Return a new attempt of an owner to hold a lease."""
        said = get_context()
        if said is not None and said.correlation_id is not None:
            info = pack_info(terms.label, self._host, self._pid, said.correlation_id)
            return Claim(target, terms, owner.encode(), self.new_nonce(), info, said)
        known = self._infos.get(terms.label)
        if known is None:
            if len(self._infos) >= _TARGETS_CACHED:
                self._infos.clear()
            known = pack_info(terms.label, self._host, self._pid)
            self._infos[terms.label] = known
        return Claim(target, terms, owner.encode(), self.new_nonce(), known)

    def new_nonce(self) -> bytes:
        """Return a number that no other request of any client has."""
        return self.client + next(self._numbers).to_bytes(NONCE_BYTES - 8, "big")

    # --- taking and giving back

    def acquire_call(self, claim: Claim, *, wait: bool, left_s: float | None = None) -> ScriptCall:
        """Ask for a lease; with `wait` for a place in line, for `left_s` (None: without end)."""
        wait_ms = _TRY_ONCE
        if wait:
            wait_ms = _NO_END if left_s is None else max(1, round(left_s * 1000))
        return self._acquire_call(claim, wait_ms, b"0")

    def again_call(self, claim: Claim, place: Place, left_s: float | None) -> ScriptCall:
        """Ask how a place in the queue stands; one that was lost is taken again where it was."""
        wait_ms = _NO_END if left_s is None else max(1, round(left_s * 1000))
        return self._acquire_call(claim, wait_ms, place.ticket)

    def _acquire_call(self, claim: Claim, wait_ms: int, ticket: bytes) -> ScriptCall:
        terms = claim.terms
        return ScriptCall(
            self._acquire,
            (*claim.target.keys, claim.target.scope.hash),
            (
                claim.mode,
                claim.owner,
                claim.nonce,
                b"%d" % terms.ttl_ms,
                b"%d" % self.highest,
                b"%d" % wait_ms,
                b"1" if terms.reentrant else b"0",
                claim.info,
                ticket,
            ),
            prompt=True,
        )

    def note_call(
        self,
        claim: Claim,
        token: int,
        what: str,
        reason: str | None = None,
        *,
        overtaken: bool = False,
    ) -> ScriptCall | None:
        """Remember with a claim's correlation what became of it; None if it belongs to none.

        `overtaken`: the holder may write before this is sent, and nothing that it writes may stand
        before the grant.
        """
        said = claim.said
        if said is None or said.correlation_id is None:
            return None
        target = claim.target
        event = LeaseEvent(
            what=what,
            scope=target.text,
            name=target.name,
            token=token,
            owner=claim.owner.decode(),
            mode=str(claim.terms.mode),
            causation_id=said.causation_id,
            actor=self.core.actor() if said.actor is None else said.actor,
            reason=reason,
        )
        items = [(KIND_LEASE, pack_lease_event(event))]
        behind = not (overtaken and what == "acquired")
        return note_call(self.core, said.correlation_id, items, behind_commits=behind)

    def seen(self, token: int) -> int:
        """Take note of a token that this client was granted, and return it."""
        if token > self.highest:
            with self._seeing:  # two threads
                self.highest = max(self.highest, token)
        return token

    def read_acquire(self, claim: Claim, reply: list[Any], waited_s: float) -> int | Place:
        """Return the token of a granted lease, or the place in its queue; a refusal is raised."""
        verdict = reply[0]
        if verdict == 1:
            return self.seen(int(reply[1]))
        if verdict == 0:
            return Place(int(reply[1]), int(reply[2]) / 1000, reply[3], int(reply[4]))
        raise self._refusal(claim, reply[1], reply[2:], waited_s)

    def read_try(self, claim: Claim, reply: list[Any], may_wait: bool) -> int | None:
        """Return the token; None if another holds it and that is no reason to give up."""
        if may_wait and reply[0] == -1 and reply[1] == b"BUSY":
            return None
        token = self.read_acquire(claim, reply, 0.0)
        assert isinstance(token, int)  # noqa: S101 - who does not ask for a place has none
        return token

    def _refusal(
        self, claim: Claim, code: bytes, found: list[bytes], waited_s: float
    ) -> SpellError:
        target = claim.target
        if code == b"DEADLOCK":
            return DeadlockError(target.text, target.name, self._cycle(found))
        mode = found[0]
        holders = read_holders([part for raw in found[1:] for part in (mode, raw)])
        if code == b"BUSY":
            return LeaseUnavailableError(target.text, target.name, waited_s, holders)
        mine = holders[0]
        return LeaseAlreadyHeldError(
            *(target.text, target.name, mine.owner, mine.token),
            mode=str(mine.mode) if code == b"OTHERMODE" else "",
        )

    def _cycle(self, found: list[bytes]) -> list[tuple[str, str]]:
        """Name a cycle: pairs of owner and the lease that it holds become who waits for what."""
        owners = [raw.decode("utf-8", "replace") for raw in found[::2]]
        leases = [self._lease_name(raw) for raw in found[1::2]]
        # The script names, from the asker on backwards, who holds which lease: the next one waits
        # for it. Told the other way round: the asker first, then who holds what that one waits for.
        steps = reversed(range(len(owners)))
        return [(owners[(step + 1) % len(owners)], leases[step]) for step in steps]

    def _lease_name(self, key: bytes) -> str:
        parsed = self.core.keyspace.parse(key)
        return f"{parsed.scope} {parsed.extra}"

    def renew_call(self, claim: Claim, token: int, ttl_ms: int) -> ScriptCall:
        """Ask for another while."""
        keys = claim.target.keys
        return ScriptCall(
            self._renew,
            (keys[0], keys[2]),
            (claim.mode, claim.owner, token.to_bytes(8, "big"), b"%d" % ttl_ms),
            prompt=True,
        )

    def release_call(self, claim: Claim, token: int | None) -> ScriptCall:
        """Give a hold or a place back; `token` None: whether it was granted is not known."""
        packed = b"" if token is None else token.to_bytes(8, "big")
        return ScriptCall(
            self._release,
            claim.target.keys,
            (claim.mode, claim.owner, claim.nonce, packed),
            prompt=True,
        )

    def fence(self, target: Target, owner: bytes, token: int) -> Fence:
        """Return what a write carries."""
        own = target.scope.hash if target.name == DEFAULT_NAME else b""
        return Fence(target.keys[0], own, token, owner, target.text, target.name)

    def fenced_core(self, *grants: Grant) -> Core:
        """Return a core whose every commit carries these grants."""
        fences = [self.fence(g.claim.target, g.claim.owner, g.token) for g in grants]
        core = self.core.fenced(fences)
        for grant in grants:
            grant.cores.append(core)
        return core

    # --- by facts, without a handle

    def by_facts(
        self, scope: str | Scope, name: str, owner: str, token: int, terms: Terms
    ) -> Claim:
        """Return the claim of somebody who knows owner and token, for all holds of the owner."""
        if type(token) is not int or not 0 < token < 2**53:
            raise InvalidArgumentError("token", token, "must be the int that the acquire returned")
        if not isinstance(owner, str) or not owner:
            raise InvalidArgumentError("owner", owner, "must be the owner of the lease")
        # A release that is sent again is known by its nonce; the longer one means all holds.
        return Claim(self.target(scope, name), terms, owner.encode(), b"*" + self.new_nonce(), b"")

    # --- looking

    def show_call(self, target: Target, waiters: int) -> ScriptCall:
        """Ask for everything about a lease."""
        channel = self.core.keyspace.wake(target.shard, "0")[:-1]
        arguments = (b"%d" % waiters, channel)
        return ScriptCall(load_script("lease_show"), target.keys[:3], arguments)

    def read_show(self, target: Target, reply: list[Any]) -> LeaseInfo:
        """Read the answer."""
        time, token, held, waiting, queue, ended = reply
        return LeaseInfo(
            target.text,
            target.name,
            from_ms(int(time)),
            int(token or 0),
            tuple(read_holders(held)),
            tuple(
                read_waiter(raw, bool(listens))
                for _, raw, listens in zip(queue[::3], queue[1::3], queue[2::3], strict=True)
            ),
            int(waiting),
            tuple(read_past(raw) for raw in ended if raw),
        )


_WHY: Final = {
    b"EXPIRED": "its time was over",
    b"TAKEN": "it was granted to another since",
    b"GONE": "it was released or broken, or its time was over",
    b"LOST": "the server does not know it: its data was lost or went back",
}


def why_not(reply: list[Any], token: int) -> tuple[str, LeaseHolder | None]:
    """Read why a lease with this token could not be renewed or released, and who holds it now."""
    code, *found = reply[1:]
    if type(code) is str:  # in words already: a sidecar was asked
        return code, found[0]
    if code == b"GONE" and found:
        past = read_past(found[0])
        if past.holder.token == token:
            ended = f" at {past.ended:%H:%M:%S} UTC"
            if past.how is LeaseHow.BROKEN:
                return broken_because(past.reason, past.actor) + ended, None
            return f"it {'was ' if past.how is LeaseHow.RELEASED else ''}{past.how}{ended}", None
    return _WHY[code], read_holder(found[0]) if code == b"TAKEN" else None


def broken_because(reason: str | None, actor: str | None) -> str:
    """Say to a holder why it lost its lease."""
    by = f" by {actor}" if actor else ""
    return f"{BROKEN}{by}: {reason}" if reason else f"{BROKEN}{by}"


def not_held(claim: Claim, operation: str, reply: list[Any], token: int) -> LeaseNotHeldError:
    """Return the error for a lease that is not held any more."""
    why, current = why_not(reply, token)
    target = claim.target
    return LeaseNotHeldError(target.text, target.name, operation, why, current=current)
