"""Runs the sidecar: listens over an open client, and ends so that nothing accepted is lost.

The API is served by Granian inside this process and event loop. The unix socket is served by
uvicorn, which shows who connected; so is the port for probes, which answers until the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketSpec  # type: ignore[attr-defined] # it is what Granian uses itself
from granian.server.embed import Server as GranianServer

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.app import make_app, make_health_app
from llmspell_dist.sidecar.backing import begin_archive
from llmspell_dist.sidecar.certificates import CertificateFiles
from llmspell_dist.sidecar.descriptors import room_for
from llmspell_dist.sidecar.plain_server import PlainServer, listen_tcp, listen_unix
from llmspell_dist.sidecar.probes import Probes, probing
from llmspell_dist.sidecar.settings import Listen, SidecarSettings

if TYPE_CHECKING:
    from starlette.routing import Router

    from llmspell_dist.sidecar.services import Services

__all__ = ["serving"]

logger = logging.getLogger("llmspell_dist.sidecar")
_BACKLOG: Final = 2048
RENEW_EVERY_S: Final = 10.0
"""How often the files of a certificate are looked at."""


@asynccontextmanager
async def serving(services: Services, probes: Probes | None = None) -> AsyncIterator[None]:
    """Serve inside the block; at its end drain: what was accepted is answered first.

    `probes` answer as this does from then on; without them the settings' port is opened for it.
    """
    settings = services.settings
    access, limits = services.access, settings.limits
    room = room_for(limits.connections, streams=limits.streams)
    app = make_app(services)
    async with AsyncExitStack() as stack:
        if probes is None:
            probes = await stack.enter_async_context(probing(settings))  # the last to go
        stack.push_async_callback(services.end)
        begin_archive(services)
        if settings.unix is not None:
            sock = listen_unix(str(settings.unix))
            plain = PlainServer(app, sock, limits, connections=room.unix)
            await plain.start()
            stack.callback(_remove, settings.unix, settings.unix.stat().st_ino)
            stack.push_async_callback(plain.stop, settings.drain_s)
        if settings.bind is not None:
            access.check_bind(settings.bind.host)
            _check_free(settings.bind)
            bind = settings.bind
            served = _Served(lambda: _Granian(app, settings, bind, room.api), settings)
            await served.start()
            stack.push_async_callback(served.stop)
        probes.answers = make_health_app(services)  # or it would be called ready before
        stack.callback(services.drain)
        yield


def _remove(path: Path, inode: int) -> None:
    """Remove our socket, unless another sidecar serves at its place by now."""
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


class _Server(GranianServer):
    """Granian, which lets go of clients that take nothing of their answer.

    It waits for them without end, and holds what it has for them. The kernel need not: connections
    get this limit from the socket that accepts them, where the system knows it (Linux).
    """

    answer_s: float = 0.0

    def _init_shared_socket(self) -> None:
        holder: Any = SocketSpec(self.bind_addr, self.bind_port, self.backlog).build()
        self._shd = holder
        limit = getattr(socket, "TCP_USER_TIMEOUT", None)
        if limit is not None:
            with socket.socket(fileno=os.dup(holder.get_fd())) as listening:
                listening.setsockopt(socket.IPPROTO_TCP, limit, int(self.answer_s * 1000))


class _Granian:
    """The server of the API's port."""

    def __init__(
        self, app: Router, settings: SidecarSettings, bind: Listen, connections: int
    ) -> None:
        limits, tls = settings.limits, settings.tls
        options: dict[str, Any] = {}
        if tls is not None:
            options |= {"ssl_cert": tls.certificate, "ssl_key": tls.key}
            if tls.client_ca is not None:
                options |= {"ssl_ca": tls.client_ca, "ssl_client_verify": True}
        self._server: Any = _Server(
            app,
            address=bind.host,
            port=bind.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            backlog=_BACKLOG,
            backpressure=connections,  # it accepts no more than so many at once
            http1_settings=HTTP1Settings(header_read_timeout=int(limits.header_s * 1000)),
            log_enabled=False,
            **options,
        )
        self._server.answer_s = limits.answer_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.wrks and not self._task.done():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()

    async def stop(self, within_s: float) -> None:
        """Take nothing new, answer what is there, end."""
        if self._task is None:
            return
        self._server.stop()
        done, _ = await asyncio.wait([self._task], timeout=within_s)
        if not done:
            logger.warning("not everything was answered within %g s", within_s)
            for worker in self._server.wrks:
                worker.kill()
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)


class _Served:
    """The API's port, whose certificate is replaced when its files are.

    Granian reads them once. So another one takes the port over, beside the one before, which
    answers what it has accepted; its streams end, and go on at the new one.
    """

    def __init__(self, make: Callable[[], _Granian], settings: SidecarSettings) -> None:
        self._make = make
        self._drain_s = settings.drain_s
        self._tls = settings.tls
        self._server = make()
        self._renewing: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to serve."""
        files = None if self._tls is None else await asyncio.to_thread(CertificateFiles, self._tls)
        await self._server.start()
        if files is not None:
            self._renewing = asyncio.create_task(self._renew_forever(files))

    async def stop(self) -> None:
        """Take nothing new, answer what is there, end."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        await asyncio.gather(self._server.stop(self._drain_s), *self._leaving)

    async def _renew_forever(self, files: CertificateFiles) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                if await asyncio.to_thread(files.changed):
                    await self._take_over()
            except OSError as error:
                logger.error("the new certificate is not used: %s", error)  # noqa: TRY400
            except Exception:
                logger.exception("the new certificate is not used")

    async def _take_over(self) -> None:
        new = self._make()
        await new.start()
        old, self._server = self._server, new
        leaving = asyncio.create_task(old.stop(self._drain_s))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        logger.info("the certificate was replaced: new connections are shown the new one")


def _check_free(bind: Listen) -> None:
    """Refuse a port that somebody serves: Granian would share it with them in silence."""
    if bind.port == 0:
        raise InvalidArgumentError("bind", str(bind), "must name a port")
    listen_tcp(bind.host, bind.port).close()
