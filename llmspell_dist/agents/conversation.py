"""A conversation as it was loaded: its messages are decoded when somebody looks at them.

Most who load an agent with 10,000 messages look at the last twenty. To everybody else this is the
list of its messages: it equals one, iterates, slices, changes and pickles as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, overload

from llmspell_dist.agents.model import Message, Role
from llmspell_dist.errors import (
    CodecError,
    CorruptRecordError,
    InvalidArgumentError,
    LimitError,
    SpellError,
)

if TYPE_CHECKING:
    from llmspell_dist.codec import Codec

__all__ = ["Conversation", "MessageCodec"]

_SOLID: Final = frozenset({str, bytes, int, float, bool, type(None)})
"""Contents that nobody can have changed in place."""
_BLOCK: Final = 256
_BLOCK_BYTES: Final = 1024 * 1024
_set_role = Message.__dict__["role"].__set__
_set_content = Message.__dict__["content"].__set__
_set_timestamp = Message.__dict__["timestamp"].__set__
_set_metadata = Message.__dict__["metadata"].__set__
_new: Final = object.__new__
_ROLES: Final = {role.value: role for role in Role}


class MessageCodec:
    """Turns messages into stored elements and back.

    An element is a dict: ``role``, ``content``, ``timestamp`` and, if there is any, ``metadata``.
    Fields that a later release may add are left alone.
    """

    __slots__ = ("codec", "key", "scope")

    def __init__(self, codec: Codec, scope: str, key: str) -> None:
        self.codec = codec
        self.scope = scope
        self.key = key

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a message."""
        return self.codec.encode(as_stored(message))

    def decode(self, raw: bytes) -> Message:
        """Return the message of an element; `CorruptRecordError` if it is none."""
        try:
            return self.message(self.codec.decode(raw))
        except (CodecError, LimitError) as error:
            raise CorruptRecordError(self.scope, self.key, f"a message: {error}") from None

    def decode_many(self, raws: Sequence[bytes]) -> list[Message]:
        """Return the messages of many elements, unpacked together where they are small."""
        if sum(map(len, raws)) > _BLOCK_BYTES:
            return [self.decode(raw) for raw in raws]
        header = b"\xdd" + len(raws).to_bytes(4, "big")
        try:
            return [self.message(each) for each in self.codec.decode(b"".join((header, *raws)))]
        except SpellError:
            return [self.decode(raw) for raw in raws]  # which one it was

    def message(self, stored: Any) -> Message:
        """Return the message of a decoded element; `CorruptRecordError` if it is none."""
        message: Message = _new(Message)
        try:
            _set_role(message, _ROLES[stored["role"]])
            _set_content(message, stored["content"])
            _set_timestamp(message, stored["timestamp"])
            _set_metadata(message, stored.get("metadata"))
            if type(stored["timestamp"]) is datetime:
                return message
        except (KeyError, TypeError, AttributeError):
            pass
        raise CorruptRecordError(self.scope, self.key, "it holds what is no message")


def as_stored(message: Message) -> dict[str, Any]:
    """Return what stands in the list for a message."""
    if type(message) is not Message:
        raise InvalidArgumentError("conversation", message, "must hold Message objects")
    stored = {
        "role": message.role.value,
        "content": message.content,
        "timestamp": message.timestamp,
    }
    if message.metadata is not None:
        stored["metadata"] = message.metadata
    return stored


class Conversation(MutableSequence[Message]):
    """Messages that are decoded on demand; a list to everybody who uses it.

    `missing` counts earlier messages that were left on the server (`load_fast`): length, indexes
    and comparisons are about those that are here.
    """

    __slots__ = ("_codec", "_intact", "_made", "_raw", "missing")
    __hash__ = None  # type: ignore[assignment] # a list has none either

    def __init__(self, codec: MessageCodec, raw: Iterable[bytes], missing: int = 0) -> None:
        self._codec = codec
        self._raw: list[bytes | None] = list(raw)
        self._made: list[Message | None] = [None] * len(self._raw)
        self._intact = len(self._raw)
        """How many messages stand where they were stored, from the first on."""
        self.missing = missing

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
        return _restored, (self._codec, self._raw, made, self._intact, self.missing)

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
        self._intact = min(self._intact, place)
        self._made.insert(place, message)
        self._raw.insert(place, None)

    def append(self, value: Message) -> None:
        """Add a message to the end."""
        self._made.append(_checked(value))
        self._raw.append(None)

    def _touch(self, places: Sequence[int]) -> None:
        if places:
            self._intact = min(self._intact, *places[:1], *places[-1:])
        elif isinstance(places, range):  # an empty slice: what is put there pushes the rest
            self._intact = min(self._intact, places.start)

    # --- saving

    def begins_with_stored(self, count: int) -> bool:
        """Return whether the first `count` messages are still those that were stored.

        A message cannot be changed, but a list or dict in it can: what was looked at and holds one
        is compared with what it came from.
        """
        if self._intact < count:
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

    def settle(self, encoded: Sequence[bytes], start: int = 0) -> None:
        """Note that the messages from `start` on are stored now, as these bytes."""
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
    intact: int,
    missing: int,
) -> Conversation:
    conversation = Conversation(codec, (), missing)
    conversation._raw, conversation._made, conversation._intact = raw, made, intact  # noqa: SLF001
    return conversation
