"""Reading a scope's part of the log: what came after a revision, along the scope's chain.

Every frame says which revision its scope had before, so that what came after a revision is found
by walking back from the scope's newest one, and the walk must end exactly there: a missing entry
was trimmed, another one means that this is not the log that was read before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.changes import LogEntry, unpack_entry
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import NO_REVISION, PACKED_BYTES, Revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmspell_dist.redis.commits import ScopeKey
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["Known", "Missing", "Tail", "TailReader"]

PAGE_ENTRIES: Final = 256
PAGE_BYTES: Final = 256 * 1024
LOOKED_AT: Final = 1000
"""Entries that one call walks over: some five milliseconds of the server."""
_COMPARED: Final = 16


class Known(NamedTuple):
    """Where a reader stands."""

    revision: Revision | None
    """None: before the first change."""
    operation: str = ""
    """The operation id of that commit; empty if it is not known."""
    exact: bool = True
    """Whether it is a revision of this scope; else one of the shard's."""


class Tail(NamedTuple):
    """What came after a revision."""

    ended: str
    """``ok``, ``trimmed``, ``forgotten`` or ``diverged``."""
    landed: Revision | None
    """The scope's last revision that was known before."""
    floor: Revision | None
    entries: list[LogEntry]
    """All that is new, oldest first, unless `ahead` has it."""
    ahead: bytearray
    """The revisions of all that is new, newest first, if it is more than a page: see `page`."""


class Missing(NamedTuple):
    """An entry that was there a moment ago, and is not any more."""

    floor: Revision | None


class TailReader:
    """The reading of a scope's part of the log, as steps."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def _log(self, scope: ScopeKey) -> bytes:
        return self.core.keyspace.log(self.core.keyspace.shard(scope.scope))

    def _call(self, scope: ScopeKey, *arguments: bytes, most: int) -> ScriptCall:
        keyspace = self.core.keyspace
        keys = (self._log(scope), scope.hash, keyspace.ctl(keyspace.shard(scope.scope)))
        sizes = (b"%d" % most, b"%d" % PAGE_BYTES, b"%d" % LOOKED_AT)
        return ScriptCall(load_script("tail"), keys, (scope.text, *arguments, *sizes), bulk=True)

    def now(self, scope: ScopeKey) -> Steps[Known]:
        """Return where a scope is now."""
        _, head, _, _, operation = yield self._call(scope, b"", b"", b"1", b"", most=0)
        return Known(Revision.unpack(head), _shown(operation), True)

    def after(self, scope: ScopeKey, known: Known) -> Steps[Tail]:
        """Return what came after a revision."""
        packed = NO_REVISION if known.revision is None else known.revision.packed
        operation = _packed_operation(known.operation)
        ahead, start, most = bytearray(), b"", PAGE_ENTRIES
        while True:
            exact = b"1" if known.exact else b"0"
            reply = yield self._call(scope, packed, operation, exact, start, most=most)
            ended, _, at, floor, *rest = reply
            if ended == b"more" or len(rest) == 1:
                ahead += rest[0]
            if ended != b"more":
                break
            start, most = at, 0
        entries = _entries(rest) if len(rest) > 1 else []
        return Tail(
            "ok" if ended == b"far" else ended.decode(),
            Revision.unpack(at),
            Revision.parse(floor) if floor else None,
            entries,
            ahead,
        )

    def page(self, scope: ScopeKey, ahead: bytearray) -> Steps[list[LogEntry] | Missing]:
        """Read the next entries of `ahead`, oldest first, and take them out of it."""
        last = bytes(ahead[-PAGE_ENTRIES * PACKED_BYTES :])
        wanted = [last[at : at + PACKED_BYTES] for at in range(0, len(last), PACKED_BYTES)]
        arguments = (scope.text, b"".join(reversed(wanted)), b"%d" % PAGE_BYTES)
        keys = (self._log(scope),)
        oldest, *flat = yield ScriptCall(load_script("entries"), keys, arguments, bulk=True)
        if not flat:
            return Missing(Revision.parse(oldest) if oldest else None)
        entries = _entries(flat)
        del ahead[len(ahead) - len(entries) * PACKED_BYTES :]
        return entries

    def entry(self, scope: ScopeKey, revision: Revision) -> Steps[LogEntry | Missing]:
        """Return the scope's part of one entry."""
        found = yield from self.page(scope, bytearray(revision.packed))
        return found if isinstance(found, Missing) else found[0]

    def last_common(
        self, scope: ScopeKey, recent: Iterable[tuple[Revision, str]]
    ) -> Steps[Revision | None]:
        """Return the newest of some commits that the log still has; they come newest first."""
        pairs, log = list(recent), self._log(scope)
        for first in range(0, len(pairs), _COMPARED):
            some = pairs[first : first + _COMPARED]
            requests: list[Command | ScriptCall] = [
                Command(pack(b"XRANGE", log, str(revision), str(revision)), "XRANGE", bulk=True)
                for revision, _ in some
            ]
            replies = yield requests
            for (revision, operation), found in zip(some, replies, strict=True):
                if found and unpack_entry(*found[0]).operation == operation:
                    return revision
        return None


def _entries(flat: Sequence[Any]) -> list[LogEntry]:
    return [
        unpack_entry(flat[i], (b"c", flat[i + 1], b"m", flat[i + 2], b"o", flat[i + 3]))
        for i in range(0, len(flat), 4)
    ]


def _shown(operation: bytes) -> str:
    if not operation:
        return ""
    return f"{operation[:8].hex()}:{int.from_bytes(operation[8:], 'big')}"


def _packed_operation(shown: str) -> bytes:
    """Return an operation id as the log has it; empty for one that is not known."""
    client, _, sequence = shown.partition(":")
    if not client or not sequence:
        return b""
    return bytes.fromhex(client) + int(sequence).to_bytes(6, "big")
