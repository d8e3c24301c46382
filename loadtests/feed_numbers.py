"""Numbers of a feed: given by its publishers, and checked by who listens."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadtests.ledger import Ledger

__all__ = ["Hearing", "Numbering"]


@dataclass(slots=True)
class Numbering:
    """Numbers what one publisher says, each way of saying it by itself."""

    said: Counter[str] = field(default_factory=Counter)

    def next_news(self, way: str, publisher: str) -> dict[str, Any]:
        """Return the next piece of news, with the time at which it was sent."""
        self.said[way] += 1
        return {"publisher": publisher, "number": self.said[way], "sent": time.time()}


@dataclass(slots=True)
class Hearing:
    """What one subscriber has heard: each publisher's numbers, without a gap or a repetition."""

    ledger: Ledger
    last: dict[str, int] = field(default_factory=dict)

    def take(self, news: Any) -> float | None:
        """Check a piece of news; return how many milliseconds it took, None if it is none."""
        if not isinstance(news, dict) or "sent" not in news:
            return None
        publisher, number = news["publisher"], news["number"]
        before = self.last.get(publisher)
        self.last[publisher] = max(number, before or 0)
        self.ledger.checked += 1
        if before is not None and number != before + 1:
            what = "came twice" if number <= before else f"came after {before:,}"
            self.ledger.problems.append(f"number {number:,} of {publisher} {what}")
        sent: float = news["sent"]
        return max(0.0, time.time() - sent) * 1000

    def missed(self) -> None:
        """Begin anew: it was told that something was left out, which is no loss in silence."""
        self.last.clear()
