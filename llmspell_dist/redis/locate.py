"""From a parsed URL to a server: found, started, or made inside this process."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from llmspell_dist.errors import InvalidURLError
from llmspell_dist.redis.connection import Endpoint, EndpointResolver, StaticEndpoint

if TYPE_CHECKING:
    from llmspell_dist import config

__all__ = ["Located", "locate", "memory_servers"]


@dataclass(frozen=True, slots=True)
class Located:
    """Where a server is, and how to give it back if it was made for us."""

    resolver: EndpointResolver
    release: Callable[[], None] | None = None


def locate(target: config.Endpoint, *, client_name: str | None, protocol: int) -> Located:
    """Return the server of a URL; ``embedded://`` starts it, ``memory://`` makes it.

    Sentinel and Cluster will come as further kinds of `EndpointResolver`.
    """
    common = {
        "db": target.db,
        "username": target.username,
        "password": target.password,
        "client_name": target.client_name or client_name,
        "protocol": target.protocol or protocol,
    }
    if target.scheme == "memory":
        memory = memory_servers()
        name = target.path
        host, port = memory.acquire(name)
        endpoint = Endpoint(host=host, port=port, **common)  # type: ignore[arg-type]
        return Located(StaticEndpoint(endpoint), lambda: memory.release(name))
    if target.scheme == "embedded":
        from llmspell_dist.redis.embedded import ensure_running  # noqa: PLC0415

        status = ensure_running(target.path or None)
        path = str(status.socket)
        return Located(StaticEndpoint(Endpoint(path=path, **common)))  # type: ignore[arg-type]
    if target.scheme == "unix":
        return Located(StaticEndpoint(Endpoint(path=target.path, **common)))  # type: ignore[arg-type]
    tls = _tls_context(target) if target.tls else None
    endpoint = Endpoint(host=target.host, port=target.port, tls=tls, **common)  # type: ignore[arg-type]
    return Located(StaticEndpoint(endpoint))


def memory_servers() -> ModuleType:
    """Return `llmspell_dist.redis.memory`; without its extra, an error says what to install."""
    missing = [name for name in ("fakeredis", "lupa") if find_spec(name) is None]
    if missing:
        from llmspell_dist.redis.server_folder import unusable  # noqa: PLC0415

        what = f"{' and '.join(missing)} not installed"
        raise unusable("memory://", f"{what}; pip install 'llmspell-dist[memory]' brings it along")
    from llmspell_dist.redis import memory  # noqa: PLC0415

    return memory


def _tls_context(target: config.Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.ssl_ca_certs)
        if target.ssl_cert_reqs == "none" or not target.ssl_check_hostname:
            context.check_hostname = False
        if target.ssl_cert_reqs == "none":
            context.verify_mode = ssl.CERT_NONE
        elif target.ssl_cert_reqs == "optional":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_OPTIONAL
        if target.ssl_certfile:
            context.load_cert_chain(target.ssl_certfile, target.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise InvalidURLError("url", str(target), f"must name usable TLS files: {error}") from None
    return context
