"""Calls to S3, tried again with bounds where that may help, and what their failures mean."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple, TypeVar

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from llmspell_dist.backoff import Backoff
from llmspell_dist.backup.errors import ObjectMissingError, TargetError, TargetPermissionError
from llmspell_dist.errors import mask_secrets

__all__ = ["Calls", "Fault", "FaultKind", "is_transient_code", "read_fault"]

logger = logging.getLogger("llmspell_dist.backup")

_T = TypeVar("_T")
_MAX_WAIT_S: Final = 10.0
_TEXT_LIMIT: Final = 300


class FaultKind(Enum):
    """What a failure means for the caller."""

    MISSING = "missing"
    DENIED = "denied"
    EXISTS = "exists"
    """A condition of the call was not met."""
    UNSUPPORTED = "unsupported"
    FINAL = "final"
    TRANSIENT = "transient"
    """Another try may succeed, and this one may have happened."""


class Fault(NamedTuple):
    """A failure as read from botocore's exception."""

    kind: FaultKind
    said: str
    code: str = ""


_FULL: Final = frozenset(
    {
        "EntityTooLarge",
        "InsufficientStorage",
        "QuotaExceeded",
        "StorageFull",
        "XMinioStorageFull",
    }
)
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)
# 400s among them: what arrived was not what was sent.
_TRANSIENT: Final = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CUT: Final = (
    boto.ConnectionClosedError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    HTTPError,  # botocore lets through what urllib3 says of a body that is cut
    OSError,
)
_GARBLED: Final = ("ResponseParserError",)
_NO_CREDENTIALS: Final = (
    boto.CredentialRetrievalError,
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
)


def is_transient_code(code: str) -> bool:
    """Return whether a call that failed with this code may be tried again."""
    return code in _TRANSIENT


def read_fault(error: Exception) -> Fault | None:
    """Return what an exception of botocore means; None if it is not about the server."""
    if isinstance(error, boto.ClientError):
        return _read_answer(error)
    if isinstance(error, _NO_CREDENTIALS):
        where = "environment, profile or role of this process"
        return Fault(FaultKind.FINAL, f"no credentials were found in {where}: {error}")
    if isinstance(error, boto.SSLError):
        return Fault(FaultKind.FINAL, f"TLS: {error}")
    if isinstance(error, _CUT) or type(error).__name__ in _GARBLED:
        return Fault(FaultKind.TRANSIENT, f"{type(error).__name__}: {error}")
    if isinstance(error, boto.BotoCoreError):
        return Fault(FaultKind.FINAL, f"{type(error).__name__}: {error}")
    return None


def _read_answer(error: boto.ClientError) -> Fault:
    told = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(told.get("Code", "")) or str(status)
    message = str(told.get("Message", "") or "")
    said = " ".join(part for part in (str(status), "" if code == str(status) else code) if part)
    said = f"{said}: {message}" if message and message not in {code, "Unknown"} else said
    return Fault(_kind(status, code), said, code)


def _kind(status: int, code: str) -> FaultKind:
    if code in _FULL or status == 507:
        return FaultKind.FINAL
    if code in _TRANSIENT or status in _TRANSIENT_STATUS:
        return FaultKind.TRANSIENT
    if code in _MISSING:
        return FaultKind.MISSING
    if status in {401, 403} or code in _DENIED:
        return FaultKind.DENIED
    if status in {304, 412}:
        return FaultKind.EXISTS
    if status == 501:
        return FaultKind.UNSUPPORTED
    return FaultKind.FINAL


class Calls:
    """Makes calls: so many tries, with growing pauses, and none begun after `patience_s`."""

    def __init__(
        self,
        label: str,
        *,
        tries: int,
        patience_s: float,
        first_wait_s: float,
        secrets: tuple[str, ...] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.label = label
        self._tries = tries
        self._patience_s = patience_s
        self._first_wait_s = first_wait_s
        self._secrets = secrets
        self._sleep = sleep

    def run(
        self,
        doing: str,
        name: str,
        call: Callable[[], _T],
        *,
        expect: Callable[[Fault, int], _T | None] | None = None,
    ) -> _T:
        """Return what `call` returns.

        `expect` may turn a final failure, seen at the given try, into a result; of a later try than
        the first, an earlier one may have done what was asked without being heard.
        """
        backoff = Backoff(first_s=self._first_wait_s, max_s=_MAX_WAIT_S)
        end = time.monotonic() + self._patience_s
        tries = 0
        while True:
            tries += 1
            try:
                return call()
            except Exception as error:
                fault = read_fault(error)
                if fault is None:
                    raise
            if fault.kind is FaultKind.TRANSIENT:
                pause_s = backoff.next_s()
                if tries < self._tries and time.monotonic() + pause_s < end:
                    said = self.mask(fault.said)
                    logger.debug("%s: %s %s: %s; trying again", self.label, doing, name, said)
                    self._sleep(pause_s)
                    continue
            elif expect is not None:
                result = expect(fault, tries)
                if result is not None:
                    return result
            raise self.error(fault, doing, name, tries)

    def mask(self, text: str) -> str:
        """Return `text` without secrets, not too long."""
        text = mask_secrets(" ".join(text.split()), self._secrets)
        return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"

    def error(self, fault: Fault, doing: str, name: str, tries: int = 1) -> TargetError:
        """Return the error that a failure becomes."""
        kind: type[TargetError] = TargetError
        if fault.kind is FaultKind.MISSING:
            kind = ObjectMissingError
        elif fault.kind is FaultKind.DENIED:
            kind = TargetPermissionError
        return kind(self.label, name, doing, self.mask(fault.said), tries)
