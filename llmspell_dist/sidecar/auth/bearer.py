"""The ``Authorization`` header: one scheme, one credential, nothing else in it."""

from __future__ import annotations

import re
from typing import Final

from llmspell_dist.sidecar.auth.errors import UnauthenticatedError

__all__ = ["MAX_CREDENTIAL", "SCHEME", "credential_of"]

SCHEME: Final = "Bearer "
MAX_CREDENTIAL: Final = 16 * 1024
"""Characters; Kubernetes' tokens have some 1,200."""
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)


def credential_of(authorization: str) -> str:
    """Return the bearer credential of a header's value; `UnauthenticatedError` if it holds none.

    The scheme's case does not matter, the rest is exact: one space, and then one token68 of RFC
    9110. So two headers that a proxy joined with a comma are no credential, nor is anything with
    whitespace or control characters in it.
    """
    if len(authorization) > len(SCHEME) + MAX_CREDENTIAL:
        raise UnauthenticatedError(f"the credential has more than {MAX_CREDENTIAL:,} characters")
    scheme, credential = authorization[: len(SCHEME)], authorization[len(SCHEME) :]
    if scheme.lower() != SCHEME.lower():
        raise UnauthenticatedError("the scheme is not Bearer")
    if not _TOKEN68.fullmatch(credential):
        raise UnauthenticatedError("the credential has characters that no token has")
    return credential
