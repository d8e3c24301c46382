"""Changes of an agent by pieces: only what is new travels, all of it in one commit.

Who has loaded the agent asks first that what he changes is as he knows it. If it is, he knows all
of it afterwards too, without reading. If others wrote meanwhile, the same is done under the one
condition that the agent is there, because appends and increments of several writers get along.
Where a record turns out to lie in another form (another class, a list that somebody set as a whole,
encrypted numbers), a transaction that reads it does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llmspell_dist.agents.errors import AgentNotFoundError
from llmspell_dist.agents.layout import PROFILE
from llmspell_dist.agents.retrying import again_on_conflict
from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS
from llmspell_dist.errors import (
    ClassChangedError,
    ConflictError,
    InvalidArgumentError,
    WrongKindError,
)
from llmspell_dist.redis.commits import Change, ConditionMode, condition
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import field_of
from llmspell_dist.state.large import INLINE_LIMIT
from llmspell_dist.state.transactions import TransactionSteps
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.agents.snapshot import Snapshot
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import Committed, ScopeKey
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.partial import Partial
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.writes import Writes

__all__ = ["Applied", "Update", "Updates", "checked_names"]


@dataclass(slots=True)
class Update:
    """What is to happen to one key."""

    op: Op
    key: str
    value: Any
    """set: the value; increment: the addend; append: the elements; merge: the fields."""
    removed: tuple[str, ...] = ()


def checked_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return several names; one text, or what is no name, is refused."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InvalidArgumentError(argument, names, "must be several names, not one text")
    found = tuple(names)
    for name in found:
        if type(name) is not str:
            raise InvalidArgumentError(argument, name, "must hold names that are str")
    return found


class Applied(NamedTuple):
    """What became of updates of what was known."""

    revision: Revision
    generations: dict[str, str]
    """Where the elements of lists that they began lie."""


class Updates:
    """Carries updates of an agent out, as steps."""

    def __init__(self, core: Core, reads: Reads, writes: Writes, partial: Partial) -> None:
        self.core = core
        self.reads = reads
        self.writes = writes
        self.partial = partial

    def apply_known(
        self, scope: Scope, updates: Sequence[Update], known: Snapshot
    ) -> Steps[Applied | None]:
        """Do all of it, if what it changes is as it is known; None, and nothing is done, if not."""
        scope_key = self.core.scope_key(scope)
        changes = self._changes(scope_key, updates)
        if changes is None:
            return None
        conditions = [condition(ConditionMode.PRESENT, field_of(scope_key, PROFILE))]
        for one in changes:
            revision = known.revisions.get(one.key.decode())
            mode = ConditionMode.ABSENT if revision is None else ConditionMode.REVISION
            conditions.append(condition(mode, one.key, revision))
        commit = self.core.commit((scope_key,), changes, conditions)
        try:
            done = yield from self.core.carry_out(commit)
        except (ConflictError, ClassChangedError, WrongKindError):
            return None
        assert done.revision is not None  # noqa: S101 - something is always set
        begun = {
            one.key.decode(): one
            for update, one in zip(updates, changes, strict=True)
            if update.op == Op.APPEND and update.key not in known.revisions
        }
        return Applied(done.revision, self._generations(done, begun))

    def _generations(self, done: Committed, begun: Mapping[str, Change]) -> dict[str, str]:  # noqa: ARG002
        """Return where the elements of lists that a commit began lie."""
        return {key: self.partial.generation_of(one) for key, one in begun.items()}

    def apply(self, agent_id: str, scope: Scope, updates: Sequence[Update]) -> Steps[Revision]:
        """Do all of it in one commit; `AgentNotFoundError` without an agent."""
        scope_key = self.core.scope_key(scope)
        there = condition(ConditionMode.PRESENT, field_of(scope_key, PROFILE))
        changes = self._changes(scope_key, updates)
        if changes is not None:
            commit = self.core.commit((scope_key,), changes, (there,))
            try:
                done = yield from self.core.carry_out(commit)
            except ConflictError:
                raise AgentNotFoundError(agent_id) from None
            except (ClassChangedError, WrongKindError):
                pass  # it lies in another form
            else:
                assert done.revision is not None  # noqa: S101 - something is always set
                return done.revision
        return (yield from self._by_reading(agent_id, scope, updates))

    def _changes(self, scope: ScopeKey, updates: Sequence[Update]) -> list[Change] | None:
        """Return the changes; None where they cannot be made without looking at the records."""
        core, partial, changes = self.core, self.partial, []
        for update in updates:
            key, value = update.key, update.value
            state_class = core.rules.resolve(scope.scope, key)
            behaviour = BEHAVIOURS[state_class]
            if behaviour.durable_ack or (behaviour.encrypt and update.op == Op.INCREMENT):
                return None
            field = field_of(scope, key)
            if update.op == Op.APPEND:
                elements = partial.elements(scope, key, value, state_class)
                changes.append(partial.append_change(field, elements, state_class, KEEP))
            elif update.op == Op.MERGE:
                changes.append(self._merge(scope, update, field, state_class))
            elif update.op == Op.INCREMENT:
                changes.append(self.writes.increment_change(field, value, KEEP, state_class))
            else:
                encoded = core.values.encode(value, state_class, scope.scope.text, key)
                if len(encoded.payload) > INLINE_LIMIT:
                    return None
                changes.append(core.set_change(0, field, encoded, KEEP, state_class, 1))
        return changes

    def _merge(
        self, scope: ScopeKey, update: Update, field: bytes, state_class: StateClass
    ) -> Change:
        fields = self.partial.fields(scope, update.key, update.value, state_class)
        gone = self.partial.removals(update.removed)
        return self.partial.merge_change(field, fields, gone, state_class, KEEP)

    def transaction(self) -> TransactionSteps:
        """Return a transaction that has done nothing yet."""
        return TransactionSteps(self.core, self.reads, self.writes, self.partial)

    def _by_reading(
        self, agent_id: str, scope: Scope, updates: Sequence[Update]
    ) -> Steps[Revision]:
        def attempt() -> Steps[Revision]:
            transaction = self.transaction()
            found = yield from transaction.get_many(scope, (PROFILE,))
            if not found:
                raise AgentNotFoundError(agent_id)
            for update in updates:
                _enter(transaction, scope, update)
            revision = yield from transaction.commit()
            assert revision is not None  # noqa: S101 - something is always set
            return revision

        return (yield from again_on_conflict(attempt))


def _enter(transaction: TransactionSteps, scope: Scope, update: Update) -> None:
    key, value = update.key, update.value
    if update.op == Op.APPEND:
        transaction.append(scope, key, tuple(value), KEEP)
    elif update.op == Op.MERGE:
        transaction.merge(scope, key, value, update.removed, KEEP)
    elif update.op == Op.INCREMENT:
        transaction.increment(scope, key, value, KEEP)
    else:
        transaction.set(scope, key, value, KEEP, None, 1)
