"""The bearer token that a client shows: given, or of a file that is read again as it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import time_ns
from typing import Final

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["TOKEN_FILE_VARIABLE", "TOKEN_VARIABLE", "Credentials"]

TOKEN_VARIABLE: Final = "LLMSPELL_TOKEN"  # noqa: S105 - its name
TOKEN_FILE_VARIABLE: Final = "LLMSPELL_TOKEN_FILE"  # noqa: S105 - its name
_MOST: Final = 16 * 1024
_YOUNG_NS: Final = 2_000_000_000


class Credentials:
    """What the header ``Authorization`` says; neither ``repr`` nor errors show it."""

    def __init__(
        self, token: str | None = None, file: str | os.PathLike[str] | None = None
    ) -> None:
        self._header = None if token is None else _header(token, "token")
        self._file = None if file is None else Path(file)
        self._seen: tuple[int, int, int] | None = None

    @classmethod
    def given(
        cls,
        token: str | os.PathLike[str] | None,
        environ: Mapping[str, str] = os.environ,
    ) -> Credentials:
        """Return the token given, or that of the file given, else what the environment says."""
        if isinstance(token, os.PathLike):
            return cls(file=token)
        if token is not None:
            return cls(token)
        if environ.get(TOKEN_VARIABLE):
            return cls(environ[TOKEN_VARIABLE])
        return cls(file=environ.get(TOKEN_FILE_VARIABLE) or None)

    def __repr__(self) -> str:
        where = "none" if self._file is None else f"of {self._file}"
        return f"<{type(self).__name__} {'***' if self._header else where}>"

    def header(self) -> str | None:
        """Return the value of the header, None without a token; a file that changed is read."""
        if self._file is None:
            return self._header
        try:
            found = self._file.stat()
            # A projected token is replaced, not written: another inode.
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with self._file.open(encoding="ascii") as file:
                    self._header = _header(file.read(_MOST + 1).strip(), "token")
                # A second write within one tick of the file system's clock leaves no trace.
                young = abs(time_ns() - found.st_mtime_ns) < _YOUNG_NS
                self._seen = None if young else seen
        except (OSError, UnicodeDecodeError) as error:
            if self._header is None:
                reason = f"must be a readable file with a token ({type(error).__name__})"
                raise InvalidArgumentError("token", str(self._file), reason) from None
            # While it is replaced, the one from before is as good as ever.
        return self._header


def _header(token: object, argument: str) -> str:
    fits = type(token) is str and 0 < len(token) <= _MOST and token.isascii()
    if not fits or not str(token).isprintable() or " " in str(token):
        error = InvalidArgumentError(argument, None, "must be printable ASCII without spaces")
        error.value = "***"
        error.args = (f"{argument} {error.rule}",)
        raise error
    return f"Bearer {token}"
