"""Saving an agent: what differs from what lies there becomes the changes of one commit.

A new agent's parts must all be absent. Of one that was loaded, every part that changes must still
be as it was loaded, and so must ``agent.modified``, which every change of the agent touches.

Messages stay where they lie only if the conversation says that it stands in that very list.
Whatever the caller does with it while the commit is on its way, the next save sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.agents.conversation import Conversation
from llmspell_dist.agents.layout import CONVERSATION, MAPS, MODIFIED, PROFILE, parts_of
from llmspell_dist.agents.messages import MessageCodec, as_stored
from llmspell_dist.agents.replacing import replaced
from llmspell_dist.agents.snapshot import Snapshot, encoded_map, encoded_values, map_diff
from llmspell_dist.changes import Op
from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.codec import validate_external
from llmspell_dist.errors import InvalidArgumentError, LimitError
from llmspell_dist.records import Head, Kind
from llmspell_dist.redis.commits import (
    MAX_CHANGES,
    Change,
    Condition,
    ConditionMode,
    change,
    condition,
)
from llmspell_dist.state.core import field_of
from llmspell_dist.state.large import INLINE_LIMIT
from llmspell_dist.state.partial import MAX_ELEMENTS
from llmspell_dist.ttl import KEEP

if TYPE_CHECKING:
    from llmspell_dist.ack import Ack
    from llmspell_dist.agents.model import AgentState, Message
    from llmspell_dist.agents.replacing import Elements
    from llmspell_dist.redis.commits import Committed
    from llmspell_dist.revision import Revision
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.partial import Partial
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.writes import Writes

__all__ = ["Saving"]

_MOST_INLINE: Final = 4 * 1024 * 1024
"""New messages up to this are appended by the commit itself."""
_BESIDE: Final = (PROFILE, MODIFIED, CONVERSATION, *MAPS)
"""What a commit changes, or asks for, beside the other values and the numbers."""


class Saving:
    """One save: collects the changes, carries them out, and notes what lies there afterwards."""

    def __init__(
        self,
        core: Core,
        writes: Writes,
        partial: Partial,
        *,
        scope: Scope,
        state: AgentState,
        there: Snapshot,
    ) -> None:
        self.core = core
        self.writes = writes
        self.partial = partial
        self.scope = core.scope_key(scope)
        self.state = state
        self.there = there
        """What is replaced; an empty one for a new agent."""
        namespace, text = core.keyspace.namespace, self.scope.scope.text
        self.after = Snapshot(namespace, text, classes=dict(there.classes))
        self._changes: dict[str, Change] = {}
        self._ack: Ack | None = None
        self._stored: tuple[list[bytes], int] | None = None
        self._messages = state.conversation
        self._taken: tuple[list[Message], int] = ([], 0)
        """The messages of a plain list as they were sent, or the edits of a `Conversation`."""

    def carry_out(self) -> Steps[Revision]:
        """Save in one commit, or raise and change nothing."""
        yield from self._values()
        yield from self._maps()
        yield from self._conversation()
        revision = (yield from self._commit()).revision
        assert revision is not None  # noqa: S101 - agent.modified is always set
        after = self.after
        after.scope_revision = revision
        after.revisions = {
            key: found for key, found in self.there.revisions.items() if key not in self._changes
        }
        for key, one in self._changes.items():
            if one.head[0] != Op.DELETE:
                after.revisions[key] = revision
        self._settle()
        return revision

    def _commit(self) -> Steps[Committed]:
        commit = self.core.commit((self.scope,), [*self._changes.values()], self._conditions())
        return (yield from self.core.carry_out(commit, self._ack))

    def _replace(self, key: str, elements: Elements, state_class: StateClass) -> Steps[str]:
        """Let a list or map have other elements; the name under which they will lie."""
        done = yield from replaced(self.core, self.scope, key, elements, state_class)
        self._changes[key], generation = done
        return generation

    def _conditions(self) -> list[Condition]:
        conditions = []
        for key in {PROFILE: None, **self._changes}:  # among them always agent.modified
            field = field_of(self.scope, key)
            revision = self.there.revisions.get(key)
            if revision is None:
                conditions.append(condition(ConditionMode.ABSENT, field))
            else:
                conditions.append(condition(ConditionMode.REVISION, field, revision))
        return conditions

    def _class_of(self, key: str) -> StateClass:
        """Return the class that the record has, or gets: it decides how the value is encoded."""
        found = self.after.classes.get(key)
        if found is None:
            found = self.core.rules.resolve(self.scope.scope, key)
            self.after.classes[key] = found
        self._ack = self._ack or self.core.ack_for(found, None)
        return found

    def _delete(self, key: str) -> None:
        self._changes[key] = change(Op.DELETE, field_of(self.scope, key), b"")
        self.after.classes.pop(key, None)
        self.after.kinds.pop(key, None)

    # --- values and numbers

    def _values(self) -> Steps[None]:
        """Set what differs, and ``agent.modified`` in any case: its revision is the agent's."""
        core, codec = self.core, self.core.values.codec
        parts = parts_of(self.state)
        wanted = encoded_values(codec, parts)
        there = self.there.values
        self._check_count(wanted)
        for key, value in parts.values.items():
            if key != MODIFIED and there.get(key) == wanted[key]:
                continue
            field, state_class = field_of(self.scope, key), self._class_of(key)
            encoded = core.values.encode(value, state_class, self.scope.scope.text, key)
            version = self.state.schema_version if key == PROFILE else 1
            if len(encoded.payload) <= INLINE_LIMIT:
                one = core.set_change(0, field, encoded, KEEP, state_class, version)
            else:
                one = yield from self.writes.large_change(
                    self.scope, field, encoded, KEEP, state_class, version
                )
            self._changes[key] = one
        for key in there:
            if key not in wanted:
                self._delete(key)
        self.after.values = wanted

    def _check_count(self, wanted: Mapping[str, bytes]) -> None:
        """Refuse before anything is sent what does not fit into one commit."""
        there, limit = self.there.values, MAX_CHANGES - len(_BESIDE)
        changed = [key for key in {**wanted, **there} if wanted.get(key) != there.get(key)]
        count = sum(key not in _BESIDE for key in changed)
        if count > limit:
            what = "values and numbers (up to three for each tool) that one save changes"
            raise LimitError(what, count, limit, self.scope.scope.text)

    # --- dicts

    def _maps(self) -> Steps[None]:
        codec = self.core.values.codec
        for key, mapping in parts_of(self.state).maps.items():
            wanted = encoded_map(codec, key, mapping)
            there = self.there.maps.get(key, {})
            self.after.maps[key] = wanted
            self.after.kinds[key] = Kind.MAP
            if wanted == there:
                self.after.kinds[key] = self.there.kinds.get(key, Kind.MAP)
                continue
            if not wanted:
                self._delete(key)
                continue
            diff = map_diff(mapping, wanted, there)
            by_field = self.there.kinds.get(key, Kind.MAP) == Kind.MAP
            count = max(len(diff.changed), len(diff.removed))
            state_class = self._class_of(key)
            if by_field and diff.size <= INLINE_LIMIT and count <= MAX_ELEMENTS:
                self._changes[key] = self.partial.merge_change(
                    field_of(self.scope, key),
                    self.partial.fields(self.scope, key, diff.changed, state_class),
                    diff.removed,
                    state_class,
                    KEEP,
                )
            else:
                encode, name = self.core.values.encode_element, self.scope.scope.text
                fields = {
                    field: encode(value, state_class, name, key)
                    for field, value in zip(wanted, mapping.values(), strict=True)
                }
                yield from self._replace(key, fields, state_class)

    # --- messages

    def _conversation(self) -> Steps[None]:
        messages, before = self._messages, self.there.conversation
        missing = messages.missing if isinstance(messages, Conversation) else 0
        kept = self._kept(messages, missing)
        if isinstance(messages, Conversation):
            self._taken = [], messages.edits
            added = messages.encoded(kept - missing)
        else:
            self._taken = [*messages], 0
            encode = self.core.values.codec.encode
            added = [encode(as_stored(message)) for message in messages[kept:]]
        self._stored = added, kept - missing
        total = kept + len(added)
        self.after.conversation = before
        if not added and kept == before.count:
            if CONVERSATION in self.there.kinds:
                self.after.kinds[CONVERSATION] = self.there.kinds[CONVERSATION]
            return
        if not total:
            self.after.conversation = Head(0, 0, "")
            self._delete(CONVERSATION)
            return
        state_class = self._class_of(CONVERSATION)
        size = sum(map(len, added))
        elements = self._sealed(added, state_class)
        lies = self.there.kinds.get(CONVERSATION, Kind.LIST) == Kind.LIST
        appends = lies and kept == before.count and (missing or size <= INLINE_LIMIT)
        if appends and size <= _MOST_INLINE and len(added) <= MAX_ELEMENTS:
            field = field_of(self.scope, CONVERSATION)
            one = self.partial.append_change(field, elements, state_class, KEEP)
            generation = before.generation or self.partial.generation_of(one)
            self._changes[CONVERSATION] = one
        else:
            if missing:
                rule = f"must be at most {MAX_ELEMENTS:,} and 4 MiB for one that was loaded in part"
                raise InvalidArgumentError("new messages", len(added), rule)
            if kept and isinstance(messages, Conversation):
                earlier = messages.encoded()[:kept]
                elements = [*self._sealed(earlier, state_class), *elements]
            generation = yield from self._replace(CONVERSATION, elements, state_class)
        self.after.kinds[CONVERSATION] = Kind.LIST
        self.after.conversation = Head(total, (before.size if kept else 0) + size, generation)

    def _kept(self, messages: Any, missing: int) -> int:
        """Return how many stored messages stay where they are: all of them, or none."""
        before, loaded_from = self.there.conversation, self.state.stored
        lies = self.there.kinds.get(CONVERSATION, Kind.LIST) == Kind.LIST
        same = loaded_from is not None and loaded_from.conversation[0::2] == before[0::2]
        if (
            lies
            and same
            and isinstance(messages, Conversation)
            and messages.begins_with_stored(before.count - missing, self.there.home)
        ):
            return before.count
        if missing:
            rule = "was loaded in part: only add to it, or load all of it to change it"
            raise InvalidArgumentError("conversation", messages, rule)
        return 0

    def _sealed(self, elements: list[bytes], state_class: StateClass) -> list[bytes]:
        """Return encoded messages as their class stores them."""
        behaviour, values = BEHAVIOURS[state_class], self.core.values
        if behaviour.strict:
            for element in elements:
                validate_external(values.codec.decode(element))
        if behaviour.encrypt:
            text = self.scope.scope.text
            return [values.encrypt(element, text, CONVERSATION) for element in elements]
        return elements

    def _settle(self) -> None:
        """Let the state know that it is stored."""
        if self._stored is None:
            return
        self.state.stored = self.after
        messages = self._messages
        sent, edits = self._taken
        if self.state.conversation is not messages:
            return  # another one was put there while this one was sent
        if not isinstance(messages, Conversation):
            if [*map(id, messages)] != [*map(id, sent)]:
                return
            # From now on it knows which of its messages are stored.
            codec = MessageCodec(self.core.values.codec, self.scope.scope.text, CONVERSATION)
            self.state.conversation = messages = Conversation.of(codec, messages)
        elif messages.edits != edits:
            messages.home = None  # nobody knows any more which of them are stored
            return
        messages.settle(*self._stored, self.after.home)
