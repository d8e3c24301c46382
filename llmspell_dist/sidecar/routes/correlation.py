"""Correlations: what belongs together, in order and with its causes, as far as one may see it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from llmspell_dist.changes import LogEntry
from llmspell_dist.correlated import EventRelationship
from llmspell_dist.correlation import CorrelationQuery, EntryKind, TimelineConfig
from llmspell_dist.correlation.documents import (
    detail_document,
    entry_document,
    timeline_document,
)
from llmspell_dist.correlation.query import match_timeline, sorted_matches
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Needs, Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply

if TYPE_CHECKING:
    from llmspell_dist.correlation import QueryMatch, TimelineEntry

__all__ = ["routes"]

routes = Registry("correlations", "What belongs together, as one timeline, from every process.")

_ONE = "/v1/correlations/{id}"
_NOT_ALLOWED = "not_allowed"

Entries = Annotated[int, Meta(ge=1, le=10_000)]


class TimelineSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How a timeline is put together."""

    max_entries: Annotated[int, Meta(ge=1, le=10_000, description="The first so many.")] = 10_000
    min_strength: Annotated[float, Meta(ge=0, le=1, description="Of links that count.")] = 0.5
    auto_link: Annotated[bool, Meta(description="Guess causes from types and times.")] = False


class _Timeline(TimelineSettings, frozen=True, forbid_unknown_fields=True):
    details: Annotated[
        bool, Meta(description="Also what each entry holds: an event with data, changes, tags.")
    ] = False


class TimelineEntryDocument(Struct, frozen=True):
    """One thing that happened; `causes` and `effects` are positions.

    What is told only with `details` is not there without: `detail` is the event, hook run or lease,
    or the changes of a commit (never their values); `raw` the bytes of what cannot be read.
    """

    position: int
    kind: str
    id: str
    type: str
    time: str
    relative_s: float
    source: str | None
    target: str | None
    about: str | None
    causation_id: str | None
    causes: list[int]
    effects: list[int]
    depth: int
    trimmed: bool
    language: str | UnsetType | None = UNSET
    tags: list[str] | UnsetType = UNSET
    after: bytes | UnsetType | None = UNSET
    detail: dict[str, Any] | UnsetType | None = UNSET
    raw: bytes | UnsetType | None = UNSET


class LinkDocument(Struct, frozen=True):
    """What one entry is to another; its metadata are told only with `details`."""

    from_id: str
    to_id: str
    relationship: str
    strength: float
    metadata: dict[str, Any] | UnsetType = UNSET


class TimelineStatisticsDocument(Struct, frozen=True):
    """A timeline in numbers; `left_out.not_allowed` counts entries that the caller may not see."""

    entries: int
    by_kind: dict[str, int]
    by_type: dict[str, int]
    by_source: dict[str, int]
    duration_s: float
    average_gap_s: float
    max_depth: int
    roots: int
    leaves: int
    unresolved: int
    trimmed: int
    unreadable: int
    left_out: dict[str, int]


class TimelineDocument(Struct, frozen=True):
    """What happened in a correlation, without values; data of events only with `details`.

    With them `strengths` has cause, effect and strength for each cause that a link says.
    """

    correlation_id: str
    entries: list[TimelineEntryDocument]
    links: list[LinkDocument]
    truncated: bool
    statistics: TimelineStatisticsDocument
    strengths: list[tuple[int, int, float]] | UnsetType = UNSET


class _Recent(Struct, frozen=True, forbid_unknown_fields=True):
    since: Annotated[datetime, Meta(tz=True)] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


class CorrelationDocument(Struct, frozen=True):
    """A correlation that something is kept of, and when something was last added."""

    correlation_id: str
    active: datetime


class CorrelationList(Struct, frozen=True):
    """Correlations, the one that was active last first."""

    correlations: list[CorrelationDocument]


class CorrelationQueryBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Filters, all of which an entry must pass."""

    correlation_ids: list[str] = []
    types: list[str] = []
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    sources: list[str] = []
    targets: list[str] = []
    languages: list[str] = []
    tags: list[str] = []
    min_depth: Annotated[int, Meta(ge=0)] | None = None
    max_depth: Annotated[int, Meta(ge=0)] | None = None
    relationships: list[str] = []
    root_causes_only: bool = False
    leaf_effects_only: bool = False
    min_events: Annotated[int, Meta(ge=0)] | None = None
    max_events: Annotated[int, Meta(ge=0)] | None = None
    sort: Literal["time", "time_descending", "depth", "depth_descending", "type", "relevance"] = (
        "time"
    )
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    max_correlations: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    timelines: Annotated[
        TimelineSettings, Meta(description="How the timelines are put together that are looked at.")
    ] = TimelineSettings()
    details: Annotated[bool, Meta(description="Also what each entry holds.")] = False


class MatchDocument(Struct, frozen=True):
    """An entry that a query found, how well it matches and why."""

    correlation_id: str
    score: float
    reasons: list[str]
    entry: TimelineEntryDocument


class MatchList(Struct, frozen=True):
    """What a query found; `not_allowed` counts what the caller may not see, whatever the filters.

    Of all the correlations that were looked at: else filters would tell what it is.
    """

    matches: list[MatchDocument]
    not_allowed: int


class LinkBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What one entry of a timeline is to another: ids of events, revisions, hook runs."""

    from_id: str
    to_id: str
    relationship: str
    strength: Annotated[float, Meta(ge=0, le=1)] = 0.8
    metadata: dict[str, Any] = {}


def may_see(call: Call) -> Callable[[TimelineEntry], bool]:
    """Return what says of an entry whether whoever asks may see it.

    A commit: if all of its scopes may be read; an event: if its type may be heard.
    """
    may = call.principal.may

    def sees(entry: TimelineEntry) -> bool:
        if entry.kind is EntryKind.HOOK:
            return True
        if entry.kind is EntryKind.EVENT:
            return may(Verb.READ, f"event:{entry.type}")
        if entry.kind is EntryKind.LEASE and entry.target is not None:
            return may(Verb.READ, entry.target)
        if entry.kind is EntryKind.CHANGE and isinstance(entry.detail, LogEntry):
            return all(may(Verb.READ, scope) for scope in {c.scope for c in entry.detail.changes})
        return may(Verb.READ, "*")  # nobody knows any more what it was about

    return sees


@routes.route(
    "GET",
    _ONE,
    Needs(Verb.READ, "correlation:{id}"),
    query=_Timeline,
    returns=TimelineDocument,
)
async def get_timeline(call: Call) -> Reply:
    """Get what happened in a correlation, in order, with causes and effects.

    Empty if nothing is kept of it. Entries of scopes and event types that the caller may not read
    are left out and counted.
    """
    query: _Timeline = call.query
    config = _config(query)
    found = await call.spell.correlation.timeline(call.parameters["id"], config=config)
    shown = found.only(may_see(call), _NOT_ALLOWED)
    return Reply(timeline_document(shown, details=query.details))


def _config(settings: TimelineSettings) -> TimelineConfig:
    return TimelineConfig(
        max_entries=settings.max_entries,
        min_strength=settings.min_strength,
        auto_link=settings.auto_link,
    )


@routes.route(
    "GET",
    "/v1/correlations",
    Needs(Verb.LIST, "correlation:*"),
    query=_Recent,
    returns=CorrelationList,
)
async def list_correlations(call: Call) -> Reply:
    """List the correlations that were active last, the last one first."""
    query: _Recent = call.query
    found = await call.spell.correlation.recent(since=query.since, limit=query.limit)
    documents = [CorrelationDocument(one.correlation_id, one.active) for one in found]
    return Reply(CorrelationList(documents))


@routes.route(
    "POST",
    "/v1/correlations/query",
    asks=(Verb.READ,),
    body=CorrelationQueryBody,
    returns=MatchList,
)
async def query_correlations(call: Call) -> Reply:
    """Find entries in the correlations that are named, else in those that were active last.

    What the caller may not read is left out first: filters, causes, order and limit do not tell of
    it.
    """
    body: CorrelationQueryBody = call.body
    for name in body.correlation_ids or ["*"]:
        call.require(Verb.READ, f"correlation:{name}")
    given = structs.asdict(body)
    del given["timelines"], given["details"]
    found, hidden = await _found(call, CorrelationQuery(**given), _config(body.timelines))
    matches = [
        {
            "correlation_id": one.correlation_id,
            "score": one.score,
            "reasons": list(one.reasons),
            "entry": entry_document(None, one.entry)
            | (detail_document(one.entry) if body.details else {}),
        }
        for one in found
    ]
    return Reply({"matches": matches, "not_allowed": hidden})


async def _found(
    call: Call, query: CorrelationQuery, config: TimelineConfig
) -> tuple[list[QueryMatch], int]:
    """Do what `Correlations.query` does, on what the caller may see; count what that leaves out."""
    correlation, sees = call.spell.correlation, may_see(call)
    ids = list(query.correlation_ids)
    if not ids:
        known = await correlation.recent(since=query.since, limit=query.max_correlations)
        ids = [one.correlation_id for one in known]
    best: list[QueryMatch] = []
    hidden = 0
    for name in ids:
        whole = await correlation.timeline(name, config=config)
        shown = whole.only(sees, _NOT_ALLOWED)
        hidden += len(whole) - len(shown)
        best += match_timeline(query, shown)
        if len(best) > query.limit:
            best = sorted_matches(best, query.sort)[: query.limit]
    return sorted_matches(best, query.sort), hidden


@routes.route(
    "POST",
    f"{_ONE}/links",
    Needs(Verb.WRITE, "correlation:{id}"),
    body=LinkBody,
    returns=LinkDocument,
    headers=("Idempotency-Key",),
)
async def link_entries(call: Call) -> Reply:
    """Say what one entry of a correlation is to another one; said again, the last one counts."""
    body: LinkBody = call.body
    link = await call.spell.correlation.link(
        body.from_id,
        body.to_id,
        EventRelationship.coerce(body.relationship),
        strength=body.strength,
        metadata=body.metadata,
        correlation_id=call.parameters["id"],
    )
    document = {
        "from_id": link.from_id,
        "to_id": link.to_id,
        "relationship": link.relationship.value,
        "strength": link.strength,
    }
    return Reply(document)


@routes.route("DELETE", _ONE, Needs(Verb.DELETE, "correlation:{id}"), errors=(NotFoundError,))
async def forget_correlation(call: Call) -> Reply:
    """Remove what is kept of a correlation; the change log keeps its commits."""
    name = call.parameters["id"]
    if not await call.spell.correlation.forget(name):
        raise NotFoundError(f"correlation {name!r}")
    return NO_CONTENT


class ForgottenCount(Struct, frozen=True):
    """How many correlations were forgotten."""

    forgotten: int


@routes.route(
    "POST",
    "/v1/correlations/trim",
    Needs(Verb.DELETE, "correlation:*"),
    returns=ForgottenCount,
)
async def trim_correlations(call: Call) -> Reply:
    """Forget the correlations beyond what is kept; some process of the fleet does so anyway."""
    return Reply(ForgottenCount(await call.spell.correlation.trim()))
