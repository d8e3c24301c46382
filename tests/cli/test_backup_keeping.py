"""The backup commands that prove, remove and archive, on every server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmspell_dist import blocking
from llmspell_dist.cli.exits import Exit

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "llmspell_dist.cli", "backup"]
Here = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the backups are."""
    return tmp_path / "backups"


@pytest.fixture
def kept(here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line with a folder for backups."""
    monkeypatch.setenv("LLMSPELL_BACKUP_URL", f"file://{folder}")
    monkeypatch.delenv("LLMSPELL_BACKUP_KEYS", raising=False)
    return here


def _document(result: Any) -> Any:
    assert result.err == ""
    return json.loads(result.out)


def _create(here: Here, *words: str) -> str:
    made = here("backup", "create", *words)
    assert (made.code, made.err) == (0, "")
    return str(made.out).strip()


def _objects(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/objects/*/*"))


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["structure", "hashes", "full"])
def test_what_is_whole_is_verified(kept: Here, level: str) -> None:
    """At every level; the document has what was looked at."""
    kept("set", "agent:alice", "mood", "1")
    full = _create(kept)
    done = kept("--json", "backup", "verify", "--level", level)
    report = _document(done)
    assert (done.code, report["ok"], report["level"]) == (0, True, level)
    assert (report["backups"], report["findings"]) == ([full], [])
    one = kept("backup", "verify", "latest", "--level", level)
    assert (one.code, one.out) == (0, "")
    assert "nothing is wrong" in one.err


def test_damage_is_found_and_named(kept: Here, folder: Path) -> None:
    """Exit code 5; the object is named; a restore refuses it, too."""
    kept("set", "agent:alice", "mood", "1")
    full = _create(kept)
    for file in _objects(folder):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.chmod(0o600)
        file.write_bytes(raw)
    assert kept("backup", "verify", "--level", "structure").code == 0
    found = kept("backup", "verify", full)
    assert found.code == Exit.DATA
    assert _objects(folder)[0].name in found.out
    document = json.loads(kept("--json", "backup", "verify", full).out)
    assert document["ok"] is False
    assert {one["backup_id"] for one in document["findings"]} == {full}
    refused = kept("backup", "restore", "--at", full, "--confirm")
    assert (refused.code, refused.out) == (Exit.DATA, "")
    assert "BACKUP_DAMAGED" in refused.err


def test_a_place_without_backups_is_not_whole(kept: Here, tmp_path: Path) -> None:
    """A mistyped place must not look like a proof: exit code 5, and what is missing."""
    kept("set", "agent:alice", "mood", "1")
    _create(kept)
    other = ("--to", f"file://{tmp_path}/backup")
    empty = kept("backup", "verify", *other)
    assert empty.code == Exit.DATA
    assert empty.out.startswith("place\t-\tthere is no backup of ")
    assert "nothing is wrong" not in empty.err
    report = json.loads(kept("--json", "backup", "verify", *other).out)
    assert (report["ok"], report["backups"], len(report["findings"])) == (False, [], 1)


def test_bad_levels_and_samples_are_usage_errors(kept: Here) -> None:
    """In the words that were typed."""
    assert "--level must be one of" in kept("backup", "verify", "--level", "deep").err
    for sample in ("0", "2", "x"):
        assert kept("backup", "verify", "--sample", sample).code == Exit.USAGE
    assert kept("backup", "verify", "20260101T000000Z-00000000").code == Exit.NO


# --- rollback -------------------------------------------------------------------------------------


def test_a_restore_is_undone(kept: Here) -> None:
    """Dry at first, as a restore is."""
    kept("set", "agent:alice", "mood", "1")
    full = _create(kept)
    kept("set", "agent:alice", "mood", "2")
    back = _document(kept("--json", "backup", "restore", "--at", full, "--confirm"))["rollback"]
    dry = kept("backup", "rollback", back)
    assert (dry.code, dry.out) == (Exit.NO, "changed\tagent:alice\tmood\n")
    assert kept("get", "agent:alice", "mood").out == "1\n"
    done = kept("--json", "backup", "rollback", back, "--confirm")
    assert (done.code, _document(done)["confirmed"]) == (0, True)
    assert kept("get", "agent:alice", "mood").out == "2\n"
    assert kept("backup", "rollback", "20260101T000000Z-00000000").code == Exit.NO


# --- prune and gc ---------------------------------------------------------------------------------


def test_prune_says_why_and_waits_for_confirmation(kept: Here) -> None:
    """The plan has a row for each backup; what goes is gone afterwards."""
    kept("set", "agent:alice", "mood", "1")
    made = [_create(kept, "--tag", f"n={number}") for number in range(3)]
    dry = kept("backup", "prune", "--policy", "last=1")
    rows = [line.split("\t") for line in dry.out.splitlines()]
    assert dry.code == Exit.NO
    assert [row[0] for row in rows] == ["stays", "goes", "goes"]
    assert "nothing was removed" in dry.err
    plan = json.loads(kept("--json", "backup", "prune", "--policy", "last=1").out)
    assert (len(plan["goes"]), plan["confirmed"], plan["removed"]) == (2, False, None)
    assert len(_document(kept("--json", "backup", "list"))["backups"]) == 3
    done = kept("--json", "backup", "prune", "--policy", "last=1", "--confirm")
    assert (done.code, len(_document(done)["removed"]["backups"])) == (0, 2)
    (left,) = _document(kept("--json", "backup", "list"))["backups"]
    assert left["id"] in made
    again = kept("backup", "prune", "--policy", "last=1")
    assert again.code == 0


def test_one_backup_is_deleted_by_its_id(kept: Here) -> None:
    """When it is confirmed, and nothing needs it; it need not be one that a policy would remove."""
    kept("set", "agent:alice", "mood", "1")
    full, child = _create(kept, "--keep-log"), _create(kept, "--type", "incremental")
    refused = kept("backup", "delete", full, "--confirm")
    assert (refused.code, f"{child} goes on from it" in refused.err) == (Exit.CONFLICT, True)
    dry = kept("backup", "delete", child)
    assert (dry.code, "would go" in dry.out, "--confirm" in dry.err) == (Exit.NO, True, True)
    done = _document(kept("--json", "backup", "delete", child, "--confirm"))
    assert (done["id"], done["removed"], done["confirmed"]) == (child, True, True)
    assert kept("backup", "delete", child, "--confirm").code == Exit.NO
    assert kept("backup", "delete", "../x", "--confirm").code == Exit.NO
    assert kept("backup", "delete", full, "--confirm").code == 0
    assert _document(kept("--json", "backup", "list"))["backups"] == []


def test_a_policy_is_checked_before_anything_is_asked(kept: Here) -> None:
    """And its word is named."""
    wrong = kept("--url", "unix:///nowhere.sock", "backup", "prune", "--policy", "newest=3")
    assert wrong.code == Exit.USAGE
    assert "--policy" in wrong.err
    assert kept("backup", "prune").code == Exit.USAGE


def test_gc_finds_what_nobody_needs(kept: Here, folder: Path) -> None:
    """Only what is older than the grace; nothing goes without --confirm."""
    kept("set", "agent:alice", "mood", "1")
    full = _create(kept)
    (manifest,) = folder.glob(f"*/backups/{full}/manifest.json")
    manifest.unlink()
    young = kept("backup", "gc")
    assert young.code == 0
    assert "0 objects" in young.out
    assert len(_objects(folder)) == 2
    for file in _objects(folder):
        os.utime(file, (0, 0))
    dry = kept("--json", "backup", "gc", "--grace", "7d")
    document = json.loads(dry.out)
    assert (dry.code, document["confirmed"], document["removed"]) == (Exit.NO, False, 0)
    assert len(document["objects"]) == len(_objects(folder)) == 2
    done = _document(kept("--json", "backup", "gc", "--confirm"))
    assert (done["removed"], _objects(folder)) == (2, [])
    assert "got '0s'\n" in kept("backup", "gc", "--grace", "0s").err
    for grace in ("soon", "none", "0"):
        refused = kept("backup", "gc", "--grace", grace)
        assert (refused.code, "--grace must be" in refused.err) == (Exit.USAGE, True)


# --- the archive ----------------------------------------------------------------------------------


def test_once_ships_what_there_is(kept: Here, folder: Path) -> None:
    """And a moment between two backups comes back from it."""
    kept("set", "agent:alice", "mood", "1")
    _create(kept)
    good = kept("set", "agent:alice", "mood", "2").out.strip()
    kept("set", "agent:alice", "mood", "3")
    shipped = _document(kept("--json", "backup", "archive", "--once"))
    assert shipped["entries"] >= 2
    assert (shipped["gaps"], shipped["errors"], shipped["last_error"]) == (0, 0, None)
    assert list(folder.glob("*/archive/*/0/*"))
    assert _document(kept("--json", "backup", "archive", "--once"))["entries"] == 0
    assert kept("backup", "restore", "--at", good, "--confirm").code == 0
    assert kept("get", "agent:alice", "mood").out == "2\n"
    assert kept("backup", "archive", "--once", "--follow").code == Exit.USAGE


def test_what_is_archived(kept: Here) -> None:
    """Exit code 1 while nothing is; then a row for each stretch without a gap."""
    nothing = kept("backup", "archive")
    assert (nothing.code, nothing.out) == (Exit.NO, "")
    assert nothing.err == "there is no archive: llmspell-dist backup archive --follow\n"
    kept("set", "agent:alice", "mood", "0")
    kept("backup", "archive", "--once")
    last = kept("set", "agent:alice", "mood", "1").out.strip()
    kept("backup", "archive", "--once")
    shown = kept("backup", "archive")
    (row,) = [line.split("\t") for line in shown.out.splitlines()]
    assert (shown.code, row[1], row[-1]) == (0, "0", last)
    status = _document(kept("--json", "backup", "archive"))
    (timeline,) = status["timelines"]
    assert (status["pending"], timeline["id"], timeline["gaps"]) == (0, row[0], 0)
    assert timeline["shards"][0]["covered"][-1]["upto"] == last


def test_an_archive_that_has_ended_lets_the_log_go(kept: Here) -> None:
    """When it is confirmed: its hold is released; what is archived stays."""
    for value in ("0", "1"):
        kept("set", "agent:alice", "mood", value)
        kept("backup", "archive", "--once")
    (timeline,) = _document(kept("--json", "backup", "archive"))["timelines"]
    dry = kept("backup", "archive", "--forget")
    assert (dry.code, dry.err) == (Exit.NO, "nothing was changed: --confirm ends that\n")
    assert "the log is kept for the archive from " in dry.out
    assert "archive" in kept("stat").out
    done = _document(kept("--json", "backup", "archive", "--forget", "--confirm"))
    assert (list(done["held"]), done["confirmed"]) == (["0"], True)
    again = kept("backup", "archive", "--forget")
    assert (again.code, again.out) == (0, "no log is kept for an archive\n")
    (left,) = _document(kept("--json", "backup", "archive"))["timelines"]
    assert left["shards"] == timeline["shards"]
    assert kept("backup", "archive", "--forget", "--once").code == Exit.USAGE
    assert kept("backup", "archive", "--confirm").code == Exit.USAGE


@pytest.fixture
def started(
    kept: Here, process_environment: dict[str, str], url: str, namespace: str, folder: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a command that goes on until it is told to end."""
    kept("set", "agent:alice", "mood", "1")
    environment = process_environment | {
        "LLMSPELL_URL": url,
        "LLMSPELL_NAMESPACE": namespace,
        "LLMSPELL_BACKUP_URL": f"file://{folder}",
    }
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.needs("process")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_follow_ships_until_it_is_told_to_end(
    started: Callable[..., subprocess.Popen[str]],
    how: signal.Signals,
    url: str,
    namespace: str,
    folder: Path,
) -> None:
    """SIGTERM and Ctrl-C flush what is left, and it ends with 0."""
    following = started("archive", "--follow", "--json")
    with blocking.connect(url, namespace=namespace) as spell:
        while not list(folder.glob("*/archive/*/0/*")):
            assert following.poll() is None
            spell.state.increment("agent:alice", "turns")
        last = spell.state.set("agent:alice", "mood", "last")
        following.send_signal(how)
        out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
    assert json.loads(out)["positions"] == {"0": str(last)}


@pytest.mark.needs("process")
def test_follow_tells_the_log_of_a_service_that_it_began(
    started: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    """A line on the standard error, also where that is a pipe; at the end what was shipped."""
    following = started("archive", "--follow")
    assert following.stderr is not None
    assert following.stderr.readline() == f"archiving to file://{folder}, until SIGTERM\n"
    following.send_signal(signal.SIGTERM)
    out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
    assert out in {"0 segments, 0 entries\n", "1 segment, 1 entry\n"}


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cron", "never"), "--cron"),
        (("--cron", "0 3 * * *", "--full-every", "0"), "--full-every must be"),
        (("--cron", "0 3 * * *", "--full-every", "often"), "--full-every must be"),
        (("--cron", "0 3 * * *", "--between", "full"), "--between must be"),
        (("--cron", "0 3 * * *", "--policy", "newest=3"), "policy"),
        (("--cron", "0 3 * * *", "--name", ""), "--name must be"),
        ((), "--cron"),
    ],
)
def test_a_schedule_is_checked_at_once(kept: Here, words: tuple[str, ...], said: str) -> None:
    """In the words that were typed."""
    ended = kept("backup", "schedule", *words)
    assert (ended.code, ended.out) == (Exit.USAGE, "")
    assert said in ended.err


@pytest.mark.needs("process")
def test_a_schedule_is_served_until_it_is_told_to_end(
    kept: Here, started: Callable[..., subprocess.Popen[str]], url: str, namespace: str
) -> None:
    """SIGTERM ends it with 0; how far it has come is kept."""
    words = ("--cron", "0 3 * * *", "--full-every", "7d")
    unknown = kept("backup", "schedule", "--status", *words)
    assert (unknown.code, unknown.err) == (Exit.NO, "no process has run schedule main yet\n")
    fresh = _document(kept("--json", "backup", "schedule", "--status", *words))
    assert fresh["begun"] is False
    assert set(fresh) == {
        *("name", "schedule", "next", "runs", "missed", "attempts", "last_due", "last_ended"),
        *("last_backup", "last_type", "last_error", "begun"),
    }
    assert fresh["schedule"] == ("main: 0 3 * * * UTC, a full one every 7 days, else incremental")
    process = started("schedule", "--json", *words)
    with blocking.connect(url, namespace=namespace) as spell:
        while spell.state.get("custom:llmspell.backups", "schedule/main") is None:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    done = json.loads(out)
    assert (done["name"], done["runs"], done["last_error"]) == ("main", 0, None)
    assert done["next"].endswith("T03:00:00+00:00")
