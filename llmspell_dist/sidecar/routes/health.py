"""What orchestrators ask: is the process alive, can it serve, how does it fare."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import Struct

from llmspell_dist.errors import SpellError
from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.reply import Reply

__all__ = ["routes"]

routes = Registry("health", "For probes and monitoring; served without credentials.")
_PATIENCE_S: Final = 1.0


class Health(Struct, frozen=True, omit_defaults=True):
    """Whether it can serve, and if not, why."""

    status: str
    reason: str | None = None


@routes.route("GET", "/livez", public=True, returns=Health)
async def livez(call: Call) -> Reply:  # noqa: ARG001 - it asks for nothing
    """Tell that the process runs; nothing about Redis, or a restart would be the cure for that."""
    return Reply(Health("alive"))


@routes.route("GET", "/readyz", public=True, returns=Health, statuses={503: "It cannot serve now."})
async def readyz(call: Call) -> Reply:
    """Tell whether requests can be served: Redis answers, and nobody asked it to stop."""
    if call.services.draining:
        return Reply(Health("unready", "it is stopping"), status=503)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await call.spell.ping()
    except TimeoutError:
        reason = f"the server did not answer within {_PATIENCE_S:g} s"
        return Reply(Health("unready", reason), status=503)
    except SpellError as error:
        return Reply(Health("unready", str(error)), status=503)
    return Reply(Health("ready"))


@routes.route("GET", "/metrics", public=True, returns=None)
async def metrics(call: Call) -> Reply:
    """Give the metrics in Prometheus' text format."""
    body, media = await asyncio.to_thread(call.services.render_metrics)
    return Reply(body, media=media)
