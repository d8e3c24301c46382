"""A backup as one file, with everything that it needs, and back into a place for backups.

A tar file (POSIX pax): ``llmspell-dist-backup.json`` says what it is, then come objects and wrapped
keys under their names, and the manifests last, so that an import that is interrupted leaves no
backup behind that lacks something.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from llmspell_dist.backup import fields
from llmspell_dist.backup.container import verify_hash
from llmspell_dist.backup.errors import BackupDamagedError, BackupFormatError
from llmspell_dist.backup.keys import read_wrapping
from llmspell_dist.backup.manifest import Manifest
from llmspell_dist.errors import InvalidArgumentError, shorten

if TYPE_CHECKING:
    from llmspell_dist.backup.repository import Repository

__all__ = ["chain_of", "export_backup", "import_backup"]

FORMAT: Final = 1
_ABOUT: Final = "llmspell-dist-backup.json"
_MOST_BYTES: Final = 256 * 1024 * 1024
"""No object is larger; nothing more is read into memory."""


def chain_of(repository: Repository, backup_id: str) -> list[Manifest]:
    """Return the manifests that a backup needs, the full one first."""
    found = [repository.manifest(backup_id)]
    while parent := found[0].parent:
        if any(one.backup_id == parent for one in found):
            name = repository.layout.manifest(parent)
            raise BackupDamagedError(name, "it goes on from itself")
        found.insert(0, repository.manifest(parent))
    return found


def export_backup(repository: Repository, backup_id: str, path: str | os.PathLike[str]) -> int:
    """Write a backup and all that it needs into a file; how many bytes that is.

    The file is there whole or not at all, for its owner only; one of this name is replaced.
    """
    final = _path(path)
    if final.is_dir():
        raise InvalidArgumentError("path", str(path), "must be a file, not a folder")
    chain = chain_of(repository, backup_id)
    about = {"format": FORMAT, "namespace": repository.namespace, "backup": backup_id}
    try:
        # Nobody else may read it, as nobody else may read a folder of backups.
        descriptor, name = tempfile.mkstemp(".part", f".{final.name[:64]}.", final.parent)
        part = Path(name)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - it is open already
                _write(repository, chain, about, file)
                size = file.tell()
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidArgumentError("path", str(path), f"cannot be written: {reason}") from error
    return size


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        found = Path(path)
    except TypeError:
        raise InvalidArgumentError("path", path, "must be the path of a file") from None
    if "\0" in str(found):
        raise InvalidArgumentError("path", str(found), "must be the path of a file")
    return found


def _write(
    repository: Repository, chain: list[Manifest], about: dict[str, Any], file: BinaryIO
) -> None:
    target, layout = repository.target, repository.layout
    with tarfile.open(fileobj=file, mode="w") as tar:
        _add(tar, _ABOUT, json.dumps(about).encode())
        for name in _names(repository, chain):
            _add(tar, name.removeprefix(layout.prefix), target.get(name))
        for one in chain:
            name = layout.manifest(one.backup_id)
            _add(tar, name.removeprefix(layout.prefix), target.get(name))
    file.flush()
    os.fsync(file.fileno())


def _names(repository: Repository, chain: list[Manifest]) -> Iterator[str]:
    """Yield the names of all objects and wrapped keys, each once."""
    layout, seen = repository.layout, set()
    for manifest in chain:
        for ref in manifest.objects:
            if ref.digest not in seen:
                seen.add(ref.digest)
                yield layout.object(ref.digest)
            if ref.key and ref.key not in seen:
                seen.add(ref.key)
                for info in repository.target.list(f"{layout.keys}{ref.key}/"):
                    yield info.name


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o600
    tar.addfile(info, io.BytesIO(data))


def import_backup(repository: Repository, path: str | os.PathLike[str]) -> str:
    """Put what a file holds into the place; the id of its backup.

    Objects are compared with their hashes on the way, and nothing is put that the file's backup
    does not need. What is there already stays as it is.
    """
    name = str(_path(path))
    try:
        with tarfile.open(name, mode="r:") as tar:
            return _Import(repository, tar, name).run()
    except (tarfile.TarError, EOFError) as error:
        raise BackupDamagedError(name, f"it is no export of a backup: {error}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidArgumentError("path", name, f"cannot be read: {reason}") from error


class _Import:
    """One file that is put into a place."""

    def __init__(self, repository: Repository, tar: tarfile.TarFile, name: str) -> None:
        self._repository = repository
        self._layout = repository.layout
        self._tar = tar
        self._name = name

    def run(self) -> str:
        members = self._members()
        if not members or members[0].name != _ABOUT:
            raise BackupDamagedError(self._name, "it is no export of a backup")
        backup_id = self._about(members.pop(0))
        manifests = self._manifests(members)
        chain = self._chain(manifests, backup_id)
        if extra := manifests.keys() - {one.backup_id for one in chain}:
            reason = f"backup {min(extra)} is in it, which {backup_id} does not need"
            raise BackupDamagedError(self._name, reason)
        refs = [ref for one in chain for ref in one.objects]
        needed = {self._layout.object(ref.digest) for ref in refs}
        keys = {ref.key for ref in refs}
        for member in members:
            self._put(member, needed, keys)
        return backup_id

    def _members(self) -> list[tarfile.TarInfo]:
        try:
            return self._tar.getmembers()
        except (tarfile.TarError, ValueError, RecursionError, EOFError, OverflowError) as error:
            reason = f"it is no export of a backup: {error}"
            raise BackupDamagedError(self._name, reason) from None

    def _about(self, member: tarfile.TarInfo) -> str:
        try:
            about = fields.load(self._content(member))
            version, namespace = about["format"], fields.text(about["namespace"])
            backup_id = fields.text(about["backup"])
        except (ValueError, KeyError):
            raise BackupDamagedError(self._name, "it does not say what it is") from None
        if type(version) is not int or version != FORMAT:
            raise BackupFormatError(self._name, version, FORMAT)
        if namespace != self._repository.namespace:
            own = self._repository.namespace
            rule = f"must be an export of namespace {own}; it is of {shorten(namespace)}"
            raise InvalidArgumentError("path", self._name, rule)
        return backup_id

    def _manifests(self, members: list[tarfile.TarInfo]) -> dict[str, Manifest]:
        """Return what backups there are, by id."""
        found = {}
        for member in members:
            full = self._layout.prefix + member.name
            if not full.startswith(self._layout.backups):
                continue
            read = self._layout.read_backup(full)
            if read is None or read[1] != "manifest.json":
                raise BackupDamagedError(member.name, "it is no name of a manifest")
            manifest = Manifest.unpack(self._content(member), member.name)
            if manifest.backup_id != read[0] or manifest.namespace != self._repository.namespace:
                whose = f"{manifest.backup_id} of {manifest.namespace}"
                raise BackupDamagedError(member.name, f"it is the manifest of {whose}")
            found[manifest.backup_id] = manifest
        return found

    def _chain(self, manifests: dict[str, Manifest], backup_id: str) -> list[Manifest]:
        """Return the backup and what it goes on from."""
        found: list[Manifest] = []
        needed = backup_id
        while needed:
            if needed not in manifests:
                raise BackupDamagedError(self._name, f"the manifest of {needed} is not in it")
            found.append(manifests[needed])
            needed = found[-1].parent
            if any(one.backup_id == needed for one in found):
                raise BackupDamagedError(self._name, f"backup {needed} goes on from itself")
        return found

    def _put(self, member: tarfile.TarInfo, needed: set[str], keys: set[str]) -> None:
        """Put one member, if it belongs to the backup."""
        layout, target = self._layout, self._repository.target
        full, data = layout.prefix + member.name, self._content(member)
        if full.startswith(layout.objects):
            if full not in needed:
                raise BackupDamagedError(member.name, "no backup in the export needs it")
            verify_hash(data, name=member.name, digest=full.rpartition("/")[2])
        elif full.startswith(layout.keys):
            found = read_wrapping(member.name, data)
            if found.key_id not in keys or full != found.name_in(layout):
                raise BackupDamagedError(member.name, "no backup in the export needs it")
        elif full.startswith(layout.backups):
            manifest = Manifest.unpack(data, member.name)
            for ref in manifest.objects:
                if target.head(layout.object(ref.digest)) is None:
                    raise BackupDamagedError(layout.object(ref.digest), "it is not in the export")
        else:
            raise BackupDamagedError(member.name, "such an object is in no export")
        target.put(full, data, only_new=True)

    def _content(self, member: tarfile.TarInfo) -> bytes:
        try:
            file = self._tar.extractfile(member) if member.isreg() else None
            if file is None or not 0 <= member.size <= _MOST_BYTES:
                raise BackupDamagedError(self._name, f"{member.name} is no object")
            data = file.read()
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise BackupDamagedError(self._name, f"{member.name}: {error}") from None
        if len(data) != member.size:
            raise BackupDamagedError(self._name, f"{member.name} is cut off")
        return data
