"""Security: the seam at which values are encrypted, and keys that wrap keys (`keyring`)."""

from __future__ import annotations

from llmspell_dist.security.cipher import ValueCipher
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError

__all__ = ["KeyProviderError", "KeyProviderUnavailableError", "ValueCipher"]
