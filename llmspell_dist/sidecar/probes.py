"""The port for probes: open before Redis is reached, and until the last request is answered.

So an orchestrator can tell a sidecar that waits for Redis (alive, not ready, and why) from one that
does not run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from llmspell_dist.sidecar.descriptors import PROBES
from llmspell_dist.sidecar.plain_server import PlainServer, listen_tcp

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from llmspell_dist.sidecar.settings import SidecarSettings

__all__ = ["Probes", "probing"]

_END_S = 1.0


class Probes:
    """The application behind the port: until `answers` is given, it says what is waited for."""

    def __init__(self) -> None:
        self.answers: ASGIApp | None = None
        self.waiting_for = "it is starting"
        """Why it is not ready yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the sidecar does, or as long as it is not there, for it."""
        app = self._starting if self.answers is None else self.answers
        await app(scope, receive, send)

    async def _starting(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/livez":
            answer = JSONResponse({"status": "alive", "reason": None})
        else:
            answer = JSONResponse({"status": "unready", "reason": self.waiting_for}, 503)
        await answer(scope, receive, send)


@asynccontextmanager
async def probing(settings: SidecarSettings) -> AsyncIterator[Probes]:
    """Listen inside the block, if the settings name a port for probes."""
    probes = Probes()
    if settings.health is None:
        yield probes
        return
    sock = listen_tcp(settings.health.host, settings.health.port)
    server = PlainServer(probes, sock, settings.limits, connections=PROBES)
    await server.start()
    try:
        yield probes
    finally:
        await server.stop(_END_S)
