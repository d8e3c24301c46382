"""Files that are read again when they change, also where Kubernetes swaps what a link leads to."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from llmspell_dist.sidecar.auth.errors import AccessFileError

__all__ = ["FileWatch"]

_MAX_BYTES: Final = 1024 * 1024
_YOUNG_NS: Final = 2_000_000_000


class _Look(NamedTuple):
    mtime_ns: int
    inode: int
    device: int
    size: int


class FileWatch:
    """One file, and whether it says something else than when it was last read. Blocks.

    A mounted secret is a link to a link to a folder that Kubernetes replaces: the look follows
    links, and the inode differs. A file that was written moments before it was read is read
    again next time, as a second write within one tick of the file system's clock leaves no trace.
    """

    __slots__ = ("_content", "_look", "_now_ns", "_young", "path")

    def __init__(self, path: Path, *, now_ns: Callable[[], int]) -> None:
        self.path = path
        self._now_ns = now_ns
        self._look: _Look | None = None
        self._young = False
        self._content: bytes | None = None

    def forget(self) -> None:
        """Have the next look read the file, changed or not."""
        self._look = self._content = None

    def read(self) -> bytes:
        """Return the content, and remember it as read; `AccessFileError` if it cannot be."""
        # Forgotten first: what could not be read is tried again, and is no longer what was known.
        self.forget()
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())  # of what is read, whatever the path leads to now
                if not stat.S_ISREG(status.st_mode):
                    raise AccessFileError(str(self.path), "", "must be a file")
                if status.st_mode & stat.S_IWOTH:
                    rule = "must not be writable by everybody (chmod o-w)"
                    raise AccessFileError(str(self.path), "", rule)
                content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise AccessFileError(str(self.path), "", f"cannot be read: {reason}") from None
        if len(content) > _MAX_BYTES:
            raise AccessFileError(str(self.path), "", f"must be at most {_MAX_BYTES:,} bytes")
        self._young = abs(self._now_ns() - status.st_mtime_ns) < _YOUNG_NS
        self._look = _seen(status)
        self._content = sha256(content).digest()
        return content

    def changed(self) -> bytes | None:
        """Return the content if it is another one than last time, else None.

        Raises AccessFileError each time that the file cannot be read.
        """
        try:
            look = _seen(self.path.stat())
        except OSError:
            look = None  # read() says what is wrong
        if look is not None and look == self._look and not self._young:
            return None
        before = self._content
        content = self.read()
        return None if self._content == before else content


def _seen(status: os.stat_result) -> _Look:
    return _Look(status.st_mtime_ns, status.st_ino, status.st_dev, status.st_size)
