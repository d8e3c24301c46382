"""The changes of log entries as far as backups look into them, and the keys they leave open."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from llmspell_dist.changes import OMITTED, Op, raw_changes
from llmspell_dist.classes import BEHAVIOURS, StateClass
from llmspell_dist.errors import CorruptRecordError
from llmspell_dist.revision import Revision

__all__ = ["Frame", "OpenKeys", "frames_in"]

_VALUES: Final = frozenset((Op.SET, Op.INCREMENT))
_PARTIAL: Final = frozenset((Op.APPEND, Op.MERGE))
_GONE: Final = frozenset((Op.DELETE, Op.EXPIRED))

_EMPTYING: Final = frozenset((Op.CLEAR, Op.RESTORED))
_NOT_ARCHIVED: Final = frozenset(one for one in StateClass if not BEHAVIOURS[one].archive)


class Frame(NamedTuple):
    """A change of an entry, as far as a backup looks into it."""

    op: int
    state_class: int
    scope: bytes
    key: bytes
    has_value: bool
    """Whether the entry alone tells the value, given what the key had before."""
    start: int
    end: int
    """Where the frame stands in the entry's changes."""
    names_scope: bool
    size: int
    """Bytes of the value that it writes, also if the entry does not have it."""


def frames_in(changes: bytes, where: str) -> Iterator[Frame]:
    """Yield the changes of an entry; a damaged one is a `CorruptRecordError`."""
    try:
        for head, scope, key, start, payload, end in raw_changes(changes, where):
            op, kind_class, _, _, _, size, scope_size, *_ = head
            has_value = op < OMITTED
            if op == Op.ADOPT:
                stop = payload + 11 + changes[payload]
                has_value = payload + size > stop
                size = int.from_bytes(changes[stop - 6 : stop], "big")
            op %= OMITTED
            state_class, names = kind_class & 15, scope_size > 0
            yield Frame(op, state_class, scope, key, has_value, start, end, names, size)
    except (struct.error, ValueError, IndexError):
        raise CorruptRecordError("log", where, f"entry {where} of the log is damaged") from None


class OpenKeys:
    """Keys whose value the entries that were looked at do not tell.

    A key is open from an entry without its value until one that brings or removes it. With
    `archiving` the classes that no archive keeps are never open: their keys are left out.
    """

    def __init__(self, *, archiving: bool = False) -> None:
        self._archiving = archiving
        self._keys: dict[bytes, dict[bytes, Revision]] = {}
        self.scopes: dict[bytes, Revision] = {}
        """Scopes of which not even the keys are known, since a restore put them back."""
        self.size = 0
        """About how many bytes the values have that were not known at some time."""

    def __len__(self) -> int:
        """How many wait for their value."""
        return sum(map(len, self._keys.values())) + len(self.scopes)

    def look(self, frame: Frame, revision: Revision) -> None:
        """Take note of one change."""
        op, scope, key = frame.op, frame.scope, frame.key
        if op in _EMPTYING:
            self._keys.pop(scope, None)
            self.scopes.pop(scope, None)
            if op == Op.RESTORED and scope:
                self.scopes[scope] = revision
            return
        there = self._keys.get(scope)
        if op in _GONE or (frame.has_value and (op in _VALUES or op == Op.ADOPT)):
            if there is not None:
                there.pop(key, None)
        elif op == Op.TTL or (op in _PARTIAL and frame.has_value):
            if there is not None and key in there:
                there[key] = revision
        elif op in _VALUES or op in _PARTIAL or op == Op.ADOPT:
            if self._archiving and frame.state_class in _NOT_ARCHIVED:
                return
            if there is None:
                there = self._keys[scope] = {}
            there[key] = revision
            self.size += frame.size

    def close(self, scope: bytes, key: bytes) -> None:
        """Note that a key's value is known."""
        there = self._keys.get(scope)
        if there is not None:
            there.pop(key, None)
            if not there:
                del self._keys[scope]

    def by_scope(self) -> list[tuple[bytes, list[bytes]]]:
        """Return the open keys of each scope."""
        return [(scope, list(keys)) for scope, keys in self._keys.items() if keys]

    def drain(self) -> Iterator[tuple[bytes, bytes, Revision]]:
        """Yield and forget scope, key, revision of all that is open; no key: any of the scope."""
        scopes, self.scopes = self.scopes, {}
        keys, self._keys = self._keys, {}
        for scope, revision in scopes.items():
            yield scope, b"", revision
        for scope, there in keys.items():
            for key, revision in there.items():
                yield scope, key, revision
