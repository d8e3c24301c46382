"""New bearer tokens: a secret for the client, and the digest that the access file keeps.

**Why no slow hash.** bcrypt and its like make guessing a *human's* password dear. A secret from
here has 256 random bits: whoever steals the digests would need 2^255 tries, and a hash that is a
million times slower changes nothing but the cost of each request. Only secrets of this form are
accepted, so nobody can put the digest of a password into the file and have it work.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final, NamedTuple
from zlib import crc32

__all__ = [
    "SECRET_CHARACTERS",
    "SECRET_PREFIX",
    "NewToken",
    "digest_of",
    "is_well_formed",
    "new_token",
]

SECRET_PREFIX: Final = "llms_"  # noqa: S105 - what every secret begins with
"""Lets secret scanners find a token that was committed somewhere."""
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS: Final = 256
_RANDOM_CHARACTERS: Final = 43
"""62^43 is just over 2^256."""
_CHECK_CHARACTERS: Final = 6
SECRET_CHARACTERS: Final = len(SECRET_PREFIX) + _RANDOM_CHARACTERS + _CHECK_CHARACTERS


class NewToken(NamedTuple):
    """A token that nobody has yet; its ``repr`` does not show the secret."""

    secret: str
    """What the client sends. It is shown once and stored nowhere."""
    sha256: str
    """What the access file keeps."""

    def __repr__(self) -> str:
        return f"NewToken(secret='llms_…', sha256={self.sha256!r})"


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _check(body: str) -> str:
    return _base62(crc32(body.encode()), _CHECK_CHARACTERS)


def new_token() -> NewToken:
    """Return a new secret of 256 random bits, ``llms_`` and a checksum around it, and its digest.

    The checksum tells a mistyped token from an unknown one, and a real one from an example.
    """
    body = SECRET_PREFIX + _base62(secrets.randbits(_RANDOM_BITS), _RANDOM_CHARACTERS)
    secret = body + _check(body)
    return NewToken(secret, sha256(secret.encode()).hexdigest())


def is_well_formed(secret: str) -> bool:
    """Return whether `secret` has the form and the checksum of a minted one."""
    if len(secret) != SECRET_CHARACTERS or not secret.startswith(SECRET_PREFIX):
        return False
    if not secret.isascii():
        return False
    return secret.endswith(_check(secret[:-_CHECK_CHARACTERS]))


def digest_of(secret: str) -> bytes:
    """Return what a secret is looked up by; raises UnicodeEncodeError if it is not ASCII."""
    return sha256(secret.encode("ascii")).digest()
