"""Latency percentiles of what the workers did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["latency_lines", "percentile"]

_PERCENTS = (50, 95, 99, 99.9)


def percentile(sorted_samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least ``percent`` of all samples do not exceed."""
    rank = -(-len(sorted_samples) * percent // 100)  # ceiling
    return sorted_samples[min(len(sorted_samples), max(1, int(rank))) - 1]


def latency_lines(samples: Mapping[str, Sequence[float]], seconds: float) -> list[str]:
    """Return a table of all kinds of operations: how many, how many a second, how long in ms."""
    head = f"{'operation':<18}{'count':>9}{'per s':>9}"
    lines = [head + "".join(f"{f'p{percent:g}':>9}" for percent in _PERCENTS) + "  ms"]
    for kind, spent in sorted(samples.items(), key=lambda item: -len(item[1])):
        ordered = sorted(spent)
        figures = "".join(f"{percentile(ordered, p) / 1_000:>9.2f}" for p in _PERCENTS)
        lines.append(f"{kind:<18}{len(ordered):>9,}{len(ordered) / seconds:>9,.0f}{figures}")
    count = sum(len(spent) for spent in samples.values())
    lines.append(f"{'all':<18}{count:>9,}{count / seconds:>9,.0f}")
    return lines
