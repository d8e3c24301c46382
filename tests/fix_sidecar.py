"""A sidecar inside the test's own event loop, over a real port, and a plain client to ask it.

Granian serves it as it does in production; only the process is the test's own.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import msgspec
import pytest

from llmspell_dist import Options, connect
from llmspell_dist.codec import decode, encode
from llmspell_dist.sidecar.app import make_services
from llmspell_dist.sidecar.auth.access import Access
from llmspell_dist.sidecar.services import Services
from llmspell_dist.sidecar.serving import serving
from llmspell_dist.sidecar.settings import Listen, SidecarSettings

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP: httpx would read all certificate authorities for each, some 50 ms."""


@dataclass(frozen=True)
class Sidecar:
    """A running sidecar, and how to ask it."""

    url: str
    services: Services
    http: httpx.AsyncClient

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> httpx.Response:
        """Send one request with a JSON body."""
        given = {name: value for name, value in query.items() if value is not None}
        sent = dict(headers or {})
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            sent.setdefault("content-type", "application/json")
        return await self.http.request(method, path, params=given, content=content, headers=sent)

    async def ask_packed(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request with a MessagePack body; the value of the answer."""
        headers = {"accept": "application/msgpack", "content-type": "application/msgpack"}
        content = None if body is None else encode(body)
        answer = await self.http.request(method, path, content=content, headers=headers)
        assert answer.status_code < 400, answer.text
        return decode(answer.content) if answer.content else None


StartSidecar = Callable[..., Any]


@pytest.fixture
def sidecar_port(free_port: Callable[[], int]) -> Callable[[], int]:
    """A function that returns a port for a sidecar; Granian shares ports (``SO_REUSEPORT``)."""
    return free_port


@pytest.fixture
async def start_sidecar(
    url: str, namespace: str, sidecar_port: Callable[[], int]
) -> AsyncIterator[StartSidecar]:
    """A function that starts a sidecar over the row's server; it ends with the test.

    Takes an `Access` (by default everybody may everything) and fields of `SidecarSettings`.
    """
    async with AsyncExitStack() as stack:

        async def start(access: Access | None = None, **settings: Any) -> Sidecar:
            return await stack.enter_async_context(
                running_sidecar(url, namespace, sidecar_port(), access, **settings)
            )

        yield start


@asynccontextmanager
async def running_sidecar(
    url: str,
    namespace: str,
    port: int,
    access: Access | None = None,
    *,
    options: Options | None = None,
    **given: Any,
) -> AsyncIterator[Sidecar]:
    """Serve inside the block; `options` are those of the client behind it."""
    settings = replace(SidecarSettings(bind=Listen("127.0.0.1", port), drain_s=2.0), **given)
    async with connect(url, namespace=namespace, options=options) as spell:
        services = make_services(spell, access or Access.open_on_loopback(), settings)
        services.url = url
        async with serving(services):
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=10, verify=NO_TLS) as http:
                yield Sidecar(base, services, http)


@pytest.fixture
async def sidecar(start_sidecar: StartSidecar) -> Sidecar:
    """A sidecar on every row, where everybody may everything."""
    started: Sidecar = await start_sidecar()
    return started
