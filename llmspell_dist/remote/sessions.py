"""Makes the HTTP sessions of a client: over TCP, TLS or a unix socket."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from llmspell_dist.errors import InvalidURLError
from llmspell_dist.fork import close_silently, keep_forever

if TYPE_CHECKING:
    from llmspell_dist.config import Options
    from llmspell_dist.remote.address import Address

__all__ = ["leave_to_parent", "make_session"]

_IDLE_S: Final = 45.0
"""How long a connection rests here: the sidecar ends it after 60 s, perhaps under a request."""


def make_session(address: Address, options: Options, *, limit: int) -> aiohttp.ClientSession:
    """Return a session of at most `limit` connections (0: as many as there are requests)."""
    connector: aiohttp.BaseConnector
    if address.scheme == "http+unix":
        connector = aiohttp.UnixConnector(address.socket, limit=limit, keepalive_timeout=_IDLE_S)
    else:
        connector = aiohttp.TCPConnector(limit=limit, ssl=_tls(address), keepalive_timeout=_IDLE_S)
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("content-type", "user-agent"),
        headers={"user-agent": f"llmspell-dist {options.client_name or ''}".strip()},
    )
    # Of its own accord it would send a PUT twice without saying that it does.
    session._retry_connection = False  # noqa: SLF001 - there is no other way to say so
    return session


def leave_to_parent(session: aiohttp.ClientSession) -> None:
    """Drop a session in a forked child: its connections are the parent's, who does not notice."""
    keep_forever(session)
    connector: Any = session.connector
    if connector is None:
        return
    resting = [one for some in connector._conns.values() for one, _ in some]  # noqa: SLF001
    for protocol in (*resting, *connector._acquired):  # noqa: SLF001 - it tells nobody
        transport = protocol.transport
        inherited = None if transport is None else transport.get_extra_info("socket")
        sock = getattr(inherited, "_sock", None)
        if sock is not None:
            close_silently(sock)


def _tls(address: Address) -> ssl.SSLContext | bool:
    if address.scheme != "https":
        return True
    try:
        context = ssl.create_default_context(cafile=address.ssl_ca_certs)
        if address.ssl_certfile is not None:
            context.load_cert_chain(address.ssl_certfile, address.ssl_keyfile)
    except OSError as error:
        rule = f"must name files with certificates and a key that belong together ({error})"
        raise InvalidURLError("url", str(address), rule) from None
    context.check_hostname = address.ssl_check_hostname
    return context
