"""A key-encryption key that never leaves AWS KMS, or what speaks its protocol."""

from __future__ import annotations

import re
from threading import Lock
from typing import Any, Final
from urllib.parse import quote

from llmspell_dist.errors import InvalidArgumentError, needs_package
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.security.keyring import Wrapped

__all__ = ["CONTEXT_NAME", "KmsKeys"]

CONTEXT_NAME: Final = "llmspell-dist"
"""The name in KMS's encryption context under which the percent-encoded context stands."""
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 15
_TRIES: Final = 4


class KmsKeys:
    """Wraps data keys by a symmetric key of AWS KMS; a `KeyProvider` of the name ``aws-kms``.

    `key_id` is what KMS takes: an id, an ARN, ``alias/name``. KMS gets the context as its
    encryption context, so CloudTrail shows which data key was asked for. A version is the ARN of a
    key: after a move to another key, data keys that the old one wrapped stay readable as long as
    KMS allows it. What KMS rotates by itself needs nothing. Credentials come from boto3's usual
    chain and need ``kms:Encrypt``, ``kms:Decrypt`` and, to wrap anew, ``kms:DescribeKey``.
    Throttling and lost connections are tried again by boto3, four times in all; then they are a
    `KeyProviderUnavailableError`.
    """

    name = "aws-kms"

    def __init__(
        self,
        key_id: str,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        client: Any = None,
    ) -> None:
        if not isinstance(key_id, str) or not key_id:
            raise InvalidArgumentError("key_id", key_id, "must be a key id, an ARN or an alias")
        self.key_id = key_id
        self._region = region or _region_of(key_id)
        self._endpoint = endpoint
        self._client = client
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"KmsKeys({self.key_id!r})"

    def current(self) -> str:
        """Return the ARN of the key that `wrap` uses; asked each time: an alias may move."""
        reply = self._call("describe_key", self.key_id, KeyId=self.key_id)
        return str(reply["KeyMetadata"]["Arn"])

    def wrap(self, plaintext_key: bytes, *, context: bytes) -> Wrapped:
        """Wrap a data key; see `KeyProvider`."""
        reply = self._call(
            "encrypt",
            self.key_id,
            KeyId=self.key_id,
            Plaintext=plaintext_key,
            EncryptionContext={CONTEXT_NAME: quote(context)},
        )
        return Wrapped(str(reply["KeyId"]), bytes(reply["CiphertextBlob"]))

    def unwrap(self, wrapped: Wrapped, *, context: bytes) -> bytes:
        """Return the data key; see `KeyProvider`."""
        reply = self._call(
            "decrypt",
            wrapped.version,
            KeyId=wrapped.version,
            CiphertextBlob=wrapped.blob,
            EncryptionContext={CONTEXT_NAME: quote(context)},
        )
        return bytes(reply["Plaintext"])

    def _call(self, operation: str, version: str, **arguments: Any) -> dict[str, Any]:
        try:
            from botocore import exceptions as boto  # noqa: PLC0415 - optional
        except ImportError:
            rule = needs_package("boto3", "backup")
            raise InvalidArgumentError("keys", self.name, rule) from None
        try:
            reply: dict[str, Any] = getattr(self._connected(), operation)(**arguments)
        except boto.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            reason = f"{_REASONS.get(code, str(error))} ({operation}: {code})"
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if _passes(code, status):
                raise KeyProviderUnavailableError(self.name, version, reason) from None
            raise KeyProviderError(self.name, version, reason) from None
        except (boto.NoRegionError, boto.ParamValidationError, ValueError) as error:
            # Settings, or what somebody stored as a version; ValueError: an endpoint that is no URL
            raise KeyProviderError(self.name, version, f"cannot be asked: {error}") from None
        except boto.BotoCoreError as error:
            reason = f"cannot be asked: {error}"
            raise KeyProviderUnavailableError(self.name, version, reason) from None
        return reply

    def _connected(self) -> Any:
        with self._lock:  # boto3's session is not made for threads, its clients are
            if self._client is None:
                import boto3  # noqa: PLC0415 - optional
                from botocore.config import Config  # noqa: PLC0415 - optional

                config = Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": _TRIES},
                )
                self._client = boto3.session.Session().client(
                    "kms", region_name=self._region, endpoint_url=self._endpoint, config=config
                )
            return self._client


_REASONS: Final = {
    "NotFoundException": "is missing: KMS knows no such key",
    "DisabledException": "is disabled",
    "KMSInvalidStateException": "cannot be used in its present state",
    "IncorrectKeyException": "does not unwrap this: another key did",
    "InvalidCiphertextException": "does not unwrap this: it is another key, or this is damaged",
    "AccessDeniedException": "is denied to these credentials",
}
_PASSING: Final = re.compile(
    "Throttl|Timeout|TooManyRequests|RequestLimitExceeded|SlowDown"
    "|KMSInternal|InternalFailure|InternalError|ServiceUnavailable|^KeyUnavailable"
)
"""In the codes of what KMS answers while it is overloaded or broken."""


def _passes(code: str, status: int) -> bool:
    """Whether what KMS answered says nothing about the key, and may be another answer soon."""
    return status >= 500 or status == 429 or _PASSING.search(code) is not None


def _region_of(key_id: str) -> str | None:
    parts = key_id.split(":")
    return parts[3] if len(parts) > 5 and parts[0] == "arn" else None
