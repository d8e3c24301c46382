"""Which objects lead to a moment: chosen from manifests, the archive and the live log."""

from __future__ import annotations

import pytest

from llmspell_dist.backup.errors import BackupNotFoundError, PointNotCoveredError
from llmspell_dist.backup.manifest import BackupType, Manifest, ObjectRef, ShardCut
from llmspell_dist.backup.planning import Stretch, plan
from llmspell_dist.backup.points import Point
from llmspell_dist.backup.selection import Selection
from llmspell_dist.errors import InvalidArgumentError
from llmspell_dist.revision import Revision

pytestmark = [pytest.mark.unit, pytest.mark.backup]


def at(ms: int) -> Revision:
    """Return a moment."""
    return Revision(ms, 0)


def backup(name: str, begin: int, upto: int, *, base: str = "", filtered: bool = False) -> Manifest:
    """Return a backup with a segment of its own; a full one without a base."""
    full = not base
    segment = ObjectRef(f"segment of {name}", "segment", "0", 1, 1)
    records = (ObjectRef(f"records of {name}", "records", "0", 1, 1),) if full else ()
    return Manifest(
        backup_id=name,
        type=BackupType.FULL if full else BackupType.INCREMENTAL,
        namespace="n",
        started="2026-11-26T00:00:00+00:00",
        created="2026-11-26T00:00:00+00:00",
        shards=(ShardCut("0", str(at(begin)) if begin else "", str(at(upto)), "00"),),
        objects=(*records, segment),
        parent="" if full else base,
        base=name if full else base,
        filtered=filtered,
    )


def sources(found: object) -> list[str]:
    """Return what a plan reads, in order."""
    return list(found.sources)  # type: ignore[attr-defined]


def test_the_newest_full_backup_before_the_moment_is_the_base() -> None:
    """One that is later than the moment never is."""
    backups = [backup("a", 5, 10), backup("b", 15, 20), backup("c", 25, 30)]
    offered = {"0": [Stretch("log", at(1), at(40), origin="0")]}
    for moment, base in ((10, "a"), (19, "a"), (20, "b"), (29, "b"), (35, "c")):
        found = plan(Point(revision=at(moment)), backups, offered=offered, ends={"0": at(40)})
        assert found.base.backup_id == base
        assert found.shards[0].upto == at(moment)


def test_a_chain_of_backups_leads_as_far_as_it_goes() -> None:
    """An incremental one leads from the moment of its parent to its own."""
    backups = [backup("a", 5, 10), backup("b", 10, 20, base="a"), backup("c", 20, 30, base="a")]
    assert sources(plan(Point(), backups)) == ["backup a", "backup b", "backup c"]
    assert sources(plan(Point(backup_id="b"), backups)) == ["backup a", "backup b"]
    assert sources(plan(Point(backup_id="a"), backups)) == ["backup a"]
    assert sources(plan(Point(revision=at(15)), backups)) == ["backup a", "backup b"]
    with pytest.raises(PointNotCoveredError, match="reaches"):
        plan(Point(revision=at(31)), backups)


def test_a_missing_link_is_no_way() -> None:
    """What begins later than the chain ends does not go on from it."""
    backups = [backup("a", 5, 10), backup("c", 20, 30, base="a")]
    assert sources(plan(Point(), backups)) == ["backup a"]
    with pytest.raises(PointNotCoveredError):
        plan(Point(revision=at(25)), backups)
    with pytest.raises(PointNotCoveredError):
        plan(Point(backup_id="c"), backups)


def test_what_was_stored_soonest_is_read_first() -> None:
    """The archive before backups, these before the live log; each from where the chain ends."""
    backups = [backup("a", 5, 10), backup("b", 10, 20, base="a")]
    archive = Stretch("archive t", at(8), at(18), origin="x")
    log = Stretch("log", at(1), at(40), origin="0")
    found = plan(Point(revision=at(30)), backups, offered={"0": [log, archive]})
    assert sources(found) == ["backup a", "archive t", "backup b", "log"]
    assert [one.after for one in found.shards[0].stretches[1:]] == [at(10), at(10), at(20)]


def test_after_the_end_of_the_live_log_nothing_has_happened() -> None:
    """So a later moment is covered, if that log is the one that was backed up."""
    backups = [backup("a", 5, 10)]
    found = plan(Point(revision=at(99)), backups, ends={"0": at(10)})
    assert found.shards[0].upto == at(10)
    with pytest.raises(PointNotCoveredError):
        plan(Point(revision=at(99)), backups, ends={"0": at(50)})
    with pytest.raises(PointNotCoveredError):
        plan(Point(revision=at(99)), backups)


def test_without_a_fitting_backup_the_reason_is_said() -> None:
    """None at all, none so old, none with that id."""
    with pytest.raises(PointNotCoveredError, match="no full backup"):
        plan(Point(), [])
    with pytest.raises(PointNotCoveredError, match="oldest full backup a"):
        plan(Point(revision=at(3)), [backup("a", 5, 10)])
    with pytest.raises(BackupNotFoundError):
        plan(Point(backup_id="z"), [backup("a", 5, 10)])


@pytest.mark.parametrize(
    ("held", "wanted", "fits"),
    [
        (("agent:*",), ("agent:a",), True),
        (("agent:*",), ("agent:*",), True),
        (("agent:?",), ("agent:*",), False),
        (("agent:a",), ("agent:b",), False),
        (("agent:a",), (), False),
        (("!tool:*",), ("agent:a",), True),
        (("!tool:*",), ("tool:a",), False),
        (("!tool:*",), ("agent:*",), False),
        (("agent:*", "!agent:x"), ("agent:*",), False),
        (("agent:*", "!agent:x"), ("agent:*", "!agent:x"), True),
        (("agent:*",), ("!tool:*",), False),
        (("agent:*",), ("agent:*", "!agent:x"), False),
    ],
)
def test_a_backup_of_some_scopes_is_a_base_only_for_those(
    held: tuple[str, ...], wanted: tuple[str, ...], *, fits: bool
) -> None:
    """A glob is held only by the same glob, and not where some of it was left out."""
    selections, asked = {"a": Selection.of(held)}, Selection.of(wanted)
    backups = [backup("a", 5, 10, filtered=True)]
    if fits:
        assert plan(Point(), backups, selections=selections, wanted=asked).base.backup_id == "a"
    else:
        with pytest.raises(PointNotCoveredError, match="no backup holds"):
            plan(Point(), backups, selections=selections, wanted=asked)


@pytest.mark.parametrize(
    "text", ["2026-11-26T14:05:00", "yesterday", "", "1-", "20261126T140500Z-x", "٣-٤"]
)
def test_a_moment_that_cannot_be_read_is_refused(text: str) -> None:
    """It says what it may look like."""
    with pytest.raises(InvalidArgumentError, match="latest, a backup's id, a revision"):
        Point.of(text)
