"""A message as an element of the stored list, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

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

__all__ = ["MessageCodec", "as_stored"]

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
