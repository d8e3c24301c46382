"""Where a client of redis-py is connected to, as a URL of ours.

Read from what the client says about itself; nothing of redis-py is imported and none of its
connections is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["is_foreign", "pool_of", "url_of"]

_ELSEWHERE: Final = "open a client with connect(url) and pass that"
# What says how the connection is encrypted and has a word in our URLs.
_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What would make another connection of it and has none.
_NOT_CARRIED_OVER: Final = (
    "redis_connect_func",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_ciphers",
    "ssl_exclude_verify_flags",
    "ssl_include_verify_flags",
    "ssl_min_version",
    "ssl_ocsp_context",
    "ssl_ocsp_expected_cert",
    "ssl_password",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
)
_SECONDS: Final = {"socket_connect_timeout": "connect_timeout", "socket_timeout": "call_timeout"}


def is_foreign(client: object) -> bool:
    """Whether an object looks like a client of redis-py with one pool of connections."""
    pool = getattr(client, "connection_pool", None)
    return isinstance(getattr(pool, "connection_kwargs", None), Mapping)


def pool_of(client: object) -> Any:
    """Return the pool of a client of redis-py: clients that share it are one to us.

    Raises `InvalidArgumentError` for anything else, a cluster's client among it.
    """
    if not is_foreign(client):
        rule = f"must be a client of this library, or of redis-py to one server; else {_ELSEWHERE}"
        raise InvalidArgumentError("redis", client, rule)
    return client.connection_pool  # type: ignore[attr-defined]


def url_of(client: object) -> str:
    """Return the URL of the server that a client of redis-py is connected to, secrets included.

    Host and port or socket, database, user and password (a credential provider is asked once),
    client name, TLS files and the two timeouts are taken over. How it encodes and decodes does not
    matter here. Raises `InvalidArgumentError` for what no URL of ours can say.
    """
    pool = pool_of(client)
    facts: Mapping[str, Any] = pool.connection_kwargs
    scheme = _scheme(client, pool.connection_class)
    for name in _NOT_CARRIED_OVER:
        if facts.get(name):
            rule = f"must not have {name}, which cannot be taken over; {_ELSEWHERE}"
            raise InvalidArgumentError("redis", client, rule)
    query: dict[str, str] = {}
    for name, ours in _SECONDS.items():
        if facts.get(name):
            query[ours] = str(float(facts[name]))
    if facts.get("client_name"):
        query["client_name"] = str(facts["client_name"])
    db, user = int(facts.get("db") or 0), _user(facts)
    if scheme == "unix":
        if db:
            query["db"] = str(db)
        return f"unix://{user}{quote(str(facts['path']))}{_query(query)}"
    if scheme == "rediss":
        query |= _tls(facts)
    host, port = str(facts.get("host") or "localhost"), int(facts.get("port") or 6379)
    where = f"[{host}]" if ":" in host else quote(host, safe="")
    return f"{scheme}://{user}{where}:{port}/{db}{_query(query)}"


def _scheme(client: object, connection_class: type) -> str:
    line = connection_class.__mro__
    names = {cls.__name__ for cls in line}
    if any(cls.__module__.partition(".")[0] == "fakeredis" for cls in line):
        # Its host and port are made up: another server could listen there.
        rule = "must be connected to a server; fakeredis here is connect('memory://name')"
        raise InvalidArgumentError("redis", client, rule)
    if "SentinelManagedConnection" in names:
        rule = f"must be connected to a server itself, not through Sentinel; {_ELSEWHERE}"
        raise InvalidArgumentError("redis", client, rule)
    for name, scheme in (
        ("UnixDomainSocketConnection", "unix"),
        ("SSLConnection", "rediss"),
        ("Connection", "redis"),
    ):
        if name in names:
            return scheme
    rule = f"must have connections of redis-py's own kinds; {_ELSEWHERE}"
    raise InvalidArgumentError("redis", client, rule)


def _user(facts: Mapping[str, Any]) -> str:
    provider = facts.get("credential_provider")
    if provider is not None:
        *user, password = provider.get_credentials()
        username = user[0] if user else None
    else:
        username, password = facts.get("username"), facts.get("password")
    if not password:
        return ""
    return f"{quote(_text(username or ''), safe='')}:{quote(_text(password), safe='')}@"


def _text(secret: Any) -> str:
    return secret.decode() if isinstance(secret, bytes) else str(secret)


def _tls(facts: Mapping[str, Any]) -> dict[str, str]:
    query = {name: str(facts[name]) for name in _TLS if facts.get(name)}
    wanted = facts.get("ssl_cert_reqs", "required")
    if wanted is None:
        wanted = "none"
    # An ssl.VerifyMode is named CERT_NONE, CERT_OPTIONAL or CERT_REQUIRED.
    query["ssl_cert_reqs"] = str(getattr(wanted, "name", wanted)).lower().removeprefix("cert_")
    if facts.get("ssl_check_hostname") is False:
        query["ssl_check_hostname"] = "false"
    return query


def _query(query: Mapping[str, str]) -> str:
    return f"?{urlencode(query, quote_via=quote)}" if query else ""
