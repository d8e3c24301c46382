"""An object of S3 as a file that goes on where a cut connection left off."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import IncompleteReadError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from llmspell_dist.backup.targets.s3_calls import Calls

__all__ = ["ObjectReader"]


class ObjectReader(io.RawIOBase):
    """Reads one object once. What was read is as long as the server said, or an error is raised.

    `fetch(position, etag)` asks for the rest of the object from there, if it is still the same.
    """

    def __init__(self, calls: Calls, name: str, fetch: Callable[[int, str], Any]) -> None:
        super().__init__()
        self._calls = calls
        self._name = name
        self._fetch = fetch
        self._position = 0
        self._etag = ""
        self._body: Any = None
        calls.run("get", name, self._connect)  # here, so that a missing object is told at once

    def _connect(self) -> None:
        answer = self._fetch(self._position, self._etag)
        self._body = answer["Body"]
        self._etag = answer.get("ETag", "")
        if not self._position:
            self.size = int(answer["ContentLength"])
            """Bytes of the whole object."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read what comes next, connecting again if need be."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.size - self._position)
        if not wanted:
            return 0
        data = self._calls.run("get", self._name, lambda: self._read(wanted))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        if self._body is None:
            self._connect()
        try:
            data: bytes = self._body.read(wanted)
        except Exception:
            self._drop()
            raise
        if not data:
            self._drop()
            raise IncompleteReadError(actual_bytes=self._position, expected_bytes=self.size)
        return data

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def close(self) -> None:
        """Give the connection back, or close it if not all was read."""
        if not self.closed:
            self._drop()
        super().close()
