"""Finding agents: summaries of all that match, page by page, without loading any of them.

The server walks its sorted set of scopes in *stretches*: ZSCAN gives about as many as it is asked
for, or all of a small set at once. A page is part of a stretch. Its cursor says where the stretch
begins and ends, and the name up to which it was given. The next page walks the stretch again: equal
ends mean that it covers the same part of the server's table, so that by name nothing that is there
all the time is left out or comes twice. Unequal ends (the table has grown, another scope came in)
mean that it may cover another part; it is then given from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmspell_dist.agents.errors import AgentNotFoundError
from llmspell_dist.agents.execution import ExecutionState, ExecutionStatus
from llmspell_dist.agents.layout import (
    CONVERSATION,
    EXECUTION,
    MODIFIED,
    PROFILE,
    SUMMARY_KEYS,
    checked_profile,
    execution_from,
    metadata_from,
    modified_from,
)
from llmspell_dist.agents.model import AgentMetadata, aware
from llmspell_dist.agents.steps import agent_scope
from llmspell_dist.errors import CorruptRecordError, InvalidArgumentError, SpellError
from llmspell_dist.records import Kind, unpack_head, unpack_record
from llmspell_dist.redis.commands import ScriptCall
from llmspell_dist.redis.scripts import load_script
from llmspell_dist.revision import Revision
from llmspell_dist.scope import Scope, encode_part
from llmspell_dist.state.core import field_of
from llmspell_dist.state.model import Page
from llmspell_dist.state.scopes import Stretch, check_page, glob_of, split_cursor

if TYPE_CHECKING:
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.reads import Reads
    from llmspell_dist.state.steps import Steps

__all__ = ["AgentFilter", "AgentSummary", "Listing"]

PAGE_AGENTS: Final = 100
_BEGINNING: Final = "0"
"""Where the scan of a shard begins, and what it ends with; else a cursor and who gave it."""


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """What is known about an agent without its conversation, variables and statistics."""

    agent_id: str
    agent_type: str
    metadata: AgentMetadata
    execution: ExecutionState
    creation_time: datetime
    last_modified: datetime
    messages: int
    schema_version: int
    revision: Revision
    """The last commit that changed the agent."""

    @property
    def status(self) -> ExecutionStatus:
        """What the agent is doing."""
        return self.execution.status


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents are wanted; what is None or empty lets every one through."""

    agent_type: str | None = None
    status: frozenset[ExecutionStatus] = frozenset()
    tags: frozenset[str] = frozenset()
    """All of them."""
    capability: str | None = None
    prefix: str | None = None
    """How the id begins."""
    updated_since: datetime | None = None

    @classmethod
    def of(
        cls,
        *,
        agent_type: str | None,
        status: ExecutionStatus | str | Iterable[ExecutionStatus | str] | None,
        tags: str | Iterable[str],
        capability: str | None,
        prefix: str | None,
        updated_since: datetime | None,
    ) -> AgentFilter:
        """Return the filter that a caller describes."""
        for name, text in (
            ("agent_type", agent_type),
            ("capability", capability),
            ("prefix", prefix),
        ):
            if text is not None and type(text) is not str:
                raise InvalidArgumentError(name, text, "must be a str")
        wanted = (status,) if isinstance(status, str) or status is None else tuple(status)
        words = (tags,) if isinstance(tags, str) else tuple(tags)
        if any(type(word) is not str for word in words):
            raise InvalidArgumentError("tags", tags, "must be str, or several of them")
        return cls(
            agent_type,
            frozenset(ExecutionStatus.coerce(one) for one in wanted if one is not None),
            frozenset(words),
            capability,
            prefix or None,
            aware("updated_since", updated_since),
        )

    def matches(self, summary: AgentSummary) -> bool:
        """Return whether an agent is wanted."""
        return (
            (self.agent_type is None or summary.agent_type == self.agent_type)
            and (not self.status or summary.status in self.status)
            and self.tags <= set(summary.metadata.tags)
            and (self.capability is None or self.capability in summary.metadata.capabilities)
            and (self.prefix is None or summary.agent_id.startswith(self.prefix))
            and (self.updated_since is None or summary.last_modified >= self.updated_since)
        )


class _Position(NamedTuple):
    """Where a page begins: a stretch of a shard's scopes, and what of it was given."""

    shard: str
    start: str
    count: int  # type: ignore[assignment] # nobody needs tuple.count
    """How many scopes the stretch was asked for."""
    end: str = ""
    """Where the stretch ended; empty: nothing of it was given."""
    given: str = ""
    """The name up to which it was given."""

    @property
    def text(self) -> str:
        """The cursor."""
        return ".".join(map(str, self)) if self.end else f"{self.shard}.{self.start}"


class Listing:
    """Finds agents, as steps."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self.core = core
        self.reads = reads

    def summary(self, agent_id: str) -> Steps[AgentSummary]:
        """Return what is known about one agent; reads the small parts only."""
        scope = agent_scope(agent_id)
        answer = yield self._call(scope)
        found = yield from self._summary(scope, answer)
        if found is None:
            raise AgentNotFoundError(agent_id)
        return found

    def page(
        self, wanted: AgentFilter, cursor: str | None, limit: int
    ) -> Steps[Page[AgentSummary]]:
        """Return some of the agents that match, in no order."""
        check_page(None, limit)
        at = self._position(cursor, limit)
        prefix = "agent:" + ("" if wanted.prefix is None else encode_part(wanted.prefix, "prefix"))
        start, process = split_cursor(None if at.start == _BEGINNING else at.start, at.count)
        arguments = (start, process, glob_of(prefix, None).encode(), b"%d" % at.count)
        keys = (self.core.keyspace.due(at.shard),)
        reply = yield ScriptCall(load_script("scan_set"), keys, arguments, bulk=True)
        stretch = Stretch.read(reply, start, process)
        end = stretch.cursor or _BEGINNING
        names = sorted({name.decode() for name in stretch.found})
        if at.end == end:
            names = [name for name in names if name > at.given]
        looked_at = [Scope.parse(name) for name in names[:limit]]
        answers = yield [self._call(scope) for scope in looked_at]
        found = []
        for scope, answer in zip(looked_at, answers, strict=True):
            summary = yield from self._summary(scope, answer)
            if summary is not None and wanted.matches(summary):
                found.append(summary)
        following = None
        if len(names) > limit:
            following = at._replace(end=end, given=names[limit - 1]).text
        elif end != _BEGINNING:
            following = _Position(at.shard, end, limit).text
        elif int(at.shard) + 1 < self.core.keyspace.shards:
            following = _Position(str(int(at.shard) + 1), _BEGINNING, limit).text
        return Page(found, following)

    def _position(self, cursor: str | None, limit: int) -> _Position:
        if cursor is None:
            return _Position("0", _BEGINNING, limit)
        rule = "must be one that a page returned"
        parts = cursor.split(".", 4) if type(cursor) is str else []
        if len(parts) not in (2, 5) or parts[0] not in self.core.shards():
            raise InvalidArgumentError("cursor", cursor, rule)
        if len(parts) == 2:
            parts.insert(2, str(limit))
        shard, start, count, *rest = parts
        try:
            for place in (start, *rest[:1]):
                split_cursor(None if place == _BEGINNING else place, limit)
            check_page(None, int(count))
        except ValueError:  # also an InvalidArgumentError
            raise InvalidArgumentError("cursor", cursor, rule) from None
        return _Position(shard, start, int(count), *rest)

    def _call(self, scope: Scope) -> ScriptCall:
        scope_key = self.core.scope_key(scope)
        fields = [field_of(scope_key, key) for key in SUMMARY_KEYS]
        return self.core.read_call(scope_key, fields, most_bytes=-1, bulk=True)

    def _summary(self, scope: Scope, answer: list[Any]) -> Steps[AgentSummary | None]:
        text = scope.text
        values: dict[str, Any] = {}
        revisions: dict[str, Revision] = {}
        messages = 0
        for key, raw in zip(SUMMARY_KEYS, answer[2::2], strict=True):
            if raw is None:
                continue
            stored = unpack_record(raw, text, key)
            revisions[key] = stored.revision
            if key == CONVERSATION and stored.kind == Kind.LIST:
                messages = unpack_head(stored.payload, text, key).count
                continue
            if stored.kind <= Kind.NUMBER:
                values[key] = self.core.values.decode(
                    stored.kind, stored.flags, stored.payload, text, key
                )
            else:
                found = yield from self.reads.find(scope, key)
                if found is not None:
                    values[key] = found.value
        if PROFILE not in values:
            return None
        profile = checked_profile(text, values[PROFILE])
        try:
            return AgentSummary(
                scope.id,
                profile["type"],
                metadata_from(profile),
                execution_from(values.get(EXECUTION)),
                profile["created"],
                modified_from(profile, values),
                messages or len(values.get(CONVERSATION, ())),
                profile["schema_version"],
                revisions.get(MODIFIED, revisions[PROFILE]),
            )
        except (KeyError, TypeError, AttributeError, InvalidArgumentError) as error:
            said = str(error) if isinstance(error, SpellError) else type(error).__name__
            raise CorruptRecordError(text, PROFILE, f"it is no agent ({said})") from None
