"""Data keys wrapped by AWS KMS, over HTTP to moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from llmspell_dist.backup.kms import CONTEXT_NAME, KmsKeys
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError
from llmspell_dist.security.keyring import KeyProvider, Wrapped

if TYPE_CHECKING:
    from fix_s3 import Service

pytestmark = [pytest.mark.backup, pytest.mark.security]

DATA_KEY = bytes(range(32))
CONTEXT = b"llmspell-dist/backup/00ff"


@pytest.fixture
def client(moto: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of KMS, with the credentials in the environment as boto3 looks for them."""
    import boto3

    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("kms", endpoint_url=moto.endpoint, region_name="eu-central-1")
    yield client
    client.close()


def _key(client: Any) -> tuple[str, str]:
    made = client.create_key()["KeyMetadata"]
    return made["KeyId"], made["Arn"]


def _keys(moto: Service, key_id: str) -> KmsKeys:
    return KmsKeys(key_id, region="eu-central-1", endpoint=moto.endpoint)


def test_kms_wraps_and_unwraps(moto: Service, client: Any) -> None:
    """A version is the key's ARN, whatever one called it."""
    key_id, arn = _key(client)
    client.create_alias(AliasName=f"alias/{key_id}", TargetKeyId=key_id)
    for called in (key_id, arn, f"alias/{key_id}"):
        keys = _keys(moto, called)
        assert isinstance(keys, KeyProvider)
        wrapped = keys.wrap(DATA_KEY, context=CONTEXT)
        assert wrapped.version == arn == keys.current()
        assert DATA_KEY not in wrapped.blob
        assert keys.unwrap(wrapped, context=CONTEXT) == DATA_KEY


def test_another_key_goes_on_reading(moto: Service, client: Any) -> None:
    """After a move to another key the old wrappings are unwrapped by the old one."""
    (old, _), (new, _) = _key(client), _key(client)
    wrapped = _keys(moto, old).wrap(DATA_KEY, context=CONTEXT)
    assert _keys(moto, new).unwrap(wrapped, context=CONTEXT) == DATA_KEY


def test_the_context_is_kms_s_encryption_context(moto: Service, client: Any) -> None:
    """Bound to the wrapped key, and readable in KMS's own log."""
    key_id, _ = _key(client)
    wrapped = _keys(moto, key_id).wrap(DATA_KEY, context=CONTEXT)
    reply = client.decrypt(
        CiphertextBlob=wrapped.blob, EncryptionContext={CONTEXT_NAME: CONTEXT.decode()}
    )
    assert reply["Plaintext"] == DATA_KEY
    with pytest.raises(KeyProviderError, match="does not unwrap this"):
        _keys(moto, key_id).unwrap(wrapped, context=b"another")


def test_wrong_and_missing_keys_are_named(moto: Service, client: Any) -> None:
    """What KMS says becomes an error that names the key; nothing is shown of what was wrapped."""
    (key_id, arn), (_, other_arn) = _key(client), _key(client)
    wrapped = _keys(moto, key_id).wrap(DATA_KEY, context=CONTEXT)
    missing = arn.replace(key_id, "00000000-0000-0000-0000-000000000000")
    for version, reason in ((other_arn, "denied|does not unwrap this"), (missing, "is missing")):
        with pytest.raises(KeyProviderError, match=reason) as refused:
            _keys(moto, key_id).unwrap(Wrapped(version, wrapped.blob), context=CONTEXT)
        assert refused.value.version == version
    with pytest.raises(KeyProviderError, match="is missing"):
        _keys(moto, missing).current()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("NotFoundException", "is missing"),
        ("DisabledException", "is disabled"),
        ("KMSInvalidStateException", "cannot be used"),
        ("IncorrectKeyException", "another key did"),
        ("InvalidCiphertextException", "does not unwrap this"),
        ("AccessDeniedException", "is denied"),
        ("SomethingNewException", "what KMS says about it"),
    ],
)
def test_what_kms_refuses_is_said_in_our_words(client: Any, code: str, reason: str) -> None:
    """Codes that moto's server does not give; with KMS's own name of the error."""
    from botocore.stub import Stubber

    with Stubber(client) as stub:
        stub.add_client_error("decrypt", code, "what KMS says about it")
        keys = KmsKeys("alias/x", client=client)
        with pytest.raises(KeyProviderError, match=reason) as refused:
            keys.unwrap(Wrapped("alias/x", b"wrapped"), context=CONTEXT)
        assert code in str(refused.value)
        assert not refused.value.retryable


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("TooManyRequestsException", 429),
        ("DependencyTimeoutException", 400),
        ("RequestTimeout", 408),
        ("KMSInternalException", 400),
        ("KeyUnavailableException", 400),
        ("SomethingNewException", 503),
    ],
)
def test_kms_that_is_overloaded_says_nothing_about_the_key(
    client: Any, code: str, status: int
) -> None:
    """It is an error of its own, which may be tried again."""
    from botocore.stub import Stubber

    with Stubber(client) as stub:
        stub.add_client_error("decrypt", code, "later", http_status_code=status)
        keys = KmsKeys("alias/x", client=client)
        with pytest.raises(KeyProviderUnavailableError, match=code) as refused:
            keys.unwrap(Wrapped("alias/x", b"wrapped"), context=CONTEXT)
        assert refused.value.retryable


def test_kms_that_is_away_is_told(moto: Service, client: Any) -> None:
    """After boto3's own tries; it may be there again later."""
    keys = KmsKeys("alias/x", region="eu-central-1", endpoint="http://127.0.0.1:1")
    with pytest.raises(KeyProviderUnavailableError, match="cannot be asked"):
        keys.wrap(DATA_KEY, context=CONTEXT)


def test_a_version_that_names_no_key_is_not_taken_for_a_failure_that_passes(client: Any) -> None:
    """It stands in an object that others may have written; boto3 does not even send it."""
    with pytest.raises(KeyProviderError, match="cannot be asked") as refused:
        KmsKeys("alias/x", client=client).unwrap(Wrapped("", b"wrapped"), context=CONTEXT)
    assert not refused.value.retryable


def test_a_missing_region_is_told(moto: Service, client: Any, monkeypatch: Any) -> None:
    """boto3 finds out when the client is made."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(KeyProviderError, match="region") as refused:
        KmsKeys("alias/x").wrap(DATA_KEY, context=CONTEXT)
    assert not refused.value.retryable
