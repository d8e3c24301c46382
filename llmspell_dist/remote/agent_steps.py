"""The operations on agents through a sidecar: the library's own, over other parts.

What is compared, and what a handle knows, is the library's. A commit names the revisions that the
parts which it changes must have, so the sidecar decides as Redis would whether somebody wrote in
between.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from llmspell_dist.agents.layout import CONVERSATION
from llmspell_dist.agents.listing import AgentFilter, AgentSummary, Listing
from llmspell_dist.agents.reading import AgentReads, Loaded
from llmspell_dist.agents.saving import Saving
from llmspell_dist.agents.steps import AgentSteps, _moment, agent_scope
from llmspell_dist.agents.updates import Updates
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.agent_core import AgentCore, AgentPartial, AgentWrites, CommittedParts
from llmspell_dist.remote.agent_documents import loaded_of, summary_of
from llmspell_dist.remote.driver import Ask, asked
from llmspell_dist.remote.reads import GONE, RemoteReads
from llmspell_dist.remote.transactions import RemoteTransactionSteps
from llmspell_dist.remote.writes import RemotePartial, RemoteWrites
from llmspell_dist.revision import Revision
from llmspell_dist.state.core import field_of
from llmspell_dist.state.model import Page
from llmspell_dist.state.scopes import check_page

if TYPE_CHECKING:
    from llmspell_dist.agents.model import AgentState, Clock
    from llmspell_dist.agents.replacing import Elements
    from llmspell_dist.agents.snapshot import Snapshot
    from llmspell_dist.classes import StateClass
    from llmspell_dist.redis.commits import Change, Committed
    from llmspell_dist.scope import Scope
    from llmspell_dist.state.core import Core
    from llmspell_dist.state.steps import Steps
    from llmspell_dist.state.transactions import TransactionSteps

__all__ = ["RemoteAgentSteps", "RemoteListing", "agent_path"]

_NO_AGENT: Final = frozenset({"AGENT_NOT_FOUND"})


def agent_path(agent_id: str, *more: str) -> tuple[str, ...]:
    """Return the path of an agent, whose id is checked."""
    agent_scope(agent_id)
    return ("v1", "agents", agent_id, *more)


class _Reads(AgentReads):
    """Reads agents, asked of a sidecar."""

    def everything(self, scope: Scope, tail: int | None = None) -> Steps[Loaded | None]:
        """Return an agent with its messages, or the last `tail` of them; None if there is none."""
        return (yield from self._parts(scope, {"tail": tail}))

    def parts(self, scope: Scope) -> Steps[Loaded]:
        """Return everything but the conversation, as of one moment."""
        found = yield from self._parts(scope, {"messages": False})
        assert found is not None  # noqa: S101 - only messages are of an agent that is there
        return found

    def _parts(self, scope: Scope, query: Mapping[str, Any]) -> Steps[Loaded | None]:
        ask = Ask("GET", agent_path(scope.id, "parts"), query, accept=_NO_AGENT)
        answer = yield from asked(ask)
        if answer.status == 404:
            return None
        core = self.core
        return loaded_of(core.values.codec, core.keyspace.namespace, scope.text, answer.document)


class _Saving(Saving):
    """One save. The parts that were loaded keep their class, whatever the rules of who saves."""

    partial: AgentPartial

    def __init__(
        self,
        core: AgentCore,
        reads: RemoteReads,
        *,
        scope: Scope,
        state: AgentState,
        there: Snapshot,
    ) -> None:
        core = core.knowing(dict(there.classes))
        writes, partial = AgentWrites(core, reads), AgentPartial(core, reads)
        super().__init__(core, writes, partial, scope=scope, state=state, there=there)

    def _commit(self) -> Steps[Committed]:
        done = yield from super()._commit()
        said, after = cast("CommittedParts", done), self.after
        after.classes.update(said.classes)
        place = said.generations.get(CONVERSATION)
        if place is not None:
            after.conversation = after.conversation._replace(generation=place)
        return done

    def _replace(self, key: str, elements: Elements, state_class: StateClass) -> Steps[str]:
        """Let a list or map have other elements; the sidecar's answer says where they lie."""
        yield from ()
        field = field_of(self.scope, key)
        self._changes[key] = self.partial.replace_change(field, elements, state_class)
        return ""


class _Updates(Updates):
    """Updates of an agent, in one commit each."""

    def __init__(self, steps: RemoteAgentSteps) -> None:
        super().__init__(steps.core, steps.reads, steps.writes, steps.partial)
        self.transaction = steps.transaction  # type: ignore[method-assign]

    def _generations(self, done: Committed, begun: Mapping[str, Change]) -> dict[str, str]:  # noqa: ARG002
        return cast("CommittedParts", done).generations


class RemoteAgentSteps(AgentSteps):
    """The operations on agents, asked of a sidecar."""

    core: AgentCore
    reads: RemoteReads

    def __init__(self, core: Core, now: Clock) -> None:
        made, reads = AgentCore.of(core), RemoteReads(core)
        self.core = made
        self.now = now
        self.reads = reads
        self.writes = AgentWrites(made, reads)
        self.partial = AgentPartial(made, reads)
        self.agents = _Reads(made, reads)
        self._plain = core

    def transaction(self) -> TransactionSteps:
        """Return a transaction that has done nothing yet."""
        core, reads = self._plain, self.reads
        writes, partial = RemoteWrites(core, reads), RemotePartial(core, reads)
        return RemoteTransactionSteps(core, reads, writes, partial)

    def updates(self) -> Updates:
        """Return what changes an agent by pieces."""
        return _Updates(self)

    def _saving(self, scope: Scope, state: AgentState, there: Snapshot) -> Saving:
        return _Saving(self.core, self.reads, scope=scope, state=state, there=there)

    def delete(self, agent_id: str) -> Steps[bool]:
        """Remove everything in the agent's scope in one commit; whether there was an agent."""
        answer = yield from asked(Ask("DELETE", agent_path(agent_id), accept=GONE))
        return answer.status != 404

    def fork(
        self, agent_id: str, into: str, at: Revision | datetime | str | None
    ) -> Steps[AgentState]:
        """Let the sidecar save a state as a new agent, and load that."""
        if agent_scope(into) == agent_scope(agent_id):
            raise InvalidArgumentError("into", into, "must be another agent")
        if at is not None:
            _moment(at)
        moment = at.astimezone(UTC).isoformat() if isinstance(at, datetime) else at
        body = {"into": into, "at": None if moment is None else str(moment), "tail": 0}
        yield from asked(Ask("POST", agent_path(agent_id, "fork"), document=body))
        return (yield from self.load(into, None))


class RemoteListing(Listing):
    """Finding agents, asked of a sidecar."""

    def summary(self, agent_id: str) -> Steps[AgentSummary]:
        """Return what is known about one agent."""
        answer = yield from asked(Ask("GET", agent_path(agent_id, "summary")))
        return summary_of(answer.document)

    def page(
        self, wanted: AgentFilter, cursor: str | None, limit: int
    ) -> Steps[Page[AgentSummary]]:
        """Return some of the agents that match, in no order."""
        check_page(None, limit)
        if cursor is not None and type(cursor) is not str:
            raise InvalidArgumentError("cursor", cursor, "must be one that a page returned")
        since = wanted.updated_since
        # One that holds a comma cannot stand among others: it is looked for here.
        tags = [tag for tag in sorted(wanted.tags) if tag and "," not in tag]
        query = {
            "agent_type": wanted.agent_type,
            "status": ",".join(sorted(wanted.status)) or None,
            "tags": ",".join(tags) or None,
            "capability": wanted.capability,
            "prefix": wanted.prefix,
            "updated_since": None if since is None else since.astimezone(UTC).isoformat(),
            "cursor": cursor,
            "limit": limit,
        }
        document = (yield from asked(Ask("GET", ("v1", "agents"), query))).document
        found = [summary_of(one) for one in document["agents"]]
        return Page([one for one in found if wanted.matches(one)], document["cursor"])
