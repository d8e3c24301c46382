"""What a handle's own commit makes of the state that it holds.

The bytes are taken before the commit is sent: whatever the caller does with his objects meanwhile,
the handle holds what was stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from llmspell_dist.agents.conversation import Conversation
from llmspell_dist.agents.layout import CONTEXT, CONVERSATION, CUSTOM
from llmspell_dist.agents.messages import MessageCodec
from llmspell_dist.agents.model import AgentState
from llmspell_dist.agents.snapshot import Snapshot
from llmspell_dist.agents.updates import Update
from llmspell_dist.changes import Op
from llmspell_dist.codec import Codec
from llmspell_dist.records import Head, Kind

__all__ = ["Own"]

_VARIABLES: Final = (CONTEXT, CUSTOM)


@dataclass(slots=True)
class Own:
    """A commit of the handle's own, encoded as it was sent."""

    codec: Codec
    values: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    """What was added to each."""
    maps: dict[str, dict[bytes, bytes | None]] = field(default_factory=dict)
    """What was set; None: removed."""
    messages: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, codec: Codec, updates: Sequence[Update]) -> Self:
        """Return what these updates will have done."""
        own, encode = cls(codec), codec.encode
        for update in updates:
            if update.op == Op.INCREMENT:
                own.numbers[update.key] = update.value
            elif update.op == Op.APPEND:
                own.messages += [encode(element) for element in update.value]
            elif update.op == Op.MERGE:
                fields: dict[bytes, bytes | None] = {
                    encode(name): encode(value) for name, value in update.value.items()
                }
                own.maps[update.key] = fields | dict.fromkeys(map(encode, update.removed))
            else:
                own.values[update.key] = encode(update.value)
        return own

    @property
    def keys(self) -> list[str]:
        """The keys that it changed."""
        said = [CONVERSATION] if self.messages else []
        return [*said, *self.values, *self.numbers, *self.maps]

    def follow(self, state: AgentState, scope: str, generations: Mapping[str, str]) -> None:
        """Let the state's messages and variables, and what is known to be stored, follow.

        `generations`: where the elements of a list that it began lie, as far as that is known.
        """
        if self.messages:
            self._follow_messages(state, scope, generations)
        for key in _VARIABLES:
            variables = state.context if key == CONTEXT else state.custom
            for raw_name, raw in self.maps.get(key, {}).items():
                name = self.codec.decode(raw_name)
                if raw is None:
                    variables.pop(name, None)
                else:
                    variables[name] = self.codec.decode(raw)
        if state.stored is not None:
            self._follow_stored(state.stored)

    def _follow_messages(
        self, state: AgentState, scope: str, generations: Mapping[str, str]
    ) -> None:
        codec = MessageCodec(self.codec, scope, CONVERSATION)
        conversation, raws = state.conversation, self.messages
        place = len(conversation)
        conversation.extend(codec.decode_many(raws))
        stored = state.stored
        if stored is None:
            return
        before, home = stored.conversation, stored.home
        generation = before.generation or generations.get(CONVERSATION, "")
        size = before.size + sum(map(len, raws))
        stored.conversation = Head(before.count + len(raws), size, generation)
        stored.kinds.setdefault(CONVERSATION, Kind.LIST)
        if (
            isinstance(conversation, Conversation)
            and place + conversation.missing == before.count
            and (not before.count or conversation.home == home)
        ):
            conversation.settle(raws, place, stored.home)

    def _follow_stored(self, stored: Snapshot) -> None:
        stored.values.update(self.values)
        for key, added in self.numbers.items():
            # From what is stored, not from the state: that may have been changed by hand.
            raw = stored.values.get(key)
            number = 0 if raw is None else self.codec.decode(raw)
            stored.values[key] = self.codec.encode(number + added)
        for key, fields in self.maps.items():
            there = stored.maps.setdefault(key, {})
            for name, value in fields.items():
                if value is None:
                    there.pop(name, None)
                else:
                    there[name] = value
