"""Agents over HTTP: whole states, and what changes one by pieces."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from llmspell_dist.agents.errors import AgentExistsError, AgentNotFoundError, IllegalTransitionError
from llmspell_dist.agents.listing import PAGE_AGENTS
from llmspell_dist.agents.model import Message, Role, utc_now
from llmspell_dist.agents.steps import agent_scope
from llmspell_dist.errors import (
    ConflictError,
    InvalidArgumentError,
    LeaseRequiredError,
    StaleFencingTokenError,
)
from llmspell_dist.sidecar.agency import agent_of, agents_of, save_over
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.problems import problem_of
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply, etag
from llmspell_dist.sidecar.routes.agent_shapes import (
    AgentDocument,
    AgentPage,
    AgentSummaryDocument,
    ExecutionDocument,
    MessageDocument,
    agent_document,
    agent_state,
    execution_document,
    message_document,
    summary_document,
)
from llmspell_dist.sidecar.routes.shapes import Revised, parse_moment
from llmspell_dist.state.scopes import MAX_PAGE

__all__ = ["AGENT", "allowed", "routes"]

routes = Registry("agents", "Agents: their state, their conversations, what they are doing.")
AGENT: Final = "/v1/agents/{agent_id}"
_WRITES: Final[dict[str, Any]] = {
    "asks": (Verb.WRITE,),
    "headers": ("LLMSpell-Lease", "Idempotency-Key"),
}
_FENCED: Final = (LeaseRequiredError, StaleFencingTokenError)


def allowed(call: Call, verb: Verb) -> str:
    """Refuse unless the caller may do that with the scope of the agent in the path; its id."""
    agent_id = call.parameters["agent_id"]
    call.require(verb, agent_scope(agent_id).text)
    return agent_id


# --- states ---------------------------------------------------------------------------------------


class _Tail(Struct, frozen=True, forbid_unknown_fields=True):
    tail: Annotated[
        int | None, Meta(description="Only so many of the last messages; by default all.")
    ] = None


@routes.route(
    "GET",
    AGENT,
    asks=(Verb.READ,),
    query=_Tail,
    returns=AgentDocument,
    errors=(AgentNotFoundError,),
)
async def load_agent(call: Call) -> Reply:
    """Load an agent's state as of one moment; its revision is the ``ETag``."""
    agent_id, tail = allowed(call, Verb.READ), call.query.tail
    agents = agents_of(call)
    found = await (agents.load(agent_id) if tail is None else agents.load_fast(agent_id, tail=tail))
    return Reply(agent_document(found), headers=[etag(found.revision)])


class _Save(Struct, frozen=True, forbid_unknown_fields=True):
    force: bool = False


@routes.route(
    "PUT",
    AGENT,
    asks=(Verb.WRITE,),
    query=_Save,
    body=AgentDocument,
    returns=Revised,
    errors=(AgentExistsError, AgentNotFoundError, ConflictError, *_FENCED),
    headers=("If-Match", "If-None-Match", "LLMSpell-Lease", "Idempotency-Key"),
    statuses={412: "Somebody changed it since."},
)
async def save_agent(call: Call) -> Reply:
    """Save a state in one commit; without ``If-Match`` it must be that of a new agent.

    With ``If-Match``, the ``ETag`` of what was loaded, only what differs is written, and nothing
    if somebody changed the agent since (412). `force` replaces whatever is there.
    """
    agent_id = allowed(call, Verb.WRITE)
    document: AgentDocument = call.body
    if document.agent_id != agent_id:
        raise InvalidArgumentError("agent_id", document.agent_id, f"must be {agent_id!r}")
    match, none = call.if_match, call.if_none_match
    if none not in {None, "*"} or (none is not None and match is not None):
        header = call.header(b"if-none-match")
        raise InvalidArgumentError("if-none-match", header, "must be *, and alone")
    agents, state = agents_of(call), agent_state(document)
    state.check()
    if match is None:
        if document.missing and not call.query.force:
            rule = "must be 0 for a new agent: all its messages stand here"
            raise InvalidArgumentError("missing", document.missing, rule)
        revision = await agents.save(state, force=call.query.force)
    else:
        try:
            revision = await save_over(agents, state, document.missing, match)
        except ConflictError as error:
            problem = problem_of(error, status=412)
            return Reply(problem.document, status=412, headers=problem.headers, problem=True)
    return Reply(Revised(str(revision)), headers=[etag(revision)])


@routes.route(
    "GET",
    f"{AGENT}/summary",
    asks=(Verb.READ,),
    returns=AgentSummaryDocument,
    errors=(AgentNotFoundError,),
)
async def show_agent(call: Call) -> Reply:
    """Tell what an agent is and does, without its conversation, variables and statistics."""
    return Reply(summary_document(await agents_of(call).metadata(allowed(call, Verb.READ))))


@routes.route(
    "DELETE",
    AGENT,
    asks=(Verb.DELETE,),
    errors=(NotFoundError, *_FENCED),
    headers=("LLMSpell-Lease", "Idempotency-Key"),
)
async def delete_agent(call: Call) -> Reply:
    """Remove an agent and everything else in its scope, effects included, in one step."""
    agent_id = allowed(call, Verb.DELETE)
    if not await agents_of(call).delete(agent_id):
        raise NotFoundError(f"agent {agent_id!r}")
    return NO_CONTENT


class AgentFork(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Under which id, and as of when."""

    into: Annotated[str | None, Meta(description="By default a new id.")] = None
    at: Annotated[
        str | None, Meta(description="A revision, or an ISO time with an offset; by default now.")
    ] = None
    tail: (
        Annotated[int, Meta(ge=0, description="Only so many of the last messages are answered.")]
        | None
    ) = None


@routes.route(
    "POST",
    f"{AGENT}/fork",
    asks=(Verb.READ, Verb.WRITE),
    body=AgentFork,
    returns=AgentDocument,
    errors=(AgentNotFoundError, AgentExistsError),
    headers=("Idempotency-Key",),
)
async def fork_agent(call: Call) -> Reply:
    """Save the state that an agent has, or had, as a new agent, and return that."""
    agent_id, fork = allowed(call, Verb.READ), call.body
    # A new id cannot be known before: then the right must cover whatever begins as this one does.
    into = f"{agent_id}-*" if fork.into is None else fork.into
    scope = agent_scope(agent_id).text + "-*" if fork.into is None else agent_scope(into).text
    call.require(Verb.WRITE, scope)
    at = None if fork.at is None else parse_moment(fork.at)
    state = await agents_of(call).fork(agent_id, fork.into, at=at)
    return Reply(agent_document(state, fork.tail), headers=[etag(state.revision)])


class _AgentList(Struct, frozen=True, forbid_unknown_fields=True):
    agent_type: str | None = None
    status: Annotated[str | None, Meta(description="One, or several by commas.")] = None
    tags: Annotated[str | None, Meta(description="All of them, by commas.")] = None
    capability: str | None = None
    prefix: str | None = None
    updated_since: datetime | None = None
    cursor: str | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = PAGE_AGENTS


@routes.route("GET", "/v1/agents", asks=(Verb.LIST,), query=_AgentList, returns=AgentPage)
async def list_agents(call: Call) -> Reply:
    """List some of the agents that match, and that the caller may list.

    At most `limit` are looked at, so a page can be short or empty; its `cursor` leads on.
    """
    query: _AgentList = call.query
    page = await call.spell.agents.list(
        agent_type=query.agent_type,
        status=None if query.status is None else query.status.split(","),
        tags=() if query.tags is None else query.tags.split(","),
        capability=query.capability,
        prefix=query.prefix,
        updated_since=query.updated_since,
        cursor=query.cursor,
        limit=query.limit,
    )
    may = call.principal.may
    shown = [one for one in page.items if may(Verb.LIST, agent_scope(one.agent_id).text)]
    return Reply(AgentPage([summary_document(one) for one in shown], page.cursor))


# --- execution ------------------------------------------------------------------------------------


class AgentReason(Struct, frozen=True, forbid_unknown_fields=True):
    """Why."""

    reason: str | None = None


class AgentTransition(AgentReason, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which status it goes to, and why."""

    status: str


_TRANSITION: Final[dict[str, Any]] = {
    **_WRITES,
    "returns": ExecutionDocument,
    "errors": (AgentNotFoundError, IllegalTransitionError, *_FENCED),
}


@routes.route("POST", f"{AGENT}/pause", body=AgentReason, **_TRANSITION)
async def pause_agent(call: Call) -> Reply:
    """Suspend an agent's execution."""
    done = await agents_of(call).pause(allowed(call, Verb.WRITE), reason=call.body.reason)
    return Reply(execution_document(done))


@routes.route("POST", f"{AGENT}/resume", body=AgentReason, **_TRANSITION)
async def resume_agent(call: Call) -> Reply:
    """Let a suspended agent do what it did before."""
    done = await agents_of(call).resume(allowed(call, Verb.WRITE), reason=call.body.reason)
    return Reply(execution_document(done))


@routes.route("POST", f"{AGENT}/stop", body=AgentReason, **_TRANSITION)
async def stop_agent(call: Call) -> Reply:
    """End an agent's execution as completed."""
    done = await agents_of(call).stop(allowed(call, Verb.WRITE), reason=call.body.reason)
    return Reply(execution_document(done))


@routes.route("POST", f"{AGENT}/transition", body=AgentTransition, **_TRANSITION)
async def move_agent(call: Call) -> Reply:
    """Let an agent's execution go to another status, judged by what is stored."""
    allowed(call, Verb.WRITE)
    done = await agent_of(call).transition(call.body.status, call.body.reason)
    return Reply(execution_document(done))


# --- by pieces ------------------------------------------------------------------------------------


class NewMessage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message to add; without a time it is of now."""

    role: str
    content: Any
    timestamp: datetime | None = None
    metadata: dict[str, Any] | None = None


class NewMessages(Struct, frozen=True, forbid_unknown_fields=True):
    """Messages for the end of the conversation, in one commit."""

    messages: Annotated[list[NewMessage], Meta(min_length=1)]


class Messages(Struct, frozen=True):
    """Part of a conversation."""

    messages: list[MessageDocument]


_PIECE: Final[dict[str, Any]] = {
    **_WRITES,
    "returns": Revised,
    "errors": (AgentNotFoundError, *_FENCED),
}


class _Messages(Struct, frozen=True, forbid_unknown_fields=True):
    start: int = 0
    stop: int | None = None


@routes.route("GET", f"{AGENT}/messages", asks=(Verb.READ,), query=_Messages, returns=Messages)
async def get_messages(call: Call) -> Reply:
    """Get messages as ``conversation[start:stop]``, without reading the others."""
    allowed(call, Verb.READ)
    found = await agent_of(call).messages(call.query.start, call.query.stop)
    return Reply(Messages([message_document(one) for one in found]))


@routes.route("POST", f"{AGENT}/messages", body=NewMessages, **_PIECE)
async def add_messages(call: Call) -> Reply:
    """Add messages to the end of the conversation; only they travel."""
    allowed(call, Verb.WRITE)
    now = utc_now()
    messages = [
        Message(Role.coerce(one.role), one.content, one.timestamp or now, one.metadata)
        for one in call.body.messages
    ]
    return _revised(await agent_of(call).add_messages(*messages))


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One call of a tool."""

    tool: str
    duration_ms: Annotated[float, Meta(ge=0)]
    success: bool


@routes.route("POST", f"{AGENT}/tool-usage", body=ToolCall, **_PIECE)
async def record_tool_usage(call: Call) -> Reply:
    """Count one call of a tool."""
    allowed(call, Verb.WRITE)
    body: ToolCall = call.body
    done = await agent_of(call).record_tool_usage(body.tool, body.duration_ms, body.success)
    return _revised(done)


class Names(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names to set, and names to remove."""

    set: dict[str, Any] = {}
    remove: list[str] = []


@routes.route("POST", f"{AGENT}/context", body=Names, **_PIECE)
async def set_agent_context(call: Call) -> Reply:
    """Set and remove context variables."""
    allowed(call, Verb.WRITE)
    return _revised(await agent_of(call).set_context(call.body.set, remove=call.body.remove))


@routes.route("POST", f"{AGENT}/custom", body=Names, **_PIECE)
async def set_agent_custom(call: Call) -> Reply:
    """Set and remove custom data."""
    allowed(call, Verb.WRITE)
    return _revised(await agent_of(call).set_custom(call.body.set, remove=call.body.remove))


def _revised(revision: Any) -> Reply:
    return Reply(Revised(str(revision)), headers=[etag(revision)])
