"""For how long the history of hooks is kept, as steps: the policy, and what follows from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from llmspell_dist.errors import InvalidArgumentError, SpellError
from llmspell_dist.hooks.history_policy import HistoryEntry, HistoryPolicy, plan_removal
from llmspell_dist.hooks.history_steps import (
    PAGE,
    SHARD,
    HistorySteps,
    entry_of,
    field_of,
    named,
    padded,
)
from llmspell_dist.hooks.running import cancellations, is_own_cancellation
from llmspell_dist.hooks.sealing import Sealer
from llmspell_dist.redis.commands import Command, ScriptCall
from llmspell_dist.redis.resp import pack
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.state.server_time import server_ms
from llmspell_dist.state.steps import Call

if TYPE_CHECKING:
    from llmspell_dist.hooks.recording import Execution
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps

__all__ = ["HistoryKeeping", "history_of"]

logger = logging.getLogger("llmspell_dist.hooks")

TURN_MS: Final = 15_000
_POLICY: Final = b"hookpolicy"
_NUL: Final = b"\0"


class HistoryKeeping(HistorySteps):
    """The history, and for how long it is kept."""

    archive: Callable[[Execution], Any] | None = None
    """What gets an execution before it goes, if the policy says so."""

    def policy(self) -> Steps[HistoryPolicy]:
        """Return how long executions are kept."""
        ctl = self.core.keyspace.ctl(SHARD)
        policy = HistoryPolicy.parse((yield Command(pack(b"HGET", ctl, _POLICY), "HGET")))
        self.sealer.compress = policy.compress
        return policy

    def retain(self, policy: HistoryPolicy) -> Steps[None]:
        """Keep executions for so long from now on, in every process of the namespace."""
        if not isinstance(policy, HistoryPolicy):
            raise InvalidArgumentError("policy", policy, "must be a HistoryPolicy")
        ctl = self.core.keyspace.ctl(SHARD)
        yield Command(pack(b"HSET", ctl, _POLICY, policy.stored), "HSET")
        self.sealer.compress = policy.compress

    def tidy(self) -> Steps[int]:
        """Apply the policy if no process of the fleet did within a while; how many went."""
        turn = self.core.keyspace.hook_turn(SHARD)
        taken = yield Command(pack(b"SET", turn, b"1", b"NX", b"PX", TURN_MS), "SET")
        return 0 if taken is None else (yield from self.apply())

    def apply(self, now_ms: int | None = None) -> Steps[int]:
        """Remove what the policy does not keep, oldest first; return how many went."""
        policy = yield from self.policy()
        history, _ = self.keys()
        oldest = yield Command(pack(b"XRANGE", history, "-", "+", b"COUNT", 1), "XRANGE", bulk=True)
        if not oldest or (policy.archive and self.archive is None):
            return 0
        if now_ms is None:
            now_ms = yield from server_ms()
        length = yield from self.count()
        oldest_ms = Revision.parse(oldest[0][0]).ms
        if length <= policy.max_count and oldest_ms >= now_ms - policy.max_age // timedelta(
            milliseconds=1
        ):
            return 0
        doomed = plan_removal((yield from self._entries(length)), policy, now_ms)
        gone = 0
        for start in range(0, len(doomed), PAGE):
            gone += yield from self._forget(doomed[start : start + PAGE], archive=policy.archive)
        return gone

    def _entries(self, length: int) -> Steps[list[HistoryEntry]]:
        """Return all entries, oldest first; from the stream if the index has not all of them."""
        _, index = self.keys()
        found: list[HistoryEntry] = []
        low = b"[t\0"
        while True:
            request = pack(b"ZRANGEBYLEX", index, low, b"(t\1", b"LIMIT", 0, 5_000)
            members = yield Command(request, "ZRANGEBYLEX", bulk=True)
            for member in members:
                place, _, priority = member[2:].partition(_NUL)
                try:
                    entry = entry_of(place)
                    found.append(HistoryEntry(entry, Revision.parse(entry).ms, int(priority)))
                except (ValueError, SpellError):  # no place of an entry: somebody else's
                    continue
            if len(members) < 5_000:
                break
            low = b"(" + members[-1]
        if len(found) < length:
            found = yield from self.reindex()
        return found

    def reindex(self) -> Steps[list[HistoryEntry]]:
        """Make the index anew from the stream, as after it was lost; return all entries."""
        history, index = self.keys()
        found: list[HistoryEntry] = []
        start = "-"
        while True:
            request = pack(b"XRANGE", history, start, "+", b"COUNT", PAGE)
            flat = yield Command(request, "XRANGE", bulk=True)
            page = []
            for entry_id, fields in flat:
                entry, priority = entry_id.decode(), _priority_of(fields)
                page.append(HistoryEntry(entry, Revision.parse(entry).ms, priority))
            found += page
            readable = {one.entry: one for one in self.unpacked(flat)}
            for one in page:
                execution = readable.get(one.entry)
                if execution is None:  # it is found by its age alone, and forgotten as any other
                    members = [_by_age(padded(one.entry), b"%d" % one.priority)]
                else:
                    members = _members(one.entry, named(execution))
                scored = [part for member in members for part in (0, member)]
                yield Command(pack(b"ZADD", index, *scored), "ZADD")
            if len(flat) < PAGE:
                return found
            start = f"({found[-1].entry}"

    def _archived(self, execution: Execution) -> Any:
        """Give an execution to the archive; True, or an awaitable of it, if it has it."""
        assert self.archive is not None  # noqa: S101 - asked for before
        try:
            given = self.archive(execution)
        except (Exception, asyncio.CancelledError):
            logger.exception("the history of hooks could not be archived, so it stays")
            return False
        return _settled(given) if isawaitable(given) else True

    def _forget(self, doomed: Sequence[HistoryEntry], *, archive: bool) -> Steps[int]:
        history, index = self.keys()
        found = {one.entry: one for one in (yield from self.read(one.entry for one in doomed))}
        arguments: list[bytes] = []
        for one in doomed:
            execution = found.get(one.entry)
            if execution is None:  # cannot be read: nothing that could be archived
                arguments += (one.entry.encode(), b"", b"", b"", b"", b"%d" % one.priority)
                continue
            if archive and (yield Call(self._archived, (execution,))) is not True:
                break
            arguments += (one.entry.encode(), *named(execution))
        if not arguments:
            return 0
        call = ScriptCall(
            load_script("hooks_forget"), (history, index), tuple(arguments), bulk=True
        )
        return int((yield call))


def _members(entry: str, named: tuple[bytes, ...]) -> list[bytes]:
    place = padded(entry)
    by = [
        letter + _NUL + name + _NUL + place
        for letter, name in zip((b"c", b"h", b"p", b"x"), named[:4], strict=True)
    ]
    return [*by, _by_age(place, named[4])]


def _by_age(place: bytes, priority: bytes) -> bytes:
    return b"t" + _NUL + place + _NUL + priority


def _priority_of(fields: Sequence[bytes]) -> int:
    """Return an entry's priority; 0 of one that somebody else has written."""
    try:
        return int(field_of(fields, b"n"))
    except ValueError:
        return 0


async def _settled(given: Awaitable[Any]) -> bool:
    before = cancellations()
    try:
        await given
    except (Exception, asyncio.CancelledError) as error:
        if is_own_cancellation(error, before):
            raise
        logger.exception("the history of hooks could not be archived, so it stays")
        return False
    return True


def history_of(core: Core) -> HistoryKeeping:
    """Return the history of a namespace, for one client of it."""
    values, namespace = core.values, core.keyspace.namespace
    return HistoryKeeping(core, Sealer(values.codec, values.cipher, namespace=namespace))
