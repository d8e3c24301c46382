"""Clients of a sidecar, access files for it, and a relay between the two that loses answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.auth.minting import new_token

Grants = Callable[..., tuple[Access, str]]


@pytest.fixture
def granted(tmp_path: Path) -> Grants:
    """A function from grants (scope pattern, verbs) to who may what, and the one token there is."""

    def make(*grants: tuple[str, str]) -> tuple[Access, str]:
        secret, digest = new_token()
        told = ", ".join(
            f'{{ scopes = ["{pattern}"], verbs = [{", ".join(map(repr, verbs.split()))}] }}'
            for pattern, verbs in grants
        )
        file = tmp_path / "access.toml"
        file.write_text(f'[[token]]\nname = "test"\nsha256 = "{digest}"\ngrants = [{told}]\n')
        file.chmod(0o600)
        return Access.load(file), secret

    return make


class Relay:
    """Passes bytes on between clients and a port; told so, it loses an answer and the connection.

    What it counts are requests, by what stands in them, so the same thing happens on every run.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._match: bytes | None = None
        self._forward = True
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lost = 0
        """Answers that were lost."""
        self.port = 0

    def lose_answer(self, match: bytes, *, forward: bool = True) -> None:
        """Cut at the next request with `match` in it; the sidecar gets it, or not even that."""
        self._match, self._forward = match, forward

    def point_to(self, port: int) -> None:
        """Relay new connections to another port."""
        self._port = port

    async def serve(self) -> asyncio.Server:
        """Begin to listen."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        back: asyncio.Task[None] | None = None
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.ensure_future(self._back(answers, writer))
            while data := await reader.read(65536):
                if self._match is not None and self._match in data:
                    self._match = None
                    await _ended(back)
                    if self._forward:
                        upstream.write(data)
                        await upstream.drain()
                        await answers.read(1)  # it is answered
                    self.lost += 1
                    return
                upstream.write(data)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if back is not None:
                await _ended(back)
            for one in (writer, upstream):
                if one is not None:
                    one.close()
                    with suppress(ConnectionError, asyncio.CancelledError):
                        await one.wait_closed()

    @staticmethod
    async def _back(answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(65536):
            writer.write(data)
        writer.close()

    async def close(self) -> None:
        """End every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, ConnectionError):
        await task


@pytest.fixture
async def relay() -> AsyncIterator[Callable[[str], Any]]:
    """A function that starts a `Relay` to a sidecar's URL."""
    started: list[tuple[Relay, asyncio.Server]] = []

    async def start(url: str) -> Relay:
        made = Relay(int(url.rpartition(":")[2]))
        started.append((made, await made.serve()))
        return made

    yield start
    for made, server in started:
        server.close()
        await made.close()
        await server.wait_closed()
