"""The port for probes: there before Redis is, and until the last request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import httpx
from fix_sidecar import Sidecar, StartSidecar

from llmspell_dist.config import Options
from llmspell_dist.sidecar.running import run
from llmspell_dist.sidecar.settings import Listen, SidecarSettings


async def test_it_serves_health_and_nothing_else(
    start_sidecar: StartSidecar, free_port: Callable[[], int]
) -> None:
    """No state can be read through it, nor any page."""
    port = free_port()
    sidecar: Sidecar = await start_sidecar(health=Listen("127.0.0.1", port))
    await sidecar.ask("PUT", "/v1/state/agent:a/k", 1)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for path, status in (("/livez", 200), ("/readyz", 200), ("/metrics", 200)):
            assert (await http.get(path)).status_code == status
        for path in ("/v1/state/agent:a/k", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 404


async def test_it_is_not_ready_once_it_drains(
    start_sidecar: StartSidecar, free_port: Callable[[], int]
) -> None:
    """Alive, but 503 with the reason."""
    port = free_port()
    sidecar: Sidecar = await start_sidecar(health=Listen("127.0.0.1", port))
    sidecar.services.drain()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "it is stopping")
        assert (await http.get("/livez")).status_code == 200


async def test_a_sidecar_that_waits_for_redis_is_alive_and_says_what_it_waits_for(
    free_port: Callable[[], int], namespace: str
) -> None:
    """Told to stop meanwhile it ends; the API's port was never opened."""
    port, api, nobody = free_port(), free_port(), free_port()
    settings = replace(
        SidecarSettings(), bind=Listen("127.0.0.1", api), health=Listen("127.0.0.1", port)
    )
    stop = asyncio.Event()
    options = Options(namespace=namespace, retry_budget=0.05)
    running = asyncio.create_task(
        run(settings, f"redis://127.0.0.1:{nobody}/0", options, stop=stop)
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        reason = ""
        while "refused" not in reason:
            assert not running.done()
            try:
                ready = await http.get("/readyz")
            except httpx.ConnectError:
                await asyncio.sleep(0)
                continue
            assert ready.status_code == 503
            reason = ready.json()["reason"]
            assert (await http.get("/livez")).json()["status"] == "alive"
    with_api = httpx.AsyncClient(base_url=f"http://127.0.0.1:{api}")
    async with with_api as http:
        try:
            await http.get("/livez")
        except httpx.ConnectError:
            pass
        else:
            raise AssertionError("the API listens before it can serve")
    stop.set()
    await asyncio.wait_for(running, 10)
