"""What a place for backups has to do; `folder` and `s3` do it.

Names are relative, ``/``-separated, of ``A-Z a-z 0-9 . _ - / = +``. Objects are written once and
never changed, except that one of the same name may be put again with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import BinaryIO, NamedTuple, Protocol

__all__ = ["ObjectInfo", "Target"]


class ObjectInfo(NamedTuple):
    """One object of a target."""

    name: str
    size: int
    modified: datetime
    """When it was put, by the target's clock; aware."""


class Target(Protocol):
    """A place where named objects are kept.

    All methods block, and may be called from several threads at once. Each retries by itself what
    may be retried (with bounds and backoff), so that a failure is final: `TargetError` or a child,
    which names the object and what the place said.
    """

    @property
    def label(self) -> str:
        """Which place this is, for messages; without secrets."""

    def put(self, name: str, data: bytes | BinaryIO, *, only_new: bool = False) -> bool:
        """Store an object, durably and whole or not at all.

        `data` that is a file is streamed (and read from its present position). With `only_new` an
        object that is there is left alone and False returned; of several who put at once, one wins.
        """

    def get(self, name: str) -> bytes:
        """Return an object; `ObjectMissingError` if it is not there."""

    def open(self, name: str) -> BinaryIO:
        """Return an object as a file to read once; `ObjectMissingError` if it is not there."""

    def head(self, name: str) -> ObjectInfo | None:
        """Return what is known of an object without reading it; None if it is not there."""

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with `prefix`, by name, those behind `after`."""

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there count as removed."""

    def close(self) -> None:
        """Give back connections; twice is allowed."""
