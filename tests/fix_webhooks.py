"""A program that receives webhooks on loopback and answers as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest


class Receiver:
    """What came, and what is answered: a document, a status, text, or a coroutine function."""

    def __init__(self) -> None:
        self.url = ""
        self.came: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.answers: list[Any] = []
        self.answer: Any = None
        self.went_on = asyncio.Event()

    async def handle(self, request: Any) -> Any:
        from aiohttp import web

        body = await request.read()
        self.bodies.append(body)
        self.came.append(json.loads(body) if body else {})
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        answer = self.answers.pop(0) if self.answers else self.answer
        if callable(answer):
            answer = await answer()
        if answer is None:
            return web.Response(status=204)
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"location": f"{self.url}/elsewhere"})
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that says to go on until the test says otherwise."""
    from aiohttp import web

    found = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", found.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    found.url = f"http://127.0.0.1:{port}"
    yield found
    await runner.cleanup()
