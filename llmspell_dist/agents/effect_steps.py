"""The operations on effects that run once, as steps: claim, settle, resolve, retry, list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmspell_dist.agents.effects import (
    EffectRecord,
    EffectStatus,
    Seen,
    as_claim,
    as_settled,
    effect_key,
    record_from,
)
from llmspell_dist.agents.errors import AgentNotFoundError, EffectFailedError, EffectTakenOverError
from llmspell_dist.agents.layout import EFFECT_PREFIX, PROFILE
from llmspell_dist.agents.retrying import again_on_conflict
from llmspell_dist.errors import ConflictError
from llmspell_dist.records import Kind, unpack_record
from llmspell_dist.redis.commits import ConditionMode, condition
from llmspell_dist.revision import Revision, from_ms
from llmspell_dist.state.core import field_of
from llmspell_dist.state.reads import INLINE_BYTES
from llmspell_dist.state.scopes import PAGE_KEYS, Scopes

if TYPE_CHECKING:
    from llmspell_dist.agents.handle import HandleSteps
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.ttl import TTL

__all__ = ["EffectSteps"]


class EffectSteps:
    """The effects of one agent; over a fenced core, whatever they write is fenced."""

    def __init__(self, handle: HandleSteps) -> None:
        agents = handle.agents
        self.agent_id = handle.agent_id
        self.core = agents.core
        self.reads = agents.reads
        self.writes = agents.writes
        self.scope = self.core.scope_key(handle.scope)
        fences = [each for each in self.core.fences if each.scope == self.scope.scope.text]
        self.token: int | None = fences[0].token if fences else None
        """The fencing token that claims carry; None without a lease."""

    # --- reading

    def look(self, key: str) -> Steps[Seen]:
        """Return an effect's record together with the server's time."""
        found, now = yield from self._records([effect_key(key)])
        return Seen(self.agent_id, key, found[0] if found else None, now)

    def _records(self, keys: Sequence[str]) -> Steps[tuple[list[EffectRecord], datetime]]:
        scope, name = self.scope, self.scope.scope.text
        fields = [field_of(scope, key) for key in keys]
        most = INLINE_BYTES // max(1, len(fields))
        now, _, *flat = yield self.core.read_call(scope, fields, most_bytes=most, bulk=True)
        records = []
        for key, raw, elements in zip(keys, flat[::2], flat[1::2], strict=True):
            if raw is None:
                continue
            stored = unpack_record(raw, name, key)
            if stored.kind <= Kind.NUMBER:
                value = self.core.values.decode(
                    stored.kind, stored.flags, stored.payload, name, key
                )
            elif elements is not None and stored.kind == Kind.BLOB:
                value = self.reads.join(stored, elements, scope, key)
            else:
                found = yield from self.reads.find(scope.scope, key)
                if found is None:
                    continue
                stored, value = found.stored, found.value
            records.append(record_from(self.agent_id, name, key, value, stored.revision))
        return records, from_ms(int(now))

    def listed(self) -> Steps[list[EffectRecord]]:
        """Return all effects of the agent; claims that were left behind as unknown."""
        scopes = Scopes(self.core, self.reads)
        cursor = None
        found: dict[str, EffectRecord] = {}
        while True:
            page = yield from scopes.keys_page(
                self.scope.scope, cursor, PAGE_KEYS, EFFECT_PREFIX, None
            )
            if page.items:
                records, now = yield from self._records(page.items)
                for record in records:
                    seen = Seen(self.agent_id, record.key, record, now)
                    found[record.key] = seen.as_of_now(self.token) or record
            cursor = page.cursor
            if cursor is None:
                return sorted(found.values(), key=lambda record: (record.claimed, record.key))

    # --- claiming

    def claim(self, key: str, by: str, limit_ms: int, retry_failed: bool) -> Steps[EffectRecord]:
        """Return a claim of one's own, or the record of what has happened already.

        Raises what forbids to carry the effect out.
        """

        def attempt() -> Steps[EffectRecord]:
            seen = yield from self.look(key)
            if seen.record is not None and seen.record.status is EffectStatus.COMMITTED:
                return seen.record
            error = seen.refuse(self.token)
            if error is not None and not (retry_failed and isinstance(error, EffectFailedError)):
                raise error
            return (yield from self._claim(seen, by, limit_ms))

        # If another was quicker: see what it made of it.
        return (yield from again_on_conflict(attempt))

    def retry(self, key: str, by: str, limit_ms: int) -> Steps[EffectRecord]:
        """Return a claim of one's own of an effect that did not happen, as the caller says."""
        while True:
            seen = yield from self.look(key)
            error = seen.may_be_settled(self.token)
            if error is not None:
                raise error
            try:
                return (yield from self._claim(seen, by, limit_ms))
            except ConflictError:
                pass  # another decided first: its claim or its result refuses the next attempt

    def renew(self, claim: EffectRecord, by: str, limit_ms: int) -> Steps[EffectRecord | None]:
        """Return a claim of one's own with its whole limit; None if it is not one's own any more.

        Only for what was not begun under that claim. Others may have seen it past its limit and
        decided: then its revision is another, and nothing is written.
        """
        seen = Seen(self.agent_id, claim.key, claim, claim.claimed_at)
        try:
            return (yield from self._claim(seen, by, limit_ms, claim.attempts))
        except ConflictError:
            return None

    def _claim(
        self, seen: Seen, by: str, limit_ms: int, attempts: int | None = None
    ) -> Steps[EffectRecord]:
        state_key = effect_key(seen.key)
        field = field_of(self.scope, state_key)
        before = seen.record
        if attempts is None:
            attempts = 1 if before is None else before.attempts + 1
        stored = as_claim(seen.key, by, self.token, limit_ms, attempts)
        name = self.scope.scope.text
        state_class = self.core.rules.resolve(self.scope.scope, state_key)
        encoded = self.core.values.encode(stored, state_class, name, state_key)
        # A claim never expires by itself: what was left behind must be seen.
        one = self.core.set_change(0, field, encoded, None, state_class, 1)
        conditions = [
            condition(ConditionMode.PRESENT, field_of(self.scope, PROFILE)),
            condition(ConditionMode.ABSENT, field)
            if before is None
            else condition(ConditionMode.REVISION, field, before.revision),
        ]
        commit = self.core.commit((self.scope,), (one,), conditions)
        try:
            done = yield from self.core.carry_out(commit, self.core.ack_for(state_class, None))
        except ConflictError as conflict:
            if any(each.key == PROFILE for each in conflict.keys):
                raise AgentNotFoundError(self.agent_id) from None
            raise
        assert done.revision is not None  # noqa: S101 - a set always changes something
        return record_from(self.agent_id, name, state_key, stored, done.revision)

    # --- settling

    def settle(
        self,
        claim: EffectRecord,
        status: EffectStatus,
        result: Any,
        reason: str | None,
        keep: TTL,
    ) -> Steps[Revision]:
        """Say how a claimed effect ended; `EffectTakenOverError` if the claim is gone."""
        try:
            return (yield from self._settle(claim, status, result, reason, keep))
        except ConflictError:
            seen = yield from self.look(claim.key)
            raise seen.error(EffectTakenOverError) from None

    def _settle(
        self,
        record: EffectRecord,
        status: EffectStatus,
        result: Any,
        reason: str | None,
        keep: TTL,
    ) -> Steps[Revision]:
        stored = as_settled(record, status, result, reason)
        guard = (
            (ConditionMode.ABSENT, None)
            if record.revision is None
            else (ConditionMode.REVISION, record.revision)
        )
        ttl = keep if status is EffectStatus.COMMITTED else None
        return (
            yield from self.writes.set(
                self.scope.scope, effect_key(record.key), stored, ttl, None, 1, None, guard
            )
        )

    def resolve(self, key: str, by: str, limit_ms: int, result: Any, keep: TTL) -> Steps[None]:
        """Say that an effect of unknown outcome did happen, and with what result."""

        def attempt() -> Steps[None]:
            seen = yield from self.look(key)
            error = seen.may_be_settled(self.token)
            if error is not None:
                raise error
            record = seen.record
            if record is None:
                # It happened outside: a claim first, which also asks whether there is an agent.
                record = yield from self._claim(seen, by, limit_ms)
            yield from self._settle(record, EffectStatus.COMMITTED, result, None, keep)

        yield from again_on_conflict(attempt)
