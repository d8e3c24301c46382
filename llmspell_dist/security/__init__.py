"""Security: so far the seam at which values are encrypted."""

from __future__ import annotations

from llmspell_dist.security.cipher import ValueCipher

__all__ = ["ValueCipher"]
