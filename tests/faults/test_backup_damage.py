"""Every byte of a small backup flipped, every object cut, removed, exchanged: found and refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_lease_faults import report
from fix_ledger import everything

from llmspell_dist import Spell, connect
from llmspell_dist.backup.errors import BackupError
from llmspell_dist.backup.service import BackupStore
from llmspell_dist.security.keyring import FileKeys

pytestmark = [
    pytest.mark.integration,
    pytest.mark.backup,
    pytest.mark.one_server,
    pytest.mark.needs("process"),
]


class Small:
    """A full backup and an incremental one behind it, as files."""

    def __init__(self, kept: BackupStore, folder: Path, ids: list[str], right: Any) -> None:
        self.kept, self.folder, self.ids, self.right = kept, folder, ids, right
        self.indexes: set[str] = set()
        self.files = sorted(one for one in folder.rglob("*") if one.is_file())
        self.counts: Counter[str] = Counter()

    def kind(self, file: Path) -> str:
        """Return what an object is."""
        return file.relative_to(self.folder).parts[1]

    @contextmanager
    def damaged(self, file: Path, raw: bytes | None) -> Iterator[None]:
        """Put something else there; None: nothing."""
        before = file.read_bytes()
        if raw is None:
            file.unlink()
        else:
            file.write_bytes(raw)
        try:
            yield
        finally:
            file.write_bytes(before)

    async def is_found(self, spell: Spell, file: Path, what: str, *, level: str) -> None:
        """Make sure that it is found, named, and that nothing wrong is restored."""
        namespace = f"{self.kept._repository.namespace}-{self.counts.total()}"
        name = str(file.relative_to(self.folder))
        # As another process finds it: nothing is remembered.
        keys = self.kept._repository._keys
        async with spell.backups.to(f"file://{self.folder}", keys=keys) as fresh:
            found = await fresh.verify(level=level)
            gone = self.kind(file) == "backups" and what == "removed"
            if not gone and (self.kind(file) != "keys" or not found.ok):
                assert not found.ok, f"{what} {name} is not found by {level}"
                said = " ".join(map(str, found.findings))
                assert name in said or file.parent.name in said, f"{what} {name}: {said}"
            refused = None
            try:
                await fresh.restore(self.ids[-1], namespace=namespace, rollback=False)
            except BackupError as error:
                refused = error
                said = str(error)
                assert any(one in said for one in (name, file.name, file.parent.name)), (
                    f"{what} {name}: {said}"
                )
            async with connect(spell_url(spell), namespace=namespace) as there:
                now = await everything(there)
            assert refused is None or now == {}, f"{what} {name}: refused, and half restored"
            assert refused is not None or now == self.right, f"{what} {name}: a wrong restore"
            # The index is about a backup, and not needed; a key's last byte is a new line.
            spared = file.name in self.indexes or (self.kind(file) == "keys" and found.ok)
            assert refused is not None or spared, f"{what} {name}: not refused"
        self.counts["spared" if spared and refused is None else "refused"] += 1
        self.counts[what] += 1


_URLS: dict[int, str] = {}


def spell_url(spell: Spell) -> str:
    """Return the URL that a client was opened with."""
    return _URLS[id(spell)]


@pytest.fixture
async def small(spell: Spell, url: str, tmp_path: Path) -> AsyncIterator[Small]:
    """An encrypted chain of two."""
    _URLS[id(spell)] = url
    keys = FileKeys(tmp_path / "keys")
    keys.generate()
    state = spell.state
    async with spell.backups.to(f"file://{tmp_path}/b", keys=keys) as kept:
        for number in range(3):
            await state.set(f"agent:{number}", "v", {"number": number})
            await state.append(f"agent:{number}", "l", number)
        full = await kept.create()
        await state.set("agent:0", "v", "later")
        made = await kept.create(type="incremental")
        small = Small(kept, tmp_path / "b", [full.id, made.id], await everything(spell))
        for info in (full, made):
            small.indexes |= {ref.digest for ref in info.manifest.objects_of("index")}
        yield small
    _URLS.clear()


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    """Return it with one bit turned over."""
    return raw[:at] + bytes((raw[at] ^ 1 << bit,)) + raw[at + 1 :]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
async def test_every_byte_that_is_flipped_is_found(
    spell: Spell, small: Small, share: float
) -> None:
    """By verify, which names the object, and by restore, which refuses it."""
    drawn = random.Random(5)
    for file in small.files:
        raw = file.read_bytes()
        places: Sequence[int] = range(len(raw))
        if share < 1:
            places = sorted({0, len(raw) - 1, *drawn.sample(places, max(2, int(share * len(raw))))})
        for at in places:
            with small.damaged(file, flipped(raw, at, drawn.randrange(8))):
                await small.is_found(spell, file, "flipped", level="full")
    report("backup bytes flipped", **small.counts, objects=len(small.files))
    assert small.counts["refused"] > small.counts["spared"]
    assert {small.kind(file) for file in small.files} == {"backups", "keys", "objects"}


async def test_every_object_cut_removed_or_exchanged_is_found(spell: Spell, small: Small) -> None:
    """Already by the structure, but for what is exchanged for something as long."""
    change: dict[str, Callable[[bytes, bytes], bytes | None]] = {
        "cut by one": lambda raw, _: raw[:-1],
        "cut in half": lambda raw, _: raw[: len(raw) // 2],
        "empty": lambda _, __: b"",
        "longer": lambda raw, _: raw + b"\0",
        "removed": lambda _, __: None,
        "exchanged": lambda _, other: other,
    }
    for file in small.files:
        others = [one for one in small.files if one != file and small.kind(one) == small.kind(file)]
        for what, to in change.items():
            for other in others if what == "exchanged" else others[:1]:
                with small.damaged(file, to(file.read_bytes(), other.read_bytes())):
                    structure = small.kind(file) == "objects" and what != "exchanged"
                    level = "structure" if structure else "full"
                    await small.is_found(spell, file, what, level=level)
    report("backup objects harmed", **small.counts, objects=len(small.files))
