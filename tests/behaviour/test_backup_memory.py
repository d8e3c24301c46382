"""What is not in the log is read, stored and let go bit by bit, however much it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmspell_dist import Spell, StateClass
from llmspell_dist.backup import writing
from llmspell_dist.backup.archive import shipper

pytestmark = [pytest.mark.integration, pytest.mark.backup]
VALUE = 16 * 1024
COUNT = 400


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes of finished objects waited at once, at most; objects are small here."""
    found = {"bytes": 0}
    real = writing.ObjectWriter.cut

    def cut(self: writing.ObjectWriter) -> None:
        real(self)
        found["bytes"] = max(found["bytes"], sum(map(len, self.ready)))

    monkeypatch.setattr(writing.ObjectWriter, "cut", cut)
    monkeypatch.setattr(writing, "MOST_BYTES", 4 * VALUE)
    monkeypatch.setattr(writing, "LEAST_BYTES", VALUE)
    monkeypatch.setattr(shipper, "MOST_OPEN_BYTES", 32 * VALUE)
    return found


async def test_values_are_attached_bit_by_bit(
    spell: Spell, tmp_path: Path, most: dict[str, int], namespace: str
) -> None:
    """By incremental backups, by the archive, and by a restore that reads the live log."""
    async with spell.backups.to(f"file://{tmp_path}/backups") as kept:
        await spell.state.set("agent:a", "v", 1)
        await kept.archive().once()
        await kept.create()
        values: dict[str, Any] = {f"k{n}": bytes(VALUE - 100) for n in range(COUNT)}
        for first in range(0, COUNT, 100):
            some = dict(list(values.items())[first : first + 100])
            await spell.state.set_many("agent:a", some, state_class=StateClass.BULK)
        await kept.restore(namespace=f"{namespace}-log", rollback=False)
        await kept.create(type="incremental")
        stats = await kept.archive().once()
        assert stats.segments > 1
        report = await kept.restore(namespace=f"{namespace}-archive", rollback=False)
        assert any(source.startswith("archive") for source in report.sources)
    # Sixteen values are asked for at once.
    assert 0 < most["bytes"] < 40 * VALUE < COUNT * VALUE / 8
