"""Backups: consistent snapshots, an archive of the change log, any moment restored and proved.

``spell.backups.to("s3://bucket/prefix", keys=FileKeys("keys"))`` gives a `BackupStore`, which makes
them. What stands here is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llmspell_dist.backup.archive.offering import ArchiveStatus, TimelineStatus
    from llmspell_dist.backup.archive.shipper import Shipper, ShipperStats
    from llmspell_dist.backup.collecting import Garbage
    from llmspell_dist.backup.comparing import KeyDifference
    from llmspell_dist.backup.compression import Compression
    from llmspell_dist.backup.errors import (
        BackupDamagedError,
        BackupDivergedError,
        BackupError,
        BackupFormatError,
        BackupInProgressError,
        BackupKeyError,
        BackupKeyUnavailableError,
        BackupNeededError,
        BackupNotFoundError,
        BaseMissingError,
        ObjectMissingError,
        PointNotCoveredError,
        RestoreRefusedError,
        TargetError,
        TargetPermissionError,
    )
    from llmspell_dist.backup.findings import Level, VerifyReport
    from llmspell_dist.backup.keys import keys_from_url
    from llmspell_dist.backup.kms import KmsKeys
    from llmspell_dist.backup.manifest import BackupType
    from llmspell_dist.backup.model import BackupInfo, Inexact
    from llmspell_dist.backup.points import Point
    from llmspell_dist.backup.progress import Phase, Progress
    from llmspell_dist.backup.proving import Difference, DrillReport
    from llmspell_dist.backup.restores import RestorePlan, RestoreReport
    from llmspell_dist.backup.retention.policy import RetentionPolicy
    from llmspell_dist.backup.schedule_model import BackupSchedule
    from llmspell_dist.backup.schedules import ScheduledBackups
    from llmspell_dist.backup.service import Backups, BackupStore
    from llmspell_dist.backup.stored import StoredBackups
    from llmspell_dist.backup.targets import Target, open_target
    from llmspell_dist.backup.upkeep import Pruned
    from llmspell_dist.security.keyring import EnvironmentKeys, FileKeys, KeyProvider

__all__ = [
    "ArchiveStatus",
    "BackupDamagedError",
    "BackupDivergedError",
    "BackupError",
    "BackupFormatError",
    "BackupInProgressError",
    "BackupInfo",
    "BackupKeyError",
    "BackupKeyUnavailableError",
    "BackupNeededError",
    "BackupNotFoundError",
    "BackupSchedule",
    "BackupStore",
    "BackupType",
    "Backups",
    "BaseMissingError",
    "Compression",
    "Difference",
    "DrillReport",
    "EnvironmentKeys",
    "FileKeys",
    "Garbage",
    "Inexact",
    "KeyDifference",
    "KeyProvider",
    "KmsKeys",
    "Level",
    "ObjectMissingError",
    "Phase",
    "Point",
    "PointNotCoveredError",
    "Progress",
    "Pruned",
    "RestorePlan",
    "RestoreRefusedError",
    "RestoreReport",
    "RetentionPolicy",
    "ScheduledBackups",
    "Shipper",
    "ShipperStats",
    "StoredBackups",
    "Target",
    "TargetError",
    "TargetPermissionError",
    "TimelineStatus",
    "VerifyReport",
    "keys_from_url",
    "open_target",
]

_HERE: Final = __name__
_WHERE: Final = {
    f"{_HERE}.archive.offering": ("ArchiveStatus", "TimelineStatus"),
    f"{_HERE}.archive.shipper": ("Shipper", "ShipperStats"),
    f"{_HERE}.collecting": ("Garbage",),
    f"{_HERE}.comparing": ("KeyDifference",),
    f"{_HERE}.compression": ("Compression",),
    f"{_HERE}.errors": (
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
    ),
    f"{_HERE}.findings": ("Level", "VerifyReport"),
    f"{_HERE}.keys": ("keys_from_url",),
    f"{_HERE}.kms": ("KmsKeys",),
    f"{_HERE}.manifest": ("BackupType",),
    f"{_HERE}.model": ("BackupInfo", "Inexact"),
    f"{_HERE}.points": ("Point",),
    f"{_HERE}.progress": ("Phase", "Progress"),
    f"{_HERE}.proving": ("Difference", "DrillReport"),
    f"{_HERE}.restores": ("RestorePlan", "RestoreReport"),
    f"{_HERE}.retention.policy": ("RetentionPolicy",),
    f"{_HERE}.schedule_model": ("BackupSchedule",),
    f"{_HERE}.schedules": ("ScheduledBackups",),
    f"{_HERE}.service": ("BackupStore", "Backups"),
    f"{_HERE}.stored": ("StoredBackups",),
    f"{_HERE}.targets": ("Target", "open_target"),
    f"{_HERE}.upkeep": ("Pruned",),
    "llmspell_dist.security.keyring": ("EnvironmentKeys", "FileKeys", "KeyProvider"),
}
_MODULES: Final = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {_HERE!r} has no attribute {name!r}")
    return getattr(import_module(module), name)
