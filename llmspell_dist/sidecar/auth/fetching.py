"""A key set over HTTP: bounded in time and size, from where the access file says and nowhere else.

PyJWT's own client follows redirects, reads without a limit and asks again for every unknown key.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from llmspell_dist.sidecar.auth.entries import KeySource
from llmspell_dist.sidecar.auth.jwks import JWKSError

__all__ = ["fetch"]

_MAX_BYTES: Final = 512 * 1024
_SILENCE_S: Final = 5.0
_TOTAL_S: Final = 10.0


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Stay: elsewhere is not what the access file names, and the token is not for it."""


def _opener(source: KeySource) -> OpenerDirector:
    if source.url.startswith("http://"):
        return build_opener(_NoRedirects, ProxyHandler({}))  # loopback is never behind a proxy
    context = ssl.create_default_context(cafile=source.ca_file)
    return build_opener(_NoRedirects, HTTPSHandler(context=context))


def _request(source: KeySource) -> Request:
    headers = {"Accept": "application/jwk-set+json, application/json"}
    if source.token_file is not None:
        # Read each time: Kubernetes replaces it every hour.
        token = source.token_file.read_text(encoding="ascii").strip()
        if not token.isprintable() or " " in token:
            raise JWKSError(f"cannot be asked for: {source.token_file} holds no token")
        headers["Authorization"] = f"Bearer {token}"
    return Request(source.url, headers=headers)  # noqa: S310 - key_source() let no other scheme in


def fetch(source: KeySource, *, monotonic: Callable[[], float] = time.monotonic) -> bytes:
    """Return what the source answers; `JWKSError` if it does not, late, or too much. Blocks."""
    deadline = monotonic() + _TOTAL_S
    try:
        with _opener(source).open(_request(source), timeout=_SILENCE_S) as response:
            if response.status != 200:
                raise JWKSError(f"answered {response.status}")
            return _body(response, deadline, monotonic)
    except HTTPError as error:
        with error:
            raise JWKSError(f"answered {error.code}") from None
    except URLError as error:
        raise JWKSError(f"cannot be reached: {error.reason}") from None
    except OSError as error:
        raise JWKSError(f"cannot be reached: {error}") from None
    # Their texts may quote what was sent.
    except (http.client.HTTPException, ValueError) as error:
        raise JWKSError(f"cannot be reached: {type(error).__name__}") from None


def _body(
    response: http.client.HTTPResponse, deadline: float, monotonic: Callable[[], float]
) -> bytes:
    content = bytearray()
    while chunk := response.read1(65536):
        content += chunk
        if len(content) > _MAX_BYTES:
            raise JWKSError(f"answered more than {_MAX_BYTES:,} bytes")
        if monotonic() > deadline:
            raise JWKSError(f"took longer than {_TOTAL_S:.0f} s")
    return bytes(content)
