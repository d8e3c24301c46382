"""Server URLs: what ``redis://``, ``rediss://`` and ``unix://`` mean.

Sentinel and Cluster will come as further kinds of `EndpointResolver`.
"""

from __future__ import annotations

import ssl
from urllib.parse import parse_qsl, unquote, urlsplit

from llmspell_dist.errors import InvalidURLError
from llmspell_dist.redis.connection import CredentialSource, Endpoint, StaticEndpoint

__all__ = ["endpoint_from_url", "resolver_from_url"]

_COMMON = {"db", "username", "password", "protocol", "client_name"}
_TLS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
_NO = {"0", "false", "no", "none"}


def resolver_from_url(
    url: str, *, client_name: str | None = None, credentials: CredentialSource | None = None
) -> StaticEndpoint:
    """Return the resolver for a URL; raises `InvalidURLError`, which never shows the password."""
    return StaticEndpoint(endpoint_from_url(url, client_name=client_name, credentials=credentials))


def endpoint_from_url(
    url: str, *, client_name: str | None = None, credentials: CredentialSource | None = None
) -> Endpoint:
    """Return the endpoint that a URL names.

    ``redis[s]://[[user]:password@]host[:port][/db]`` and ``unix://[[user]:password@]/path[?db=n]``.
    The query may give ``db``, ``username``, ``password``, ``protocol`` (2 or 3), ``client_name``
    and, for ``rediss``, redis-py's ``ssl_cert_reqs`` (``required`` or ``none``), ``ssl_ca_certs``,
    ``ssl_certfile``, ``ssl_keyfile`` and ``ssl_check_hostname``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidURLError("url", url, "must be a well-formed URL with a valid port") from error
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise InvalidURLError("url", url, "must begin with redis://, rediss:// or unix://")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _COMMON | _TLS if parts.scheme == "rediss" else _COMMON
    if unknown := sorted(query.keys() - known):
        raise InvalidURLError("url", url, f"must not have the option {unknown[0]!r}")
    if parts.fragment:
        raise InvalidURLError("url", url, "must not have a fragment (write # as %23)")

    username = unquote(parts.username) if parts.username else query.get("username") or None
    password = unquote(parts.password) if parts.password else query.get("password") or None
    if username and password is None and credentials is None:
        raise InvalidURLError("url", url, "must have a password if it has a user name")
    path = db_text = None
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path or parts.hostname:
            raise InvalidURLError("url", url, "must name the socket with its full path")
    else:
        db_text = unquote(parts.path).strip("/") or None
    return Endpoint(
        host=parts.hostname or "localhost",
        port=6379 if port is None else port,
        path=path,
        db=_number(url, "db", query.get("db") or db_text or "0", range(2**31)),
        username=username,
        password=password,
        credentials=credentials,
        tls=_tls_context(url, query) if parts.scheme == "rediss" else None,
        client_name=client_name or query.get("client_name") or None,
        protocol=_number(url, "protocol", query.get("protocol") or "3", range(2, 4)),
    )


def _number(url: str, name: str, text: str, allowed: range) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) not in allowed:
        limits = f"from {allowed[0]} to {allowed[-1]}"
        raise InvalidURLError("url", url, f"must have a whole number {limits} as {name}")
    return int(text)


def _tls_context(url: str, query: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        if query.get("ssl_check_hostname", "true").lower() in _NO:
            context.check_hostname = False
        requirement = query.get("ssl_cert_reqs", "required").lower()
        if requirement == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif requirement != "required":
            raise InvalidURLError("url", url, "must have required or none as ssl_cert_reqs")
        if "ssl_certfile" in query:
            context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise InvalidURLError("url", url, "must name readable certificate files") from error
    return context
