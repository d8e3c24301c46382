"""Where keys may come from, and which hosts nobody else reaches."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.sidecar.auth.entries import KeySource

__all__ = ["is_loopback", "key_source"]


def is_loopback(host: str) -> bool:
    """Return whether `host` is an address that only this machine reaches, or ``localhost``."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def key_source(
    text: str, folder: Path, *, ca_file: str | None, token_file: str | None
) -> KeySource:
    """Return the source that an access file in `folder` names; `InvalidArgumentError` if unsafe.

    Whoever can change keys on their way can be anybody: plain http is for this machine only.
    """
    if "://" not in text:
        for name, value in (("jwks_ca_file", ca_file), ("jwks_token_file", token_file)):
            if value is not None:
                raise InvalidArgumentError(name, None, "belongs to a jwks that is a URL")
        if not text:
            raise InvalidArgumentError("jwks", text, "must be a URL or the path of a file")
        return KeySource(path=folder / text)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidArgumentError("jwks", None, "must have a valid host and port") from None
    if "@" in parts.netloc or parts.fragment:
        raise InvalidArgumentError("jwks", None, "must have no user, password or fragment")
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not host or not safe or not text.isascii() or not text.isprintable() or " " in text:
        rule = "must be an https URL, an http URL on loopback, or the path of a file"
        raise InvalidArgumentError("jwks", None, rule)
    return KeySource(
        url=text,
        ca_file=None if ca_file is None else folder / ca_file,
        token_file=None if token_file is None else folder / token_file,
    )
