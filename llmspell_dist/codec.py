"""Values to bytes and back: MessagePack, with extension types for what Python has beyond it.

What goes in comes out equal and of the same type. Anything else is a CodecError that names its
path, before anything is sent: subclasses, enums, objects, datetimes without a time zone, strings
with lone surrogates, bytearrays. A value that contains itself is a CircularReferenceError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any, Final, NoReturn

from msgpack import ExtType, Packer, Timestamp, Unpacker, unpackb

from llmspell_dist.codec_check import (
    CONTAINER_TYPES,
    EXTERNAL_MAX_BYTES,
    EXTERNAL_MAX_DEPTH,
    explain,
    is_sound,
    validate_external_shape,
)
from llmspell_dist.codec_types import (
    FROZENSET,
    LEAF_TYPES,
    SET,
    TUPLE,
    pack_leaf,
    unpack_leaf,
)
from llmspell_dist.errors import CodecError, InvalidArgumentError, LimitError, shorten

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DEFAULT_MAX_DEPTH",
    "EXTERNAL_MAX_BYTES",
    "EXTERNAL_MAX_DEPTH",
    "Codec",
    "decode",
    "decode_number",
    "encode",
    "encode_number",
    "is_number",
    "validate_external",
]

DEFAULT_MAX_BYTES: Final = 10_000_000
DEFAULT_MAX_DEPTH: Final = 128
_MAX_DEPTH: Final = 256
"""MessagePack's own packer gives up at 511 levels; the walks may recurse this deep."""

_KEEP_PACKER_BYTES: Final = 1 << 20
_POOL_LIMIT: Final = 8
_FLAT_DECODES: Final = 6
"""How many nested `unpackb` calls may lie on the C stack, of which each takes some 50 KB."""

_CODES: Final[dict[type, int]] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
_TYPES: Final[dict[int, type]] = {code: cls for cls, code in _CODES.items()}
_timestamp: Final = re.compile(
    # Begins with the rare byte, which is looked for as fast as memory allows.
    rb"\xff(?:(?<=[\xd4-\xd8].)|(?<=\xc7..)|(?<=\xc8...)|(?<=\xc9.....))",
    re.DOTALL,
).search


# What MessagePack writes before arrays and maps, and before byte strings and extension types.
_NESTING_HEADERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_ODD_HEADERS: Final = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
_NO_HEADERS: Final = bytes(set(range(256)) - set(_NESTING_HEADERS) - set(_ODD_HEADERS))
_HEADER_SIZES: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}
_SMALL: Final = 2048
_UNPACKER_STACK: Final = 1024


_FLAT_FIELDS: Final = 64
_PLAIN_LEAVES: Final = frozenset({str, bytes, int, float, bool, type(None)})


class _TooNestedError(Exception):
    """Tuples and sets nest deeper than the codec allows."""


class Codec:
    """Encodes and decodes values within limits; safe to share between threads.

    `max_bytes` counts the encoded value, `max_depth` the containers around the innermost part.
    """

    __slots__ = (
        "_ext_hook",
        "_ext_hooks",
        "_fill",
        "_pools",
        "_skippers",
        "max_bytes",
        "max_depth",
    )

    def __init__(
        self, max_bytes: int = DEFAULT_MAX_BYTES, max_depth: int = DEFAULT_MAX_DEPTH
    ) -> None:
        if type(max_bytes) is not int or not 1 <= max_bytes <= 512_000_000:
            rule = "must be an int from 1 to 512,000,000"
            raise InvalidArgumentError("max_bytes", max_bytes, rule)
        if type(max_depth) is not int or not 1 <= max_depth <= _MAX_DEPTH:
            rule = f"must be an int from 1 to {_MAX_DEPTH}"
            raise InvalidArgumentError("max_depth", max_depth, rule)
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        # A packer is one buffer: not for two threads, nor for a tuple inside of what it packs. So
        # each call takes one out of its level's pool.
        self._pools: list[list[Callable[[Any], bytes]]] = [[] for _ in range(max_depth + 1)]
        self._ext_hooks = [partial(self._unpack_ext, level) for level in range(max_depth + 1)]
        self._skippers: list[Any] = []
        self._fill = b"\x91" * (_UNPACKER_STACK - max_depth)
        self._ext_hook = self._ext_hooks[0]

    def __repr__(self) -> str:
        return f"Codec(max_bytes={self.max_bytes}, max_depth={self.max_depth})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Codec, (self.max_bytes, self.max_depth)

    # -- encode

    def encode(self, value: Any) -> bytes:
        """Return the bytes of `value`.

        Raises CodecError, CircularReferenceError or LimitError with the path. Leaves `value` as it
        is.
        """
        pool = self._pools[0]
        try:
            try:
                pack = pool.pop()  # asked for, not looked up first: another thread may be quicker
            except IndexError:
                pack = self._packer(0)
            packed = pack(value)
        except Exception:  # noqa: BLE001 - whatever it was, the walk finds the reason
            self._refuse(value)
        size = len(packed)
        if size > self.max_bytes:
            raise LimitError("bytes of the encoded value", size, self.max_bytes, "$")
        if (
            # The shape of most: leaves only. A look at their types costs less than at their bytes.
            not (type(value) is dict and _are_leaves(value))
            and not self._is_plain(packed, size)
            and not self._is_sound(value)
        ):
            self._refuse(value)
        if size <= _KEEP_PACKER_BYTES and len(pool) < _POOL_LIMIT:
            pool.append(pack)  # a larger one is dropped, else its grown buffer would stay for good
        return packed

    def _is_plain(self, packed: bytes, size: int) -> bool:
        """Return whether `packed` alone shows that nothing is wrong; False means: have a look.

        MessagePack packs some things silently that we cannot give back (bytearray, memoryview, its
        own ExtType and Timestamp) and nests deeper than we allow. A walk over the value in Python
        costs more than packing it; the headers of all these are rare bytes, outside of ASCII.
        """
        if size <= _SMALL:
            headers = packed.translate(None, _NO_HEADERS)
            return len(headers) <= self.max_depth and not headers.strip(_NESTING_HEADERS)
        # The outermost header is looked at alone: its length may hold any byte.
        if packed[0] in _ODD_HEADERS:
            return False
        start = _HEADER_SIZES.get(packed[0], 1)
        for byte in _ODD_HEADERS:
            if packed.find(byte, start) >= 0:
                return False
        # The unpacker's stack has 1,024 places. Fill all but `max_depth` of them, then skip.
        pool = self._skippers
        try:
            skipper = pool.pop()
        except IndexError:
            skipper = self._skipper()
        try:
            skipper.feed(self._fill)
            skipper.feed(packed)
            skipper.skip()
        except Exception:  # noqa: BLE001 - too deep; the walk will tell
            return False
        if size <= _KEEP_PACKER_BYTES and len(pool) < _POOL_LIMIT:
            pool.append(skipper)
        return True

    def _skipper(self) -> Any:
        # By default an unpacker allocates 1 MiB.
        return Unpacker(read_size=1 << 16, max_buffer_size=self.max_bytes + 2 * _UNPACKER_STACK)

    def _is_sound(self, value: Any) -> bool:
        if type(value) in CONTAINER_TYPES:
            return is_sound(value, self.max_depth)
        return type(value) in LEAF_TYPES

    def _packer(self, level: int) -> Callable[[Any], bytes]:
        pack: Callable[[Any], bytes]
        pack = Packer(default=partial(self._pack_ext, level), strict_types=True).pack
        return pack

    def _pack_ext(self, level: int, value: Any) -> ExtType:
        cls: type = type(value)
        code = _CODES.get(cls)
        if code is None:
            return ExtType(*pack_leaf(value))
        if level == 0 and not is_sound(value, self.max_depth):
            # Checked before the first nested packer starts: each of them has 511 levels of the C
            # stack to itself.
            raise _TooNestedError
        level += 1
        if level > self.max_depth:
            raise _TooNestedError
        pool = self._pools[level]
        try:
            pack = pool.pop()
        except IndexError:
            pack = self._packer(level)
        if code == TUPLE:
            payload = pack(list(value))
        else:
            # In byte order, so that equal sets of one type have equal bytes.
            items = sorted(map(pack, value))
            payload = _array_header(len(items)) + b"".join(items)
        if len(payload) <= _KEEP_PACKER_BYTES and len(pool) < _POOL_LIMIT:
            pool.append(pack)
        return ExtType(code, payload)

    def _refuse(self, value: Any) -> NoReturn:
        error = explain(value, self.max_depth)
        if error is None:
            error = CodecError("$", "the value changed while it was encoded, or is too large")
        raise error from None

    # -- decode

    def decode(self, payload: bytes | memoryview) -> Any:
        """Return the value of `payload`.

        Raises CodecError for bytes that no encode returned, LimitError beyond the limits. Arrays
        and maps of foreign bytes may nest up to the unpacker's own 1,024 levels.
        """
        if type(payload) is not bytes:
            payload = bytes(payload)
        if len(payload) > self.max_bytes:
            raise LimitError("bytes of the encoded value", len(payload), self.max_bytes, "$")
        try:
            value = unpackb(payload, strict_map_key=False, ext_hook=self._ext_hook)
        except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds for bad bytes
            raise self._unreadable(error) from None
        # MessagePack's own timestamps (code -1) do not pass through the hook. No text holds 0xFF,
        # so this costs one memchr nearly always.
        if 255 in payload and _timestamp(payload) and _has_timestamp(value):
            raise CodecError("$", "unknown extension type -1")
        return value

    def _unpack_ext(self, level: int, code: int, data: bytes) -> Any:
        cls = _TYPES.get(code)
        if cls is None:
            try:
                return unpack_leaf(code, data)
            except KeyError:
                raise CodecError("$", f"unknown extension type {code}") from None
        level += 1
        if level > self.max_depth:
            raise _TooNestedError
        hook = self._ext_hooks[level]
        if level <= _FLAT_DECODES:
            items = unpackb(data, strict_map_key=False, ext_hook=hook)
        else:
            # The same with its state on the heap.
            unpacker = Unpacker(
                strict_map_key=False, ext_hook=hook, max_buffer_size=max(len(data), 16)
            )
            unpacker.feed(data)
            items = unpacker.unpack()
            if unpacker.tell() != len(data):
                raise CodecError("$", "the bytes go on after the value")
        if type(items) is not list:
            raise CodecError("$", f"the {cls.__name__} is not an array")
        return cls(items)

    def _unreadable(self, error: Exception) -> CodecError | LimitError:
        if isinstance(error, (CodecError, LimitError)):
            return error
        if isinstance(error, (_TooNestedError, RecursionError)):
            return LimitError("levels of nesting", None, self.max_depth, "$")
        kind = type(error).__name__
        if kind == "StackError":
            return LimitError("levels of nesting", None, self.max_depth, "$")
        if kind == "ZoneInfoNotFoundError":
            return CodecError("$", f"time zone {shorten(error.args[-1])} is not known here")
        if kind == "ExtraData":
            return CodecError("$", "the bytes go on after the value")
        return CodecError("$", f"the bytes cannot be read ({kind})")


def _are_leaves(value: dict[Any, Any]) -> bool:
    return (
        len(value) <= _FLAT_FIELDS
        and _PLAIN_LEAVES.issuperset(map(type, value))
        and _PLAIN_LEAVES.issuperset(map(type, value.values()))
    )


def _array_header(size: int) -> bytes:
    if size < 16:
        return bytes((0x90 | size,))
    if size < 1 << 16:
        return b"\xdc" + size.to_bytes(2, "big")
    return b"\xdd" + size.to_bytes(4, "big")


def _has_timestamp(value: Any) -> bool:
    todo = [value]
    while todo:
        part = todo.pop()
        cls = type(part)
        if cls is Timestamp:
            return True
        if cls is dict:
            todo.extend(part)
            todo.extend(part.values())
        elif cls in CONTAINER_TYPES:
            todo.extend(part)
    return False


_DEFAULT: Final = Codec()


def encode(value: Any) -> bytes:
    """Return the bytes of `value`, within the default limits; see `Codec.encode`."""
    return _DEFAULT.encode(value)


def decode(payload: bytes | memoryview) -> Any:
    """Return the value of `payload`, within the default limits; see `Codec.decode`."""
    return _DEFAULT.decode(payload)


# --- numbers --------------------------------------------------------------------------------------

_INT = re.compile(rb"-?[0-9]{1,19}").fullmatch
_FLOAT = re.compile(rb"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?").fullmatch
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


def is_number(value: Any) -> bool:
    """Return whether `value` is stored as a number: an int of 64 bits or a finite float."""
    cls = type(value)
    if cls is int:
        return bool(_INT64_MIN <= value <= _INT64_MAX)
    return cls is float and isfinite(value)


def encode_number(value: float) -> bytes:
    """Return `value` as decimal text that reads back equal and of the same type.

    Raises CodecError unless `is_number`.
    """
    if not is_number(value):
        raise CodecError("$", f"{shorten(value)} is no int of 64 bits and no finite float")
    return repr(value).encode()


def decode_number(payload: bytes | memoryview) -> int | float:
    """Return the number that stands in `payload` as decimal text: a float if it has a . or an e."""
    text = payload if type(payload) is bytes else bytes(payload)
    if _INT(text):
        number = int(text)
        if _INT64_MIN <= number <= _INT64_MAX:
            return number
    elif _FLOAT(text):
        real = float(text)
        if isfinite(real):
            return real
    raise CodecError("$", f"{shorten(text)} is no number")


_EXTERNAL: Final = Codec(EXTERNAL_MAX_BYTES, EXTERNAL_MAX_DEPTH)


def validate_external(value: Any) -> None:
    """Check a value from outside: the shape of JSON, at most 32 levels, at most 1 MiB encoded.

    Raises CodecError, CircularReferenceError or LimitError with the path.
    """
    validate_external_shape(value)
    _EXTERNAL.encode(value)
