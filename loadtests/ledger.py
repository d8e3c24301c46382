"""What was acknowledged, so that a lost update shows: every count must be found again.

A request without an answer may have happened or not: a number must lie between what was
acknowledged and what was sent. Without errors the two are equal, and the check is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Ledger", "LostUpdateError", "Tally"]


class LostUpdateError(Exception):
    """Something that was acknowledged is not there, or is there twice."""


@dataclass(slots=True)
class Tally:
    """How often something was sent, and how often it was acknowledged."""

    sent: int = 0
    acknowledged: int = 0

    def check(self, what: str, found: int) -> None:
        """Raise `LostUpdateError` unless that many can be there."""
        if not self.acknowledged <= found <= self.sent:
            raise LostUpdateError(
                f"{what}: {found:,} found, {self.acknowledged:,} acknowledged, {self.sent:,} sent"
            )


@dataclass(slots=True)
class Ledger:
    """Tallies by scope and key."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    checked: int = 0
    """Lists and numbers that were compared so far."""
    problems: list[str] = field(default_factory=list)
    banks: set[str] = field(default_factory=set)
    """Scopes of accounts, whose sum is zero."""

    def of(self, scope: str, key: str) -> Tally:
        """Return the tally of a key."""
        found = self.tallies.get((scope, key))
        if found is None:
            found = self.tallies[scope, key] = Tally()
        return found

    def check(self, scope: str, key: str, found: int) -> None:
        """Compare, and remember a difference; it is raised too."""
        self.checked += 1
        try:
            self.of(scope, key).check(f"{key} in {scope}", found)
        except LostUpdateError as error:
            self.problems.append(str(error))
            raise

    def check_bank(self, scope: str, accounts: Mapping[str, int]) -> None:
        """Compare the sum of all accounts with zero, and remember a difference."""
        self.checked += len(accounts)
        total = sum(accounts.values())
        if total:
            self.problems.append(f"the accounts in {scope} add up to {total:,}, not to 0")

    def forget(self, scope: str, key: str) -> None:
        """Begin anew with a key that was deleted."""
        self.tallies.pop((scope, key), None)

    def merge(self, other: Ledger) -> None:
        """Add what another process has done."""
        for name, tally in other.tallies.items():
            mine = self.of(*name)
            mine.sent += tally.sent
            mine.acknowledged += tally.acknowledged
        self.checked += other.checked
        self.problems += other.problems
        self.banks |= other.banks

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        tallies = [[*name, tally.sent, tally.acknowledged] for name, tally in self.tallies.items()]
        return {
            "tallies": tallies,
            "checked": self.checked,
            "problems": self.problems,
            "banks": sorted(self.banks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        tallies = {(scope, key): Tally(sent, acked) for scope, key, sent, acked in data["tallies"]}
        return cls(tallies, data["checked"], list(data["problems"]), set(data["banks"]))
