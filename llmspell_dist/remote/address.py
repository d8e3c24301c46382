"""Where a sidecar is: URLs of it, as validated values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from llmspell_dist.errors import InvalidURLError

__all__ = ["SCHEMES", "Address", "encoded_path", "parse_address"]

SCHEMES: Final = ("http", "https", "http+unix")
_DEFAULT_PORT: Final = {"http": 8750, "https": 443}
_TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One sidecar, as a URL names it; no part of it is a secret."""

    scheme: str
    host: str = ""
    port: int = 0
    socket: str = ""
    """The unix socket of ``http+unix``."""
    path: str = ""
    """What goes before every path, if the sidecar stands behind a gateway; still encoded."""
    connect_timeout: float | None = None
    """Seconds; None leaves it to the options."""
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    @property
    def base(self) -> str:
        """What every URL begins with; over a unix socket the host in it is only a name."""
        if self.scheme == "http+unix":
            return f"http://localhost{self.path}"
        return f"{self.scheme}://{self._authority}{self.path}"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.scheme == "http+unix":
            return f"http+unix://{quote(self.socket, safe='')}{self.path}"
        return self.base


def encoded_path(segments: tuple[str, ...]) -> str:
    """Return a path of these segments; whatever they hold, each stays one segment."""
    return "".join([f"/{_encoded(segment)}" for segment in segments])


def _encoded(segment: str) -> str:
    if segment.isalnum() and segment.isascii():
        return segment
    # A dot alone would be taken for "here" or "one up" by whatever stands between.
    return segment.replace(".", "%2E") if segment in {".", ".."} else quote(segment, safe="")


def parse_address(url: str) -> Address:
    """Return the sidecar that a URL names.

    ``http://host[:port]``, ``https://host[:port]`` and ``http+unix://%2Frun%2Fllmspell.sock``, with
    a path if a gateway stands before it. Options follow as a query: ``connect_timeout``,
    ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_check_hostname``.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _bad(url, "must have a valid host and port (from 0 to 65535)") from None
    if parts.scheme not in SCHEMES:
        raise _bad(url, f"must begin with one of {', '.join(f'{one}://' for one in SCHEMES)}")
    if parts.username is not None or parts.password is not None:
        raise _bad(url, "must not have a user or password; give the token by token=")
    if parts.fragment:
        raise _bad(url, "must not have a fragment")
    facts: dict[str, Any] = {"scheme": parts.scheme, "path": parts.path.rstrip("/")}
    facts.update(_place(url, parts, host, port))
    facts.update(_query(url, parts.query))
    if parts.scheme != "https" and any(name.startswith("ssl_") for name in facts):
        raise _bad(url, "must begin with https:// to have TLS options")
    if ("ssl_certfile" in facts) != ("ssl_keyfile" in facts):
        raise _bad(url, "must have ssl_certfile and ssl_keyfile, or neither")
    return Address(**facts)


def _place(url: str, parts: SplitResult, host: str | None, port: int | None) -> dict[str, Any]:
    if parts.scheme == "http+unix":
        socket = unquote(parts.netloc)
        if not socket.startswith("/"):
            rule = "must have the percent-encoded path of a socket, as in http+unix://%2Frun%2Fapp"
            raise _bad(url, rule)
        return {"socket": socket}
    if not host:
        raise _bad(url, "must have a host")
    return {"host": host, "port": _DEFAULT_PORT[parts.scheme] if port is None else port}


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(text)
    return seconds


_OPTIONS: Final[dict[str, Callable[[str], Any]]] = {
    "connect_timeout": _seconds,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_check_hostname": lambda text: _TRUTHS[text.lower()],
}


def _query(url: str, query: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise _bad(url, f"has an unknown option; known are {', '.join(_OPTIONS)}")
        try:
            facts[name] = _OPTIONS[name](text)
        except (ValueError, KeyError):
            raise _bad(url, f"has an option {name} that does not fit") from None
    return facts


def _bad(url: str, rule: str) -> InvalidURLError:
    scheme, found, _ = url.partition("://")
    return InvalidURLError("url", f"{scheme[:20]}://…" if found else "…", rule)
