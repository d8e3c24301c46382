"""The sidecar's life: wait for the server, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmspell_dist.backoff import Backoff
from llmspell_dist.client import connect
from llmspell_dist.config import Options, default_url, parse_url
from llmspell_dist.errors import StoreUnavailableError
from llmspell_dist.sidecar.app import make_services
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.backing import store_of
from llmspell_dist.sidecar.descriptors import raise_file_limit
from llmspell_dist.sidecar.probes import Probes, probing
from llmspell_dist.sidecar.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmspell_dist.client import Spell
    from llmspell_dist.sidecar.services import Services
    from llmspell_dist.sidecar.settings import SidecarSettings
    from llmspell_dist.telemetry import Running

__all__ = ["run", "until_signalled"]

logger = logging.getLogger("llmspell_dist.sidecar")
_LOOK_EVERY_S: Final = 30.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def run(
    settings: SidecarSettings,
    url: str | None,
    options: Options,
    *,
    stop: asyncio.Event,
    telemetry: Running | None = None,
) -> None:
    """Serve until `stop` is set, then answer what was accepted and end.

    What is wrong with the settings raises before anything is opened. A server that is out of reach
    is waited for: meanwhile only probes are answered, and told why it is not ready.
    """
    parse_url(default_url() if url is None else url)  # a sidecar goes to Redis, not to another one
    if telemetry is not None:
        options = replace(options, telemetry=telemetry.telemetry)
    access = Access.open_on_loopback() if settings.access is None else Access.load(settings.access)
    if settings.bind is not None:
        access.check_bind(settings.bind.host)
    raise_file_limit()
    async with (
        probing(settings) as probes,
        _connected(url, options, stop, probes, fleet=settings.fleet) as spell,
    ):
        if spell is None:
            return
        services = make_services(spell, access, settings, telemetry)
        services.url = url
        refreshing = asyncio.create_task(access.refresh_forever())
        try:
            async with _looked_at(services, telemetry), serving(services, probes):
                where = [str(part) for part in (settings.bind, settings.unix) if part is not None]
                logger.info("serving %s at %s", spell.namespace, " and ".join(where))
                await stop.wait()
                logger.info("stopping: what was accepted is answered first")
        finally:
            refreshing.cancel()
            await asyncio.wait([refreshing])
    logger.info("stopped")


@asynccontextmanager
async def _connected(
    url: str | None, options: Options, stop: asyncio.Event, probes: Probes, *, fleet: bool
) -> AsyncIterator[Spell | None]:
    """Open the client, as often as it takes; None if told to stop before.

    Nothing is served before it has joined the fleet, if it is to: no write gets past a guard.
    """
    backoff = Backoff(first_s=0.1, max_s=2.0)
    while not stop.is_set():
        try:
            spell = await _opened(url, options, fleet=fleet)
        except StoreUnavailableError as error:
            if not error.retryable:
                raise
            logger.warning("waiting for the server: %s", error)
            probes.waiting_for = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff.next_s())
            continue
        async with spell:
            yield spell
        return
    yield None


async def _opened(url: str | None, options: Options, *, fleet: bool) -> Spell:
    spell = await connect(url, options=options)
    try:
        if fleet:
            await spell.hooks.fleet.join()
    except BaseException:
        await spell.close()
        raise
    return spell


@asynccontextmanager
async def _looked_at(services: Services, telemetry: Running | None) -> AsyncIterator[None]:
    """Let telemetry see what only the server and the backups know, inside the block."""
    if telemetry is None:
        yield
        return
    from llmspell_dist.telemetry import inspecting  # noqa: PLC0415 - as its extra is optional

    stores = [] if services.settings.backups is None else [store_of(services)]
    async with inspecting(telemetry.telemetry, services.spell, stores, every=_LOOK_EVERY_S):
        yield


@asynccontextmanager
async def until_signalled() -> AsyncIterator[asyncio.Event]:
    """Give an event that SIGTERM and SIGINT set; a second one ends the process as usual."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told() -> None:
        stop.set()
        for one in _SIGNALS:
            loop.remove_signal_handler(one)

    for one in _SIGNALS:
        loop.add_signal_handler(one, told)
    try:
        yield stop
    finally:
        if not stop.is_set():
            for one in _SIGNALS:
                loop.remove_signal_handler(one)
