"""A backup can be read without this program, by what docs/design/backup-format.md says."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fix_backup_reader import read_backup

from llmspell_dist import Spell, StateClass
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.errors import HistoryUnavailableError
from llmspell_dist.revision import Revision
from llmspell_dist.security.keyring import EnvironmentKeys

pytestmark = [pytest.mark.integration, pytest.mark.backup]

SECRET = bytes(range(200, 232))
SCOPES = ("agent:alice", "agent:bob", "global")
LARGE = "x" * 700_000


def _change(state: Any, chance: random.Random, number: int) -> Awaitable[Any]:
    """Return something that leaves something in the log."""
    scope, key = chance.choice(SCOPES), chance.choice("abcdef")
    # Sensitive needs a cipher.
    of = chance.choice([one for one in StateClass if one is not StateClass.SENSITIVE])
    everything: list[Callable[[], Awaitable[Any]]] = [
        *[lambda: state.set(scope, f"{of}{key}", {"n": number}, state_class=of)] * 4,
        lambda: state.set(scope, f"list{key}", [number, "as a whole"]),
        lambda: state.append(scope, f"list{key}", number, {"more": True}),
        lambda: state.merge(scope, f"map{key}", {"n": number, key: None}, remove=["b"]),
        lambda: state.set(scope, f"map{key}", {"as a": "whole", "b": number}),
        lambda: state.increment(scope, f"number{key}", chance.choice((1, 0.5))),
        lambda: state.delete(scope, chance.choice(("list", "map", "number")) + key),
        lambda: state.expire(scope, f"list{key}", 3600),
        lambda: state.copy_scope("agent:alice", "agent:bob"),
    ]
    if number % 10 == 9:
        everything = [
            lambda: state.clear(scope),
            lambda: state.set(scope, "large", f"{number}{LARGE}"),
        ]
    return chance.choice(everything)()


async def _write(spell: Spell, chance: random.Random, rounds: int) -> None:
    for number in range(rounds):
        await _change(spell.state, chance, number)


async def _live(spell: Spell) -> dict[str, dict[str, Any]]:
    found = {scope: await spell.state.get_all(scope) for scope in SCOPES}
    return {scope: keys for scope, keys in found.items() if keys}


def _read(folder: Path, namespace: str, backup_id: str) -> dict[str, dict[str, Any]]:
    target = FolderTarget(folder)
    moment = read_backup(target, namespace, backup_id, SECRET)
    target.close()
    return {
        scope.decode(): {key.decode(): value.plain for key, value in keys.items()}
        for scope, keys in moment.scopes.items()
        if keys
    }


def _manifest(folder: Path, namespace: str, backup_id: str) -> dict[str, Any]:
    raw = folder / namespace / "backups" / backup_id / "manifest.json"
    manifest: dict[str, Any] = json.loads(raw.read_bytes())
    return manifest


async def _compared(spell: Spell, read: dict[str, dict[str, Any]], at: Revision) -> int:
    """Compare with what the history says about that moment; return how many keys it knows."""
    compared = 0
    for scope in SCOPES:
        mine = read.get(scope, {})
        for key in {*mine, *await spell.state.get_all(scope)}:
            try:
                then = await spell.state.get_at(scope, key, at)
            except HistoryUnavailableError:
                continue  # the log holds no payload
            assert mine.get(key) == then, (scope, key)
            compared += 1
    return compared


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
async def test_what_the_page_says_leads_to_the_state_of_that_moment(
    spell: Spell, namespace: str, tmp_path: Path, seed: int
) -> None:
    """A full backup while somebody writes, then incremental ones: each is what was there."""
    chance = random.Random(seed)
    keys = EnvironmentKeys("K", environ={"K": SECRET.hex()})
    async with spell.backups.to(f"file://{tmp_path}", keys=keys) as backups:
        await _write(spell, chance, 60)
        full = await backups.create()
        assert _read(tmp_path, namespace, full.id) == await _live(spell)
        during, _ = await asyncio.gather(backups.create(), _write(spell, chance, 80))
        at = Revision.parse(_manifest(tmp_path, namespace, during.id)["shards"][0]["at"])
        assert await _compared(spell, _read(tmp_path, namespace, during.id), at) > 10
        await _write(spell, chance, 40)
        later = await backups.create(type="incremental", parent=during.id)
        live = await _live(spell)
        assert _read(tmp_path, namespace, later.id) == live
        following = await backups.create(type="incremental", parent=full.id)
        assert _read(tmp_path, namespace, following.id) == live
        assert await backups.inexact(later.id) == ()
