"""Where webhooks may go: what is asked over HTTP must not reach what only this machine reaches.

Whoever may register a webhook makes the sidecar send requests. So an address is looked at twice:
as text when it is registered, and as what its name means at the moment of each connection.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from llmspell_dist.errors import InvalidArgumentError

__all__ = ["check_url", "may_connect", "public_part"]

MAX_URL: Final = 2000
_LOCAL: Final = "localhost"
_METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200")))
"""Where clouds give out credentials, beside the link-local ones."""

Address = IPv4Address | IPv6Address


def check_url(url: str, allowed: Collection[str]) -> str:
    """Return a URL to which a webhook may be sent.

    ``https``, or ``http`` to this machine itself; hosts in `allowed` by either. An address that is
    link-local, a cloud's metadata, multicast or none at all is refused in any case.
    """
    rule = "must be https://host/…, or http:// to localhost, without user, password and fragment"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidArgumentError("url", None, rule) from None
    fits = len(url) <= MAX_URL and url.isascii() and url.isprintable() and " " not in url
    bare = parts.username is None and parts.password is None and not parts.fragment
    if not fits or not bare or not host or port == 0 or parts.scheme not in {"http", "https"}:
        raise InvalidArgumentError("url", public_part(url), rule)
    literal = _literal(host)
    if literal is not None and _is_refused(literal):
        rule = "must not be a link-local, metadata, multicast or unspecified address"
        raise InvalidArgumentError("url", host, rule)
    if parts.scheme == "http" and host not in allowed and not _is_own(host, literal):
        rule = "must be https, as the host is neither this machine nor allowed by the settings"
        raise InvalidArgumentError("url", host, rule)
    return url


def public_part(url: str) -> str:
    """Return scheme and host of a URL: its path and query may be a secret."""
    parts = urlsplit(url) if url.isprintable() else urlsplit("")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def may_connect(host: str, address: str, allowed: Collection[str]) -> bool:
    """Return whether what a host's name means now may be connected to."""
    found = _literal(address)
    if found is None or _is_refused(found):
        return False
    if host.lower() in allowed:
        return True
    return found.is_loopback if host.lower() == _LOCAL else True


def _is_own(host: str, literal: Address | None) -> bool:
    return literal.is_loopback if literal is not None else host == _LOCAL


def _is_refused(address: Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback)
        or address in _METADATA
    )


def _literal(host: str) -> Address | None:
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped if mapped is not None else found
