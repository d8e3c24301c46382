"""Finding the facts out: what is asked of a server, in which order."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from time import monotonic, time
from typing import Final

from llmspell_dist.config import Endpoint, Options, default_url, parse_url
from llmspell_dist.doctor.facts import ClockOffset, CommitTrial, Facts, Rights
from llmspell_dist.doctor.server import Server, open_server
from llmspell_dist.doctor.trial import try_commit, try_rights
from llmspell_dist.retention import Retention

__all__ = ["collect"]

ROUND_TRIPS: Final = 50
CLOCK_SAMPLES: Final = 5


async def collect(
    url: str | None = None, *, namespace: str | None = None, options: Options | None = None
) -> Facts:
    """Return what there is to know about a server; some 150 small requests, half a second.

    Writes only keys of its own, and removes them. Raises `StoreUnavailableError` or a child if the
    server cannot be reached, `InvalidArgumentError` for a bad URL or namespace.
    """
    target = parse_url(default_url() if url is None else url)
    async with open_server(url, namespace=namespace, options=options) as server:
        return await _facts(server, target)


async def _facts(server: Server, target: Endpoint) -> Facts:
    info, core, spoken = await server.info(), server.assembly.core, server.lanes.info
    whoami = await server.ask("ACL", "WHOAMI")
    user = whoami.decode() if isinstance(whoami, bytes) else target.username or "default"
    usable = info.get("cluster_enabled") != "1" and info.get("redis_mode") != "sentinel"
    writable = usable and info.get("role") != "slave"
    settings = await server.settings() if usable else (None, None)
    skipped = CommitTrial(ok=False, tried=False, said="it is no master of its own")
    # fakeredis has no users, and refuses for its number of arguments what a server refuses later.
    in_process = Rights(user, "none") if target.scheme == "memory" else None
    return Facts(
        namespace=core.keyspace.namespace,
        scheme=target.scheme,
        address=server.lanes.server,
        loopback=await asyncio.to_thread(is_local, target),
        flavour=spoken.flavour if spoken else "redis",
        version=spoken.version if spoken else "unknown",
        protocol=spoken.protocol if spoken else 2,
        protocol_asked=target.protocol or server.assembly.options.protocol,
        info=info,
        config=await server.config(),
        rights=in_process or await try_rights(server, user, writable=writable),
        round_trips_ms=await _round_trips(server),
        clock=await _clock(server),
        commit=await try_commit(server) if writable else skipped,
        logs=await server.logs() if usable else None,
        settings=settings,
        retention=await server.retention() if usable else Retention(),
    )


def is_local(target: Endpoint) -> bool:
    """Whether a URL leads to this machine: every address that its host has is a loopback one."""
    if target.scheme not in ("redis", "rediss"):
        return True
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(target.host, target.port)}
    except OSError:
        return False
    return all(ip_address(str(address).partition("%")[0]).is_loopback for address in found)


async def _round_trips(server: Server) -> tuple[float, ...]:
    return tuple([await server.lanes.ping() * 1000 for _ in range(ROUND_TRIPS)])


async def _clock(server: Server) -> ClockOffset | None:
    """Return the sample with the shortest round trip, which is the most certain."""
    best: ClockOffset | None = None
    for _ in range(CLOCK_SAMPLES):
        started, wall = monotonic(), time()
        reply = await server.ask("TIME")
        took = monotonic() - started
        if not reply:
            return None
        theirs = int(reply[0]) + int(reply[1]) / 1e6
        sample = ClockOffset(theirs - (wall + took / 2), took / 2)
        if best is None or sample.uncertainty_s < best.uncertainty_s:
            best = sample
    return best
