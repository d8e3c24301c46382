"""The HTTP client of webhooks: no redirects, no cookies, no proxy, and only where it may go."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from llmspell_dist.sidecar.webhook_errors import WebhookError
from llmspell_dist.sidecar.webhook_urls import may_connect

__all__ = ["WebhookCalls", "signature"]

MAX_ANSWER: Final = 1024 * 1024
_CONNECTIONS: Final = 32


def signature(secret: str, time_s: int, body: bytes) -> str:
    """Return the header by which a receiver knows the sender: HMAC-SHA256 of time and body."""
    signed = hmac.new(secret.encode(), b"%d." % time_s + body, sha256).hexdigest()
    return f"t={time_s},v1={signed}"


class WebhookCalls:
    """Sends webhooks over connections that are kept."""

    def __init__(self, allowed: Collection[str]) -> None:
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(allowed), limit=0, limit_per_host=_CONNECTIONS, ttl_dns_cache=10
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Send one, and return what the receiver answers; `WebhookError` if that is no success."""
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if not 200 <= answer.status < 300:
                    raise WebhookError(_host(url), f"answered {answer.status}", answer.status)
                found = await answer.content.read(MAX_ANSWER + 1)
                while len(found) <= MAX_ANSWER and not answer.content.at_eof():
                    found += await answer.content.read(MAX_ANSWER + 1 - len(found))
        except (aiohttp.ClientError, OSError) as error:
            # Its text may hold the URL, which may be a secret.
            raise WebhookError(_host(url), type(error).__name__) from None
        if len(found) > MAX_ANSWER:
            raise WebhookError(_host(url), f"answered with more than {MAX_ANSWER:,} bytes")
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


class _Resolver(AbstractResolver):
    """Says what a name means now, and leaves out what must not be reached."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._inner = ThreadedResolver()
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host that may be connected to."""
        found = await self._inner.resolve(host, port, family)
        allowed = [one for one in found if may_connect(host, one["host"], self._allowed)]
        if not allowed:
            raise OSError(f"{host} means an address that webhooks may not go to")
        return allowed

    async def close(self) -> None:
        """There is nothing to close."""
        await self._inner.close()


def _host(url: str) -> str:
    return urlsplit(url).netloc
