"""The change log through a sidecar, for operators."""

from __future__ import annotations

import pytest
from fix_sidecar import StartSidecar

from llmspell_dist import connect
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.remote.errors import NotThroughSidecarError
from llmspell_dist.remote.log import ABSENT

pytestmark = [pytest.mark.integration, pytest.mark.one_server]


async def test_its_length_and_holds_are_told_and_let_go(start_sidecar: StartSidecar) -> None:
    """As the library tells them; a hold that nobody has is no error."""
    sidecar = await start_sidecar()
    ours = sidecar.services.spell.log
    async with connect(sidecar.url) as spell:
        assert await spell.log.stat() == await ours.stat()
        for number in range(2):
            await spell.state.set("agent:a", "k", number)
        at = await spell.state.set("agent:a", "k", 2)
        await ours.hold("archiver", at=at)
        found = await spell.log.stat(shard="0")
        assert found == await ours.stat()
        assert (found.entries, found.holds) == (3, {"archiver": at})
        await spell.log.release("archiver")
        await spell.log.release("nobody")
        assert (await spell.log.stat()).holds == {}
        for wrong in (spell.log.release(""), spell.log.stat(shard="x")):
            with pytest.raises(InvalidArgumentError):
                await wrong


async def test_it_is_shortened_to_its_retention(
    start_sidecar: StartSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says by how much."""
    monkeypatch.setattr("llmspell_dist.client.INTERVAL_S", 3600.0)
    sidecar = await start_sidecar()
    body = {"max_age": 3600.0, "max_entries": 1, "cap_entries": 1000}
    told = await sidecar.ask("PUT", "/v1/admin/retention", body)
    assert told.status_code == 200, told.text
    async with connect(sidecar.url) as spell:
        for number in range(3):
            await spell.state.set("agent:a", "k", number)
        assert await spell.log.trim() == 2
        assert (await spell.log.stat()).entries == 1


async def test_what_it_has_not_says_why(start_sidecar: StartSidecar) -> None:
    """Its entries are not told: they are of every scope."""
    sidecar = await start_sidecar()
    async with connect(sidecar.url) as spell:
        for name, why in ABSENT.items():
            with pytest.raises(NotThroughSidecarError, match=why[:20]):
                getattr(spell.log, name)
