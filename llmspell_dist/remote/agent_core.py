"""Commits of an agent through a sidecar: the library's own, as a document instead of a script.

A change is written as the sidecar's route takes it as soon as the library makes it; its payload is
that document. So what the library does with changes and conditions stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from llmspell_dist.agents.replacing import Elements, whole
from llmspell_dist.changes import Op
from llmspell_dist.classes import StateClass
from llmspell_dist.records import Kind
from llmspell_dist.redis.commits import Change, Commit, Committed, ConditionMode, change
from llmspell_dist.remote.documents import pack_list, pack_map
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import Core
from llmspell_dist.state.partial import Partial
from llmspell_dist.state.values import Encoded, Values
from llmspell_dist.state.writes import Writes

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.redis.commits import Condition, ScopeKey
    from llmspell_dist.state.core import Expiry
    from llmspell_dist.state.steps import Steps

__all__ = ["AgentCore", "AgentPartial", "AgentWrites", "CommittedParts"]


class CommittedParts(NamedTuple):
    """What a commit gave, and what the sidecar decided about the parts that it changed."""

    revision: Revision
    results: list[bytes]
    classes: dict[str, StateClass]
    generations: dict[str, str]


class _Values(Values):
    """Values as they travel: the sidecar gives them the form in which they are stored."""

    def encode(self, value: Any, state_class: StateClass, scope: str, key: str) -> Encoded:
        """Encode one value; what cannot be stored raises before anything is sent."""
        return Encoded(Kind.VALUE, 0, self.encode_element(value, state_class, scope, key))


class AgentCore(Core):
    """Builds what is sent for agents; it shares all else with the core that it is made of."""

    known: Mapping[str, StateClass] = {}
    """The classes that parts have, by key; those of others the sidecar decides."""

    @classmethod
    def of(cls, core: Core) -> Self:
        """Return one over another core, under its leases."""
        made = cls.__new__(cls)
        made.__dict__.update(core.__dict__)
        made.values = _Values(core.values.codec, core.values.cipher)
        return made

    def knowing(self, classes: Mapping[str, StateClass]) -> Self:
        """Return one that says the class of these parts, so that they keep it."""
        made = copy(self)
        made.known = classes
        return made

    def part(
        self,
        op: Op,
        name: str,
        field: bytes,
        value: bytes,
        state_class: StateClass,
        **more: bytes,
    ) -> Change:
        """Return a change of a part, written as it travels."""
        encode, key = self.values.codec.encode, field.decode()
        said: dict[str, Any] = {"op": name, "key": key}
        if key in self.known or state_class is not StateClass.STANDARD:
            said["state_class"] = str(state_class)
        parts = {encode(name): encode(one) for name, one in said.items()}
        parts |= {encode(name): one for name, one in (("value", value), *more.items())}
        return change(op, field, pack_map(parts), state_class=state_class)

    def set_change(
        self,
        scope: int,  # noqa: ARG002 - there is one
        field: bytes,
        encoded: Encoded,
        ttl: Expiry,  # noqa: ARG002 - parts of agents have none
        state_class: StateClass,
        schema_version: int,
    ) -> Change:
        """Return the change that sets a key to an encoded value."""
        version = self.values.codec.encode(schema_version)
        value = cast("bytes", encoded.payload)
        return self.part(Op.SET, "set", field, value, state_class, schema_version=version)

    def commit(
        self,
        scopes: Sequence[ScopeKey],
        changes: Sequence[Change],
        conditions: Sequence[Condition] = (),
    ) -> Commit:
        """Return a commit; its limits are checked by who carries it out."""
        return Commit(tuple(scopes), changes, conditions)

    def carry_out(self, commit: Commit, ack: Ack | None = None) -> Steps[Committed]:  # noqa: ARG002
        """Send a commit and read its answer; a refusal is raised."""
        encode = self.values.codec.encode
        body = {
            encode("expected"): encode(_expected(commit)),
            encode("changes"): pack_list([self._written(one) for one in commit.changes]),
        }
        path = ("v1", "agents", commit.scopes[0].scope.id, "commit")
        answer = yield from asked(Ask("POST", path, packed=pack_map(body)))
        said = answer.document
        classes = {key: StateClass.coerce(name) for key, name in said["classes"].items()}
        done = CommittedParts(Revision.parse(said["revision"]), [], classes, said["generations"])
        return cast("Committed", done)

    def _written(self, one: Change) -> bytes:
        if one.head[0] != Op.DELETE:
            return one.payload
        return self.values.codec.encode({"op": "delete", "key": one.key.decode()})


def _expected(commit: Commit) -> dict[str, str | None]:
    """Return what each part must be as."""
    said: dict[str, str | None] = {}
    for head, _, key in commit.conditions:
        revision = None
        if head[0] == ConditionMode.PRESENT:
            revision = "present"
        elif head[0] == ConditionMode.REVISION:
            revision = str(Revision.unpack(head[1:]))
        said[key.decode()] = revision
    return said


class AgentWrites(Writes):
    """How values and numbers of an agent change."""

    core: AgentCore

    def large_change(
        self,
        scope: ScopeKey,  # noqa: ARG002 - as the parent's
        field: bytes,
        encoded: Encoded,
        ttl: Expiry,
        state_class: StateClass,
        schema_version: int,
        place: int = 0,
    ) -> Steps[Change]:
        """Describe the change that sets a large value; the sidecar lays it down."""
        yield from ()
        return self.core.set_change(place, field, encoded, ttl, state_class, schema_version)

    def increment_change(
        self,
        field: bytes,
        by: float,
        ttl: Expiry,  # noqa: ARG002
        state_class: StateClass,
        place: int = 0,  # noqa: ARG002
    ) -> Change:
        """Return the change that adds to a number."""
        value = self.core.values.codec.encode(by)
        return self.core.part(Op.INCREMENT, "increment", field, value, state_class)


class AgentPartial(Partial):
    """How lists and maps of an agent change."""

    core: AgentCore

    def append_change(
        self,
        field: bytes,
        elements: Sequence[bytes],
        state_class: StateClass,
        ttl: Expiry,  # noqa: ARG002
        scope: int = 0,  # noqa: ARG002
    ) -> Change:
        """Return the change that appends encoded elements."""
        value = pack_list([*elements])
        return self.core.part(Op.APPEND, "append", field, value, state_class)

    def merge_change(
        self,
        field: bytes,
        fields: Mapping[bytes, bytes],
        removed: Sequence[bytes],
        state_class: StateClass,
        ttl: Expiry,  # noqa: ARG002
        scope: int = 0,  # noqa: ARG002
    ) -> Change:
        """Return the change that merges encoded fields; one that is removed as well is removed."""
        value, remove = pack_map(fields), pack_list([*removed])
        return self.core.part(Op.MERGE, "merge", field, value, state_class, remove=remove)

    def replace_change(self, field: bytes, elements: Elements, state_class: StateClass) -> Change:
        """Return the change that puts other elements in the place of a list or map."""
        return self.core.part(Op.ADOPT, "replace", field, whole(elements), state_class)

    def generation_of(self, one: Change) -> str:  # noqa: ARG002
        """Nothing: the sidecar names the place, and its answer tells it."""
        return ""
