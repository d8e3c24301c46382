"""Compresses answers for clients that take it, when it pays."""

from __future__ import annotations

import gzip
from typing import Final

import zstandard

__all__ = ["packed"]

_LEAST: Final = 1024
_zstd: Final = zstandard.ZstdCompressor(level=3)


def packed(body: bytes, accept: bytes | None) -> tuple[bytes, bytes | None]:
    """Return a body, compressed if the client takes zstd or gzip, and the name of what was used."""
    if accept is None or len(body) < _LEAST:
        return body, None
    offered = _offered(accept)
    best = max(_PACKERS, key=lambda name: offered.get(name, 0.0))  # of the same weight: zstd
    if not offered.get(best):
        return body, None
    return _PACKERS[best](body), best


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, 1, mtime=0)


_PACKERS: Final = {b"zstd": _zstd.compress, b"gzip": _gzip}


def _offered(accept: bytes) -> dict[bytes, float]:
    """Return the weight of each encoding that is named: RFC 9110, 12.5.3."""
    found = {}
    for part in accept[:256].lower().split(b","):
        name, _, parameter = part.partition(b";")
        key, _, weight = parameter.replace(b" ", b"").partition(b"=")
        try:
            found[name.strip()] = float(weight) if key == b"q" else 1.0
        except ValueError:
            found[name.strip()] = 0.0
    return found
