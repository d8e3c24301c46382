"""What others put into the place, or take from it: nothing foreign is believed, errors say what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fix_backup_store import names_in
from fix_ledger import everything

from llmspell_dist import Spell, connect
from llmspell_dist.backup.errors import (
    BackupDamagedError,
    BackupError,
    BackupFormatError,
    BackupKeyError,
    BackupNotFoundError,
    BaseMissingError,
)
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.security.keyring import FileKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup, pytest.mark.security]
ALICE = "agent:alice"


@pytest.fixture
async def keys(tmp_path: Path) -> FileKeys:
    """A key-encryption key."""
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    return keys


@pytest.fixture
async def kept(spell: Spell, tmp_path: Path, keys: FileKeys) -> AsyncIterator[BackupStore]:
    """Encrypted backups in a folder."""
    async with spell.backups.to(f"file://{tmp_path}/backups", keys=keys) as kept:
        yield kept


async def refuses(kept: BackupStore, at: str, kind: type[BackupError], naming: str = "") -> str:
    """Restore, and make sure that it is refused; what the error says."""
    with pytest.raises(kind) as caught:
        await kept.restore(at)
    assert naming in str(caught.value)
    return str(caught.value)


async def test_a_backup_that_is_not_encrypted_is_not_believed_among_encrypted_ones(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """Who has no key can put one: it is not restored, not gone on from, none of it is used."""
    await spell.state.set(ALICE, "v", "right")
    good = await kept.create()
    plain = spell.backups.to(f"file://{tmp_path}/backups", plaintext=True)
    await spell.state.set(ALICE, "v", "planted")
    planted = await plain.create()
    await spell.state.set(ALICE, "v", "last")
    right = await everything(spell)
    await refuses(kept, planted.id, BackupKeyError, planted.id)
    assert await everything(spell) == right
    assert planted.revision is not None
    report = await kept.restore(planted.revision, namespace=f"{kept._repository.namespace}-there")
    assert planted.id not in str(report.sources), "any restore to a moment can be hindered"
    following = await kept.create(type="incremental")
    assert following.manifest.parent == good.id, "it goes on from the planted one"
    with pytest.raises(BackupKeyError):
        await kept.create(type="incremental", parent=planted.id)
    full = await kept.create()
    keyed = {ref.key for ref in full.manifest.objects}
    assert "" not in keyed, "it uses objects that anybody may have put"
    for info in (following, full):
        await kept.restore(info.id)
        assert await everything(spell) == right
    await plain.close()


async def test_a_planted_one_whose_manifest_names_a_key_is_not_believed(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """A manifest that was copied and changed has the wrong authentication."""
    await spell.state.set(ALICE, "v", 1)
    good = await kept.create()
    repository = kept._repository
    path = tmp_path / "backups" / repository.layout.manifest(good.id)
    facts = json.loads(path.read_bytes())
    assert facts["mac"]
    forged = replace(good.manifest, backup_id="20990101T000000Z-00000000")
    forged = replace(forged, base=forged.backup_id)
    target = repository.target
    target.put(repository.layout.manifest(forged.backup_id), forged.packed(b"guessed" * 4))
    await refuses(kept, forged.backup_id, BackupKeyError, forged.backup_id)
    await spell.state.set(ALICE, "v", 2)
    following = await kept.create(type="incremental")
    assert following.manifest.parent == good.id
    report = await kept.verify(level="full")
    assert report.bad == {forged.backup_id}


async def test_the_wrong_key_and_a_missing_version_say_which(
    spell: Spell, kept: BackupStore, tmp_path: Path, keys: FileKeys
) -> None:
    """The error names the version; nothing is changed."""
    await spell.state.set(ALICE, "v", 1)
    made = await kept.create()
    await spell.state.set(ALICE, "v", 2)
    other = FileKeys(tmp_path / "other")
    other.generate()
    async with spell.backups.to(f"file://{tmp_path}/backups", keys=other) as wrong:
        await refuses(wrong, made.id, BackupKeyError)
        assert (await wrong.verify(level="full")).bad == {made.id}
    keys.generate()
    (tmp_path / "keys" / "v1.key").unlink()
    async with spell.backups.to(f"file://{tmp_path}/backups", keys=keys) as newer:
        await refuses(newer, made.id, BackupKeyError, "v1")
        with pytest.raises(BaseMissingError):  # v1's cannot be told from one that was planted
            await newer.create(type="incremental")
        full = await newer.create()
        await newer.restore(full.id)
    assert await spell.state.get(ALICE, "v") == 2


async def test_a_manifest_of_another_namespace_is_refused(
    spell: Spell, url: str, namespace: str, tmp_path: Path, keys: FileKeys
) -> None:
    """Copied into this one's folder it is nobody's."""
    place = f"file://{tmp_path}/backups"
    near = f"{namespace}x"
    await spell.state.set(ALICE, "v", "mine")
    async with connect(url, namespace=near) as other, other.backups.to(place, keys=keys) as theirs:
        await other.state.set(ALICE, "v", "theirs")
        foreign = await theirs.create()
        async with spell.backups.to(place, keys=keys) as mine:
            assert await mine.list() == []
            own = await mine.create()
            assert [one.id for one in await theirs.list()] == [foreign.id]
            await refuses(mine, foreign.id, BackupNotFoundError, foreign.id)
            source = tmp_path / "backups"
            for name in names_in(theirs._repository.target, f"{theirs._repository.layout.prefix}"):
                copy = source / name.replace(near, namespace, 1)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((source / name).read_bytes())
            await refuses(mine, foreign.id, BackupDamagedError, foreign.id)
            assert (await mine.verify()).bad == {foreign.id}
            await mine.restore(own.id, rollback=False)
            following = await mine.create(type="incremental")
            assert following.manifest.parent == own.id
    assert await spell.state.get(ALICE, "v") == "mine"


@pytest.mark.parametrize("what", ["manifest", "object", "key"])
async def test_a_newer_format_is_refused_by_name(
    spell: Spell, kept: BackupStore, keys: FileKeys, tmp_path: Path, what: str
) -> None:
    """Never guessed at."""
    await spell.state.set(ALICE, "v", 1)
    made = await kept.create()
    await spell.state.set(ALICE, "v", 2)
    layout, folder = kept._repository.layout, tmp_path / "backups"
    if what == "manifest":
        path = folder / layout.manifest(made.id)
        facts: dict[str, Any] = json.loads(path.read_bytes())
        facts["format"] = 2
        path.write_text(json.dumps(facts))
    elif what == "key":
        (path,) = (folder / layout.keys).rglob("*.json")
        facts = json.loads(path.read_bytes())
        facts["format"] = 2
        path.write_text(json.dumps(facts))
    else:
        path = folder / layout.object(made.manifest.objects_of("records")[0].digest)
        raw = bytearray(path.read_bytes())
        raw[4] = 2
        path.write_bytes(raw)
    async with spell.backups.to(f"file://{folder}", keys=keys) as fresh:
        said = await refuses(fresh, made.id, BackupError)
        if what != "object":  # of which the hash is wrong then
            await refuses(fresh, made.id, BackupFormatError)
        assert path.name in said or made.id in said
        assert (await fresh.verify(level="full")).bad == {made.id}
    assert await spell.state.get(ALICE, "v") == 2


async def test_a_damaged_backup_of_some_scopes_is_in_nobodys_way(
    spell: Spell, kept: BackupStore, tmp_path: Path
) -> None:
    """Its index says what it holds; without it the others are restored all the same."""
    await spell.state.set(ALICE, "v", 1)
    made = await kept.create()
    some = await kept.create(scopes=[ALICE])
    (index,) = some.manifest.objects_of("index")
    (tmp_path / "backups" / kept._repository.layout.object(index.digest)).unlink()
    right = await everything(spell)
    for at in (made.id, made.revision, None):
        await kept.restore(at, rollback=False)
        assert await everything(spell) == right
    with pytest.raises(BackupDamagedError, match=index.digest):
        await kept.restore(some.id)
