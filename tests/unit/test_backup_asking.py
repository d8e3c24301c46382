"""What is asked of backups is checked before anything is sent; the error names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmspell_dist.backup.errors import BackupNotFoundError
from llmspell_dist.backup.making import wish_of
from llmspell_dist.backup.manifest import BackupType
from llmspell_dist.backup.planning import plan
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.repository import Repository
from llmspell_dist.backup.selection import Selection
from llmspell_dist.backup.targets.folder import FolderTarget
from llmspell_dist.classes import StateClass
from llmspell_dist.errors import InvalidArgumentError

pytestmark = [pytest.mark.unit, pytest.mark.backup]


def ask(backup_type: str = "full", **asked: Any) -> Any:
    """Ask for a backup."""
    facts: dict[str, Any] = {"include": (), "tags": None, "importance": "standard"} | asked
    include = facts.pop("include")
    return wish_of(backup_type, Selection(), include, **facts)


@pytest.mark.parametrize(
    ("argument", "backup_type", "asked"),
    [
        ("tags", "full", {"tags": "abc"}),
        ("tags", "full", {"tags": ["a"]}),
        ("tags", "full", {"tags": {"a": 1}}),
        ("tags", "full", {"tags": {str(n): "" for n in range(65)}}),
        ("parent", "full", {"parent": "20260131T120000Z-0a1b2c3d"}),
        ("include", "incremental", {"include": "events"}),
        ("include", "differential", {"include": ["events"]}),
        ("include", "full", {"include": ["everything"]}),
        ("importance", "full", {"importance": "highest"}),
        ("type", "whole", {}),
    ],
)
def test_what_cannot_be_made_is_refused(
    argument: str, backup_type: str, asked: dict[str, Any]
) -> None:
    """By the name of the argument."""
    with pytest.raises(InvalidArgumentError) as caught:
        ask(backup_type, **asked)
    assert caught.value.argument == argument


def test_what_can_be_made_is_taken() -> None:
    """As many tags as are allowed, a parent, a section."""
    tags = {str(n): "x" for n in range(64)}
    assert ask(tags=tags, include="events")[1].tags == tags
    assert ask("incremental", parent="20260131T120000Z-0a1b2c3d")[0] is BackupType.INCREMENTAL


def test_one_class_or_key_is_one() -> None:
    """Not its letters."""
    for one in ("CRITICAL", StateClass.CRITICAL, [StateClass.CRITICAL]):
        assert Selection.of(classes=one).classes == {StateClass.CRITICAL}
    assert Selection.of(keys="abc").keys == {"abc"}


@pytest.mark.parametrize("backup_id", ["../../x", "../x", "", "x/../y", "20260131T120000Z"])
def test_an_id_that_none_can_have_is_not_found(tmp_path: Path, backup_id: str) -> None:
    """And nothing outside of the backups is looked at."""
    target = FolderTarget(tmp_path)
    with pytest.raises(BackupNotFoundError) as caught:
        Repository(target, "app").manifest(backup_id)
    assert (caught.value.target, caught.value.backup_id) == (target.label, backup_id)
    target.close()


def test_a_plan_for_a_backup_that_is_not_there_says_where() -> None:
    """By the label of the place."""
    with pytest.raises(BackupNotFoundError, match="folder /b: there is no backup 'nothing'"):
        plan(Point(backup_id="nothing"), [], label="folder /b")


def test_what_stands_behind_an_exclamation_mark_is_left_out() -> None:
    """Whatever else selects it; alone it leaves all others."""
    others = Selection.of(["!tool:*", "!agent:x"])
    assert [others.wants_scope(one) for one in ("tool:a", "agent:x", "agent:y")] == [0, 0, 1]
    assert (others.exact, others.everything, others.left_out) == (None, False, others.scopes)
    some = Selection.of(["agent:*", "!agent:x"])
    assert [some.wants_scope(one) for one in ("agent:x", "agent:y", "tool:a")] == [0, 1, 0]
    assert Selection.of(["agent:x", "agent:y", "!agent:x"]).exact == ("agent:y",)
    assert Selection.of(**some.stored) == some
    with pytest.raises(InvalidArgumentError, match="scopes"):
        Selection.of("!nothing like a scope")
