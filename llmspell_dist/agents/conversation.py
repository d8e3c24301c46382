"""A conversation as it was loaded: its messages are decoded when somebody looks at them.

Most who load an agent with 10,000 messages look at the last twenty. To everybody else this is the
list of its messages: it equals one, iterates, slices, changes and pickles as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from typing import Any, Final, SupportsIndex, overload

from llmspell_dist.agents.messages import MessageCodec
from llmspell_dist.agents.model import Message
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["Conversation", "Home"]

Home = tuple[str, str, str]
"""Which stored list: namespace, scope, generation of its elements."""

_SOLID: Final = frozenset({str, bytes, int, float, bool, type(None)})
"""Contents that nobody can have changed in place."""
_BLOCK: Final = 256


class Conversation(MutableSequence[Message]):
    """Messages that are decoded on demand; a list to everybody who uses it.

    `missing` counts earlier messages that were left on the server (`load_fast`): length, indexes
    and comparisons are about those that are here.
    """

    __slots__ = ("_codec", "_intact", "_made", "_raw", "edits", "home", "missing")
    __hash__ = None  # type: ignore[assignment] # a list has none either

    def __init__(
        self,
        codec: MessageCodec,
        raw: Iterable[bytes],
        missing: int = 0,
        home: Home | None = None,
    ) -> None:
        self._codec = codec
        self._raw: list[bytes | None] = list(raw)
        self._made: list[Message | None] = [None] * len(self._raw)
        self._intact = len(self._raw)
        """How many messages stand where they were stored in `home`, from the first on."""
        self.missing = missing
        self.home = home
        """The list that they were loaded from or saved as; None: they are not stored."""
        self.edits = 0
        """How often messages were changed, moved or removed; not counted: added to the end."""

    @classmethod
    def of(cls, codec: MessageCodec, messages: Iterable[Message]) -> Conversation:
        """Return a conversation of messages that are not stored yet."""
        conversation = cls(codec, ())
        conversation.extend(messages)
        return conversation

    # --- reading

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            places = range(len(self._raw))[index]
            self._make(places)
            made = self._made
            return [made[place] for place in places]  # type: ignore[misc] # made above
        message = self._made[index]
        if message is None:
            raw = self._raw[index]
            assert raw is not None  # noqa: S101 - one of the two is always there
            message = self._made[index] = self._codec.decode(raw)
        return message

    def _make(self, places: Sequence[int]) -> None:
        """Decode what is not yet decoded, block by block."""
        made, raw = self._made, self._raw
        wanted = [place for place in places if made[place] is None]
        for start in range(0, len(wanted), _BLOCK):
            block = wanted[start : start + _BLOCK]
            messages = self._codec.decode_many([raw[place] for place in block])  # type: ignore[misc]
            for place, message in zip(block, messages, strict=True):
                made[place] = message

    def __iter__(self) -> Iterator[Message]:
        place = 0
        while place < len(self._made):  # as a list's: it may grow meanwhile
            message = self._made[place]
            if message is None:
                self._make(range(place, min(place + _BLOCK, len(self._made))))
                message = self[place]
            yield message
            place += 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Conversation):
            return (
                len(self) == len(other)
                and self.missing == other.missing
                and all(one == two for one, two in zip(self, other, strict=True))
            )
        if not isinstance(other, list):
            return NotImplemented
        return not self.missing and len(self) == len(other) and self[:] == other

    def __repr__(self) -> str:
        before = f", {self.missing:,} earlier ones not loaded" if self.missing else ""
        return f"<Conversation of {len(self):,} messages{before}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # What a message was decoded from is enough, unless it may have been changed in place.
        made = [
            None if raw is not None and (one is None or _is_solid(one)) else one
            for raw, one in zip(self._raw, self._made, strict=True)
        ]
        raw = [*self._raw]  # a copy has its own
        return _restored, (self._codec, raw, made, (self._intact, self.missing, self.home))

    # --- changing

    @overload
    def __setitem__(self, index: SupportsIndex, value: Message) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Message]) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Message | Iterable[Message]) -> None:
        if isinstance(index, slice):
            messages = [_checked(message) for message in value]  # type: ignore[union-attr]
            self._touch(range(len(self._raw))[index])
            self._made[index] = messages
            self._raw[index] = [None] * len(messages)
        else:
            message = _checked(value)
            self._touch((range(len(self._raw))[index],))
            self._made[index] = message
            self._raw[index] = None

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        places = range(len(self._raw))[index]
        self._touch(places if isinstance(places, range) else (places,))
        del self._made[index]
        del self._raw[index]

    def insert(self, index: SupportsIndex, value: Message) -> None:
        """Put a message before another, as `list.insert` does."""
        message = _checked(value)
        place = slice(index, None).indices(len(self._raw))[0]
        self._touch(range(place, place))
        self._made.insert(place, message)
        self._raw.insert(place, None)

    def append(self, value: Message) -> None:
        """Add a message to the end."""
        self._made.append(_checked(value))
        self._raw.append(None)

    def _touch(self, places: Sequence[int]) -> None:
        self.edits += 1
        if places:
            self._intact = min(self._intact, *places[:1], *places[-1:])
        elif isinstance(places, range):  # an empty slice: what is put there pushes the rest
            self._intact = min(self._intact, places.start)

    # --- saving

    def begins_with_stored(self, count: int, home: Home | None) -> bool:
        """Return whether the first `count` messages are still those that were stored in a list.

        Those of another list are not: the state may have been given another's conversation.
        A message cannot be changed, but a list or dict in it can: what was looked at and holds one
        is compared with what it came from.
        """
        if not count and not self.missing:
            return True
        if self.home != home or not 0 <= count <= self._intact:
            return False
        for raw, message in zip(self._raw[:count], self._made, strict=False):
            if (
                raw is not None
                and message is not None
                and not _is_solid(message)
                and self._codec.encode(message) != raw
            ):
                return False
        return True

    def encoded(self, start: int = 0) -> list[bytes]:
        """Return the bytes of the messages from `start` on."""
        encode = self._codec.encode
        return [
            raw if raw is not None and (made is None or _is_solid(made)) else _encoded(encode, made)
            for raw, made in zip(self._raw[start:], self._made[start:], strict=True)
        ]

    def settle(self, encoded: Sequence[bytes], start: int, home: Home) -> None:
        """Note that the messages from `start` on are stored now in a list, as these bytes."""
        self.home = home
        self._raw[start : start + len(encoded)] = encoded
        if self._intact >= start:
            self._intact = max(self._intact, start + len(encoded))


def _encoded(encode: Callable[[Message], bytes], message: Message | None) -> bytes:
    assert message is not None  # noqa: S101 - there is one where there are no bytes
    return encode(message)


def _is_solid(message: Message) -> bool:
    return message.metadata is None and type(message.content) in _SOLID


def _checked(message: Any) -> Message:
    if type(message) is not Message:
        raise InvalidArgumentError("conversation", message, "must hold Message objects")
    return message


def _restored(
    codec: MessageCodec,
    raw: list[bytes | None],
    made: list[Message | None],
    stands: tuple[int, int, Home | None],
) -> Conversation:
    intact, missing, home = stands
    conversation = Conversation(codec, (), missing, home)
    conversation._raw, conversation._made, conversation._intact = raw, made, intact  # noqa: SLF001
    return conversation
