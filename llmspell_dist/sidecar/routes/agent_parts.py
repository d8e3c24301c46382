"""Agents by their parts: for clients that hold a copy of one and send only what differs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from llmspell_dist.agents.errors import AgentNotFoundError
from llmspell_dist.agents.layout import MAPS
from llmspell_dist.agents.model import utc_now
from llmspell_dist.agents.steps import AgentSteps, agent_scope
from llmspell_dist.errors import (
    ClassChangedError,
    ConflictError,
    LeaseRequiredError,
    LimitError,
    StaleFencingTokenError,
    WrongKindError,
)
from llmspell_dist.records import Kind
from llmspell_dist.revision import from_ms
from llmspell_dist.sidecar.agency import driver_of
from llmspell_dist.sidecar.agent_commit import AgentCommit, Committing
from llmspell_dist.sidecar.agent_points import committed, read
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.reply import Reply, etag
from llmspell_dist.sidecar.routes.agents import AGENT, allowed

if TYPE_CHECKING:
    from llmspell_dist.agents.reading import Loaded
    from llmspell_dist.state.steps import Steps

__all__ = ["routes"]

routes = Registry(
    "agent parts", "Agents by their parts: for clients that hold a copy and send what differs."
)


class _Parts(Struct, frozen=True, forbid_unknown_fields=True):
    messages: bool = True
    tail: Annotated[int, Meta(ge=0, description="Only so many of the last messages.")] | None = None


class AgentPart(Struct, frozen=True):
    """What lies under one key of an agent."""

    value: Annotated[Any, Meta(description="Null for a conversation that lies as a list.")]
    revision: str
    kind: str
    state_class: str


class AgentMessages(Struct, frozen=True):
    """The conversation."""

    count: int
    size: Annotated[int, Meta(description="Bytes of all messages.")]
    generation: Annotated[
        str, Meta(description="Which list they lie in: another one, if all were replaced.")
    ]
    messages: Annotated[
        list[bytes] | None,
        Meta(description="The last ones, each as MessagePack; null if they were not asked for."),
    ]


class AgentParts(Struct, frozen=True):
    """An agent as of one moment, with the revision of each of its parts."""

    time: datetime
    revision: Annotated[str | None, Meta(description="The last commit of its scope.")]
    parts: dict[str, AgentPart]
    conversation: AgentMessages


@routes.route(
    "GET",
    f"{AGENT}/parts",
    asks=(Verb.READ,),
    query=_Parts,
    returns=AgentParts,
    errors=(AgentNotFoundError,),
)
async def get_agent_parts(call: Call) -> Reply:
    """Get an agent's parts as of one moment, each with its revision.

    Without `messages` it need not be there: then no part is.
    """
    agent_id, query = allowed(call, Verb.READ), call.query
    driver, scope = driver_of(call), agent_scope(agent_id)
    agents = AgentSteps(driver.core, utc_now)

    def parts() -> Steps[Loaded]:
        if not query.messages:
            return (yield from agents.agents.parts(scope))._replace(inline=None)
        found = yield from agents.agents.everything(scope, query.tail)
        if found is None:
            raise AgentNotFoundError(agent_id)
        return found

    asked = {"tail": query.tail, "messages": query.messages}
    points = call.spell.hooks.points
    found = await driver.run(read(points, agents, scope.id, asked, parts))
    return Reply(_document(found))


def _document(found: Loaded) -> AgentParts:
    there, (values, maps) = found.snapshot, found.parts
    parts = {
        key: AgentPart(
            maps[key] if key in MAPS else values.get(key),
            str(revision),
            Kind(there.kinds[key]).name.lower(),
            str(there.classes[key]),
        )
        for key, revision in there.revisions.items()
    }
    head = there.conversation
    return AgentParts(
        from_ms(found.now_ms),
        None if there.scope_revision is None else str(there.scope_revision),
        parts,
        AgentMessages(head.count, head.size, head.generation, found.inline),
    )


class AgentCommitted(Struct, frozen=True):
    """The commit, and what was decided here for what it changed."""

    revision: str
    classes: Annotated[
        dict[str, str], Meta(description="By key: where the change did not say the class.")
    ]
    generations: Annotated[
        dict[str, str], Meta(description="By key: the lists and maps that it certainly began.")
    ]


@routes.route(
    "POST",
    f"{AGENT}/commit",
    asks=(Verb.WRITE,),
    body=AgentCommit,
    returns=AgentCommitted,
    errors=(
        *(ConflictError, ClassChangedError, WrongKindError, LimitError),
        *(LeaseRequiredError, StaleFencingTokenError),
    ),
    headers=("LLMSpell-Lease", "Idempotency-Key"),
)
async def commit_agent(call: Call) -> Reply:
    """Change parts of an agent as one commit, if those that are named are as expected.

    Else nothing is changed, and the conflict names what differs (409).
    """
    agent_id, driver = allowed(call, Verb.WRITE), driver_of(call)
    committing = Committing(driver.core, agent_scope(agent_id))
    points = call.spell.hooks.points
    revision = await driver.run(committed(points, committing, agent_id, call.body))
    done = AgentCommitted(str(revision), committing.classes, committing.generations)
    return Reply(done, headers=[etag(revision)])
