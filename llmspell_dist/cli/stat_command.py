"""``stat``: how much lies in a scope, or in the whole namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmspell_dist.cli.exits import Exit
from llmspell_dist.cli.settings import Settings, command

if TYPE_CHECKING:
    from llmspell_dist.doctor.server import Server
    from llmspell_dist.log import LogStat

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "stat")(stat)


async def stat(
    settings: Settings,
    scope: Annotated[
        str | None, typer.Argument(metavar="[SCOPE]", help="Without it: the whole namespace.")
    ] = None,
) -> Exit:
    """Print how much lies in a scope; without one, server, namespace and change log."""
    document = await (_of_scope(settings, scope) if scope else _of_namespace(settings))
    if settings.as_json:
        settings.output.document(document)
    else:
        settings.output.fields(_flat(document))
    return Exit.OK


async def _of_scope(settings: Settings, scope: str) -> dict[str, Any]:
    async with settings.connect() as spell:
        found = await spell.state.stat(scope)
    return {
        "scope": found.scope,
        "keys": found.keys,
        "bytes": found.bytes,
        "revision": None if found.revision is None else str(found.revision),
        "changed": None if found.revision is None else found.revision.time.isoformat(),
        "schema_version": found.schema_version,
        "fence": found.fence,
    }


async def _of_namespace(settings: Settings) -> dict[str, Any]:
    if settings.through_sidecar:
        return await _told_by_sidecar(settings)
    # Not through a client: looking at a namespace that does not exist would make it.
    from llmspell_dist.doctor.server import open_server  # noqa: PLC0415

    async with open_server(settings.url, options=settings.options) as server:
        await server.settings()  # from now on it knows the shards
        logs = await server.logs() or ()
        info = server.lanes.info
        return {
            "server": {
                "address": server.lanes.server,
                "flavour": info.flavour if info else None,
                "version": info.version if info else None,
                "role": info.role if info else None,
                "replicas": info.replicas if info else None,
                "protocol": info.protocol if info else None,
                "used_memory": (await server.info("memory")).get("used_memory"),
            },
            "namespace": server.keyspace.namespace,
            "scopes": await _scopes(server),
            "log": [await _log(server, stat) for stat in logs],
        }


async def _told_by_sidecar(settings: Settings) -> dict[str, Any]:
    """Return the same as a sidecar tells it, which does not say how many bytes there are."""
    from llmspell_dist.remote.operators import Operators  # noqa: PLC0415

    async with settings.connect() as spell:
        told = await Operators(spell).stat()
    info = told["server"] or {}
    said = ("address", "flavour", "version", "role", "replicas", "protocol", "used_memory")
    return {
        "server": {name: info.get(name) for name in said},
        "namespace": told["namespace"],
        "scopes": told["scopes"],
        "log": [
            {
                **{name: one[name] for name in ("shard", "entries", "floor", "last")},
                "bytes": None,
                "bytes_per_entry": None,
                "holds": one["holds"],
                "broken_holds": one["broken"],
            }
            for one in told["log"]
        ],
    }


async def _scopes(server: Server) -> int:
    """Return how many scopes are registered, also those that were emptied a while ago."""
    shards = server.assembly.core.shards()
    return sum([await server.ask("ZCARD", server.keyspace.due(shard)) or 0 for shard in shards])


async def _log(server: Server, stat: LogStat) -> dict[str, Any]:
    size = await server.ask("MEMORY", "USAGE", server.keyspace.log(stat.shard))
    measured = isinstance(size, int) and stat.entries > 0
    return {
        "shard": stat.shard,
        "entries": stat.entries,
        "floor": None if stat.floor is None else str(stat.floor),
        "last": None if stat.last is None else str(stat.last),
        "bytes": size if measured else None,
        "bytes_per_entry": round(size / stat.entries, 1) if measured else None,
        "holds": {name: str(at) for name, at in stat.holds.items()},
        "broken_holds": {name: str(at) for name, at in stat.broken.items()},
    }


def _flat(document: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Return a document as names and values for people: nested names with a dot."""
    pairs: list[tuple[str, object]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.") or [(f"{prefix}{name}", None)]
        elif isinstance(value, list):
            for place, item in enumerate(value):
                tail = f"{name}." if len(value) == 1 else f"{name}.{place}."
                pairs += _flat(item, f"{prefix}{tail}")
        else:
            pairs.append((prefix + name, value))
    return pairs
