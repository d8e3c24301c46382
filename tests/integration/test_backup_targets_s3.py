"""What objects in S3 are put with, and what only a server that checks can show."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from llmspell_dist.backup.errors import TargetError, TargetPermissionError
from llmspell_dist.backup.targets import open_target

pytestmark = [pytest.mark.integration, pytest.mark.backup]


@pytest.mark.parametrize("size", [10, 17 << 20])
def test_storage_class_and_encryption_are_set(moto, size):
    """Short and long objects get the class and the encryption that the URL says."""
    query = {"storage_class": "STANDARD_IA", "sse": "aws:kms", "sse_key_id": "alias/aws/s3"}
    place = replace(moto.place(), query=query)
    target = place.open()
    target.put("a", io.BytesIO(b"x" * size))
    target.close()
    head = moto.admin.head_object(Bucket=place.bucket, Key="some/prefix/a")
    assert head["StorageClass"] == "STANDARD_IA"
    assert head["ServerSideEncryption"] == "aws:kms"
    assert head["SSEKMSKeyId"].endswith("alias/aws/s3")


@pytest.mark.parametrize("size", [10, 17 << 20])
def test_objects_are_locked(radosgw, size):
    """Short and long objects are locked for as many days as the URL says."""
    query = {"lock_mode": "GOVERNANCE", "lock_days": 3}
    place = replace(radosgw.place(ObjectLockEnabledForBucket=True), query=query)
    target = place.open()
    target.put("a", io.BytesIO(b"x" * size))
    head = radosgw.admin.head_object(Bucket=place.bucket, Key="some/prefix/a")
    assert head["ObjectLockMode"] == "GOVERNANCE"
    days = (head["ObjectLockRetainUntilDate"] - head["LastModified"]).total_seconds() / 86400
    assert 2.9 < days < 3.1
    target.delete(["a"])  # makes a version that says so
    assert target.head("a") is None
    versions = radosgw.admin.list_object_versions(Bucket=place.bucket)["Versions"]
    with pytest.raises(radosgw.admin.exceptions.ClientError, match="AccessDenied"):
        radosgw.admin.delete_object(
            Bucket=place.bucket, Key="some/prefix/a", VersionId=versions[0]["VersionId"]
        )
    target.close()


def test_credentials_come_from_the_usual_chain(every_s3_place, monkeypatch):
    """Without options credentials are the environment's; without any, that is said."""
    for name, value in every_s3_place.environment.items():
        monkeypatch.setenv(name, value)
    target = open_target(every_s3_place.url)
    target.put("a", b"x")
    assert target.get("a") == b"x"
    target.close()


def test_no_credentials_at_all_are_an_error(s3_place, monkeypatch, tmp_path):
    """Where no credentials are found the error says so, and no try is made again."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    target = open_target(s3_place.url)
    with pytest.raises(TargetError, match="no credentials were found") as caught:
        target.get("a")
    assert not isinstance(caught.value, TargetPermissionError)  # no rights are missing
    target.close()


@pytest.fixture
def real(radosgw):
    """An empty bucket of radosgw's, which checks signatures."""
    return radosgw.place()


def test_wrong_credentials_are_refused(real):
    """A wrong secret and an unknown key are refused at once, and not shown."""
    for wrong in ({"secret_key": "hush"}, {"access_key": "nobody", "secret_key": "hush"}):
        target = real.open(**wrong)
        for call in (
            lambda t: t.put("a", b"x"),
            lambda t: t.get("a"),
            lambda t: t.head("a"),
            lambda t: list(t.list("")),
            lambda t: t.delete(["a"]),
        ):
            with pytest.raises(TargetPermissionError) as caught:
                call(target)
            assert caught.value.tries == 1
            assert "hush" not in str(caught.value)
        target.close()


@pytest.mark.parametrize("size", [1000, 17 << 20])
def test_what_changes_on_its_way_is_refused_and_sent_again(real, s3_proxy, size):
    """A server that checks refuses bits that were turned over, and gets them again."""
    faults = s3_proxy(real)
    target = faults.place.open()
    data = bytes(range(250)) * (size // 250)
    faults.flip(times=2, match="" if size < 10_000 else "partNumber=2")
    target.put("a", data)
    assert faults.struck["put"] == 2
    assert target.get("a") == data
    target.close()


def test_signed_calls_pass_the_fault_proxy(real, s3_proxy):
    """The proxy changes nothing that is signed, so that every fault can be tried on this too."""
    faults = s3_proxy(real)
    target = faults.place.open()
    faults.fail("put", status=503)
    faults.lose("put", after=1)
    assert target.put("a b".replace(" ", "+"), b"x", only_new=True) is True
    assert [info.name for info in target.list("")] == ["a+b"]
    target.delete(["a+b"])
    assert not list(target.list(""))
    target.close()
