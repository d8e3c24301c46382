"""The backup group: making, looking at, restoring and proving backups, on every server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fix_s3 import Place

from llmspell_dist import blocking
from llmspell_dist.backup import errors
from llmspell_dist.cli.backup_options import moment
from llmspell_dist.cli.exits import Exit, exit_of
from llmspell_dist.cli.hints import hint_of
from llmspell_dist.errors import InvalidArgumentError, StaleFencingTokenError
from llmspell_dist.security.errors import KeyProviderError, KeyProviderUnavailableError

pytestmark = pytest.mark.integration

Here = Callable[..., Any]
ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}\n")


@pytest.fixture
def kept(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line with a folder for encrypted backups."""
    monkeypatch.setenv("LLMSPELL_BACKUP_URL", f"file://{tmp_path}/backups")
    monkeypatch.setenv("LLMSPELL_BACKUP_KEYS", f"file://{tmp_path}/keys")
    assert here("-q", "backup", "keygen").code == 0
    return here


def _document(result: Any) -> Any:
    assert result.err == ""
    return json.loads(result.out)


def _set(here: Here, scope: str, **values: Any) -> None:
    for key, value in values.items():
        assert here("set", scope, key, json.dumps(value)).code == 0


def _create(here: Here, *words: str) -> str:
    made = here("backup", "create", *words)
    assert (made.code, made.err) == (0, "")
    assert ID.fullmatch(made.out)
    return str(made.out).strip()


def _cells(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


# --- making and looking ---------------------------------------------------------------------------


def test_a_backup_goes_where_the_options_say(
    here: Here, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder or S3; the credentials of S3 come from the environment and are never printed."""
    for name, text in place.environment.items():
        monkeypatch.setenv(name, text)
    _set(here, "agent:alice", mood="curious")
    where = ("--to", place.url, "--keys", f"file://{tmp_path}/keys")
    assert here("backup", "keygen", *where[2:]).out.startswith("v1 is in")
    full = _create(here, "--tag", "why=release 7", "--importance", "critical", *where)
    later = _create(here, "--type", "incremental", *where)
    listed = here("backup", "list", *where)
    rows = {cells[0]: cells for cells in _cells(listed.out)}
    assert rows.keys() == {full, later}
    assert (rows[full][1], rows[full][4], rows[full][7]) == ("full", "1", "why=release 7")
    assert (rows[later][1], rows[later][6]) == ("incremental", full)
    found = _document(here("--json", "backup", "info", full, *where))
    assert (found["encrypted"], found["importance"]) == (True, "critical")
    assert "SKMOTO" not in listed.out + json.dumps(found)


def test_the_document_of_a_backup(kept: Here) -> None:
    """Names that programs may rely on."""
    _set(kept, "agent:alice", mood="curious")
    made = _document(kept("--json", "backup", "create", "--include", "events", "--tag", "a=b"))
    assert set(made) == {
        *("id", "type", "created", "moment", "revision", "parent", "base", "timeline"),
        *(
            "encrypted",
            "compression",
            "filtered",
            "empty",
            "sections",
            "tags",
            "importance",
            "reason",
        ),
        *("server", "writer", "scopes", "records", "entries", "plain_bytes", "stored_bytes"),
        *("reused_bytes", "seconds", "inexact", "shards"),
    }
    assert (made["sections"], made["tags"], made["records"]) == (["events"], {"a": "b"}, 1)
    assert _document(kept("--json", "backup", "info")) == made
    listed = _document(kept("--json", "backup", "list"))
    assert listed["backups"] == [made]
    assert listed["target"].startswith("file://")
    assert _document(kept("--json", "backup", "list", "--tag", "a=c"))["backups"] == []
    assert _document(kept("--json", "backup", "info", "--inexact"))["inexact_keys"] == []


def test_selections(kept: Here) -> None:
    """Scopes, globs and classes; what is left out is no backup of all."""
    _set(kept, "agent:alice", mood="curious")
    _set(kept, "agent:bob", mood="tired")
    _set(kept, "global", turns=3)
    some = _create(kept, "--scope", "agent:*", "--scope", "user:u1")
    found = _document(kept("--json", "backup", "info", some))
    assert (found["filtered"], found["scopes"], found["records"]) == (True, 2, 2)
    everything = _create(kept)
    assert [[row[0], row[8]] for row in _cells(kept("backup", "list").out)] == [
        [some, "manual, some scopes"],
        [everything, "manual"],
    ]
    refused = kept("backup", "create", "--scope", "agent:*", "--type", "incremental")
    assert refused.code == Exit.USAGE
    assert "--type cannot select" in refused.err


def test_restore_takes_the_id_of_a_backup(kept: Here) -> None:
    """As the other commands do: it is --at ID; both at once are refused, as anything else is."""
    _set(kept, "agent:alice", mood="curious")
    made = _create(kept)
    _set(kept, "agent:alice", mood="tired")
    both = kept("backup", "restore", made, "--at", made)
    assert (both.code, "--at must not be given with ID" in both.err) == (Exit.USAGE, True)
    other = kept("backup", "restore", "agent:alice")
    assert "ID must be the id of a backup, or latest, got 'agent:alice'" in other.err
    assert kept("backup", "restore", made, "--confirm").code == 0
    assert kept("get", "agent:alice", "mood").out == '"curious"\n'


def test_a_scope_that_is_none_is_told_once(kept: Here) -> None:
    """With the rule that it breaks."""
    refused = kept("backup", "create", "--scope", "agents:x").err
    assert refused.endswith("workflow:<id>/step:<name>, got 'agents:x'\n")
    assert refused.count("agents:x") == 1


def test_keygen_says_what_is_missing(
    kept: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than make a key that nothing here can use."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    refused = kept("backup", "keygen")
    assert refused.code == Exit.USAGE
    assert "needs the package cryptography: pip install 'llmspell-dist[backup]'" in refused.err
    assert [one.name for one in (tmp_path / "keys").iterdir()] == ["v1.key"]


def test_a_selection_of_nothing_is_said(kept: Here) -> None:
    """The backup is made, and empty: a scope may have been typed wrong."""
    _set(kept, "agent:alice", mood="curious")
    made = kept("backup", "create", "--scope", "agent:nothere")
    assert (made.code, made.err) == (0, "the backup is empty: nothing is there of agent:nothere\n")
    assert _document(kept("--json", "backup", "create", "--scope", "agent:no"))["empty"] is True
    assert _document(kept("--json", "backup", "create", "--scope", "agent:*"))["empty"] is False


@pytest.mark.parametrize(
    "words",
    [("list",), ("gc",), ("prune", "--policy", "last=1"), ("rewrap",)],
    ids=lambda words: words[0],
)
def test_a_folder_that_is_not_there_is_no_empty_place(
    kept: Here, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """It is a typing error, most likely; a place without backups of the namespace is said to be."""
    refused = kept("backup", *words, "--to", f"file://{tmp_path}/not-there")
    assert (refused.code, refused.out) == (Exit.USAGE, "")
    assert f"--to must be where backups are: there is no file://{tmp_path}/not-there" in refused.err
    assert not (tmp_path / "not-there").exists()
    (tmp_path / "other").mkdir()
    empty = kept("backup", *words, "--to", f"file://{tmp_path}/other")
    assert empty.code == 0
    assert empty.err.startswith("nothing of namespace ")


def test_what_a_restore_empties_is_told(kept: Here) -> None:
    """Beside the scopes that it put back."""
    _set(kept, "agent:alice", mood="curious")
    made = _create(kept)
    _set(kept, "agent:bob", mood="tired")
    done = kept("backup", "restore", "--at", made, "--scope", "agent:bob", "--confirm")
    fields = dict(_cells(done.out))
    assert (fields["scopes"], fields["records"]) == ("0 put back, 1 emptied", "0 put back")
    assert fields["emptied"] == "agent:bob"


def test_sizes_are_said_apart(kept: Here) -> None:
    """What is stored of little is more than it: there is no `445 B of 313 B`."""
    _set(kept, "agent:alice", mood="curious")
    _create(kept)
    fields = dict(_cells(kept("backup", "info").out))
    assert all(" of " not in fields[name] for name in ("stored", "uncompressed"))


@pytest.mark.parametrize(
    "words",
    [("create",), ("create", "--type", "incremental"), ("archive", "--once")],
    ids=" ".join,
)
def test_forgotten_keys_make_no_plaintext(kept: Here, words: tuple[str, ...]) -> None:
    """Where backups are encrypted it has to be asked for; the list tells which are."""
    _set(kept, "agent:alice", mood="curious")
    _create(kept, "--keep-log")
    refused = kept("backup", *words, "--keys", "")
    assert refused.code == Exit.DATA
    assert "--plaintext stores unencrypted" in refused.err
    assert "--keys or LLMSPELL_BACKUP_KEYS" in refused.err
    _create(kept, "--keys", "", "--plaintext")
    assert [row[9] for row in _cells(kept("backup", "list").out)] == ["yes", "no"]


def test_a_schedule_without_the_keys_is_refused(kept: Here) -> None:
    """At once, not when the first backup is due."""
    _create(kept)
    refused = kept("backup", "schedule", "--cron", "0 0 1 1 *", "--once", "--keys", "")
    assert (refused.code, "--plaintext" in refused.err) == (Exit.DATA, True)


def test_only_a_way_back_undoes_a_restore(kept: Here) -> None:
    """A backup that was made otherwise is refused, with and without --confirm."""
    _set(kept, "agent:alice", mood="curious")
    made = _create(kept)
    _set(kept, "agent:alice", mood="tired")
    for more in ((), ("--confirm",)):
        refused = kept("backup", "rollback", made, *more)
        assert refused.code == Exit.CONFLICT
        assert f"{made} is no way back of a restore: it was made for 'manual'" in refused.err
        assert "--force" not in refused.err
    assert kept("get", "agent:alice", "mood").out == '"tired"\n'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "--type", "half"), "--type must be one of full, incremental, differential"),
        (("create", "--tag", "x"), "--tag must look like NAME=VALUE"),
        (("create", "--importance", "vital"), "--importance must be one of"),
        (("create", "--include", "all"), "--include must be one of"),
        (("create", "--scope", "nobody:x"), "--scope must be a scope"),
        (("create", "--class", "huge"), "--class must be one of"),
        (("create", "--compression", "zip"), "--compression"),
        (("create", "--to", "ftp://x"), "--to must begin with s3:// or file://"),
        (("create", "--to", "s3://u:hush@x/y"), "--to must not hold credentials"),
        (("create", "--keys", "vault:x"), "--keys must be file:///folder"),
        (("create", "--to", ""), "--to or LLMSPELL_BACKUP_URL must say"),
        (("restore", "--at", "yesterday"), "--at must be a time"),
        (("restore", "--at", "2026-11-26", "--key", "k"), "--key needs exactly one --scope"),
        (("restore", "--into", "global", "--scope", "a:*", "--scope", "b:*"), "--into needs"),
        (("restore", "--confirm", "--dry-run"), "--dry-run must not be given with --confirm"),
        (("keygen", "--keys", "env:KEYS"), "--keys must be file:///folder"),
        (("import", "/nowhere.tar"), "FILE must be a file"),
    ],
)
def test_bad_input_is_a_usage_error(kept: Here, words: tuple[str, ...], said: str) -> None:
    """In the words that were typed, and without what may be a secret."""
    ended = kept("backup", *words)
    assert ended.code == Exit.USAGE
    assert said in ended.err
    assert "hush" not in ended.err
    assert ended.out == ""


def test_a_variable_is_named_when_it_is_wrong(kept: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever set it reads its name."""
    monkeypatch.setenv("LLMSPELL_BACKUP_URL", "ftp://x")
    assert "LLMSPELL_BACKUP_URL must begin with" in kept("backup", "list").err


def test_a_time_of_the_day_is_one_of_today() -> None:
    """By the clock of this machine, as people say it."""
    for text, hour, minute in (("14:05", 14, 5), ("9:30", 9, 30), ("00:00", 0, 0)):
        before = datetime.now().astimezone().date()
        found = moment(text)
        assert isinstance(found, datetime)
        assert found.tzinfo is not None
        after = datetime.now().astimezone().date()
        assert found.date() in {before, after}
        assert (found.hour, found.minute) == (hour, minute)
    for text in ("24:00", "14:5", "14:60"):
        with pytest.raises(InvalidArgumentError, match="must be a time"):
            moment(text)


# --- getting back ---------------------------------------------------------------------------------


def test_restore_is_dry_until_it_is_confirmed(kept: Here) -> None:
    """It names what would change, changes nothing, and says so by its exit code."""
    _set(kept, "agent:alice", mood="curious", gone=1)
    full = _create(kept)
    _set(kept, "agent:alice", mood="busy", later=True)
    kept("del", "agent:alice", "gone")
    for words, code in ((("diff",), 1), (("restore",), 1), (("restore", "--dry-run"), 0)):
        said = kept("backup", *words, "--at", full)
        assert said.code == code
        assert sorted(_cells(said.out)) == [
            ["added", "agent:alice", "gone"],
            ["changed", "agent:alice", "mood"],
            ["removed", "agent:alice", "later"],
        ]
        assert "3 keys: 1 would come back, 1 would change, 1 would go" in said.err
    assert kept("get", "agent:alice", "mood").out == '"busy"\n'
    dry = kept("--json", "backup", "restore", "--at", full)
    document = json.loads(dry.out)
    assert (dry.code, document["confirmed"], document["changed"]) == (1, False, 1)

    done = kept("--json", "backup", "restore", "--at", full, "--confirm")
    report = _document(done)
    assert set(report) == {
        *("id", "moment", "revision", "sources", "scopes", "records", "emptied", "inexact"),
        *("rollback", "seconds", "bytes", "confirmed"),
    }
    assert (done.code, report["scopes"], report["confirmed"]) == (0, 1, True)
    assert sorted(kept("ls", "agent:alice").out.split()) == ["gone", "mood"]
    assert kept("get", "agent:alice", "mood").out == '"curious"\n'
    same = kept("backup", "diff", "--at", full)
    assert (same.code, same.out) == (0, "")
    assert "nothing would change" in same.err
    now = kept("backup", "restore")
    assert (now.code, now.out) == (0, "")
    assert now.err.endswith("nothing would change; latest is now\n")


def test_a_moment_by_time_and_revision(kept: Here) -> None:
    """From the backup and the log; what is not covered is exit code 5, with a hint."""
    before = kept("set", "agent:alice", "n", "0").out.strip()
    _create(kept)
    first = kept("set", "agent:alice", "n", "1").out.strip()
    _set(kept, "agent:alice", n=2)
    assert kept("backup", "restore", "--at", first, "--confirm").code == 0
    assert kept("get", "agent:alice", "n").out == "1\n"
    old = kept("backup", "restore", "--at", "2020-01-01", "--confirm")
    assert (old.code, old.out) == (Exit.DATA, "")
    assert "BACKUP_POINT_NOT_COVERED" in old.err
    assert "(backup list" in old.err
    assert before < first


def test_what_selects_nothing_and_what_is_to_come_is_told(kept: Here) -> None:
    """A mistyped scope is no success, and a mistyped year is not now."""
    kept("set", "agent:alice", "mood", "1")
    _create(kept)
    nobody = kept("backup", "restore", "--scope", "agent:nobody", "--confirm")
    assert nobody.code == Exit.NO
    assert "nothing was selected: agent:nobody" in nobody.err
    for words in (("restore", "--confirm"), ("diff",), ("restore",)):
        later = kept("backup", *words, "--at", "2099-01-01T00:00:00Z")
        assert (later.code, later.out) == (Exit.DATA, "")
        assert "it is in the future; the server has 20" in later.err
    assert kept("get", "agent:alice", "mood").out == "1\n"


def test_one_key_one_scope_another_scope_another_namespace(kept: Here, namespace: str) -> None:
    """Each leaves everything else alone."""
    _set(kept, "agent:alice", mood="curious", n=1)
    _set(kept, "agent:bob", n=1)
    full = _create(kept)
    _set(kept, "agent:alice", mood="busy", n=2)
    _set(kept, "agent:bob", n=2)
    alice = ("--at", full, "--scope", "agent:alice")
    only = kept("backup", "restore", *alice, "--key", "n")
    assert (only.code, _cells(only.out)) == (1, [["changed", "agent:alice", "n"]])
    assert kept("backup", "restore", *alice, "--key", "n", "--confirm").code == 0
    assert kept("get", "agent:alice", "n").out == "1\n"
    assert kept("get", "agent:alice", "mood").out == '"busy"\n'

    into = kept("backup", "restore", *alice, "--into", "agent:carol")
    assert (into.code, into.out) == (1, "")
    assert "agent:alice as of 20" in into.err
    assert f"from backup {full}" in into.err
    for elsewhere in (("--into", "agent:carol"), ("--namespace-into", f"{namespace}-copy")):
        early = ("--scope", "agent:alice", "--at", "2020-01-01", "--dry-run", *elsewhere)
        refused = kept("backup", "restore", *early)
        assert (refused.code, "BACKUP_POINT_NOT_COVERED" in refused.err) == (Exit.DATA, True)
    assert kept("backup", "restore", *alice, "--into", "agent:carol", "--confirm").code == 0
    assert kept("get", "agent:carol", "mood").out == '"curious"\n'
    assert kept("get", "agent:bob", "n").out == "2\n"

    there = ("--namespace-into", f"{namespace}-copy")
    assert kept("backup", "restore", "--at", full, *there).code == 1
    report = _document(kept("--json", "backup", "restore", "--at", full, *there, "--confirm"))
    assert report["scopes"] == 2
    assert kept("--namespace", there[1], "get", "agent:bob", "n").out == "1\n"
    told = kept("backup", "restore", "--at", full, *there, "--confirm").out
    assert f"llmspell-dist --namespace {there[1]} backup rollback 2" in told
    back = ("--namespace", there[1], "backup", "rollback", report["rollback"], "--confirm")
    assert kept(*back).code == 0
    assert kept("--namespace", there[1], "get", "agent:bob", "n").code == Exit.NO
    assert kept("get", "agent:bob", "n").out == "2\n"


def test_a_lease_stands_in_the_way(kept: Here, url: str, namespace: str) -> None:
    """Exit code 3 and what to do; --force breaks it."""
    _set(kept, "agent:alice", n=1)
    full = _create(kept)
    _set(kept, "agent:alice", n=2)
    with blocking.connect(url, namespace=namespace) as spell:
        lease = spell.leases.acquire("agent:alice", on_lost="event")
        refused = kept("backup", "restore", "--at", full, "--confirm")
        assert (refused.code, refused.out) == (Exit.CONFLICT, "")
        assert "RESTORE_REFUSED" in refused.err
        assert "--force breaks leases" in refused.err
        assert kept("backup", "restore", "--at", full, "--confirm", "--force").code == 0
        with pytest.raises(StaleFencingTokenError):
            lease.state.set("agent:alice", "n", 3)
    assert kept("get", "agent:alice", "n").out == "1\n"


# --- proof ----------------------------------------------------------------------------------------


def test_a_drill_proves_and_is_remembered(kept: Here) -> None:
    """Nothing is proved at first, which is exit code 1."""
    nothing = kept("backup", "drills")
    said = "no backup was ever restored to try it: llmspell-dist backup drill\n"
    assert (nothing.code, nothing.out, nothing.err) == (1, "", said)
    _set(kept, "agent:alice", mood="curious")
    _create(kept)
    _set(kept, "agent:alice", mood="busy")
    done = kept("--json", "backup", "drill", "--at", "latest")
    report = _document(done)
    assert (done.code, report["ok"], report["mismatches"], report["records"]) == (0, True, 0, 1)
    listed = kept("--json", "backup", "drills")
    assert listed.code == 0
    assert [one["id"] for one in _document(listed)["drills"]] == [report["id"]]
    assert _document(listed)["last_proof"] == report["at"]
    (row,) = _cells(kept("backup", "drills").out)
    assert (row[0], *row[-2:]) == (report["id"], "yes", report["backup"])


# --- files and keys -------------------------------------------------------------------------------


def test_a_backup_travels_as_a_file(kept: Here, tmp_path: Path) -> None:
    """Into another place; it is never written over a file."""
    _set(kept, "agent:alice", mood="curious")
    full = _create(kept)
    file, other = str(tmp_path / "one.tar"), f"file://{tmp_path}/other"
    told = _document(kept("--json", "backup", "export", "latest", file))
    assert (told["id"], told["bytes"]) == (full, (tmp_path / "one.tar").stat().st_size)
    assert kept("backup", "export", full, file).code == Exit.USAGE
    assert kept("backup", "import", file, "--to", other).out == f"{full}\n"
    foreign = kept("--namespace", "elsewhere", "backup", "import", file)
    assert foreign.code == Exit.USAGE
    assert "FILE must be an export of namespace elsewhere; it is of " in foreign.err
    kept("del", "agent:alice", "mood")
    assert kept("backup", "restore", "--at", full, "--to", other, "--confirm").code == 0
    assert kept("get", "agent:alice", "mood").out == '"curious"\n'


def test_keys_are_rotated(kept: Here, tmp_path: Path) -> None:
    """After rewrapping the old version may go; without any version nothing can be read."""
    _set(kept, "agent:alice", mood="curious")
    full = _create(kept)
    assert _document(kept("--json", "backup", "keygen"))["version"] == "v2"
    assert len(_document(kept("--json", "backup", "rewrap"))["rewrapped"]) == 1
    (tmp_path / "keys" / "v1.key").unlink()
    assert kept("backup", "restore", "--at", full, "--confirm").code == 0
    (tmp_path / "keys" / "v2.key").unlink()
    lost = kept("--json", "backup", "restore", "--at", full, "--confirm")
    error = json.loads(lost.err)["error"]
    assert (lost.code, error["code"]) == (Exit.DATA, "BACKUP_KEY")
    assert "none can be made again" in error["hint"]
    assert "keygen" not in error["hint"]


def test_a_first_key_is_made_by_keygen(kept: Here, tmp_path: Path) -> None:
    """The hint says so only where there is none yet."""
    empty = tmp_path / "none"
    empty.mkdir()
    failed = kept("backup", "create", "--keys", f"file://{empty}")
    assert (failed.code, "backup keygen makes the first" in failed.err) == (Exit.DATA, True)


def test_keys_move_to_another_provider(
    kept: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is named once more, and may go then."""
    kept("set", "agent:alice", "mood", "1")
    full = _create(kept)
    monkeypatch.setenv("LLMSPELL_BACKUP_KEYS", "env:WRAPPING")
    monkeypatch.setenv("WRAPPING", f"w1:{'ab' * 32}")
    old = f"file://{tmp_path}/keys"
    done = kept("--json", "backup", "rewrap", "--older-keys", old)
    assert len(_document(done)["rewrapped"]) == 1
    (tmp_path / "keys" / "v1.key").unlink()
    restored = kept("backup", "restore", "--at", full, "--confirm")
    assert restored.code == 0
    assert "ab" * 32 not in restored.out + restored.err + done.out


# --- errors ---------------------------------------------------------------------------------------


def test_every_error_of_backups_has_an_exit_code() -> None:
    """And none of them is taken for a bug."""
    classes = [getattr(errors, name) for name in errors.__all__]
    classes += [KeyProviderError, KeyProviderUnavailableError]
    codes = {cls: exit_of(cls.__new__(cls)) for cls in classes}
    assert Exit.INTERNAL not in codes.values()
    assert codes[errors.TargetPermissionError] is Exit.UNAVAILABLE
    assert codes[errors.BackupKeyUnavailableError] is Exit.UNAVAILABLE
    assert codes[KeyProviderUnavailableError] is Exit.UNAVAILABLE
    assert codes[KeyProviderError] is Exit.DATA
    assert codes[errors.BackupNotFoundError] is Exit.NO
    assert codes[errors.RestoreRefusedError] is Exit.CONFLICT
    assert codes[errors.BackupDamagedError] is Exit.DATA


def test_who_cannot_have_the_key_just_now_is_not_told_that_it_is_lost() -> None:
    """Nor to make a first one, if no version is known."""
    away = KeyProviderUnavailableError("file", "", "cannot be had: [Errno 5]")
    for error in (away, errors.BackupKeyUnavailableError("file", "00ff", "unwrap", away.reason)):
        assert hint_of(error) == "try again later"


def test_what_is_not_there_is_exit_code_one(kept: Here) -> None:
    """With a hint that helps."""
    assert "there is no backup (" in kept("backup", "info").err
    assert (
        "go on from an earlier backup: there"
        in kept("backup", "create", "--type", "incremental").err
    )
    for words in (("info",), ("info", "20260101T000000Z-00000000")):
        missing = kept("backup", *words)
        assert (missing.code, missing.out) == (Exit.NO, "")
        assert "BACKUP_NOT_FOUND" in missing.err
        assert str(hint_of(errors.BackupNotFoundError("x", "y"))) in missing.err


def test_the_group_alone_shows_its_help(here: Here) -> None:
    """Every command is in it."""
    shown = here("backup")
    assert shown.code == Exit.USAGE
    for name in (
        *("create", "list", "info", "verify", "drill", "drills", "diff", "restore", "rollback"),
        *("prune", "gc", "archive", "schedule", "export", "import", "keygen", "rewrap"),
    ):
        assert f" {name} " in shown.out
