"""The history of hooks in Redis, as steps: add and find.

A namespace has one history, in shard 0: a stream of executions, and a sorted set by which they are
found by correlation, hook, point and execution id (`lua_scripts/hooks_record.lua` says how).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.correlated import pack_hook_run
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError
from llmspell_dist.hooks.errors import ExecutionNotFoundError
from llmspell_dist.hooks.history_query import MAX_LIMIT, HistoryQuery
from llmspell_dist.hooks.sealing import Sealer
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision

if TYPE_CHECKING:
    from llmspell_dist.hooks.recording import Execution
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["HistorySteps", "entry_of", "field_of", "named", "padded"]

logger = logging.getLogger("llmspell_dist.hooks")

SHARD: Final = "0"
PAGE: Final = 200
BATCH_REMEMBERED_MS: Final = 3_600_000
_NUL: Final = b"\0"
_PLACE_BYTES: Final = 26


class HistorySteps:
    """The operations on the history."""

    def __init__(self, core: Core, sealer: Sealer) -> None:
        self.core = core
        self.sealer = sealer

    def keys(self) -> tuple[bytes, bytes]:
        """Return the stream and its index."""
        keyspace = self.core.keyspace
        return keyspace.hooks(SHARD), keyspace.hook_index(SHARD)

    # --- adding

    def arguments(self, execution: Execution) -> tuple[bytes, ...]:
        """Return what adds an execution to a batch."""
        noted = pack_hook_run(execution.summary) if execution.correlated else b""
        return (self.sealer.pack(execution), *named(execution), noted)

    def record(self, client: str, number: int, arguments: tuple[bytes, ...]) -> Steps[int]:
        """Add a batch; the same number again adds nothing."""
        keyspace = self.core.keyspace
        history, index = self.keys()
        keys = (history, index, keyspace.hook_batch(SHARD, client))
        head = (b"%d" % number, b"%d" % BATCH_REMEMBERED_MS, keyspace.prefix(SHARD))
        added = yield ScriptCall(load_script("hooks_record"), keys, head + arguments, bulk=True)
        return int(added)

    # --- finding

    def get(self, execution_id: str) -> Steps[Execution]:
        """Return one execution; `ExecutionNotFoundError` if it is not there."""
        if type(execution_id) is not str or not execution_id:
            raise InvalidArgumentError("execution_id", execution_id, "must be text")
        prefix = b"x\0" + execution_id.encode() + _NUL
        for entry in (yield from self._places(prefix, None, 1, newest_first=False)):
            found = yield from self.read([entry])
            for execution in found:
                if execution.id == execution_id:
                    return execution
        if not (yield from self._is_indexed()):
            for execution in (yield from self.query(HistoryQuery(limit=MAX_LIMIT))):
                if execution.id == execution_id:
                    return execution
        raise ExecutionNotFoundError(execution_id)

    def _is_indexed(self) -> Steps[bool]:
        """Whether the index has every execution: a server that forgets may have lost it."""
        history, index = self.keys()
        length, known = yield [
            Command(pack(b"XLEN", history), "XLEN"),
            Command(pack(b"ZLEXCOUNT", index, b"[t\0", b"(t\1"), "ZLEXCOUNT"),
        ]
        return int(known) >= int(length)

    def query(self, query: HistoryQuery) -> Steps[list[Execution]]:
        """Return the executions that are meant, oldest first unless the query says otherwise."""
        found: list[Execution] = []
        after, prefix = query.after, query.indexed_by
        if prefix is not None and not (yield from self._is_indexed()):
            prefix = None  # slower, and nothing is missed until the index is made anew
        while True:
            if prefix is None:
                page, after = yield from self._page(query, after)
            else:
                places = yield from self._places(
                    prefix, after, PAGE, newest_first=query.newest_first
                )
                after = places[-1] if len(places) == PAGE else None
                page = yield from self.read(places)
            for execution in page:
                if query.accepts(execution):
                    found.append(execution)
                    if len(found) == query.limit:
                        return found
            if after is None:
                return found

    def _page(
        self, query: HistoryQuery, after: str | None
    ) -> Steps[tuple[list[Execution], str | None]]:
        history, _ = self.keys()
        count = min(PAGE, max(query.limit, 10))
        if query.newest_first:
            end = "+" if after is None else f"({after}"
            request = pack(b"XREVRANGE", history, end, "-", b"COUNT", count)
        else:
            start = "-" if after is None else f"({after}"
            request = pack(b"XRANGE", history, start, "+", b"COUNT", count)
        flat = yield Command(request, "XRANGE", bulk=True)
        last = flat[-1][0].decode() if len(flat) == count else None
        return self.unpacked(flat), last

    def _places(
        self, prefix: bytes, after: str | None, count: int, *, newest_first: bool
    ) -> Steps[list[str]]:
        """Return the entries that the index has under a prefix."""
        _, index = self.keys()
        low, high = b"[" + prefix, b"(" + prefix[:-1] + b"\1"
        if after is not None:
            if newest_first:
                high = b"(" + prefix + padded(after)
            else:
                low = b"(" + prefix + padded(after)
        order = (
            (b"ZREVRANGEBYLEX", index, high, low)
            if newest_first
            else (b"ZRANGEBYLEX", index, low, high)
        )
        request = pack(*order, b"LIMIT", 0, count)
        members = yield Command(request, "ZRANGEBYLEX", bulk=count > 1)
        return [entry_of(member[-_PLACE_BYTES:]) for member in members]

    def read(self, entries: Iterable[str]) -> Steps[list[Execution]]:
        """Return the executions of entries; those that are gone are left out."""
        history, _ = self.keys()
        requests: list[Command | ScriptCall] = [
            Command(pack(b"XRANGE", history, entry, entry), "XRANGE") for entry in entries
        ]
        if not requests:
            return []
        replies = yield requests
        return self.unpacked([one for reply in replies for one in reply])

    def unpacked(self, flat: Iterable[Any]) -> list[Execution]:
        """Return executions; what cannot be read is logged and left out."""
        found = []
        for entry_id, fields in flat:
            entry = entry_id.decode()
            try:
                found.append(self.sealer.unpack(field_of(fields, b"b"), entry))
            except CorruptRecordError as error:
                logger.warning("left out of the history of hooks: %s", error)
            except Exception as error:  # noqa: BLE001 - whatever foreign bytes lead to
                reason = type(error).__name__
                logger.warning("left out of the history of hooks: %s, %s", entry, reason)
        return found

    def count(self) -> Steps[int]:
        """Return how many executions there are."""
        history, _ = self.keys()
        return int((yield Command(pack(b"XLEN", history), "XLEN")))


def named(execution: Execution) -> tuple[bytes, ...]:
    """Return by what an execution is found, as the scripts take it."""
    return (
        (execution.correlation_id or "").encode(),
        execution.hook.encode(),
        execution.point.encode(),
        execution.id.encode(),
        b"%d" % execution.priority,
    )


def padded(entry: str) -> bytes:
    """Return an entry's id as the index has it: text order is time order."""
    ms, seq = Revision.parse(entry)
    return b"%015d-%010d" % (ms, seq)


def entry_of(place: bytes) -> str:
    """Return the entry of which `padded` gave this."""
    ms, _, seq = place.partition(b"-")
    return f"{int(ms)}-{int(seq)}"


def field_of(fields: Sequence[bytes], name: bytes) -> bytes:
    """Return a field of an entry."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return named.get(name, b"")
