"""Where backups are kept: folders and everything that speaks S3."""

from __future__ import annotations

from llmspell_dist.backup.targets.base import ObjectInfo, Target
from llmspell_dist.backup.targets.unfinished import KeepsUnfinished, Unfinished
from llmspell_dist.backup.targets.urls import open_target

__all__ = ["KeepsUnfinished", "ObjectInfo", "Target", "Unfinished", "open_target"]
