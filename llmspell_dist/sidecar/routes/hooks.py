"""Hooks: which there are, here and in the fleet, what they did, and webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from llmspell_dist.hooks import HookPoint, HookStats, RegisteredHook
from llmspell_dist.hooks.effects import allowed_at
from llmspell_dist.hooks.errors import (
    DuplicateHookError,
    ExecutionNotFoundError,
    HookNotFoundError,
)
from llmspell_dist.hooks.fleet_model import FleetProcess
from llmspell_dist.hooks.recording import Execution, result_parts
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Needs, Registry
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply
from llmspell_dist.sidecar.webhook_documents import shown
from llmspell_dist.sidecar.webhooks import Webhooks, WebhookTerms

__all__ = ["routes"]

routes = Registry("hooks", "What runs before and after what happens to shared state.")

LIST = Needs(Verb.LIST)
ADMIN = Needs(Verb.ADMIN)
_WEBHOOK = "/v1/webhooks/{point}/{name}"
_MS = 1000.0


# --- what there is --------------------------------------------------------------------------------


class PointDocument(Struct, frozen=True):
    """A hook point, and what hooks may answer there."""

    point: str
    results: list[str]


class PointList(Struct, frozen=True):
    """The points that have a name; others are texts with a colon, as `session:start`."""

    points: list[PointDocument]


class HookDocument(Struct, frozen=True):
    """A hook of this sidecar, and how it has done so far; times in milliseconds."""

    point: str
    name: str
    priority: int
    language: str
    version: str
    description: str
    tags: list[str]
    enabled: bool
    queued: bool
    timeout: float | None
    on_failure: str
    replayable: bool
    breaker: str | None
    runs: int
    failures: int
    timeouts: int
    skipped: int
    cancelled: int
    p50_ms: float
    p99_ms: float
    extra: dict[str, Any]


class FleetHookDocument(Struct, frozen=True):
    """A hook that a process runs for what happens in others."""

    name: str
    point: str
    run: str
    labels: dict[str, str]
    max_hops: int
    timeout: float
    await_remote: bool
    continue_on_failure: bool
    priority: int


class FleetProcessDocument(Struct, frozen=True):
    """A process of the fleet, and its hooks for the others."""

    id: str
    name: str
    labels: dict[str, str]
    hooks: list[FleetHookDocument]


class HookList(Struct, frozen=True):
    """The hooks of this sidecar, and those of the fleet as far as it takes part."""

    hooks: list[HookDocument]
    joined: bool
    fleet: list[FleetProcessDocument]


@routes.route("GET", "/v1/hooks/points", LIST, returns=PointList)
async def list_hook_points(_: Call) -> Reply:
    """List the places at which hooks run, and what they may answer there."""
    points = [
        PointDocument(point.value, sorted(result.name for result in allowed_at(point)))
        for point in HookPoint
    ]
    return Reply(PointList(points))


@routes.route("GET", "/v1/hooks", LIST, returns=HookList)
async def list_hooks(call: Call) -> Reply:
    """List the hooks of this sidecar in the order in which they run, and those of the fleet."""
    hooks = call.spell.hooks
    fleet = hooks.fleet
    stats = {(one.point, one.name): one for some in hooks.stats().values() for one in some}
    return Reply(
        HookList(
            [_hook_document(hook, stats[hook.point, hook.name]) for hook in hooks.get_hooks()],
            fleet.joined,
            [_process_document(process) for process in fleet.processes()],
        )
    )


def _hook_document(hook: RegisteredHook, stats: HookStats) -> HookDocument:
    return HookDocument(
        point=str(hook.point),
        name=hook.name,
        priority=hook.priority,
        language=hook.language,
        version=hook.version,
        description=hook.description,
        tags=list(hook.tags),
        enabled=hook.enabled,
        queued=hook.queued,
        timeout=hook.timeout,
        on_failure=str(hook.on_failure),
        replayable=hook.replayable,
        breaker=None if stats.breaker is None else str(stats.breaker),
        runs=stats.timing.count,
        failures=stats.failures,
        timeouts=stats.timeouts,
        skipped=stats.skipped,
        cancelled=stats.cancelled,
        p50_ms=stats.timing.p50 * _MS,
        p99_ms=stats.timing.p99 * _MS,
        extra={str(name): value for name, value in stats.extra.items() if type(value) in _PLAIN},
    )


_PLAIN = frozenset((int, float, str, bool, type(None)))


def _process_document(process: FleetProcess) -> FleetProcessDocument:
    return FleetProcessDocument(
        process.id,
        process.name,
        dict(process.labels),
        [
            FleetHookDocument(
                name=hook.name,
                point=hook.point,
                run=str(hook.run),
                labels=dict(hook.labels),
                max_hops=hook.max_hops,
                timeout=hook.timeout,
                await_remote=hook.await_remote,
                continue_on_failure=hook.continue_on_failure,
                priority=hook.priority,
            )
            for hook in process.hooks
        ],
    )


# --- what they did --------------------------------------------------------------------------------


class _History(Struct, frozen=True, forbid_unknown_fields=True):
    correlation_id: str | None = None
    hook: str | None = None
    version: str | None = None
    point: str | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    outcome: Annotated[str | None, Meta(description="`continue`, `cancel`, …, or `error`.")] = None
    failed: bool | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    newest_first: bool = False
    after: Annotated[
        str | None, Meta(description="The `entry` of the last one of the page before.")
    ] = None


class HookErrorDocument(Struct, frozen=True):
    """An error that a hook raised."""

    type: str
    message: str


class HookInputDocument(Struct, frozen=True):
    """What a hook took from outside."""

    kind: str
    name: str
    arguments: Any
    value: Any
    error: str | None


class HookExecution(Struct, frozen=True):
    """A recorded run of a replayable hook."""

    id: str
    entry: str | None
    hook: str
    version: str
    point: str
    started: datetime
    duration_us: int
    outcome: str
    correlation_id: str | None
    causation_id: str | None
    context: Any
    """Null if it was left out, or cannot be read here."""
    result: Any
    error: HookErrorDocument | None
    inputs: list[HookInputDocument]
    gaps: list[str]


class HookExecutionList(Struct, frozen=True):
    """Recorded runs of hooks."""

    executions: list[HookExecution]


@routes.route("GET", "/v1/hooks/history", ADMIN, query=_History, returns=HookExecutionList)
async def query_hook_history(call: Call) -> Reply:
    """Find recorded runs of hooks, of the whole namespace: what they were told and answered."""
    given = {name: getattr(call.query, name) for name in call.query.__struct_fields__}
    found = await call.spell.hooks.history.query(**given)
    return Reply(HookExecutionList([_execution_document(one) for one in found]))


@routes.route(
    "GET",
    "/v1/hooks/history/{execution}",
    ADMIN,
    returns=HookExecution,
    errors=(ExecutionNotFoundError,),
)
async def get_hook_execution(call: Call) -> Reply:
    """Get one recorded run of a hook."""
    found = await call.spell.hooks.history.get(call.parameters["execution"])
    return Reply(_execution_document(found))


def _execution_document(one: Execution) -> HookExecution:
    error = one.error
    return HookExecution(
        id=one.id,
        entry=one.entry,
        hook=one.hook,
        version=one.version,
        point=one.point,
        started=one.started_at,
        duration_us=one.duration_us,
        outcome=one.outcome,
        correlation_id=one.correlation_id,
        causation_id=one.causation_id,
        context=shown(one.context),
        result=None if one.result is None else shown(result_parts(one.result)),
        error=None if error is None else HookErrorDocument(error.type, error.message),
        inputs=[
            HookInputDocument(
                taken.kind,
                taken.name,
                shown(taken.arguments),
                shown(taken.value),
                None if taken.error is None else taken.error.type,
            )
            for taken in one.inputs
        ],
        gaps=one.gaps,
    )


# --- webhooks -------------------------------------------------------------------------------------


class FleetBody(Struct, frozen=True, forbid_unknown_fields=True):
    """That a webhook runs for what happens in any process that has joined the fleet."""

    run: Literal["every", "one"] = "one"
    timeout: Annotated[float, Meta(gt=0, le=300)] = 30.0
    await_remote: bool = False
    continue_on_failure: bool = True


class WebhookBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a hook's receiver is, and what becomes of an operation if it fails."""

    url: Annotated[str, Meta(max_length=2000)]
    secret: Annotated[str, Meta(min_length=16, max_length=1000)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=60)] = 2.0
    on_failure: Literal["ignore", "cancel", "raise"] = "ignore"
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    queued: bool = False
    retries: Annotated[int, Meta(ge=0, le=5)] = 0
    secrets: bool = False
    fleet: FleetBody | None = None


class WebhookDocument(Struct, frozen=True):
    """A webhook; its secret and the path of its URL are not shown."""

    point: str
    name: str
    host: str
    signed: bool
    timeout: float
    on_failure: str
    priority: int
    queued: bool
    retries: int
    secrets: bool
    fleet: bool
    breaker: str | None
    failures: int
    sent: int


class WebhookList(Struct, frozen=True):
    """The webhooks of this sidecar."""

    webhooks: list[WebhookDocument]


@routes.route("GET", "/v1/webhooks", ADMIN, returns=WebhookList)
async def list_webhooks(call: Call) -> Reply:
    """List the webhooks of this sidecar."""
    found = call.services.one(Webhooks).all()
    return Reply(WebhookList([_webhook_document(*one) for one in found]))


@routes.route(
    "PUT",
    _WEBHOOK,
    ADMIN,
    body=WebhookBody,
    returns=WebhookDocument,
    errors=(DuplicateHookError,),
)
async def put_webhook(call: Call) -> Reply:
    """Have a URL asked whenever a point is reached, until this sidecar stops.

    It is sent the hook's context as JSON by POST, and answers with one of the nine results, as
    ``{"result": "cancel", "reason": "…"}``; nothing is to go on. Registered again it takes the
    place of the one before. The operation waits for it, at most `timeout` seconds, unless it is
    `queued`. With `fleet` it runs for what happens in other processes too.
    """
    body: WebhookBody = call.body
    terms = WebhookTerms(
        call.parameters["name"],
        call.parameters["point"],
        body.url,
        body.secret,
        timeout=body.timeout,
        on_failure=body.on_failure,
        priority=body.priority,
        queued=body.queued,
        retries=body.retries,
        secrets=body.secrets,
    )
    fleet = None
    if body.fleet is not None:
        fleet = {name: getattr(body.fleet, name) for name in body.fleet.__struct_fields__}
    hook = await call.services.one(Webhooks).put(terms, fleet=fleet)
    return Reply(_webhook_document(terms, hook, fleet is not None))


@routes.route("DELETE", _WEBHOOK, ADMIN, errors=(HookNotFoundError,))
async def remove_webhook(call: Call) -> Reply:
    """Take a webhook away."""
    point, name = call.parameters["point"], call.parameters["name"]
    if not await call.services.one(Webhooks).remove(point, name):
        raise HookNotFoundError(name, point)
    return NO_CONTENT


def _webhook_document(terms: WebhookTerms, hook: RegisteredHook, fleet: bool) -> WebhookDocument:
    stats = hook.stats(rings=())  # how often and how long it ran is not shown
    return WebhookDocument(
        point=str(hook.point),
        name=terms.name,
        host=terms.where,
        signed=terms.secret is not None,
        timeout=terms.timeout,
        on_failure=terms.on_failure,
        priority=terms.priority,
        queued=terms.queued,
        retries=terms.retries,
        secrets=terms.secrets,
        fleet=fleet,
        breaker=None if stats.breaker is None else str(stats.breaker),
        failures=stats.failures,
        sent=int(stats.extra.get("sent", 0)),
    )
