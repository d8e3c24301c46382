"""Effects that run once, over HTTP: claimed here, carried out by the client, settled here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from msgspec.structs import asdict

from llmspell_dist.agents.effects import EffectRecord, EffectStatus, check_limit, effect_key, who
from llmspell_dist.agents.errors import (
    AgentNotFoundError,
    EffectCommittedError,
    EffectFailedError,
    EffectInProgressError,
    EffectTakenOverError,
    EffectUnknownError,
)
from llmspell_dist.errors import (
    CodecError,
    LeaseRequiredError,
    LimitError,
    StaleFencingTokenError,
)
from llmspell_dist.revision import Revision
from llmspell_dist.sidecar.agency import agent_of, driver_of, effects_of
from llmspell_dist.sidecar.auth.grants import Verb
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply
from llmspell_dist.sidecar.routes.agent_shapes import EffectDocument, effect_document
from llmspell_dist.sidecar.routes.agents import AGENT, allowed
from llmspell_dist.sidecar.routes.shapes import Revised
from llmspell_dist.ttl import ttl_ms

__all__ = ["routes"]

routes = Registry(
    "effects", "What must happen once: a mail, a payment, a call that must not repeat."
)
_EFFECT: Final = f"{AGENT}/effects/{{key}}"
_WRITES: Final[dict[str, Any]] = {
    "asks": (Verb.WRITE,),
    "headers": ("LLMSpell-Lease", "Idempotency-Key"),
}
_FENCED: Final = (LeaseRequiredError, StaleFencingTokenError)

Limit = Annotated[
    float, Meta(gt=0, description="Seconds that carrying it out may take: at most a day.")
]
By = Annotated[str | None, Meta(description="Who claims it; by default the caller.")]
Keep = Annotated[
    float | None, Meta(description="Seconds for which the result is kept; null: for good.")
]
Claimed = Annotated[str, Meta(description="The `revision` that claiming it gave.")]


class EffectClaim(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who wants to carry it out, and how long that may take."""

    limit: Limit = 60.0
    by: By = None
    retry_failed: bool = False
    renews: Annotated[
        str | None,
        Meta(description="The `revision` of the caller's own claim, to begin its limit anew."),
    ] = None


class EffectResult(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """It happened, with this result."""

    claim: Claimed
    result: Any = None
    keep: Keep = None


class EffectFailure(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """It certainly did not happen; or, with `unknown`, nobody can tell."""

    claim: Claimed
    reason: str
    unknown: bool = False


class EffectResolution(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was found out about an effect of unknown outcome: it did happen."""

    result: Any = None
    keep: Keep = None
    limit: Limit = 60.0
    by: By = None


class EffectList(Struct, frozen=True):
    """The effects of an agent by the time of their claim."""

    effects: list[EffectDocument]


@routes.route("GET", f"{AGENT}/effects", asks=(Verb.READ,), returns=EffectList)
async def list_effects(call: Call) -> Reply:
    """List an agent's effects; a claim that was left behind stands as unknown."""
    allowed(call, Verb.READ)
    found = await agent_of(call).effects()
    return Reply(EffectList([effect_document(one) for one in found]))


class _Effect(Struct, frozen=True, forbid_unknown_fields=True):
    recorded: Annotated[
        bool, Meta(description="As its record says: a claim stands as claimed though left behind.")
    ] = False


class EffectSeen(EffectDocument, frozen=True, kw_only=True):
    """One effect, and when it was looked at."""

    time: Annotated[datetime, Meta(description="By the server's clock, as the deadline is.")]


@routes.route(
    "GET", _EFFECT, asks=(Verb.READ,), query=_Effect, returns=EffectSeen, errors=(NotFoundError,)
)
async def show_effect(call: Call) -> Reply:
    """Tell how an effect stands, with its result once it has happened."""
    allowed(call, Verb.READ)
    steps, key = effects_of(call), call.parameters["key"]
    seen = await driver_of(call).run(steps.look(key))
    found = seen.record if call.query.recorded else seen.as_of_now(steps.token)
    if found is None:
        raise NotFoundError(f"effect {key!r} of agent {steps.agent_id!r}")
    return Reply(EffectSeen(**asdict(effect_document(found)), time=seen.now))


@routes.route(
    "POST",
    f"{_EFFECT}/claim",
    body=EffectClaim,
    returns=EffectDocument,
    errors=(
        *(AgentNotFoundError, EffectInProgressError, EffectUnknownError, EffectFailedError),
        *(EffectTakenOverError, *_FENCED),
    ),
    **_WRITES,
)
async def claim_effect(call: Call) -> Reply:
    """Claim an effect before it is carried out; what happened already is answered with its result.

    With status ``claimed`` the caller carries it out and says how it ended, by ``complete`` or
    ``fail`` and the claim's `revision`. With ``committed`` it must not: `result` is what it gave.
    """
    allowed(call, Verb.WRITE)
    body, steps, key = call.body, effects_of(call), _key(call)
    driver, by, limit_ms = driver_of(call), who(body.by), check_limit(body.limit)
    if body.renews is not None:
        return Reply(effect_document(await _renewed(call, body.renews, by, limit_ms)))
    record = await driver.run(steps.claim(key, by, limit_ms, body.retry_failed))
    return Reply(effect_document(record))


async def _renewed(call: Call, claim: str, by: str, limit_ms: int) -> EffectRecord:
    """Let the limit of a claim begin anew, if it is this one still."""
    steps, driver, key = effects_of(call), driver_of(call), _key(call)
    seen = await driver.run(steps.look(key))
    found = seen.record
    renewed = None
    if found is not None and found.revision == Revision.parse(claim):
        renewed = await driver.run(steps.renew(found, by, limit_ms))
    if renewed is None:
        raise seen.error(EffectTakenOverError)
    return renewed


@routes.route(
    "POST",
    f"{_EFFECT}/complete",
    body=EffectResult,
    returns=Revised,
    errors=(EffectTakenOverError, *_FENCED),
    **_WRITES,
)
async def complete_effect(call: Call) -> Reply:
    """Say that a claimed effect happened, and with what result; that is stored."""
    body: EffectResult = call.body
    if body.keep is not None:
        ttl_ms(body.keep)
    ended = EffectStatus.COMMITTED, body.result, None, body.keep
    return await _settled(call, body.claim, ended)


@routes.route(
    "POST",
    f"{_EFFECT}/fail",
    body=EffectFailure,
    returns=Revised,
    errors=(EffectTakenOverError, *_FENCED),
    **_WRITES,
)
async def fail_effect(call: Call) -> Reply:
    """Say that a claimed effect did not happen, or that nobody can tell."""
    body: EffectFailure = call.body
    status = EffectStatus.UNKNOWN if body.unknown else EffectStatus.FAILED
    return await _settled(call, body.claim, (status, None, body.reason, None))


async def _settled(
    call: Call, claim: str, ended: tuple[EffectStatus, Any, str | None, float | None]
) -> Reply:
    """Store how a claim ended, if it is this one still."""
    allowed(call, Verb.WRITE)
    steps, driver, key = effects_of(call), driver_of(call), _key(call)
    claimed = Revision.parse(claim)
    seen = await driver.run(steps.look(key))
    if seen.record is None or seen.record.revision != claimed:
        raise seen.error(EffectTakenOverError)
    try:
        revision = await driver.run(steps.settle(seen.record, *ended))
    except (CodecError, LimitError) as error:
        # It happened, and its result cannot be stored: somebody has to say what it was.
        unknown = EffectStatus.UNKNOWN
        await driver.run(steps.settle(seen.record, unknown, None, str(error), None))
        raise
    return Reply(Revised(str(revision)))


@routes.route(
    "POST",
    f"{_EFFECT}/resolve",
    body=EffectResolution,
    errors=(AgentNotFoundError, EffectInProgressError, EffectCommittedError, *_FENCED),
    **_WRITES,
)
async def resolve_effect(call: Call) -> Reply:
    """Say that an effect of unknown outcome did happen, and with which result."""
    allowed(call, Verb.WRITE)
    body: EffectResolution = call.body
    if body.keep is not None:
        ttl_ms(body.keep)
    steps, limit_ms = effects_of(call), check_limit(body.limit)
    await driver_of(call).run(
        steps.resolve(_key(call), who(body.by), limit_ms, body.result, body.keep)
    )
    return NO_CONTENT


@routes.route(
    "POST",
    f"{_EFFECT}/retry",
    body=EffectClaim,
    returns=EffectDocument,
    errors=(AgentNotFoundError, EffectInProgressError, EffectCommittedError, *_FENCED),
    **_WRITES,
)
async def retry_effect(call: Call) -> Reply:
    """Say that an effect of unknown outcome did not happen, and claim it anew."""
    allowed(call, Verb.WRITE)
    body, steps = call.body, effects_of(call)
    limit_ms = check_limit(body.limit)
    record = await driver_of(call).run(steps.retry(_key(call), who(body.by), limit_ms))
    return Reply(effect_document(record))


def _key(call: Call) -> str:
    key = call.parameters["key"]
    effect_key(key)
    return key
