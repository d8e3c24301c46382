"""What all state operations share: how keys are spelled, values encoded, commits built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from msgpack import packb

from llmspell_dist.ack import Ack
from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS
from llmspell_dist.context import CommitContext, get_context
from llmspell_dist.errors import (
    AckNotReachedError,
    CrossShardError,
    InvalidArgumentError,
    LimitError,
)
from llmspell_dist.keys import KeySpace, scoped_field
from llmspell_dist.observation import NOTHING_OBSERVED, Observer
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.commits import (
    Change,
    Commit,
    Committed,
    Condition,
    Fence,
    ScopeKey,
    TTLMode,
    change,
    read_outcome,
)
from llmspell_dist.redis.durable import AckedOutcome
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.scope import Scope
from llmspell_dist.state.steps import CommitRequest, Steps
from llmspell_dist.state.values import Encoded, Values
from llmspell_dist.ttl import KEEP, TTL, ttl_ms

if TYPE_CHECKING:
    from llmspell_dist.classes import ClassResolver, StateClass
    from llmspell_dist.clock import ServerClock

__all__ = ["MAX_BATCH", "Core"]

MAX_BATCH: Final = 1000
"""Most keys in one call of a ``*_many`` operation: one commit has at most 1,000 changes."""
_SCOPES_CACHED: Final = 8192
_DEFAULT_TTL_MS: Final = {
    state_class: ttl_ms(does.default_ttl) if does.default_ttl else None
    for state_class, does in BEHAVIOURS.items()
}


class IfPresent(NamedTuple):
    """An expiry that a key gets only if it is there already: that of an `expire` before a write."""

    milliseconds: int


Expiry = TTL | IfPresent
"""What can happen to the expiry of a key."""


class Core:
    """Builds what is sent for state operations; holds no connection and does no I/O."""

    def __init__(
        self,
        keyspace: KeySpace,
        values: Values,
        rules: ClassResolver,
        clock: ServerClock,
        *,
        actor: str | None = None,
        server: str = "",
    ) -> None:
        self.keyspace = keyspace
        self.values = values
        self.rules = rules
        self.clock = clock
        self.server = server
        self.default_meta = self._unfenced_meta = (
            CommitContext(actor=actor).packed if actor else b""
        )
        self.chores: list[Callable[[], Steps[Any]]] = []
        """What else some process of the fleet does now and then; see `housekeeping`."""
        self.caches: list[Callable[[Commit], None]] = []
        """Who keeps values in memory; told of what this client does to scopes without a commit."""
        self.complained: set[str] = set()
        """What went wrong there and was logged: once is enough."""
        self.durable_ack: Ack | None = None
        """What the class Critical waits for: the strongest level that this server can give."""
        self.fences: tuple[Fence, ...] = ()
        """The leases that every commit carries."""
        self._said_fence = b""
        self.observer: Observer = NOTHING_OBSERVED
        """Is told what this client does; chosen once, when the client is put together."""
        self.own_actor = actor
        """Who commits if nobody says so: this client."""
        self._scopes: dict[str | Scope, ScopeKey] = {}
        self._generation_prefix = os.urandom(6).hex()
        self._generations = count(1)

    # --- names

    def scope_key(self, scope: str | Scope) -> ScopeKey:
        """Return the scope as the scripts need it; scopes seen lately cost one look-up."""
        try:
            return self._scopes[scope]
        except (KeyError, TypeError):
            pass
        parsed = Scope.coerce(scope)
        redis_key = self.keyspace.scope(parsed)
        text = parsed.text.encode()
        hget = b"*3\r\n$4\r\nHGET\r\n$%d\r\n%b\r\n" % (len(redis_key), redis_key)
        found = ScopeKey(redis_key, text, redis_key[: -len(text) - 1], parsed, hget)
        if len(self._scopes) >= _SCOPES_CACHED:
            self._scopes.clear()
        self._scopes[scope] = found
        return found

    def use_shards(self, shards: int) -> None:
        """Work with as many shards as the namespace was created with."""
        self.keyspace = KeySpace(self.keyspace.namespace, shards)
        self._scopes.clear()

    def new_generation(self) -> bytes:
        """Return a name for the elements of a new list or map that nobody else will use."""
        return f"{self._generation_prefix}-{next(self._generations)}".encode()

    def fenced(self, fences: Sequence[Fence]) -> Core:
        """Return a core whose every commit carries these leases; it shares all else."""
        core = copy(self)
        core._carry(tuple(fences))  # noqa: SLF001 - its own kind
        return core

    def _carry(self, fences: tuple[Fence, ...]) -> None:
        self.fences = fences
        # One more entry of the MessagePack map, which has at most five others.
        self._said_fence = packb("f") + packb(fences[0].token) if fences else b""
        self.default_meta = self._with_fence(self._unfenced_meta)

    def disarm(self) -> None:
        """Carry tokens that were never granted: every write is refused from now on."""
        self._carry(tuple(fence._replace(token=0) for fence in self.fences))

    def _with_fence(self, packed: bytes) -> bytes:
        if not self._said_fence:
            return packed
        return bytes(((packed[0] if packed else 0x80) + 1,)) + packed[1:] + self._said_fence

    def meta(self, scopes: Sequence[ScopeKey] = ()) -> bytes:
        """Return what stands in the log about who commits to these scopes now."""
        said = get_context()
        if self.observer.tracing:
            return self._traced_meta(said, scopes)
        if said is None:
            return self.default_meta
        if said.refuse is not None:
            said.refuse([scope.text.decode() for scope in scopes])
        if said.actor is None and self.own_actor is not None:
            said = replace(said, actor=self.own_actor)
        return self._with_fence(said.packed)

    def _traced_meta(self, said: CommitContext | None, scopes: Sequence[ScopeKey]) -> bytes:
        """Return the same, with the active span where there is one."""
        traceparent = self.observer.traceparent()
        if said is None:
            if traceparent is None:
                return self.default_meta
            packed = self.default_meta or b"\x80"
            # One more entry of a map that has at most five others.
            return b"%c%b\xa1t\xd97%b" % (packed[0] + 1, packed[1:], traceparent.encode())
        if said.refuse is not None:
            said.refuse([scope.text.decode() for scope in scopes])
        if said.actor is None and self.own_actor is not None:
            said = replace(said, actor=self.own_actor)
        if traceparent is not None:
            said = replace(said, traceparent=traceparent)
        return self._with_fence(said.packed)

    def actor(self) -> str | None:
        """Return who commits now, as the log has it."""
        said = get_context()
        return self.own_actor if said is None or said.actor is None else said.actor

    def shards(self) -> list[str]:
        """Return the shards of the namespace."""
        return [str(number) for number in range(self.keyspace.shards)]

    # --- commits

    def commit(
        self,
        scopes: Sequence[ScopeKey],
        changes: Sequence[Change],
        conditions: Sequence[Condition] = (),
    ) -> Commit:
        """Return a checked commit over scopes of one shard; several are a `CrossShardError`."""
        if len(scopes) > 1 and len({scope.shard for scope in scopes}) > 1:
            raise CrossShardError(scope.text.decode() for scope in scopes)
        meta, fences = self.meta(scopes), self.fences_for(scopes[0])
        commit = Commit(tuple(scopes), changes, conditions, meta, fences)
        commit.check()
        return commit

    def put_back(self, scopes: Iterable[Scope]) -> None:
        """Let caches of this client forget scopes that a restore of its own has put back."""
        if not self.caches:
            return
        for scope in scopes:
            commit = Commit((self.scope_key(scope),), (change(Op.RESTORED, b"", b""),))
            for tell in self.caches:
                tell(commit)

    def fences_for(self, scope: ScopeKey) -> tuple[Fence, ...]:
        """Return the leases to carry; one of another shard than the commit's scopes is refused."""
        for fence in self.fences:
            if not fence.lease.startswith(scope.shard):
                raise CrossShardError((scope.text.decode(), fence.scope))
        return self.fences

    def carry_out(self, commit: Commit, ack: Ack | None = None) -> Steps[Committed]:
        """Send a commit and read its outcome; a refusal is raised."""
        outcome = yield CommitRequest(commit, ack)
        if type(outcome) is AckedOutcome and not outcome.reached:
            self.refuse_ack(outcome)
        return read_outcome(outcome, commit, self.server)

    def refuse_ack(self, outcome: AckedOutcome) -> NoReturn:
        """Say that a write happened and its level was not reached."""
        reached = f"{outcome.local_fsyncs} disks, {outcome.replicas} replicas"
        raise AckNotReachedError(
            self.server, outcome.level, outcome.said or reached, outcome.operation
        )

    def ack_for(self, state_class: StateClass, ack: Ack | None) -> Ack | None:
        """Return the level to wait for: as asked, else what the class says."""
        if ack is None:
            return self.durable_ack if BEHAVIOURS[state_class].durable_ack else None
        if not isinstance(ack, Ack):
            raise InvalidArgumentError("ack", ack, "must be an Ack")
        return ack

    def set_change(
        self,
        scope: int,
        field: bytes,
        encoded: Encoded,
        ttl: Expiry,
        state_class: StateClass,
        schema_version: int,
    ) -> Change:
        """Return the change that sets a key to an encoded value."""
        mode, milliseconds = self.expiry(ttl, state_class)
        payload = encoded.payload
        assert isinstance(payload, bytes)  # noqa: S101 - what is large goes another way
        return change(
            Op.SET,
            field,
            payload,
            kind=encoded.kind,
            state_class=state_class,
            flags=encoded.flags,
            schema_version=schema_version,
            ttl_mode=mode,
            ttl_ms=milliseconds,
            scope=scope,
        )

    def expiry(self, ttl: Expiry, state_class: StateClass) -> tuple[int, int]:
        """How the script is told what happens to the expiry: mode and milliseconds."""
        if isinstance(ttl, IfPresent):
            mode = TTLMode.SET if _DEFAULT_TTL_MS[state_class] else TTLMode.IF_PRESENT
            return mode, ttl.milliseconds
        if ttl is KEEP:
            default = _DEFAULT_TTL_MS[state_class]
            return (TTLMode.DEFAULT, default) if default else (TTLMode.KEEP, 0)
        milliseconds = ttl_ms(ttl)
        return (TTLMode.DROP, 0) if milliseconds is None else (TTLMode.SET, milliseconds)

    # --- reads

    def read_call(
        self, scope: ScopeKey, fields: Iterable[bytes], *, most_bytes: int, bulk: bool = False
    ) -> ScriptCall:
        """Ask for some records as of one moment of the server's clock."""
        arguments = (b"%d" % most_bytes, b"0", b"0", *fields)
        return ScriptCall(load_script("read"), (scope.hash,), arguments, bulk=bulk)


def field_of(scope: ScopeKey, key: str) -> bytes:
    """Return the hash field of a key, validated together with its scope."""
    return scoped_field(scope.scope, key)


def checked_keys(scope: ScopeKey, keys: Iterable[str]) -> dict[str, bytes]:
    """Validate the keys of a batch: their fields, each once, in order."""
    if isinstance(keys, (str, bytes)):
        raise InvalidArgumentError("keys", keys, "must be several keys, not one text")
    fields = {key: field_of(scope, key) for key in keys}
    if len(fields) > MAX_BATCH:
        raise LimitError("keys in one call", len(fields), MAX_BATCH)
    return fields
