"""A commit of an agent's parts as a client describes it, made the library's own.

No byte of it reaches Redis as it came: values are decoded and encoded anew, the class and the place
of elements are decided here, and only parts of an agent can be changed, to what they can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.agents.layout import CONVERSATION, MODIFIED, PROFILE
from llmspell_dist.agents.replacing import Elements, replaced
from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS
from llmspell_dist.errors import ClassChangedError, CodecError, InvalidArgumentError, LimitError
from llmspell_dist.redis.commits import MAX_CHANGES, ConditionMode, change, condition
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.agent_shape import check_change
from llmspell_dist.state.core import field_of
from llmspell_dist.state.large import INLINE_LIMIT
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.reads import Reads
from llmspell_dist.state.writes import Writes
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import Change, Condition
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["AgentCommit", "Committing"]

_PRESENT: Final = "present"

ClassOf = Annotated[
    str | None, Meta(description="The class that the part has; null: by the sidecar's rules.")
]


class SetPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="set"):
    """Set a value or a number."""

    key: str
    value: Any
    state_class: ClassOf = None
    schema_version: Annotated[int, Meta(ge=1, le=65_535)] = 1


class IncrementPart(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="increment"
):
    """Add to a number."""

    key: str
    value: int | float
    state_class: ClassOf = None


class AppendToPart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="append"):
    """Add messages to the end of the conversation."""

    key: str
    value: list[Any]
    state_class: ClassOf = None


class MergePart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="merge"):
    """Set and remove variables, custom data, or tools."""

    key: str
    value: dict[str, Any]
    remove: list[str] = []
    state_class: ClassOf = None


class ReplacePart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="replace"):
    """Put other messages, variables or tools in the place of all that are there."""

    key: str
    value: list[Any] | dict[str, Any]
    state_class: ClassOf = None


class DeletePart(Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag="delete"):
    """Remove a part that holds nothing any more."""

    key: str


PartChange = SetPart | IncrementPart | AppendToPart | MergePart | ReplacePart | DeletePart


class AgentCommit(Struct, frozen=True, forbid_unknown_fields=True):
    """What parts must be as, ``agent.profile`` among them, and what happens if they are."""

    expected: Annotated[
        dict[str, str | None],
        Meta(
            max_length=MAX_CHANGES,
            description="By key: its revision; `present`; null, if it must not be there.",
        ),
    ]
    changes: Annotated[
        list[PartChange],
        Meta(max_length=MAX_CHANGES, description="One for a key; `agent.modified` is set always."),
    ]


class Committing:
    """One such commit on its way."""

    def __init__(self, core: Core, scope: Scope) -> None:
        reads = Reads(core)
        self._core = core
        self._scope = core.scope_key(scope)
        self._writes = Writes(core, reads)
        self._partial = Partial(core, reads)
        self._ack: Ack | None = None
        self.classes: dict[str, str] = {}
        """Of the parts whose change did not say it."""
        self.generations: dict[str, str] = {}
        """Where the elements lie that this certainly began."""

    def carry_out(self, body: AgentCommit) -> Steps[Revision]:
        """Commit all of it, or raise and change nothing."""
        self.check(body)
        conditions = [self._condition(*pair) for pair in body.expected.items()]
        changes = []
        for one in body.changes:
            try:
                changes.append((yield from self._change(one, body.expected)))
            except (CodecError, LimitError) as error:
                raise error.inside(f".{one.key}") from None
        commit = self._core.commit((self._scope,), changes, conditions)
        done = yield from self._core.carry_out(commit, self._ack)
        assert done.revision is not None  # noqa: S101 - agent.modified is always set
        return done.revision

    def check(self, body: AgentCommit) -> None:
        """Refuse what is no commit of an agent's parts."""
        named = [one.key for one in body.changes]
        if len(set(named)) < len(named):
            raise InvalidArgumentError("changes", None, "must have one change for a key")
        if MODIFIED not in named or PROFILE not in body.expected:
            rule = f"must set {MODIFIED}, and {PROFILE} must stand in expected"
            raise InvalidArgumentError("changes", None, rule)
        for one in body.changes:
            check_change(self.scope, one)

    @property
    def scope(self) -> Scope:
        """Where the agent lies."""
        return self._scope.scope

    def encode(self, value: Any) -> None:
        """Refuse what cannot be stored."""
        self._core.values.codec.encode(value)

    def _condition(self, key: str, expected: str | None) -> Condition:
        field = field_of(self._scope, key)
        if expected is None:
            return condition(ConditionMode.ABSENT, field)
        if expected == _PRESENT:
            return condition(ConditionMode.PRESENT, field)
        return condition(ConditionMode.REVISION, field, Revision.parse(expected))

    def _class_of(self, key: str, said: str | None) -> StateClass:
        found = self._core.rules.resolve(self._scope.scope, key, said)
        if said is None:
            self.classes[key] = str(found)
        self._ack = self._ack or self._core.ack_for(found, None)
        return found

    def _change(self, one: PartChange, expected: dict[str, str | None]) -> Steps[Change]:
        scope, key, partial = self._scope, one.key, self._partial
        field = field_of(scope, key)
        if isinstance(one, DeletePart):
            return change(Op.DELETE, field, b"")
        state_class = self._class_of(key, one.state_class)
        if isinstance(one, SetPart):
            return (yield from self._set(one, field, state_class))
        if isinstance(one, IncrementPart):
            if BEHAVIOURS[state_class].encrypt:
                raise ClassChangedError(scope.scope.text, key, state_class)
            return self._writes.increment_change(field, one.value, KEEP, state_class)
        if isinstance(one, ReplacePart):
            elements = self._elements(key, one.value, state_class)
            made, place = yield from replaced(self._core, scope, key, elements, state_class)
            self.generations[key] = place
            return made
        if isinstance(one, MergePart):
            fields = partial.fields(scope, key, one.value, state_class)
            made = partial.merge_change(
                field, fields, partial.removals(one.remove), state_class, KEEP
            )
        else:
            items = partial.elements(scope, key, one.value, state_class)
            made = partial.append_change(field, items, state_class, KEEP)
        if key in expected and expected[key] is None:
            self.generations[key] = partial.generation_of(made)
        return made

    def _set(self, one: SetPart, field: bytes, state_class: StateClass) -> Steps[Change]:
        core, scope, version = self._core, self._scope, one.schema_version
        encoded = core.values.encode(one.value, state_class, scope.scope.text, one.key)
        if len(encoded.payload) <= INLINE_LIMIT:
            return core.set_change(0, field, encoded, KEEP, state_class, version)
        return (
            yield from self._writes.large_change(scope, field, encoded, KEEP, state_class, version)
        )

    def _elements(
        self, key: str, value: list[Any] | dict[str, Any], state_class: StateClass
    ) -> Elements:
        """Encode any number of messages, or of fields."""
        values, name = self._core.values, self._scope.scope.text
        if key == CONVERSATION:
            return [values.encode_element(item, state_class, name, key) for item in value]
        assert isinstance(value, dict)  # noqa: S101 - its shape was checked
        return {
            values.codec.encode(field): values.encode_element(item, state_class, name, key)
            for field, item in value.items()
        }
