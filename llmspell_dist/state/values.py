"""Values to payloads and back: the kind that a value is stored as, and what its class does."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.codec import Codec, decode_number, encode_number, validate_external
from llmspell_dist.errors import (
    CipherNotConfiguredError,
    CodecError,
    CorruptRecordError,
    LimitError,
    SpellError,
)
from llmspell_dist.records import ENCRYPTED, ZSTD, Kind
from llmspell_dist.state.large import INLINE_LIMIT, Pieces
from llmspell_dist.typed import is_model, to_builtin

if TYPE_CHECKING:
    from llmspell_dist.security.cipher import ValueCipher

__all__ = ["Encoded", "Values"]

_INT64: Final = 2**63
_COMPRESS_FROM: Final = 64
_JOINED_BYTES: Final = 512_000_000
_PLAIN: Final = frozenset(
    state_class
    for state_class, does in BEHAVIOURS.items()
    if not (does.strict or does.compress or does.encrypt)
)
"""Classes whose values are stored just as they are encoded."""
_NUMBER, _VALUE = int(Kind.NUMBER), int(Kind.VALUE)


class Encoded(NamedTuple):
    """A value ready to be stored."""

    kind: int
    flags: int
    payload: bytes | Pieces


class Values:
    """Encodes and decodes values by their state class."""

    def __init__(self, codec: Codec, cipher: ValueCipher | None = None) -> None:
        self.codec = codec
        self.cipher = cipher
        # A list may grow beyond what one value may have.
        self._joined = Codec(_JOINED_BYTES, codec.max_depth)

    def encode(  # noqa: C901 - one case after the other
        self,
        value: Any,
        state_class: StateClass,
        scope: str,
        key: str,
    ) -> Encoded:
        """Encode one value; what cannot be stored raises before anything is sent."""
        if state_class in _PLAIN:
            kind = type(value)
            if kind is int:
                if -_INT64 <= value < _INT64:
                    return Encoded(_NUMBER, 0, b"%d" % value)
            elif kind is float and isfinite(value):
                return Encoded(_NUMBER, 0, encode_number(value))
            elif (kind is str or kind is bytes) and len(value) > INLINE_LIMIT:
                return Encoded(_VALUE, 0, Pieces(value, self.codec.max_bytes))
            return Encoded(_VALUE, 0, self._pack(value))
        behaviour = BEHAVIOURS[state_class]
        if behaviour.strict:
            validate_external(value)
        if not behaviour.encrypt and type(value) in (int, float):
            if type(value) is float and isfinite(value):
                return Encoded(_NUMBER, 0, encode_number(value))
            if type(value) is int and -_INT64 <= value < _INT64:
                return Encoded(_NUMBER, 0, b"%d" % value)
        payload, flags = self._pack(value), 0
        if behaviour.compress and len(payload) >= _COMPRESS_FROM:
            import zstandard  # noqa: PLC0415 - only for what is compressed

            smaller = zstandard.ZstdCompressor(level=3).compress(payload)
            if len(smaller) < len(payload):
                payload, flags = smaller, ZSTD
        if behaviour.encrypt:
            payload, flags = self.encrypt(payload, scope, key), flags | ENCRYPTED
        return Encoded(_VALUE, flags, payload)

    def encode_element(self, value: Any, state_class: StateClass, scope: str, key: str) -> bytes:
        """Encode one element of a list or map."""
        if state_class in _PLAIN:
            return self._pack(value)
        behaviour = BEHAVIOURS[state_class]
        if behaviour.strict:
            validate_external(value)
        payload = self._pack(value)
        return self.encrypt(payload, scope, key) if behaviour.encrypt else payload

    def as_stored(self, value: Any) -> Any:
        """Return the value as it will come back: a copy that does not follow the original."""
        return self.codec.decode(self._pack(value))

    def _pack(self, value: Any) -> bytes:
        try:
            return self.codec.encode(value)
        except CodecError:
            if not is_model(value):
                raise
            return self.codec.encode(to_builtin(value))

    def encrypt(self, payload: bytes, scope: str, key: str) -> bytes:
        """Encrypt for the class Sensitive; without a cipher nothing is stored in the clear."""
        if self.cipher is None:
            raise CipherNotConfiguredError(scope, key)
        return self.cipher.encrypt(payload, associated_data=_bound_to(key))

    def decode(self, kind: int, flags: int, payload: bytes, scope: str, key: str) -> Any:
        """Decode a payload; one that cannot be read is a `CorruptRecordError` naming its place."""
        try:
            if kind == _NUMBER:
                return decode_number(payload)
            return self.codec.decode(self.plain(flags, payload, scope, key) if flags else payload)
        except (CodecError, LimitError, ValueError) as error:
            if isinstance(error, CorruptRecordError | CipherNotConfiguredError):
                raise
            raise CorruptRecordError(scope, key, f"its value cannot be read: {error}") from None

    def decode_joined(self, header: bytes, parts: Sequence[bytes], scope: str, key: str) -> Any:
        """Decode elements behind the header of their array or map, in one pass."""
        try:
            return self._joined.decode(b"".join((header, *parts)))
        except (CodecError, LimitError, ValueError) as error:
            raise CorruptRecordError(scope, key, f"its elements cannot be read: {error}") from None

    def plain(self, flags: int, payload: bytes, scope: str, key: str) -> bytes:
        """Undo encryption and compression."""
        if flags & ENCRYPTED:
            if self.cipher is None:
                raise CipherNotConfiguredError(scope, key)
            try:
                payload = self.cipher.decrypt(payload, associated_data=_bound_to(key))
            except SpellError:
                raise
            except Exception as error:  # noqa: BLE001 - a foreign cipher may raise anything
                reason = f"its value cannot be decrypted ({type(error).__name__})"
                raise CorruptRecordError(scope, key, reason) from None
        if flags & ZSTD:
            # A frame may claim any size: read no more than a value may have.
            import zstandard  # noqa: PLC0415

            most = self.codec.max_bytes
            try:
                with zstandard.ZstdDecompressor().stream_reader(payload) as reader:
                    payload = reader.read(most + 1)
            except zstandard.ZstdError as error:
                raise CorruptRecordError(
                    scope, key, f"its value cannot be unpacked: {error}"
                ) from None
            if len(payload) > most:
                raise LimitError("bytes of a value", len(payload), most, f"{scope} {key}")
        return payload


def _bound_to(key: str) -> bytes:
    """Return what an encrypted value is bound to: its key, not its scope (it may be copied)."""
    return b"llmspell:1:%b" % key.encode()
