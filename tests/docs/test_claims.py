"""Tables of the user pages that name errors, classes, rights and limits say what the code does."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmspell_dist
import llmspell_dist.compat
import llmspell_dist.sidecar.auth.errors
from llmspell_dist import Options, StateClass, StateManager, errors
from llmspell_dist.config import parse_url
from llmspell_dist.scope import Scope, ScopeKind

if TYPE_CHECKING:
    from fix_servers import Server

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STATE = ROOT / "docs" / "state-management"


def _rows(page: Path, *header: str) -> Iterator[list[str]]:
    """Yield the rows of the page's tables whose header begins so."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if cells[: len(header)] == list(header):
            inside = True
        elif inside and set(line) - set("|-: "):
            yield cells


def _parent(cls: type) -> type:
    """The class above, without what only shows errors."""
    return next(base for base in cls.__mro__[1:] if not base.__name__.startswith("_"))


_OVER_HTTP = (
    "llmspell_dist.remote.errors",
    "llmspell_dist.sidecar.errors",
    "llmspell_dist.sidecar.webhook_errors",
)
"""Whose errors only requests over HTTP have."""


def test_the_tree_of_errors_is_complete_and_true() -> None:
    """Every class with its parent, its code and whether it may be tried again; and no other."""
    said = {}
    path: list[str] = []
    for cells in _rows(STATE / "errors.md", "class", "code", "retryable"):
        depth = cells[0].count("·")
        name = re.search(r"`(\w+)`", cells[0])
        assert name is not None
        path[depth:] = [name[1]]
        said[name[1]] = (path[depth - 1] if depth else "", cells[1].strip("`"), cells[2] == "yes")
    classes = {cls.__name__: cls for cls in errors.error_classes().values()}
    real = {
        name: (
            "" if cls is errors.SpellError else _parent(cls).__name__,
            cls.code,
            bool(cls.retryable),
        )
        for name, cls in classes.items()
        if cls.__module__.startswith("llmspell_dist.") and cls.__module__ not in _OVER_HTTP
    }
    assert said == real


def test_every_class_of_state_has_its_row() -> None:
    """With what it does to the log and to the TTL."""
    rows = {cells[0].strip("`"): cells for cells in _rows(STATE / "README.md", "class")}
    assert rows.keys() == StateClass.__members__.keys()
    for name, (_, logged, ttl, _) in rows.items():
        does = StateClass[name].behaviour
        assert logged.startswith("no") is (not does.log_payload), name
        assert (ttl == "none") is (does.default_ttl is None), name


def test_every_scope_has_its_row() -> None:
    """And prints as the table says."""
    kinds = set()
    for _, text, maker, _ in _rows(STATE / "README.md", "scope", "text"):
        made = eval(maker.strip("`"), {"Scope": Scope, "id": "i", "name": "n"})  # noqa: S307
        pattern = text.strip("`").replace("<id>", "i").replace("<name>", "n")
        assert str(made) == pattern
        kinds.add(made.kind)
    assert kinds == set(ScopeKind)


def test_every_method_of_the_manager_is_in_the_overview() -> None:
    """The tables of calls leave none out, apart from what settles unknown outcomes."""
    text = (STATE / "README.md").read_text(encoding="utf-8")
    public = {name for name, _ in inspect.getmembers(StateManager) if not name.startswith("_")}
    named = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", text))
    assert public - named <= {"retry"}


def test_every_option_has_its_row() -> None:
    """And no other."""
    cells = [row[0] for row in _rows(STATE / "README.md", "field", "default")]
    named = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(named) == sorted(one.name for one in dataclasses.fields(Options))


async def _use_everything(spell: Any) -> None:
    state = spell.state
    await state.set("agent:a", "x", 1, ttl=100)
    await state.persist("agent:a", "x")
    await state.increment("agent:a", "x")
    await state.append("agent:a", "list", 1)
    await state.append("agent:a", "list", 2)
    await state.merge("agent:a", "map", {"a": 1, "b": 2})
    await state.merge("agent:a", "map", {"a": 2}, remove=["b"])
    await state.set("agent:a", "blob", "z" * 600_000)
    assert await state.get("agent:a", "blob") == "z" * 600_000
    assert await state.get_many("agent:a", ["x", "list"]) == {"x": 2, "list": [1, 2]}
    assert sorted([key async for key in state.keys("agent:a")]) == ["blob", "list", "map", "x"]
    assert len([scope async for scope in state.scopes()]) == 1
    assert await state.copy_scope("agent:a", "agent:b") == 4
    assert await state.move_scope("agent:b", "agent:c") == 4
    assert len(await state.get_all("agent:c")) == 4
    assert await state.history("agent:a", "x")
    assert await state.delete("agent:a", "list")
    assert await state.clear("agent:a") == 3
    await spell.log.hold("h")
    await spell.log.release("h")
    await spell.log.trim()
    await spell.log.entries(newest_first=True)


@pytest.mark.needs("acl")
async def test_the_rights_of_the_page_are_enough(server: Server) -> None:
    """A user with just these does everything, in the namespace and nowhere else."""
    text = (STATE / "best-practices.md").read_text(encoding="utf-8")
    block = re.search(r"```text\nACL SETUSER agents (.*?)```", text, re.DOTALL)
    assert block is not None
    known = {command[0].decode().lower() for command in server.call("COMMAND")}
    rules = [
        rule.replace("…", "secret")
        for rule in block[1].split()
        if not rule.startswith("+") or rule[1:].partition("|")[0] in known
    ]
    server.call("ACL", "SETUSER", "agents", "reset", *rules)
    try:
        url = server.url.replace("://", "://agents:secret@", 1)
        assert parse_url(url).username == "agents"
        async with llmspell_dist.connect(url, namespace="llmspell") as spell:
            await _use_everything(spell)
        with pytest.raises(errors.StorePermissionError):
            async with llmspell_dist.connect(url, namespace="other") as spell:
                await spell.state.set("agent:a", "x", 1)
    finally:
        server.call("ACL", "DELUSER", "agents")
