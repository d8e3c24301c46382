"""What operators look at and do: server, log, retention, housekeeping, the sidecar itself."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct, structs

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.redis.commands import Command
from llmspell_dist.redis.resp import pack
from llmspell_dist.retention import Retention
from llmspell_dist.sidecar.agency import driver_of
from llmspell_dist.sidecar.backing import store_of
from llmspell_dist.sidecar.documents import as_document
from llmspell_dist.sidecar.endpoint import VALUE, Registry
from llmspell_dist.sidecar.errors import NotFoundError
from llmspell_dist.sidecar.leasing import Leasing
from llmspell_dist.sidecar.operations import Operations
from llmspell_dist.sidecar.reply import NO_CONTENT, Reply
from llmspell_dist.sidecar.routes.operations import ADMIN
from llmspell_dist.sidecar.streams import Streams
from llmspell_dist.state.housekeeping import retention_of, sweep

if TYPE_CHECKING:
    from llmspell_dist.log import LogStat
    from llmspell_dist.sidecar.call import Call
    from llmspell_dist.sidecar.services import Services
    from llmspell_dist.state.driver import AsyncDriver

__all__ = ["routes"]

routes = Registry("admin", "For operators: what is there, what is wrong, what is kept.")
_SWEEPS: Final = 1000
_MOST: Final = 2**53 - 1
"""Beyond it numbers are not the same in every language."""
_LONGEST_S: Final = 1000 * 366 * 86_400.0


# --- the sidecar ----------------------------------------------------------------------------------


@routes.route("GET", "/v1/admin/sidecar", ADMIN, returns=VALUE)
async def show_sidecar(call: Call) -> Reply:
    """Tell what this sidecar is, how it was started (without secrets), and what it has to do."""
    services = call.services
    held, waiting = call.spell.leases.standing()
    return Reply(
        {
            "version": version("llmspell-dist"),
            "python": platform.python_version(),
            "process": os.getpid(),
            "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "namespace": call.spell.namespace,
            "draining": services.draining,
            "settings": _settings(services),
            "streams": len(services.one(Streams)),
            "operations": sum(one.running for one in services.one(Operations).all()),
            "leases": {
                "held_here": held,
                "waiting": waiting,
                "to_hand_over": len(services.one(Leasing)),
            },
        }
    )


def _settings(services: Services) -> dict[str, Any]:
    """Return the settings without secrets: of a place for backups its label, as logs have it."""
    found: dict[str, Any] = as_document(services.settings)
    found["backups"] = None if services.settings.backups is None else store_of(services).label
    found["backup_keys"] = services.settings.backup_keys is not None
    del found["backup_older_keys"]
    return found


# --- the server -----------------------------------------------------------------------------------


@routes.route("GET", "/v1/admin/doctor", ADMIN, returns=VALUE)
async def show_doctor(call: Call) -> Reply:
    """Look at the server for what is wrong with it, and what to do: half a second of requests."""
    # Imported here: no other route needs it.
    from llmspell_dist.doctor import Severity, collect, diagnose  # noqa: PLC0415

    facts = await collect(call.services.url, namespace=call.spell.namespace)
    findings = diagnose(facts)
    worst = max((one.severity for one in findings), key=lambda one: one.rank, default=Severity.OK)
    return Reply(
        {
            "server": {"flavour": facts.flavour, "version": facts.version},
            "namespace": facts.namespace,
            "worst": worst.value,
            "findings": [
                {
                    "check": one.check,
                    "severity": one.severity.value,
                    "found": one.found,
                    "advice": one.advice or None,
                }
                for one in findings
            ],
        }
    )


@routes.route("GET", "/v1/admin/stat", ADMIN, returns=VALUE)
async def show_stat(call: Call) -> Reply:
    """Tell how much the namespace holds, and how its change log stands against its retention."""
    driver, spell = driver_of(call), call.spell
    core, info = driver.core, spell.server
    retention = await driver.run(retention_of(core))
    scopes = [
        await driver.execute(Command(pack(b"ZCARD", core.keyspace.due(shard)), "ZCARD"))
        for shard in core.shards()
    ]
    logs = [await spell.log.stat(shard=shard) for shard in core.shards()]
    return Reply(
        {
            "namespace": spell.namespace,
            "server": as_document(info),
            "scopes": sum(scopes),
            "retention": structs.asdict(retention_document(retention)),
            "log": [_log(one, retention) for one in logs],
        }
    )


def _log(stat: LogStat, retention: Retention) -> dict[str, Any]:
    document: dict[str, Any] = as_document(asdict(stat))
    return document | {"of_cap": round(stat.entries / retention.cap_entries, 4)}


@routes.route("GET", "/v1/admin/connections", ADMIN, returns=VALUE)
async def show_connections(call: Call) -> Reply:
    """Tell which clients of this library are connected to the server, this sidecar among them."""
    reply = await driver_of(call).execute(Command(pack(b"CLIENT", b"LIST"), "CLIENT LIST"))
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    found = [dict(part.partition("=")[::2] for part in line.split()) for line in text.splitlines()]
    wanted = ("id", "name", "addr", "age", "idle", "sub", "psub", "db", "cmd")
    named = [{name: one.get(name) for name in wanted} for one in found if one.get("name")]
    return Reply({"connections": named, "unnamed": len(found) - len(named)})


# --- the log --------------------------------------------------------------------------------------


class RetentionDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the change log keeps its entries."""

    max_age: Annotated[
        Annotated[float, Meta(ge=0, le=_LONGEST_S)] | None,
        Meta(description="Seconds; null: entries of any age."),
    ] = 7 * 86_400.0
    max_entries: Annotated[int, Meta(le=_MOST)] = 100_000
    cap_entries: Annotated[int, Meta(le=_MOST, description="For holds; beyond it they break.")] = (
        1_000_000
    )


def retention_document(retention: Retention) -> RetentionDocument:
    """Return a retention as a document."""
    age = retention.max_age
    return RetentionDocument(
        max_age=None if age is None else age.total_seconds(),
        max_entries=retention.max_entries,
        cap_entries=retention.cap_entries,
    )


@routes.route("GET", "/v1/admin/retention", ADMIN, returns=RetentionDocument)
async def show_retention(call: Call) -> Reply:
    """Tell how long the change log keeps its entries."""
    driver = driver_of(call)
    return Reply(retention_document(await driver.run(retention_of(driver.core))))


@routes.route(
    "PUT", "/v1/admin/retention", ADMIN, body=RetentionDocument, returns=RetentionDocument
)
async def set_retention(call: Call) -> Reply:
    """Set how long the change log keeps its entries; the whole fleet does so within a second."""
    body: RetentionDocument = call.body
    age = None if body.max_age is None else timedelta(seconds=body.max_age)
    retention = Retention(age, body.max_entries, body.cap_entries)
    driver = driver_of(call)
    request = pack(b"HSET", driver.core.keyspace.ctl("0"), b"retention", retention.stored)
    await driver.execute(Command(request, "HSET"))
    return Reply(retention_document(retention))


@routes.route("DELETE", "/v1/admin/log-holds/{name}", ADMIN, errors=(NotFoundError,))
async def release_hold(call: Call) -> Reply:
    """Let entries of the log be trimmed that a hold keeps: of an archiver that is gone for good."""
    name, log = call.parameters["name"], call.spell.log
    shards = driver_of(call).core.shards()
    stats = [await log.stat(shard=shard) for shard in shards]
    if not any(name in one.holds or name in one.broken for one in stats):
        raise NotFoundError(f"hold {name!r}")
    await log.release(name)
    return NO_CONTENT


class Housekept(Struct, frozen=True):
    """What was tidied."""

    expired: int
    trimmed: int


@routes.route("POST", "/v1/admin/housekeeping", ADMIN, returns=Housekept)
async def keep_house(call: Call) -> Reply:
    """Remove what has expired and shorten the log now; some process does so every second anyway."""
    driver = driver_of(call)
    expired = sum([await _swept(call, driver, shard) for shard in driver.core.shards()])
    return Reply(Housekept(expired, await call.spell.log.trim()))


async def _swept(call: Call, driver: AsyncDriver, shard: str) -> int:
    total = 0
    for _ in range(_SWEEPS):
        steps = sweep(driver.core, shard, seen=call.spell.hooks.interceptor)
        _, removed, more = await driver.run(steps)
        total += removed
        if not more:
            break
    return total


# --- the near cache -------------------------------------------------------------------------------


@routes.route("GET", "/v1/admin/near-cache", ADMIN, returns=VALUE)
async def show_near_cache(call: Call) -> Reply:
    """Tell what this sidecar serves from memory; `on` is false if it was not told to."""
    near = call.spell.near_cache
    return Reply(
        {"on": near is not None, "stats": None if near is None else as_document(near.stats)}
    )


@routes.route("DELETE", "/v1/admin/near-cache", ADMIN)
async def clear_near_cache(call: Call) -> Reply:
    """Drop what this sidecar keeps in memory; what is read again is kept again."""
    near = call.spell.near_cache
    if near is None:
        raise InvalidArgumentError("near-cache", None, "must be on to be cleared")
    near.clear()
    return NO_CONTENT
