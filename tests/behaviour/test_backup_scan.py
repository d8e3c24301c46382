"""A backup holds every record and every element, whatever size scopes, records and elements are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from llmspell_dist import StateClass
from llmspell_dist.backup.items import (
    Continued,
    Elements,
    Missing,
    Record,
    ScopeStart,
    unpack_items,
)
from llmspell_dist.records import Kind, unpack_record

pytestmark = pytest.mark.integration


async def contents(spell: Any, folder: Path, **options: Any) -> dict[str, dict[str, list[bytes]]]:
    """Make a backup; by scope and key: the record, and the elements behind it."""
    async with spell.backups.to(f"file://{folder}") as store:
        info = await store.create(**options)
        repository = store._repository
        found: dict[str, dict[str, list[bytes]]] = {}
        scope, key = "", ""
        for ref in info.manifest.objects_of("records"):
            for item in unpack_items(repository.load(ref), ref.digest):
                if isinstance(item, ScopeStart):
                    scope = item.text.decode()
                elif isinstance(item, Record):
                    key = item.key.decode()
                    found.setdefault(scope, {})[key] = [item.raw]
                elif isinstance(item, Continued):
                    key = item.key.decode()
                elif isinstance(item, Elements):
                    found[scope][key] += item.parts
                assert not isinstance(item, Missing)
    return found


async def test_scopes_of_every_size(spell: Any, tmp_path: Path) -> None:
    """Read whole or page by page, nothing is left out."""
    values: dict[str, dict[str, Any]] = {
        "session:empty": {},
        "session:small": {f"key-{n}": n for n in range(7)},
        "session:middle": {f"key-{n}": "v" * 2_000 for n in range(90)},
        "session:large": {f"key-{n}": f"{n}" * 200 for n in range(1_000)},
        "session:uneven": {f"key-{n}": "x" * (400_000 if n % 40 == 0 else 10) for n in range(60)},
    }
    for scope, named in values.items():
        if named:
            await spell.state.set_many(scope, named)
        else:
            await spell.state.set(scope, "gone", 1)
            await spell.state.delete(scope, "gone")
    found = await contents(spell, tmp_path)
    assert {scope: set(keys) for scope, keys in found.items()} == {
        scope: set(named) for scope, named in values.items() if named
    }
    for scope, named in values.items():
        for key in named:
            record = await spell.state.get_record(scope, key)
            stored = unpack_record(found[scope][key][0], scope, key)
            assert stored.revision == record.revision


async def test_elements_of_every_kind(spell: Any, tmp_path: Path) -> None:
    """Lists, maps and blobs come with all their elements, whole or piece by piece."""
    state, scope = spell.state, "session:composites"
    await state.append(scope, "few", *range(5))
    await state.append(scope, "many", *[f"{n}" * 200 for n in range(1_000)])
    await state.merge(scope, "narrow", {f"field-{n}": n for n in range(9)})
    await state.merge(scope, "wide", {f"field-{n}": "w" * 900 for n in range(700)})
    await state.merge(scope, "heavy", {f"field-{n}": "h" * 300_000 for n in range(4)})
    await state.set(scope, "blob", b"b" * 3_000_000, state_class=StateClass.BULK)
    await state.set(scope, "plain", "beside them")
    found = (await contents(spell, tmp_path))[scope]
    assert len(found["few"]) - 1 == 5
    assert len(found["many"]) - 1 == 1_000
    for key in ("narrow", "wide", "heavy"):
        flat = found[key][1:]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        assert {msgpack.unpackb(name) for name in fields} == set(await state.get(scope, key))
        assert unpack_record(found[key][0], scope, key).kind == Kind.MAP
    assert b"b" * 3_000_000 in b"".join(found["blob"][1:])
    assert len(found["plain"]) == 1


async def test_only_what_is_selected(spell: Any, tmp_path: Path) -> None:
    """Scopes and classes select."""
    await spell.state.set_many("session:one", {"a": 1, "b": 2})
    await spell.state.set("session:one", "c", 3, state_class=StateClass.BULK)
    await spell.state.set("session:two", "a", 1)
    found = await contents(spell, tmp_path, scopes="session:one", classes=[StateClass.BULK])
    assert {scope: set(keys) for scope, keys in found.items()} == {"session:one": {"c"}}
