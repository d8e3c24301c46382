"""How the objects of a backup are encrypted: a key of its own for each object, AES-256-GCM frames.

The key of an object is derived from a data key by HKDF-SHA256 (RFC 5869) with a random salt, so
that a counter can be the nonce and no nonce is ever used twice with a key. Each frame is
authenticated together with the object's header, its number, and whether it is the last: frames
cannot be swapped, left out, or moved to another object. The derivation also yields a check that
stands in the header: it tells a wrong key from a damaged object, and commits the object to one key
(which GCM by itself does not).
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any, Final, NamedTuple

from llmspell_dist.errors import InvalidArgumentError, needs_package

__all__ = ["KEY_BYTES", "SALT_BYTES", "TAG_BYTES", "DataKey", "ObjectKey", "derive"]

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
TAG_BYTES: Final = 16
_INFO: Final = b"llmspell-dist backup object 1"
_CHECK: Final = b"llmspell-dist backup data key 1"
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class DataKey:
    """A key that encrypts the objects of one backup; its id may be known to everybody."""

    __slots__ = ("id", "secret")

    def __init__(self, id: str, secret: bytes) -> None:  # noqa: A002 - as the attribute
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise InvalidArgumentError("key id", id, "must be 32 lower-case hex digits")
        if len(secret) != KEY_BYTES:
            raise InvalidArgumentError("key", f"{len(secret)} bytes", f"must have {KEY_BYTES}")
        self.id = id
        self.secret = bytes(secret)

    @classmethod
    def new(cls) -> DataKey:
        """Return a new random key with a new random id."""
        return cls(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES))

    @property
    def check(self) -> bytes:
        """Sixteen bytes that tell this key from every other one and give nothing away."""
        return hmac.digest(self.secret, _CHECK + bytes.fromhex(self.id), "sha256")[:16]

    def __repr__(self) -> str:
        return f"DataKey({self.id!r}, ...)"


class ObjectKey(NamedTuple):
    """What one object is encrypted with."""

    aead: Any
    """Encrypts and decrypts frames."""
    check: bytes
    """Thirty-two bytes for the header."""

    def __repr__(self) -> str:
        return "ObjectKey(...)"

    def encrypt(self, frame: memoryview, header_hash: bytes, number: int, *, last: bool) -> bytes:
        """Return a frame's ciphertext and tag."""
        sealed: bytes = self.aead.encrypt(_nonce(number), frame, _bound(header_hash, number, last))
        return sealed

    def decrypt(self, frame: memoryview, header_hash: bytes, number: int, *, last: bool) -> bytes:
        """Return a frame; ``ValueError`` if it is not exactly what `encrypt` was given."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - loaded by now

        try:
            opened: bytes = self.aead.decrypt(
                _nonce(number), frame, _bound(header_hash, number, last)
            )
        except InvalidTag:
            raise ValueError(f"frame {number} is not authentic") from None
        return opened


def derive(key: DataKey, salt: bytes, head: bytes) -> ObjectKey:
    """Return the key of one object; `head` is what stands before the salt in its header."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - optional
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - optional
    except ImportError:
        rule = needs_package("cryptography", "backup")
        raise InvalidArgumentError("encryption", "aes-256-gcm", rule) from None
    okm = HKDF(SHA256(), 2 * KEY_BYTES, salt, _INFO + head).derive(key.secret)
    return ObjectKey(AESGCM(okm[:KEY_BYTES]), okm[KEY_BYTES:])


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(header_hash: bytes, number: int, last: bool) -> bytes:
    return header_hash + number.to_bytes(4, "big") + (b"\1" if last else b"\0")
