"""What can go wrong with key-encryption keys.

::

    SpellError
     └ KeyProviderError
         └ KeyProviderUnavailableError
"""

from __future__ import annotations

from llmspell_dist.errors import SpellError, shorten

__all__ = ["KeyProviderError", "KeyProviderUnavailableError"]


class KeyProviderError(SpellError):
    """A key-encryption key is missing, unusable or another one; the key itself is never told."""

    code = "KEY_PROVIDER"

    def __init__(self, provider: str, version: str, reason: str) -> None:
        self.provider = provider
        """``file``, ``environment``, ``aws-kms`` or the name of another one."""
        self.version = version
        """The version of the key; empty if it is about none."""
        self.reason = reason
        which = f" version {shorten(version, 200)}" if version else ""  # an ARN fits
        super().__init__(f"{provider}: key{which} {reason}")


class KeyProviderUnavailableError(KeyProviderError):
    """A key-encryption key cannot be had just now: nobody knows whether it is missing."""

    code = "KEY_PROVIDER_UNAVAILABLE"
    retryable = True
