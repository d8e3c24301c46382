"""The seam at which sensitive values are encrypted."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["ValueCipher"]


@runtime_checkable
class ValueCipher(Protocol):
    """Encrypts payloads at rest.

    `associated_data` names the place of the value (namespace, scope, key): a ciphertext that is
    moved elsewhere must not decrypt. Both methods are synchronous, do no I/O, may be called from
    several threads, and raise an exception rather than return something wrong.
    """

    def encrypt(self, plaintext: bytes, *, associated_data: bytes) -> bytes:
        """Return the ciphertext, with all that `decrypt` needs to know (key id, nonce, tag)."""
        ...

    def decrypt(self, ciphertext: bytes, *, associated_data: bytes) -> bytes:
        """Return the plaintext; raise if the ciphertext or `associated_data` is not authentic."""
        ...
