"""What a handler answers: a document, a value, nothing, or a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["NO_CONTENT", "Reply", "Stream", "etag"]

_NOTHING: Final = object()


@dataclass(slots=True)
class Reply:
    """An answer of one piece, written in the form that the client asked for."""

    document: Any = _NOTHING
    """A user's value, or a document: builtins and Structs of ours with values in them."""
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    media: str | None = None
    """The media type of `document` that is bytes already; None: it is to be encoded."""
    problem: bool = False
    """Whether the document is that of a problem."""

    @property
    def empty(self) -> bool:
        """Whether there is no body."""
        return self.document is _NOTHING


@dataclass(slots=True)
class Stream:
    """Chunks that leave one by one, as long as the client listens."""

    chunks: AsyncIterator[bytes]
    media: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


NO_CONTENT: Final = Reply(status=204)
"""Done, and there is nothing to say."""


def etag(revision: object) -> tuple[bytes, bytes]:
    """Return the header that carries a revision: RFC 9110, a strong entity tag."""
    return b"etag", b'"%s"' % str(revision).encode()
