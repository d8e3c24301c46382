"""The API about itself: its OpenAPI document, and a page to read it."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from importlib.metadata import version
from threading import Lock
from typing import Annotated, Final

from msgspec import Meta, Struct

from llmspell_dist.sidecar.call import Call
from llmspell_dist.sidecar.endpoint import Registry
from llmspell_dist.sidecar.openapi import openapi_document
from llmspell_dist.sidecar.page import docs_page
from llmspell_dist.sidecar.repeats import Repeats
from llmspell_dist.sidecar.reply import Reply

__all__ = ["routes"]

routes = Registry("about", "What this API can do.")
_SAFE: Final = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
]
_making: Final = Lock()


@cache
def _openapi() -> bytes:
    from llmspell_dist.sidecar.routes import REGISTRIES  # noqa: PLC0415 - which names this module

    return json.dumps(openapi_document(REGISTRIES, version("llmspell-dist"))).encode()


def _document() -> bytes:
    """Return the OpenAPI document; the first one who asks waits until it is made."""
    with _making:
        return _openapi()


def _page() -> bytes:
    """Return the document as a page."""
    return docs_page(_document())


@routes.route("GET", "/openapi.json", public=True, media="application/json")
async def openapi(_: Call) -> Reply:
    """Give the OpenAPI 3.1 document of this API."""
    return Reply(await asyncio.to_thread(_document), media="application/json")


@routes.route("GET", "/docs", public=True, media="text/html")
async def docs(_: Call) -> Reply:
    """Show this API as a page, which loads nothing from elsewhere."""
    page = await asyncio.to_thread(_page)
    return Reply(page, headers=list(_SAFE), media="text/html; charset=utf-8")


class StoreDocument(Struct, frozen=True):
    """What the server behind the sidecar said about itself."""

    flavour: str
    version: str
    mode: str
    role: str
    replicas: int


class About(Struct, frozen=True):
    """What a client must know before it begins."""

    namespace: str
    version: Annotated[str, Meta(description="Of the sidecar.")]
    instance: Annotated[str, Meta(description="Of this start; what to send as `LLMSpell-Repeat`.")]
    shards: int
    features: Annotated[list[str], Meta(description="The groups of routes that it serves.")]
    store: StoreDocument | None


@routes.route("GET", "/v1/about", returns=About)
async def about(call: Call) -> Reply:
    """Tell which namespace is served, and by what. Needs credentials, but no grant."""
    from llmspell_dist.sidecar.routes import REGISTRIES  # noqa: PLC0415 - which names this module

    spell = call.spell
    server = spell.server
    store = None
    if server is not None:
        store = StoreDocument(
            server.flavour, server.version, server.mode, server.role, server.replicas
        )
    features = [registry.tag for registry in REGISTRIES]
    shards = spell.leases.steps.core.keyspace.shards
    instance = call.services.one(Repeats).instance(call.principal.label)
    return Reply(
        About(spell.namespace, version("llmspell-dist"), instance, shards, features, store)
    )
