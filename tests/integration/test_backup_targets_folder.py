"""A folder keeps objects whole, to itself, and free of what killed writers left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from fix_faults import environment

from llmspell_dist.backup.errors import (
    ObjectMissingError,
    TargetError,
    TargetPermissionError,
)
from llmspell_dist.backup.targets import folder as module
from llmspell_dist.backup.targets import open_target

pytestmark = [pytest.mark.integration, pytest.mark.backup]

_WRITER = """
import sys
from llmspell_dist.backup.targets import open_target

class Endless:
    def read(self, size):
        print("reading", flush=True)
        return b"x" * size

open_target(sys.argv[1]).put("a/long", Endless())
"""


@pytest.fixture
def target(tmp_path):
    """A folder that is not there yet."""
    return open_target(tmp_path / "backups")


def _kill_a_writer(folder):
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)],
        stdout=subprocess.PIPE,
        env=environment(),
    ) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline() == b"reading\n"
        writer.send_signal(signal.SIGKILL)


def test_a_killed_writer_leaves_nothing_that_is_listed(target):
    """What a killed writer left is never listed, and the next run removes it by its age."""
    _kill_a_writer(target.folder)
    assert not list(target.list(""))
    assert target.head("a/long") is None
    assert len(list(target.unfinished())) == 1

    open_target(target.folder).put("young", b"x")
    assert len(list(target.unfinished())) == 1, "it may be of a writer that goes on"
    open_target(target.folder, stale_after=timedelta(0)).put("old", b"x")
    assert not list(target.unfinished())
    assert [info.name for info in target.list("")] == ["old", "young"]


def test_unfinished_files_are_removed_on_demand(target):
    """Somebody who knows better may remove them at once."""
    _kill_a_writer(target.folder)
    assert target.abort_unfinished(timedelta(hours=1)) == 0
    assert target.abort_unfinished(timedelta(0)) == 1
    assert target.abort_unfinished(timedelta(0)) == 0


def test_files_are_their_owners_alone(target):
    """Backups may hold secrets: nobody else reads them, whatever the umask."""
    target.put("a/b", b"x")
    assert (target.folder / "a" / "b").stat().st_mode & 0o777 == 0o600
    assert (target.folder / "a").stat().st_mode & 0o777 == 0o700


def test_links_do_not_lead_out(target, tmp_path):
    """Links below the folder are not followed, to read, to write or to list."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"not ours")
    target.put("a/b", b"x")
    (target.folder / "link").symlink_to(outside)
    (target.folder / "a" / "file").symlink_to(outside / "file")

    for name in ("link/file", "a/file"):
        assert target.head(name) is None
        for read in (target.get, target.open):
            with pytest.raises(ObjectMissingError):
                read(name)
    for name in ("link/file", "link/new"):
        with pytest.raises(TargetError):
            target.put(name, b"overwritten")
    target.put("a/file", b"ours")
    target.delete(["link/file"])
    assert [info.name for info in target.list("")] == ["a/b", "a/file"]
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"not ours"


def test_the_folder_itself_may_be_a_link(tmp_path):
    """Where the folder lies is its user's choice."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    open_target(tmp_path / "link").put("a", b"x")
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


def test_foreign_files_are_not_listed(target):
    """What is no object by name or kind is passed over: a pipe is not waited for."""
    target.put("a", b"x")
    (target.folder / "lost+found ~").write_bytes(b"")
    (target.folder / "with space").mkdir()
    os.mkfifo(target.folder / "pipe")
    assert [info.name for info in target.list("")] == ["a"]
    assert target.head("pipe") is None
    with pytest.raises(ObjectMissingError):
        target.get("pipe")


def test_emptied_folders_go(target):
    """Removing the last object of a folder removes the folder."""
    target.put("a/b/c", b"x")
    target.put("a/d", b"x")
    target.delete(["a/b/c"])
    assert not (target.folder / "a" / "b").exists()
    target.delete(["a/d"])
    assert not (target.folder / "a").exists()


def test_a_folder_in_memory_bounds_is_listed_in_order(target, monkeypatch):
    """Folders of more names than are held at once come in order all the same."""
    monkeypatch.setattr(module, "_BATCH", 3)
    names = sorted([f"f{number}" for number in range(7)] + ["d/1", "d/2", "d/3", "d-", "d0", "d/4"])
    for name in names:
        target.put(name, b"x")
    assert [info.name for info in target.list("")] == names
    assert [info.name for info in target.list("", after="d/2")] == names[names.index("d/2") + 1 :]


def test_a_name_is_a_file_or_a_folder(target):
    """What S3 allows and a folder cannot is an error that names the object."""
    target.put("a", b"x")
    with pytest.raises(TargetError) as caught:
        target.put("a/b", b"x")
    assert caught.value.name == "a/b"
    assert not list(target.unfinished())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, TargetError),
        (errno.EDQUOT, TargetError),
        (errno.EIO, TargetError),
        (errno.EROFS, TargetPermissionError),
        (errno.EACCES, TargetPermissionError),
    ],
)
def test_a_failing_disk_is_final_and_leaves_nothing(target, monkeypatch, number, kind):
    """A full or failing disk is an error that names the object, and nothing of it is there."""
    target.put("before", b"x")
    real = os.fsync

    def fsync(file):
        if os.fstat(file).st_size == 12345:  # the file, not its folder
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(kind) as caught:
        target.put("a/b", b"x" * 12345)
    assert caught.value.name == "a/b"
    assert os.strerror(number) in str(caught.value)
    assert [info.name for info in target.list("")] == ["before"]
    assert not list(target.unfinished())


def test_file_and_folder_are_synced_before_put_returns(target, monkeypatch):
    """The file is on the disk before it has its name, its folder after."""
    target.put("a/before", b"x")
    done = []
    for call in ("fsync", "rename"):
        real = getattr(os, call)

        def note(*args, call=call, real=real, **more):
            kind = "" if call != "fsync" else "-folder" if os.path.isdir(args[0]) else "-file"  # noqa: PTH112
            done.append(call + kind)
            return real(*args, **more)

        monkeypatch.setattr(os, call, note)
    target.put("a/b", b"x")
    assert done == ["fsync-file", "rename", "fsync-folder"]
