"""What can go wrong with backups.

::

    SpellError
     └ BackupError
         ├ TargetError
         │   ├ ObjectMissingError
         │   ├ TargetPermissionError
         │   └ BackupKeyUnavailableError
         ├ BackupNotFoundError
         ├ BackupDamagedError
         ├ BackupFormatError
         ├ BackupKeyError
         ├ BackupDivergedError
         ├ BackupInProgressError
         ├ BaseMissingError
         ├ PointNotCoveredError
         └ RestoreRefusedError
"""

from __future__ import annotations

from llmspell_dist.errors import SpellError, shorten

__all__ = [
    "BackupDamagedError",
    "BackupDivergedError",
    "BackupError",
    "BackupFormatError",
    "BackupInProgressError",
    "BackupKeyError",
    "BackupKeyUnavailableError",
    "BackupNeededError",
    "BackupNotFoundError",
    "BaseMissingError",
    "ObjectMissingError",
    "PointNotCoveredError",
    "RestoreRefusedError",
    "TargetError",
    "TargetPermissionError",
]


class BackupError(SpellError):
    """Something about a backup failed."""

    code = "BACKUP"


class TargetError(BackupError):
    """The place of backups, or of their keys, did not do what was asked, also when asked again."""

    code = "BACKUP_TARGET"

    def __init__(self, target: str, name: str, doing: str, said: str, tries: int = 1) -> None:
        self.target = target
        self.name = name
        """The object; empty if it was about none."""
        self.doing = doing
        """``put``, ``get``, ``list``, ``delete`` or ``head``."""
        self.said = said
        self.tries = tries
        what = f"{doing} {name}" if name else doing
        times = f" ({tries} tries)" if tries > 1 else ""
        super().__init__(f"{target}: {what} failed{times}: {said}")


class ObjectMissingError(TargetError):
    """An object is not there."""

    code = "BACKUP_OBJECT_MISSING"


class TargetPermissionError(TargetError):
    """The credentials do not allow this."""

    code = "BACKUP_TARGET_PERMISSION"


class BackupKeyUnavailableError(TargetError):
    """The provider of a key that is needed cannot be asked just now; the key may well be there.

    `target` is the provider, `name` the name of the data key, `doing` is ``wrap`` or ``unwrap``.
    """

    code = "BACKUP_KEY_UNAVAILABLE"
    retryable = True


class BackupNotFoundError(BackupError):
    """There is no backup with this id (one without a manifest does not exist)."""

    code = "BACKUP_NOT_FOUND"

    def __init__(self, target: str, backup_id: str) -> None:
        self.target = target
        self.backup_id = backup_id
        """Empty: there is none at all."""
        which = f" {shorten(backup_id)}" if backup_id else ""
        super().__init__(f"{target}: there is no backup{which}")


class BackupDamagedError(BackupError):
    """An object of a backup is not what was written: nothing of it is used."""

    code = "BACKUP_DAMAGED"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        """The object."""
        self.reason = reason
        super().__init__(f"{name}: {reason}")


class BackupFormatError(BackupError):
    """A backup is of a format that this release does not read."""

    code = "BACKUP_FORMAT"

    def __init__(self, name: str, found: object, reads: object) -> None:
        self.name = name
        self.found = found
        self.reads = reads
        super().__init__(f"{name}: format {found}, this release reads {reads}; use a newer release")


class BackupKeyError(BackupError):
    """A key that is needed is not there, or is another one."""

    code = "BACKUP_KEY"

    def __init__(self, key: str, reason: str, name: str = "") -> None:
        self.key = key
        """The name of the key, never the key."""
        self.reason = reason
        self.name = name
        """The object that needs it."""
        where = f"{name}: " if name else ""
        which = f"key {shorten(key)}: " if key else ""
        super().__init__(f"{where}{which}{reason}")


class BackupDivergedError(BackupError):
    """The server lost writes while its state was read: what was read is of no one moment."""

    code = "BACKUP_DIVERGED"
    retryable = True

    def __init__(self, shard: str, at: object, reason: str) -> None:
        self.shard = shard
        self.at = at
        """The last revision that is known to be common, or None."""
        self.reason = reason
        super().__init__(f"the log of shard {shard} diverged: {reason}")


class BackupInProgressError(BackupError):
    """Another process does what must be done by one at a time."""

    code = "BACKUP_IN_PROGRESS"
    retryable = True

    def __init__(self, what: str, owner: str = "") -> None:
        self.what = what
        self.owner = owner
        by = f" by {shorten(owner)}" if owner else ""
        super().__init__(f"{what} is going on{by}")


class BackupNeededError(BackupError):
    """A backup cannot be removed, because something needs it; nothing was removed."""

    code = "BACKUP_NEEDED"

    def __init__(self, backup_id: str, reason: str) -> None:
        self.backup_id = backup_id
        self.reason = reason
        super().__init__(f"{shorten(backup_id)} stays: {reason}")


class BaseMissingError(BackupError):
    """The backup that another one goes on from is missing, or the log no longer reaches it."""

    code = "BACKUP_BASE_MISSING"

    def __init__(self, base: str, reason: str) -> None:
        self.base = base
        """Its id; empty: there is none."""
        self.reason = reason
        which = shorten(base) if base else "an earlier backup"
        super().__init__(f"cannot go on from {which}: {reason}; take a full backup")


class PointNotCoveredError(BackupError):
    """No backup or archive covers the moment that was asked for."""

    code = "BACKUP_POINT_NOT_COVERED"

    def __init__(self, point: object, reason: str) -> None:
        self.point = point
        self.reason = reason
        super().__init__(f"{point} cannot be restored: {reason}")


class RestoreRefusedError(BackupError):
    """A restore would do harm, so nothing was changed."""

    code = "RESTORE_REFUSED"

    def __init__(self, scope: str, reason: str) -> None:
        self.scope = scope
        self.reason = reason
        super().__init__(f"{shorten(scope) if scope else 'restore'}: {reason}")
