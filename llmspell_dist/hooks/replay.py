"""The names that history, replay, debugging and schedules of hooks are used with."""

from __future__ import annotations

from llmspell_dist.hooks.comparator import Comparison, Difference, DifferenceType, Severity
from llmspell_dist.hooks.debugging import Breakpoint, DebugSession, Stop
from llmspell_dist.hooks.history import HookHistory
from llmspell_dist.hooks.history_policy import HistoryPolicy
from llmspell_dist.hooks.modifications import Modification
from llmspell_dist.hooks.recording import Execution
from llmspell_dist.hooks.replay_model import BatchReport, ReplayConfig, Replayed, ReplayMode
from llmspell_dist.hooks.replays import Replays
from llmspell_dist.hooks.schedules import ReplaySchedules, ScheduleStatus
from llmspell_dist.schedule import At, Cron, Every, Missed, Once

__all__ = [
    "At",
    "BatchReport",
    "Breakpoint",
    "Comparison",
    "Cron",
    "DebugSession",
    "Difference",
    "DifferenceType",
    "Every",
    "Execution",
    "HistoryPolicy",
    "HookHistory",
    "Missed",
    "Modification",
    "Once",
    "ReplayConfig",
    "ReplayMode",
    "ReplaySchedules",
    "Replayed",
    "Replays",
    "ScheduleStatus",
    "Severity",
    "Stop",
]
