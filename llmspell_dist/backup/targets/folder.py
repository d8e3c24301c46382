"""A folder as a target: what is there is whole and on the disk, whenever a writer is killed."""

from __future__ import annotations

import errno
import heapq
import itertools
import operator
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn

from llmspell_dist.backup.errors import ObjectMissingError, TargetError, TargetPermissionError
from llmspell_dist.backup.targets.base import ObjectInfo
from llmspell_dist.backup.targets.naming import check_name, check_prefix, is_name
from llmspell_dist.backup.targets.unfinished import Unfinished

__all__ = ["FolderTarget"]

_TEMPORARY: Final = "~tmp"
"""Beside the objects, so that renaming stays in one file system; no name has a ``~``."""
_BATCH: Final = 8192
"""So many names of one folder are in memory at once."""
_BLOCK: Final = 1 << 20
_PATIENCE: Final = 100
"""So often a folder may be taken away between making it and writing to it."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR})


class _Entry(NamedTuple):
    key: str
    """The name, with ``/`` behind it if it is a folder: what S3 would sort by."""
    is_folder: bool


class FolderTarget:
    """Keeps objects as files below one folder.

    A file is written beside, synced and renamed (linked, for `only_new`), and its folder synced: an
    object is whole and durable when `put` returns, and not there before. Links below the folder are
    not followed. Files are readable by their owner alone. A name cannot be a file and a folder at
    once (``a`` and ``a/b``), unlike on S3.

    `stale_after`: temporary files that have not grown for so long are a killed writer's, and are
    removed by the first `put` of another.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, stale_after: timedelta = timedelta(hours=1)
    ) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # not resolve(): no I/O here
        self.stale_after = stale_after
        self._cleaned = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FolderTarget({str(self.folder)!r})"

    @property
    def label(self) -> str:
        """The folder as a URL."""
        return f"file://{self.folder}"

    # --- writing

    def put(self, name: str, data: bytes | BinaryIO, *, only_new: bool = False) -> bool:
        """Store an object; see `Target.put`. The disk being full is final."""
        check_name(name)
        self._clean_once()
        with self._says("put", name):
            if only_new and self.head(name) is not None:
                return False
            with self._opened((_TEMPORARY,), create=True) as beside:
                temporary = f"{secrets.token_hex(12)}.{os.getpid()}"
                try:
                    _write(beside, temporary, data)
                    return self._publish(temporary, beside, name, only_new=only_new)
                finally:
                    with suppress(OSError):  # renamed, most often
                        os.unlink(temporary, dir_fd=beside)

    def _publish(self, temporary: str, beside: int, name: str, *, only_new: bool) -> bool:
        parents, last = _split(name)
        for _ in range(_PATIENCE):
            with self._opened(parents, create=True) as folder:
                try:
                    if not only_new:
                        os.rename(temporary, last, src_dir_fd=beside, dst_dir_fd=folder)
                    elif not _link(temporary, beside, last, folder):
                        return False
                except FileNotFoundError:  # a delete emptied the folder and took it away
                    continue
                os.fsync(folder)
                return True
        raise FileNotFoundError(errno.ENOENT, "its folder is removed again and again")

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects, and the folders that this empties."""
        places = sorted(_split(check_name(name)) for name in names)
        for parents, group in itertools.groupby(places, key=operator.itemgetter(0)):
            with self._says("delete", "/".join(parents)):
                self._delete_in(parents, [last for _, last in group])

    def _delete_in(self, parents: tuple[str, ...], names: Sequence[str]) -> None:
        with suppress(FileNotFoundError, NotADirectoryError), self._opened(parents) as folder:
            for last in names:
                # A folder of that name is no object.
                gone = suppress(FileNotFoundError, IsADirectoryError)
                with self._says("delete", "/".join((*parents, last))), gone:
                    os.unlink(last, dir_fd=folder)
            os.fsync(folder)
        self._remove_empty(parents)

    def _remove_empty(self, parents: tuple[str, ...]) -> None:
        # A put that is about to write there makes the folder again.
        while parents:
            parents, last = parents[:-1], parents[-1]
            try:
                with self._opened(parents) as folder:
                    os.rmdir(last, dir_fd=folder)
            except OSError:
                return

    # --- reading

    def get(self, name: str) -> bytes:
        """Return an object; `ObjectMissingError` if it is not there."""
        with self.open(name) as file, self._says("get", name):
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """Return an object as a file; it stays readable when the object is removed meanwhile."""
        parents, last = _split(check_name(name))
        with self._says("get", name):
            with self._opened(parents) as folder:
                # Not blocking: opening a pipe would wait for its writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                found = os.open(last, flags, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(found).st_mode):
                os.close(found)
                raise FileNotFoundError(errno.ENOENT, "not a regular file")
            return os.fdopen(found, "rb", buffering=_BLOCK)

    def head(self, name: str) -> ObjectInfo | None:
        """Return size and time of an object; None if it is not there."""
        parents, last = _split(check_name(name))
        with self._says("head", name):
            try:
                with self._opened(parents) as folder:
                    return _info(name, last, folder)
            except OSError as error:
                if error.errno in _MISSING:
                    return None
                raise

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects whose names begin with `prefix`, by name, those behind `after`."""
        check_prefix(prefix)
        return self._list((), prefix, after or "")

    def _list(self, parents: tuple[str, ...], prefix: str, after: str) -> Iterator[ObjectInfo]:
        path = "".join(f"{part}/" for part in parents)
        last = ""
        while True:
            with self._says("list", path):
                batch = self._batch(parents, path, prefix, after, last)
            for entry in batch:
                if entry.is_folder:
                    yield from self._list((*parents, entry.key[:-1]), prefix, after)
                elif (info := self.head(path + entry.key)) is not None:
                    yield info
            if len(batch) < _BATCH:
                return
            last = batch[-1].key

    def _batch(
        self, parents: tuple[str, ...], path: str, prefix: str, after: str, last: str
    ) -> Sequence[_Entry]:
        """Return the next entries of one folder, in order, that may lead to what is wanted."""
        try:
            with self._opened(parents) as folder, os.scandir(folder) as found:
                entries = (
                    _Entry(f"{entry.name}/" if is_folder else entry.name, is_folder)
                    for entry in found
                    if is_name(entry.name)
                    and ((is_folder := entry.is_dir(follow_symlinks=False)) or _is_file(entry))
                )
                return heapq.nsmallest(
                    _BATCH,
                    (
                        e
                        for e in entries
                        if e.key > last and _wanted(path + e.key, e, prefix, after)
                    ),
                )
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def close(self) -> None:
        """Do nothing: no file stays open between calls."""

    # --- what killed writers left

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the temporary files, of killed writers and of those that go on."""
        with self._says("list", ""):
            try:
                with self._opened((_TEMPORARY,)) as beside:
                    names = [entry.name for entry in _entries(beside)]
            except FileNotFoundError:
                return
        for name in sorted(names):
            with suppress(FileNotFoundError), self._opened((_TEMPORARY,)) as beside:
                changed = os.stat(name, dir_fd=beside, follow_symlinks=False).st_mtime
                when = datetime.fromtimestamp(changed, UTC)
                yield Unfinished(f"{_TEMPORARY}/{name}", when, name)

    def abort_unfinished(self, older_than: timedelta) -> int:
        """Remove temporary files that have not grown for so long; return how many."""
        limit = time.time() - older_than.total_seconds()
        removed = 0
        for left in self.unfinished():
            if left.started.timestamp() <= limit:
                with self._says("delete", left.name), suppress(FileNotFoundError):
                    with self._opened((_TEMPORARY,)) as beside:
                        os.unlink(left.token, dir_fd=beside)
                    removed += 1
        return removed

    def _clean_once(self) -> None:
        with self._lock:
            if self._cleaned:
                return
            self._cleaned = True
        self.abort_unfinished(self.stale_after)

    # --- the folder

    @contextmanager
    def _opened(self, parents: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        """Open a folder below the target's, part by part, so that no link leads out of it."""
        if create:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The folder itself may be a link: that was the user's choice.
        here = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parents:
                following = _enter(here, part, create=create)
                os.close(here)
                here = following
            yield here
        finally:
            os.close(here)

    @contextmanager
    def _says(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._raise(error, doing, name)

    def _raise(self, error: OSError, doing: str, name: str) -> NoReturn:
        said = error.strerror or type(error).__name__
        if error.errno in _DENIED:
            raise TargetPermissionError(self.label, name, doing, said) from None
        if doing == "get" and error.errno in _MISSING:
            raise ObjectMissingError(self.label, name, doing, said) from None
        raise TargetError(self.label, name, doing, said) from None


def _split(name: str) -> tuple[tuple[str, ...], str]:
    *parents, last = name.split("/")
    return tuple(parents), last


def _enter(folder: int, part: str, *, create: bool) -> int:
    for _ in range(_PATIENCE):
        try:
            return os.open(part, _DIRECTORY, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
        with suppress(FileExistsError):  # another writer was faster
            os.mkdir(part, 0o700, dir_fd=folder)
            os.fsync(folder)
        # Then open it; it may be gone again, if a delete emptied it.
    raise FileNotFoundError(errno.ENOENT, f"the folder {part} is removed again and again")


def _write(folder: int, name: str, data: bytes | BinaryIO) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb", buffering=0) as file:
        if isinstance(data, (bytes, bytearray, memoryview)):
            _write_all(file.fileno(), data)
        else:
            while block := data.read(_BLOCK):
                _write_all(file.fileno(), block)
        os.fsync(file.fileno())


def _write_all(file: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _link(temporary: str, beside: int, name: str, folder: int) -> bool:
    """Give the file its name unless that is taken: the system lets one of several win."""
    try:
        os.link(temporary, name, src_dir_fd=beside, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
            said = "the file system has no hard links, by which one of several writers wins"
            raise OSError(errno.EOPNOTSUPP, said) from None
        raise
    return True


def _info(name: str, last: str, folder: int) -> ObjectInfo | None:
    found = os.stat(last, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        return None
    return ObjectInfo(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _wanted(path: str, entry: _Entry, prefix: str, after: str) -> bool:
    if not entry.is_folder:
        return path.startswith(prefix) and path > after
    may_match = path.startswith(prefix) or prefix.startswith(path)
    return may_match and (path > after or after.startswith(path))
