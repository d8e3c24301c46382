"""The server-side scripts: found in ``lua_scripts``, includes resolved, addressed by content.

A line ``--- @include "lib/name"`` is replaced by that file, once per script however often it is
asked for. Scripts are addressed by the SHA-1 of their text (``EVALSHA``), so two releases can share
a server: each calls its own.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*--- @include "([a-z0-9_/]+)"[ \t]*$', re.MULTILINE)


class ScriptError(Exception):
    """A script file is missing, or includes itself."""


@dataclass(frozen=True, slots=True)
class Script:
    """One server-side command: what is sent, and the hash that names it."""

    name: str
    body: bytes = field(repr=False)
    sha: bytes

    @classmethod
    def from_source(cls, name: str, source: str) -> Script:
        """Name a script by the SHA-1 of its text, as ``SCRIPT LOAD`` does."""
        body = source.encode()
        return cls(name, body, hashlib.sha1(body, usedforsecurity=False).hexdigest().encode())


def scripts_folder() -> Path:
    """Where the scripts lie: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "lua_scripts"
    return installed if installed.is_dir() else package.parent / "lua_scripts"


def resolve(name: str, folder: Path) -> str:
    """Return the text of a script with its includes, each once and before its first user."""
    return _without_comments(_resolve(name, folder, [], set()))


def _resolve(name: str, folder: Path, path: list[str], included: set[str]) -> str:
    if name in path:
        raise ScriptError(f"scripts include each other: {' > '.join([*path, name])}")
    file = folder / f"{name}.lua"
    if not file.is_file():
        raise ScriptError(f"{' > '.join([*path, name])}: there is no such script")
    included.add(name)

    def include(match: re.Match[str]) -> str:
        wanted = match[1]
        if wanted in included and wanted not in path and wanted != name:
            return ""
        return _resolve(wanted, folder, [*path, name], included)

    return _INCLUDE.sub(include, file.read_text(encoding="utf-8"))


def _without_comments(source: str) -> str:
    """Drop blank and comment lines: they would be sent and kept by every server."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


@cache
def load_script(name: str) -> Script:
    """Return the script of this name, read once per process."""
    return Script.from_source(name, resolve(name, scripts_folder()))
