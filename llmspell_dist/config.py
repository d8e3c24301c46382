"""Where the server is and how to talk to it: URLs and options, as validated values.

URLs mean what they mean to redis-py, as far as that is told here; this module does not import it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from llmspell_dist.classes import ClassRules
from llmspell_dist.codec import DEFAULT_MAX_BYTES, DEFAULT_MAX_DEPTH, Codec
from llmspell_dist.errors import (
    InvalidArgumentError,
    InvalidScopeError,
    InvalidURLError,
    StoreUnavailableError,
)
from llmspell_dist.keys import KeySpace
from llmspell_dist.observation import TelemetrySource
from llmspell_dist.retention import Retention
from llmspell_dist.scope import Scope, ScopeKind
from llmspell_dist.security.cipher import ValueCipher

__all__ = [
    "DEFAULT_NAMESPACE",
    "DEFAULT_URL",
    "NAMESPACE_VARIABLE",
    "URL_VARIABLE",
    "Endpoint",
    "NearCache",
    "Options",
    "default_namespace",
    "default_url",
    "names_sidecar",
    "note_default_url",
    "parse_url",
]

_WILD: Final = re.compile(r"[*?\[]")
_ALONE: Final = (ScopeKind.GLOBAL, ScopeKind.STEP)
"""Kinds whose scopes do not begin with them and a colon."""

URL_VARIABLE: Final = "LLMSPELL_URL"
NAMESPACE_VARIABLE: Final = "LLMSPELL_NAMESPACE"
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_NAMESPACE: Final = "llmspell"
_SCHEMES: Final = ("redis", "rediss", "unix", "memory", "embedded")
_OF_SIDECARS: Final = ("http", "https", "http+unix")


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the environment, or the one of a server on this machine."""
    return environ.get(URL_VARIABLE) or DEFAULT_URL


def note_default_url(
    error: BaseException, url: str | None, environ: Mapping[str, str] = os.environ
) -> None:
    """Note on an error of connecting that nobody said to which server, and what can be said."""
    if url is None and not environ.get(URL_VARIABLE) and isinstance(error, StoreUnavailableError):
        error.add_note(
            f"without a URL, and without {URL_VARIABLE}, a client connects to {DEFAULT_URL}; "
            "embedded:// starts a server on this machine, and so does llmspell-dist server start"
        )


def default_namespace(environ: Mapping[str, str] = os.environ) -> str:
    """Return the namespace of the environment, or ``llmspell``."""
    return environ.get(NAMESPACE_VARIABLE) or DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server, as a URL names it. Its ``repr`` and ``str`` never show the password."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    """The socket of ``unix``, the data folder of ``embedded``, the name of ``memory``."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    protocol: int | None = None
    """2 or 3; None leaves it to the options."""
    connect_timeout: float | None = None
    """Seconds; None leaves it to the options."""
    call_timeout: float | None = None
    """Seconds; None leaves it to the options."""
    health_check_interval: float | None = None
    """Seconds; None leaves it to the options."""
    client_name: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: str = "required"
    """``required``, ``optional`` or ``none``."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "rediss"

    def __str__(self) -> str:
        user = f"{self.username or ''}:***@" if self.password else ""
        if not self.password and self.username:
            user = f"{self.username}@"
        if self.scheme in ("redis", "rediss"):
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"{self.scheme}://{user}{host}:{self.port}/{self.db}"
        tail = f"?db={self.db}" if self.db else ""
        return f"{self.scheme}://{user}{self.path}{tail}"


def _bad(url: str, rule: str) -> InvalidURLError:
    """Return the error for `url`, of which only the scheme is shown: the rest may be a secret."""
    scheme, found, _ = url.partition("://")
    return InvalidURLError("url", f"{scheme[:20]}://…" if found else "…", rule)


def names_sidecar(url: str) -> bool:
    """Return whether a URL means a sidecar, not a server."""
    return url.startswith(tuple(f"{scheme}://" for scheme in _OF_SIDECARS))


def parse_url(url: str) -> Endpoint:
    """Return the server that `url` names.

    ``redis://[user[:password]@]host[:port][/db]``, ``rediss://`` the same with TLS,
    ``unix://[user:password@]/path/to/socket[?db=0]``, ``memory://name``, ``embedded:///folder``
    (``embedded://``: the default folder). Options follow as a query. Raises InvalidURLError, which
    never shows a password.
    """
    if not isinstance(url, str):
        raise InvalidURLError("url", url, "must be a str")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError:
        raise _bad(url, "must have a valid host and port (from 0 to 65535)") from None
    if parts.scheme in _OF_SIDECARS:
        raise _bad(
            url,
            "must name Redis itself here, as redis://host: only the async connect() goes through "
            "a sidecar",
        )
    if parts.scheme not in _SCHEMES or "://" not in url:
        servers, sidecars = (
            ", ".join(f"{one}://" for one in kind) for kind in (_SCHEMES, _OF_SIDECARS)
        )
        rule = f"must begin with {servers}, or for a sidecar with {sidecars}"
        raise _bad(url, f"{rule}; as redis://localhost:6379")
    if parts.fragment:
        raise _bad(url, "must not have a fragment; encode # as %23")
    facts = {"scheme": parts.scheme, **_place(url, parts, host, port)}
    if parts.scheme in ("memory", "embedded"):
        if "@" in parts.netloc:
            raise _bad(url, "must not have a user or password")
    else:
        facts["username"] = unquote(parts.username) if parts.username else None
        facts["password"] = unquote(parts.password) if parts.password else None
    facts.update(_query(url, parts.query))
    if facts.get("username") and facts.get("password") is None:
        raise _bad(url, "must have a password if it has a user name")
    if facts["scheme"] != "rediss" and any(name.startswith("ssl_") for name in facts):
        raise _bad(url, "must begin with rediss:// to have TLS options")
    return Endpoint(**facts)


def _place(url: str, parts: SplitResult, host: str | None, port: int | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if parts.scheme in ("redis", "rediss"):
        path = unquote(parts.path).strip("/")
        if path:
            facts["db"] = _db(url, path)
        facts["host"] = unquote(host) if host else "localhost"
        facts["port"] = 6379 if port is None else port
    elif parts.scheme == "unix":
        facts["path"] = unquote(parts.path)
        if host or port is not None or not facts["path"].strip("/"):
            raise _bad(url, "must have a path after three slashes, as in unix:///run/redis.sock")
    elif parts.scheme == "embedded":
        facts["path"] = unquote(parts.path)
        if host or port is not None:
            raise _bad(url, "must have a folder after three slashes, as in embedded:///var/lib/app")
    else:
        facts["path"] = unquote(parts.netloc + parts.path).strip("/") or "default"
    return facts


def _db(url: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _bad(url, "must have a number as its database")
    return int(text)


def _seconds(url: str, name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and seconds > 0):
        raise _bad(url, f"must have a positive number of seconds as {name}")
    return seconds


_SECONDS: Final = {
    "connect_timeout": "connect_timeout",
    "call_timeout": "call_timeout",
    "health_check_interval": "health_check_interval",
    # redis-py's names
    "socket_connect_timeout": "connect_timeout",
    "socket_timeout": "call_timeout",
}
_TEXTS: Final = frozenset(
    {"username", "password", "client_name", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
)
_TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _query(url: str, query: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == "db":
            facts["db"] = _db(url, text)
        elif name == "protocol":
            if text not in ("2", "3"):
                raise _bad(url, "must have 2 or 3 as protocol")
            facts["protocol"] = int(text)
        elif name in _SECONDS:
            facts[_SECONDS[name]] = _seconds(url, name, text)
        elif name in _TEXTS:
            facts[name] = text or None
        elif name == "ssl_cert_reqs":
            if text.lower() not in ("required", "optional", "none"):
                raise _bad(url, "must have required, optional or none as ssl_cert_reqs")
            facts[name] = text.lower()
        elif name == "ssl_check_hostname":
            if text.lower() not in _TRUTHS:
                raise _bad(url, "must have true or false as ssl_check_hostname")
            facts[name] = _TRUTHS[text.lower()]
        else:
            known = sorted({"db", "protocol", "ssl_cert_reqs", "ssl_check_hostname"} | _TEXTS)
            raise _bad(url, f"has an unknown option; known are {', '.join([*known, *_SECONDS])}")
    return facts


def _check_seconds(name: str, value: object, low: float, high: float) -> None:
    fits = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
    if not fits:  # NaN does not fit either
        rule = f"must be a number of seconds from {low} to {high}"
        raise InvalidArgumentError(name, value, rule)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidArgumentError(name, value, f"must be an int from {low:,} to {high:,}")


def _can_match(pattern: str) -> bool:
    """Whether there can be a scope that a pattern matches: it begins as one of a kind."""
    begin = _WILD.split(pattern, maxsplit=1)[0]
    if begin == pattern:
        try:
            return Scope.parse(pattern).text == pattern
        except InvalidScopeError:
            return False
    kinds = ("global", *(f"{kind}:" for kind in ScopeKind if kind not in _ALONE))
    return any(kind.startswith(begin) or begin.startswith(kind) for kind in kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCache:
    """Which reads a client may serve from its own memory, how much of it, and how old they may be.

    Every field is checked, and an error names it.
    """

    scopes: tuple[str, ...] = ("*",)
    """Patterns (``*``, ``?``, ``[a-z]``) of the printed scopes: ``("agent:*", "global")``."""
    max_staleness: float = 30.0
    """Seconds after which a value is read again, even if no message said that it changed. Messages
    come within a round trip; this is the bound when they do not and nobody can notice yet."""
    max_entries: int = 10_000
    max_bytes: int = 16 * 1024 * 1024
    """Of the values, about; the least recently used go first."""
    max_value_bytes: int = 64 * 1024
    """Larger values are read anew each time."""
    max_scopes: int = 1000
    """Each costs a subscription."""

    def __post_init__(self) -> None:
        if (
            type(self.scopes) is not tuple
            or not self.scopes
            or not all(type(one) is str and one for one in self.scopes)
        ):
            rule = "must be a tuple of patterns, at least one"
            raise InvalidArgumentError("scopes", self.scopes, rule)
        for pattern in self.scopes:
            if not _can_match(pattern):
                rule = "must be patterns of scopes (global, agent:*): no scope is ever called this"
                raise InvalidArgumentError("scopes", pattern, rule)
        _check_seconds("max_staleness", self.max_staleness, 0.001, 86_400)
        _check_int("max_entries", self.max_entries, 1, 100_000_000)
        _check_int("max_bytes", self.max_bytes, 1024, 2**40)
        _check_int("max_value_bytes", self.max_value_bytes, 256, 2**40)
        _check_int("max_scopes", self.max_scopes, 1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves. Every field is checked, and an error names it."""

    namespace: str | None = None
    """None: that of the environment variable ``LLMSPELL_NAMESPACE``, else ``llmspell``."""
    client_name: str | None = None
    """What the server lists this client as: printable ASCII without spaces."""
    connect_timeout: float = 5.0
    """Seconds."""
    call_timeout: float = 5.0
    """Seconds after which a reply that does not come ends the connection."""
    retry_budget: float = 10.0
    """Seconds from the start of a call, over all attempts, until it is given up."""
    max_in_flight: int = 10_000
    """Requests that may wait for their reply at once; further callers wait."""
    health_check_interval: float = 15.0
    """Seconds of silence after which a connection is probed; 0: never."""
    protocol: int = 3
    """RESP 2 or 3."""
    max_value_bytes: int = DEFAULT_MAX_BYTES
    max_depth: int = DEFAULT_MAX_DEPTH
    classes: ClassRules = field(default_factory=ClassRules)
    retention: Retention | None = None
    """How long the change log keeps its entries, for everybody who works in the namespace: what is
    given here is stored there. None: what was stored, else the default of `Retention`."""
    max_correlations: int | None = None
    """How many correlations are remembered, those that were active last; for everybody who works in
    the namespace. None: what was stored, else 10,000."""
    codec: Codec | None = None
    """None: one with the two limits above."""
    cipher: ValueCipher | None = field(default=None, repr=False)
    housekeeping: bool = True
    """Whether this client takes its turn at removing expired keys and shortening the log."""
    near_cache: NearCache | None = None
    """Which reads may be served from memory; None: none."""
    telemetry: TelemetrySource | bool | None = None
    """`llmspell_dist.telemetry.Telemetry`, which says who is told of what this client does. True:
    OpenTelemetry's global providers. None or False: nobody, at no cost."""
    shards: int | None = None
    """None: what the namespace has, or 1 for a new one off cluster and 256 in a cluster."""

    def __post_init__(self) -> None:
        if self.namespace is not None:
            KeySpace(self.namespace)
        if self.shards is not None:
            KeySpace(shards=self.shards)
        name = self.client_name
        if name is not None and not (
            type(name) is str
            and 1 <= len(name) <= 128
            and name.isascii()
            and name.isprintable()
            and " " not in name
        ):
            rule = "must be 1 to 128 printable ASCII characters without spaces"
            raise InvalidArgumentError("client_name", name, rule)
        _check_seconds("connect_timeout", self.connect_timeout, 0.001, 3600)
        _check_seconds("call_timeout", self.call_timeout, 0.001, 3600)
        _check_seconds("retry_budget", self.retry_budget, 0.001, 3600)
        _check_int("max_in_flight", self.max_in_flight, 1, 1_000_000)
        _check_seconds("health_check_interval", self.health_check_interval, 0, 3600)
        if type(self.protocol) is not int or self.protocol not in (2, 3):
            raise InvalidArgumentError("protocol", self.protocol, "must be 2 or 3")
        try:
            Codec(self.max_value_bytes, self.max_depth)
        except InvalidArgumentError as error:
            name = "max_value_bytes" if error.argument == "max_bytes" else error.argument
            value = getattr(self, name)
            raise InvalidArgumentError(name, value, error.rule) from None
        kinds: tuple[tuple[str, Any, bool], ...] = (
            ("classes", ClassRules, False),
            ("retention", Retention, True),
            ("near_cache", NearCache, True),
            ("codec", Codec, True),
        )
        for name, kind, optional in kinds:
            value = getattr(self, name)
            if not isinstance(value, kind) and not (optional and value is None):
                rule = f"must be a {kind.__name__}{' or None' if optional else ''}"
                raise InvalidArgumentError(name, value, rule)
        if type(self.housekeeping) is not bool:
            raise InvalidArgumentError("housekeeping", self.housekeeping, "must be a bool")
        if self.max_correlations is not None:
            _check_int("max_correlations", self.max_correlations, 1, 10_000_000)
        said = self.telemetry
        if said is not None and type(said) is not bool and not isinstance(said, TelemetrySource):
            raise InvalidArgumentError("telemetry", said, "must be a Telemetry, a bool or None")
        if self.cipher is not None and not isinstance(self.cipher, ValueCipher):
            raise InvalidArgumentError("cipher", self.cipher, "must have encrypt and decrypt")

    def make_codec(self) -> Codec:
        """Return the codec to use: the one given, or one with the limits given."""
        return self.codec or Codec(self.max_value_bytes, self.max_depth)
