"""Asks an application without a socket: fast, and streams can be left as soon as they began."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec


@dataclass
class Told:
    """What an application answered."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def document(self) -> Any:
        return msgspec.json.decode(self.body)


async def asgi_ask(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, Any] | None = None,
    **scope: Any,
) -> Told:
    """Return the answer to a request, whose client goes once it has the beginning of it.

    Of a WebSocket the status is 101 if it was accepted, else its close code less 4000.
    """
    socket = method == "WEBSOCKET"
    content = b"" if body is None else msgspec.json.encode(body)
    sent = {"host": "127.0.0.1"} | dict(headers or {})
    if body is not None:
        sent |= {"content-type": "application/json", "content-length": str(len(content))}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    found, begun, asked = Told(), asyncio.Event(), False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            if socket:
                return {"type": "websocket.connect"}
            return {"type": "http.request", "body": content, "more_body": False}
        await begun.wait()
        if socket:
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.status, found.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            found.body += message.get("body", b"")
        elif message["type"] == "websocket.accept":
            found.status = 101
        elif message["type"] == "websocket.close" and not found.status:
            found.status = message["code"] - 4000
        if message["type"] != "http.response.start":
            begun.set()

    asking = {
        "type": "websocket" if socket else "http",
        "method": "GET" if socket else method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query or {}, doseq=True).encode(),
        "headers": pairs,
        "client": ("127.0.0.1", 1),
        **scope,
    }
    async with asyncio.timeout(20):
        await app(asking, receive, send)
    return found
