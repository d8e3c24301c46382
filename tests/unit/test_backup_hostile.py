"""Manifests and wrapped keys that somebody else wrote: refused by name, and never a raw error."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError
from llmspell_dist.backup.keys import KeyStore, read_wrapping
from llmspell_dist.backup.manifest import BackupType, Manifest, ObjectRef, ShardCut
from llmspell_dist.backup.names import Layout
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.unit, pytest.mark.backup]
DEEP = b'{"format":' + b"[" * 100_000
GOOD = Manifest(
    backup_id="20260131T120000Z-0a1b2c3d",
    type=BackupType.FULL,
    namespace="app",
    started="2026-01-31T12:00:00+00:00",
    created="2026-01-31T12:00:01+00:00",
    shards=(ShardCut("0", "", "5-6", "00" * 14),),
    objects=(ObjectRef("ab" * 32, "index", "", 10, 10),),
    tags={"why": "because ümlauts"},
)


def forged(**changes: Any) -> bytes:
    """Return a manifest whose digest is right, and whose fields are not."""
    facts = json.loads(GOOD.packed()) | changes
    del facts["digest"]
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    facts["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps(facts).encode()


def cut(**changes: Any) -> dict[str, Any]:
    """Return the fields of a shard."""
    return {"shard": "0", "begin": "", "at": "5-6", "operation": "00" * 14} | changes


def ref(**changes: Any) -> dict[str, Any]:
    """Return the fields of an object."""
    facts = {"digest": "ab" * 32, "kind": "index", "shard": "", "size": 1, "plain_size": 1}
    return facts | {"key": ""} | changes


def test_a_good_one_is_read() -> None:
    """So what is refused below is refused for what was changed."""
    assert Manifest.unpack(forged(), "here") == GOOD
    assert Manifest.unpack(forged(shards=[cut()]), "here") == GOOD
    assert Manifest.unpack(forged(objects=[ref()]), "here").objects[0].size == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"backup_id": "../../x"},
        {"backup_id": 5},
        {"parent": "../x"},
        {"base": None},
        {"type": "whole"},
        {"type": {}},
        {"namespace": 5},
        {"started": 5},
        {"started": "2026-01-31T12:00:00"},
        {"started": "0001-01-01T00:00:00+23:59"},
        {"created": "yesterday"},
        {"created": "9999-12-31T23:59:59-23:59"},
        {"shards": {}},
        {"shards": [[]]},
        {"shards": [cut(at="x-y")]},
        {"shards": [cut(at=f"{2**48 - 1}-0")]},
        {"shards": [cut(at=f"{2**60}-0")]},
        {"shards": [cut(begin=7)]},
        {"shards": [cut(shard="../0")]},
        {"shards": [cut(operation="zz")]},
        {"shards": [cut(more=1)]},
        {"objects": [ref(digest=5)]},
        {"objects": [ref(digest="AB" * 32)]},
        {"objects": [ref(size="big")]},
        {"objects": [ref(size=-1)]},
        {"objects": [ref(size=True)]},
        {"objects": [ref(plain_size=1.5)]},
        {"objects": [ref(kind="program")]},
        {"objects": [ref(key="../x")]},
        {"objects": [ref(shard=0)]},
        {"objects": [{}]},
        {"filtered": "no"},
        {"sections": "events"},
        {"sections": [1]},
        {"tags": []},
        {"tags": {"a": 1}},
        {"importance": "highest"},
        {"importance": []},
        {"reason": None},
        {"stats": "many"},
        {"stats": {"records": "many"}},
        {"stats": {"seconds": float("nan")}},
        {"stats": {"seconds": True}},
        {"mac": "ü"},
        {"server": 7},
        {"more": 1},
        {"format": "1"},
        {"format": True},
    ],
    ids=repr,
)
def test_a_manifest_with_another_field_is_damaged(changes: dict[str, Any]) -> None:
    """Whatever the field is, and though its digest is right."""
    with pytest.raises(BackupDamagedError) as caught:
        Manifest.unpack(forged(**changes), "there")
    assert caught.value.name == "there"


@pytest.mark.parametrize(
    "raw", [b"", b"5", b"[]", b"{}", b"\xff\xfe", b'{"format":1,"digest":""}', DEEP, b'"\\ud800"']
)
def test_what_is_no_manifest_is_damaged(raw: bytes) -> None:
    """Also what is nested so deeply that Python gives up."""
    with pytest.raises(BackupDamagedError):
        Manifest.unpack(raw, "there")
    with pytest.raises(BackupDamagedError):
        read_wrapping("app/keys/k/x.json", raw)


def test_a_newer_manifest_says_so() -> None:
    """It is not damaged."""
    with pytest.raises(BackupFormatError):
        Manifest.unpack(forged(format=99), "there")


@pytest.mark.parametrize("raw", [b'{"format": 99}', b"{}", DEEP])
def test_a_wrapping_that_cannot_be_read_harms_no_other(tmp_path: Path, raw: bytes) -> None:
    """The data key is found by the one beside it."""
    secret = base64.b64encode(bytes(range(32))).decode()
    provider = EnvironmentKeys("K", environ={"K": f"v2:{secret}"})
    target, layout = FolderTarget(tmp_path), Layout("app")
    key = KeyStore(target, layout, provider).new()
    assert key is not None
    target.put(layout.key(key.id, "aaa.v1"), raw)
    assert KeyStore(target, layout, provider).get(key.id).secret == key.secret
    (good,) = [one.name for one in target.list(layout.keys) if "aaa" not in one.name]
    target.delete([good])
    with pytest.raises((BackupDamagedError, BackupFormatError)):
        KeyStore(target, layout, provider).get(key.id)
    target.close()
