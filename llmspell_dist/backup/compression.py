"""How the objects of a backup are compressed: none, gzip, zstd, lz4.

Every algorithm writes its standard format (RFC 1952, RFC 8878, the LZ4 frame format), so that any
tool can read it. All the work is done in C, outside the interpreter's lock.
"""

from __future__ import annotations

import re
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

import zstandard

from llmspell_dist.errors import InvalidArgumentError, needs_package

__all__ = ["DEFAULT", "NONE", "Algorithm", "Compression", "decompress"]


class Algorithm(IntEnum):
    """What stands in an object's header."""

    NONE = 0
    GZIP = 1
    ZSTD = 2
    LZ4 = 3


_LEVELS: Final = {
    # lowest, highest, default
    Algorithm.NONE: (0, 0, 0),
    Algorithm.GZIP: (1, 9, 6),
    Algorithm.ZSTD: (1, 19, 3),
    Algorithm.LZ4: (0, 0, 0),
}
_TEXT: Final = re.compile(r"(?P<name>none|gzip|zstd|lz4)(?::(?P<level>[0-9]{1,2}))?", re.ASCII)
_RULE: Final = "must be none, gzip, gzip:1 to gzip:9, zstd, zstd:1 to zstd:19, or lz4"


class Compression(NamedTuple):
    """An algorithm and how hard it tries; `parse` makes one and prints back as it was."""

    algorithm: Algorithm
    level: int

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``"zstd:5"``, ``"zstd"``, ``"gzip"``, ``"lz4"`` or ``"none"``."""
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidArgumentError("compression", text, _RULE)
        algorithm = Algorithm[found["name"].upper()]
        lowest, highest, default = _LEVELS[algorithm]
        level = default if found["level"] is None else int(found["level"])
        if not lowest <= level <= highest or (found["level"] and not highest):
            raise InvalidArgumentError("compression", text, _RULE)
        if algorithm is Algorithm.LZ4:
            _lz4()  # so that a missing package is found before a backup has begun
        return cls(algorithm, level)

    def __str__(self) -> str:
        name = self.algorithm.name.lower()
        return f"{name}:{self.level}" if self.level else name

    def compress(self, plain: bytes) -> bytes:
        """Return the compressed bytes, the same for the same bytes and libraries."""
        if self.algorithm is Algorithm.ZSTD:
            return zstandard.ZstdCompressor(level=self.level).compress(plain)
        if self.algorithm is Algorithm.GZIP:
            return zlib.compress(plain, self.level, 31)
        if self.algorithm is Algorithm.LZ4:
            compressed: bytes = _lz4().compress(plain)
            return compressed
        return plain


NONE: Final = Compression(Algorithm.NONE, 0)
DEFAULT: Final = Compression(Algorithm.ZSTD, 3)


def decompress(algorithm: Algorithm, packed: bytes, size: int) -> bytes:
    """Return exactly `size` bytes; never makes more, so that a bomb costs nothing.

    Anything else (damaged, longer, shorter, something behind the end) is a ``ValueError``.
    """
    if algorithm is Algorithm.ZSTD:
        plain = _from_zstd(packed, size)
    elif algorithm is Algorithm.GZIP:
        plain = _from_stream(zlib.decompressobj(31), packed, size, zlib.error)
    elif algorithm is Algorithm.LZ4:
        plain = _from_stream(_lz4().LZ4FrameDecompressor(), packed, size, RuntimeError)
    else:
        plain = packed
    if len(plain) != size:
        raise ValueError(f"{size} bytes were promised, {len(plain)} came out")
    return plain


def _from_zstd(packed: bytes, size: int) -> bytes:
    try:
        # The library makes as much room as the frame asks for, whatever limit it is given.
        promised = zstandard.frame_content_size(packed)
        if promised != size:
            raise ValueError(f"{size} bytes were promised, its zstd frame says {promised}")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _from_stream(stream: Any, packed: bytes, size: int, failure: type[Exception]) -> bytes:
    try:
        plain: bytes = stream.decompress(packed, size + 1)
    except failure as error:
        raise ValueError(str(error)) from None
    if not stream.eof or stream.unused_data:
        raise ValueError(f"it does not end where {size} bytes do")
    return plain


def _lz4() -> Any:
    try:
        import lz4.frame  # noqa: PLC0415 - only who uses it needs the package
    except ImportError:
        rule = needs_package("lz4", "backup")
        raise InvalidArgumentError("compression", "lz4", rule) from None
    return lz4.frame
