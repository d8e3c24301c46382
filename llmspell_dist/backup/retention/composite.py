"""Several rules as one, with a defined and, and a defined or."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmspell_dist.backup.retention.model import StoredBackup
from llmspell_dist.backup.retention.rule import Rule
from llmspell_dist.errors import InvalidArgumentError

__all__ = ["AllOf", "AnyOf"]


@dataclass(frozen=True, slots=True, init=False)
class AnyOf:
    """Keeps a backup if any of the rules keeps it."""

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        object.__setattr__(self, "rules", _checked(rules))

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:
        """Keep what one of them keeps; the reason names all that do."""
        kept: dict[str, str] = {}
        for rule in self.rules:
            for backup_id, reason in rule.judge(backups, now).items():
                known = kept.get(backup_id)
                kept[backup_id] = reason if known is None else f"{known}, {reason}"
        return kept

    @property
    def text(self) -> str:
        """The short form."""
        return f"any({' '.join(rule.text for rule in self.rules)})"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "any", "of": [rule.as_data() for rule in self.rules]}

    def __str__(self) -> str:
        parts = [_bracketed(rule) for rule in self.rules]
        return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


@dataclass(frozen=True, slots=True, init=False)
class AllOf:
    """Keeps a backup only if each of the rules keeps it.

    Each rule judges all backups, not what the others left of them.
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        object.__setattr__(self, "rules", _checked(rules))

    def judge(self, backups: Sequence[StoredBackup], now: datetime) -> dict[str, str]:
        """Keep what every one of them keeps; the reason names them all."""
        first, *others = (rule.judge(backups, now) for rule in self.rules)
        return {
            backup_id: " and ".join([reason, *(other[backup_id] for other in others)])
            for backup_id, reason in first.items()
            if all(backup_id in other for other in others)
        }

    @property
    def text(self) -> str:
        """The short form."""
        return f"all({' '.join(rule.text for rule in self.rules)})"

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"rule": "all", "of": [rule.as_data() for rule in self.rules]}

    def __str__(self) -> str:
        return "what is " + " and ".join(f"among {_bracketed(rule)}" for rule in self.rules)


def _checked(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    if not rules:
        raise InvalidArgumentError("rules", rules, "must be at least one")
    for rule in rules:
        if not callable(getattr(rule, "judge", None)):
            raise InvalidArgumentError("rules", rule, "must be rules, such as KeepLast(10)")
    return rules


def _bracketed(rule: Rule) -> str:
    nested = isinstance(rule, (AnyOf, AllOf)) and len(rule.rules) > 1
    return f"({rule})" if nested else str(rule)
