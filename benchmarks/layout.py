"""The same small data set for both sides: 50 scopes of 20 keys, and plain hashes like them."""

from __future__ import annotations

from benchmarks.payloads import packed, value

__all__ = ["FIELDS", "HASHES", "KEYS", "SCOPES", "VARIANTS", "WORKERS", "Values"]

WORKERS = 50
KEYS = 20
VARIANTS = 8
SCOPES = [f"agent:bench-{worker}" for worker in range(WORKERS)]
HASHES = [f"plain:agent:bench-{worker}" for worker in range(WORKERS)]
FIELDS = [f"message-{number}" for number in range(KEYS)]


class Values:
    """The messages of one size: as objects for us, as ready bytes for the peers."""

    def __init__(self, size: int) -> None:
        """Prepare the variants; writers rotate through them, so that a stale read shows."""
        self.size = size
        self.objects = [value(size, variant) for variant in range(VARIANTS)]
        self.bytes = [packed(size, variant) for variant in range(VARIANTS)]
